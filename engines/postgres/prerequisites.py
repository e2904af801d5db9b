"""What a source lacks for a pipeline, each with the statement or setting that mends it. Nothing is changed."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterable, Sequence

import psycopg

from engines.postgres import prerequisite_queries as queries
from engines.postgres.asking import ask, one_moment
from engines.postgres.catalogue import tables as read_tables
from engines.postgres.companions import views_of
from engines.postgres.connect import connect, execute, is_sql_ascii, replication
from engines.postgres.errors import NAMES_REMEDY
from engines.postgres.objects import ANOTHER_TYPE, refused
from engines.postgres.problems import Found, Problem, quoted, right_version, some
from engines.postgres.publications import publication_names, publication_problems, publication_statements
from engines.postgres.quoting import quote
from engines.postgres.replication import slot_state, standbys_awaited
from engines.postgres.retention import released
from engines.postgres.target_prerequisites import target_problems
from schemas.errors import LOAD_AGAIN
from schemas.pipeline import Mode
from schemas.table import Identity, Table, TableId

__all__ = ["Problem", "source_problems", "target_problems"]

LEAST_SENDER_TIMEOUT = 10_000  # ms
LONG_TRANSACTION = 60  # s
FEW = 10  # tables that a statement still names for people


def source_problems(
    url: str, pipeline_name: str, chooses: Callable[[TableId], bool], mode: Mode | str, *, views: bool = False
) -> list[Problem]:
    """Return what the source lacks for a pipeline that chooses these tables; of an unreachable one just that.

    `views`: some target is to have them.
    """
    found = Found()
    with (
        found.asking("source", "connecting"),
        contextlib.closing(connect(url, role="reader", application="penstock check")) as conn,
    ):
        if right_version(found, conn, "source"):
            _settings(found, conn, pipeline_name)
            _replication_role(found, url, conn)
            with found.asking("source", "reading the catalogue"):
                if is_sql_ascii(conn.pgconn):
                    _names(found, conn)
                _source_tables(found, conn, pipeline_name, chooses, Mode(mode), views)
            with found.asking("source", "looking at open transactions"):
                _transactions(found, conn)
    return found.problems


def _names(found: Found, conn: psycopg.Connection) -> None:
    """Tell names that can't be read as text at all, by which the questions that follow fail."""
    bad = []
    for (name,) in ask(conn, queries.NAMES):
        try:
            name.decode()
        except UnicodeDecodeError:
            bad.append(name.decode("utf-8", "backslashreplace"))
    if bad:
        found.error(f"source: names that are not UTF-8: {some(bad)}", NAMES_REMEDY)


def _settings(found: Found, conn: psycopg.Connection, pipeline_name: str) -> None:
    settings: dict[str, str] = dict(ask(conn, queries.SETTINGS))
    (in_recovery, slots, senders, sender_limit) = ask(conn, queries.SERVER)[0]
    if in_recovery:
        found.error("source: the server is a standby, which takes no messages", "name the primary in the URL")
    if settings["wal_level"] != "logical":
        found.error(
            f"source: wal_level is {settings['wal_level']}",
            "alter system set wal_level = logical; then restart the server"
            " (Amazon RDS: rds.logical_replication = 1; Cloud SQL: cloudsql.logical_decoding = on)",
        )
    limit = int(settings["max_replication_slots"])
    ours = slot_state(conn, f"penstock_{pipeline_name}")
    if ours is None and slots >= limit:
        found.error(
            f"source: all {limit} replication slots are taken",
            f"alter system set max_replication_slots = {limit + 5}; then restart, or drop a slot that nobody needs",
        )
    if ours is None and senders is not None and senders >= sender_limit:
        found.error(
            f"source: all {sender_limit} walsenders are busy",
            f"alter system set max_wal_senders = {sender_limit + 5}; then restart",
        )
    if (let_go := released(conn, f"penstock_{pipeline_name}")) is not None:
        found.error(f"source: {let_go}", let_go.remedy)
    if ours is not None and ours.lost:
        found.error(
            f"source: slot penstock_{pipeline_name} is lost {ours.invalidation_reason}".rstrip(),
            LOAD_AGAIN,
        )
    if awaited := standbys_awaited(conn, f"penstock_{pipeline_name}"):
        found.warning(
            f"source: it holds all changes back until standby {', '.join(awaited)} streams",
            "start the standby, or take it out of synchronized_standby_slots",
        )
    sender_timeout = int(settings["wal_sender_timeout"])
    if 0 < sender_timeout < LEAST_SENDER_TIMEOUT:
        found.warning(
            f"source: wal_sender_timeout is {sender_timeout} ms, a short stall will cut the stream",
            "alter system set wal_sender_timeout = '60s'; select pg_reload_conf()",
        )
    if (kept := int(settings.get("max_slot_wal_keep_size", "-1"))) >= 0:
        found.warning(
            f"source: max_slot_wal_keep_size is {kept} MB: a stop of the pipeline that the source writes more in"
            " loses its slot, and means a new load",
            "alter system set max_slot_wal_keep_size = -1; select pg_reload_conf(); and let `wal-budget` watch it",
        )
    if int(settings.get("idle_replication_slot_timeout", "0")) > 0:
        found.warning(
            "source: idle_replication_slot_timeout will take the slot from a pipeline that is stopped for longer",
            "alter system set idle_replication_slot_timeout = 0; select pg_reload_conf()",
        )
    if settings.get("old_snapshot_threshold", "-1") != "-1":
        found.error(
            "source: old_snapshot_threshold ends the snapshot of a long load",
            "alter system set old_snapshot_threshold = -1; then restart",
        )
    if settings["fsync"] == "off":
        found.warning(
            "source: fsync is off: after a loss of power nothing is certain, on either side",
            "alter system set fsync = on; select pg_reload_conf()",
        )


def _replication_role(found: Found, url: str, conn: psycopg.Connection) -> None:
    role, may_replicate = ask(conn, queries.ROLE)[0]
    if not may_replicate:
        found.error(
            f"source: role {role} may not replicate",
            f"alter role {quote(role)} replication  (Amazon RDS: grant rds_replication to {quote(role)})",
        )
        return
    with found.asking("source", "opening a replication connection"):
        pgconn = replication(url, application="penstock check")
        try:
            execute(pgconn, "IDENTIFY_SYSTEM")
        finally:
            pgconn.finish()


def _source_tables(
    found: Found,
    conn: psycopg.Connection,
    pipeline_name: str,
    chooses: Callable[[TableId], bool],
    mode: Mode,
    views: bool,
) -> None:
    with one_moment(conn):
        tables = read_tables(conn, chooses)
        if not tables:
            found.error("source: no table is chosen", "compare `tables:` in the pipeline file with the source's tables")
            return
        _rights(found, conn, pipeline_name, tables, mode)
        _identities(found, conn, tables, mode)
        _what_cannot_be_carried(found, conn, tables)
        made = {view.id for view in views_of(conn, {table.id for table in tables}, chooses)} if views else None
        _left_out(found, conn, chooses, made)


def _rights(found: Found, conn: psycopg.Connection, pipeline_name: str, tables: Sequence[Table], mode: Mode) -> None:
    role = quote(ask(conn, queries.ROLE)[0][0])
    leaves = [leaf.oid for table in tables for leaf in table.leaves]
    schemas = sorted({leaf.id.schema for table in tables for leaf in table.leaves})
    if closed := [schema for (schema,) in ask(conn, queries.CLOSED_SCHEMAS, schemas=schemas)]:
        found.error(
            f"source: no right to use schema {some(closed)}",
            f"grant usage on schema {', '.join(map(quote, closed))} to {role}",
        )
    if mode is not Mode.CHANGES:
        unreadable = [TableId(*row) for row in ask(conn, queries.UNREADABLE, oids=leaves)]
        if unreadable:
            found.error(
                f"source: no right to read {some(unreadable)}", f"grant select on {quoted(unreadable)} to {role}"
            )
        hidden = [TableId(*row) for row in ask(conn, queries.ROW_SECURITY, oids=leaves)]
        if hidden:
            found.error(f"source: row-level security hides rows of {some(hidden)}", f"alter role {role} bypassrls")
    _publications(found, conn, pipeline_name, tables, role)


def _publications(
    found: Found, conn: psycopg.Connection, pipeline_name: str, tables: Sequence[Table], role: str
) -> None:
    name = f"penstock_{pipeline_name}"
    if not publication_problems(conn, name, tables):
        return  # somebody made them as they have to be
    made_for_us = f"or have their owner make the publications {' and '.join(publication_names(name))}"
    database, may_create = ask(conn, queries.MAY_CREATE)[0]
    if not may_create:
        found.error(
            f"source: no right to create publications in database {database}",
            f"grant create on database {quote(database)} to {role}, {made_for_us}",
        )
    roots = _roots(tables)
    supers: dict[str, list[TableId]] = {}
    others: dict[str, list[TableId]] = {}
    for schema, table, owner, superuser in ask(conn, queries.NOT_OWNED, **roots):
        (supers if superuser else others).setdefault(owner, []).append(TableId(schema, table))
    if others:
        found.error(
            f"source: only their owner can publish {some([id for ids in others.values() for id in ids])}",
            f"grant {', '.join(map(quote, others))} to {role}, {made_for_us}",
        )
    if supers:  # whose membership nobody gives away
        statements = publication_statements(name, tables, conn.info.server_version)
        short = "; ".join(statements) if len(tables) <= FEW else made_for_us.removeprefix("or ")
        found.error(
            f"source: only superusers can publish {some([id for ids in supers.values() for id in ids])}, whom they"
            f" belong to: {', '.join(supers)}",
            f"give them to a role that is no superuser (alter table … owner to …), and grant that one to {role};"
            f" or as a superuser: {short}",
        )


def _identities(found: Found, conn: psycopg.Connection, tables: Sequence[Table], mode: Mode) -> None:
    roots = _roots(tables)
    generated = {TableId(*row) for row in ask(conn, queries.GENERATED_KEYS, **roots)}
    if generated:
        found.error(
            f"source: the replica identity of {some(sorted(generated))} has a generated column, which is not in the"
            " stream",
            "alter table … replica identity using index …  (a unique index on other columns, not null), or default, if"
            " there is a primary key without it",
        )
    keyless = [t.id for t in tables if t.identity is Identity.NOTHING and t.id not in generated]
    if keyless:
        told = "their updates and deletes are not in the stream"
        found.warning(
            f"source: {some(keyless)} without a usable replica identity: {told}, only inserts and truncates are"
            + (" (a load with changes during it has the same limit)" if mode is Mode.LOAD else ""),
            "add a primary key that is not deferrable, or: alter table … replica identity full",
        )
    if full := [t.id for t in tables if t.identity is Identity.FULL and not t.key]:
        found.warning(
            f"source: {some(full)} without a key: each update and delete searches the target's whole table",
            "add a primary key",
        )


def _what_cannot_be_carried(found: Found, conn: psycopg.Connection, tables: Sequence[Table]) -> None:
    if unlogged := [t.id for t in tables if t.definition.unlogged]:
        found.error(
            f"source: the changes of unlogged tables can't be followed: {some(unlogged)}",
            "alter table … set logged, or leave them out: tables: ['!schema.table']",
        )
    for id, why in refused(conn, tables).items():
        found.error(f"source: {id}: {why}", ANOTHER_TYPE)
    roots = _roots(tables)
    if foreign := [TableId(*row) for row in ask(conn, queries.FOREIGN_PARTITIONS, **roots)]:
        found.error(
            f"source: partitions that are foreign tables can't be read: {some(foreign)}",
            "detach them, or leave their tables out",
        )
    if functions := [name for (name,) in ask(conn, queries.FUNCTIONS, **roots)]:
        found.warning(
            f"source: defaults, checks or indexes call functions that are not carried: {some(functions)}",
            "create these functions on the target first",
        )


def _left_out(
    found: Found, conn: psycopg.Connection, chooses: Callable[[TableId], bool], made: Collection[TableId] | None
) -> None:
    """Name what fits the patterns and is no table, but for views that are `made` on a target that is to have them."""
    kinds: dict[str, list[TableId]] = {}
    for kind, *id in ask(conn, queries.LEFT_OUT):
        if chooses(TableId(*id)):
            kinds.setdefault(kind, []).append(TableId(*id))
    if views := [id for id in kinds.get("v", []) + kinds.get("m", []) if id not in (made or ())]:
        found.warning(
            f"source: views are not copied: {some(views)}",
            "set views: true for a target that is to have them"
            if made is None
            else "make them on the target by hand: they read more than the chosen tables",
        )
    if foreign := kinds.get("f"):
        found.warning(
            f"source: foreign tables are not copied: {some(foreign)}",
            "make them on the target by hand, or copy them from the server that they are on",
        )


def _transactions(found: Found, conn: psycopg.Connection) -> None:
    for gid, owner, age in ask(conn, queries.PREPARED):
        found.warning(
            f"source: a transaction of {owner} is prepared since {age} s: the slot can't be made before it ends",
            f"commit prepared or rollback prepared {gid}",
        )
    for pid, user, database, age in ask(conn, queries.LONG_TRANSACTIONS, seconds=LONG_TRANSACTION):
        found.warning(
            f"source: process {pid} of {user} in database {database} is in a transaction since {age} s:"
            " the slot can't be made before it ends",
            f"end it, or: select pg_terminate_backend({pid})",
        )


def _roots(tables: Iterable[Table]) -> dict[str, list[str]]:
    ids = [table.id for table in tables]
    return {"schemas": [id.schema for id in ids], "names": [id.name for id in ids]}
