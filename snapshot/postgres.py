"""PostgreSQL's tables, read by `COPY` in an exported snapshot, and the holder's side of it."""

from __future__ import annotations

import contextlib
import logging
import math
import re
import select
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import psycopg
from psycopg import pq

from codec.copy import CopyDecoder
from engines.postgres.asking import ask, run
from engines.postgres.catalogue import tables
from engines.postgres.companions import for_choices
from engines.postgres.conditions import is_partitioned, rows_where
from engines.postgres.connect import connect, is_sql_ascii
from engines.postgres.definitions import make_trigger
from engines.postgres.errors import translated, with_column_name
from engines.postgres.quoting import literal, quote
from engines.postgres.replication import (
    BACKEND,
    create_slot,
    current_snapshot,
    drop_slot,
    emit_message,
    make_publications,
    publication_names,
    slot_state,
    system_identity,
)
from engines.postgres.retention import forget_release
from engines.postgres.types import BUILT_IN, text_of
from schemas.errors import SchemaUnsupported, SnapshotLost, SourceUnavailable, ValueUnsupported
from schemas.frontier import Chunk, Visibility
from schemas.table import Column, SetupObjects, Table, TableId
from schemas.types import Kind
from snapshot.reader import GONE, Held, Mark, Planned, Prepared, Rows
from transport.views import Registered

BATCH_BYTES = 512 << 10
"""A batch is handed over when it is larger than this: with one more row of middling size still below the megabyte
that Kafka takes by default."""

CHUNK_BYTES = 64 << 20
CHUNK_ROWS = 50_000

LOCK_CLASS = 0x50454E53
"""The first key of the advisory lock that the holder of a pipeline has."""

CLAIM = "select pg_try_advisory_lock(%(namespace)s::int4, %(key)s::int4)"

CLAIMED = f"""
select {BACKEND.format(pid="l.pid")}
  from pg_locks l
  left join pg_stat_activity a on a.pid = l.pid
 where l.locktype = 'advisory' and l.granted
   and l.classid::int8::int4 = %(namespace)s::int4 and l.objid::int8 = %(key)s::int8 & 4294967295
"""

PATIENT_SECONDS, TELL_SECONDS = 5.0, 60.0
"""After so long of waiting for another holder people are told, and told again. One that died is soon missed."""

KEEPALIVE = """
set tcp_keepalives_idle = 20;
set tcp_keepalives_interval = 5;
set tcp_keepalives_count = 3
"""
"""So that the server soon misses a holder whose machine is gone: its claim and its snapshots are in the way."""

_log = logging.getLogger(__name__)

# In a repeatable read transaction the catalogue's tables show what the snapshot sees; its functions look past it, and
# so do names in statements: what was renamed since is read by the name that it has now.
LEAVES = """
with recursive below(place, oid, relkind) as (
    select wanted.place, c.oid, c.relkind
      from unnest(%(oids)s::int8[]) with ordinality wanted(oid, place)
      join pg_class c on c.oid = wanted.oid::oid
     union all
    select b.place, c.oid, c.relkind
      from below b join pg_inherits i on i.inhparent = b.oid join pg_class c on c.oid = i.inhrelid
     where b.relkind = 'p'
)
select b.place - 1, coalesce(now.name[1], n.nspname), coalesce(now.name[2], c.relname),
       coalesce(pg_relation_size(c.oid), 0) / current_setting('block_size')::int8,
       coalesce(pg_table_size(c.oid), 0),
       case when c.relpages > 0 and c.reltuples >= 0 then c.reltuples / c.relpages end::float8
  from below b join pg_class c on c.oid = b.oid join pg_namespace n on n.oid = c.relnamespace
 cross join lateral (select case when pg_relation_filenode(c.oid) is not null
                                 then parse_ident(c.oid::regclass::text) end as name) now
 where b.relkind = 'r'
 order by 1, 2, 3
"""

# What has the name no more in either is gone, unless it lives on by another one: then it is something else.
MARKS = f"""
set plan_cache_mode = force_generic_plan;
prepare penstock_marks (text[], text[]) as
select case when seen.oid is null then '{GONE}' else seen.oid || '/' || seen.relfilenode end,
       case when now.oid is not null then now.oid || '/' || coalesce(pg_relation_filenode(now.oid), 0)
            when pg_relation_filenode(seen.oid) is not null then 'renamed'
            else '{GONE}' end
  from unnest($1, $2) with ordinality wanted(schema, name, place)
  left join lateral (select c.oid from pg_class c join pg_namespace n on n.oid = c.relnamespace
                      where n.nspname = wanted.schema and c.relname = wanted.name offset 0) was on true
 cross join lateral (select to_regclass(format('%I.%I', wanted.schema, wanted.name))::oid as oid) now
  left join lateral (select c.oid, c.relfilenode from pg_class c
                      where c.oid = coalesce(now.oid, was.oid) offset 0) seen on true
 order by wanted.place
"""
"""Asked twice a chunk, and planned once a connection: with thousands of tables that was half of what a chunk cost. Each
`offset 0` keeps the planner from joining the whole catalogue to the few names."""

NESTED_LOOPS = """
set local enable_seqscan = off;
set local enable_hashjoin = off;
set local enable_mergejoin = off
"""
"""The planner can't know how few of a table's rows a list of keys is: it must look each key up in the index."""


class PostgresReader:
    """Reads tables; connects with the first `open`, and again after anything has failed.

    Each `open` is a transaction of its own, which `release` ends: a longer one would hold locks on every table that
    it has read, and let the application's own DDL wait, and everybody else behind that.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self._connection: psycopg.Connection | None = None

    def open(self, snapshot: str) -> None:
        with translated("source", "opening a snapshot"):
            if self._connection is None or self._connection.closed:
                self._connection = connect(self._url, role="reader", application="penstock snapshot")
                _execute(self._connection, MARKS)
            self.release()
            begin = f"begin isolation level repeatable read, read only; set transaction snapshot {literal(snapshot)}"
            try:
                _execute(self._connection, begin)
            except psycopg.Error:
                self.release()
                raise

    def plan(self, tables: Sequence[Table]) -> list[Planned]:
        connection = self._open()
        leaves: list[list[_Leaf]] = [[] for _ in tables]
        with translated("source", f"planning {len(tables)} tables"):
            for place, *leaf in ask(connection, LEAVES, oids=[table.oid for table in tables]):
                leaves[place].append(_Leaf(*leaf))
        # A partitioned table without partitions, or one that was dropped, has one chunk without rows.
        divided = [
            _chunks(of or [_Leaf(*t.name, 0, 0, None)], connection) for t, of in zip(tables, leaves, strict=True)
        ]
        marked = [list(dict.fromkeys(TableId(chunk.leaf_schema, chunk.leaf_name) for chunk in of)) for of in divided]
        marks = iter(self.marks([leaf for of in marked for leaf in of]))
        return [Planned(of, tuple(next(marks).now for _ in these)) for of, these in zip(divided, marked, strict=True)]

    def is_current(self, table: Table) -> bool:
        expected = {column.name for column in table.definition.columns} or {column.name for column in table.columns}
        with translated("source", f"looking at {table.id}"):
            # The query's description is of now; the catalogue's tables would show what the snapshot sees.
            if not ask(self._open(), "select 1 where to_regclass(%(name)s) is not null", name=quote(*table.name)):
                return False
            described = self._open().pgconn.exec_(f"select * from only {quote(*table.name)} limit 0".encode())
            if described.status != pq.ExecStatus.TUPLES_OK:
                raise psycopg.errors.error_from_result(described)
            names = [described.fname(place) or b"" for place in range(described.nfields)]
        return {name.decode() for name in names} == expected

    def marks(self, leaves: Sequence[TableId]) -> list[Mark]:
        with translated("source", "looking where rows are"):
            return self._marks(leaves)

    def leave(self, leaves: Sequence[TableId]) -> list[Mark]:
        with translated("source", "leaving a snapshot"):
            return self._marks(leaves, "; rollback")

    def _marks(self, leaves: Sequence[TableId], then: str = "") -> list[Mark]:
        schemas, names = _array([leaf.schema for leaf in leaves]), _array([leaf.name for leaf in leaves])
        pgconn = self._open().pgconn
        pgconn.send_query(f"execute penstock_marks ({literal(schemas)}, {literal(names)}){then}".encode())
        pgconn.flush()
        found = _require(_result(pgconn), pq.ExecStatus.TUPLES_OK)
        while (ended := _result(pgconn)) is not None:
            _require(ended, pq.ExecStatus.COMMAND_OK)
        texts = [[found.get_value(row, column) or b"" for column in range(2)] for row in range(found.ntuples)]
        return [Mark(seen.decode(), now.decode()) for seen, now in texts]

    def read(self, version: Registered, chunk: Chunk) -> Iterator[Rows]:
        leaf = quote(chunk.leaf_schema, chunk.leaf_name)
        bounds = [(">=", chunk.lower), ("<", chunk.upper)]
        conditions = [f"ctid {sign} {literal(bound)}::tid" for sign, bound in bounds if bound]
        where = f" where {' and '.join(conditions)}" if conditions else ""
        yield from self._copy(version, f"select {columns(version.table)} from only {leaf}{where}")

    def read_keys(self, version: Registered, keys: Sequence[tuple[str, ...]]) -> Iterator[Rows]:
        table = version.table
        wanted = [table.columns[place] for place in table.key]
        lists = ", ".join(f"{literal(_array([key[place] for key in keys]))}::text[]" for place in range(len(wanted)))
        names = ", ".join(f"k{place}" for place in range(len(wanted)))
        conditions = " and ".join(_equals(column, f"wanted.k{place}") for place, column in enumerate(wanted))
        with translated("source", f"reading {table.id}"):
            only = "" if is_partitioned(self._open(), table.name) else "only "
            if not any(_by_text(column) for column in wanted):
                _execute(self._open(), NESTED_LOOPS)
        yield from self._copy(
            version,
            f"select {columns(table, 'found')} from unnest({lists}) wanted({names}), {only}{quote(*table.name)} found"
            f" where {conditions}",
        )

    def read_where(self, version: Registered, condition: str) -> Iterator[Rows]:
        table = version.table
        with translated("source", f"reading {table.id}"):
            rows = rows_where(self._open(), table.name, condition)
        yield from self._copy(version, f"select {columns(table)} {rows}")

    def release(self) -> None:
        if self._connection is None or self._connection.closed:
            return
        if self._connection.info.transaction_status != pq.TransactionStatus.IDLE:
            with translated("source", "leaving a snapshot"):
                _execute(self._connection, "rollback")

    def close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(Exception):
                connection.close()

    def _open(self) -> psycopg.Connection:
        if self._connection is None or self._connection.closed:
            raise SourceUnavailable("source: the connection is gone")
        return self._connection

    def _copy(self, version: Registered, query: str) -> Iterator[Rows]:
        connection = self._open()
        complete = False
        try:
            with translated("source", f"reading {version.table.id}"):
                decoder = CopyDecoder(version.layout, binary=True)
                pgconn = connection.pgconn
                if is_sql_ascii(pgconn):
                    # Else the server refuses a text that is not UTF-8, and does not say which; the decoder does.
                    _execute(connection, "set client_encoding = 'SQL_ASCII'")
                pgconn.send_query(f"{query} limit 0; copy ({query}) to stdout (format binary)".encode())
                pgconn.flush()
                _check_shape(version.table, _require(_result(pgconn), pq.ExecStatus.TUPLES_OK))
                _require(_result(pgconn), pq.ExecStatus.COPY_OUT)
                # One turn a row: nothing may be in here that is not needed.
                get, feed, full = pgconn.get_copy_data, decoder.feed, BATCH_BYTES
                while True:
                    size, data = get(0)
                    if size < 0:
                        break
                    if feed(data) >= full:
                        number = decoder.pending_rows
                        yield Rows(decoder.take(), number)
                while (ended := pgconn.get_result()) is not None:
                    _require(ended, pq.ExecStatus.COMMAND_OK)
                if is_sql_ascii(pgconn):
                    _execute(connection, "set client_encoding = 'UTF8'")
                complete = True
                if number := decoder.pending_rows:
                    yield Rows(decoder.take(), number)
        except ValueUnsupported as error:
            table, text = version.table, str(error)
            if not isinstance(error.__cause__, psycopg.Error):
                text = (
                    f"source: reading {table.id}: {with_column_name(text, [column.name for column in table.columns])}"
                )
            raise ValueUnsupported(text, remedy=error.remedy or "correct the value") from error
        finally:
            if not complete:
                self.close()  # in the middle of a COPY nothing else can be asked


class _Leaf(NamedTuple):
    """A leaf of a table as it is divided: `density` is rows a page, as far as anybody knows."""

    schema: str
    name: str
    pages: int
    size: int
    density: float | None


def _chunks(leaves: Sequence[_Leaf], connection: psycopg.Connection) -> tuple[Chunk, ...]:
    ranges = connection.info.server_version >= 140_000  # before, a range of pages reads the whole table
    chunks: list[Chunk] = []
    for leaf in leaves:
        for lower, upper, rows in divide(leaf.pages if ranges else 0, leaf.size, leaf.density):
            chunks.append(Chunk(len(chunks), leaf.schema, leaf.name, lower, upper, rows))
    return tuple(chunks)


def divide(pages: int, size: int, density: float | None) -> Iterator[tuple[str, str, int]]:
    """Yield bounds and estimated rows of the chunks of a leaf of so many pages and bytes (values out of line
    included), with so many rows a page. The first has no lower bound and the last no upper one."""
    a_page = max(size / pages, 1.0) if pages else 1.0
    most = max(1, int(min(CHUNK_BYTES / a_page, CHUNK_ROWS / density if density else math.inf)))
    number = max(1, -(-pages // most))
    edges = [pages * n // number for n in range(number + 1)]
    for n in range(number):
        lower = f"({edges[n]},0)" if n else ""
        upper = f"({edges[n + 1]},0)" if n < number - 1 else ""
        yield lower, upper, round((density or 0) * (edges[n + 1] - edges[n]))


def columns(table: Table, relation: str = "") -> str:
    """Return what to select of a table so that the transcoder can read it; a row may have no columns at all."""
    prefix = f"{relation}." if relation else ""
    return ", ".join(
        text_of(prefix + quote(column.name)) if column.kind is Kind.OTHER else prefix + quote(column.name)
        for column in table.columns
    )


def _by_text(column: Column) -> bool:
    """Whether a key is compared by its text, for want of an operator in `pg_catalog`."""
    return column.kind is Kind.OTHER and "." in column.source_type


def _equals(column: Column, value: str) -> str:
    found = f"found.{quote(column.name)}"
    if _by_text(column):
        return f"{text_of(found)} = {value}"
    return f"{found} = {value}::{column.source_type}"


def _array(values: Sequence[str]) -> str:
    return "{" + ",".join('"' + re.sub(r'(["\\])', r"\\\1", value) + '"' for value in values) + "}"


def _check_shape(table: Table, description: pq.abc.PGresult) -> None:
    """Raise `SchemaUnsupported` if a query of no rows shows that a column's binary form is no longer the version's.

    It is asked before the COPY, which does not tell, and leaves its lock on the table: nothing can come between.
    """
    for place, column in enumerate(table.columns):
        kind = BUILT_IN.get(description.ftype(place), Kind.TEXT)  # enumerations have oids of their own
        if column.kind not in {kind, Kind.OTHER}:
            raise SchemaUnsupported(
                f"source: reading {table.id}: column {column.name} is no longer of type {column.source_type}",
                remedy="change a row of the table, so that the stream brings its new definition",
            )


def _result(pgconn: pq.abc.PGconn) -> pq.abc.PGresult | None:
    """Return the next result. The driver would wait for it with the interpreter locked, as long as somebody has locked
    the table, and nobody could ask us to stop."""
    arrival = select.poll()
    arrival.register(pgconn.socket, select.POLLIN)
    while pgconn.is_busy():
        arrival.poll()
        pgconn.consume_input()
    return pgconn.get_result()


def _require(result: pq.abc.PGresult | None, *expected: pq.ExecStatus) -> pq.abc.PGresult:
    """Return a result, or raise the driver's error if it is another than was expected."""
    if result is None:
        raise psycopg.OperationalError("the server sent no result")
    if result.status not in expected:
        raise psycopg.errors.error_from_result(result)
    return result


def _execute(connection: psycopg.Connection, statements: str) -> None:
    """Run statements in one round trip."""
    _require(connection.pgconn.exec_(statements.encode()), pq.ExecStatus.COMMAND_OK, pq.ExecStatus.TUPLES_OK)


class HeldSnapshot:
    """A snapshot in an idle transaction of its own connection, exported from there."""

    def __init__(self, url: str, name: str | None = None) -> None:
        """Take a snapshot of now, or hold the one that somebody exported as `name`."""
        self._connection = connect(url, role="control", application="penstock holder")
        try:
            _execute(self._connection, KEEPALIVE)
            _execute(self._connection, "begin isolation level repeatable read, read only")
            if name is not None:
                _execute(self._connection, f"set transaction snapshot {literal(name)}")
            self.visibility: Visibility = current_snapshot(self._connection)
            self.name: str = ask(self._connection, "select pg_export_snapshot()")[0][0]
        except BaseException:
            self._connection.close()
            raise

    def ping(self) -> None:
        try:
            run(self._connection, "select 1")
        except psycopg.Error as error:
            raise SnapshotLost("source: the connection that held a snapshot is lost") from error

    def close(self) -> None:
        with contextlib.suppress(Exception):
            self._connection.close()


class PostgresSnapshotSource:
    """Makes publications and slot, takes snapshots; connects with the first `claim`."""

    def __init__(self, url: str, pipeline: str) -> None:
        self._url = url
        self._name = f"penstock_{pipeline}"
        self._connection: psycopg.Connection | None = None
        self._tell_at = time.monotonic() + PATIENT_SECONDS

    def claim(self) -> bool:
        with translated("source", "becoming the holder"):
            if self._connection is None:
                self._connection = connect(self._url, role="control", application="penstock holder")
                _execute(self._connection, KEEPALIVE)
            key = zlib.crc32(self._name.encode()) - (1 << 31)
            claimed = bool(ask(self._connection, CLAIM, namespace=LOCK_CLASS, key=key)[0][0])
            if not claimed and time.monotonic() >= self._tell_at:
                self._tell_at = time.monotonic() + TELL_SECONDS
                for (other,) in ask(self._connection, CLAIMED, namespace=LOCK_CLASS, key=key):
                    _log.warning(
                        "another holder of this pipeline is at work, and is waited for: %s; if this one was begun with"
                        " another state folder or log, stop one of the two",
                        other,
                    )
            return claimed

    def is_prepared(self) -> bool:
        with translated("source", f"looking for slot {self._name}"):
            return slot_state(self._claimed(), self._name) is not None

    def catalogue(
        self, chooses: Callable[[TableId], bool], choices: Sequence[tuple[str, ...]] = ()
    ) -> tuple[SetupObjects, list[Table]]:
        with translated("source", "reading the catalogue"):
            chosen = tables(self._claimed(), chooses)
            return for_choices(self._claimed(), chosen, chooses, choices), chosen

    def prepare(self, tables: Sequence[Table], *, hold: bool) -> Prepared:
        control = self._claimed()
        with translated("source", "setting the change stream up"):
            drop_slot(control, self._name)
            # Before the slot: changes are decoded with the catalogue of their time.
            make_publications(control, self._name, tables)
            make_trigger(control, self._name)
            forget_release(control, self._name)
            created = create_slot(self._url, self._name, failover=True, on_wait=_waiting)
            held: HeldSnapshot | None = None
            try:
                held = HeldSnapshot(self._url, created.snapshot_name)
                prepared = Prepared(
                    system=system_identity(control),
                    slot=self._name,
                    publications=publication_names(self._name),
                    position=created.consistent_point,
                    visibility=held.visibility,
                    snapshot=held if hold else None,
                )
            except BaseException:
                if held is not None:
                    held.close()
                raise
            finally:
                created.pgconn.finish()
            if not hold:
                held.close()
            return prepared

    def take(self) -> Held:
        with translated("source", "taking a snapshot"):
            return HeldSnapshot(self._url)

    def announce(self) -> int:
        with translated("source", "announcing a snapshot"):
            return emit_message(self._claimed(), "penstock", "snapshot")

    def ping(self) -> None:
        with translated("source", "keeping the claim"):
            run(self._claimed(), "select 1")

    def close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(Exception):
                connection.close()

    def _claimed(self) -> psycopg.Connection:
        if self._connection is None or self._connection.closed:
            raise SourceUnavailable("source: the connection with the holder's claim is gone")
        return self._connection


def _waiting(lines: list[str]) -> None:
    for line in lines:
        _log.warning("the slot can't be made before the end of %s", line)
