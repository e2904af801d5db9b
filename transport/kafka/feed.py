"""A consumer with a window on each partition that is read."""

from __future__ import annotations

import bisect
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from confluent_kafka import Consumer, KafkaError, TopicPartition

from schemas.errors import LogRewound, LogUnavailable
from transport.kafka.cluster import Cluster
from transport.kafka.errors import ABSENT, DENIED, Faults, failure, name_of
from transport.log import Partition, Record

_WINDOW_BYTES = 32 << 20  # fetched records that a consumer's windows hold together
UNUSED_S = 1.0  # after which a partition is taken away from the data consumer

Pair = tuple[bytes | None, bytes | None]


@dataclass(slots=True)
class Window:
    """What was fetched of a partition: every record there is in `[low, at)`; those from `at` on are still to come.

    Lists side by side, as a record of its own for each row would cost more than all else that is done with it.
    """

    low: int
    at: int
    used: float
    offsets: list[int] = field(default_factory=list)
    pairs: list[Pair] = field(default_factory=list)  # key and value
    reaches: list[int] = field(default_factory=lambda: [0])  # bytes before each record, and after the last one
    end: int = -1  # where the broker last had no more
    error: KafkaError | None = None

    def add(self, offset: int, key: bytes | None, value: bytes | None) -> int:
        more = 100 + (len(key) if key else 0) + (len(value) if value else 0)
        self.at = offset + 1
        self.offsets.append(offset)
        self.pairs.append((key, value))
        self.reaches.append(self.reaches[-1] + more)
        return more

    @property
    def size(self) -> int:
        return self.reaches[-1] - self.reaches[0]

    def holds(self, start: int) -> bool:
        """Whether there is a record at or after `start`."""
        return bool(self.offsets) and self.offsets[-1] >= start

    def records(self, start: int, limit: int) -> list[Record]:
        first = bisect.bisect_left(self.offsets, start)
        found = zip(self.offsets[first : first + limit], self.pairs[first : first + limit], strict=True)
        return [Record(offset, key, value) for offset, (key, value) in found]

    def take(self, start: int, end: int, room: int) -> tuple[list[Pair], int]:
        """Return the records at and after `start`, up to the first hole or `end`, and their size: as many as have
        room, and one if there is any."""
        first = bisect.bisect_left(self.offsets, start)
        if first == len(self.offsets) or self.offsets[first] != start:
            return [], 0
        before = self.reaches[first]
        last = min(bisect.bisect_left(self.offsets, end), bisect.bisect_right(self.reaches, before + room) - 1)
        last = max(last, first + 1)
        while self.offsets[last - 1] - start != last - 1 - first:
            last -= 1
        return self.pairs[first:last], self.reaches[last] - before

    def forget(self, below: int) -> int:
        """Drop the records before an offset and return how many bytes that frees."""
        first = bisect.bisect_left(self.offsets, below)
        self.low = max(self.low, below)
        freed = self.reaches[first] - self.reaches[0]
        del self.offsets[:first], self.pairs[:first], self.reaches[:first]
        return freed


class Feed:
    """A consumer to which partitions are assigned when somebody asks for them, and a window on each.

    A window keeps what was read as long as there is room, because several views read the same records.
    """

    def __init__(self, cluster: Cluster, group: str, wait_ms: int) -> None:
        self._cluster, self._faults = cluster, Faults()
        self._known: set[tuple[str, int]] = set()
        self._windows: dict[tuple[str, int], Window] = {}
        self._size = 0
        settings = {
            # Assigned by hand and never committed: the group is only a name that the client wants.
            "group.id": group,
            "enable.auto.commit": False,
            "enable.auto.offset.store": False,
            "auto.offset.reset": "error",  # any other would jump over a lost tail without a word
            "enable.partition.eof": True,
            "fetch.min.bytes": 1,
            "fetch.wait.max.ms": wait_ms,
            "fetch.queue.backoff.ms": 1,
            "queued.max.messages.kbytes": 16384,
            "fetch.message.max.bytes": 1 << 20,
            "fetch.max.bytes": 16 << 20,
            "receive.message.max.bytes": 1_000_000_000,  # a larger record is delivered alone
        }
        self._consumer = Consumer({**cluster.client(self._faults), **settings})

    def window(self, partition: Partition) -> Window | None:
        """The window on a partition, if it is assigned."""
        return self._windows.get(partition)

    def place(self, partition: Partition, offset: int) -> Window:
        """Return a window that holds `offset` or comes to it next, having the consumer fetch from there if need be."""
        window = self._windows.get(partition)
        if window is None or window.error is not None or not window.low <= offset <= window.at:
            self.release(partition)
            self.follow({partition: offset})
            window = self._windows[partition]
        window.used = time.monotonic()
        return window

    def follow(self, starts: Mapping[Partition, int]) -> None:
        """Assign partitions together: one that is assigned later waits for the request under way."""
        if starts:
            for partition in starts:
                self._know(partition)
            self._consumer.incremental_assign([TopicPartition(*p, offset) for p, offset in starts.items()])
            now = time.monotonic()
            self._windows.update({p: Window(offset, offset, now) for p, offset in starts.items()})

    def release(self, partition: tuple[str, int]) -> None:
        window = self._windows.pop(partition, None)
        if window is not None:
            self._size -= window.size
            self._consumer.incremental_unassign([TopicPartition(*partition)])

    def sweep(self) -> None:
        """Take away what was not used for a while: every partition that is assigned is named in every request."""
        if self._windows:
            until = time.monotonic() - UNUSED_S
            for partition in [p for p, window in self._windows.items() if window.used < until]:
                self.release(partition)

    def pump(self, timeout: float) -> bool:
        """Move what has come into the windows, waiting for the first; return whether there was anything."""
        # `consume` alone would wait for as many as it may return.
        first = self._consumer.poll(timeout)
        if first is None:
            return False
        topic: str | None = None
        number: int | None = None
        window: Window | None = None
        for message in (first, *self._consumer.consume(1000, 0)):
            if message.partition() != number or message.topic() != topic:
                topic, number = message.topic(), message.partition()
                window = None if topic is None or number is None else self._windows.get((topic, number))
            offset, error = message.offset(), message.error()
            if error is not None:
                self._note(error, window, offset)
            elif window is not None and offset is not None and offset >= window.at:
                self._size += window.add(offset, message.key(), message.value())
        return True

    def make_room(self, partition: Partition, offset: int) -> None:
        """Keep the windows together bounded, giving up first what nobody has asked for longest."""
        if self._size <= _WINDOW_BYTES:
            return
        for other in sorted(self._windows, key=lambda p: self._windows[p].used):
            if self._size <= _WINDOW_BYTES:
                return
            if other == partition:
                self._size -= self._windows[other].forget(offset)
            else:
                self.release(other)

    def check(self, partition: Partition, window: Window) -> None:
        if window.error is not None:
            error = window.error
            self.release(partition)
            if error.code() == KafkaError._AUTO_OFFSET_RESET:
                raise LogRewound(f"offset {window.at} of {name_of(partition)} is not in Kafka: {error.str()}")
            raise failure(error, f"cannot read {name_of(partition)}", self._faults)

    def silent(self, what: str) -> LogUnavailable:
        more = f" ({self._faults.last})" if self._faults.last else ""
        return LogUnavailable(f"cannot {what}: Kafka has not answered for {self._cluster.deadline_s:g} s{more}")

    def close(self) -> None:
        self._consumer.close()

    def _note(self, error: KafkaError, window: Window | None, offset: int | None) -> None:
        if error.fatal():
            raise failure(error, "cannot read Kafka", self._faults)
        if error.code() == KafkaError._PARTITION_EOF:
            if window is not None and offset is not None:
                window.end = offset
        elif window is not None and error.code() == KafkaError._AUTO_OFFSET_RESET:
            # One that an earlier assignment of the partition has left behind is about another offset.
            if offset == window.at:
                window.error = error
        elif window is not None and error.code() in ABSENT | DENIED:
            window.error = error
        else:
            self._faults.note(error)  # passes by itself, or the deadline passes

    def _know(self, partition: Partition) -> None:
        """Have the client know all topics: assigned unknown, one would cost up to 1.5 s."""
        if partition not in self._known:
            topics = self._consumer.list_topics(timeout=self._cluster.deadline_s).topics
            self._known = {(name, number) for name, topic in topics.items() for number in topic.partitions}
            if partition not in self._known:
                raise LogRewound(f"Kafka has no {name_of(partition)}")
