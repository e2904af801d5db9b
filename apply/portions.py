"""Reading what the frontiers of a portion name, as the changes and redefinitions that a target is to carry out."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field

from apply.cohort import Portion, Span
from apply.dead_letters import Tray
from apply.limits import Limits
from apply.standing import Standing
from apply.tables import TargetTables
from apply.target import Change, Redefinition, TableRefused, Target
from apply.trays import Trays
from codec.frames import pack, unpack
from codec.rows import Head, head
from schemas.errors import GapDetected, RowError, SchemaUnsupported
from schemas.frontier import Visibility
from schemas.pipeline import Ddl
from schemas.record import Op
from schemas.states import TableState
from schemas.table import TableId
from transport.log import LogReader, Partition, Range
from transport.views import Registered


@dataclass(slots=True)
class Reading:
    """What is found out while the pieces of a portion are read: complete when they all are.

    With `sifts` the rows are kept in mind one by one, because some of them were refused before.
    """

    sifts: bool
    counts: dict[TableId, int] = field(default_factory=lambda: defaultdict(int))  # of changes that were taken
    trays: dict[TableId, Tray] = field(default_factory=dict)


class PortionReader:
    """Reads portions for what stands where `standing` says."""

    def __init__(
        self,
        reader: LogReader,
        target: Target,
        tables: TargetTables,
        standing: Standing,
        trays: Trays,
        limits: Limits,
    ) -> None:
        self._reader, self._target, self._tables, self._standing = reader, target, tables, standing
        self._trays, self._limits = trays, limits

    def redefined(self, portion: Portion) -> dict[TableId, Registered]:
        """Let the target get ready for the versions in a portion, and return the last one of each table that is another
        one behind it than before."""
        last: dict[TableId, Registered] = {}
        for version, _, _ in self._records(portion):
            if (left_out := version.left_out) is not None:
                raise TableRefused(version.id, SchemaUnsupported(left_out.cause, remedy=left_out.remedy))
            before = last.get(version.id) or self._on_target(version.id)
            if version.schema_id != before.schema_id and self._tables.policy(version.id).ddl is Ddl.APPLY:
                self._target.get_ready(version)
            last[version.id] = version
        known = self._standing.tables
        return {table: version for table, version in last.items() if version.schema_id != known[table].schema_id}

    def pieces(self, portion: Portion, reading: Reading) -> Iterator[list[Change] | Redefinition]:
        """Read what a portion names and fold it; a piece is handed out whenever it is as large as may be."""
        return self._in_order(portion, reading) if portion.redefines else self._folded(portion, reading)

    def _folded(self, portion: Portion, reading: Reading) -> Iterator[list[Change]]:
        changes: dict[int, Change] = {}
        visibility = {schema_id: self._visibility(schema_id) for schema_id in portion.expected}
        counts, size = reading.counts, 0
        for partition, spans in portion.spans.items():
            for span in spans:
                count = 0
                for block in self._reader.read(partition, Range(span.start, span.end)):
                    count += block.offsets
                    for schema_id in span.schemas:
                        change = changes.get(schema_id)
                        if change is None:
                            change = changes[schema_id] = self._change(schema_id, portion, reading)
                        table = change.version.table.id
                        try:
                            taken = change.add(block.data, visibility[schema_id], span.epoch)
                        except RowError as error:
                            raise TableRefused(table, error) from error
                        counts[table] += taken
                    size += len(block.data) + 64 * block.count
                    if size >= self._limits.piece_bytes:
                        yield list(changes.values())
                        changes.clear()
                        size = 0
                _require_all(partition, span, count)
        if changes:
            yield list(changes.values())

    def _in_order(self, portion: Portion, reading: Reading) -> Iterator[list[Change] | Redefinition]:
        """Do so where tables become others on the way: record by record, which takes its time."""
        changes: dict[int, Change] = {}
        now: dict[TableId, Registered] = {}
        size = 0
        epochs = {span.epoch for spans in portion.spans.values() for span in spans}
        (epoch,) = epochs  # of a single frontier
        for version, about, data in self._records(portion):
            table = version.id
            before = now.get(table) or self._on_target(table)
            told = about.op is Op.DEFINE
            if told or before.schema_id != version.schema_id or size >= self._limits.piece_bytes:
                yield list(changes.values())
                changes.clear()
                size = 0
            if told or before.schema_id != version.schema_id:
                progress, ddl = self._standing.tables[table], self._tables.policy(table).ddl
                yield Redefinition(before, version, progress, told, ddl)
                now[table] = version
            if told:
                continue
            change = changes.get(version.schema_id)
            if change is None:
                change = changes[version.schema_id] = self._change(version.schema_id, portion, reading)
            try:
                reading.counts[table] += change.add(data, None, epoch)
            except RowError as error:
                raise TableRefused(table, error) from error
            size += len(data) + 64
        if changes:
            yield list(changes.values())

    def _records(self, portion: Portion) -> Iterator[tuple[Registered, Head, bytes]]:
        """Yield the records of a portion that count, each with its version and framed alone, those of each table in
        their order."""
        snapshots = {schema_id: self._snapshot(schema_id) for schema_id in portion.expected}
        for partition, spans in portion.spans.items():
            for span in spans:
                count = 0
                for block in self._reader.read(partition, Range(span.start, span.end)):
                    count += block.offsets
                    for key, value in unpack(block.data):
                        if value is None:
                            continue
                        about = head(value)
                        if about.schema_id not in span.schemas:
                            continue
                        snapshot = snapshots[about.schema_id]
                        if snapshot is not None and snapshot.sees(about.xid):
                            continue
                        yield self._tables.version_of(about.schema_id), about, pack(((key, value),))
                _require_all(partition, span, count)

    def _on_target(self, table: TableId) -> Registered:
        return self._tables.on_target(self._standing.tables[table])

    def _change(self, schema_id: int, portion: Portion, reading: Reading) -> Change:
        version = self._tables.version_of(schema_id)
        table = version.table.id
        tray = reading.trays.get(table)
        if tray is None and (tray := self._trays.for_changes(version, sifts=reading.sifts)) is not None:
            reading.trays[table] = tray
        version = self._tables.accepted(version)
        return Change(version, self._target.net(version, portion.expected[schema_id]), tray=tray)

    def _visibility(self, schema_id: int) -> tuple[int, int, frozenset[int]] | None:
        """Return what the loaded rows of a table show already, as the transcoder takes it."""
        snapshot = self._snapshot(schema_id)
        return (snapshot.xmin, snapshot.xmax, frozenset(snapshot.xip)) if snapshot is not None else None

    def _snapshot(self, schema_id: int) -> Visibility | None:
        """Return what the loaded rows of a table show already. A table that has joined its group is past all that."""
        progress = self._standing.tables[self._tables.version_of(schema_id).id]
        if progress.state is TableState.LIVE or progress.snapshot < 0:
            return None
        return self._tables.chunks.snapshots[progress.snapshot].visibility


def _require_all(partition: Partition, span: Span, count: int) -> None:
    """Raise `GapDetected` unless that are as many records as the frontiers have named."""
    if count != span.end - span.start:
        raise GapDetected(
            f"{partition.topic} holds {count} records from {span.start} to {span.end} instead of"
            f" {span.end - span.start}"
        )
