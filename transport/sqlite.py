"""The embedded log: SQLite files in one folder, durable at every step, read by any process of this machine.

    <folder>/<pipeline>/catalog.db               topics, segments, where which range is, what is trimmed
    <folder>/<pipeline>/<place>.<number>.db      a segment; the newest of a place is the one that is written
    <folder>/<pipeline>/<place>.bell             overwritten after each commit, so that readers wake
    <folder>/<pipeline>/members/<group>/         a locked file for each worker

A *place* is a file set with one busy writer, because SQLite's lock is no queue and several would starve each other:
`changes` (claims and frontiers with them, so that rows and frontier are one transaction and one fsync), `load-N` for
partition N of every load topic, `chunks`, and `control`. A step is in the newest segment of its place or not at
all, whoever dies; a segment, once sealed, never changes and is dropped whole.

Blocks are stored as rows, not records: the key is partition and first offset in one integer, so that one tree
serves all partitions and a commit of one row touches few pages.
"""

from __future__ import annotations

import bisect
import contextlib
import io
import os
import queue
import re
import shutil
import sqlite3
import threading
import time
import uuid
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

from codec.frames import count, cut, pack, unpack
from schemas.errors import (
    GapDetected,
    IntegrityError,
    LogRewound,
    LogUnavailable,
    PrerequisiteMissing,
    ReplicationError,
)
from transport.bell import Bell, Listener
from transport.log import Block, Partition, Range, Record, Topic, Usage
from transport.members import FileMembership
from transport.topics import Topics

SEGMENT_BYTES = 256 << 20
BUDGET_BYTES = 20 * 1000**3

_FORMAT = 1  # user_version of every file
_OFFSET_BITS = 44
_OFFSET_MASK = (1 << _OFFSET_BITS) - 1

_ROW_BYTES = 1 << 20  # a stored row is larger only for one record
_PIECE_BYTES = 4 << 20  # a record larger than this is stored in pieces: SQLite copies each value it is given
_PENDING_BYTES = 16 << 20  # of a step that are held before they are written without their frontier
_READ_BYTES = 4 << 20
_CHECKPOINT_BYTES = 4 << 20  # of WAL, and the helper thread copies it into the file
_WAL_BYTES = 64 << 20  # and the writer itself does, if the helper does not keep up
_ROOM_BYTES = 4 << 20  # written between two looks at the disk budget
_OPEN_SEGMENTS = 16

_CATALOG = """
create table topic (
    name text primary key, first integer not null, partitions integer not null, compacted integer not null,
    identity text not null
) without rowid;
create table allotted (next integer not null);
insert into allotted values (0);
create table segment (
    place text not null, number integer not null, bytes integer, primary key (place, number)
) without rowid;
create table extent (
    place text not null, partition integer not null, start integer not null, finish integer not null,
    number integer not null, primary key (place, partition, start)
) without rowid;
create table trimmed (partition integer primary key, start integer not null);
"""

_SEGMENT = """
create table block (id integer primary key, count integer not null, data blob);
create table piece (block integer not null, number integer not null, data blob not null, primary key (block, number));
create table begin (partition integer primary key, start integer not null);
create table latest (
    partition integer not null, key blob not null, id integer not null, primary key (partition, key)
) without rowid;
create table state (sealed integer not null, beat integer not null);
insert into state values (0, 0);
"""

# The newest block at or before an offset, and those after it, as long as they are of the partition.
_BLOCKS_FROM = """
select id, count, data from block
where id >= coalesce((select max(id) from block where id >= :low and id <= :from), :from) and id < :to
order by id limit :rows + 1
"""

_NETWORK_SYSTEMS = re.compile(
    r"9p|afs|beegfs|ceph|cifs|davfs|fuse\.(ceph|glusterfs|rclone|s3fs|sshfs)|glusterfs|gpfs|lustre|nfs\d?|ocfs2"
    r"|orangefs|smb3|smbfs"
)

_UNAVAILABLE = frozenset(
    {
        sqlite3.SQLITE_BUSY,
        sqlite3.SQLITE_LOCKED,
        sqlite3.SQLITE_FULL,
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_PROTOCOL,
        sqlite3.SQLITE_NOMEM,
        sqlite3.SQLITE_READONLY,
    }
)

_forked: list[object] = []  # connections of a parent process, which a child must neither use nor close


class _TopicRow(NamedTuple):
    first: int  # its partitions are this id and those that follow; ids are never used again
    partitions: int
    compacted: bool
    identity: str


@dataclass(frozen=True, slots=True)
class _Contents:
    """What the catalogue says."""

    topics: Mapping[str, _TopicRow]
    segments: Mapping[str, list[tuple[int, int | None]]]  # by place: number, and size once sealed
    trimmed: Mapping[int, int]


class SqliteLog:
    """A log in a folder of a local disk, for the services of one machine.

    Every `seal` and `put`, and `flush` at its end, is on the disk before it is seen. `budget_bytes` bounds what
    changes and loads may take: at it `append` waits up to `wait_s` for a trim, then raises `LogUnavailable`; control
    records and chunks are exempt, so that whatever frees room can always be told. `wait_s` also bounds how long a
    commit waits for another process. Safe to carry across a fork, and for threads.
    """

    shared_topics: int | None = None

    def __init__(
        self,
        folder: Path,
        pipeline: str,
        *,
        budget_bytes: int = BUDGET_BYTES,
        wait_s: float = 60.0,
        segment_bytes: int = SEGMENT_BYTES,
    ) -> None:
        self._root = folder / pipeline
        self._pipeline, self._names = pipeline, Topics(pipeline)
        # The segments that are written can't be dropped, and there are several: a small budget needs small ones.
        self._segment_bytes = max(min(segment_bytes, budget_bytes // 32), 1 << 20)
        self._budget, self._wait_s = budget_bytes, wait_s
        self._local = threading.local()

    def create_topics(self, topics: list[Topic]) -> None:
        """Make the folder and the catalogue too. Raises `PrerequisiteMissing` on a network file system."""
        self._root.mkdir(parents=True, exist_ok=True)
        if remote := _network_system(self._root):
            problem, remedy = _network_problem(self._root, remote)
            raise PrerequisiteMissing(problem, remedy=remedy)
        with _translated("make topics"):
            path = self._root / "catalog.db"
            if not path.exists():
                _make_file(path, _CATALOG)
            catalog = self._here().catalog
            with catalog.change() as connection:
                for topic in topics:
                    if _one(connection, "select 1 from topic where name = ?", topic.name):
                        continue
                    (first,) = _one(connection, "select next from allotted")
                    _run(connection, "update allotted set next = next + ?", topic.partitions)
                    row = (topic.name, first, topic.partitions, topic.compacted, uuid.uuid4().hex)
                    _run(connection, "insert into topic values (?, ?, ?, ?, ?)", *row)

    def delete_topics(self, names: list[str]) -> None:
        """The room they take is free when the segments that hold them are dropped."""
        if not self._exists():
            return
        with _translated("delete topics"), self._here().catalog.change() as connection:
            for name in names:
                if found := _one(connection, "select first, partitions from topic where name = ?", name):
                    ids = (found[0], found[0] + found[1])
                    _run(connection, "delete from extent where partition >= ? and partition < ?", *ids)
                    _run(connection, "delete from trimmed where partition >= ? and partition < ?", *ids)
                    _run(connection, "delete from topic where name = ?", name)
        self._drop()

    def topics(self, prefix: str) -> list[Topic]:
        if not self._exists():
            return []
        with _translated("list topics"):
            rows = self._here().catalog.look().topics
            return [Topic(n, t.partitions, t.compacted) for n, t in sorted(rows.items()) if n.startswith(prefix)]

    def offsets(self, partition: Partition) -> Range:
        with _translated("look at offsets"):
            return self._here().offsets(partition)

    def trim(self, partition: Partition, offset: int) -> None:
        """Segments that hold nothing more that anybody may ask for are unlinked at once."""
        with _translated("trim"):
            here = self._here()
            start, end = here.offsets(partition)
            offset = min(offset, end)
            if offset <= start:
                return
            topic = here.catalog.topic(partition)
            with here.catalog.change() as connection:
                row = (topic.first + partition.number, offset)
                _run(
                    connection,
                    "insert into trimmed values (?, ?) on conflict do update set start = excluded.start",
                    *row,
                )
                _run(connection, "delete from extent where partition = ? and finish <= ?", *row)
        self._drop()

    def identity(self) -> str:
        with _translated("look at the log's identity"):
            topic = self._here().catalog.look().topics.get(self._names.frontier.topic) if self._exists() else None
        if topic is None:
            raise LogRewound(f"there is no log of pipeline {self._pipeline} in {self._root}")
        return topic.identity

    def usage(self) -> Usage:
        if not self._exists():
            return Usage(0, self._budget)
        with _translated("look at the log's size"):
            return Usage(self._here().catalog.used(), self._budget)

    @contextmanager
    def writer(self, purpose: str) -> Iterator[_SqliteWriter]:
        writer = _SqliteWriter(self._catalog(), self._names, self._budget, self._wait_s, self._segment_bytes)
        try:
            yield writer
        finally:
            writer.close()

    @contextmanager
    def reader(self) -> Iterator[_SqliteReader]:
        reader = _SqliteReader(self._catalog(), self._names, self._wait_s)
        try:
            yield reader
        finally:
            reader.close()

    @contextmanager
    def membership(self, group: str) -> Iterator[FileMembership]:
        member = FileMembership(self._root / "members" / quote(group, safe=""))
        try:
            yield member
        finally:
            member.close()

    def problems(self) -> list[tuple[str, str]]:
        there = self._root
        while not there.exists():
            there = there.parent
        found = []
        if remote := _network_system(there):
            found.append(_network_problem(self._root, remote))
        free, lacking = shutil.disk_usage(there).free, self._budget - self.usage().used
        if free < lacking:
            found.append(
                (
                    f"the log in {self._root} may take {lacking / 1e9:.1f} GB more, but its disk has"
                    f" {free / 1e9:.1f} GB left",
                    "free room on that disk, put the log on another, or lower its budget",
                )
            )
        return found

    def close(self) -> None:
        here: _SqliteReader | None = getattr(self._local, "here", None)
        if here is not None and self._local.process == os.getpid():
            here.close()
        self._local = threading.local()

    def _exists(self) -> bool:
        return (self._root / "catalog.db").exists()

    def _catalog(self) -> _Catalog:
        if not self._exists():
            raise LogRewound(f"there is no log of pipeline {self._pipeline} in {self._root}")
        return _Catalog(self._root, self._wait_s)

    def _here(self) -> _SqliteReader:
        """What this thread of this process looks with; a connection must not be used across a fork."""
        here: _SqliteReader | None = getattr(self._local, "here", None)
        if here is not None and self._local.process != os.getpid():
            _forked.append(here)
            here = None
        if here is not None and not here.catalog.is_there():  # the log was removed, and perhaps made again
            here.close()
            here = None
        if here is None:
            here = self._local.here = _SqliteReader(self._catalog(), self._names, self._wait_s)
            self._local.process = os.getpid()
        return here

    def _drop(self) -> None:
        """Seal segments whose records are all trimmed, and unlink the sealed ones that no extent leads to."""
        with _translated("drop segments"):
            here = self._here()
            for place, segments in here.catalog.look().segments.items():
                path = _segment_path(self._root, place, segments[-1][0])
                if _file_bytes(path) >= self._segment_bytes // 4 and here.all_trimmed(place):
                    self._seal_segment(here.catalog, place, segments[-1][0])
            if not here.catalog.dead():
                return
            with here.catalog.change() as connection:
                dead = here.catalog.dead()
                for place, number in dead:
                    _run(connection, "delete from segment where place = ? and number = ?", place, number)
            for place, number in dead:
                _unlink(_segment_path(self._root, place, number))

    def _seal_segment(self, catalog: _Catalog, place: str, number: int) -> None:
        """Make the writer go on in another, as it would itself: after a load nobody may ever write there again."""
        connection = _connect(_segment_path(self._root, place, number), self._wait_s)
        try:
            with _transaction(connection):
                _run(connection, "update state set sealed = 1")
        finally:
            connection.close()
        catalog.advance(place, number, self._wait_s)


class _Catalog:
    """The catalogue of one log: one connection, and what it says, read again when it has changed."""

    def __init__(self, root: Path, wait_s: float) -> None:
        self.root = root
        self._connection = _connect(root / "catalog.db", wait_s)
        self._inode = _inode(root / "catalog.db")
        _run(self._connection, "pragma synchronous = full")
        self._version = -1
        self._contents = _Contents({}, {}, {})

    def look(self) -> _Contents:
        (version,) = _one(self._connection, "pragma data_version")
        if version != self._version:
            segments: dict[str, list[tuple[int, int | None]]] = {}
            with _transaction(self._connection, "begin"):
                topics = _all(self._connection, "select name, first, partitions, compacted, identity from topic")
                for place, number, size in _all(self._connection, "select * from segment order by place, number"):
                    segments.setdefault(place, []).append((number, size))
                trimmed = dict(_all(self._connection, "select partition, start from trimmed"))
            rows = {name: _TopicRow(first, n, bool(compacted), i) for name, first, n, compacted, i in topics}
            self._contents, self._version = _Contents(rows, segments, trimmed), version
        return self._contents

    def is_there(self) -> bool:
        """Whether this is still the log's catalogue, not one that was removed."""
        return _inode(self.root / "catalog.db") == self._inode

    def topic(self, partition: Partition) -> _TopicRow:
        topic = self.look().topics.get(partition.topic)
        if topic is None or partition.number >= topic.partitions:
            raise LogRewound(f"the log in {self.root} has no {partition.topic}/{partition.number}")
        return topic

    @contextmanager
    def change(self) -> Iterator[sqlite3.Connection]:
        """One transaction, durable at its end."""
        with _transaction(self._connection):
            yield self._connection
        self._version = -1  # one's own commits do not count as a change

    def newest(self, place: str) -> int:
        """The number of the segment that is written now; 0: none yet."""
        segments = self.look().segments.get(place)
        return segments[-1][0] if segments else 0

    def segment_of(self, place: str, partition: int, offset: int) -> tuple[int, int] | None:
        """Which sealed segment holds an offset, and where in it the partition ends."""
        row = _one(
            self._connection,
            "select number, finish from extent where place = ? and partition = ? and start <= ?"
            " order by start desc limit 1",
            place,
            partition,
            offset,
        )
        return (row[0], row[1]) if row and offset < row[1] else None

    def advance(self, place: str, number: int, wait_s: float) -> None:
        """Make the segment after `number`, which is sealed (0: there was none), unless somebody has.

        The order is what matters: whoever finds a sealed segment without a next makes it, so a process that dies in
        between has done no harm, and nobody writes into an old one while another writes into a new one.
        """
        with self.change() as connection:
            (newest,) = _one(connection, "select coalesce(max(number), 0) from segment where place = ?", place)
            if newest != number:
                return
            ends: dict[int, int] = {}
            if number:
                old = _connect(_segment_path(self.root, place, number), wait_s)
                try:
                    ends = self._close_off(connection, place, number, old)
                finally:
                    old.close()
            path = _segment_path(self.root, place, number + 1)
            _unlink(path)  # of a process that died here
            _make_file(path, _SEGMENT, begin=ends)
            _run(connection, "insert into segment values (?, ?, null)", place, number + 1)

    def dead(self) -> list[tuple[str, int]]:
        """The sealed segments that nothing is asked from any more."""
        return _all(
            self._connection,
            "select place, number from segment as s where bytes is not null and not exists ("
            "select 1 from extent as e where e.place = s.place and e.number = s.number)",
        )

    def used(self) -> int:
        """The bytes of all segments, without walking the folder."""
        total = 0
        for place, segments in self.look().segments.items():
            for number, size in segments:
                total += _file_bytes(_segment_path(self.root, place, number)) if size is None else size
        return total

    def close(self) -> None:
        self._connection.close()

    @staticmethod
    def _close_off(connection: sqlite3.Connection, place: str, number: int, old: sqlite3.Connection) -> dict[int, int]:
        """Write down which ranges a sealed segment holds, and return where each partition stands after it."""
        live = _all(connection, "select first, first + partitions from topic order by first")

        def lives(partition: int) -> bool:
            at = bisect.bisect_right(live, partition, key=lambda row: row[0]) - 1
            return at >= 0 and bool(partition < live[at][1])

        ends = {n: start for n, start in _all(old, "select partition, start from begin") if lives(n)}
        at = 0
        while found := _one(old, "select id from block where id >= ? order by id limit 1", at):
            partition = found[0] >> _OFFSET_BITS
            at = (partition + 1) << _OFFSET_BITS
            if lives(partition):
                start, end = ends.get(partition, 0), _end(old, partition, 0)
                ends[partition] = end
                trimmed = _one(connection, "select start from trimmed where partition = ?", partition)
                if not trimmed or end > trimmed[0]:
                    row = (place, partition, start, end, number)
                    _run(connection, "insert into extent values (?, ?, ?, ?, ?)", *row)
        pages, size = _one(old, "pragma page_count")[0], _one(old, "pragma page_size")[0]
        _run(connection, "update segment set bytes = ? where place = ? and number = ?", pages * size, place, number)
        return ends


@dataclass(slots=True)
class _Pending:
    """Blocks of one partition, to be stored with the next commit."""

    compacted: bool
    blocks: list[Block] = field(default_factory=list)


class _Tail:
    """The end of a place, where one writer adds.

    What is appended is held here and written in one short transaction, so that the lock is never held while
    somebody waits for a source.
    """

    def __init__(self, catalog: _Catalog, place: str, wait_s: float, segment_bytes: int) -> None:
        self.pending: dict[int, _Pending] = {}
        self.pending_bytes = 0
        self.written: dict[int, Range] = {}  # by this writer since they were last taken, not all of it synced
        self.unsynced = False
        self._catalog, self._place, self._wait_s = catalog, place, wait_s
        # Compaction looks for the record before within its file, so what may be compacted stays in one.
        self._limit = None if place == "control" else segment_bytes
        self._bell = Bell(catalog.root / f"{place}.bell")
        self._helper = _Checkpointer(wait_s)
        self._ends: dict[int, int] = {}
        self._mine: dict[int, int] = {}
        self._connection: sqlite3.Connection | None = None
        self._number = self._inode = 0
        self._version = -1
        self._synced: bool | None = None  # whether commits are `full` now
        self._begins: dict[int, int] = {}

    def add(self, partition: int, compacted: bool, block: Block) -> None:
        self.pending.setdefault(partition, _Pending(compacted)).blocks.append(block)
        self.pending_bytes += len(block.data)

    def write(self, durable: bool) -> None:
        """Commit what is pending. Not `durable`, it may be lost with the machine until a later commit that is."""
        if self.pending or (durable and self.unsynced):
            with self._committing(durable) as connection:
                if not self.pending:
                    _run(connection, "update state set beat = beat + 1")  # a commit of nothing syncs nothing
                self._store(connection)

    def seal(self, partition: int, compacted: bool, key: bytes | None, value: Callable[[], bytes | None]) -> int:
        """Commit what is pending and, with it, one more record, whose value is asked for when ranges are known."""
        with self._committing(True) as connection:
            self._store(connection)
            data = pack([(key, value())])
            if compacted:
                return self._replace(connection, partition, key, data)
            return self._insert(connection, partition, 1, data)

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
            _run(connection, "commit")
        except BaseException:
            with contextlib.suppress(sqlite3.Error):
                _run(connection, "rollback")
            raise
        self.unsynced = not durable
        self._bell.ring()
        self._helper.committed(connection, self._path())

    def _begin(self, durable: bool) -> sqlite3.Connection:
        """Begin a transaction in the newest segment, making the next one if that is full."""
        while True:
            if self._connection is None:
                self._number = self._catalog.newest(self._place)
                if not self._number:
                    self._catalog.advance(self._place, 0, self._wait_s)
                    continue
                self._connection = _connect(self._path(), self._wait_s)
                self._inode = _inode(self._path())
                _run(self._connection, "pragma wal_autocheckpoint = 0")
                _run(self._connection, "pragma cache_size = -24000")
                self._synced, self._version = None, -1
            connection = self._connection
            if _inode(self._path()) != self._inode:
                if self._catalog.is_there() and self._catalog.newest(self._place) != self._number:
                    self._connection = None  # all in it was trimmed, and it was dropped
                    connection.close()
                    continue
                raise LogRewound(f"{self._path()} is gone: what is written now nobody would ever read")
            if self._synced is not durable:
                # Under `full` a commit syncs all of the WAL, so the last one makes those before it durable too.
                _run(connection, f"pragma synchronous = {'full' if durable else 'normal'}")
                self._synced = durable
            _run(connection, "begin immediate")
            (version,) = _one(connection, "pragma data_version")
            if version != self._version:
                self._ends.clear()
                self._begins = dict(_all(connection, "select partition, start from begin"))
                self._version = version
                if _one(connection, "select sealed from state")[0]:
                    _run(connection, "rollback")
                    self._next()
                    continue
            if self._limit is not None and self._bytes(connection) >= self._limit:
                _run(connection, "rollback")
                _run(connection, "pragma synchronous = full")
                with _transaction(connection):
                    _run(connection, "update state set sealed = 1")
                self._next()
                continue
            return connection

    def _next(self) -> None:
        assert self._connection is not None
        self._catalog.advance(self._place, self._number, self._wait_s)
        self._helper.finish(self._path(), self._connection)
        self._connection = None

    def _path(self) -> Path:
        return _segment_path(self._catalog.root, self._place, self._number)

    @staticmethod
    def _bytes(connection: sqlite3.Connection) -> int:
        return int(_one(connection, "pragma page_count")[0]) * 4096

    def _store(self, connection: sqlite3.Connection) -> None:
        for partition, pending in self.pending.items():
            start = end = self._end(connection, partition)
            if self._mine.get(partition, start) != start:
                # Their records stand between two of ours: a range would hold both. The other one is newer.
                raise IntegrityError(f"another writer is at work in {self._path()}")
            if pending.compacted:
                for block in pending.blocks:
                    for key, value in unpack(block.data):
                        end = self._replace(connection, partition, key, pack([(key, value)])) + 1
            else:
                for number, data in _rows(pending.blocks):
                    end = self._insert(connection, partition, number, data) + number
            self._mine[partition] = end
            self.written[partition] = Range(self.written.get(partition, Range(start, end)).start, end)
        self.pending.clear()
        self.pending_bytes = 0

    def _insert(self, connection: sqlite3.Connection, partition: int, number: int, data: bytes) -> int:
        offset = self._end(connection, partition)
        block = partition << _OFFSET_BITS | offset
        self._helper.wrote(len(data) + 8192)
        if number == 1 and len(data) > _PIECE_BYTES:
            view = memoryview(data)
            for piece, at in enumerate(range(0, len(view), _PIECE_BYTES)):
                _run(connection, "insert into piece values (?, ?, ?)", block, piece, view[at : at + _PIECE_BYTES])
            _run(connection, "insert into block values (?, 1, null)", block)
        else:
            _run(connection, "insert into block values (?, ?, ?)", block, number, data)
        self._ends[partition] = offset + number
        return offset

    def _replace(self, connection: sqlite3.Connection, partition: int, key: bytes | None, data: bytes) -> int:
        """Insert a record and delete the one before it with the same key: compaction without a cleaner.

        The last record is never deleted, so the end stays known.
        """
        offset = self._insert(connection, partition, 1, data)
        if key is not None:
            before = _one(connection, "select id from latest where partition = ? and key = ?", partition, key)
            if before:
                _run(connection, "delete from block where id = ?", before[0])
                _run(connection, "delete from piece where block = ?", before[0])
            row = (partition, key, partition << _OFFSET_BITS | offset)
            _run(connection, "insert into latest values (?, ?, ?) on conflict do update set id = excluded.id", *row)
        return offset

    def _end(self, connection: sqlite3.Connection, partition: int) -> int:
        end = self._ends.get(partition)
        if end is None:
            end = self._ends[partition] = _end(connection, partition, self._begins.get(partition, 0))
        return end


class _Checkpointer:
    """Copies the WAL into the file in a thread with a connection of its own, off the hot path.

    The WAL begins again only when a commit finds all of it copied, which beside a busy writer never happens by
    itself: from 64 MB on the writer copies the rest, which is little. It could never grow beyond its segment.
    """

    def __init__(self, wait_s: float) -> None:
        self._wait_s = wait_s
        self._written = self._asked = self._try_again = 0
        self._seen = (0, 0)  # how long the WAL was, and after how many bytes written
        self._jobs: queue.SimpleQueue[tuple[Path, int, sqlite3.Connection | None] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._copying = threading.Lock()

    def wrote(self, size: int) -> None:
        self._written += size

    def committed(self, connection: sqlite3.Connection, path: Path) -> None:
        if self._written - self._asked >= _CHECKPOINT_BYTES:
            self._asked = self._written
            self._ask(path, None)
        length, at = self._seen
        if length + self._written - at >= _WAL_BYTES and self._written >= self._try_again:
            # Waits for the helper, and for readers a little: one that is stopped must not stop the writer too.
            with self._copying:
                _all(connection, "pragma busy_timeout = 1000")
                (busy, _, _) = _one(connection, "pragma wal_checkpoint(restart)")
                _all(connection, f"pragma busy_timeout = {int(self._wait_s * 1000)}")
            if busy:
                self._try_again = self._written + _WAL_BYTES // 4
            else:
                self._seen, self._asked = (0, self._written), self._written

    def finish(self, path: Path, connection: sqlite3.Connection) -> None:
        """A segment is sealed: copy what is left and close it."""
        self._ask(path, connection)
        self._seen, self._asked = (0, self._written), self._written

    def close(self) -> None:
        if self._thread is not None:
            self._jobs.put(None)
            self._thread.join()

    def _ask(self, path: Path, connection: sqlite3.Connection | None) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="log checkpoints", daemon=True)
            self._thread.start()
        self._jobs.put((path, self._written, connection))

    def _work(self) -> None:
        mine: sqlite3.Connection | None = None
        current: Path | None = None
        while job := self._jobs.get():
            path, written, finished = job
            # A failure here loses nothing, as the WAL is durable; one that lasts is met by the writer.
            with contextlib.suppress(sqlite3.Error):
                if finished is not None:
                    _all(finished, "pragma wal_checkpoint(truncate)")
                    finished.close()
                    continue
                if mine is None or current != path:
                    if mine is not None:
                        mine.close()
                    mine, current = None, path
                    mine = _connect(path, self._wait_s)
                with self._copying:
                    busy, frames, _ = _one(mine, "pragma wal_checkpoint(passive)")
                    if not busy:
                        self._seen = (frames * 4120, written)
        if mine is not None:
            mine.close()


class _SqliteWriter:
    def __init__(self, catalog: _Catalog, names: Topics, budget: int, wait_s: float, segment_bytes: int) -> None:
        self._catalog, self._names, self._budget = catalog, names, budget
        self._wait_s, self._segment_bytes = wait_s, segment_bytes
        self._tails: dict[str, _Tail] = {}
        self._places: dict[Partition, tuple[_Tail, int, bool]] = {}
        self._by_id: dict[int, Partition] = {}
        self._ranges: dict[Partition, Range] = {}  # since the last seal
        self._dead = False
        self._unchecked, self._next_check = 0, 0.0

    def append(self, partition: Partition, block: Block) -> None:
        with self._alive("append to the log"):
            tail, number, compacted = self._place(partition)
            if count(block.data) != block.count:
                raise IntegrityError(f"a block of {block.count} records holds {count(block.data)}")
            if not block.count:
                return
            if tail not in (self._tails.get("control"), self._tails.get("chunks")):
                self._wait_for_room(len(block.data))
            tail.add(number, compacted, block)
            if tail.pending_bytes >= _PENDING_BYTES:
                tail.write(durable=False)

    def flush(self) -> dict[Partition, Range]:
        with self._alive("flush the log"):
            for tail in self._tails.values():
                tail.write(durable=True)
            return self._take()

    def seal(
        self, partition: Partition, make: Callable[[dict[Partition, Range]], bytes], key: bytes | None = None
    ) -> int:
        with self._alive("seal a step"):
            last, number, compacted = self._place(partition)
            for tail in self._tails.values():
                if tail is not last:
                    tail.write(durable=True)

            def value() -> bytes:
                self._take()
                return make(dict(self._ranges))

            offset = last.seal(number, compacted, key, value)
            self._ranges.clear()
            return offset

    def put(self, partition: Partition, value: bytes | None, key: bytes | None = None) -> int:
        with self._alive("put a record"):
            tail, number, compacted = self._place(partition)
            return tail.seal(number, compacted, key, lambda: value)

    def close(self) -> None:
        for tail in self._tails.values():
            tail.close()
        self._catalog.close()

    @contextmanager
    def _alive(self, what: str) -> Iterator[None]:
        if self._dead:
            raise IntegrityError("this writer has failed before and must not be used again")
        self._dead = True
        with _translated(what):
            yield
        self._dead = False

    def _place(self, partition: Partition) -> tuple[_Tail, int, bool]:
        found = self._places.get(partition)
        if found is None:
            topic = self._catalog.topic(partition)
            place = _place(self._names, partition)
            if place not in self._tails:
                self._tails[place] = _Tail(self._catalog, place, self._wait_s, self._segment_bytes)
            found = self._places[partition] = (self._tails[place], topic.first + partition.number, topic.compacted)
            self._by_id[found[1]] = partition
        return found

    def _take(self) -> dict[Partition, Range]:
        """The ranges written since they were last taken, joined to those of the step."""
        fresh: dict[Partition, Range] = {}
        for tail in self._tails.values():
            for number, added in tail.written.items():
                partition = self._by_id[number]
                fresh[partition] = added
                self._ranges[partition] = Range(self._ranges.get(partition, added).start, added.end)
            tail.written.clear()
        return fresh

    def _wait_for_room(self, size: int) -> None:
        self._unchecked += size
        now = time.monotonic()
        if self._unchecked < _ROOM_BYTES and now < self._next_check:
            return
        deadline = now + self._wait_s
        while (used := self._catalog.used()) >= self._budget:
            if time.monotonic() >= deadline:
                raise LogUnavailable(
                    f"the log has taken {used / 1e9:.2f} GB and may take {self._budget / 1e9:.2f} GB",
                    remedy="look for the target that does not go on (the log is trimmed behind the slowest), or give"
                    " the log more room",
                )
            time.sleep(0.02)
        self._unchecked, self._next_check = 0, time.monotonic() + 0.2


class _Open(NamedTuple):
    connection: sqlite3.Connection
    begin: Mapping[int, int]


class _SqliteReader:
    def __init__(self, catalog: _Catalog, names: Topics, wait_s: float) -> None:
        self.catalog = catalog
        self._names, self._wait_s = names, wait_s
        self._segments: OrderedDict[tuple[str, int], _Open] = OrderedDict()
        self._listener: Listener | None = None
        self._seen: _Contents | None = None

    def records(self, partition: Partition, start: int, limit: int = 1000) -> list[Record]:
        with _translated("read the log"):
            found: list[Record] = []
            for base, data in self._blocks(partition, start, 1 << _OFFSET_BITS, min(limit, 64)):
                for at, (key, value) in enumerate(unpack(data), base):
                    if at >= start:
                        found.append(Record(at, key, value))
                if len(found) >= limit or sum(len(r.value or b"") for r in found[-64:]) > _READ_BYTES:
                    break
            if not found and start > (end := self.offsets(partition).end):
                raise LogRewound(f"offset {start} of {partition.topic}/{partition.number} is beyond its end {end}")
            return found[:limit]

    def wait(self, ends: Mapping[Partition, int], timeout: float) -> bool:
        with _translated("wait for the log"):
            deadline = time.monotonic() + timeout
            if self._listener is None:
                self._listener = Listener()
            for partition in ends:
                self._listener.watch(self.catalog.root / f"{_place(self._names, partition)}.bell")
            while True:
                if any(self.offsets(partition).end > end for partition, end in ends.items()):
                    return True
                left = deadline - time.monotonic()
                if left <= 0:
                    return False
                self._listener.wait(left)

    def read(self, partition: Partition, wanted: Range) -> Iterator[Block]:
        with _translated("read the log"):
            at, end = wanted
            if at >= end:
                return
            if end > (there := self.offsets(partition).end):
                name = f"{partition.topic}/{partition.number}"
                raise LogRewound(f"{name} ends at {there}, before {end}")
            batch: list[bytes] = []
            number = size = 0
            for base, found in self._blocks(partition, at, end, 4):
                data = found
                if base > at:
                    break
                held = count(data)
                if base < at or base + held > end:
                    held = min(base + held, end) - at
                    data = cut(data, at - base, held)
                if batch and size + len(data) > _ROW_BYTES:
                    yield Block(number, b"".join(batch))
                    batch, number, size = [], 0, 0
                batch.append(data)
                number, size, at = number + held, size + len(data), at + held
            if at != end:
                name = f"{partition.topic}/{partition.number}"
                raise GapDetected(f"{name} holds no record at {at}, though it begins before and ends after it")
            yield Block(number, batch[0] if len(batch) == 1 else b"".join(batch))

    def offsets(self, partition: Partition) -> Range:
        """The range that is there, as `Log.offsets` says it."""
        topic = self.catalog.topic(partition)
        number = topic.first + partition.number
        place = _place(self._names, partition)
        while True:
            newest = self.catalog.newest(place)
            start = self.catalog.look().trimmed.get(number, 0)
            if not newest:
                return Range(start, start)
            segment = self._segment(place, newest)
            if segment is None:
                continue
            end = _end(segment.connection, number, segment.begin.get(number, 0))
            if not self._sealed(segment) or self.catalog.newest(place) == newest:
                return Range(start, max(start, end))

    def all_trimmed(self, place: str) -> bool:
        """Whether no record in the newest segment of a place is wanted any more."""
        contents = self.catalog.look()
        newest = self.catalog.newest(place)
        segment = self._segment(place, newest) if newest else None
        if segment is None or place == "control":
            return False
        for name, topic in contents.topics.items():
            for number in range(topic.partitions):
                if _place(self._names, Partition(name, number)) == place:
                    partition = topic.first + number
                    begin = segment.begin.get(partition, 0)
                    if max(contents.trimmed.get(partition, 0), begin) < _end(segment.connection, partition, begin):
                        return False
        return True

    def close(self) -> None:
        for segment in self._segments.values():
            segment.connection.close()
        self._segments.clear()
        if self._listener is not None:
            self._listener.close()
        self.catalog.close()

    def _blocks(self, partition: Partition, start: int, end: int, rows: int) -> Iterator[tuple[int, bytes]]:
        """Yield first offset and data of the blocks that hold `[start, end)`, the first and last not cut.

        `rows` is how many to ask for at first: nothing is held open between two answers, as that would keep the
        WAL from ending, so each answer is in memory as a whole.
        """
        topic = self.catalog.topic(partition)
        number = topic.first + partition.number
        place = _place(self._names, partition)
        low = number << _OFFSET_BITS
        at = start
        while at < end:
            trimmed = self.catalog.look().trimmed.get(number, 0)
            if at < trimmed:
                name = f"{partition.topic}/{partition.number}"
                raise LogRewound(f"{name} begins at {trimmed}: what was at {at} has been trimmed")
            segment, finish = self._holding(place, number, at)
            if segment is None:
                return
            parameters = {"low": low, "from": low | at, "to": low + min(end, finish or end), "rows": rows}
            found = _all_named(segment.connection, _BLOCKS_FROM, parameters)
            size = 0
            before = at
            for block, held, stored in found:
                base = block & _OFFSET_MASK
                if base + held <= at:
                    continue  # the one before a hole, or before the end
                data = stored if stored is not None else _join_pieces(segment.connection, block)
                size += len(data)
                yield base, data
                at = base + held
            if found:
                rows = max(1, min(4096, _READ_BYTES * len(found) // max(size, 1)))
            if at == before:
                if finish is not None:
                    at = finish  # a sealed segment with a hole at its end
                elif not self._sealed(segment) or self._holding(place, number, at)[0] is segment:
                    return

    def _holding(self, place: str, partition: int, offset: int) -> tuple[_Open | None, int | None]:
        """The segment with this offset, and where the partition ends in it; None for the end: it is still written."""
        while True:
            newest = self.catalog.newest(place)
            if not newest:
                return None, None
            segment = self._segment(place, newest)
            if segment is None:
                continue
            if segment.begin.get(partition, 0) <= offset:
                return segment, None
            sealed = self.catalog.segment_of(place, partition, offset)
            if sealed is None:
                return None, None
            if (segment := self._segment(place, sealed[0])) is not None:
                return segment, sealed[1]

    def _segment(self, place: str, number: int) -> _Open | None:
        """Open a segment; None if it has been dropped, so that the catalogue says something else now."""
        contents = self.catalog.look()
        if contents is not self._seen:
            self._seen = contents
            there = {(name, row[0]) for name, rows in contents.segments.items() for row in rows}
            for gone in self._segments.keys() - there:  # held open they would still take their room
                self._segments.pop(gone).connection.close()
        segment = self._segments.get((place, number))
        if segment is None:
            path = _segment_path(self.catalog.root, place, number)
            try:
                connection = _connect(path, self._wait_s)
            except sqlite3.OperationalError:
                if path.exists() or number in dict(self.catalog.look().segments.get(place, [])):
                    raise
                return None
            _run(connection, "pragma query_only = on")
            segment = _Open(connection, dict(_all(connection, "select partition, start from begin")))
            self._segments[place, number] = segment
            if len(self._segments) > _OPEN_SEGMENTS:
                self._segments.popitem(last=False)[1].connection.close()
        self._segments.move_to_end((place, number))
        return segment

    @staticmethod
    def _sealed(segment: _Open) -> bool:
        return bool(_one(segment.connection, "select sealed from state")[0])


def _place(names: Topics, partition: Partition) -> str:
    topic = partition.topic
    if topic.startswith(f"{names.prefix}load."):
        return f"load-{partition.number}"
    if topic == names.chunks.topic:
        return "chunks"
    if topic in (names.tables.topic, names.control.topic, names.work):
        return "control"
    return "changes"


def _rows(blocks: list[Block]) -> Iterator[tuple[int, bytes]]:
    """Join small blocks and cut large ones, so that a stored row is at most 1 MB, or one record."""
    batch: list[bytes] = []
    number = size = 0
    for block in blocks:
        for held, data in _cut(block.count, block.data):
            if batch and size + len(data) > _ROW_BYTES:
                yield number, b"".join(batch)
                batch, number, size = [], 0, 0
            batch.append(data)
            number, size = number + held, size + len(data)
    if batch:
        yield number, batch[0] if len(batch) == 1 else b"".join(batch)


def _cut(number: int, data: bytes) -> Iterator[tuple[int, bytes]]:
    if len(data) <= _ROW_BYTES or number == 1:
        yield number, data
        return
    take = -(-number // -(-len(data) // _ROW_BYTES))
    for skip in range(0, number, take):
        held = min(take, number - skip)
        yield from _cut(held, cut(data, skip, held))  # again, if sizes differ much


def _join_pieces(connection: sqlite3.Connection, block: int) -> bytes:
    joined = io.BytesIO()  # hands its buffer over, where joining a list would hold everything twice
    (pieces,) = _one(connection, "select count(*) from piece where block = ?", block)
    for piece in range(pieces):
        joined.write(_one(connection, "select data from piece where block = ? and number = ?", block, piece)[0])
    return joined.getvalue()


def _end(connection: sqlite3.Connection, partition: int, begin: int) -> int:
    row = _one(
        connection,
        "select id, count from block where id >= ? and id < ? order by id desc limit 1",
        partition << _OFFSET_BITS,
        (partition + 1) << _OFFSET_BITS,
    )
    return (row[0] & _OFFSET_MASK) + row[1] if row else begin


def _segment_path(root: Path, place: str, number: int) -> Path:
    return root / f"{place}.{number:06}.db"


def _inode(path: Path) -> int:
    """Tell whether a path is still the same file; 0 if there is none."""
    try:
        return os.stat(path).st_ino
    except FileNotFoundError:
        return 0


def _file_bytes(path: Path) -> int:
    total = 0
    for suffix in ("", "-wal"):
        with contextlib.suppress(FileNotFoundError):
            total += os.stat(f"{path}{suffix}").st_size
    return total


def _unlink(path: Path) -> None:
    for suffix in ("", "-wal", "-shm"):
        Path(f"{path}{suffix}").unlink(missing_ok=True)


def _make_file(path: Path, schema: str, begin: Mapping[int, int] | None = None) -> None:
    """Make a file under another name and give it its own when it is whole; one that is there already stays."""
    fresh = path.with_name(f"{path.name}.{os.getpid()}-{threading.get_ident()}")
    connection = sqlite3.connect(fresh, isolation_level=None)
    try:
        for statement in ("journal_mode = wal", "synchronous = full", f"user_version = {_FORMAT}"):
            connection.execute(f"pragma {statement}").close()
        connection.executescript(f"begin; {schema} commit;").close()
        if begin:
            connection.execute("begin").close()
            connection.executemany("insert into begin values (?, ?)", begin.items()).close()
            connection.execute("commit").close()
    finally:
        connection.close()  # the last one to leave ends the WAL, so that one file is all there is
    with contextlib.suppress(FileExistsError):
        os.link(fresh, path)
    _unlink(fresh)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _connect(path: Path, wait_s: float) -> sqlite3.Connection:
    """Open a file that is there: SQLite would make a missing one."""
    connection = sqlite3.connect(
        f"file:{quote(str(path))}?mode=rw", uri=True, isolation_level=None, timeout=wait_s, check_same_thread=False
    )
    try:
        _run(connection, "pragma fullfsync = on")  # macOS: its fsync does not reach the disk
        (found,) = _one(connection, "pragma user_version")
    except BaseException:
        connection.close()
        raise
    if found != _FORMAT:
        connection.close()
        raise PrerequisiteMissing(
            f"{path} is of format {found}, and this version reads format {_FORMAT}",
            remedy="use the version of the program that wrote it",
        )
    return connection


@contextmanager
def _transaction(connection: sqlite3.Connection, begin: str = "begin immediate") -> Iterator[None]:
    # Immediate: a transaction that reads first and writes after another's commit fails without waiting.
    _run(connection, begin)
    try:
        yield
        _run(connection, "commit")
    except BaseException:
        with contextlib.suppress(sqlite3.Error):
            _run(connection, "rollback")
        raise


def _run(connection: sqlite3.Connection, statement: str, *parameters: object) -> None:
    connection.execute(statement, parameters).close()


# A cursor that is not read to its end holds a read transaction, and the WAL grows: `fetchall`, always.
def _all(connection: sqlite3.Connection, statement: str, *parameters: object) -> list[Any]:
    return connection.execute(statement, parameters).fetchall()


def _all_named(connection: sqlite3.Connection, statement: str, parameters: Mapping[str, int]) -> list[Any]:
    return connection.execute(statement, parameters).fetchall()


def _one(connection: sqlite3.Connection, statement: str, *parameters: object) -> Any:
    rows = connection.execute(statement, parameters).fetchall()
    return rows[0] if rows else None


@contextmanager
def _translated(what: str) -> Iterator[None]:
    """Turn SQLite's errors into ours; what is neither the disk's nor the file's fault is a mistake of this module."""
    try:
        yield
    except ReplicationError:
        raise
    except sqlite3.Error as error:
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        if code in _UNAVAILABLE:
            remedy = "free room on the log's disk" if code == sqlite3.SQLITE_FULL else ""
            raise LogUnavailable(f"cannot {what}: {error}", remedy=remedy) from error
        if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
            raise IntegrityError(f"cannot {what}: {error}") from error
        raise
    except OSError as error:
        raise LogUnavailable(f"cannot {what}: {error}") from error


def _network_system(path: Path) -> str | None:
    """The type of the file system, if it is one over a network; None where that cannot be told."""
    try:
        lines = Path("/proc/self/mountinfo").read_text().splitlines()
    except OSError:
        return None
    there = str(path.resolve())
    best, found = "", None
    for line in lines:
        before, _, after = line.partition(" - ")
        mount = re.sub(r"\\(\d{3})", lambda octal: chr(int(octal[1], 8)), before.split()[4])  # a space is \040
        if len(mount) >= len(best) and (there == mount or there.startswith(mount.rstrip("/") + "/")):
            best, found = mount, after.split()[0]
    return found if found and _NETWORK_SYSTEMS.fullmatch(found) else None


def _network_problem(path: Path, system: str) -> tuple[str, str]:
    return f"{path} is on a network file system ({system}), where SQLite's log does not work", "use a local disk"
