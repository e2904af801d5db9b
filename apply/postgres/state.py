"""What a PostgreSQL target remembers, in its schema `penstock`: where every group and table stands, chunks loaded.

`conversion.bookkeeping` defines the tables. Names here are all our own, so the SQL is written out; the only
identifiers from outside are values.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import psycopg
from psycopg.rows import tuple_row

from apply.dead_letters import Letter, Waiting, key_text
from apply.postgres.session import QUEUED, Session
from apply.target import GroupMove, Load, Progress, TableMove, TableProgress
from codec.layout import Layout
from conversion.stored import bookkeeping_statements
from schemas.errors import WriteConflict
from schemas.states import TableState
from schemas.table import TableId

LOCK = 5_038_219_167
"""Advisory lock under which workers make what must be made once."""

NAMED = 3
"""Tables that an error about many names."""

IS_THERE = "select to_regclass('penstock.chunks') is not null"

PREPARED = """
select table_schema, table_name
from penstock.tables
where pipeline = %s
  and case when stopped_in = '' then state else stopped_in end in ('loading', 'indexing', 'catching-up', 'live')
"""

VERSIONS = """
select table_schema, table_name, schema_id
from penstock.tables
where pipeline = %s and state not in ('waiting', 'dropped') and stopped_in not in ('waiting', 'dropped')
"""

ADD_PIPELINE = "insert into penstock.pipelines (pipeline, log) values (%s, %s) on conflict do nothing"

REWRITE = "update penstock.pipelines set log = log where pipeline = $1"

LOG_OF = "select log from penstock.pipelines where pipeline = %s"

ADD_GROUP = """
insert into penstock.progress (pipeline, grp, frontier, epoch, position, commit_time, captured_at, roster)
values (%s, %s, %s, %s, %s, %s, %s, %s)
on conflict do nothing
"""

ADD_TABLE = """
insert into penstock.tables (pipeline, table_schema, table_name, grp, state, schema_id, generation, frontier, epoch,
                             position, commit_time, captured_at, snapshot, rows_loaded, made, tied, error, remedy,
                             stopped_in, command, changes)
values (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s)
on conflict do nothing
"""

GROUPS = """
select grp, frontier, epoch, position, commit_time, captured_at, roster
from penstock.progress
where pipeline = %s
"""

TABLES = """
select table_schema, table_name, grp, state, schema_id, generation, frontier, epoch, position, commit_time,
       captured_at, snapshot, rows_loaded, changes, made, tied, error, remedy, stopped_in,
       command, roster
from penstock.tables
where pipeline = %s
order by table_schema, table_name
"""

# The rows that transactions have written which had not ended when `HORIZON` was asked, or began behind it.
TABLES_SINCE = TABLES.replace("order by", "  and age(xmin) <= age(%s::text::xid)\norder by")

HORIZON = """
select txid_snapshot_xmin(txid_current_snapshot()) %% 4294967296, count(*)
from penstock.tables
where pipeline = %s
"""

CHUNKS = """
select c.table_schema, c.table_name, c.generation, c.chunk
from penstock.chunks as c
join penstock.tables as t using (pipeline, table_schema, table_name, generation)
where c.pipeline = %s and t.state in ('loading', 'failed', 'paused')
"""

# The comparison and the change are one statement: of two owners the second waits for the first, and finds nothing.
MOVE_GROUPS = """
update penstock.progress as p
set frontier = n.frontier, epoch = n.epoch, position = n.position, commit_time = n.commit_time,
    captured_at = n.captured_at, roster = n.roster, updated_at = clock_timestamp()
from unnest($2::integer[], $3::bigint[], $4::bigint[], $5::bigint[], $6::bigint[], $7::bigint[], $8::bigint[],
            $9::bigint[], $10::bigint[], $11::bigint[])
     as n (grp, old_frontier, old_epoch, old_roster, frontier, epoch, position, commit_time, captured_at, roster)
where p.pipeline = $1 and p.grp = n.grp and p.frontier = n.old_frontier and p.epoch = n.old_epoch
  and p.roster = n.old_roster
"""

MOVE_TABLES = """
update penstock.tables as t
set state = n.state, schema_id = n.schema_id, generation = n.generation, frontier = n.frontier, epoch = n.epoch,
    position = n.position, commit_time = n.commit_time, captured_at = n.captured_at, snapshot = n.snapshot,
    rows_loaded = n.rows_loaded, made = n.made, tied = n.tied, error = n.error, remedy = n.remedy,
    stopped_in = n.stopped_in, command = n.command, updated_at = clock_timestamp()
from unnest($2::text[], $3::text[], $4::text[], $5::bigint[], $6::bigint[], $7::bigint[], $8::bigint[], $9::bigint[],
            $10::text[], $11::bigint[], $12::bigint[], $13::bigint[], $14::bigint[], $15::bigint[], $16::bigint[],
            $17::bigint[], $18::bigint[], $19::bigint[], $20::boolean[], $21::boolean[], $22::text[], $23::text[],
            $24::text[], $25::bigint[])
     as n (table_schema, table_name, old_state, old_generation, old_frontier, old_epoch, old_command, old_roster,
           state, schema_id, generation, frontier, epoch, position, commit_time, captured_at, snapshot, rows_loaded,
           made, tied, error, remedy, stopped_in, command)
where t.pipeline = $1 and t.table_schema = n.table_schema and t.table_name = n.table_name
  and t.state = n.old_state and t.generation = n.old_generation and t.frontier = n.old_frontier
  and t.epoch = n.old_epoch and t.command = n.old_command and t.roster = n.old_roster
"""

COUNT_CHANGES = """
update penstock.tables as t
set changes = t.changes + n.changes
from unnest($2::text[], $3::text[], $4::bigint[]) as n (table_schema, table_name, changes)
where t.pipeline = $1 and t.table_schema = n.table_schema and t.table_name = n.table_name
"""

# Holds tables in their states and generations until chunks are in; workers that load other chunks may do the same.
# In one order, as moves are made in: so of two that want the same tables one waits for the other, and not both.
HOLD_TABLES = """
select 1
from penstock.tables as t
join unnest($2::text[], $3::text[], $4::bigint[]) as w (table_schema, table_name, generation)
  using (table_schema, table_name, generation)
where t.pipeline = $1 and t.state = 'loading'
order by t.table_schema, t.table_name
for share of t
"""

HAVE_THEIR_NAMES = """
select 1
from unnest($1::text[], $2::int8[]) as w (name, oid)
where to_regclass(w.name)::oid::int8 = w.oid
"""

ADD_CHUNKS = """
insert into penstock.chunks (pipeline, table_schema, table_name, generation, chunk, rows_loaded)
select $1, w.* from unnest($2::text[], $3::text[], $4::bigint[], $5::integer[], $6::bigint[]) as w
on conflict do nothing
returning table_schema, table_name, chunk
"""

FORGET_CHUNKS = """
delete from penstock.chunks
where pipeline = $1 and table_schema = $2 and table_name = $3
"""

ADD_LETTER = """
insert into penstock.dead_letters (pipeline, table_schema, table_name, schema_id, op, position, xid, ordinal,
                                   commit_time, key_text, key_bytes, origin_bytes, row_change, cause, remedy)
values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11::text::bytea, $12::text::bytea, $13::text::bytea, $14, $15)
"""

CHANGE_LETTER = """
update penstock.dead_letters
set row_change = $3::text::bytea, cause = $4, remedy = $5
where pipeline = $1 and number = $2
"""

REMOVE_LETTERS = """
delete from penstock.dead_letters
where pipeline = $1 and number in (select unnest($2::bigint[]))
"""

FORGET_LETTERS = """
delete from penstock.dead_letters
where pipeline = $1 and table_schema = $2 and table_name = $3
"""

FORGET_KEYS = """
delete from penstock.dead_letters
where pipeline = $1 and table_schema = $2 and table_name = $3 and key_bytes in (select unnest($4::bytea[]))
"""

WAITING = """
select table_schema, table_name, schema_id, key_bytes, origin_bytes
from penstock.dead_letters
where pipeline = %s
"""

COUNT_LETTERS = """
select table_schema, table_name, count(*)
from penstock.dead_letters
where pipeline = %s
group by table_schema, table_name
"""

LETTERS = """
select table_schema, table_name, key_bytes, origin_bytes, row_change, cause, remedy, number,
       (extract(epoch from set_aside_at) * 1000000)::bigint
from penstock.dead_letters
where pipeline = %s
order by number
"""

# Waits for whoever writes to the table, and makes all look again who were about to.
TAKE_GROUP = """
update penstock.progress
set roster = roster + 1
where pipeline = $1
  and grp = (select grp from penstock.tables where pipeline = $1 and table_schema = $2 and table_name = $3)
"""

TAKE_TABLE = """
update penstock.tables
set roster = roster + 1
where pipeline = $1 and table_schema = $2 and table_name = $3
"""

FORGET_PIPELINE = """
delete from penstock.{table}
where pipeline = %s
"""

IS_EMPTY = "select not exists (select from penstock.pipelines)"

RESUME = """
update penstock.tables
set state = case when stopped_in in ('live', 'catching-up') then 'catching-up' else stopped_in end,
    error = '', remedy = '', stopped_in = '', updated_at = clock_timestamp()
where pipeline = %s and state = 'failed'
"""
RESUME_ONE = f"{RESUME} and table_schema = %s and table_name = %s"


def _is_there(connection: psycopg.Connection) -> bool:
    row = connection.execute(IS_THERE).fetchone()
    return row is not None and bool(row[0])


def create(connection: psycopg.Connection) -> None:
    """Make the tables, once, whoever comes first."""
    with connection.transaction():
        connection.execute("select pg_advisory_xact_lock(%s)", [LOCK])
        if not _is_there(connection):
            for statement in bookkeeping_statements("postgresql"):
                connection.execute(statement.encode())


def forget(connection: psycopg.Connection, pipeline: str) -> bool:
    """Remove all that is kept of a pipeline, and with the last one the schema; return whether there was anything."""
    with connection.transaction():
        connection.execute("select pg_advisory_xact_lock(%s)", [LOCK])
        if not _is_there(connection):
            return False
        for table in ("dead_letters", "chunks", "tables", "progress", "pipelines"):
            connection.execute(FORGET_PIPELINE.format(table=table).encode(), [pipeline])
        row = connection.execute(IS_EMPTY).fetchone()
        if row is not None and row[0]:
            connection.execute("drop schema penstock cascade")
    return True


def prepared(connection: psycopg.Connection, pipeline: str) -> set[TableId]:
    """Return the tables that hold what the pipeline has loaded, or is loading."""
    if not _is_there(connection):
        return set()
    return {TableId(schema, name) for schema, name in connection.execute(PREPARED, [pipeline]).fetchall()}


def resume(connection: psycopg.Connection, pipeline: str) -> int:
    """Let all tables that have failed go on from where they stopped; return how many there were."""
    return connection.execute(RESUME.encode(), [pipeline]).rowcount if _is_there(connection) else 0


def groups(connection: psycopg.Connection, pipeline: str) -> dict[int, Progress]:
    with connection.cursor(row_factory=tuple_row) as cursor:
        return {row[0]: Progress(*row[1:]) for row in cursor.execute(GROUPS, [pipeline])}


def versions(connection: psycopg.Connection, pipeline: str) -> dict[TableId, int]:
    """Return the versions, by their row schemas, of the tables that the target has."""
    with connection.cursor(row_factory=tuple_row) as cursor:
        return {TableId(*table): schema_id for *table, schema_id in cursor.execute(VERSIONS, [pipeline])}


class TableStates:
    """Where all tables of a pipeline stand, for one connection that asks again and again: of thousands only those are
    read anew whose rows were written since, and the others are the same objects as before."""

    def __init__(self, pipeline: str) -> None:
        self._pipeline = pipeline
        self._known: dict[TableId, TableProgress] = {}
        self._horizon = 0

    def read(self, connection: psycopg.Connection) -> dict[TableId, TableProgress]:
        if connection.info.transaction_status != psycopg.pq.TransactionStatus.IDLE:
            return self._all(connection)  # what a transaction has written itself may be taken back
        with connection.cursor(row_factory=tuple_row) as cursor:
            # Before the rows: whatever they do not show yet is not older than this.
            row = cursor.execute(HORIZON, [self._pipeline]).fetchone()
            assert row is not None
            horizon, count = row
            if self._known:
                self._known |= _tables(cursor.execute(TABLES_SINCE, [self._pipeline, self._horizon]))
            if len(self._known) != count:
                self._known = self._all(connection)
        self._horizon = horizon
        return dict(self._known)

    def _all(self, connection: psycopg.Connection) -> dict[TableId, TableProgress]:
        with connection.cursor(row_factory=tuple_row) as cursor:
            return _tables(cursor.execute(TABLES, [self._pipeline]))


def _tables(rows: Iterable[Sequence[Any]]) -> dict[TableId, TableProgress]:
    found: dict[TableId, TableProgress] = {}
    for schema, name, group, state, schema_id, generation, *rest in rows:
        table = TableId(schema, name)
        found[table] = TableProgress(
            table, group, TableState(state), schema_id, generation, Progress(*rest[:5]), *rest[5:]
        )
    return found


def add(
    connection: psycopg.Connection,
    pipeline: str,
    groups: Mapping[int, Progress],
    tables: Sequence[TableProgress],
) -> None:
    """Add what is not known yet."""
    with connection.transaction(), connection.cursor() as cursor:
        cursor.executemany(ADD_GROUP, [(pipeline, group, *progress) for group, progress in sorted(groups.items())])
        cursor.executemany(
            ADD_TABLE,
            [(pipeline, *t.table, t.group, *_state(t), t.changes) for t in sorted(tables, key=lambda t: t.table)],
        )
        if cursor.rowcount > 0:
            # Without statistics the planner takes the tables of a pipeline for few, and moves some by looking at all.
            cursor.execute("analyze penstock.tables")


def _state(table: TableProgress) -> list[object]:
    """Return what may change of a table's row, in the order of the columns."""
    found: list[object] = [table.state.value, table.schema_id, table.generation]
    found += table.progress[:-1]  # its roster is a group's
    found += [table.snapshot, table.rows, table.made, table.tied, table.error, table.remedy, table.stopped_in]
    return [*found, table.command]


def chunks(connection: psycopg.Connection, pipeline: str) -> dict[tuple[TableId, int], set[int]]:
    found: dict[tuple[TableId, int], set[int]] = {}
    with connection.cursor(row_factory=tuple_row) as cursor:
        for schema, name, generation, number in cursor.execute(CHUNKS, [pipeline]):
            found.setdefault((TableId(schema, name), generation), set()).add(number)
    return found


def queue_moves(session: Session, pipeline: bytes, groups: Sequence[GroupMove], tables: Sequence[TableMove]) -> None:
    """Queue the comparison and change of everything that moves."""
    if groups:
        wanted = len(groups)

        def all_groups(result: psycopg.pq.abc.PGresult) -> None:
            if result.command_tuples != wanted:
                raise WriteConflict("another worker has moved the progress of a group")

        columns = [
            [move.group for move in groups],
            [move.after.offset for move in groups],
            [move.after.epoch for move in groups],
            [move.after.roster for move in groups],
            *(list(column) for column in zip(*(move.progress for move in groups), strict=True)),
        ]
        arrays = [numbers(column) for column in columns]
        session.queue(MOVE_GROUPS, [pipeline, *arrays], all_groups)
    if tables:
        _queue_tables(session, pipeline, tables)


def queue_chunks(
    session: Session, pipeline: bytes, loads: Sequence[Load], note: Callable[[set[tuple[TableId, int]]], None]
) -> None:
    """Queue what holds the tables of chunks, and stores the chunks' numbers; those that were not there are noted."""
    tables = sorted({(load.table.table, load.table.generation) for load in loads})

    def all_held(result: psycopg.pq.abc.PGresult) -> None:
        if result.ntuples != len(tables):
            names = ", ".join(f"{table} generation {generation}" for table, generation in tables[:NAMED])
            raise WriteConflict(f"one of {len(tables)} tables is not loading any more: {names}")

    def added(result: psycopg.pq.abc.PGresult) -> None:
        rows = ([result.get_value(row, column) or b"" for column in range(3)] for row in range(result.ntuples))
        note({(TableId(schema.decode(), name.decode()), int(chunk)) for schema, name, chunk in rows})

    held = [[table.schema for table, _ in tables], [table.name for table, _ in tables]]
    given = [pipeline, *map(array, held), numbers(generation for _, generation in tables)]
    session.queue(HOLD_TABLES, given, all_held)
    chunks = [[load.table.table.schema for load in loads], [load.table.table.name for load in loads]]
    given = [pipeline, *map(array, chunks), numbers(load.table.generation for load in loads)]
    given += [numbers(load.chunk for load in loads), numbers(max(load.rows, 0) for load in loads)]
    session.queue(ADD_CHUNKS, given, added)


def _queue_tables(session: Session, pipeline: bytes, moves: Sequence[TableMove]) -> None:
    def all_tables(result: psycopg.pq.abc.PGresult) -> None:
        if result.command_tuples != len(moves):
            names = ", ".join(str(move.after.table) for move in moves[:NAMED])
            raise WriteConflict(f"another worker has moved one of {len(moves)} tables: {names}")

    rows = [
        [
            *(*before.table, before.state.value, before.generation, before.progress.offset, before.progress.epoch),
            *(before.command, before.roster, *_state(after)),
        ]
        for before, after in sorted(moves, key=lambda move: move.after.table)  # see `HOLD_TABLES`
    ]
    columns = (array([str(value).replace("\0", "") for value in column]) for column in zip(*rows, strict=True))
    session.queue(MOVE_TABLES, [pipeline, *columns], all_tables)


def queue_counts(session: Session, pipeline: bytes, changes: Mapping[TableId, int]) -> None:
    if changes:
        counted = sorted(changes.items())
        session.queue(
            COUNT_CHANGES,
            [
                pipeline,
                array([table.schema for table, _ in counted]),
                array([table.name for table, _ in counted]),
                numbers(count for _, count in counted),
            ],
        )


def queue_letters(session: Session, pipeline: bytes, layout: Layout, letters: Sequence[Letter]) -> None:
    """Queue what stores letters, in their order."""
    for letter in letters:
        found = letter.head
        values: list[object] = [*letter.table, found.schema_id, found.op.name.lower(), found.position, found.xid]
        values += [found.ordinal, found.commit_time, key_text(layout, letter.key)]
        given: list[bytes | None] = [text(value) for value in values]
        given += [data(letter.key), None if letter.origin is None else data(letter.origin), data(letter.change)]
        session.queue(ADD_LETTER, [pipeline, *given, text(letter.cause), text(letter.remedy)])
        if session.queued >= QUEUED:
            session.flush()


def queue_forgetting(session: Session, pipeline: bytes, table: TableId, keys: Sequence[bytes] | None = None) -> None:
    """Queue what removes the letters of a table, or those of some keys."""
    given = [pipeline, *map(text, table)]
    if keys is None:
        session.queue(FORGET_LETTERS, given)
    elif keys:
        session.queue(FORGET_KEYS, [*given, b"{%s}" % b",".join(b'"\\%s"' % data(key) for key in keys)])


def waiting(connection: psycopg.Connection, pipeline: str) -> dict[TableId, Waiting]:
    found: dict[TableId, Waiting] = defaultdict(Waiting)
    with connection.cursor(row_factory=tuple_row) as cursor:
        for schema, name, schema_id, key, origin in cursor.execute(WAITING, [pipeline]):
            of_table = found[TableId(schema, name)]
            of_table.letters += 1
            of_table.schema_ids.add(schema_id)
            of_table.keys.update(part for part in (key, origin) if part is not None)
    return dict(found)


def letter_counts(connection: psycopg.Connection, pipeline: str) -> dict[TableId, int]:
    with connection.cursor(row_factory=tuple_row) as cursor:
        rows = cursor.execute(COUNT_LETTERS, [pipeline])
        return {TableId(schema, name): count for schema, name, count in rows}


def letters(connection: psycopg.Connection, pipeline: str, table: TableId | None = None) -> list[Letter]:
    with connection.cursor(row_factory=tuple_row) as cursor:
        rows = cursor.execute(LETTERS, [pipeline])
        found = (Letter(TableId(schema, name), *letter) for schema, name, *letter in rows)
        return [letter for letter in found if table in (None, letter.table)]


def data(value: bytes) -> bytes:
    """Return bytes as the server reads them from a text."""
    return b"\\x" + value.hex().encode()


def text(value: object) -> bytes:
    """Return a value as the server reads it."""
    return str(value).replace("\0", "").encode()


def numbers(values: Iterable[int]) -> bytes:
    """Return numbers as the server reads an array."""
    return b"{%s}" % ",".join(map(str, values)).encode()


def array(values: Sequence[str]) -> bytes:
    """Return texts as the server reads an array."""
    quoted = ('"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"' for value in values)
    return f"{{{','.join(quoted)}}}".encode()
