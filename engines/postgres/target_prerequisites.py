"""What a target lacks for a pipeline, each with the statement or setting that mends it. Nothing is changed."""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence

import psycopg

from engines.postgres import prerequisite_queries as queries
from engines.postgres.asking import ask, run
from engines.postgres.catalogue import tables as read_tables
from engines.postgres.connect import connect, major
from engines.postgres.narrowing import narrower
from engines.postgres.problems import Found, Problem, quoted, right_version, some
from engines.postgres.quoting import quote
from schemas.pipeline import Prepare
from schemas.table import Objects, Table, TableId

OWN_SCHEMA = "penstock"
TRUSTED_SINCE = 13
SET_ROLE_SINCE = 16
AT_ONCE = 200  # tables that are looked into by one statement


def target_problems(
    url: str,
    tables: Sequence[Table],
    prepare: Prepare | str,
    objects: Objects | None = None,
    prepared: Collection[TableId] = (),
    roles: Collection[str] = (),
    owners: Collection[tuple[str, str]] = (),
) -> list[Problem]:
    """Return what the target lacks to get these tables of the source; of an unreachable one just that.

    `objects` adds the extensions. Tables that are `prepared` already stay, and the rows in them are the pipeline's
    own. `roles` are those that tables will belong or be open to, `owners` the former, each with a schema of its
    tables. How much room its disk has can't be asked.
    """
    found = Found()
    how = Prepare(prepare)
    with (
        found.asking("target", "connecting"),
        contextlib.closing(connect(url, role="writer", application="penstock check")) as conn,
    ):
        if right_version(found, conn, "target"):
            with found.asking("target", "looking at grants"):
                _database(found, conn)
                _schemas(found, conn, tables, how)
                _extensions(found, conn, objects)
                _roles(found, conn, roles)
                _owners(found, conn, owners)
            with found.asking("target", "comparing tables"):
                _tables(found, conn, [table for table in tables if table.id not in prepared], how)
                _kept(found, conn, [table for table in tables if table.id in prepared])
    return found.problems


def _database(found: Found, conn: psycopg.Connection) -> None:
    temporary, _, database, role = ask(conn, queries.TARGET_RIGHTS)[0]
    if not temporary:
        found.error(
            f"target: no right to create temporary tables in database {database}",
            f"grant temporary on database {quote(database)} to {quote(role)}",
        )
    if ask(conn, "select pg_is_in_recovery() or current_setting('default_transaction_read_only')::bool")[0][0]:
        found.error("target: the server takes no writes", "name the primary in the URL")
        return
    try:
        with conn.transaction(force_rollback=True):
            run(conn, "set local session_replication_role = replica")
    except psycopg.errors.InsufficientPrivilege:
        if ask(conn, "select current_setting('session_replication_role')")[0][0] != "replica":
            found.error(
                f"target: role {role} may not switch off triggers and foreign keys for its session",
                f"grant set on parameter session_replication_role to {quote(role)}"
                if major(conn) >= 15
                else f"alter role {quote(role)} set session_replication_role = replica  (as a superuser)",
            )


def _schemas(found: Found, conn: psycopg.Connection, tables: Sequence[Table], prepare: Prepare) -> None:
    _, may_create, database, role = ask(conn, queries.TARGET_RIGHTS)[0]
    names = {table.id.schema for table in tables}
    names |= {partition.id.schema for table in tables for partition in table.definition.partitions}
    makes = prepare in {Prepare.CREATE, Prepare.DROP_AND_CREATE}
    for schema, exists, usage, create in ask(conn, queries.SCHEMAS, schemas=sorted(names | {OWN_SCHEMA})):
        needs_create = makes or schema == OWN_SCHEMA
        if not exists and not may_create:
            found.error(
                f"target: schema {schema} is missing, and role {role} may not create it",
                f"create schema {quote(schema)} authorization {quote(role)},"
                f" or: grant create on database {quote(database)} to {quote(role)}",
            )
        elif exists and not (usage and (create or not needs_create)):
            rights = "usage, create" if needs_create else "usage"
            found.error(
                f"target: no right to {'create tables in' if usage else 'use'} schema {schema}",
                f"grant {rights} on schema {quote(schema)} to {quote(role)}",
            )


def _extensions(found: Found, conn: psycopg.Connection, objects: Objects | None) -> None:
    if objects is None or not objects.extensions:
        return
    schemas = dict(extension.partition(" schema ")[::2] for extension in objects.extensions)
    trusted = "v.trusted" if major(conn) >= TRUSTED_SINCE else "false"
    asked = ask(conn, queries.EXTENSIONS.replace("{trusted}", trusted), names=list(schemas))
    if missing := [name for name, on_server, *_ in asked if not on_server]:
        found.error(
            f"target: extensions are not installed on the server: {some(missing)}",
            "install their packages there, or leave the tables that use them out",
        )
    if forbidden := [name for name, on_server, there, may in asked if on_server and not there and not may]:
        commands = [
            f"create extension {quote(name)}" + (f" schema {quote(schemas[name])}" if schemas[name] else "")
            for name in forbidden
        ]
        role = ask(conn, queries.TARGET_RIGHTS)[0][3]
        found.error(
            f"target: extensions are missing in the database, and role {role} may not make them: {some(forbidden)}",
            f"as a superuser: {'; '.join(commands)}",
        )


def _roles(found: Found, conn: psycopg.Connection, roles: Collection[str]) -> None:
    there = {name for (name,) in ask(conn, "select rolname from pg_roles")}
    if missing := sorted(set(roles) - there):
        found.error(
            f"target: roles that own tables or may use them are missing: role {some(missing)}",
            "; ".join(f"create role {quote(role)}" for role in missing),
        )


def _owners(found: Found, conn: psycopg.Connection, owners: Collection[tuple[str, str]]) -> None:
    """Look whether tables may be given to those who own them at the source, as far as these are there."""
    us, superuser = ask(conn, "select current_user, rolsuper from pg_roles where rolname = current_user")[0]
    if superuser or not owners:
        return
    how = "set" if major(conn) >= SET_ROLE_SINCE else "member"
    schemas, roles = zip(*sorted(owners), strict=True)
    asked = ask(conn, queries.OWNERS, schemas=list(schemas), roles=list(roles), how=how)
    if others := sorted({role for _, role, ours, _ in asked if not ours}):
        found.error(
            f"target: role {us} may give no tables to {some(others)}",
            f"grant {', '.join(map(quote, others))} to {quote(us)}",
        )
    for schema, role, _, may_create in asked:
        if not may_create:
            found.error(
                f"target: role {role} can own no tables in schema {schema}: it may not create any there",
                f"create schema if not exists {quote(schema)}; grant create on schema {quote(schema)} to {quote(role)}",
            )


def _tables(found: Found, conn: psycopg.Connection, tables: Sequence[Table], prepare: Prepare) -> None:
    ids = {table.id for table in tables}
    kinds = _existing(conn, ids)
    if others := sorted(id for id, (_, kind) in kinds.items() if kind not in {"r", "p"}):
        found.error(f"target: {some(others)} exists, but is no table", "drop or rename it")
    there = {table.id: table for table in read_tables(conn, lambda id: id in ids)}
    oids = [kinds[id][0] for id in there]
    missing = sorted(ids - kinds.keys())
    if missing and prepare in {Prepare.TRUNCATE, Prepare.KEEP}:
        found.error(f"target: missing tables: {some(missing)}", "create them, or set prepare: create")
    if prepare in {Prepare.TRUNCATE, Prepare.DROP_AND_CREATE}:
        for schema, name, other_schema, other in ask(conn, queries.REFERRERS, oids=oids):
            found.error(
                f"target: {TableId(other_schema, other)}, which is not of the pipeline, refers to"
                f" {TableId(schema, name)}: it can't be emptied or dropped",
                "drop that foreign key for the load",
            )
    if prepare is Prepare.DROP_AND_CREATE:
        _ownership(found, conn, there)
        return
    _rows(found, conn, there, prepare)
    _fit(found, conn, tables, there, oids)


def _kept(found: Found, conn: psycopg.Connection, tables: Sequence[Table]) -> None:
    ids = {table.id for table in tables}
    kinds = _existing(conn, ids)
    if missing := sorted(ids - kinds.keys()):
        found.error(f"target: {some(missing)} was dropped", "`penstock drop` the pipeline, and run it again")
    there = {table.id: table for table in read_tables(conn, lambda id: id in ids)}
    _fit(found, conn, tables, there, [kinds[id][0] for id in there])


def _existing(conn: psycopg.Connection, ids: Collection[TableId]) -> dict[TableId, tuple[int, str]]:
    """Return oid and kind of the relations of these names that there are."""
    schemas, names = [id.schema for id in ids], [id.name for id in ids]
    rows = ask(conn, queries.EXISTING, schemas=schemas, names=names)
    return {TableId(schema, name): (oid, kind) for schema, name, oid, kind in rows}


def _fit(
    found: Found, conn: psycopg.Connection, tables: Sequence[Table], there: Mapping[TableId, Table], oids: list[int]
) -> None:
    """Look whether rows of the source's tables can be written to those that are there."""
    _writable(found, conn, oids)
    keys: dict[TableId, list[set[str]]] = defaultdict(list)
    for schema, name, columns in ask(conn, queries.UNIQUE_KEYS, oids=oids):
        keys[TableId(schema, name)].append(set(columns))
    for table in tables:
        if table.id in there:
            _compare(found, table, there[table.id], keys[table.id])


def _ownership(found: Found, conn: psycopg.Connection, there: Mapping[TableId, Table]) -> None:
    names = {"schemas": [id.schema for id in there], "names": [id.name for id in there]}
    if foreign := [TableId(schema, name) for schema, name, *_ in ask(conn, queries.NOT_OWNED, **names)]:
        found.error(f"target: only their owner can drop {some(foreign)}", "connect as the owner, or drop them before")


def _writable(found: Found, conn: psycopg.Connection, oids: list[int]) -> None:
    if unwritable := [TableId(*row) for row in ask(conn, queries.UNWRITABLE, oids=oids)]:
        role = quote(ask(conn, queries.TARGET_RIGHTS)[0][3])
        found.error(
            f"target: no right to read and write {some(unwritable)}",
            f"grant select, insert, update, delete, truncate on {quoted(unwritable)} to {role}",
        )
    if hidden := [TableId(*row) for row in ask(conn, queries.ROW_SECURITY, oids=oids)]:
        found.error(f"target: row-level security hides rows of {some(hidden)}", "alter role … bypassrls")
    for schema, name, trigger in ask(conn, queries.ALWAYS_TRIGGERS, oids=oids):
        found.warning(
            f"target: trigger {trigger} of {TableId(schema, name)} fires for replicated rows too",
            f"alter table {quote(schema, name)} enable trigger {quote(trigger)}, which leaves replicated rows alone",
        )
    for schema, name, rule in ask(conn, queries.ALWAYS_RULES, oids=oids):
        found.warning(
            f"target: rule {rule} of {TableId(schema, name)} changes what is done for replicated rows too",
            f"alter table {quote(schema, name)} enable rule {quote(rule)}, which leaves replicated rows alone",
        )


def _rows(found: Found, conn: psycopg.Connection, there: Mapping[TableId, Table], prepare: Prepare) -> None:
    if prepare is Prepare.TRUNCATE:
        return
    oids = [oid for table in there.values() for oid in (leaf.oid for leaf in table.leaves)]
    unreadable = {TableId(*row) for row in ask(conn, queries.UNREADABLE, oids=oids)}  # named already
    leaves = [(table.id, leaf.id) for table in there.values() for leaf in table.leaves if leaf.id not in unreadable]
    filled = []
    for start in range(0, len(leaves), AT_ONCE):
        some_leaves = leaves[start : start + AT_ONCE]
        parts = [
            f"select {place} where exists (select from only {quote(*leaf)})"
            for place, (_, leaf) in enumerate(some_leaves)
        ]
        filled += [some_leaves[place][0] for (place,) in ask(conn, " union all ".join(parts))]
    filled = list(dict.fromkeys(filled))
    if filled and prepare is Prepare.CREATE:
        found.error(
            f"target: tables hold rows already: {some(filled)}",
            "empty them, or set prepare: truncate, drop-and-create or keep",
        )
    elif filled:
        found.warning(f"target: tables hold rows already, and keep them: {some(filled)}")


def _compare(found: Found, source: Table, target: Table, keys: list[set[str]]) -> None:
    what = f"target: {target.id}"
    name = quote(*target.id)
    columns = {column.name: column for column in target.columns}
    details = {column.name: column for column in target.definition.columns}
    for column in source.columns:
        if column.name not in details:
            found.error(
                f"{what} lacks column {column.name}",
                f"alter table {name} add column {quote(column.name)} {column.source_type}",
            )
        elif column.name not in columns:
            found.error(
                f"{what}: column {column.name} is generated, at the source it is not",
                f"alter table {name} alter column {quote(column.name)} drop expression",
            )
        elif reason := narrower(column, columns[column.name]):
            found.error(
                f"{what}: column {column.name} {reason}",
                f"alter table {name} alter column {quote(column.name)} type {column.source_type}",
            )
        elif column.nullable and not columns[column.name].nullable:
            found.warning(
                f"{what}: column {column.name} takes no nulls, at the source it does",
                f"alter table {name} alter column {quote(column.name)} drop not null",
            )
    for made in source.definition.columns:
        if made.generated and made.name in columns:
            how = "virtual" if made.generated_virtual else "stored"
            found.warning(
                f"{what}: column {made.name} is generated at the source, so it is not sent, and stays as it is here",
                f"alter table {name} drop column {quote(made.name)}, add column {quote(made.name)}"
                f" {made.source_type} generated always as ({made.generated}) {how}",
            )
    carried = {column.name for column in source.columns}
    for extra in target.definition.columns:
        free = extra.nullable or extra.default or extra.identity or extra.generated
        if extra.name not in carried and not free:
            found.error(
                f"{what}: column {extra.name} takes no nulls, and the source does not have it",
                f"alter table {name} alter column {quote(extra.name)} drop not null, or give it a default",
            )
    key = [source.columns[place].name for place in source.key]
    if key and set(key) not in keys:
        found.error(
            f"{what} has no key on ({', '.join(key)}) that is not deferrable",
            f"create unique index on {name} ({', '.join(map(quote, key))})",
        )
