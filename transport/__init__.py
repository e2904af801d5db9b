"""The log between the services: one protocol, three implementations."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from schemas.errors import ConfigInvalid
from transport.log import Log

DEFAULT_BUDGET = 20 * 1000**3
_NOTHING: Mapping[str, str] = MappingProxyType({})


def open_log(
    url: str | None,
    pipeline: str,
    state: Path,
    *,
    settings: Mapping[str, str] = _NOTHING,
    replication_factor: int | None = None,
    budget_bytes: int = DEFAULT_BUDGET,
    deadline_s: float = 60.0,
) -> Log:
    """Return the log that `url` names: `kafka://host:port,host:port`; None or `sqlite:` for files in `state`.

    Nothing is connected or made yet, and the log may be carried across a fork until it is first used. `settings`
    (librdkafka's names) and `replication_factor` count for Kafka, `budget_bytes` for files. Raises `ConfigInvalid`
    for any other URL.
    """
    # Each is imported only where it is used: librdkafka costs every start of a process that has no Kafka.
    if url is None or url.removesuffix("//") == "sqlite:":
        from transport.sqlite import SqliteLog

        return SqliteLog(state / "log", pipeline, budget_bytes=budget_bytes, wait_s=deadline_s)
    scheme, separator, rest = url.partition("://")
    hosts = rest.rstrip("/")
    if scheme != "kafka" or not separator or not hosts:
        raise ConfigInvalid(
            f"{url!r} is not the address of a log",
            remedy="write kafka://host:port,host:port, or leave it out for files beside the program",
        )
    from transport.kafka import KafkaLog

    return KafkaLog(hosts, pipeline, settings=settings, replication_factor=replication_factor, deadline_s=deadline_s)
