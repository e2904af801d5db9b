"""The log in Kafka as services see it."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Future
from contextlib import closing
from types import MappingProxyType
from typing import Any

from confluent_kafka import KafkaError, KafkaException, TopicCollection, TopicPartition
from confluent_kafka.admin import NewTopic  # type: ignore[attr-defined]

from schemas.errors import ReplicationError
from transport.kafka.cluster import LATEST, MESSAGE_BYTES, TOPICS_A_CALL, Cluster
from transport.kafka.errors import ABSENT, code_of, name_of
from transport.kafka.membership import KafkaMembership
from transport.kafka.problems import problems_of
from transport.kafka.reader import KafkaReader
from transport.kafka.writer import KafkaWriter
from transport.log import Partition, Range, Topic, Usage
from transport.topics import Topics

_NOTHING: Mapping[str, str] = MappingProxyType({})


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
        self._cluster = Cluster(bootstrap, pipeline, settings, deadline_s)
        self._names, self._deadline_s = Topics(pipeline), deadline_s
        self._replication, self._topic_settings = replication_factor, topic_settings

    def create_topics(self, topics: list[Topic]) -> None:
        with self._cluster.translated("make topics"):
            metadata = self._cluster.metadata()
            copies = self._replication or min(3, len(metadata.brokers))
            missing = [t for t in topics if t.name not in metadata.topics]
            for at in range(0, len(missing), TOPICS_A_CALL):
                some = [
                    NewTopic(
                        t.name,
                        num_partitions=t.partitions,
                        replication_factor=copies,
                        config=self._config(copies),
                    )
                    for t in missing[at : at + TOPICS_A_CALL]
                ]
                for made in self._cluster.admin.create_topics(some, request_timeout=self._deadline_s).values():
                    try:
                        made.result(self._deadline_s)
                    except KafkaException as error:
                        if code_of(error) != KafkaError.TOPIC_ALREADY_EXISTS:
                            raise
            # Kafka answers before all is known everywhere; a record to a topic without a leader would wait.
            self._cluster.await_topics(
                lambda known: all(
                    t.name in known
                    and len(known[t.name].partitions) >= t.partitions
                    and all(p.leader >= 0 for p in known[t.name].partitions.values())
                    for t in topics
                ),
                "the new topics have no leader yet",
            )
            # And a broker that is named as leader may not know that yet.
            self._cluster.offsets([Partition(t.name, n) for t in missing for n in range(t.partitions)], LATEST, ABSENT)

    def delete_topics(self, names: list[str]) -> None:
        with self._cluster.translated("delete topics"):
            if not names:
                return
            for gone in self._cluster.admin.delete_topics(names, request_timeout=self._deadline_s).values():
                try:
                    gone.result(self._deadline_s)
                except KafkaException as error:
                    if code_of(error) not in ABSENT:
                        raise
            self._cluster.await_topics(
                lambda known: not any(n in known for n in names), "topics are still being deleted"
            )

    def topics(self, prefix: str) -> list[Topic]:
        with self._cluster.translated("list topics"):
            known = self._cluster.metadata().topics
            return [Topic(name, len(known[name].partitions)) for name in sorted(known) if name.startswith(prefix)]

    def offsets(self, partition: Partition) -> Range:
        with self._cluster.translated(f"look at the offsets of {name_of(partition)}"):
            return self._cluster.bounds(partition)

    def trim(self, partition: Partition, offset: int) -> None:
        start, end = self.offsets(partition)
        if min(offset, end) > start:
            with self._cluster.translated(f"trim {name_of(partition)}"):
                until = TopicPartition(partition.topic, partition.number, min(offset, end))
                _only(self._cluster.admin.delete_records([until], request_timeout=self._deadline_s))

    def identity(self) -> str:
        """Kafka gives every topic an id; that of the frontiers stands for the log."""
        name = self._names.frontier.topic
        with self._cluster.translated(f"describe {name}"):
            described = self._cluster.admin.describe_topics(TopicCollection([name]), request_timeout=self._deadline_s)
            return str(_only(described).topic_id)

    def usage(self) -> Usage:
        """Not known: no request of this client tells sizes."""
        return Usage(0, 0)

    def writer(self, purpose: str) -> closing[KafkaWriter]:
        return closing(KafkaWriter(self._cluster))

    def reader(self) -> closing[KafkaReader]:
        return closing(KafkaReader(self._cluster))

    def membership(self, group: str) -> closing[KafkaMembership]:
        return closing(KafkaMembership(self._cluster, f"{self._cluster.pipeline}.{group}", self._names.work))

    def problems(self) -> list[tuple[str, str]]:
        try:
            with self._cluster.translated("look at Kafka"):
                return problems_of(self._cluster, self._names)
        except ReplicationError as error:
            return [(str(error), error.remedy or "start Kafka, or correct its address and credentials")]

    def close(self) -> None:
        self._cluster.close()

    def _config(self, copies: int) -> dict[str, str]:
        chosen = {
            "retention.ms": "-1",  # an idle pipeline would lose its last frontier, and its position with it
            "retention.bytes": "-1",
            "cleanup.policy": "delete",
            "segment.bytes": str(512 << 20),  # no batch may be larger than a segment
            "max.message.bytes": str(MESSAGE_BYTES),
            "min.insync.replicas": str(max(1, copies - 1)),
            "unclean.leader.election.enable": "false",
        }
        if copies == 1:
            chosen["flush.messages"] = "1"  # acknowledged is not synced, and nobody else has it
        return {**chosen, **self._topic_settings}


def _only(futures: Mapping[Any, Future[Any]]) -> Any:
    [future] = futures.values()
    return future.result()
