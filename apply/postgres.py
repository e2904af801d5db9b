"""PostgreSQL as a target: rows and progress in one transaction, its first statement the comparison."""

from __future__ import annotations

import contextlib
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import chain

import psycopg

from apply import postgres_state as state
from apply.dead_letters import Bundle, Keyed, Letter, Refusal, Tray, Waiting, keyed_batch, net_of
from apply.narrowing import Narrowed
from apply.postgres_build import Builder
from apply.postgres_merge import COLLISIONS, DIRECT, Stages, Work, Writer
from apply.postgres_session import QUEUED, Session, StatementFailed
from apply.postgres_shape import Shape, misfits, require, shapes_of
from apply.target import Batch, Change, Progress, Redefinition, TableMove, TableProgress, TableRefused, Taken
from codec.copy import load_rows
from codec.net import Net
from conversion.alter import additions, alter_table, emptied_partitions, new_labels
from conversion.ddl import after_load, create_table, foreign_keys, make_view, objects_statements, one_at_a_time
from conversion.loss import losses
from engines.postgres.connect import connect
from engines.postgres.errors import translate, translated
from engines.postgres.quoting import literal, quote
from schemas.errors import (
    LOAD_AGAIN,
    GapDetected,
    LogRewound,
    PrerequisiteMissing,
    ReplicationError,
    RowError,
    SchemaUnsupported,
    TargetUnavailable,
    TransientError,
    WriteConflict,
)
from schemas.frontier import HEAL
from schemas.pipeline import Ddl, Prepare, TargetSettings, matches
from schemas.states import STOPPED, TableState
from schemas.table import Objects, Table, TableId
from transport.views import Registered

BUILDS_AT_ONCE = 4
MAINTAIN_SINCE = 17
HEAL_BYTES = 32 << 20
LOCK_SECONDS = 5
"""How long a change of a table's definition waits for those who use the table; then it is tried again."""

ASIDE_PREFIX = "penstock aside "

ASIDE = """
select n.nspname, c.relname from pg_class c join pg_namespace n on n.oid = c.relnamespace where c.relname like %s
"""

HAS_ROWS = "select exists (select from {table})"

# Keys that refer to a table hold it; those of tables of this pipeline are made again when all is live.
DROP_KEYS = """
select n.nspname, c.relname, f.conname,
       exists (select from penstock.tables t
               where t.pipeline = %s and t.table_schema = n.nspname and t.table_name = c.relname)
from pg_constraint f
join pg_class c on c.oid = f.conrelid
join pg_namespace n on n.oid = c.relnamespace
where f.confrelid = %s and f.contype = 'f' and f.conparentid = 0
"""

LABELS = """
select e.enumlabel
from pg_enum e
where e.enumtypid = to_regtype(%s)
order by e.enumsortorder
"""

SET_SEQUENCE = """
select pg_catalog.setval({sequence}::regclass, highest.value)
from (select max({column}) as value from {table}) as highest, {name} as now
where highest.value > now.last_value
"""


RESTART_SEQUENCES = """
select pg_catalog.setval(s.seqrelid::regclass, s.seqstart, false)
from pg_depend d
join pg_sequence s on s.seqrelid = d.objid
where d.classid = 'pg_class'::regclass and d.refclassid = 'pg_class'::regclass and d.refobjid = {oid}
  and d.refobjsubid > 0 and d.deptype in ('a', 'i') and has_sequence_privilege(s.seqrelid, 'update')
"""
"""What `restart identity` does, and no more than a right to write is needed for. If all is rolled back it is done
again: a truncate that was captured comes back until it is carried out."""


class PostgresTarget:
    """A PostgreSQL database. One connection does the work; indexes and keys are made on others."""

    def __init__(self, settings: TargetSettings, pipeline: str) -> None:
        self._settings, self._pipeline = settings, pipeline
        self._url = settings.url.get_secret_value()
        self._key = state.text(pipeline)
        self._application = f"penstock {pipeline} apply"
        self._opened: Session | None = None
        self._stages: Stages | None = None
        self._builder = Builder(self._url, self._application, BUILDS_AT_ONCE)
        self._writers: dict[int, Writer] = {}  # by version
        self._shapes: dict[TableId, Shape] = {}  # by the target's names, as are those below
        self._accepted: dict[int, Registered] = {}  # by version, of tables that do not follow their definitions
        self._redefined: set[TableId] = set()  # in the transaction that is open
        self._waiting_names: frozenset[TableId] | None = None  # of tables whose names others have got
        self._unseen: set[TableId] = set()  # tables that may have changed since they were looked at
        self._states = state.TableStates(pipeline)
        self._tables: dict[TableId, Table] = {}
        self._objects = Objects()

    # --------------------------------------------------------------------------------------------- bookkeeping

    def open(self, log: str) -> None:
        with translated("target", "connecting"):
            self._opened = Session(self._url, self._application)
        self._stages = Stages(self._opened)
        connection = self._opened.connection
        with translated("target", "making the schema penstock"):
            state.create(connection)
            with connection.transaction():
                connection.execute(state.ADD_PIPELINE, [self._pipeline, log])
                row = connection.execute(state.LOG_OF, [self._pipeline]).fetchone()
            # What a crash of the server takes back it takes back together with the progress, and it is applied again.
            connection.execute("set synchronous_commit = off")
            # Few rows are joined to large tables here, by their keys: see `LOOKED_UP_BYTES`.
            connection.execute("set enable_hashjoin = off")
            connection.execute("set enable_mergejoin = off")
        if row is not None and row[0] != log:
            raise LogRewound(
                f"the progress in target {self._settings.name} was made in another log of pipeline {self._pipeline}",
                remedy=f"restore that log, or {LOAD_AGAIN}",
            )

    @property
    def _session(self) -> Session:
        if self._opened is None:
            raise TargetUnavailable("the target is not open")
        return self._opened

    def register(
        self,
        groups: Mapping[int, Progress],
        tables: Sequence[TableProgress],
        definitions: Sequence[Table],
        objects: Objects,
    ) -> None:
        self._tables = {table.id: table for table in definitions}
        self._objects = objects
        connection = self._session.connection
        with translated("target", "noting the tables"):
            state.add(connection, self._pipeline, groups, tables)
        if self._settings.prepare is Prepare.KEEP:
            return
        with translated("target", "making schemas, types and sequences"), connection.transaction():
            connection.execute("select pg_advisory_xact_lock(%s)", [state.LOCK])
            row = connection.execute(state.OBJECTS_MADE, [self._pipeline]).fetchone()
            if row is not None and not row[0]:
                for statement in objects_statements(objects, definitions, version=self._major):
                    connection.execute(statement)
                connection.execute(state.NOTE_OBJECTS, [self._pipeline])

    @property
    def _major(self) -> int:
        return self._session.version // 10_000

    def groups(self) -> dict[int, Progress]:
        # Whoever asks begins anew: what tables are like may have changed while they were another's.
        self._look_again({*self._tables, *self._shapes})
        with translated("target", "reading the progress"):
            return state.groups(self._session.connection, self._pipeline)

    def tables(self) -> dict[TableId, TableProgress]:
        with translated("target", "reading the tables' states"):
            return self._states.read(self._session.connection)

    def chunks(self) -> dict[tuple[TableId, int], set[int]]:
        with translated("target", "reading the chunks"):
            return state.chunks(self._session.connection, self._pipeline)

    def waiting(self) -> dict[TableId, Waiting]:
        with translated("target", "reading the dead letters"):
            return state.waiting(self._session.connection, self._pipeline)

    def letter_counts(self) -> dict[TableId, int]:
        with translated("target", "counting the dead letters"):
            return state.letter_counts(self._session.connection, self._pipeline)

    def letters(self) -> list[Letter]:
        with translated("target", "reading the dead letters"):
            return state.letters(self._session.connection, self._pipeline)

    def make_durable(self) -> None:
        # A commit flushes all before it, but only if its transaction has written something: an id is not enough.
        with self._transaction("making the progress durable", durable=True) as session:
            session.queue(state.REWRITE, [self._key])

    def resume(self, table: TableId) -> bool:
        with translated("target", "resuming a table"):
            return self._session.connection.execute(state.RESUME_ONE.encode(), [self._pipeline, *table]).rowcount == 1

    # ----------------------------------------------------------------------------------------------- transaction

    @contextmanager
    def _transaction(self, doing: str, *, durable: bool) -> Iterator[Session]:
        """A transaction that is committed at the end of the block, and rolled back by any exception.

        Driver's errors come out as ours: with `TableRefused` around, if they are due to one table.
        """
        session = self._session
        try:
            session.queue("begin")
            if durable:
                session.queue("set local synchronous_commit = on")
            yield session
            session.flush()
            session.run("commit")
        except BaseException as error:
            self._ended(committed=False)
            if isinstance(error, StatementFailed):
                raise self._refusal(error, doing) from error.error
            if isinstance(error, psycopg.Error):
                raise translate(error, "target", doing) from error
            raise
        self._ended(committed=True)

    def _ended(self, *, committed: bool) -> None:
        assert self._stages is not None
        self._stages.ended(committed=committed)
        redefined, self._redefined = self._redefined, set()
        if committed:
            self._stages.trim()
            return
        self._look_again(redefined)
        # If the connection is lost there is nothing to roll back; whatever comes next will find that out.
        with contextlib.suppress(psycopg.Error, StatementFailed):
            self._session.rollback()

    def _refusal(self, failed: StatementFailed, doing: str) -> Exception:
        table = failed.label if isinstance(failed.label, TableId) else self._blamed(failed.error)
        if table is None:
            return translate(failed.error, "target", doing)
        error = translate(failed.error, "target", f"writing {table}")
        return error if isinstance(error, TransientError) else TableRefused(table, error)

    def _blamed(self, error: psycopg.Error) -> TableId | None:
        """Return the table that an error names which no statement of its own has raised: a constraint that is looked at
        when the transaction ends."""
        named = (error.diag.schema_name, error.diag.table_name)
        tables = (writer.version.table for writer in self._writers.values())
        return next((table.id for table in tables if tuple(table.name) == named), None)

    # --------------------------------------------------------------------------------------------------- tables

    def _shape(self, table: TableId) -> Shape | None:
        """Return what a table is like, or None if there is none. Whenever one must be looked at, all are that will
        have to be: the first changes of many tables come together."""
        if table not in self._shapes:
            self._session.flush()
            with translated("target", f"looking at {table}"):
                self._shapes |= shapes_of(self._session.connection, self._unseen | {table})
            self._unseen.clear()
        return self._shapes.get(table)

    def _writer(self, version: Registered) -> Writer:
        """Return how to write to a table as it was when it was looked at."""
        writer = self._writers.get(version.schema_id)
        if writer is None:
            assert self._stages is not None
            if version.table.name not in self._shapes:
                self._waiting_names = None  # what a table is like, and where it is, must be known of one moment
            placed = self._as_placed(version)
            shape = self._shape(placed.table.name)
            if shape is None or misfits(shape, placed.table):
                # It may be another worker that has made of the table what it is now.
                self._look_again({placed.table.name, version.table.name})
                placed = self._as_placed(version)
            try:
                shape = require(self._shape(placed.table.name), placed.table)
            except SchemaUnsupported as error:
                raise TableRefused(version.table.id, error) from error
            writer = Writer(self._session, self._stages, placed, shape)
            writer.require_harmless()
            self._writers[version.schema_id] = writer
        return writer

    def _as_placed(self, version: Registered) -> Registered:
        """Return a version with the name that its table has here now."""
        placed = self._placed(version.table)
        return version if placed is version.table else _Placed(version, placed)

    def _placed(self, table: Table) -> Table:
        """Return a table by the name that it has here now: if another one has got its own, it waits under a third."""
        if self._waiting_names is None:
            with translated("target", "looking for tables whose names others have"):
                self._session.flush()
                rows = self._session.connection.execute(ASIDE, [f"{ASIDE_PREFIX}%"]).fetchall()
            self._waiting_names = frozenset(TableId(schema, name) for schema, name in rows)
        waits = _aside(table.id, table.name.schema)
        return table.model_copy(update={"renamed": waits}) if waits in self._waiting_names else table

    def _look_again(self, tables: Collection[TableId]) -> None:
        """Forget what tables are like, because they are others now, or may be."""
        self._unseen.update(tables)
        self._accepted.clear()
        self._waiting_names = None
        for table in tables:
            self._shapes.pop(table, None)
        for schema_id in [n for n, writer in self._writers.items() if writer.version.table.name in tables]:
            del self._writers[schema_id]

    def prepare(self, tables: Sequence[tuple[Registered, TableMove]]) -> list[TableProgress]:
        made: set[TableId] = set()
        done: list[TableProgress] = []
        with self._transaction(f"preparing {len(tables)} tables", durable=False) as session:
            session.query(f"select pg_advisory_xact_lock({state.LOCK})")
            self._redefined.update(version.table.name for version, _ in tables)
            for version, move in tables:
                with _refused_alone(version.id, f"preparing {version.id}"):
                    is_made = self._prepare(version.table)
                if is_made:
                    made.add(version.table.name)
                done.append(replace(move.progress, made=is_made, tied=not is_made))
            moves = zip((move for _, move in tables), done, strict=True)
            state.queue_moves(session, self._key, [], [TableMove(move.after, progress) for move, progress in moves])
        self._look_again(made)
        return done

    def _prepare(self, table: Table) -> bool:
        """Make the table, or see that it fits; return whether it was made."""
        connection, prepare = self._session.connection, self._settings.prepare
        name = quote(*table.name)
        shape = self._shape(table.name)
        if shape is not None and prepare is Prepare.DROP_AND_CREATE:
            self._drop(table.name, shape)
            shape = None
        if shape is None and prepare is not Prepare.KEEP:
            if refused := [loss for loss in losses(table, self._major) if loss.refused]:
                raise SchemaUnsupported(
                    f"{table.id} can't be made on PostgreSQL {self._major}: "
                    + "; ".join(f"{loss.what}: {loss.consequence}" for loss in refused),
                    remedy="leave the table out, or use a newer target",
                )
            for statement in create_table(table, self._objects, version=self._major):
                connection.execute(statement)
            return True
        if shape is not None and prepare is Prepare.CREATE:
            raise PrerequisiteMissing(
                f"the target has a table {table.name} already",
                remedy="drop it, or set prepare: keep, truncate or drop-and-create for the target",
            )
        shape = require(shape, table)
        if prepare is Prepare.TRUNCATE:
            self._empty(name, shape)
        return False

    def _drop(self, table: TableId, shape: Shape) -> None:
        connection = self._session.connection
        for schema, name, key, ours in connection.execute(DROP_KEYS, [self._pipeline, shape.oid]).fetchall():
            if not ours:
                raise PrerequisiteMissing(
                    f"{schema}.{name} refers to {table}, which is to be dropped",
                    remedy=f"drop the foreign key {key} of {schema}.{name}, or set prepare: truncate",
                )
            connection.execute(f"alter table {quote(schema, name)} drop constraint {quote(key)}")
        kind = {"v": "view", "m": "materialized view", "f": "foreign table"}.get(shape.relkind, "table")
        connection.execute(f"drop {kind} {quote(*table)}")

    def _empty(self, name: str, shape: Shape) -> None:
        """Empty a table. One that others refer to can't be truncated without them; where we may, its rows go alone."""
        connection = self._session.connection
        if shape.referenced and self._session.replica:
            connection.execute(f"delete from {shape.only}{name}")
        else:
            connection.execute(f"truncate {shape.only}{name}")

    def restart(self, piece: Redefinition, move: TableMove) -> None:
        table, after = piece.before.table, piece.after.table
        self._builder.give_up(table.id)  # it would be waited for
        doing = f"emptying {table.id}"
        with _refused_alone(table.id, doing), self._transaction(doing, durable=True) as session:
            # First the state: that waits for whoever loads a chunk, and keeps everybody else from beginning.
            state.queue_moves(session, self._key, [], [move])
            session.queue(state.FORGET_CHUNKS, [self._key, *map(state.text, table.id)])
            state.queue_forgetting(session, self._key, table.id)
            session.flush()
            self._look_again({table.name})  # another one may have the name by now
            table = self._placed(table)
            self._empty(quote(*table.name), require(self._shape(table.name), table))
            if after.name != table.name:
                table = self._make_way(table, after.name, piece.displaces)
            self._redefine(table, after, made=move.after.made, empty=True)

    # ----------------------------------------------------------------------------------------------------- load

    def load(
        self,
        version: Registered,
        table: TableProgress,
        chunk: int,
        rows: int,
        batches: Callable[[], Iterable[bytes]],
        tray: Tray,
    ) -> int:
        writer = self._writer(version)
        merge = chunk == HEAL
        try:
            return self._load(writer, table, chunk, rows, batches, merge, tray)
        except TableRefused as refused:
            if not isinstance(refused.cause, RowError) or not writer.alone:
                raise
            # A row that an update moved between two snapshots may have been read twice; healing puts it right.
            merge |= bool(writer.key) and isinstance(refused.__cause__, psycopg.errors.UniqueViolation)
            collides = chunk == HEAL and isinstance(refused.__cause__, COLLISIONS)
        return self._load(writer, table, chunk, rows, batches, merge, tray, sifts=True, clear=collides)

    def _load(
        self,
        writer: Writer,
        table: TableProgress,
        chunk: int,
        rows: int,
        batches: Callable[[], Iterable[bytes]],
        merge: bool,
        tray: Tray,
        *,
        sifts: bool = False,
        clear: bool = False,
    ) -> int:
        there: list[bool] = []

        def held(result: psycopg.pq.abc.PGresult) -> None:
            if result.ntuples != 1:
                raise WriteConflict(f"{table.table} is not loading generation {table.generation} any more")

        def found(result: psycopg.pq.abc.PGresult) -> None:
            if result.ntuples != 1:
                self._look_again({writer.version.table.name})
                raise WriteConflict(f"another table has the name of {table.table} on the target by now")

        key = [self._key, *map(state.text, table.table), state.text(table.generation)]
        with self._transaction(f"loading {table.table}", durable=False) as session:
            session.queue(state.HOLD_TABLE, key, held)
            session.queue(
                state.ADD_CHUNK,
                [*key, state.text(chunk), state.text(max(rows, 0))],
                lambda result: there.append(result.command_tuples != 1),
            )
            session.queue(
                state.HAS_ITS_NAME, [state.text(quote(*writer.version.table.name)), state.text(writer.shape.oid)], found
            )
            session.flush()
            if there[0]:
                return -1
            if tray.clears:
                state.queue_forgetting(session, self._key, writer.id)
            if clear:
                # Rows may have exchanged unique values, and be written in pieces: first all of them go.
                self._clear_batches(writer, batches())
            if sifts or tray.found:
                done = sum(self._sift_batch(writer, batch, merge, tray) for batch in batches())
            elif merge:
                done = self._merge_batches(writer, batches())
            else:
                done = self._copy_batches(writer, batches())
            if chunk != HEAL and done != rows:
                raise GapDetected(f"chunk {chunk} of {table.table} holds {done} rows instead of {rows}")
        return done

    def _sift_batch(self, writer: Writer, batch: bytes, merge: bool, tray: Tray) -> int:
        """Write the rows of a batch but for those that the target refuses; return how many there were of both."""
        version = writer.version
        count = 0

        def write_all() -> None:
            nonlocal count
            count = self._merge_batches(writer, [batch]) if merge else self._copy_batches(writer, [batch])

        if not tray.found:
            refused = self._attempt(writer.id, write_all)
            if refused is None:
                return count
            if not isinstance(refused.cause, RowError):
                raise refused
        changes = keyed_batch(version.layout, batch)
        state.queue_forgetting(self._session, self._key, writer.id, tray.forget(changes))
        self._sift(writer, changes, tray, exact=not merge, refused_together=False)
        self._store_letters(writer, tray)
        return len(changes)

    def _copy_batches(self, writer: Writer, batches: Iterable[bytes]) -> int:
        return writer.copy((self._rows(writer, batch) for batch in batches), writer.binary)

    @staticmethod
    def _rows(writer: Writer, batch: bytes) -> bytes:
        try:
            return load_rows(writer.version.layout, batch, binary=writer.binary)
        except RowError as error:
            raise TableRefused(writer.id, error) from error

    def _merge_batches(self, writer: Writer, batches: Iterable[bytes]) -> int:
        done = 0
        net = Net(writer.version.layout, binary=writer.binary)
        for batch in batches:
            done += net.add_batch(batch)
            if net.pending_bytes >= HEAL_BYTES:
                Work(writer, Change(writer.version, net, exact=False)).run()
                net = Net(writer.version.layout, binary=writer.binary)
        Work(writer, Change(writer.version, net, exact=False)).run()
        self._session.flush()
        return done

    def _clear_batches(self, writer: Writer, batches: Iterable[bytes]) -> None:
        for batch in batches:
            net = Net(writer.version.layout, binary=writer.binary)
            net.add_batch(batch)
            Work(writer, Change(writer.version, net, exact=False)).clear()
        self._session.flush()

    # ---------------------------------------------------------------------------------------------- after the load

    def finish(self, version: Registered, table: TableProgress) -> bool:
        if not table.made:
            return True
        definition = self._placed(version.table)
        done = self._build("finish", definition.id, after_load(definition, version=self._major))
        if done:
            self._look_again({definition.name})
        return done

    def tie(self, version: Registered, table: TableProgress, *, last: bool) -> bool:
        # Rows are looked up by their keys whatever is known of them: statistics need not come before the changes.
        statements = [f"analyze {quote(*version.table.name)}"]
        keys = version.table.definition.foreign_keys if table.made else ()
        if table.made:
            statements += self._sequences(version.table)
            # Keys that are looked at while changes go on would refuse what is right only at the end of a transaction.
            if self._session.replica or last:
                statements += self._keys(version.table)
            statements += self._companions(version.table.id)
        done = self._build("tie", version.table.id, statements)
        if done and keys:
            self._look_again({version.table.name, *(key.references for key in keys if key.references)})
        return done

    def _companions(self, table: TableId) -> list[str]:
        """Return what gives a table, and the views that read it, to whom they belong; and what makes these views, if
        this is the last table that they wait for."""
        access = self._access(table)
        statements = [one_at_a_time(access, state.LOCK)] if access else []
        if self._settings.views:
            above = {table}
            for view in self._objects.views:
                if above.intersection(view.reads) and matches(view.id, self._settings.tables):
                    above.add(view.id)
                    statements.append(make_view(view, self._pipeline, state.LOCK, self._access(view.id)))
        return statements

    def _access(self, id: TableId) -> list[str]:
        wanted = [*(self._objects.grants if self._settings.grants else ())]
        wanted += self._objects.owners if self._settings.owners else ()
        maintain = self._major >= MAINTAIN_SINCE
        return [
            given.statement
            for given in wanted
            if given.on == id and (maintain or "grant MAINTAIN" not in given.statement)
        ]

    def _keys(self, table: Table) -> list[str]:
        """Return what makes the foreign keys, without holding up the writing to either table for long."""
        statements: list[str] = []
        for key in table.definition.foreign_keys:
            one = table.model_copy(update={"definition": table.definition.model_copy(update={"foreign_keys": (key,)})})
            for statement in foreign_keys(one, self._tables.keys(), version=self._major):
                if key.definition.upper().endswith((" NOT VALID", " NOT ENFORCED")) or table.definition.partition_key:
                    statements.append(statement)
                else:
                    statements.append(f"{statement} not valid")
                    statements.append(f"alter table {quote(*table.name)} validate constraint {quote(key.name)}")
        return statements

    @staticmethod
    def _sequences(table: Table) -> list[str]:
        """Return what sets the columns' own sequences behind the highest value that was loaded, never back."""
        whole = {"smallint", "integer", "bigint"}
        return [
            SET_SEQUENCE.format(
                sequence=literal(quote(*column.sequence)),
                name=quote(*column.sequence),
                column=quote(column.name),
                table=quote(*table.name),
            )
            for column in table.definition.columns
            if column.sequence is not None and column.source_type in whole
        ]

    def built(self) -> list[TableId]:
        with translated("target", "making indexes and keys"):
            return [table for _, table in self._builder.poll()]

    def _build(self, what: str, table: TableId, statements: list[str]) -> bool:
        try:
            return self._builder.go_on((what, table), statements)
        except psycopg.Error as error:
            ours = translate(error, "target", f"making indexes and keys of {table}")
            if isinstance(ours, TransientError):
                raise ours from error
            raise TableRefused(table, ours) from error

    # ---------------------------------------------------------------------------------------------------- write

    def net(self, version: Registered, expected: int) -> Net:
        return Net(version.layout, binary=self._writer(version).binary and expected > DIRECT)

    def write(self, batch: Batch) -> None:
        durable = any(_ends(move) for move in batch.tables) or bool(batch.changes)
        with self._transaction("applying changes", durable=durable) as session:
            state.queue_moves(session, self._key, batch.groups, batch.tables)
            state.queue_counts(session, self._key, batch.changes)
            for piece in batch.pieces:
                if isinstance(piece, Redefinition):
                    self._carry_out(piece)
                    continue
                self._write_piece(piece, batch.refused)
                for change in piece:
                    if change.tray is not None:
                        self._store_letters(self._writer(change.version), change.tray)

    def _write_piece(self, piece: Sequence[Change], refused: TableId | None) -> None:
        session = self._session
        self._truncate([change for change in piece if change.net.truncated])
        alone: list[Work] = []
        tied: list[Work] = []
        for change in piece:
            writer = self._writer(change.version)
            if not writer.alone:
                tied.append(Work(writer, change))
            elif change.tray is None or not change.tray.sifts:
                alone.append(Work(writer, change))
            else:
                self._sift(writer, change.sifted, change.tray, change.exact, refused_together=writer.id == refused)
        # Large ones first: what is queued for the small ones then goes with the end of the transaction.
        for work in sorted(alone, key=lambda work: work.waits, reverse=True):
            work.run()
            if session.queued >= QUEUED:
                session.flush()
        if not tied:
            return
        session.queue("set constraints all deferred")
        ordered = _parents_first(tied)
        for work in reversed(ordered):
            work.first_half()
            session.flush()
        for work in ordered:
            work.second_half()
            session.flush()

    def accepted(self, version: Registered) -> Registered:
        if version.schema_id not in self._accepted:
            table = version.table
            name = table.id if self._shape(table.name) is None else table.name
            shape = self._shape(name)
            there = {name for name, column in shape.columns.items() if not column.generated} if shape else set()
            accepted = version
            if shape is not None and (name != table.name or not {column.name for column in table.columns} <= there):
                try:
                    accepted = Narrowed(version, name, there)
                except ValueError as error:
                    cause = SchemaUnsupported(
                        f"the target's table {name} lacks a column of the key by which the source tells rows",
                        remedy="alter the table, or let it follow: ddl: apply",
                    )
                    raise TableRefused(table.id, cause) from error
            self._accepted[version.schema_id] = accepted
        return self._accepted[version.schema_id]

    def get_ready(self, version: Registered) -> None:
        objects = version.table.objects
        if objects is None or self._settings.prepare is Prepare.KEEP:
            return
        connection = self._session.connection
        with translated("target", f"making what {version.table.name} rests on"):
            for statement in additions(version.table, version=self._major):
                connection.execute(statement)
            for type, labels in objects.labels:
                there = [row[0] for row in connection.execute(LABELS, [quote(*type)]).fetchall()]
                for statement in new_labels(type, labels, there):
                    connection.execute(statement)

    def _carry_out(self, piece: Redefinition) -> None:
        before, after = piece.before.table, piece.after.table
        try:
            if after.dropped and piece.ddl is not Ddl.IGNORE:
                # They are about rows that are gone.
                state.queue_forgetting(self._session, self._key, after.id)
            if piece.ddl is Ddl.IGNORE:
                after = self.accepted(piece.after).table
            elif piece.ddl is Ddl.APPLY:
                if after.name != before.name:
                    before = self._make_way(before, after.name, piece.displaces)
                self._redefine(before, after, made=piece.table.made)
            else:
                self._require_redefined(before, after, made=piece.table.made)
            if piece.told:
                for statement in emptied_partitions(after, made=piece.table.made):
                    self._session.run(statement, after.id)
        except SchemaUnsupported as error:
            raise TableRefused(after.id, error) from error

    def _make_way(self, table: Table, name: TableId, displaces: TableId | None) -> Table:
        """Let a name be free for a table that gets it, and return the table by the name that it has now.

        Where tables have exchanged names, one of them has to wait under another one until its own turn comes. No row
        of it comes before that, as the stream would tell its new name first.
        """
        session, waits = self._session, _aside(table.id, table.name.schema)
        if displaces is not None:
            # Whoever follows it has to look again before he writes to it by the name that he knows; whoever loads it is
            # waited for.
            for statement in (state.TAKE_GROUP, state.TAKE_TABLE):
                session.queue(statement, [self._key, *map(state.text, displaces)])
        # Others may be about to do the same to the other one.
        session.query(f"select pg_advisory_xact_lock({state.LOCK})")
        self._redefined |= {table.name, name, waits}
        self._look_again({name, waits})
        if displaces is not None and self._shape(name) is not None:
            aside = _aside(displaces, name.schema)
            session.run(f"alter table {quote(*name)} rename to {quote(aside.name)}", table.id)
            self._redefined.add(aside)
            self._look_again({name, aside})
        return self._placed(table)

    def _require_redefined(self, before: Table, after: Table, *, made: bool) -> None:
        """Raise `SchemaUnsupported` unless somebody has made of a table what it is from here on, as far as rows can
        tell."""
        if not alter_table(before, after, made=made, version=self._major):
            return
        self._look_again({before.name, after.name})
        shape = self._shape(after.name)
        if shape is None if after.dropped else shape is not None and not misfits(shape, after):
            return
        raise SchemaUnsupported(
            f"{before.name} was {'dropped' if after.dropped else 'altered'} at the source",
            remedy=f"do the same to the target's table, then `penstock resume FILE {after.id}`",
        )

    def _redefine(self, before: Table, after: Table, *, made: bool, empty: bool = False) -> None:
        """Make of a table what it is from here on, within the transaction."""
        statements = alter_table(before, after, made=made, empty=empty, version=self._major)
        session = self._session
        if statements:
            # Behind somebody who reads for long everybody else would wait who comes after us.
            session.run(f"set local lock_timeout = '{LOCK_SECONDS}s'", after.id)
        for statement in statements:
            session.run(statement, after.id)
        self._redefined |= {before.name, after.name}
        self._look_again({before.name, after.name})

    # ------------------------------------------------------------------------------------------- refused rows

    def _sift(
        self, writer: Writer, changes: Sequence[Keyed], tray: Tray, exact: bool, *, refused_together: bool
    ) -> None:
        """Write changes of one table but for those that the target refuses, which its tray gets."""
        version = writer.version

        def attempt(some: Sequence[Bundle]) -> Refusal | None:
            def write() -> None:
                binary = writer.binary and len(some) > DIRECT
                net = net_of(version.layout, chain.from_iterable(some), binary=binary)
                Work(writer, Change(version, net, exact)).run()

            refused = self._attempt(writer.id, write)
            if refused is None:
                return None
            if not isinstance(refused.cause, RowError):
                raise refused
            return Refusal(refused.cause, isinstance(refused.__cause__, COLLISIONS))

        tray.sift(version.layout, changes, attempt, refused_together=refused_together)

    def _attempt(self, table: TableId, write: Callable[[], None]) -> TableRefused | None:
        """Write something that stays, or leave nothing of it behind and return why the table can't take it."""
        assert self._stages is not None
        session, stages = self._session, self._stages
        session.flush()
        made = stages.made
        try:
            session.queue("savepoint attempt")
            write()
            if not session.replica:  # nothing must be found only when all ends
                session.queue("set constraints all immediate", label=table)
            session.queue("release attempt")
            session.flush()
            return None
        except StatementFailed as failed:
            refused = self._refusal(failed, "")
            if not isinstance(refused, TableRefused):
                raise
            refused.__cause__ = failed.error
        except TableRefused as error:
            refused = error
            session.flush()
        session.run("rollback to attempt; release attempt")
        stages.rolled_back(made)
        return refused

    @contextmanager
    def taken(self, table: TableId) -> Iterator[Taken]:
        with self._transaction(f"taking the dead letters of {table}", durable=True) as session:
            # In the order in which a worker takes them.
            for statement in (state.TAKE_GROUP, state.TAKE_TABLE):
                session.queue(statement, [self._key, *map(state.text, table)])
            session.flush()
            letters = state.letters(session.connection, self._pipeline, table)
            yield TakenLetters(letters, session, self._key, self._attempt_all)

    def _attempt_all(self, changes: Sequence[Change]) -> TableRefused | None:
        def write() -> None:
            for change in changes:
                Work(self._writer(change.version), change).run()
                self._session.flush()

        return self._attempt(changes[0].version.table.id, write)

    def _store_letters(self, writer: Writer, tray: Tray) -> None:
        clear, letters = tray.take()
        if clear:
            state.queue_forgetting(self._session, self._key, writer.id)
        state.queue_letters(self._session, self._key, writer.version.layout, letters)

    def _truncate(self, changes: list[Change]) -> None:
        """Empty tables, all in one statement, because they may refer to each other."""
        if not changes:
            return
        writers = [self._writer(change.version) for change in changes]
        emptied = {writer.shape.oid for writer in writers}
        together = [writer for writer in writers if writer.shape.referenced <= emptied]
        if together:
            self._session.run(f"truncate {', '.join(writer.target for writer in together)}", together[0].id)
        for writer in writers:
            if writer not in together:
                self._session.run(f"delete from {writer.target}", writer.id)
        for change, writer in zip(changes, writers, strict=True):
            if change.net.restarted:
                self._session.query(RESTART_SEQUENCES.format(oid=writer.shape.oid), writer.id)

    def close(self) -> None:
        with contextlib.suppress(Exception):
            self._builder.close()
        if self._opened is not None:
            self._opened.close()
            self._opened = None


@dataclass(frozen=True, slots=True)
class TakenLetters:
    """The letters of one table in the midst of a transaction; see `apply.target.Taken`."""

    letters: list[Letter]
    _session: Session
    _pipeline: bytes
    _attempt: Callable[[Sequence[Change]], TableRefused | None]

    def attempt(self, changes: Sequence[Change]) -> ReplicationError | None:
        refused = self._attempt(changes)
        return refused.cause if refused is not None else None

    def remove(self, letters: Sequence[Letter]) -> None:
        numbers = ",".join(str(letter.number) for letter in letters)
        self._session.queue(state.REMOVE_LETTERS, [self._pipeline, b"{%s}" % numbers.encode()])

    def change(self, letter: Letter) -> None:
        values = [state.text(letter.number), state.data(letter.change)]
        values += [state.text(letter.cause), state.text(letter.remedy)]
        self._session.queue(state.CHANGE_LETTER, [self._pipeline, *values])


class _Placed(Registered):
    """A version of a table that has another name here for now."""

    def __init__(self, whole: Registered, table: Table) -> None:
        self.schema_id, self.changes, self.id, self.layout = whole.schema_id, whole.changes, whole.id, whole.layout
        self.table = table


def _aside(table: TableId, schema: str) -> TableId:
    """Return what a table is called while another one has got its name."""
    return TableId(schema, f"{ASIDE_PREFIX}{zlib.crc32(str(table).encode()):08x}")


def _ends(move: TableMove) -> bool:
    """Whether somebody may rely on what is reached. What a crash of the server takes back on the way to it is done
    again: rows, chunks and states go together."""
    return move.after.state is not move.progress.state and move.progress.state in {TableState.LIVE, *STOPPED}


def forget_pipeline(settings: TargetSettings, pipeline: str) -> bool:
    """Remove a pipeline's progress from a target, but none of its tables; return whether there was anything."""
    with _connected(settings, "removing the progress of a pipeline", "penstock drop") as connection:
        return state.forget(connection, pipeline)


def resume_failed(settings: TargetSettings, pipeline: str) -> int:
    """Let the tables of a pipeline that have failed try again from where they stopped; return how many there were."""
    with _connected(settings, "letting failed tables try again", "penstock run") as connection:
        return state.resume(connection, pipeline)


def prepared_tables(settings: TargetSettings, pipeline: str) -> set[TableId]:
    """Return the tables that a pipeline has prepared in a target; changes nothing."""
    with _connected(settings, "asking for the progress of a pipeline", "penstock check") as connection:
        return state.prepared(connection, pipeline)


@contextmanager
def _connected(settings: TargetSettings, doing: str, application: str) -> Iterator[psycopg.Connection]:
    """A connection for one question of control's."""
    url = settings.url.get_secret_value()
    with (
        translated("target", doing),
        contextlib.closing(connect(url, role="control", application=application)) as connection,
    ):
        yield connection


@contextmanager
def _refused_alone(table: TableId, doing: str) -> Iterator[None]:
    """Raise what goes wrong in the block, and will again, as `TableRefused`."""
    try:
        with translated("target", doing):
            yield
    except TransientError:
        raise
    except ReplicationError as error:
        raise TableRefused(table, error) from error


def _parents_first(works: list[Work]) -> list[Work]:
    """Return the works with tables that others refer to before these; in a circle the order is as it comes."""
    by_oid = {work.writer.shape.oid: work for work in works}
    ordered: dict[int, Work] = {}
    visiting: set[int] = set()

    def put(oid: int) -> None:
        if oid in ordered or oid in visiting or oid not in by_oid:
            return
        visiting.add(oid)
        for parent in sorted(by_oid[oid].writer.shape.references):
            put(parent)
        ordered[oid] = by_oid[oid]

    for oid in sorted(by_oid):
        put(oid)
    return list(ordered.values())
