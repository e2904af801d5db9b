"""A log in memory, for unit tests and the simulation: small enough to be judged by reading."""

from __future__ import annotations

import bisect
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import NamedTuple

from codec.frames import pack, unpack
from schemas.errors import IntegrityError, LogRewound
from transport.log import WORK_PARTITIONS, Block, Partition, Range, Record, Topic, Usage
from transport.topics import Topics

_BLOCK_BYTES = 1 << 20


@dataclass(slots=True)
class _Sequence:
    """The records of one partition; trimming raises `start`."""

    start: int = 0
    end: int = 0
    records: list[Record] = field(default_factory=list)

    def add(self, key: bytes | None, value: bytes | None) -> int:
        self.records.append(Record(self.end, key, value))
        self.end += 1
        return self.end - 1

    def at(self, offset: int) -> int:
        """Where in `records` the first one at or after `offset` is."""
        return bisect.bisect_left(self.records, offset, key=lambda record: record.offset)


class _Made(NamedTuple):
    topic: Topic
    identity: str
    partitions: tuple[_Sequence, ...]


class MemoryLog:
    """Keeps everything in this process and answers at once; safe for threads.

    As the protocol allows, either nothing of a writer is seen before `flush`, or, with `eager`, every appended
    record is there at once and stays if its writer dies, as in Kafka. The simulation wants the latter.
    """

    shared_topics: int | None = None

    def __init__(self, pipeline: str, *, eager: bool = False) -> None:
        self._pipeline, self._eager = pipeline, eager
        self._made: dict[str, _Made] = {}
        self._groups: dict[str, list[_MemoryMembership]] = {}
        self._changed = threading.Condition()

    def create_topics(self, topics: list[Topic]) -> None:
        with self._changed:
            for topic in topics:
                if topic.name not in self._made:
                    sequences = tuple(_Sequence() for _ in range(topic.partitions))
                    self._made[topic.name] = _Made(topic, uuid.uuid4().hex, sequences)

    def delete_topics(self, names: list[str]) -> None:
        with self._changed:
            for name in names:
                self._made.pop(name, None)

    def topics(self, prefix: str) -> list[Topic]:
        with self._changed:
            return [made.topic for name, made in sorted(self._made.items()) if name.startswith(prefix)]

    def offsets(self, partition: Partition) -> Range:
        with self._changed:
            sequence = self._sequence(partition)
            return Range(sequence.start, sequence.end)

    def trim(self, partition: Partition, offset: int) -> None:
        with self._changed:
            sequence = self._sequence(partition)
            sequence.start = max(sequence.start, min(offset, sequence.end))
            del sequence.records[: sequence.at(sequence.start)]

    def identity(self) -> str:
        with self._changed:
            made = self._made.get(Topics(self._pipeline).frontier.topic)
        if made is None:
            raise LogRewound(f"there is no log of pipeline {self._pipeline}")
        return made.identity

    def usage(self) -> Usage:
        with self._changed:
            return Usage(
                sum(
                    len(record.key or b"") + len(record.value or b"")
                    for made in self._made.values()
                    for sequence in made.partitions
                    for record in sequence.records
                ),
                0,
            )

    @contextmanager
    def writer(self, purpose: str) -> Iterator[_MemoryWriter]:
        yield _MemoryWriter(self, self._eager)

    @contextmanager
    def reader(self) -> Iterator[_MemoryReader]:
        yield _MemoryReader(self)

    @contextmanager
    def membership(self, group: str) -> Iterator[_MemoryMembership]:
        with self._changed:
            members = self._groups.setdefault(group, [])
            member = _MemoryMembership(members)
            members.append(member)
        try:
            yield member
        finally:
            with self._changed:
                members.remove(member)

    def problems(self) -> list[tuple[str, str]]:
        return [("the log is kept in memory and gone with the process", "use a folder or Kafka")]

    def close(self) -> None:
        """There is nothing to free."""

    def _sequence(self, partition: Partition) -> _Sequence:
        made = self._made.get(partition.topic)
        if made is None or partition.number >= len(made.partitions):
            raise LogRewound(f"the log has no {partition.topic}/{partition.number}")
        return made.partitions[partition.number]


class _MemoryWriter:
    """Its ranges are checked as Kafka's are, so that a second writer is found out in the same way."""

    def __init__(self, log: MemoryLog, eager: bool) -> None:
        self._log, self._eager, self._dead = log, eager, False
        self._pending: list[tuple[Partition, list[tuple[bytes | None, bytes | None]]]] = []
        self._fresh: dict[Partition, Range] = {}  # since the last flush
        self._flushed: dict[Partition, Range] = {}  # since the last seal
        self._ends: dict[Partition, int] = {}

    def append(self, partition: Partition, block: Block) -> int:
        with self._alive():
            records = unpack(block.data)
            if len(records) != block.count:
                raise IntegrityError(f"a block of {block.count} records holds {len(records)}")
            if self._eager:
                self._write(partition, records)
            else:
                self._log._sequence(partition)
                self._pending.append((partition, records))
            return block.count

    def flush(self) -> dict[Partition, Range]:
        with self._alive():
            return self._flush()

    def seal(
        self, partition: Partition, make: Callable[[dict[Partition, Range]], bytes], key: bytes | None = None
    ) -> int:
        with self._alive():
            self._flush()
            value = make(dict(self._flushed))
            self._flushed.clear()
            return self._put(partition, key, value)

    def put(self, partition: Partition, value: bytes | None, key: bytes | None = None) -> int:
        with self._alive():
            return self._put(partition, key, value)

    def put_all(self, partition: Partition, values: Sequence[bytes]) -> None:
        with self._alive():
            for value in values:
                self._put(partition, None, value)

    @contextmanager
    def _alive(self) -> Iterator[None]:
        if self._dead:
            raise IntegrityError("this writer has failed before and must not be used again")
        with self._log._changed:
            try:
                yield
            except BaseException:
                self._dead = True
                raise
            self._log._changed.notify_all()

    def _put(self, partition: Partition, key: bytes | None, value: bytes | None) -> int:
        return self._log._sequence(partition).add(key, value)

    def _flush(self) -> dict[Partition, Range]:
        for partition, records in self._pending:
            self._write(partition, records)
        self._pending.clear()
        fresh, self._fresh = self._fresh, {}
        for partition, added in fresh.items():
            before = self._flushed.get(partition, added)
            self._flushed[partition] = Range(before.start, added.end)
        return fresh

    def _write(self, partition: Partition, records: list[tuple[bytes | None, bytes | None]]) -> None:
        if not records:
            return
        sequence = self._log._sequence(partition)
        if self._ends.get(partition, sequence.end) != sequence.end:
            raise IntegrityError(f"another writer is at {partition.topic}/{partition.number}")
        first = sequence.end
        for key, value in records:
            sequence.add(key, value)
        self._ends[partition] = sequence.end
        self._fresh[partition] = Range(self._fresh.get(partition, Range(first, first)).start, sequence.end)


class _MemoryReader:
    def __init__(self, log: MemoryLog) -> None:
        self._log = log

    def records(self, partition: Partition, start: int, limit: int = 1000, *, fresh: bool = True) -> list[Record]:
        with self._log._changed:
            sequence = self._log._sequence(partition)
            if not sequence.start <= start <= sequence.end:
                raise LogRewound(f"offset {start} is not within {sequence.start}..{sequence.end} of {partition}")
            at = sequence.at(start)
            return sequence.records[at : at + limit]

    def wait(self, ends: Mapping[Partition, int], timeout: float) -> bool:
        deadline = time.monotonic() + timeout
        with self._log._changed:
            while not any(self._log._sequence(partition).end > end for partition, end in ends.items()):
                left = deadline - time.monotonic()
                if left <= 0:
                    return False
                self._log._changed.wait(left)
            return True

    def read(self, partition: Partition, wanted: Range) -> Iterator[Block]:
        with self._log._changed:
            sequence = self._log._sequence(partition)
            if not sequence.start <= wanted.start <= wanted.end <= sequence.end:
                raise LogRewound(f"{wanted} is not within {sequence.start}..{sequence.end} of {partition}")
            records = sequence.records[sequence.at(wanted.start) : sequence.at(wanted.end)]
        batch: list[tuple[bytes | None, bytes | None]] = []
        size = 0
        for _, key, value in records:
            more = 8 + len(key or b"") + len(value or b"")
            if batch and size + more > _BLOCK_BYTES:
                yield Block(len(batch), pack(batch))
                batch, size = [], 0
            batch.append((key, value))
            size += more
        if batch:
            yield Block(len(batch), pack(batch))


class _MemoryMembership:
    def __init__(self, members: list[_MemoryMembership]) -> None:
        self._members = members

    def poll(self) -> frozenset[int]:
        rank, count = self._members.index(self), len(self._members)
        return frozenset(range(rank, WORK_PARTITIONS, count))
