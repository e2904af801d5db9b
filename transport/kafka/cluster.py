"""The connection to the brokers that all of a log's clients share, and the questions put to them."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from confluent_kafka import IsolationLevel, KafkaException, TopicPartition
from confluent_kafka.admin import (  # type: ignore[attr-defined]
    AdminClient,
    ClusterMetadata,
    ConfigResource,
    OffsetSpec,
)

from schemas.errors import LogRewound, LogUnavailable
from transport.kafka.errors import MOVING, Faults, code_of, failure
from transport.log import Partition, Range

MESSAGE_BYTES = 8 << 20  # that our topics take: twice a piece, and what hosted brokers allow at most
TOPICS_A_CALL = 500
EARLIEST, LATEST = OffsetSpec.earliest(), OffsetSpec.latest()  # type: ignore[no-untyped-call]
_LOGGER = logging.getLogger("penstock.kafka")
_LOGGER.addHandler(logging.NullHandler())  # else what librdkafka takes for fatal goes to standard error


class Cluster:
    """The brokers, as every client of one log reaches them, and what is asked of them."""

    def __init__(self, bootstrap: str, pipeline: str, settings: Mapping[str, str], deadline_s: float) -> None:
        self.pipeline, self.deadline_s = pipeline, deadline_s
        self._bootstrap, self._settings = bootstrap, settings
        self._admin_client: AdminClient | None = None
        self._admin_process = 0
        self._admin_faults = Faults()

    def client(self, faults: Faults, **settings: object) -> dict[str, Any]:
        """Settings for one client; those given here are what correctness rests on, and win."""
        return {
            "client.id": "penstock",
            "reconnect.backoff.max.ms": 1000,  # a broker that is back is not to be waited for ten seconds more
            **self._settings,
            **{name.replace("_", "."): value for name, value in settings.items()},
            "bootstrap.servers": self._bootstrap,
            "log_level": 0,  # faults are told in our errors; a broker that restarts is none
            "logger": _LOGGER,
            "error_cb": faults.note,
        }

    @property
    def admin(self) -> AdminClient:
        """The client for questions, of this process: connections do not go across a fork."""
        if self._admin_client is None or self._admin_process != os.getpid():
            self._admin_client = AdminClient(self.client(self._admin_faults))
            self._admin_process = os.getpid()
        return self._admin_client

    def close(self) -> None:
        self._admin_client = None

    def metadata(self) -> ClusterMetadata:
        return self.admin.list_topics(timeout=self.deadline_s)

    def configs(self, resources: list[ConfigResource]) -> list[dict[str, str]]:
        found = []
        for at in range(0, len(resources), TOPICS_A_CALL):
            some = resources[at : at + TOPICS_A_CALL]
            answers = self.admin.describe_configs(some, request_timeout=self.deadline_s)
            for resource in some:
                entries = answers[resource].result(self.deadline_s)
                found.append({name: entry.value or "" for name, entry in entries.items()})
        return found

    def offsets(
        self, partitions: list[Partition], spec: OffsetSpec, passing: frozenset[int] = frozenset()
    ) -> dict[Partition, int]:
        """Ask the leaders, again while they change or answer with one of the errors that are `passing`."""
        found: dict[Partition, int] = {}
        deadline = time.monotonic() + self.deadline_s
        while missing := [p for p in partitions if p not in found]:
            asked = self.admin.list_offsets(
                {TopicPartition(*p): spec for p in missing[:TOPICS_A_CALL]},
                isolation_level=IsolationLevel.READ_UNCOMMITTED,
                request_timeout=self.deadline_s,
            )
            for where, answer in asked.items():
                try:
                    offset = int(answer.result(self.deadline_s).offset)
                except KafkaException as error:
                    if code_of(error) not in MOVING | passing or time.monotonic() >= deadline:
                        raise
                    if not passing and where.topic not in self.metadata().topics:
                        raise LogRewound(f"Kafka has no topic {where.topic}") from None
                    continue
                if offset >= 0:
                    found[Partition(where.topic, where.partition)] = offset
                elif time.monotonic() >= deadline:  # what the client answers of a broker that has gone away
                    raise LogUnavailable(f"Kafka does not say where {where.topic}/{where.partition} begins and ends")
            if any(Partition(where.topic, where.partition) not in found for where in asked):
                time.sleep(0.01)
        return found

    def end(self, partition: Partition) -> int:
        """Ask for the end of a partition, over a connection where no reader's long request is in the way: a broker
        answers one after the other."""
        return self.offsets([partition], LATEST)[partition]

    def bounds(self, partition: Partition) -> Range:
        return Range(self.offsets([partition], EARLIEST)[partition], self.end(partition))

    def await_topics(self, condition: Callable[[Mapping[str, Any]], bool], complaint: str) -> None:
        """Return when the metadata of all topics satisfies `condition`."""
        deadline = time.monotonic() + self.deadline_s
        while not condition(self.metadata().topics):
            if time.monotonic() >= deadline:
                raise LogUnavailable(f"Kafka: {complaint}")
            time.sleep(0.02)

    @contextmanager
    def translated(self, what: str) -> Iterator[None]:
        try:
            yield
        except KafkaException as error:
            raise failure(error.args[0], f"cannot {what}", self._admin_faults) from error
        except TimeoutError as error:
            raise LogUnavailable(f"cannot {what}: Kafka does not answer") from error
