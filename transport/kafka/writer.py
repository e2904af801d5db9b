"""Writes through an idempotent producer, and checks where its records came to be."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from confluent_kafka import KafkaError, KafkaException, Message, Producer

from schemas.errors import IntegrityError, LogRewound, LogUnavailable, ReplicationError, ValueUnsupported
from transport.kafka.cluster import MESSAGE_BYTES, Cluster
from transport.kafka.errors import Faults, failure, name_of
from transport.kafka.pieces import Headers, Outgoing, bundles
from transport.log import Block, Partition, Range, RecordTooLarge

# A step's records go when it is flushed, in one request a partition: sent as they come, each few of them would be a
# request that the broker may sync to its disk. Longer than a step takes; what fills a batch goes before.
_STEP_MS = 100

# A batch too large for its topic would not be split; all of it would fail.
_BATCH_BYTES = 1_000_000

# While more requests are ready than the connection takes, the client's thread polls without pause. So no more is handed
# to it than the broker works on and what comes next; it takes one request of a connection at a time.
_MARKS_AHEAD = 2

_Delivered = Callable[[KafkaError | None, Message], None]


@dataclass(slots=True)
class Run:
    """Records of one partition since the last flush. The last one is held back, as it is sent with a callback."""

    count: int = 0
    held: Outgoing | None = None
    begun: bool = False
    first: int | None = None
    last: int | None = None
    error: KafkaError | None = None

    def delivered_first(self, error: KafkaError | None, message: Message) -> None:
        if error is not None:
            self.error = error
        else:
            self.first = message.offset()

    def delivered_last(self, error: KafkaError | None, message: Message) -> None:
        if error is not None:
            self.error = error
        else:
            self.last = message.offset()

    def delivered_only(self, error: KafkaError | None, message: Message) -> None:
        self.delivered_first(error, message)
        self.delivered_last(error, message)


class KafkaWriter:
    """One producer. What it holds at most is a few batches, whatever the size of a record."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster, self._faults, self._dead = cluster, Faults(), False
        self._live: Producer | None = self._make(65536)
        self._known: set[str] = set()
        self._unmarked = self._marks = 0  # bytes since the last mark, marks that are under way: see `_mark`
        self._runs: dict[Partition, Run] = {}
        self._ends: dict[Partition, int] = {}
        self._ranges: dict[Partition, Range] = {}  # since the last seal

    def append(self, partition: Partition, block: Block) -> int:
        with self._alive(f"append to {name_of(partition)}"):
            self._know(partition)
            taken = 0
            for messages, size in bundles(block):
                taken += len(messages)
                self._add(partition, messages, size)
            return taken

    def _add(self, partition: Partition, messages: list[Outgoing], size: int) -> None:
        run = self._runs.setdefault(partition, Run())
        run.count += len(messages)
        if run.held is not None:
            messages.insert(0, run.held)
        run.held = messages.pop()
        if messages and not run.begun:
            run.begun = True
            self._produce(partition, run.delivered_first, *messages.pop(0))
        # No callback for the others: it would cost more than sending them does.
        for message in messages[:-1]:
            self._produce(partition, None, *message)
        if messages:
            self._produce(partition, self._mark(size), *messages[-1])
            self._pace()

    def flush(self) -> dict[Partition, Range]:
        with self._alive("flush to Kafka"):
            return self._flush()

    def seal(
        self, partition: Partition, make: Callable[[dict[Partition, Range]], bytes], key: bytes | None = None
    ) -> int:
        with self._alive("seal a step in Kafka"):
            self._flush()
            value = make(dict(self._ranges))
            self._ranges.clear()
            return self._put(partition, key, value)

    def put(self, partition: Partition, value: bytes | None, key: bytes | None = None) -> int:
        with self._alive(f"put a record into {name_of(partition)}"):
            return self._put(partition, key, value)

    def put_all(self, partition: Partition, values: Sequence[bytes]) -> None:
        with self._alive(f"put records into {name_of(partition)}"):
            self._know(partition)
            runs = [Run(1) for _ in values]
            for run, value in zip(runs, values, strict=True):
                self._produce(partition, run.delivered_only, None, value)
            self._drain()
            for run in runs:
                self._check(partition, run, alone=False)

    def close(self) -> None:
        # What is still queued belongs to a step that is not finished, or to a writer that is dead: sent later, it
        # could stand in the middle of another writer's range. What is under way is given up with the producer.
        if self._live is not None:
            with contextlib.suppress(KafkaException):
                self._live.purge(in_queue=True, in_flight=False)
        self._live = None

    @property
    def _producer(self) -> Producer:
        assert self._live is not None
        return self._live

    def _make(self, queued_kb: int) -> Producer:
        return Producer(
            {
                "compression.type": "lz4",
                **self._cluster.client(
                    self._faults,
                    enable_idempotence=True,
                    acks="all",
                    message_timeout_ms=0,
                    enable_gapless_guarantee=True,
                    linger_ms=_STEP_MS,
                    batch_size=_BATCH_BYTES,
                    message_max_bytes=MESSAGE_BYTES,
                    queue_buffering_max_kbytes=queued_kb,
                    queue_buffering_max_messages=1_000_000,
                ),
            }
        )

    @contextmanager
    def _alive(self, what: str) -> Iterator[None]:
        if self._dead:
            raise IntegrityError("this writer has failed before and must not be used again")
        self._dead = True
        try:
            yield
        except BaseException as error:
            self.close()
            if isinstance(error, KafkaException | SystemError):
                raise failure(error.args[0], f"cannot {what}", self._faults) from error
            raise
        self._dead = False

    def _know(self, partition: Partition) -> None:
        """Have the client know the topic: one that it has to look for costs its first record up to seconds."""
        if partition.topic not in self._known:
            self._known = set(self._producer.list_topics(timeout=self._cluster.deadline_s).topics)
            if partition.topic not in self._known:
                raise LogRewound(f"Kafka has no topic {partition.topic}")

    def _produce(
        self,
        partition: Partition,
        delivered: _Delivered | None,
        key: bytes | None,
        value: bytes | None,
        headers: Headers | None = None,
    ) -> None:
        producer = self._producer
        deadline = 0.0
        while True:
            try:
                if delivered is None and headers is None:
                    producer.produce(partition.topic, value, key, partition.number)
                else:
                    producer.produce(
                        partition.topic, value, key, partition.number, on_delivery=delivered, headers=headers
                    )
                return
            except BufferError:  # it was not queued
                deadline = deadline or time.monotonic() + self._cluster.deadline_s
                if time.monotonic() >= deadline:
                    raise self._silent() from None
                if producer.poll(0.01):
                    deadline = 0.0

    def _mark(self, size: int) -> _Delivered | None:
        """Return a callback for the last record of a block, when a batch has been handed over since the last one."""
        self._unmarked += size
        if self._unmarked < _BATCH_BYTES:
            return None
        self._unmarked = 0
        self._marks += 1
        return self._passed

    def _passed(self, error: KafkaError | None, message: Message) -> None:
        self._marks -= 1

    def _pace(self) -> None:
        """Wait until no more than a few batches are under way."""
        deadline = time.monotonic() + self._cluster.deadline_s
        while self._marks > _MARKS_AHEAD:
            if self._producer.poll(0.1):
                deadline = time.monotonic() + self._cluster.deadline_s
            elif time.monotonic() >= deadline:
                raise self._silent()

    def _drain(self) -> None:
        deadline = time.monotonic() + self._cluster.deadline_s
        try:
            while self._producer.flush(min(1.0, max(0.0, deadline - time.monotonic()))):
                if time.monotonic() >= deadline:
                    raise self._silent()
        except (KafkaException, SystemError):
            # Fatal, since one record was refused and those after it would stand in its place. (A callback that is
            # called with that exception set makes it a SystemError.) The record's own error says more.
            for partition, run in self._runs.items():
                if run.error is not None:
                    raise self._failure(partition, run.error) from None
            raise

    def _failure(self, partition: Partition, error: object) -> ReplicationError:
        ours = failure(error, f"cannot write to {name_of(partition)}", self._faults)
        if isinstance(ours, ValueUnsupported):
            return RecordTooLarge(str(ours), partition, remedy=ours.remedy)
        return ours

    def _silent(self) -> LogUnavailable:
        more = f" ({self._faults.last})" if self._faults.last else ""
        return LogUnavailable(f"Kafka has not acknowledged records for {self._cluster.deadline_s:g} s{more}")

    def _flush(self) -> dict[Partition, Range]:
        for partition, run in self._runs.items():
            assert run.held is not None
            self._produce(partition, run.delivered_last if run.begun else run.delivered_only, *run.held)
        self._drain()
        fresh = {partition: self._check(partition, run) for partition, run in self._runs.items()}
        self._runs.clear()
        self._unmarked = 0
        for partition, added in fresh.items():
            self._ends[partition] = added.end
            self._ranges[partition] = Range(self._ranges.get(partition, added).start, added.end)
        return fresh

    def _put(self, partition: Partition, key: bytes | None, value: bytes | None) -> int:
        self._know(partition)
        run = Run(1)
        self._produce(partition, run.delivered_only, key, value)
        self._drain()
        return self._check(partition, run, alone=False).start

    def _check(self, partition: Partition, run: Run, alone: bool = True) -> Range:
        """All four: both ends are acknowledged, without error, as many as were sent, where the last range ended."""
        if run.error is not None:
            raise self._failure(partition, run.error)
        if run.first is None or run.last is None:
            raise IntegrityError(f"Kafka has not told the offsets of what was written to {name_of(partition)}")
        if run.last - run.first + 1 != run.count:
            raise IntegrityError(
                f"{run.count} records of {name_of(partition)} are at {run.first}..{run.last}:"
                " one was lost, or another writer is at work"
            )
        if alone and self._ends.get(partition, run.first) != run.first:
            raise IntegrityError(
                f"{name_of(partition)} goes on at {run.first}, not {self._ends[partition]}: another writer is at work"
            )
        return Range(run.first, run.last + 1)
