"""A consumer with a window on each partition that is read."""

from __future__ import annotations

import bisect
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from confluent_kafka import Consumer, KafkaError, TopicPartition

from codec.frames import cut, pack, unpack
from schemas.errors import LogRewound, LogUnavailable
from transport.kafka.cluster import Cluster
from transport.kafka.errors import ABSENT, DENIED, Faults, failure, name_of
from transport.kafka.pieces import Pair, Piece, Stretch, piece_of
from transport.log import Partition, Record

BLOCK_BYTES = 1 << 20
_WINDOW_BYTES = 32 << 20  # fetched records that a consumer's windows hold together
UNUSED_S = 1.0  # after which a partition is taken away from the data consumer


@dataclass(slots=True)
class Window:
    """What was fetched of a partition: every record there is in `[low, at)`; those from `at` on are still to come.

    Kept as they are handed on: objects of their own for each record would cost more than all else that is done with it.
    """

    low: int
    at: int
    used: float
    stretches: list[Stretch] = field(default_factory=list)
    size: int = 0
    end: int = -1  # where the broker last had no more
    error: KafkaError | None = None

    def add(self, start: int, pairs: list[Pair], piece: Piece | None = None) -> int:
        """Take records, key and value, that stand one after the other, or one piece; return how many bytes they are."""
        added = 0
        for some in _bounded(pairs):
            data = pack(some)
            self.stretches.append(Stretch(start, start + len(some), data, piece))
            start += len(some)
            added += len(data)
        self.at = start
        self.size += added
        return added

    def holds(self, start: int) -> bool:
        """Whether there is a record at or after `start`."""
        return bool(self.stretches) and self.stretches[-1].end > start

    def records(self, start: int, limit: int) -> list[Record]:
        found: list[Record] = []
        for stretch in self.stretches[self._first(start) :]:
            first = max(start, stretch.start)
            pairs = unpack(cut(stretch.data, first - stretch.start, min(stretch.end - first, limit - len(found))))
            found += [Record(offset, key, value) for offset, (key, value) in enumerate(pairs, first)]
            if len(found) == limit:
                break
        return found

    def take(self, start: int, end: int) -> Stretch | None:
        """Return some of the records at and after `start`, up to `end` at most; None if that is not there."""
        first = self._first(start)
        if first == len(self.stretches) or self.stretches[first].start > start:
            return None
        stretch = self.stretches[first]
        until = min(stretch.end, end)
        if (start, until) == (stretch.start, stretch.end):
            return stretch
        return Stretch(start, until, cut(stretch.data, start - stretch.start, until - start))

    def forget(self, below: int) -> int:
        """Drop what is wholly before an offset and return how many bytes that frees."""
        first = self._first(below)
        self.low = max(self.low, below)
        freed = sum(len(stretch.data) for stretch in self.stretches[:first])
        del self.stretches[:first]
        self.size -= freed
        return freed

    def _first(self, offset: int) -> int:
        """Where the first stretch is that does not end before an offset."""
        return bisect.bisect_right(self.stretches, offset, key=lambda stretch: stretch.end)


def _bounded(pairs: list[Pair]) -> Iterator[list[Pair]]:
    """Cut records into lists that are no larger than a block, or one record."""
    size = at = 0
    for n, (key, value) in enumerate(pairs):
        more = (len(key) if key else 0) + (len(value) if value else 0)
        if size + more > BLOCK_BYTES and n > at:
            yield pairs[at:n]
            at, size = n, 0
        size += more
    yield pairs[at:]


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
        place: tuple[str | None, int | None] = (None, None)
        window: Window | None = None
        pairs: list[Pair] = []  # that stand one after the other, the next one being at `next_`
        next_ = -1
        for message in (first, *self._consumer.consume(1000, 0)):
            here, offset, error = (message.topic(), message.partition()), message.offset(), message.error()
            piece = piece_of(message)
            if offset != next_ or here != place or error is not None or piece is not None:
                self._keep(window, next_ - len(pairs), pairs)
                pairs, place = [], here
                window = self._windows.get(here)  # type: ignore[arg-type]
            if error is not None:
                self._note(error, window, offset)
            elif window is not None and offset is not None and offset >= window.at:
                pairs.append((message.key(), message.value()))
                next_ = offset + 1
                if piece is not None:
                    self._keep(window, offset, pairs, piece)
                    pairs = []
        self._keep(window, next_ - len(pairs), pairs)
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

    def _keep(self, window: Window | None, start: int, pairs: list[Pair], piece: Piece | None = None) -> None:
        if window is not None and pairs:
            self._size += window.add(start, pairs, piece)

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
