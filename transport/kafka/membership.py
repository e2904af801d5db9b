"""Who works in a group: a consumer group, on a topic that never holds a record."""

from __future__ import annotations

from typing import Any

from confluent_kafka import Consumer, KafkaError, TopicPartition

from transport.kafka.cluster import Cluster
from transport.kafka.errors import ABSENT, DENIED, NO_SUCH_PROTOCOL, Faults, failure, meaning

# Heartbeats go on by themselves. Whoever works on a block for longer than this is taken for dead, which costs a stall,
# never rows: what counts is the compare-and-set in the target.
_LONGEST_STALL_MS = 900_000


class KafkaMembership:
    """A member of a consumer group on the work topic, which never holds a record."""

    def __init__(self, cluster: Cluster, group: str, topic: str) -> None:
        self._cluster, self._group, self._topic = cluster, group, topic
        self._faults = Faults()
        self._mine: set[int] = set()
        self._consumer = self._join("consumer")

    def poll(self) -> frozenset[int]:
        message = self._consumer.poll(0)
        error = message.error() if message is not None else None
        if error is None:
            return frozenset(self._mine)
        code = meaning(error)
        if code in NO_SUCH_PROTOCOL and self._protocol == "consumer":
            self.close()
            self._consumer = self._join("classic")
        elif code in DENIED | ABSENT | NO_SUCH_PROTOCOL or code == KafkaError._FATAL:
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
            "max.poll.interval.ms": _LONGEST_STALL_MS,
        }
        if protocol == "classic":
            settings |= {"partition.assignment.strategy": "cooperative-sticky", "session.timeout.ms": 6000}
        consumer = Consumer({**self._cluster.client(self._faults), **settings})
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
