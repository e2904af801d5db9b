"""Every version of every table that the log knows, and how capture adds one."""

from __future__ import annotations

import time
from collections.abc import Callable

from schemas.errors import RELOAD, ReplicationError, Superseded
from schemas.events import Event, EventKind
from schemas.frontier import Carried, Setup, Succeeded, TableRegistered
from schemas.record import encode_control, value_schema_id
from schemas.table import LeftOut, Table, TableId
from transport.log import LogReader, Partition
from transport.topics import Topics
from transport.views import Choices, Chunks, Registered, Registrations, Tables


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
        self._registrations = Registrations(reader, topics)
        self._chunks: Chunks | None = None  # read when the first table is left out
        self._epoch = -1
        self._versions: dict[TableId, list[Registered]] = {}
        self._in_order: list[Registered] = []
        self._choices = Choices()
        self.published: dict[TableId, Registered] = {}
        """The tables that the pipeline has, as far as `choose` was asked, with the versions they were published by."""

    def succeed(self, epoch: int) -> None:
        """Begin to register versions, as the capture of an epoch: those of earlier ones can't any more.

        Whoever stalled just before it registers something must not have the last word on a table when it goes on.
        """
        self._put(self._topics.tables, encode_control(Succeeded(epoch, self._micros())), b"")
        self._epoch = epoch

    def refresh(self) -> None:
        """Read on in `p.tables`."""
        for schema_id, _ in self._registrations.read():
            version = self._tables.by_schema(schema_id)
            self._versions.setdefault(version.table.id, []).append(version)
            self._in_order.append(version)

    def choose(self, setup: Setup) -> None:
        """Find out which tables the pipeline has by now."""
        self._choices.refresh(self._reader, self._topics)
        versions = map(self._tables.by_schema, self._choices.tables_of(setup))
        self.published = {version.id: version for version in versions}

    def in_order(self, start: int) -> list[Registered]:
        """Return the versions of all tables in the order of the log, but for the first ones."""
        return self._in_order[start:]

    def names(self) -> list[TableId]:
        """Return the tables that have a version."""
        return list(self._versions)

    def by_schema(self, schema_id: int) -> TableId:
        """Return the table that has a version with this row schema."""
        return self._tables.by_schema(schema_id).id

    def of(self, table: TableId) -> list[Registered]:
        """Return the versions of a table, oldest first; empty if the table is not the pipeline's."""
        return self._versions.get(table, [])

    def register(self, table: Table, changes: Partition) -> Registered:
        """Append a version of a table whose records go to `changes`, and return it once it is durable.

        A capture that dies afterwards leaves a version that nothing uses; the next one does not build on it. Raises
        `Superseded` if there is a next one already: then the version does not count.
        """
        entry = TableRegistered(table.model_dump_json(), changes.topic, changes.number, self._micros(), self._epoch)
        schema_id = value_schema_id(self._put(self._topics.tables, encode_control(entry), str(table.id).encode()))
        self.refresh()
        version = next((version for version in self.of(table.id) if version.schema_id == schema_id), None)
        if version is None:
            raise Superseded(f"another capture has claimed, and tells what becomes of {table.id}")
        return version

    def leave_out(self, table: TableId, cause: ReplicationError) -> Registered:
        """Register that rows of a table are not carried any more, tell people, and return the version that stands for
        them. Whoever captures obeys it, until somebody asks to load the table anew."""
        last = self.of(table)[-1]
        known = self._read_chunks().next
        remedy = f"{cause.remedy or 'mend that'}; then {RELOAD.format(table=table)}"
        left_out = LeftOut(cause=str(cause), remedy=remedy, known=known)
        version = self.register(last.table.model_copy(update={"left_out": left_out, "since": None}), last.changes)
        self._tell(EventKind.ERROR, table, f"is left out from here on: {cause}", remedy)
        return version

    def is_asked_for(self, table: TableId) -> bool:
        """Whether somebody has asked to load a table anew since it was left out, or it is not left out any more."""
        left_out = self.of(table)[-1].left_out
        return left_out is None or self._read_chunks().of(table).after >= left_out.known

    def carry(self, table: Table, max_xid: int) -> Registered:
        """Register a version of a table that was left out and is not from here on.

        `max_xid` is the largest transaction id that was given out before this was called. A capture that dies between
        the two records leaves it left out, and asked for.
        """
        self._put(self._topics.chunks, encode_control(Carried(*table.id, max_xid, self._micros())), b"")
        version = self.register(table, self.of(table.id)[-1].changes)
        self._tell(
            EventKind.NOTICE,
            table.id,
            "is carried again from here on, and will be read when all transactions have ended that run now",
        )
        return version

    def _tell(self, kind: EventKind, table: TableId, text: str, remedy: str = "") -> None:
        event = Event(self._micros(), kind.value, "capture", text, str(table), remedy=remedy)
        self._put(self._topics.events, encode_control(event), b"")

    def _read_chunks(self) -> Chunks:
        if self._chunks is None:
            self._chunks = Chunks(self._reader, self._topics)
        self._chunks.refresh()
        return self._chunks

    def _micros(self) -> int:
        return int(self._now() * 1_000_000)
