"""The two publications of a pipeline.

Tables with a usable replica identity are in the first. Those without are in the second, which publishes no
updates and deletes: in a publication that does, the application's own would fail.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence, Set

import psycopg

from engines.postgres.asking import ask, run
from engines.postgres.problems import some
from engines.postgres.quoting import quote
from schemas.errors import PermissionMissing, SchemaUnsupported
from schemas.table import Identity, Table, TableId

SHOWN = 10  # names in a message

PUBLICATIONS = """
select p.pubname, p.puballtables, p.pubinsert, p.pubupdate, p.pubdelete, p.pubtruncate,
       coalesce((to_jsonb(p) ->> 'pubviaroot')::bool, false)
  from pg_publication p
 where p.pubname = any (%(names)s)
"""

PUBLISHED = """
select t.pubname, t.schemaname, t.tablename, {columns}, {filtered}
  from pg_publication_tables t
 where t.pubname = any (%(names)s)
"""
"""Leaves that are published. Lists of columns and filters of rows came with 15."""


MEMBERS = """
select p.pubname, n.nspname, c.relname
  from pg_publication_rel r
  join pg_publication p on p.oid = r.prpubid
  join pg_class c on c.oid = r.prrelid
  join pg_namespace n on n.oid = c.relnamespace
 where p.pubname = any (%(names)s) and r.prrelid = any (%(oids)s::int8[]::oid[])
 order by n.nspname, c.relname
"""

PRINTS = """
select p.pubname, 0::int8, p.oid::text || ' ' || p.xmin::text from pg_publication p where p.pubname = any (%(names)s)
 union all
select p.pubname, r.prrelid::int8, r.oid::text || ' ' || r.xmin::text
  from pg_publication p join pg_publication_rel r on r.prpubid = p.oid
 where p.pubname = any (%(names)s)
"""


def publication_prints(conn: psycopg.Connection, name: str) -> dict[tuple[str, int], str]:
    """Return a mark of each of the two publications and of each table in them: another one if it was altered, or taken
    out and put back. What was changed meanwhile is not in the stream, and nothing else tells of it."""
    rows = ask(conn, PRINTS, names=list(publication_names(name)))
    return {(publication, table): mark for publication, table, mark in rows}


def publication_names(name: str) -> tuple[str, str]:
    """Return the names of the publications: of tables with, and without, a replica identity."""
    return name, f"{name}_keyless"


def make_publications(conn: psycopg.Connection, name: str, tables: Iterable[Table]) -> None:
    """Make both publications hold these tables, or leave them as they are if they do; empty ones are made too.

    They have to be there before the slot: changes are decoded with the catalogue of their time. Partitions are
    published as themselves, so that a `truncate` of one is sent; of a partitioned root those to come as well. Raises
    `SchemaUnsupported` for unlogged tables.
    """
    chosen = list(tables)
    require_logged(chosen)
    if not publication_problems(conn, name, chosen):
        return
    whole, keyless = publication_names(name)
    with conn.transaction():
        existing = {row[0] for row in ask(conn, PUBLICATIONS, names=[whole, keyless])}
        for publication, publish, members in _both(name, chosen):
            _make(conn, publication, publish, members, exists=publication in existing)


def require_logged(tables: Iterable[Table]) -> None:
    """Raise `SchemaUnsupported` for tables that no publication takes."""
    if unlogged := [table.id for table in tables if table.definition.unlogged]:
        raise SchemaUnsupported(
            f"{some(unlogged)}: unlogged, and their changes are in no stream",
            remedy="alter table … set logged, or exclude them in `tables`",
        )


def publication_statements(name: str, tables: Sequence[Table], version: int) -> list[str]:
    """Return what makes both publications on a server of that version number, for whoever has the right to."""
    return [_creation(*parts, version) for parts in _both(name, tables)]


def _both(name: str, tables: Sequence[Table]) -> Iterator[tuple[str, str, list[Table]]]:
    """Yield the name of each publication, what it publishes, and its tables."""
    whole, keyless = publication_names(name)
    for publication, publish in ((whole, "insert, update, delete, truncate"), (keyless, "insert, truncate")):
        members = [t for t in tables if (t.identity is Identity.NOTHING) == (publication == keyless)]
        yield publication, publish, members


def _make(conn: psycopg.Connection, publication: str, publish: str, members: list[Table], *, exists: bool) -> None:
    version = conn.info.server_version
    listed = _listed(members, version)
    if exists and not listed:  # no statement empties one
        run(conn, f"drop publication {quote(publication)}")
        exists = False
    if exists:
        # Only where they differ: whoever watches it would take that for somebody else's hand.
        run(conn, f"alter publication {quote(publication)} set table {listed}")
        if _options(conn, publication) != _wanted(publish):
            run(conn, f"alter publication {quote(publication)} set ({_with(publish, version)})")
    else:
        run(conn, _creation(publication, publish, members, version))


def _creation(publication: str, publish: str, members: list[Table], version: int) -> str:
    listed = _listed(members, version)
    members_clause = f" for table {listed}" if listed else ""
    return f"create publication {quote(publication)}{members_clause} with ({_with(publish, version)})"


def _listed(members: list[Table], version: int) -> str:
    # 12 takes no partitioned table.
    ids = [t.id for t in members] if version >= 130_000 else [leaf.id for t in members for leaf in t.leaves]
    return ", ".join(f"only {quote(*id)}" for id in ids)


def _with(publish: str, version: int) -> str:
    return f"publish = '{publish}'" + (", publish_via_partition_root = false" if version >= 130_000 else "")


def _options(conn: psycopg.Connection, publication: str) -> list[bool]:
    (found,) = ask(conn, PUBLICATIONS, names=[publication])
    return list(found[2:])


def _wanted(publish: str) -> list[bool]:
    return [operation in publish for operation in ("insert", "update", "delete", "truncate")] + [False]


def add_to_publications(conn: psycopg.Connection, name: str, tables: Iterable[Table]) -> None:
    """Add tables to the publications that they belong to, those that are not there yet; the others are not touched.

    To be called in a transaction. Until it ends nobody can alter the tables.
    """
    whole, keyless = publication_names(name)
    published = _published(conn, [whole, keyless])
    for publication in (whole, keyless):
        there = published.get(publication, {})
        members = [t for t in tables if (t.identity is Identity.NOTHING) == (publication == keyless)]
        missing = [t.id for t in members if not t.leaves or any(leaf.id not in there for leaf in t.leaves)]
        if missing:
            listed = ", ".join(f"only {quote(*id)}" for id in missing)
            run(conn, f"alter publication {quote(publication)} add table {listed}")


def remove_from_publications(conn: psycopg.Connection, name: str, oids: Set[int]) -> None:
    """Take tables out of the publications, by their numbers, as far as they are there; those that publish all tables
    are not touched."""
    for publication, schema, table in ask(conn, MEMBERS, names=list(publication_names(name)), oids=list(oids)):
        with contextlib.suppress(psycopg.errors.UndefinedObject, psycopg.errors.UndefinedTable):  # it just went
            run(conn, f"alter publication {quote(publication)} drop table only {quote(schema, table)}")


def drop_publications(conn: psycopg.Connection, name: str) -> None:
    """Drop both publications, as far as they are there. Raises `PermissionMissing` if somebody else made them."""
    for publication in publication_names(name):
        try:
            run(conn, f"drop publication if exists {quote(publication)}")
        except psycopg.errors.InsufficientPrivilege as error:
            both = ", ".join(map(quote, publication_names(name)))
            raise PermissionMissing(
                f"source: publication {publication} was made by another role",
                remedy=f"as that role, or as a superuser: drop publication if exists {both}",
            ) from error


def publication_problems(conn: psycopg.Connection, name: str, tables: Iterable[Table]) -> list[str]:
    """Return how the publications differ from what the tables need; empty if the stream will hold everything.

    Somebody else may have made them, with more tables than these: capture ignores what was not chosen.
    """
    whole, keyless = publication_names(name)
    found = {row[0]: row[1:] for row in ask(conn, PUBLICATIONS, names=[whole, keyless])}
    problems = [f"publication {name} is missing" for name in (whole, keyless) if name not in found]
    if problems:
        return problems
    if list(found[whole][1:]) != [True, True, True, True, False]:
        problems.append(f"publication {whole} must publish insert, update, delete, truncate, not by partition root")
    keyless_all, *operations = found[keyless]
    if operations != [True, False, False, True, False] or keyless_all:
        problems.append(f"publication {keyless} must publish insert, truncate, of listed tables, not by partition root")
    published = _published(conn, [whole, keyless])
    for publication in (whole, keyless):
        members = [t for t in tables if (t.identity is Identity.NOTHING) == (publication == keyless)]
        problems += _differences(publication, published.get(publication, {}), members)
    without = {leaf.id for t in tables if t.identity is Identity.NOTHING for leaf in t.leaves}
    if failing := sorted(without & published.get(whole, {}).keys()):
        problems.append(
            f"publication {whole}: updates and deletes of {_names(failing)} fail, without a replica identity"
        )
    return problems


def _published(conn: psycopg.Connection, names: list[str]) -> dict[str, dict[TableId, tuple[list[str] | None, bool]]]:
    newer = conn.info.server_version >= 150_000
    query = PUBLISHED.replace("{columns}", "t.attnames::text[]" if newer else "null").replace(
        "{filtered}", "t.rowfilter is not null" if newer else "false"
    )
    found: dict[str, dict[TableId, tuple[list[str] | None, bool]]] = {}
    for publication, schema, table, columns, filtered in ask(conn, query, names=names):
        found.setdefault(publication, {})[TableId(schema, table)] = (columns, filtered)
    return found


def _differences(
    publication: str, published: dict[TableId, tuple[list[str] | None, bool]], members: list[Table]
) -> list[str]:
    missing, filtered, narrower = [], [], []
    for table in members:
        names = {column.name for column in table.columns}
        for leaf in table.leaves:
            if leaf.id not in published:
                missing.append(leaf.id)
                continue
            columns, has_filter = published[leaf.id]
            if has_filter:
                filtered.append(leaf.id)
            if columns is not None and not names <= set(columns):
                narrower.append(leaf.id)
    complaints = ((missing, "lacks"), (filtered, "leaves out rows of"), (narrower, "leaves out columns of"))
    return [f"publication {publication} {what} {_names(ids)}" for ids, what in complaints if ids]


def _names(ids: list[TableId]) -> str:
    more = f" and {len(ids) - SHOWN} more" if len(ids) > SHOWN else ""
    return ", ".join(str(id) for id in ids[:SHOWN]) + more
