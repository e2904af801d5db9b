"""What stands beside the tables, and a target gets if it is asked for: views, owners, and grants."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import psycopg

from engines.postgres.asking import ask, one_moment
from engines.postgres.objects import objects
from engines.postgres.quoting import quote
from schemas.pipeline import matches
from schemas.table import Granted, Objects, SetupObjects, Table, TableId, View

VIEWS = """
select c.oid::int8, n.nspname, c.relname, c.relkind = 'm', c.relispopulated, c.reloptions, pg_get_viewdef(c.oid),
       array(select pg_get_indexdef(i.indexrelid) from pg_index i where i.indrelid = c.oid order by i.indexrelid)
  from pg_class c
  join pg_namespace n on n.oid = c.relnamespace
 where c.relkind in ('v', 'm') and n.nspname <> all (array['information_schema', 'penstock']) and n.nspname !~ '^pg_'
   and not exists (select from pg_depend d
                    where d.classid = 'pg_class'::regclass and d.objid = c.oid and d.deptype = 'e')
 order by n.nspname, c.relname
"""

READ_BY_VIEWS = """
select distinct r.ev_class::int8, rn.nspname, rc.relname
  from pg_rewrite r
  join pg_depend d on d.classid = 'pg_rewrite'::regclass and d.objid = r.oid
   and d.refclassid = 'pg_class'::regclass and d.refobjid <> r.ev_class
  join pg_class c on c.oid = d.refobjid
  join pg_class rc on rc.oid = case when c.relispartition then pg_partition_root(c.oid)::oid else c.oid end
  join pg_namespace rn on rn.oid = rc.relnamespace
 where r.ev_class = any (%(oids)s::oid[])
   and rn.nspname <> 'pg_catalog' and rn.nspname <> 'information_schema'
"""
"""Tables, by their roots, and views that views read."""

ACCESS = """
with chosen (oid, schema, name) as (
    select c.oid, wanted.schema, wanted.name
      from unnest(%(schemas)s::text[], %(names)s::text[]) as wanted(schema, name)
      join pg_namespace n on n.nspname = wanted.schema
      join pg_class c on c.relnamespace = n.oid and c.relname = wanted.name
), relations (oid, schema, name) as (
    select oid, schema, name from chosen
     union
    select t.relid::oid, chosen.schema, chosen.name from chosen, pg_partition_tree(chosen.oid) t
)
select r.schema, r.name, n.nspname, c.relname, pg_get_userbyid(c.relowner), g.privilege, g.column_name, g.grantable,
       case when g.grantee <> 0 then pg_get_userbyid(g.grantee) end
  from relations r
  join pg_class c on c.oid = r.oid
  join pg_namespace n on n.oid = c.relnamespace
  left join lateral (
        select a.privilege_type, null, a.is_grantable, a.grantee from aclexplode(c.relacl) a
         union all
        select a.privilege_type, t.attname, a.is_grantable, a.grantee
          from pg_attribute t, aclexplode(t.attacl) a where t.attrelid = c.oid
       ) as g(privilege, column_name, grantable, grantee) on g.grantee <> c.relowner
 order by r.schema, r.name, n.nspname, c.relname, g.privilege, g.column_name, g.grantee
"""

SCHEMA_ACCESS = """
select n.nspname, a.privilege_type, a.is_grantable, case when a.grantee <> 0 then pg_get_userbyid(a.grantee) end
  from pg_namespace n, aclexplode(n.nspacl) a
 where n.nspname = any (%(schemas)s::text[]) and a.grantee <> n.nspowner
 order by n.nspname, a.privilege_type, a.grantee
"""


def with_companions(
    conn: psycopg.Connection, objects: Objects, tables: Sequence[Table], chooses: Callable[[TableId], bool]
) -> Objects:
    """Return `objects` with the views that read nothing but the tables and each other, and with who owns and may use
    all of them. Of other views nothing is said here."""
    with one_moment(conn):
        views = views_of(conn, {table.id for table in tables}, chooses)
        ids = [*(table.id for table in tables), *(view.id for view in views)]
        owners, grants = _access(conn, ids)
        for schema, privilege, grantable, role in ask(conn, SCHEMA_ACCESS, schemas=list(objects.schemas)):
            statement = f"grant {privilege} on schema {quote(schema)}{_to(role, grantable)}"
            grants += [Granted(on=id, role=role or "", statement=statement) for id in ids if id.schema == schema]
    return objects.model_copy(update={"views": tuple(views), "owners": tuple(owners), "grants": tuple(grants)})


def for_choices(
    conn: psycopg.Connection,
    tables: Sequence[Table],
    chooses: Callable[[TableId], bool],
    choices: Iterable[tuple[str, ...]],
) -> SetupObjects:
    """Return what the tables rest on, with all that `with_companions` adds; and the same for those of them that each of
    the choices takes."""

    def rests_on(choice: tuple[str, ...]) -> Objects:
        taken = [table for table in tables if matches(table.id, choice)]
        return with_companions(conn, objects(conn, taken), taken, lambda id: chooses(id) and matches(id, choice))

    return SetupObjects(**dict(rests_on(())), of_choices=tuple((choice, rests_on(choice)) for choice in choices))


def views_of(conn: psycopg.Connection, tables: Iterable[TableId], chooses: Callable[[TableId], bool]) -> list[View]:
    """Return the views that read nothing but these tables and each other, in an order in which they can be made."""
    found = {oid: (TableId(schema, name), *rest) for oid, schema, name, *rest in ask(conn, VIEWS)}
    reads: dict[int, list[TableId]] = {oid: [] for oid in found}
    for oid, *read in ask(conn, READ_BY_VIEWS, oids=list(found)):
        reads[oid].append(TableId(*read))
    there, made = set(tables), list[View]()
    waiting = [oid for oid, (id, *_) in found.items() if chooses(id)]
    while ready := [oid for oid in waiting if there.issuperset(reads[oid])]:
        for oid in ready:
            id, materialized, populated, options, definition, indexes = found[oid]
            kind = "materialized view" if materialized else "view"
            listed = f" with ({', '.join(options)})" if options else ""
            data = "" if populated else " with no data"
            query = definition.strip().removesuffix(";")
            statement = f"create {kind} {quote(*id)}{listed} as {query}{data if materialized else ''}"
            made.append(View(id=id, reads=tuple(reads[oid]), statements=(statement, *indexes)))
            there.add(id)
        waiting = [oid for oid in waiting if oid not in ready]
    return made


def _access(conn: psycopg.Connection, ids: Sequence[TableId]) -> tuple[list[Granted], list[Granted]]:
    owners: dict[tuple[TableId, TableId], Granted] = {}
    grants: list[Granted] = []
    names = {"schemas": [id.schema for id in ids], "names": [id.name for id in ids]}
    for schema, name, own_schema, own_name, owner, privilege, column, grantable, role in ask(conn, ACCESS, **names):
        on, relation = TableId(schema, name), TableId(own_schema, own_name)
        # `alter table` is for views, too.
        statement = f"alter table {quote(*relation)} owner to {quote(owner)}"
        owners[on, relation] = Granted(on=on, role=owner, statement=statement)
        if privilege is not None:
            of = f" ({quote(column)})" if column is not None else ""
            statement = f"grant {privilege}{of} on table {quote(*relation)}{_to(role, grantable)}"
            grants.append(Granted(on=on, role=role or "", statement=statement))
    return list(owners.values()), grants


def _to(role: str | None, grantable: bool) -> str:
    return f" to {'public' if role is None else quote(role)}" + (" with grant option" if grantable else "")
