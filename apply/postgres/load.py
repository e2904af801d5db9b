"""Writing the chunks of a load."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import psycopg

from apply.dead_letters import Tray, keyed_batch
from apply.postgres import state
from apply.postgres.letters import Letters
from apply.postgres.merge import COLLISIONS, Work, Writer
from apply.postgres.session import Session
from apply.postgres.transactions import Transactions
from apply.postgres.writers import Writers
from apply.target import Change, Load, TableRefused
from codec.copy import load_rows
from codec.net import Net
from engines.postgres.quoting import quote
from schemas.errors import GapDetected, RowError, WriteConflict
from schemas.frontier import HEAL
from schemas.table import TableId

HEAL_BYTES = 32 << 20


class ChunkWriter:
    """Writes chunks on one connection."""

    def __init__(
        self, session: Session, transactions: Transactions, writers: Writers, letters: Letters, pipeline: str
    ) -> None:
        self._session, self._transactions, self._writers = session, transactions, writers
        self._letters, self._key = letters, state.text(pipeline)

    def load(self, loads: Sequence[Load]) -> list[int]:
        """Write the rows of chunks and their numbers in one transaction; see `apply.target.Target.load`."""
        if len(loads) == 1:
            return [self._load_alone(loads[0])]
        writers = [self._writers.writer(load.version) for load in loads]
        with self._transactions.begun(f"loading {len(loads)} chunks", durable=False) as session:
            added = self._add_chunks(session, loads, writers)
            return [
                self._copy_batches(writer, load) if (load.table.table, load.chunk) in added else -1
                for load, writer in zip(loads, writers, strict=True)
            ]

    def _load_alone(self, load: Load) -> int:
        writer = self._writers.writer(load.version)
        merge = load.chunk == HEAL
        try:
            return self._load(load, writer, merge)
        except TableRefused as refused:
            if not isinstance(refused.cause, RowError) or not writer.alone:
                raise
            # A row that an update moved between two snapshots may have been read twice; healing puts it right.
            merge |= bool(writer.key) and isinstance(refused.__cause__, psycopg.errors.UniqueViolation)
            collides = load.chunk == HEAL and isinstance(refused.__cause__, COLLISIONS)
        return self._load(load, writer, merge, sifts=True, clear=collides)

    def _load(self, load: Load, writer: Writer, merge: bool, *, sifts: bool = False, clear: bool = False) -> int:
        tray = load.tray
        with self._transactions.begun(f"loading {load.table.table}", durable=False) as session:
            if not self._add_chunks(session, [load], [writer]):
                return -1
            if tray.clears:
                state.queue_forgetting(session, self._key, writer.id)
            if clear:
                # Rows may have exchanged unique values, and be written in pieces: first all of them go.
                self._clear_batches(writer, load.batches())
            if sifts or tray.found:
                done = sum(self._sift_batch(writer, batch, merge, tray) for batch in load.batches())
                _require_rows(load, done)
            elif merge:
                done = self._merge_batches(writer, load.batches())
                _require_rows(load, done)
            else:
                done = self._copy_batches(writer, load)
        return done

    def _add_chunks(
        self, session: Session, loads: Sequence[Load], writers: Sequence[Writer]
    ) -> set[tuple[TableId, int]]:
        """Note that chunks are loaded, and keep their tables as they are till the end of the transaction; return those
        that were not there yet."""
        added: set[tuple[TableId, int]] = set()

        def found(result: psycopg.pq.abc.PGresult) -> None:
            if result.ntuples != len(writers):
                self._writers.look_again([writer.version.table.name for writer in writers])
                names = ", ".join(str(load.table.table) for load in loads[: state.NAMED])
                raise WriteConflict(f"on the target another table has the name of one of {len(loads)} by now: {names}")

        state.queue_chunks(session, self._key, loads, added.update)
        names = state.array([quote(*writer.version.table.name) for writer in writers])
        session.queue(state.HAVE_THEIR_NAMES, [names, state.numbers(writer.shape.oid for writer in writers)], found)
        session.flush()
        return added

    def _sift_batch(self, writer: Writer, batch: bytes, merge: bool, tray: Tray) -> int:
        """Write the rows of a batch but for those that the target refuses; return how many there were of both."""
        version = writer.version
        count = 0

        def write_all() -> None:
            nonlocal count
            if merge:
                count = self._merge_batches(writer, [batch])
            else:
                count = writer.copy([self._rows(writer, batch)], writer.binary)

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

    def _copy_batches(self, writer: Writer, load: Load) -> int:
        done = writer.copy((self._rows(writer, batch) for batch in load.batches()), writer.binary)
        _require_rows(load, done)
        return done

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


def _require_rows(load: Load, done: int) -> None:
    """Raise `GapDetected` unless a chunk had as many rows as it was said to have."""
    if load.chunk != HEAL and done != load.rows:
        raise GapDetected(f"chunk {load.chunk} of {load.table.table} holds {done} rows instead of {load.rows}")
