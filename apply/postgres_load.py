"""Writing the chunks of a load."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import psycopg

from apply import postgres_state as state
from apply.dead_letters import Tray, keyed_batch
from apply.postgres_letters import Letters
from apply.postgres_merge import COLLISIONS, Work, Writer
from apply.postgres_session import Session
from apply.postgres_transactions import Transactions
from apply.postgres_writers import Writers
from apply.target import Change, TableProgress, TableRefused
from codec.copy import load_rows
from codec.net import Net
from engines.postgres.quoting import quote
from schemas.errors import GapDetected, RowError, WriteConflict
from schemas.frontier import HEAL
from transport.views import Registered

HEAL_BYTES = 32 << 20


class ChunkWriter:
    """Writes chunks, each in one transaction of one connection."""

    def __init__(
        self, session: Session, transactions: Transactions, writers: Writers, letters: Letters, pipeline: str
    ) -> None:
        self._session, self._transactions, self._writers = session, transactions, writers
        self._letters, self._key = letters, state.text(pipeline)

    def load(
        self,
        version: Registered,
        table: TableProgress,
        chunk: int,
        rows: int,
        batches: Callable[[], Iterable[bytes]],
        tray: Tray,
    ) -> int:
        """Write the rows of a chunk and its number in one transaction; see `apply.target.Target.load`."""
        writer = self._writers.writer(version)
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
                self._writers.look_again({writer.version.table.name})
                raise WriteConflict(f"another table has the name of {table.table} on the target by now")

        key = [self._key, *map(state.text, table.table), state.text(table.generation)]
        with self._transactions.begun(f"loading {table.table}", durable=False) as session:
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
            refused = self._transactions.attempt(writer.id, write_all)
            if refused is None:
                return count
            if not isinstance(refused.cause, RowError):
                raise refused
        changes = keyed_batch(version.layout, batch)
        state.queue_forgetting(self._session, self._key, writer.id, tray.forget(changes))
        self._letters.sift(writer, changes, tray, exact=not merge, refused_together=False)
        self._letters.store(writer, tray)
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
