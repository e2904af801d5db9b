"""Tables that somebody has made since anybody looked last: asked often, so it has to cost little."""

from __future__ import annotations

from collections.abc import Set
from typing import NamedTuple

import psycopg

from engines.postgres.asking import ask
from schemas.table import TableId

PRESENT = """
select coalesce(array_agg(c.oid::int8), '{}')
  from pg_class c
 where c.relkind in ('r', 'p') and c.relpersistence <> 't' and not c.relispartition
"""

DETAILS = """
select c.oid::int8, n.nspname, c.relname, r.rolname, r.rolsuper,
       pg_has_role(c.relowner, 'usage')
       or exists (select from pg_publication p where p.pubname = any (%(publications)s) and p.puballtables)
  from pg_class c
  join pg_namespace n on n.oid = c.relnamespace
  join pg_roles r on r.oid = c.relowner
 where c.oid = any (%(oids)s::int8[]::oid[])
   and n.nspname <> all (array['information_schema', 'penstock'])
   and n.nspname !~ '^pg_'
   and not exists (select from pg_depend d
                    where d.classid = 'pg_class'::regclass and d.objid = c.oid and d.deptype = 'e')
 order by n.nspname, c.relname
"""


class Newcomer(NamedTuple):
    """A table that is not known yet."""

    oid: int
    id: TableId
    owner: str
    is_superusers: bool
    may_be_published: bool  # by our role


def present(conn: psycopg.Connection) -> set[int]:
    """Return the numbers of all tables that there are, the server's own among them; of partitions the root's alone."""
    return set(ask(conn, PRESENT)[0][0])


def newcomers(conn: psycopg.Connection, oids: Set[int], publications: tuple[str, ...]) -> list[Newcomer]:
    """Return what can be said of tables by their numbers, by name; nothing of those that are not users' own."""
    rows = ask(conn, DETAILS, oids=list(oids), publications=list(publications)) if oids else []
    return [Newcomer(oid, TableId(schema, name), *rest) for oid, schema, name, *rest in rows]
