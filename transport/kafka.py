"""The log in Kafka, through librdkafka.

What its settings and checks are for: an idempotent producer with `acks=all` keeps order and makes no doubles, but a
record lost in the middle leaves no gap in the offsets of the others, and a producer that gives records up after a
time makes such holes. So records are never given up (`message.timeout.ms=0`; the deadline is ours, and ends the
writer), and each range is checked by the offsets of its first and last record against how many were sent and where
the one before ended. Reading takes two consumers, because one that has thousands of partitions names them all in
every request.
"""

from __future__ import annotations

import bisect
import contextlib
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from confluent_kafka import (
    Consumer,
    IsolationLevel,
    KafkaError,
    KafkaException,
    Message,
    Producer,
    TopicCollection,
    TopicPartition,
)
from confluent_kafka.admin import AdminClient, ConfigResource, NewTopic, OffsetSpec  # type: ignore[attr-defined]

from codec.frames import pack, unpack
from schemas.errors import (
    GapDetected,
    IntegrityError,
    LogRewound,
    LogUnavailable,
    PermissionMissing,
    ReplicationError,
    ValueUnsupported,
)
from transport.log import Block, Partition, Range, Record, Topic, Usage
from transport.topics import Topics

_BLOCK_BYTES = 1 << 20
_LARGE_BYTES = 8 << 20  # records larger than this go through a producer of their own
_TOPIC_BYTES = 300 << 20  # what our topics allow
_LARGEST_BYTES = 255 << 20  # tried; at 2^28 Kafka 4.3 throws an error of its own and never answers
_REQUEST_BYTES = 100 << 20  # Kafka's own default of socket.request.max.bytes
_WINDOW_BYTES = 32 << 20  # fetched records that a consumer's windows hold together
_UNUSED_S = 1.0  # after which a partition is taken away from the data consumer
_TOPICS_A_CALL = 500
_EARLIEST, _LATEST = OffsetSpec.earliest(), OffsetSpec.latest()  # type: ignore[no-untyped-call]
_NO_END = 1 << 62
_AHEAD = 1000  # offsets that are passed over rather than assigned anew
_LOGGER = logging.getLogger("penstock.kafka")
_LOGGER.addHandler(logging.NullHandler())  # else what librdkafka takes for fatal goes to standard error
_NOTHING: Mapping[str, str] = MappingProxyType({})

_DENIED = frozenset(
    {
        KafkaError.TOPIC_AUTHORIZATION_FAILED,
        KafkaError.GROUP_AUTHORIZATION_FAILED,
        KafkaError.CLUSTER_AUTHORIZATION_FAILED,
        KafkaError.SASL_AUTHENTICATION_FAILED,
        KafkaError._AUTHENTICATION,
    }
)
_ABSENT = frozenset({KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError._UNKNOWN_TOPIC, KafkaError._UNKNOWN_PARTITION})

_MOVING = frozenset(
    {
        KafkaError.NOT_LEADER_FOR_PARTITION,
        KafkaError.LEADER_NOT_AVAILABLE,
        KafkaError.REPLICA_NOT_AVAILABLE,
        KafkaError.OFFSET_NOT_AVAILABLE,
        KafkaError.FENCED_LEADER_EPOCH,
        KafkaError.UNKNOWN_LEADER_EPOCH,
        KafkaError._NOENT,  # the client found no leader, be it that there is no topic
    }
)
_NO_SUCH_PROTOCOL = frozenset(
    # The client calls a broker without it a fatal error, and says no more than that in the code.
    {KafkaError._FATAL, KafkaError._UNSUPPORTED_FEATURE, KafkaError.UNSUPPORTED_VERSION}
)


class KafkaLog:
    """A log in Kafka.

    `settings` are librdkafka's (TLS, SASL) for every client; `topic_settings` are for topics to be made, over those
    that this module chooses. `replication_factor` None means 3, or as many as there are brokers. With one copy every
    batch is flushed to the disk before it is acknowledged; with more, acknowledgement by two is what durable means.
    A call that Kafka does not answer within `deadline_s` raises `LogUnavailable`. Nothing is connected before it is
    used, so a log that was not may be carried across a fork.
    """

    shared_topics: int | None = 16

    def __init__(
        self,
        bootstrap: str,
        pipeline: str,
        *,
        settings: Mapping[str, str] = _NOTHING,
        replication_factor: int | None = None,
        deadline_s: float = 60.0,
        topic_settings: Mapping[str, str] = _NOTHING,
    ) -> None:
        self._pipeline, self._names = pipeline, Topics(pipeline)
        self._replication, self._deadline_s = replication_factor, deadline_s
        self._settings, self._topic_settings = settings, topic_settings
        self._bootstrap = bootstrap
        self._admin_client: AdminClient | None = None
        self._admin_process = 0

    def create_topics(self, topics: list[Topic]) -> None:
        with self._translated("make topics"):
            metadata = self._admin.list_topics(timeout=self._deadline_s)
            copies = self._replication or min(3, len(metadata.brokers))
            missing = [t for t in topics if t.name not in metadata.topics]
            for at in range(0, len(missing), _TOPICS_A_CALL):
                some = [
                    NewTopic(
                        t.name,
                        num_partitions=t.partitions,
                        replication_factor=copies,
                        config=self._config(t.compacted, copies),
                    )
                    for t in missing[at : at + _TOPICS_A_CALL]
                ]
                for made in self._admin.create_topics(some, request_timeout=self._deadline_s).values():
                    try:
                        made.result(self._deadline_s)
                    except KafkaException as error:
                        if _code(error) != KafkaError.TOPIC_ALREADY_EXISTS:
                            raise
            # Kafka answers before all is known everywhere; a record to a topic without a leader would wait.
            self._await_metadata(
                lambda known: all(
                    t.name in known
                    and len(known[t.name].partitions) >= t.partitions
                    and all(p.leader >= 0 for p in known[t.name].partitions.values())
                    for t in topics
                ),
                "the new topics have no leader yet",
            )
            # And a broker that is named as leader may not know that yet.
            self._list_offsets([Partition(t.name, n) for t in missing for n in range(t.partitions)], _LATEST, _ABSENT)

    def delete_topics(self, names: list[str]) -> None:
        with self._translated("delete topics"):
            if not names:
                return
            for gone in self._admin.delete_topics(names, request_timeout=self._deadline_s).values():
                try:
                    gone.result(self._deadline_s)
                except KafkaException as error:
                    if _code(error) not in _ABSENT:
                        raise
            self._await_metadata(lambda known: not any(n in known for n in names), "topics are still being deleted")

    def topics(self, prefix: str) -> list[Topic]:
        with self._translated("list topics"):
            known = self._admin.list_topics(timeout=self._deadline_s).topics
            names = sorted(name for name in known if name.startswith(prefix))
            configs = self._configs([ConfigResource("topic", name) for name in names])
            return [
                Topic(name, len(known[name].partitions), "compact" in config.get("cleanup.policy", ""))
                for name, config in zip(names, configs, strict=True)
            ]

    def offsets(self, partition: Partition) -> Range:
        with self._translated(f"look at the offsets of {_name(partition)}"):
            start, end = (self._list_offsets([partition], spec)[partition] for spec in (_EARLIEST, _LATEST))
            return Range(start, end)

    def trim(self, partition: Partition, offset: int) -> None:
        start, end = self.offsets(partition)
        if min(offset, end) > start:
            with self._translated(f"trim {_name(partition)}"):
                until = TopicPartition(partition.topic, partition.number, min(offset, end))
                _only(self._admin.delete_records([until], request_timeout=self._deadline_s))

    def identity(self) -> str:
        """Kafka gives every topic an id; that of the frontiers stands for the log."""
        name = self._names.frontier.topic
        with self._translated(f"describe {name}"):
            described = self._admin.describe_topics(TopicCollection([name]), request_timeout=self._deadline_s)
            return str(_only(described).topic_id)

    def usage(self) -> Usage:
        """Not known: no request of this client tells sizes."""
        return Usage(0, 0)

    @contextmanager
    def writer(self, purpose: str) -> Iterator[_KafkaWriter]:
        writer = _KafkaWriter(self, purpose)
        try:
            yield writer
        finally:
            writer.close()

    @contextmanager
    def reader(self) -> Iterator[_KafkaReader]:
        reader = _KafkaReader(self)
        try:
            yield reader
        finally:
            reader.close()

    @contextmanager
    def membership(self, group: str) -> Iterator[_KafkaMembership]:
        member = _KafkaMembership(self, f"{self._pipeline}.{group}", self._names.work)
        try:
            yield member
        finally:
            member.close()

    def problems(self) -> list[tuple[str, str]]:
        try:
            with self._translated("look at Kafka"):
                return self._look_for_problems()
        except ReplicationError as error:
            return [(str(error), error.remedy or "start Kafka, or correct its address and credentials")]

    def close(self) -> None:
        self._admin_client = None

    def client(self, faults: _Faults, **settings: object) -> dict[str, Any]:
        """Settings for one client; those given here are what correctness rests on, and win."""
        return {
            "client.id": "penstock",
            **self._settings,
            **{name.replace("_", "."): value for name, value in settings.items()},
            "bootstrap.servers": self._bootstrap,
            "log_level": 0,  # faults are told in our errors; a broker that restarts is none
            "logger": _LOGGER,
            "error_cb": faults.note,
        }

    @property
    def pipeline(self) -> str:
        return self._pipeline

    @property
    def deadline_s(self) -> float:
        return self._deadline_s

    def largest(self) -> int:
        """How many bytes one record may have: a broker cuts the connection of a request larger than its limit, which
        looks like one that is down, so it is asked first."""
        limit = _REQUEST_BYTES
        with contextlib.suppress(KafkaException):  # not allowed to look: take Kafka's default
            metadata = self._admin.list_topics(timeout=self._deadline_s)
            brokers = [ConfigResource("broker", str(n)) for n in metadata.brokers]
            told = [int(c.get("socket.request.max.bytes") or limit) for c in self._configs(brokers)]
            limit = min(told, default=limit)
        return min(limit - (1 << 16), _LARGEST_BYTES)

    @property
    def _admin(self) -> AdminClient:
        if self._admin_client is None or self._admin_process != os.getpid():
            self._admin_faults = _Faults()
            self._admin_client = AdminClient(self.client(self._admin_faults))
            self._admin_process = os.getpid()
        return self._admin_client

    def _config(self, compacted: bool, copies: int) -> dict[str, str]:
        chosen = {
            "retention.ms": "-1",  # an idle pipeline would lose its last frontier, and its position with it
            "retention.bytes": "-1",
            "cleanup.policy": "compact" if compacted else "delete",
            "segment.bytes": str(512 << 20),  # no batch may be larger than a segment
            "max.message.bytes": str(_TOPIC_BYTES),
            "min.insync.replicas": str(max(1, copies - 1)),
            "unclean.leader.election.enable": "false",
        }
        if copies == 1:
            chosen["flush.messages"] = "1"  # acknowledged is not synced, and nobody else has it
        return {**chosen, **self._topic_settings}

    def _configs(self, resources: list[ConfigResource]) -> list[dict[str, str]]:
        found = []
        for at in range(0, len(resources), _TOPICS_A_CALL):
            some = resources[at : at + _TOPICS_A_CALL]
            answers = self._admin.describe_configs(some, request_timeout=self._deadline_s)
            for resource in some:
                entries = answers[resource].result(self._deadline_s)
                found.append({name: entry.value or "" for name, entry in entries.items()})
        return found

    def _list_offsets(
        self, partitions: list[Partition], spec: OffsetSpec, passing: frozenset[int] = frozenset()
    ) -> dict[Partition, int]:
        """Ask the leaders, again while they change."""
        found: dict[Partition, int] = {}
        deadline = time.monotonic() + self._deadline_s
        while missing := [p for p in partitions if p not in found]:
            asked = self._admin.list_offsets(
                {TopicPartition(*p): spec for p in missing[:_TOPICS_A_CALL]},
                isolation_level=IsolationLevel.READ_UNCOMMITTED,
                request_timeout=self._deadline_s,
            )
            for where, answer in asked.items():
                try:
                    found[Partition(where.topic, where.partition)] = int(answer.result(self._deadline_s).offset)
                except KafkaException as error:
                    if _code(error) not in _MOVING | passing or time.monotonic() >= deadline:
                        raise
                    if not passing and where.topic not in self._admin.list_topics(timeout=self._deadline_s).topics:
                        raise LogRewound(f"Kafka has no topic {where.topic}") from None
                    time.sleep(0.01)
        return found

    def _await_metadata(self, condition: Callable[[Mapping[str, Any]], bool], complaint: str) -> None:
        deadline = time.monotonic() + self._deadline_s
        while not condition(self._admin.list_topics(timeout=self._deadline_s).topics):
            if time.monotonic() >= deadline:
                raise LogUnavailable(f"Kafka: {complaint}")
            time.sleep(0.02)

    def _look_for_problems(self) -> list[tuple[str, str]]:
        metadata = self._admin.list_topics(timeout=self._deadline_s)
        names = sorted(
            name for name in metadata.topics if name.startswith(self._names.prefix) and name != self._names.work
        )
        found: list[tuple[str, str]] = []
        if not names and len(metadata.brokers) < 3:
            found.append(
                (
                    f"Kafka has {len(metadata.brokers)} broker(s): with one lost, all may be lost",
                    "run three brokers, so that topics have three copies",
                )
            )
        configs = self._configs([ConfigResource("topic", name) for name in names])
        weak: dict[tuple[str, str], list[str]] = {}
        for name, config in zip(names, configs, strict=True):
            copies = min((len(p.replicas) for p in metadata.topics[name].partitions.values()), default=0)
            for complaint, remedy in _weaknesses(copies, config):
                weak.setdefault((complaint, remedy), []).append(name)
        for (complaint, remedy), topics in weak.items():
            more = f" and {len(topics) - 1} more" if len(topics) > 1 else ""
            found.append((f"topic {topics[0]}{more}: {complaint}", remedy))
        return found

    @contextmanager
    def _translated(self, what: str) -> Iterator[None]:
        try:
            yield
        except KafkaException as error:
            raise failure(error.args[0], f"cannot {what}", getattr(self, "_admin_faults", None)) from error
        except TimeoutError as error:
            raise LogUnavailable(f"cannot {what}: Kafka does not answer") from error


class _Faults:
    """The last thing that librdkafka complained about in the background, for the message of our own error."""

    last = ""

    def note(self, error: KafkaError) -> None:
        self.last = error.str()


def failure(error: object, what: str, faults: _Faults | None = None) -> ReplicationError:
    """Return our error for one of librdkafka's."""
    if not isinstance(error, KafkaError):
        return LogUnavailable(f"{what}: {error}")
    code, text = error.code(), f"{what}: {error.str()}"
    if code in _DENIED:
        return PermissionMissing(
            text, remedy="grant the Kafka user of this pipeline access to topics and groups of its name"
        )
    if code in _ABSENT:
        return LogRewound(text)
    if code in (KafkaError.MSG_SIZE_TOO_LARGE, KafkaError.INVALID_MSG_SIZE, KafkaError.RECORD_LIST_TOO_LARGE):
        return ValueUnsupported(text, remedy="raise the topic's max.message.bytes")
    return LogUnavailable(text + (f" ({faults.last})" if faults and faults.last else ""))


@dataclass(slots=True)
class _Run:
    """Records of one partition since the last flush. The last one is held back, as it is sent with a callback."""

    count: int = 0
    held: tuple[bytes | None, bytes | None] | None = None
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


_Delivered = Callable[[KafkaError | None, Message], None]


class _KafkaWriter:
    """One producer, and another one for records that are larger than its memory should be."""

    def __init__(self, log: KafkaLog, purpose: str) -> None:
        self._log, self._faults, self._dead = log, _Faults(), False
        self._load = purpose.startswith("load")
        self._main: Producer | None = self._make(_LARGE_BYTES + (1 << 20), 65536)
        self._large: Producer | None = None
        self._largest = 0
        self._known: set[str] = set()
        self._runs: dict[Partition, _Run] = {}
        self._ends: dict[Partition, int] = {}
        self._ranges: dict[Partition, Range] = {}  # since the last seal

    def append(self, partition: Partition, block: Block) -> None:
        with self._alive(f"append to {_name(partition)}"):
            self._know(partition)
            records = unpack(block.data)
            if len(records) != block.count:
                raise IntegrityError(f"a block of {block.count} records holds {len(records)}")
            if not records:
                return
            run = self._runs.setdefault(partition, _Run())
            if run.held is not None:
                records.insert(0, run.held)
            run.held = records.pop()
            run.count += block.count
            at = 0
            if records and not run.begun:
                run.begun, at = True, 1
                self._produce(partition, *records[0], run.delivered_first)
            # No callback for the others: it would cost more than sending them does.
            for key, value in records[at:]:
                self._produce(partition, key, value, None)

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
        with self._alive(f"put a record into {_name(partition)}"):
            return self._put(partition, key, value)

    def close(self) -> None:
        # What is still queued belongs to a step that is not finished, or to a writer that is dead: sent later, it
        # could stand in the middle of another writer's range. What is under way is given up with the producer.
        for producer in filter(None, (self._main, self._large)):
            with contextlib.suppress(KafkaException):
                producer.purge(in_queue=True, in_flight=False)
        self._main = self._large = None

    @property
    def _producer(self) -> Producer:
        assert self._main is not None
        return self._main

    def _make(self, largest: int, queued_kb: int) -> Producer:
        compression = (
            {"compression.type": "zstd", "compression.level": 1} if self._load else {"compression.type": "lz4"}
        )
        return Producer(
            {
                **compression,
                **self._log.client(
                    self._faults,
                    enable_idempotence=True,
                    acks="all",
                    message_timeout_ms=0,
                    enable_gapless_guarantee=True,
                    linger_ms=5 if self._load else 0,
                    batch_size=1_000_000,  # a batch too large for the topic is not split, all of it fails
                    message_max_bytes=largest,
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
            self._known = set(self._producer.list_topics(timeout=self._log.deadline_s).topics)
            if partition.topic not in self._known:
                raise LogRewound(f"Kafka has no topic {partition.topic}")

    def _produce(
        self, partition: Partition, key: bytes | None, value: bytes | None, delivered: _Delivered | None
    ) -> None:
        size = len(key or b"") + len(value or b"")
        producer = self._producer if size <= _LARGE_BYTES else self._large_producer(partition, size)
        deadline = 0.0
        while True:
            try:
                if delivered is None:
                    producer.produce(partition.topic, value, key, partition.number)
                else:
                    producer.produce(partition.topic, value, key, partition.number, on_delivery=delivered)
                break
            except BufferError:  # it was not queued
                deadline = deadline or time.monotonic() + self._log.deadline_s
                if time.monotonic() >= deadline:
                    raise self._silent() from None
                if producer.poll(0.01):
                    deadline = 0.0
        if producer is self._large:
            self._drain(producer)

    def _large_producer(self, partition: Partition, size: int) -> Producer:
        """Two producers keep order only if the one is done before the other begins."""
        if self._large is None:
            self._largest = self._log.largest()
            self._large = self._make(1_000_000_000, 2_000_000)
        if size + 1024 > self._largest:
            raise ValueUnsupported(
                f"a record of {size} bytes is larger than Kafka takes for {_name(partition)} ({self._largest} bytes)",
                remedy="raise socket.request.max.bytes of the brokers, leave the column out, or use the embedded log",
            )
        self._drain(self._producer)
        return self._large

    def _drain(self, producer: Producer) -> None:
        deadline = time.monotonic() + self._log.deadline_s
        try:
            while producer.flush(min(1.0, max(0.0, deadline - time.monotonic()))):
                if time.monotonic() >= deadline:
                    raise self._silent()
        except (KafkaException, SystemError):
            # Fatal, since one record was refused and those after it would stand in its place. (A callback that is
            # called with that exception set makes it a SystemError.) The record's own error says more.
            for partition, run in self._runs.items():
                if run.error is not None:
                    raise failure(run.error, f"cannot write to {_name(partition)}", self._faults) from None
            raise

    def _silent(self) -> LogUnavailable:
        more = f" ({self._faults.last})" if self._faults.last else ""
        return LogUnavailable(f"Kafka has not acknowledged records for {self._log.deadline_s:g} s{more}")

    def _flush(self) -> dict[Partition, Range]:
        for partition, run in self._runs.items():
            assert run.held is not None
            self._produce(partition, *run.held, run.delivered_last if run.begun else run.delivered_only)
        self._drain(self._producer)
        fresh = {partition: self._check(partition, run) for partition, run in self._runs.items()}
        self._runs.clear()
        for partition, added in fresh.items():
            self._ends[partition] = added.end
            self._ranges[partition] = Range(self._ranges.get(partition, added).start, added.end)
        return fresh

    def _put(self, partition: Partition, key: bytes | None, value: bytes | None) -> int:
        self._know(partition)
        run = _Run(1)
        self._produce(partition, key, value, run.delivered_only)
        self._drain(self._producer)
        return self._check(partition, run, alone=False).start

    def _check(self, partition: Partition, run: _Run, alone: bool = True) -> Range:
        """All four: both ends are acknowledged, without error, as many as were sent, where the last range ended."""
        if run.error is not None:
            raise failure(run.error, f"cannot write to {_name(partition)}", self._faults)
        if run.first is None or run.last is None:
            raise IntegrityError(f"Kafka has not told the offsets of what was written to {_name(partition)}")
        if run.last - run.first + 1 != run.count:
            raise IntegrityError(
                f"{run.count} records of {_name(partition)} are at {run.first}..{run.last}:"
                " one was lost, or another writer is at work"
            )
        if alone and self._ends.get(partition, run.first) != run.first:
            raise IntegrityError(
                f"{_name(partition)} goes on at {run.first}, not {self._ends[partition]}: another writer is at work"
            )
        return Range(run.first, run.last + 1)


@dataclass(slots=True)
class _Window:
    """What was fetched of a partition: every record there is in `[low, at)`; those from `at` on are still to come."""

    low: int
    at: int
    used: float
    records: list[Record] = field(default_factory=list)
    size: int = 0
    end: int = -1  # where the broker last had no more
    error: KafkaError | None = None

    def add(self, record: Record) -> int:
        self.records.append(record)
        self.at = record.offset + 1
        more = len(record.key or b"") + len(record.value or b"") + 100
        self.size += more
        return more

    def between(self, start: int, end: int) -> list[Record]:
        first = bisect.bisect_left(self.records, start, key=_offset)
        return self.records[first : bisect.bisect_left(self.records, end, key=_offset)]

    def forget(self, below: int) -> int:
        """Drop the records before an offset and return how many bytes that frees."""
        first = bisect.bisect_left(self.records, below, key=_offset)
        freed = sum(len(r.key or b"") + len(r.value or b"") + 100 for r in self.records[:first])
        del self.records[:first]
        self.low = max(self.low, below)
        self.size -= freed
        return freed


class _Feed:
    """A consumer to which partitions are assigned when somebody asks for them, and a window on each.

    A window keeps what was read as long as there is room, because several views read the same records.
    """

    def __init__(self, log: KafkaLog, group: str, wait_ms: int) -> None:
        self._log, self._faults = log, _Faults()
        self._known: set[tuple[str, int]] = set()
        self._windows: dict[tuple[str, int], _Window] = {}
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
        self._consumer = Consumer({**log.client(self._faults), **settings})

    def window(self, partition: Partition) -> _Window | None:
        """The window on a partition, if it is assigned."""
        return self._windows.get(partition)

    def place(self, partition: Partition, offset: int) -> _Window:
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
            self._windows.update({p: _Window(offset, offset, now) for p, offset in starts.items()})

    def release(self, partition: tuple[str, int]) -> None:
        window = self._windows.pop(partition, None)
        if window is not None:
            self._size -= window.size
            self._consumer.incremental_unassign([TopicPartition(*partition)])

    def sweep(self) -> None:
        """Take away what was not used for a while: every partition that is assigned is named in every request."""
        if self._windows:
            until = time.monotonic() - _UNUSED_S
            for partition in [p for p, window in self._windows.items() if window.used < until]:
                self.release(partition)

    def pump(self, timeout: float) -> bool:
        """Move what has come into the windows, waiting for the first; return whether there was anything."""
        # `consume` alone would wait for as many as it may return.
        first = self._consumer.poll(timeout)
        if first is None:
            return False
        for message in (first, *self._consumer.consume(1000, 0)):
            topic, number, offset = message.topic(), message.partition(), message.offset()
            error = message.error()
            window = None if topic is None or number is None else self._windows.get((topic, number))
            if error is not None:
                self._note(error, window, offset)
            elif window is not None and offset is not None and offset >= window.at:
                self._size += window.add(Record(offset, message.key(), message.value()))
        return True

    def make_room(self, partition: Partition, offset: int) -> None:
        """Keep the windows together bounded, giving up first what nobody has asked for longest."""
        for other in sorted(self._windows, key=lambda p: self._windows[p].used):
            if self._size <= _WINDOW_BYTES:
                return
            if other == partition:
                self._size -= self._windows[other].forget(offset)
            else:
                self.release(other)

    def bounds(self, partition: Partition) -> Range:
        """Ask the broker for the offsets that are there now."""
        low, high = self._consumer.get_watermark_offsets(
            TopicPartition(*partition), timeout=self._log.deadline_s, cached=False
        )
        return Range(low, high)

    def check(self, partition: Partition, window: _Window) -> None:
        if window.error is not None:
            error = window.error
            self.release(partition)
            if error.code() == KafkaError._AUTO_OFFSET_RESET:
                raise LogRewound(f"offset {window.at} of {_name(partition)} is not in Kafka: {error.str()}")
            raise failure(error, f"cannot read {_name(partition)}", self._faults)

    def silent(self, what: str) -> LogUnavailable:
        more = f" ({self._faults.last})" if self._faults.last else ""
        return LogUnavailable(f"cannot {what}: Kafka has not answered for {self._log.deadline_s:g} s{more}")

    def close(self) -> None:
        self._consumer.close()

    def _note(self, error: KafkaError, window: _Window | None, offset: int | None) -> None:
        if error.fatal():
            raise failure(error, "cannot read Kafka", self._faults)
        if error.code() == KafkaError._PARTITION_EOF:
            if window is not None and offset is not None:
                window.end = offset
        elif window is not None and error.code() == KafkaError._AUTO_OFFSET_RESET:
            # One that an earlier assignment of the partition has left behind is about another offset.
            if offset == window.at:
                window.error = error
        elif window is not None and error.code() in _ABSENT | _DENIED:
            window.error = error
        else:
            self._faults.note(error)  # passes by itself, or the deadline passes

    def _know(self, partition: Partition) -> None:
        """Have the client know all topics: assigned unknown, one would cost up to 1.5 s."""
        if partition not in self._known:
            topics = self._consumer.list_topics(timeout=self._log.deadline_s).topics
            self._known = {(name, number) for name, topic in topics.items() for number in topic.partitions}
            if partition not in self._known:
                raise LogRewound(f"Kafka has no {_name(partition)}")


class _KafkaReader:
    """Two consumers: one for the control partitions that are read on and on, which waits long and is woken at once;
    one for ranges, and for looking back, which asks anew every few milliseconds so that a partition that was just
    assigned does not wait for a request under way."""

    def __init__(self, log: KafkaLog) -> None:
        self._log = log
        self._group = f"{log.pipeline}.reader"
        self._front_feed: _Feed | None = None
        self._data_feed: _Feed | None = None

    def records(self, partition: Partition, start: int, limit: int = 1000) -> list[Record]:
        with _reading(f"read {_name(partition)}"):
            window = self._front.window(partition)
            if window is not None and window.low <= start <= window.at + _AHEAD:
                feed = self._front
            else:  # not waited for, or looked back at: the position at the end must not be given up for that
                feed = self._data
                window = feed.place(partition, start)
            feed.check(partition, window)
            found = window.between(start, _NO_END) or self._fetch(feed, window, partition, start)
            feed.make_room(partition, start)
            return found[:limit]

    def wait(self, ends: Mapping[Partition, int], timeout: float) -> bool:
        with _reading("wait for Kafka"):
            feed, deadline = self._front, time.monotonic() + timeout
            feed.follow({p: end for p, end in ends.items() if feed.window(p) is None})
            while True:
                for partition, end in ends.items():
                    window = feed.window(partition) or feed.place(partition, end)
                    if window.error is not None:
                        feed.release(partition)
                        return True  # `records` finds out what is wrong, and says it
                    if end < window.low or window.between(end, _NO_END):
                        return True
                left = deadline - time.monotonic()
                if left <= 0:
                    return False
                if self._data_feed is not None:
                    self._data_feed.sweep()
                feed.pump(min(left, _UNUSED_S))

    def read(self, partition: Partition, wanted: Range) -> Iterator[Block]:
        with _reading(f"read {_name(partition)}"):
            at, end = wanted
            if at >= end:
                return
            feed = self._data
            feed.sweep()
            batch: list[tuple[bytes | None, bytes | None]] = []
            size = 0
            while at < end:
                window = feed.place(partition, at)
                found = window.between(at, end)
                if not found:
                    self._await(feed, window, partition, wanted, at)
                    continue
                for record in found:
                    if record.offset != at:
                        raise GapDetected(f"{_name(partition)} has no record {at}, though {wanted} was promised")
                    more = 8 + len(record.key or b"") + len(record.value or b"")
                    if batch and size + more > _BLOCK_BYTES:
                        yield Block(len(batch), pack(batch))
                        batch, size = [], 0
                    batch.append((record.key, record.value))
                    size, at = size + more, at + 1
                del found
                feed.make_room(partition, at)
            yield Block(len(batch), pack(batch))

    def close(self) -> None:
        for feed in filter(None, (self._front_feed, self._data_feed)):
            feed.close()

    def _fetch(self, feed: _Feed, window: _Window, partition: Partition, start: int) -> list[Record]:
        """Nothing has come; ask whether there is anything, as an empty answer must be true."""
        there = feed.bounds(partition)
        if not there.start <= start <= there.end:
            feed.release(partition)
            raise LogRewound(f"offset {start} is not within {there.start}..{there.end} of {_name(partition)}")
        deadline = time.monotonic() + self._log.deadline_s
        # The end may have no record of its own: control records take offsets, and so do those that were compacted.
        while start < there.end and window.end < there.end and not window.between(start, _NO_END):
            if time.monotonic() >= deadline:
                raise feed.silent(f"read {_name(partition)}")
            feed.pump(0.1)
            feed.check(partition, window)
        return window.between(start, _NO_END)

    def _await(self, feed: _Feed, window: _Window, partition: Partition, wanted: Range, at: int) -> None:
        """Return when the record at `at`, which was promised, has come."""
        began = time.monotonic()
        look = began + 0.2
        while True:
            feed.check(partition, window)
            feed.pump(0.1)
            if window.between(at, wanted.end):
                return
            if window.at > at:
                raise GapDetected(f"{_name(partition)} has no record {at}, though {wanted} was promised")
            feed.make_room(partition, at)
            now = time.monotonic()
            if now >= began + self._log.deadline_s:
                raise feed.silent(f"read {_name(partition)}")
            if now >= look:  # records that are not there do not come, and nobody says so
                there = feed.bounds(partition)
                if at < there.start or wanted.end > there.end:
                    feed.release(partition)
                    raise LogRewound(f"{wanted} is not within {there.start}..{there.end} of {_name(partition)}")
                look = time.monotonic() + 1

    @property
    def _front(self) -> _Feed:
        if self._front_feed is None:
            self._front_feed = _Feed(self._log, self._group, 500)
        return self._front_feed

    @property
    def _data(self) -> _Feed:
        if self._data_feed is None:
            self._data_feed = _Feed(self._log, self._group, 10)
        return self._data_feed


class _KafkaMembership:
    """A member of a consumer group on the work topic, which never holds a record."""

    def __init__(self, log: KafkaLog, group: str, topic: str) -> None:
        self._log, self._group, self._topic = log, group, topic
        self._faults = _Faults()
        self._mine: set[int] = set()
        self._consumer = self._join("consumer")

    def poll(self) -> frozenset[int]:
        message = self._consumer.poll(0)
        error = message.error() if message is not None else None
        if error is None:
            return frozenset(self._mine)
        if error.code() in _NO_SUCH_PROTOCOL and self._protocol == "consumer":
            self.close()
            self._consumer = self._join("classic")
        elif error.code() in _DENIED or error.code() in _ABSENT or error.fatal():
            raise failure(error, f"cannot work in group {self._group}", self._faults)
        return frozenset(self._mine)

    def close(self) -> None:
        self._consumer.close()
        self._mine.clear()

    def _join(self, protocol: str) -> Consumer:
        self._protocol = protocol
        settings: dict[str, Any] = {
            "group.id": self._group,
            "group.protocol": protocol,
            "enable.auto.commit": False,
            "enable.auto.offset.store": False,
            "auto.offset.reset": "error",
            # Heartbeats go on by themselves. Whoever works on a block for longer than this is taken for dead, which
            # costs a stall, never rows: what counts is the compare-and-set in the target.
            "max.poll.interval.ms": 900_000,
        }
        if protocol == "classic":
            settings |= {"partition.assignment.strategy": "cooperative-sticky", "session.timeout.ms": 6000}
        consumer = Consumer({**self._log.client(self._faults), **settings})
        consumer.subscribe([self._topic], on_assign=self._assigned, on_revoke=self._lost, on_lost=self._lost)
        return consumer

    def _assigned(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        # At an offset, and then paused: there is nothing to ask the broker for.
        consumer.incremental_assign([TopicPartition(p.topic, p.partition, 0) for p in partitions])
        consumer.pause(partitions)
        self._mine.update(p.partition for p in partitions)

    def _lost(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        self._mine.difference_update(p.partition for p in partitions)
        consumer.incremental_unassign(partitions)


def _weaknesses(copies: int, config: Mapping[str, str]) -> list[tuple[str, str]]:
    """What keeps one topic from being durable."""
    found = []
    synced = int(config.get("flush.messages") or 1 << 62) == 1
    if copies < 3 and not synced:
        found.append(
            (f"{copies} copies: a power cut loses what was acknowledged", "make 3 copies, or set flush.messages=1")
        )
    if copies > 1 and not synced and int(config.get("min.insync.replicas") or 1) < 2:
        found.append(("min.insync.replicas is 1: one broker acknowledges alone", "set min.insync.replicas=2"))
    if config.get("unclean.leader.election.enable") == "true":
        found.append(
            ("a broker that lags may become leader and drop records", "set unclean.leader.election.enable=false")
        )
    if "compact" not in config.get("cleanup.policy", ""):
        for setting in ("retention.ms", "retention.bytes"):
            if config.get(setting) != "-1":
                found.append((f"records expire by {setting} before targets have them", f"set {setting}=-1"))
    return found


@contextmanager
def _reading(what: str) -> Iterator[None]:
    try:
        yield
    except KafkaException as error:
        raise failure(error.args[0], f"cannot {what}") from error


def _only(futures: Mapping[Any, Future[Any]]) -> Any:
    [future] = futures.values()
    return future.result()


def _code(error: KafkaException) -> int:
    cause = error.args[0]
    return int(cause.code()) if isinstance(cause, KafkaError) else 0


def _offset(record: Record) -> int:
    return record.offset


def _name(partition: Partition) -> str:
    return f"{partition.topic}/{partition.number}"
