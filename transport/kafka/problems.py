"""What keeps topics from being durable, for `check`."""

from __future__ import annotations

from collections.abc import Mapping

from confluent_kafka.admin import ConfigResource  # type: ignore[attr-defined]

from transport.kafka.cluster import Cluster
from transport.topics import Topics


def problems_of(cluster: Cluster, own: Topics) -> list[tuple[str, str]]:
    """Return the weaknesses of the topics that are there, or of the cluster if there are none yet."""
    metadata = cluster.metadata()
    names = sorted(name for name in metadata.topics if name.startswith(own.prefix) and name != own.work)
    found: list[tuple[str, str]] = []
    if not names and len(metadata.brokers) < 3:
        found.append(
            (
                f"Kafka has {len(metadata.brokers)} broker(s): with one lost, all may be lost",
                "run three brokers, so that topics have three copies",
            )
        )
    configs = cluster.configs([ConfigResource("topic", name) for name in names])
    weak: dict[tuple[str, str], list[str]] = {}
    for name, config in zip(names, configs, strict=True):
        copies = min((len(p.replicas) for p in metadata.topics[name].partitions.values()), default=0)
        for complaint, remedy in _weaknesses(copies, config):
            weak.setdefault((complaint, remedy), []).append(name)
    for (complaint, remedy), topics in weak.items():
        more = f" and {len(topics) - 1} more" if len(topics) > 1 else ""
        found.append((f"topic {topics[0]}{more}: {complaint}", remedy))
    return found


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
    if config.get("cleanup.policy") != "delete":
        found.append(("compaction drops records before targets have them", "set cleanup.policy=delete"))
    for setting in ("retention.ms", "retention.bytes"):
        if config.get(setting) != "-1":
            found.append((f"records expire by {setting} before targets have them", f"set {setting}=-1"))
    return found
