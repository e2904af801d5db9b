"""The segment of a place that is written now."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from codec.frames import pack
from schemas.errors import IntegrityError, LogRewound
from transport.log import Block, Range
from transport.sqlite.bell import Bell
from transport.sqlite.blocks import OFFSET_BITS, end_of, stored_rows
from transport.sqlite.catalog import Catalog
from transport.sqlite.checkpoint import Checkpointer
from transport.sqlite.connection import connect, fetch, fetch_one, run, transaction
from transport.sqlite.disk import inode_of, lengthen, segment_path

_AHEAD_BYTES = 8 << 20  # of WAL are there before they are written
_AHEAD_PART = 1 << 20  # at a time: all of them would hold up the first commit by as much as a dozen do
_PIECE_BYTES = 4 << 20  # a record larger than this is stored in pieces: SQLite copies each value it is given


class Tail:
    """The end of a place, where one writer adds.

    What is appended is held here and written in one short transaction, so that the lock is never held while
    somebody waits for a source.
    """

    def __init__(self, catalog: Catalog, place: str, wait_s: float, segment_bytes: int) -> None:
        self.pending: dict[int, list[Block]] = {}  # of each partition, to be stored with the next commit
        self.pending_bytes = 0
        self.written: dict[int, Range] = {}  # by this writer since they were last taken, not all of it synced
        self.unsynced = False
        self._catalog, self._place, self._wait_s = catalog, place, wait_s
        self._limit = segment_bytes
        # Elsewhere commits are few, or large.
        self._ahead = min(_AHEAD_BYTES, segment_bytes // 8) if place == "changes" else 0
        self._bell = Bell(catalog.root / f"{place}.bell")
        self._helper = Checkpointer(wait_s)
        self._ends: dict[int, int] = {}
        self._mine: dict[int, int] = {}
        self._connection: sqlite3.Connection | None = None
        self._number = self._inode = 0
        self._there = self._room = 0  # bytes of WAL, and those of them that are not written yet
        self._path = Path()
        self._version = -1
        self._synced: bool | None = None  # whether commits are `full` now
        self._begins: dict[int, int] = {}

    def add(self, partition: int, block: Block) -> None:
        self.pending.setdefault(partition, []).append(block)
        self.pending_bytes += len(block.data)

    def write(self, durable: bool) -> None:
        """Commit what is pending. Not `durable`, it may be lost with the machine until a later commit that is."""
        if self.pending or (durable and self.unsynced):
            with self._committing(durable) as connection:
                if not self.pending:
                    run(connection, "update state set beat = beat + 1")  # a commit of nothing syncs nothing
                self._store(connection)

    def seal(self, partition: int, key: bytes | None, value: Callable[[], bytes | None]) -> int:
        """Commit what is pending and, with it, one more record, whose value is asked for when ranges are known."""
        with self._committing(True) as connection:
            self._store(connection)
            return self._insert(connection, partition, 1, pack([(key, value())]))

    def put_all(self, partition: int, values: Sequence[bytes]) -> None:
        """Commit what is pending and, with it, a record for each value."""
        with self._committing(True) as connection:
            self._store(connection)
            for value in values:
                self._insert(connection, partition, 1, pack([(None, value)]))

    def close(self) -> None:
        self._helper.close()
        self._bell.close()
        if self._connection is not None:
            self._connection.close()

    @contextmanager
    def _committing(self, durable: bool) -> Iterator[sqlite3.Connection]:
        connection = self._begin(durable)
        try:
            yield connection
            run(connection, "commit")
        except BaseException:
            with contextlib.suppress(sqlite3.Error):
                run(connection, "rollback")
            raise
        self.unsynced = not durable
        self._bell.ring()
        self._helper.committed(connection, self._path)

    def _begin(self, durable: bool) -> sqlite3.Connection:
        """Begin a transaction in the newest segment, making the next one if that is full."""
        while True:
            if self._connection is None:
                self._number = self._catalog.newest(self._place)
                if not self._number:
                    self._catalog.advance(self._place, 0, self._wait_s)
                    continue
                self._open()
            assert self._connection is not None
            connection = self._connection
            if inode_of(self._path) != self._inode:
                if self._catalog.is_there() and self._catalog.newest(self._place) != self._number:
                    self._connection = None  # all in it was trimmed, and it was dropped
                    connection.close()
                    continue
                raise LogRewound(f"{self._path} is gone: what is written now nobody would ever read")
            if self._synced is not durable:
                # Under `full` a commit syncs all of the WAL, so the last one makes those before it durable too.
                run(connection, f"pragma synchronous = {'full' if durable else 'normal'}")
                self._synced = durable
            run(connection, "begin immediate")
            (version,) = fetch_one(connection, "pragma data_version")
            if version != self._version:
                self._ends.clear()
                self._begins = dict(fetch(connection, "select partition, start from begin"))
                self._version = version
                if fetch_one(connection, "select sealed from state")[0]:
                    run(connection, "rollback")
                    self._next()
                    continue
            if self._bytes(connection) >= self._limit:
                run(connection, "rollback")
                run(connection, "pragma synchronous = full")
                with transaction(connection):
                    run(connection, "update state set sealed = 1")
                self._next()
                continue
            if self._there < self._ahead and self._room < _AHEAD_PART // 2:
                # Nobody else writes there: the transaction has begun.
                self._there, self._room = self._there + _AHEAD_PART, self._room + _AHEAD_PART
                lengthen(Path(f"{self._path}-wal"), self._there)
            return connection

    def _next(self) -> None:
        assert self._connection is not None
        self._catalog.advance(self._place, self._number, self._wait_s)
        self._helper.finish(self._path, self._connection)
        self._connection = None

    def _open(self) -> None:
        self._path = segment_path(self._catalog.root, self._place, self._number)
        self._connection = connection = connect(self._path, self._wait_s)
        self._inode = inode_of(self._path)
        run(connection, "pragma wal_autocheckpoint = 0")
        run(connection, "pragma cache_size = -24000")
        self._synced, self._version = None, -1
        self._there = self._room = 0

    @staticmethod
    def _bytes(connection: sqlite3.Connection) -> int:
        return int(fetch_one(connection, "pragma page_count")[0]) * 4096

    def _store(self, connection: sqlite3.Connection) -> None:
        for partition, blocks in self.pending.items():
            start = end = self._end(connection, partition)
            if self._mine.get(partition, start) != start:
                # Their records stand between two of ours: a range would hold both. The other one is newer.
                raise IntegrityError(f"another writer is at work in {self._path}")
            for number, data in stored_rows(blocks):
                end = self._insert(connection, partition, number, data) + number
            self._mine[partition] = end
            self.written[partition] = Range(self.written.get(partition, Range(start, end)).start, end)
        self.pending.clear()
        self.pending_bytes = 0

    def _insert(self, connection: sqlite3.Connection, partition: int, number: int, data: bytes) -> int:
        offset = self._end(connection, partition)
        block = partition << OFFSET_BITS | offset
        self._helper.wrote(len(data) + 8192)
        self._room -= len(data) + 8192
        if number == 1 and len(data) > _PIECE_BYTES:
            view = memoryview(data)
            for piece, at in enumerate(range(0, len(view), _PIECE_BYTES)):
                run(connection, "insert into piece values (?, ?, ?)", block, piece, view[at : at + _PIECE_BYTES])
            run(connection, "insert into block values (?, 1, null)", block)
        else:
            run(connection, "insert into block values (?, ?, ?)", block, number, data)
        self._ends[partition] = offset + number
        return offset

    def _end(self, connection: sqlite3.Connection, partition: int) -> int:
        end = self._ends.get(partition)
        if end is None:
            end = self._ends[partition] = end_of(connection, partition, self._begins.get(partition, 0))
        return end
