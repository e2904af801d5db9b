"""The catalogue of a log: topics, segments, where which range is, what is trimmed."""

from __future__ import annotations

import bisect
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from schemas.errors import LogRewound
from transport.log import Partition
from transport.sqlite.blocks import OFFSET_BITS, SEGMENT, end_of
from transport.sqlite.connection import connect, fetch, fetch_one, make_file, run, transaction
from transport.sqlite.disk import file_bytes, inode_of, segment_path, unlink
from transport.topics import Topics

CATALOG = """
create table topic (
    name text primary key, first integer not null, partitions integer not null, identity text not null
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


class TopicRow(NamedTuple):
    first: int  # its partitions are this id and those that follow; ids are never used again
    partitions: int
    identity: str


@dataclass(frozen=True, slots=True)
class Contents:
    """What the catalogue says."""

    topics: Mapping[str, TopicRow]
    segments: Mapping[str, list[tuple[int, int | None]]]  # by place: number, and size once sealed
    trimmed: Mapping[int, int]


class Catalog:
    """The catalogue of one log: one connection, and what it says, read again when it has changed."""

    def __init__(self, root: Path, wait_s: float) -> None:
        self.root = root
        self._connection = connect(root / "catalog.db", wait_s)
        self._inode = inode_of(root / "catalog.db")
        run(self._connection, "pragma synchronous = full")
        self._version = -1
        self._contents = Contents({}, {}, {})

    def look(self) -> Contents:
        (version,) = fetch_one(self._connection, "pragma data_version")
        if version != self._version:
            segments: dict[str, list[tuple[int, int | None]]] = {}
            with transaction(self._connection, "begin"):
                topics = fetch(self._connection, "select name, first, partitions, identity from topic")
                for place, number, size in fetch(self._connection, "select * from segment order by place, number"):
                    segments.setdefault(place, []).append((number, size))
                trimmed = dict(fetch(self._connection, "select partition, start from trimmed"))
            rows = {name: TopicRow(*row) for name, *row in topics}
            self._contents, self._version = Contents(rows, segments, trimmed), version
        return self._contents

    def is_there(self) -> bool:
        """Whether this is still the log's catalogue, not one that was removed."""
        return inode_of(self.root / "catalog.db") == self._inode

    def topic(self, partition: Partition) -> TopicRow:
        topic = self.look().topics.get(partition.topic)
        if topic is None or partition.number >= topic.partitions:
            raise LogRewound(f"the log in {self.root} has no {partition.topic}/{partition.number}")
        return topic

    @contextmanager
    def change(self) -> Iterator[sqlite3.Connection]:
        """One transaction, durable at its end."""
        with transaction(self._connection):
            yield self._connection
        self._version = -1  # one's own commits do not count as a change

    def newest(self, place: str) -> int:
        """The number of the segment that is written now; 0: none yet."""
        segments = self.look().segments.get(place)
        return segments[-1][0] if segments else 0

    def segment_of(self, place: str, partition: int, offset: int) -> tuple[int, int] | None:
        """Which sealed segment holds an offset, and where in it the partition ends."""
        row = fetch_one(
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
            (newest,) = fetch_one(connection, "select coalesce(max(number), 0) from segment where place = ?", place)
            if newest != number:
                return
            ends: dict[int, int] = {}
            if number:
                old = connect(segment_path(self.root, place, number), wait_s)
                try:
                    ends = self._close_off(connection, place, number, old)
                finally:
                    old.close()
            path = segment_path(self.root, place, number + 1)
            unlink(path)  # of a process that died here
            make_file(path, SEGMENT, begin=ends)
            run(connection, "insert into segment values (?, ?, null)", place, number + 1)

    def dead(self) -> list[tuple[str, int]]:
        """The sealed segments that nothing is asked from any more."""
        return fetch(
            self._connection,
            "select place, number from segment as s where bytes is not null and not exists ("
            "select 1 from extent as e where e.place = s.place and e.number = s.number)",
        )

    def used(self) -> int:
        """The bytes of all segments, without walking the folder."""
        total = 0
        for place, segments in self.look().segments.items():
            for number, size in segments:
                total += file_bytes(segment_path(self.root, place, number)) if size is None else size
        return total

    def close(self) -> None:
        self._connection.close()

    @staticmethod
    def _close_off(connection: sqlite3.Connection, place: str, number: int, old: sqlite3.Connection) -> dict[int, int]:
        """Write down which ranges a sealed segment holds, and return where each partition stands after it."""
        live = fetch(connection, "select first, first + partitions from topic order by first")

        def lives(partition: int) -> bool:
            at = bisect.bisect_right(live, partition, key=lambda row: row[0]) - 1
            return at >= 0 and bool(partition < live[at][1])

        ends = {n: start for n, start in fetch(old, "select partition, start from begin") if lives(n)}
        at = 0
        while found := fetch_one(old, "select id from block where id >= ? order by id limit 1", at):
            partition = found[0] >> OFFSET_BITS
            at = (partition + 1) << OFFSET_BITS
            if lives(partition):
                start, end = ends.get(partition, 0), end_of(old, partition, 0)
                ends[partition] = end
                trimmed = fetch_one(connection, "select start from trimmed where partition = ?", partition)
                if not trimmed or end > trimmed[0]:
                    row = (place, partition, start, end, number)
                    run(connection, "insert into extent values (?, ?, ?, ?, ?)", *row)
        pages, size = fetch_one(old, "pragma page_count")[0], fetch_one(old, "pragma page_size")[0]
        run(connection, "update segment set bytes = ? where place = ? and number = ?", pages * size, place, number)
        return ends


def place_of(names: Topics, partition: Partition) -> str:
    topic = partition.topic
    if topic.startswith(f"{names.prefix}load."):
        return f"load-{partition.number}"
    if topic == names.chunks.topic:
        return "chunks"
    if topic == names.events.topic:
        return "events"
    if topic in (names.tables.topic, names.control.topic, names.work):
        return "control"
    return "changes"
