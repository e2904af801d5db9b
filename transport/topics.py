"""Names of a pipeline's topics, and which topic a table's changes go to."""

from __future__ import annotations

import re
import zlib

from schemas.table import TableId
from transport.log import WORK_PARTITIONS, Log, Partition, Topic

_UNSAFE = re.compile(r"[^A-Za-z0-9_-]")
_LONGEST = 249  # Kafka's limit


class Topics:
    """The topics of one pipeline."""

    def __init__(self, pipeline: str) -> None:
        self.prefix = f"{pipeline}."
        self.frontier = Partition(f"{pipeline}.frontier")
        self.chunks = Partition(f"{pipeline}.chunks")
        self.tables = Partition(f"{pipeline}.tables")
        self.control = Partition(f"{pipeline}.control")
        self.events = Partition(f"{pipeline}.events")
        self.work = f"{pipeline}.work"

    def fixed(self) -> list[Topic]:
        """Return the topics that every pipeline has."""
        return [
            Topic(self.frontier.topic),
            Topic(self.chunks.topic),
            Topic(self.tables.topic),  # every version is needed for as long as there are records of it
            Topic(self.control.topic),
            Topic(self.events.topic),
            Topic(self.work, WORK_PARTITIONS),
        ]

    def are_made(self, log: Log) -> bool:
        """Whether a log has all the topics that every pipeline has."""
        return {topic.name for topic in self.fixed()} <= {topic.name for topic in log.topics(self.prefix)}

    def changes(self, table: TableId, shared: int = 0) -> Partition:
        """Return where the changes of a table go: a topic of its own, or one of `shared` by the name's hash."""
        if shared:
            return Partition(f"{self.prefix}changes.{zlib.crc32(str(table).encode()) % shared}")
        return Partition(self._of("changes", table))

    def load(self, table: TableId, shared: int = 0) -> Partition:
        """Return where the chunks of a table go."""
        if shared:
            return Partition(f"{self.prefix}load.{zlib.crc32(str(table).encode()) % shared}")
        return Partition(self._of("load", table))

    def _of(self, what: str, table: TableId) -> str:
        """A name in Kafka's alphabet; distinct tables never share one: whatever was changed is told by a hash."""
        plain = f"{_UNSAFE.sub('_', table.schema)}.{_UNSAFE.sub('_', table.name)}"
        name = f"{self.prefix}{what}.{plain}"
        if plain == str(table) and "." not in table.schema + table.name and len(name) <= _LONGEST:
            return name
        digest = f"{zlib.crc32(repr(tuple(table)).encode()):08x}"
        return f"{name[: _LONGEST - 9]}-{digest}"
