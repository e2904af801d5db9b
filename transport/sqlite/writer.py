"""Writes blocks and the records that seal them, within the disk budget."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from codec.frames import count
from schemas.errors import IntegrityError, LogUnavailable
from transport.log import Block, Partition, Range
from transport.sqlite.catalog import Catalog, place_of
from transport.sqlite.connection import translated
from transport.sqlite.tail import Tail
from transport.topics import Topics

_PENDING_BYTES = 16 << 20  # of a step that are held before they are written without their frontier
_ROOM_BYTES = 4 << 20  # written between two looks at the disk budget


class SqliteWriter:
    def __init__(self, catalog: Catalog, names: Topics, budget: int, wait_s: float, segment_bytes: int) -> None:
        self._catalog, self._names, self._budget = catalog, names, budget
        self._wait_s, self._segment_bytes = wait_s, segment_bytes
        self._tails: dict[str, Tail] = {}
        self._places: dict[Partition, tuple[Tail, int]] = {}
        self._by_id: dict[int, Partition] = {}
        self._ranges: dict[Partition, Range] = {}  # since the last seal
        self._dead = False
        self._unchecked, self._next_check = 0, 0.0

    def append(self, partition: Partition, block: Block) -> int:
        with self._alive("append to the log"):
            tail, number = self._place(partition)
            if count(block.data) != block.count:
                raise IntegrityError(f"a block of {block.count} records holds {count(block.data)}")
            if not block.count:
                return 0
            if tail not in (self._tails.get("control"), self._tails.get("chunks")):
                self._wait_for_room(len(block.data))
            tail.add(number, block)
            if tail.pending_bytes >= _PENDING_BYTES:
                tail.write(durable=False)
            return block.count

    def flush(self) -> dict[Partition, Range]:
        with self._alive("flush the log"):
            for tail in self._tails.values():
                tail.write(durable=True)
            return self._take()

    def seal(
        self, partition: Partition, make: Callable[[dict[Partition, Range]], bytes], key: bytes | None = None
    ) -> int:
        with self._alive("seal a step"):
            last, number = self._place(partition)
            for tail in self._tails.values():
                if tail is not last:
                    tail.write(durable=True)

            def value() -> bytes:
                self._take()
                return make(dict(self._ranges))

            offset = last.seal(number, key, value)
            self._ranges.clear()
            return offset

    def put(self, partition: Partition, value: bytes | None, key: bytes | None = None) -> int:
        with self._alive("put a record"):
            tail, number = self._place(partition)
            return tail.seal(number, key, lambda: value)

    def put_all(self, partition: Partition, values: Sequence[bytes]) -> None:
        with self._alive("put records"):
            tail, number = self._place(partition)
            tail.put_all(number, values)

    def close(self) -> None:
        for tail in self._tails.values():
            tail.close()
        self._catalog.close()

    @contextmanager
    def _alive(self, what: str) -> Iterator[None]:
        if self._dead:
            raise IntegrityError("this writer has failed before and must not be used again")
        self._dead = True
        with translated(what):
            yield
        self._dead = False

    def _place(self, partition: Partition) -> tuple[Tail, int]:
        found = self._places.get(partition)
        if found is None:
            topic = self._catalog.topic(partition)
            place = place_of(self._names, partition)
            if place not in self._tails:
                self._tails[place] = Tail(self._catalog, place, self._wait_s, self._segment_bytes)
            found = self._places[partition] = (self._tails[place], topic.first + partition.number)
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
