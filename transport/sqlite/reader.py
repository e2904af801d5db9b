"""Reads control records and ranges of blocks, and waits for more."""

from __future__ import annotations

import sqlite3
import time
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from codec.frames import count, cut, unpack
from schemas.errors import GapDetected, LogRewound
from transport.log import Block, Partition, Range, Record
from transport.sqlite.bell import Listener
from transport.sqlite.blocks import BLOCKS_FROM, OFFSET_BITS, OFFSET_MASK, ROW_BYTES, end_of, join_pieces
from transport.sqlite.catalog import Catalog, Contents, place_of
from transport.sqlite.connection import connect, fetch, fetch_named, fetch_one, run, translated
from transport.sqlite.disk import segment_path
from transport.topics import Topics

_READ_BYTES = 4 << 20
_OPEN_SEGMENTS = 16


class _Open(NamedTuple):
    connection: sqlite3.Connection
    begin: Mapping[int, int]


class SqliteReader:
    def __init__(self, catalog: Catalog, names: Topics, wait_s: float) -> None:
        self.catalog = catalog
        self._names, self._wait_s = names, wait_s
        self._segments: OrderedDict[tuple[str, int], _Open] = OrderedDict()
        self._listener: Listener | None = None
        self._seen: Contents | None = None

    def records(self, partition: Partition, start: int, limit: int = 1000, *, fresh: bool = True) -> list[Record]:
        with translated("read the log"):
            # Asked first: the newest block may be large, and at the end of a partition nothing of it is wanted.
            end = self.offsets(partition).end
            if start > end:
                raise LogRewound(f"offset {start} of {partition.topic}/{partition.number} is beyond its end {end}")
            found: list[Record] = []
            if start == end:
                return found
            for base, data in self._blocks(partition, start, 1 << OFFSET_BITS, min(limit, 64)):
                for at, (key, value) in enumerate(unpack(data), base):
                    if at >= start:
                        found.append(Record(at, key, value))
                if len(found) >= limit or sum(len(r.value or b"") for r in found[-64:]) > _READ_BYTES:
                    break
            return found[:limit]

    def wait(self, ends: Mapping[Partition, int], timeout: float) -> bool:
        with translated("wait for the log"):
            deadline = time.monotonic() + timeout
            if self._listener is None:
                self._listener = Listener()
            for partition in ends:
                self._listener.watch(self.catalog.root / f"{place_of(self._names, partition)}.bell")
            while True:
                if any(self.offsets(partition).end > end for partition, end in ends.items()):
                    return True
                left = deadline - time.monotonic()
                if left <= 0:
                    return False
                self._listener.wait(left)

    def read(self, partition: Partition, wanted: Range) -> Iterator[Block]:
        with translated("read the log"):
            at, end = wanted
            if at >= end:
                return
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
                if batch and size + len(data) > ROW_BYTES:
                    yield Block(number, b"".join(batch))
                    batch, number, size = [], 0, 0
                batch.append(data)
                number, size, at = number + held, size + len(data), at + held
            if at != end:
                name = f"{partition.topic}/{partition.number}"
                if end > (there := self.offsets(partition).end):
                    raise LogRewound(f"{name} ends at {there}, before {end}")
                raise GapDetected(f"{name} holds no record at {at}, though it begins before and ends after it")
            yield Block(number, batch[0] if len(batch) == 1 else b"".join(batch))

    def offsets(self, partition: Partition) -> Range:
        """The range that is there, as `Log.offsets` says it."""
        topic = self.catalog.topic(partition)
        number = topic.first + partition.number
        place = place_of(self._names, partition)
        while True:
            newest = self.catalog.newest(place)
            start = self.catalog.look().trimmed.get(number, 0)
            if not newest:
                return Range(start, start)
            segment = self._segment(place, newest)
            if segment is None:
                continue
            end = end_of(segment.connection, number, segment.begin.get(number, 0))
            if not self._sealed(segment) or self.catalog.newest(place) == newest:
                return Range(start, max(start, end))

    def all_trimmed(self, place: str) -> bool:
        """Whether no record in the newest segment of a place is wanted any more."""
        contents = self.catalog.look()
        newest = self.catalog.newest(place)
        segment = self._segment(place, newest) if newest else None
        if segment is None:
            return False
        for name, topic in contents.topics.items():
            for number in range(topic.partitions):
                if place_of(self._names, Partition(name, number)) == place:
                    partition = topic.first + number
                    begin = segment.begin.get(partition, 0)
                    if max(contents.trimmed.get(partition, 0), begin) < end_of(segment.connection, partition, begin):
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
        place = place_of(self._names, partition)
        low = number << OFFSET_BITS
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
            found = fetch_named(segment.connection, BLOCKS_FROM, parameters)
            size = 0
            before = at
            for block, held, stored in found:
                base = block & OFFSET_MASK
                if base + held <= at:
                    continue  # the last one, which ends before
                data = stored if stored is not None else join_pieces(segment.connection, block)
                size += len(data)
                yield base, data
                at = base + held
            if found:
                rows = max(1, min(4096, _READ_BYTES * len(found) // max(size, 1)))
            if at == before:
                if finish is not None:
                    at = finish  # a sealed segment that has lost its end: the next one's beginning tells
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
            path = segment_path(self.catalog.root, place, number)
            try:
                connection = connect(path, self._wait_s)
            except sqlite3.OperationalError:
                if path.exists() or number in dict(self.catalog.look().segments.get(place, [])):
                    raise
                return None
            run(connection, "pragma query_only = on")
            segment = _Open(connection, dict(fetch(connection, "select partition, start from begin")))
            self._segments[place, number] = segment
            if len(self._segments) > _OPEN_SEGMENTS:
                self._segments.popitem(last=False)[1].connection.close()
        self._segments.move_to_end((place, number))
        return segment

    @staticmethod
    def _sealed(segment: _Open) -> bool:
        return bool(fetch_one(segment.connection, "select sealed from state")[0])
