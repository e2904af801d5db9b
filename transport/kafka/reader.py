"""Reads control records and ranges of blocks, and waits for more."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping

from schemas.errors import GapDetected, LogRewound
from transport.kafka.cluster import Cluster
from transport.kafka.errors import name_of
from transport.kafka.feed import BLOCK_BYTES, UNUSED_S, Feed, Window
from transport.kafka.pieces import Stretch, joined
from transport.log import Block, Partition, Range, Record

_ASK_SECONDS = 5.0  # that nothing has come is believed so long: a request to a broker costs it a millisecond
_PAGE = 1000  # records that a caller gets at once who reads on
_AHEAD = 1000  # offsets that are passed over rather than assigned anew


class KafkaReader:
    """Two consumers: one for the control partitions that are read on and on, which waits long and is woken at once;
    one for ranges, and for looking back, which asks anew every few milliseconds so that a partition that was just
    assigned does not wait for a request under way."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._group = f"{cluster.pipeline}.reader"
        self._front_feed: Feed | None = None
        self._data_feed: Feed | None = None
        self._asked: dict[Partition, float] = {}  # when Kafka itself was last asked where a partition ends

    def records(self, partition: Partition, start: int, limit: int = 1000, *, fresh: bool = True) -> list[Record]:
        with self._cluster.translated(f"read {name_of(partition)}"):
            window = self._front_feed.window(partition) if self._front_feed is not None else None
            if window is not None and window.low <= start <= window.at + _AHEAD:
                feed = self._front
            else:  # not waited for, or looked back at: the position at the end must not be given up for that
                feed = self._data
                if feed.window(partition) is None and self._cluster.end(partition) == start:
                    return []
                window = feed.place(partition, start)
            feed.check(partition, window)
            if not window.holds(start):
                # What is not followed is not fetched meanwhile.
                followed = (
                    feed is self._front_feed and time.monotonic() < self._asked.get(partition, 0.0) + _ASK_SECONDS
                )
                if fresh or not followed:
                    self._fetch(feed, window, partition, start)
                else:
                    feed.pump(0)
            feed.make_room(partition, start)
            found = window.records(start, limit)
            if feed is self._data and len(found) < _PAGE:
                feed.release(partition)  # near its end: if nobody comes again, it would be fetched from for ever
            return found

    def wait(self, ends: Mapping[Partition, int], timeout: float) -> bool:
        with self._cluster.translated("wait for Kafka"):
            feed, deadline = self._front, time.monotonic() + timeout
            feed.follow({p: end for p, end in ends.items() if feed.window(p) is None})
            while True:
                for partition, end in ends.items():
                    window = feed.window(partition) or feed.place(partition, end)
                    if window.error is not None:
                        feed.release(partition)
                        return True  # `records` finds out what is wrong, and says it
                    if end < window.low or window.holds(end):
                        return True
                left = deadline - time.monotonic()
                if left <= 0:
                    return False
                if self._data_feed is not None:
                    self._data_feed.sweep()
                feed.pump(min(left, UNUSED_S))

    def read(self, partition: Partition, wanted: Range) -> Iterator[Block]:
        with self._cluster.translated(f"read {name_of(partition)}"):
            blocks: list[Block] = []
            size = 0
            for block in joined(self._stretches(partition, wanted)):
                if blocks and (block.more or size + len(block.data) > BLOCK_BYTES):
                    yield _one(blocks)
                    blocks.clear()
                    size = 0
                blocks.append(block)
                size += BLOCK_BYTES if block.more else len(block.data)
                del block
            if blocks:
                yield _one(blocks)

    def _stretches(self, partition: Partition, wanted: Range) -> Iterator[Stretch]:
        """Yield what a range holds, in order, and wait for what is still to come."""
        at, end = wanted
        if at >= end:
            return
        feed = self._data
        feed.sweep()
        while at < end:
            window = feed.place(partition, at)
            found = window.take(at, end)
            if found is None:
                if window.at > at:
                    raise GapDetected(f"{name_of(partition)} has no record {at}, though {wanted} was promised")
                self._await(feed, window, partition, wanted, at)
                continue
            at = found.end
            yield found
            del found
            feed.make_room(partition, at)

    def close(self) -> None:
        for feed in filter(None, (self._front_feed, self._data_feed)):
            feed.close()

    def _fetch(self, feed: Feed, window: Window, partition: Partition, start: int) -> None:
        """Nothing has come; ask whether there is anything, as an empty answer must be true."""
        end = self._cluster.end(partition)
        self._asked[partition] = time.monotonic()
        if start > end:
            feed.release(partition)
            raise LogRewound(f"offset {start} is beyond the end {end} of {name_of(partition)}")
        deadline = time.monotonic() + self._cluster.deadline_s
        # The end may have no record of its own: control records of transactions take offsets.
        while start < end and window.end < end and not window.holds(start):
            if time.monotonic() >= deadline:
                raise feed.silent(f"read {name_of(partition)}")
            feed.pump(0.1)
            feed.check(partition, window)

    def _await(self, feed: Feed, window: Window, partition: Partition, wanted: Range, at: int) -> None:
        """Return when the record at `at`, which was promised, has come, or one after it."""
        began = time.monotonic()
        look = began + 0.2
        while True:
            feed.check(partition, window)
            feed.pump(0.1)
            if window.at > at:
                return
            feed.make_room(partition, at)
            now = time.monotonic()
            if now >= began + self._cluster.deadline_s:
                raise feed.silent(f"read {name_of(partition)}")
            if now >= look:  # records that are not there do not come, and nobody says so
                there = self._cluster.bounds(partition)
                if at < there.start or wanted.end > there.end:
                    feed.release(partition)
                    raise LogRewound(f"{wanted} is not within {there.start}..{there.end} of {name_of(partition)}")
                look = time.monotonic() + 1

    @property
    def _front(self) -> Feed:
        if self._front_feed is None:
            # What is followed later waits for the request under way; longer than this saves little when all is idle.
            self._front_feed = Feed(self._cluster, self._group, 100)
        return self._front_feed

    @property
    def _data(self) -> Feed:
        if self._data_feed is None:
            self._data_feed = Feed(self._cluster, self._group, 10)
        return self._data_feed


def _one(blocks: list[Block]) -> Block:
    if len(blocks) == 1:
        return blocks[0]
    return Block(sum(block.count for block in blocks), b"".join(block.data for block in blocks))
