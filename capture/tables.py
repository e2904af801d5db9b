"""Every version of every table that the log knows, and how capture adds one."""

from __future__ import annotations

import time
from collections.abc import Callable

from schemas.frontier import TableRegistered
from schemas.record import encode_control, value_schema_id
from schemas.table import Table, TableId
from transport.log import LogReader, Partition
from transport.topics import Topics
from transport.views import Registered, Tables


class TableVersions:
    """The registered versions of all tables, oldest first, with a way to register another one.

    `put` appends one record to a partition and returns its offset once it is durable: a version must be in the log
    before a frontier names a record that was written with it.
    """

    def __init__(
        self,
        reader: LogReader,
        topics: Topics,
        put: Callable[[Partition, bytes, bytes], int],
        now: Callable[[], float] = time.time,
    ) -> None:
        self._reader, self._topics, self._put, self._now = reader, topics, put, now
        self._tables = Tables(reader, topics)
        self._next = 0
        self._versions: dict[TableId, list[Registered]] = {}

    def refresh(self) -> None:
        """Read on in `p.tables`."""
        while records := self._reader.records(self._topics.tables, self._next):
            for record in records:
                self._next = record.offset + 1
                if record.value is not None:
                    version = self._tables.by_schema(value_schema_id(record.offset))
                    self._versions.setdefault(version.table.id, []).append(version)

    def names(self) -> list[TableId]:
        """Return the tables that have a version."""
        return list(self._versions)

    def of(self, table: TableId) -> list[Registered]:
        """Return the versions of a table, oldest first; empty if the table is not the pipeline's."""
        return self._versions.get(table, [])

    def register(self, table: Table, changes: Partition) -> Registered:
        """Append a version of a table whose records go to `changes`, and return it once it is durable.

        A capture that dies afterwards leaves a version that nothing uses, which is harmless.
        """
        entry = TableRegistered(table.model_dump_json(), changes.topic, changes.number, int(self._now() * 1_000_000))
        key = str(table.id).encode()
        offset = self._put(self._topics.tables, encode_control(entry), key)
        self.refresh()
        return self._tables.by_schema(value_schema_id(offset))
