"""PostgreSQL as a target: rows and progress in one transaction, its first statement the comparison."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, suppress

from apply.dead_letters import Letter, Waiting
from apply.postgres import state
from apply.postgres.build import Builder
from apply.postgres.changes import ChangeWriter
from apply.postgres.finish import Completion
from apply.postgres.letters import Letters
from apply.postgres.load import ChunkWriter
from apply.postgres.merge import DIRECT, Stages
from apply.postgres.names import Called, Names
from apply.postgres.prepare import Preparation
from apply.postgres.redefine import Redefinitions
from apply.postgres.session import Session
from apply.postgres.transactions import Transactions
from apply.postgres.writers import Writers
from apply.target import Batch, Load, Progress, Redefinition, TableMove, TableProgress, Taken
from codec.net import Net
from conversion.ddl import objects_statements
from engines.postgres.errors import translated
from schemas.errors import LOAD_AGAIN, LogRewound, TargetUnavailable
from schemas.pipeline import Prepare, TargetSettings
from schemas.states import STOPPED, TableState
from schemas.table import Objects, Table, TableId
from transport.views import Registered

BUILDS_AT_ONCE = 4


class _Opened:
    """A target's connection, and all that works on it."""

    def __init__(self, session: Session, builder: Builder, settings: TargetSettings, pipeline: str) -> None:
        self.session = session
        stages = Stages(session)
        self.writers = Writers(session, stages)
        self.transactions = Transactions(session, stages, self.writers)
        self.letters = Letters(session, self.transactions, self.writers, pipeline)
        self.names = Names(session, self.transactions, self.writers, pipeline)
        self.preparation = Preparation(session, self.transactions, self.writers, self.names, settings.prepare, pipeline)
        self.redefinitions = Redefinitions(session, self.transactions, self.writers, self.names, pipeline)
        self.chunks = ChunkWriter(session, self.transactions, self.writers, self.letters, pipeline)
        self.changes = ChangeWriter(session, self.writers, self.letters)
        self.completion = Completion(session, self.writers, builder, settings, pipeline)


class PostgresTarget:
    """A PostgreSQL database. One connection does the work; indexes and keys are made on others."""

    def __init__(self, settings: TargetSettings, pipeline: str) -> None:
        self._settings, self._pipeline = settings, pipeline
        self._url = settings.url.get_secret_value()
        self._key = state.text(pipeline)
        self._application = f"penstock {pipeline} apply"
        self._opened: _Opened | None = None
        self._builder = Builder(self._url, self._application, BUILDS_AT_ONCE)
        self._states = state.TableStates(pipeline)
        self._tables: dict[TableId, Table] = {}
        self._objects = Objects()

    def open(self, log: str) -> None:
        with translated("target", "connecting"):
            session = Session(self._url, self._application)
        self._opened = _Opened(session, self._builder, self._settings, self._pipeline)
        connection = session.connection
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
    def _parts(self) -> _Opened:
        if self._opened is None:
            raise TargetUnavailable("the target is not open")
        return self._opened

    @property
    def _session(self) -> Session:
        return self._parts.session

    def close(self) -> None:
        with suppress(Exception):
            self._builder.close()
        if self._opened is not None:
            self._opened.session.close()
            self._opened = None

    # --------------------------------------------------------------------------------------------- bookkeeping

    def register(
        self,
        groups: Mapping[int, Progress],
        tables: Sequence[TableProgress],
        definitions: Sequence[Table],
        objects: Objects,
        called: Called,
    ) -> None:
        self._parts.names.called = called
        self._tables = {table.id: table for table in definitions}
        self._objects = objects
        connection = self._session.connection
        makes = bool(tables) and self._settings.prepare is not Prepare.KEEP
        with translated("target", "noting the tables"), connection.transaction():
            if makes:
                with translated("target", "making schemas, types and sequences"):
                    connection.execute("select pg_advisory_xact_lock(%s)", [state.LOCK])
                    for statement in objects_statements(objects, definitions, version=self._session.major):
                        connection.execute(statement)
            state.add(connection, self._pipeline, groups, tables)

    def groups(self) -> dict[int, Progress]:
        # Whoever asks begins anew: what tables are like may have changed while they were another's.
        self._parts.writers.look_again_at_all(self._tables)
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
        with self._parts.transactions.begun("making the progress durable", durable=True) as session:
            session.queue(state.REWRITE, [self._key])

    def resume(self, table: TableId) -> bool:
        with translated("target", "resuming a table"):
            return self._session.connection.execute(state.RESUME_ONE.encode(), [self._pipeline, *table]).rowcount == 1

    # ------------------------------------------------------------------------------------------------------ rows

    def prepare(self, tables: Sequence[tuple[Registered, TableMove]]) -> list[TableProgress]:
        return self._parts.preparation.prepare(tables, self._objects)

    def restart(self, piece: Redefinition, move: TableMove) -> None:
        self._builder.give_up(piece.before.table.id)  # it would be waited for
        self._parts.redefinitions.restart(piece, move)

    def load(self, loads: Sequence[Load]) -> list[int]:
        return self._parts.chunks.load(loads)

    def finish(self, version: Registered, table: TableProgress) -> bool:
        return self._parts.completion.finish(version, table)

    def tie(self, version: Registered, table: TableProgress, *, last: bool) -> bool:
        return self._parts.completion.tie(version, table, self._objects, self._tables, last=last)

    def built(self) -> list[TableId]:
        return self._parts.completion.built()

    def net(self, version: Registered, expected: int) -> Net:
        binary = self._parts.writers.writer(version).binary and expected > DIRECT
        return Net(version.layout, binary=binary)

    def accepted(self, version: Registered) -> Registered:
        return self._parts.writers.accepted(version)

    def get_ready(self, version: Registered) -> None:
        if self._settings.prepare is not Prepare.KEEP:
            self._parts.redefinitions.get_ready(version)

    def write(self, batch: Batch) -> None:
        opened = self._parts
        durable = any(_ends(move) for move in batch.tables) or bool(batch.changes)
        with opened.transactions.begun("applying changes", durable=durable) as session:
            opened.names.begin(batch.tables)
            state.queue_moves(session, self._key, batch.groups, batch.tables)
            state.queue_counts(session, self._key, batch.changes)
            for piece in batch.pieces:
                if isinstance(piece, Redefinition):
                    opened.redefinitions.carry_out(piece)
                else:
                    opened.changes.write(piece, batch.refused)

    def taken(self, table: TableId) -> AbstractContextManager[Taken]:
        return self._parts.letters.taken(table)


def _ends(move: TableMove) -> bool:
    """Whether somebody may rely on what is reached. What a crash of the server takes back on the way to it is done
    again: rows, chunks and states go together."""
    return move.after.state is not move.progress.state and move.progress.state in {TableState.LIVE, *STOPPED}
