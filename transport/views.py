"""What the control topics say, read on and on: valid frontiers, tables, plans and chunks, the setup.

The rules of the protocol that every service must see alike stand here once. A view belongs to one reader and is
brought up to date by `refresh` or `poll`; it never waits.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cached_property
from typing import NamedTuple

from pydantic import BaseModel

from codec.layout import Layout
from schemas.errors import GapDetected, LogRewound
from schemas.frontier import (
    HEAL,
    Admitted,
    Carried,
    Chosen,
    Claim,
    Command,
    CommandKind,
    Freed,
    Frontier,
    GivenUp,
    Manifest,
    Plan,
    Setup,
    SnapshotTaken,
    Succeeded,
    TableRegistered,
    Trimmed,
    Unneeded,
)
from schemas.record import decode_control, is_control, value_schema_id
from schemas.table import LeftOut, Table, TableId
from transport.log import LogReader, Partition, Record
from transport.topics import Topics


class ValidFrontier(NamedTuple):
    """A frontier that counts, and the offset it stands at."""

    offset: int
    frontier: Frontier


class Frontiers:
    """The valid frontiers, in order, from `start` on; without it from where they begin, wherever that is by now.

    A frontier is valid if its epoch is the offset of the latest claim before it; `epoch` is the one in force at
    `start`. `next` and `epoch` say where the view stands: to go on from there later, both must be kept. A view
    without `start` goes on where they begin if it comes too late for some of them: whoever needs each one looks at
    `trimmed`.
    """

    def __init__(self, reader: LogReader, topics: Topics, start: int | None = None, epoch: int = -1) -> None:
        self._reader, self._topics, self._partition = reader, topics, topics.frontier
        self._from_beginning, self._begun = start is None, start is not None
        self.next, self.epoch = start or 0, epoch
        self.holder = ""  # who made the last claim that this view has seen
        self.last: ValidFrontier | None = None
        self.trimmed: Trimmed | None = None  # what this view has passed over, because it is forgotten

    @property
    def position(self) -> int:
        """The source position of the last valid frontier that this view has seen or passed over; 0 if none."""
        seen = self.last.frontier.position if self.last else 0
        return max(seen, self.trimmed.position) if self.trimmed else seen

    def poll(self, limit: int = 1000, *, fresh: bool = True) -> list[ValidFrontier]:
        """Return the next valid frontiers among at most `limit` records that are there; claims and the frontiers of
        superseded captures are passed over. An empty answer with `next` unchanged means there is no more, or without
        `fresh` that none was a moment ago, see `LogReader.records`."""
        found = []
        for record in self._records(limit, fresh):
            assert record.value is not None
            entry = decode_control(record.value)
            self.next = record.offset + 1
            if isinstance(entry, Claim):
                self.epoch, self.holder = record.offset, entry.holder
            elif entry.epoch == self.epoch:
                self.last = ValidFrontier(record.offset, entry)
                found.append(self.last)
        return found

    def to_end(self) -> ValidFrontier | None:
        """Read all there is and return the last valid frontier of this view."""
        at = -1
        while at != self.next:
            at = self.next
            self.poll()
        return self.last

    def _records(self, limit: int, fresh: bool) -> list[Record]:
        if not self._begun:
            self._begun = True
            self._pass_over()
        while True:
            try:
                return self._reader.records(self._partition, self.next, limit, fresh=fresh)
            except LogRewound:
                # Trimmed since we looked where they begin, unless that is no reason.
                if not self._from_beginning or not self._pass_over():
                    raise

    def _pass_over(self) -> bool:
        """Go to where the frontiers begin now, if that is farther on; return whether it is."""
        trimmed = read_trimmed(self._reader, self._topics)
        if trimmed is None or trimmed.offset <= self.next:
            return False
        self.next, self.epoch, self.trimmed = trimmed.offset, trimmed.epoch, trimmed
        return True


class _Named(BaseModel):
    """Of a table in JSON only what it is called, and whether its rows are carried."""

    id: TableId
    renamed: TableId | None = None
    left_out: LeftOut | None = None


class Registered:
    """One version of a table, as its records need it.

    What it is made of is read when somebody asks for it: of thousands of tables most services need few.
    """

    def __init__(self, schema_id: int, entry: TableRegistered) -> None:
        self.schema_id = schema_id
        self.changes = Partition(entry.topic, entry.partition)
        named = _Named.model_validate_json(entry.table)
        self.id, self.name, self.left_out = named.id, named.renamed or named.id, named.left_out
        self._text = entry.table

    @cached_property
    def table(self) -> Table:
        return Table.model_validate_json(self._text)

    @cached_property
    def layout(self) -> Layout:
        return Layout.of(self.table, self.schema_id)

    def like(self, table: Table) -> Registered:
        """Return a version as which the table is this one, but for what its rows don't tell."""
        return Registered(
            self.schema_id, TableRegistered(table.model_dump_json(), self.changes.topic, self.changes.number)
        )


class Registrations:
    """What is registered in `p.tables`, in order: the versions of tables that count.

    A version does not if who registered it may have stalled before: if a capture had a successor by then, and if
    somebody else did not know the last version of the table.
    """

    def __init__(self, reader: LogReader, topics: Topics) -> None:
        self._reader, self._partition = reader, topics.tables
        self._epoch = -1
        self._last: dict[bytes | None, int] = {}  # the offset of the last version that counts, by the record's key
        self.next = 0

    def read(self) -> Iterator[tuple[int, TableRegistered]]:
        """Read on, and yield versions by the ids of their row schemas."""
        while records := self._reader.records(self._partition, self.next):
            for record in records:
                self.next = record.offset + 1
                if record.value is None:
                    continue
                entry = decode_control(record.value)
                if isinstance(entry, Succeeded):
                    self._epoch = max(self._epoch, entry.epoch)
                    continue
                assert isinstance(entry, TableRegistered)
                if entry.epoch >= self._epoch if entry.epoch >= 0 else self._last.get(record.key, -1) < entry.known:
                    self._last[record.key] = record.offset
                    yield value_schema_id(record.offset), entry


class Tables:
    """Every registered version of every table."""

    def __init__(self, reader: LogReader, topics: Topics) -> None:
        self._registrations = Registrations(reader, topics)
        self._versions: dict[int, Registered] = {}
        self._latest: dict[TableId, Registered] = {}
        self._left_out: dict[TableId, LeftOut] = {}

    def refresh(self) -> bool:
        """Read on; return whether there was anything new."""
        before = self._registrations.next
        for schema_id, entry in self._registrations.read():
            version = self._versions[schema_id] = Registered(schema_id, entry)
            if version.left_out is None:
                self._latest[version.id] = version
                self._left_out.pop(version.id, None)
            else:
                self._left_out[version.id] = version.left_out
        return self._registrations.next != before

    def by_schema(self, schema_id: int) -> Registered:
        """Return a version by the id of its row schema. Raises `GapDetected` if the log does not know it."""
        if schema_id not in self._versions:
            self.refresh()
        if schema_id not in self._versions:
            raise GapDetected(f"no table is registered for schema id {schema_id}")
        return self._versions[schema_id]

    def latest(self, table: TableId) -> Registered | None:
        """Return the latest version of a table that this view has seen, and that rows are carried of."""
        return self._latest.get(table)

    def all_latest(self) -> Iterable[Registered]:
        """Return the latest version of each table that this view has seen."""
        return self._latest.values()

    def left_out(self, table: TableId) -> LeftOut | None:
        """Return why capture carries no rows of a table, if it does not."""
        return self._left_out.get(table)


class Issued(NamedTuple):
    """A command, the offset it stands at, and of a reload the generation that is its own: no plan ever has it."""

    offset: int
    command: Command
    generation: int = -1

    @property
    def table(self) -> TableId:
        return TableId(self.command.table_schema, self.command.table_name)

    @property
    def reloads(self) -> bool:
        """Whether the table is to be loaded anew, all of it or a part."""
        return self.command.kind == CommandKind.RELOAD

    @property
    def is_partial(self) -> bool:
        """Whether only a part of the table is."""
        return self.reloads and bool(self.command.where)

    def is_for(self, target: str) -> bool:
        return self.command.target in {"", target}


class Part:
    """A part of a table that one target gets anew. It is read as one chunk, `HEAL`: rows that replace others by key."""

    def __init__(self, issued: Issued) -> None:
        self.issued = issued
        self.manifest: Manifest | None = None  # once it is final
        self.given_up = False

    @property
    def settled(self) -> bool:
        """Whether nothing is left to be read of it."""
        return self.manifest is not None or self.given_up


class TableChunks:
    """What is known of one table's load: the plan that counts, and the chunks that are final; and of parts of it that
    targets which have the table get anew."""

    def __init__(self) -> None:
        self.plan: Plan | None = None
        self.plan_offset = -1
        self.manifests: dict[int, Manifest] = {}
        self.given_up: GivenUp | None = None  # why what is missing of the plan can't be read
        self.outdated = False  # to be planned again, for a target that can't be loaded from what is there
        self.generation = -1  # the last that was given out, to a plan or to a command
        # Offset of the last command to load it anew, or of what carries it out in capture: only newer snapshots show
        # what is wanted.
        self.after = -1
        self.parts: dict[int, Part] = {}  # by the generations of their commands

    @property
    def missing(self) -> list[int]:
        """Numbers of the chunks that nobody has finished yet."""
        if self.plan is None or self.outdated or self.given_up is not None:
            return []
        return [c.number for c in self.plan.chunks if c.number not in self.manifests]

    @property
    def healed(self) -> bool:
        return HEAL in self.manifests

    def snapshots(self) -> set[int]:
        """Return the snapshots that ordinary chunks were read in, by their offsets."""
        return {m.snapshot for n, m in self.manifests.items() if n != HEAL}

    def used(self) -> set[int]:
        """Return all snapshots in which something of the table was read that counts."""
        parts = {part.manifest.snapshot for part in self.parts.values() if part.manifest is not None}
        return {manifest.snapshot for manifest in self.manifests.values()} | parts

    def wants(self, manifest: Manifest) -> bool:
        """Whether a chunk would count if it became final now."""
        part = self.parts.get(manifest.generation)
        if part is not None:
            return manifest.chunk == HEAL and not part.settled and manifest.snapshot > part.issued.offset
        return (
            self.plan is not None
            and self.given_up is None
            and manifest.generation == self.plan.generation
            and manifest.snapshot > self.after
            and manifest.chunk not in self.manifests
        )

    def needs_healing(self) -> bool:
        """Whether all chunks are final but were read in several snapshots."""
        return self._all_final() and len(self.snapshots()) > 1 and not self.healed

    def complete(self) -> bool:
        """Whether what is final, loaded, equals the table as one snapshot shows it."""
        return self._all_final() and not self.needs_healing()

    def ended(self) -> bool:
        """Whether nothing is left to be read of the whole table: it is complete, or can't be."""
        return self.complete() or (self.given_up is not None and not self.outdated)

    def settled(self) -> bool:
        """Whether nothing is left to be read, of all of it or of parts."""
        return self.ended() and all(part.settled for part in self.parts.values())

    def _all_final(self) -> bool:
        return self.plan is not None and not self.outdated and self.given_up is None and not self.missing

    def effective_snapshot(self) -> int | None:
        """Return the one snapshot that the loaded rows stand for: the only one used, or the one that healed them."""
        if not self.complete():
            return None
        if self.healed:
            return self.manifests[HEAL].snapshot
        return next(iter(self.snapshots()), None)


class Choices:
    """Which tables the pipeline has, and which were ever added to it: by those `Chosen` that count."""

    def __init__(self) -> None:
        self.next = 0
        self.last: Chosen | None = None
        self.added: set[TableId] = set()
        self._at = -1

    def take(self, offset: int, chosen: Chosen) -> bool:
        """Take note of a record; return whether it counts. It does if its author knew the last one that did."""
        if chosen.known <= self._at:
            return False
        self.last, self._at = chosen, offset
        self.added.update(TableId(name.table_schema, name.table_name) for name in chosen.added)
        return True

    def refresh(self, reader: LogReader, topics: Topics) -> None:
        """Read on in `p.chunks`, and pass over all else there."""
        while records := reader.records(topics.chunks, self.next):
            for record in records:
                self.next = record.offset + 1
                if record.value is not None and is_control(record.value, Chosen):
                    self.take(record.offset, decode_control(record.value))

    def tables_of(self, setup: Setup) -> tuple[int, ...]:
        """Return the schema ids of the tables that the pipeline has now."""
        return self.last.tables if self.last is not None else setup.tables

    def patterns_of(self, setup: Setup) -> tuple[str, ...]:
        """Return what tables have to fit that the pipeline takes over by itself."""
        return self.last.patterns if self.last is not None else setup.patterns


class Chunks:
    """Snapshots, plans and manifests of all tables."""

    def __init__(self, reader: LogReader, topics: Topics) -> None:
        self._reader, self._partition = reader, topics.chunks
        self.next = 0
        self.snapshots: dict[int, SnapshotTaken] = {}
        self.tables: dict[TableId, TableChunks] = {}
        self.admitted: Admitted | None = None
        self._choices = Choices()
        self.commands: list[Issued] = []  # in order
        self.forgotten = -1  # up to this transaction the log may not tell any more what a snapshot does not show
        self.unneeded: tuple[int, bool] = -1, False  # where the last `Unneeded` stands, and whether it counts
        self._unneeded_xid = -1  # or not there, in the case of a table that was left out
        self._passed: dict[int, int] = {}  # the same when a snapshot was taken
        self._reloads = -1  # offset of the last command to load a table anew
        self.superseded: dict[Partition, int] = {}  # the ends of chunks that do not count, or not any more
        self._trimmed = 0
        self._freed: dict[Partition, int] = {}

    def refresh(self, *, fresh: bool = True) -> bool:
        """Read on; return whether there was anything new. Without `fresh` see `LogReader.records`.

        The first plan of a generation and the first manifest of a chunk count; a higher generation makes a table
        begin again, unless it is complete.
        """
        before = self.next
        while records := self._reader.records(self._partition, self.next, fresh=fresh):
            for record in records:
                self.next = record.offset + 1
                assert record.value is not None
                entry = decode_control(record.value)
                if isinstance(entry, SnapshotTaken):
                    self.snapshots[record.offset] = entry
                    self._passed[record.offset] = self._unneeded_xid
                    continue
                if isinstance(entry, Chosen):
                    for name in entry.added if self._choices.take(record.offset, entry) else ():
                        asked = Command(
                            CommandKind.RELOAD, name.table_schema, name.table_name, "", "", entry.by, entry.at
                        )
                        self._take_command(record.offset, asked)
                    continue
                if isinstance(entry, Unneeded):
                    self.unneeded = record.offset, entry.known > self._reloads
                    if entry.known > self._reloads:
                        self._unneeded_xid = max(self._unneeded_xid, entry.max_xid)
                    continue
                if isinstance(entry, Admitted):
                    self._admit(entry)
                    continue
                if isinstance(entry, Carried):
                    self.tables.setdefault(
                        TableId(entry.table_schema, entry.table_name), TableChunks()
                    ).after = record.offset
                    self._unneeded_xid = max(self._unneeded_xid, entry.max_xid)
                    continue
                if isinstance(entry, Command):
                    self._take_command(record.offset, entry)
                    continue
                if isinstance(entry, Freed):
                    partition = Partition(entry.topic, entry.partition)
                    self._freed[partition] = max(self._freed.get(partition, 0), entry.end)
                    continue
                assert isinstance(entry, Plan | Manifest | GivenUp)
                chunks = self.tables.setdefault(TableId(entry.table_schema, entry.table_name), TableChunks())
                if isinstance(entry, GivenUp):
                    self._take_given_up(chunks, entry)
                elif isinstance(entry, Plan):
                    if entry.generation > chunks.generation and not chunks.complete():
                        for manifest in chunks.manifests.values():
                            self._supersede(manifest)
                        chunks.plan, chunks.plan_offset, chunks.manifests = entry, record.offset, {}
                        chunks.generation, chunks.outdated, chunks.given_up = entry.generation, False, None
                elif self.is_freed(entry) or not chunks.wants(entry):
                    self._supersede(entry)
                elif (part := chunks.parts.get(entry.generation)) is not None:
                    part.manifest = entry
                else:
                    chunks.manifests[entry.chunk] = entry
        return self.next != before

    @property
    def chosen(self) -> Chosen | None:
        """What tells of other tables than those of the setup; None as long as it is those."""
        return self._choices.last

    def tables_of(self, setup: Setup) -> tuple[int, ...]:
        """Return the schema ids of the tables that the pipeline has now."""
        return self._choices.tables_of(setup)

    def is_freed(self, manifest: Manifest) -> bool:
        """Whether a chunk that is not final can't become so any more, because its rows may be gone."""
        return manifest.start < self._freed.get(Partition(manifest.topic, manifest.partition), 0)

    def _take_given_up(self, chunks: TableChunks, given_up: GivenUp) -> None:
        """Note what can't be read; what is final already, is."""
        if (part := chunks.parts.get(given_up.generation)) is not None:
            part.given_up = part.manifest is None
        elif chunks.plan is not None and chunks.plan.generation == given_up.generation and not chunks.complete():
            chunks.given_up = chunks.given_up or given_up

    def _supersede(self, manifest: Manifest) -> None:
        partition = Partition(manifest.topic, manifest.partition)
        self.superseded[partition] = max(self.superseded.get(partition, 0), manifest.end)

    def _take_command(self, offset: int, command: Command) -> None:
        """Note a command. To load a table anew takes a generation for itself: so a plan of somebody who has not seen
        the command does not count, and a target that waits for the new load has none that anybody could go on with.
        What is asked for the whole table comes instead of all parts that were asked for before."""
        issued = Issued(offset, command)
        if issued.reloads:
            chunks = self.tables.setdefault(issued.table, TableChunks())
            chunks.generation += 1
            self._reloads = offset
            issued = issued._replace(generation=chunks.generation)
            if issued.is_partial:
                chunks.parts[issued.generation] = Part(issued)
            else:
                chunks.outdated, chunks.after = True, offset
                for generation, part in list(chunks.parts.items()):
                    if issued.is_for(part.issued.command.target):
                        del chunks.parts[generation]
        self.commands.append(issued)

    def _admit(self, admitted: Admitted) -> None:
        self.admitted = admitted
        if admitted.trimmed > self._trimmed:
            self._trimmed, self.forgotten = admitted.trimmed, admitted.max_xid
            for chunks in self.tables.values():
                chunks.outdated = True

    def is_replayable(self, snapshot: int) -> bool:
        """Whether the log tells of everything that a snapshot does not show, for every target that may need it."""
        return self.snapshots[snapshot].xmin > max(self.forgotten, self._passed[snapshot])

    @property
    def shown_by_all(self) -> int:
        """The transaction up to which a snapshot that is taken now must show everything."""
        return max(self.forgotten, self._unneeded_xid)

    def of(self, table: TableId) -> TableChunks:
        """Return what is known of a table; empty if nothing is."""
        return self.tables.get(table) or TableChunks()


def read_setup(reader: LogReader, topics: Topics) -> Setup | None:
    """Return the pipeline's setup: the first that was written before anybody else claimed; None before there is one."""
    epoch, at = -1, 0
    while records := reader.records(topics.control, at):
        for offset, _, value in records:
            at = offset + 1
            entry = decode_control(value) if value is not None else None
            if isinstance(entry, Claim):
                epoch = offset
            elif isinstance(entry, Setup) and entry.epoch == epoch:
                return entry
    return None


def read_trimmed(reader: LogReader, topics: Topics) -> Trimmed | None:
    """Return where the frontiers begin; None as long as all are there."""
    return max((trimmed for _, trimmed in trims(reader, topics)), key=lambda trimmed: trimmed.offset, default=None)


def trims(reader: LogReader, topics: Topics) -> Iterator[tuple[int, Trimmed]]:
    """Yield all that was ever said about what is forgotten, and the offset behind it in `p.control`."""
    at = 0
    while records := reader.records(topics.control, at):
        for offset, _, value in records:
            at = offset + 1
            entry = decode_control(value) if value is not None else None
            if isinstance(entry, Trimmed):
                yield at, entry
