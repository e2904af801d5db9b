"""A source for tests of the apply service: writes into a log in memory what capture and snapshot would write."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from typing import NamedTuple

from codec.copy import encode_batch
from codec.frames import pack
from codec.rows import Change, encode
from schemas.frontier import (
    HEAL,
    Chunk,
    Claim,
    Frontier,
    Manifest,
    Plan,
    Setup,
    SnapshotTaken,
    TableRegistered,
    TopicRange,
)
from schemas.pipeline import Mode
from schemas.record import Op, encode_control, value_schema_id
from schemas.table import Column, Definition, Identity, Objects, Table, TableId
from schemas.types import Kind
from transport.log import Block, Log, Partition, Range, Topic
from transport.memory import MemoryLog
from transport.topics import Topics
from transport.views import Registered, Tables

BEGINNING = 100
Row = tuple[str | None, ...]


class Written(NamedTuple):
    """One change of a row, before it has a place in a transaction."""

    table: str
    op: Op
    before: Row | None = None
    after: Row | None = None
    unchanged: tuple[int, ...] = ()


def insert(table: str, *row: str | None) -> Written:
    return Written(table, Op.INSERT, None, row)


def update(table: str, *row: str | None, before: Row | None = None, unchanged: tuple[int, ...] = ()) -> Written:
    return Written(table, Op.UPDATE, before, row, unchanged)


def delete(table: str, *row: str | None) -> Written:
    return Written(table, Op.DELETE, row)


def truncate(table: str) -> Written:
    return Written(table, Op.TRUNCATE)


KINDS = {
    "bigint": (Kind.INT64, 20),
    "integer": (Kind.INT32, 23),
    "text": (Kind.TEXT, 25),
    "numeric": (Kind.NUMERIC, 1700),
}


def make_table(
    name: str,
    columns: Sequence[tuple[str, str] | Column] = (("id", "bigint"), ("body", "text")),
    key: tuple[int, ...] = (0,),
    identity: Identity = Identity.KEY,
    definition: Definition | None = None,
) -> Table:
    """Return a table of schema `public`; columns are (name, type)."""
    made = tuple(
        column
        if isinstance(column, Column)
        else Column(
            name=column[0], source_type=column[1], kind=KINDS[column[1]][0], type_oid=KINDS[column[1]][1], number=at
        )
        for at, column in enumerate(columns, 1)
    )
    return Table(
        id=TableId("public", name), columns=made, key=key, identity=identity, definition=definition or Definition()
    )


class Source:
    """One source with its tables. `mode` as in the pipeline file; without a load, tables begin at `BEGINNING`."""

    def __init__(
        self, *tables: Table, mode: Mode = Mode.CHANGES, shared: int = 0, log: Log | None = None, set_up: bool = True
    ) -> None:
        self.log: Log = log or MemoryLog("p")
        self.topics = Topics("p")
        self.stack = ExitStack()
        self.log.create_topics(self.topics.fixed())
        self.writer = self.stack.enter_context(self.log.writer("changes"))
        self.control = self.stack.enter_context(self.log.writer("control"))
        self.loads = self.stack.enter_context(self.log.writer("load-0"))
        self.reader = self.stack.enter_context(self.log.reader())
        self.views = Tables(self.reader, self.topics)
        self.shared, self.mode = shared, mode
        self.position, self.xid, self.epoch, self.time = BEGINNING, 1000, -1, 1_000_000
        self.registered: dict[str, Registered] = {}
        for table in tables:
            self.register(table)
        if set_up:
            self.set_up()
        self.claim()

    def register(self, table: Table) -> Registered:
        changes, load = self.topics.changes(table.id, self.shared), self.topics.load(table.id, self.shared)
        self.log.create_topics([Topic(changes.topic), Topic(load.topic)])
        known = self.log.offsets(self.topics.tables).end
        entry = TableRegistered(table.model_dump_json(), changes.topic, changes.number, known=known)
        offset = self.control.put(self.topics.tables, encode_control(entry), str(table.id).encode())
        self.views.refresh()
        version = self.views.by_schema(value_schema_id(offset))
        self.registered[table.id.name] = version
        return version

    def set_up(self, objects: Objects | None = None) -> None:
        setup = Setup(
            system="source",
            slot="penstock_p",
            publications=(),
            position=BEGINNING,
            xmin=1000,
            xmax=1000,
            xip=(),
            objects=(objects or Objects()).model_dump_json(),
            mode=self.mode.value,
            shared_topics=self.shared,
            tables=tuple(version.schema_id for version in self.registered.values()),
        )
        self.control.put(self.topics.control, encode_control(setup))

    # ------------------------------------------------------------------------------------------------ changes

    def claim(self) -> None:
        """Begin a capture."""
        self.epoch = self.writer.put(self.topics.frontier, encode_control(Claim("test", self.time)))

    def commit(self, *changes: Written, xid: int | None = None) -> int:
        """Seal one transaction in a frontier of its own, and return its position."""
        return self.seal([(xid, changes)])

    def seal(self, transactions: Iterable[tuple[int | None, Iterable[Written]]] = ()) -> int:
        """Seal transactions in one frontier; without any it is an empty one."""
        blocks: dict[Partition, list[tuple[bytes | None, bytes | None]]] = {}
        schemas: dict[Partition, set[int]] = {}
        after = self.position
        for given, changes in transactions:
            self.position += 10
            self.time += 1000
            xid = self.xid = given if given is not None else self.xid + 1
            for ordinal, change in enumerate(changes):
                version = self.registered[change.table]
                partition = version.changes
                key, value = encode(
                    version.layout,
                    Change(
                        change.op,
                        self.epoch,
                        self.position,
                        xid,
                        ordinal,
                        self.time,
                        change.unchanged,
                        change.before,
                        change.after,
                    ),
                )
                blocks.setdefault(partition, []).append((key, value))
                schemas.setdefault(partition, set()).add(version.schema_id)
        if after == self.position:
            self.position += 1
        for partition, records in blocks.items():
            self.writer.append(partition, Block(len(records), pack(records)))

        def frontier(ranges: dict[Partition, Range]) -> bytes:
            named = tuple(
                TopicRange(p.topic, p.number, r.start, r.end, tuple(sorted(schemas[p]))) for p, r in ranges.items()
            )
            return encode_control(
                Frontier(self.epoch, after, self.position, self.time if blocks else 0, self.time, self.xid, named)
            )

        self.writer.seal(self.topics.frontier, frontier)
        return self.position

    def orphan(self, *changes: Written) -> None:
        """Leave records behind that no frontier names, as a capture that dies does."""
        for change in changes:
            version = self.registered[change.table]
            key, value = encode(
                version.layout,
                Change(change.op, self.epoch, 0, 1, 0, 0, change.unchanged, change.before, change.after),
            )
            self.writer.append(version.changes, Block(1, pack([(key, value)])))
        self.writer.flush()
        self.writer = self.stack.enter_context(self.log.writer("changes"))
        self.claim()

    # --------------------------------------------------------------------------------------------------- load

    def snapshot(self, xmin: int | None = None, xmax: int | None = None, xip: tuple[int, ...] = ()) -> int:
        """Take a snapshot that sees all that was committed, unless said otherwise; return its offset."""
        seen = self.xid + 1
        xmin, xmax = xmin or min(xip, default=xmax or seen), xmax or seen
        taken = SnapshotTaken("x", xmin, xmax, xip, self.position, 0, self.time)
        return self.control.put(self.topics.chunks, encode_control(taken))

    def plan(self, table: str, chunks: int = 1, generation: int = 1) -> None:
        version = self.registered[table]
        numbered = tuple(Chunk(number, "public", table, "", "", 1) for number in range(chunks))
        plan = Plan("public", table, generation, version.schema_id, numbered, ())
        self.control.put(self.topics.chunks, encode_control(plan))

    def chunk(self, table: str, number: int, rows: Sequence[Row], snapshot: int, generation: int = 1) -> None:
        """Write a chunk that is final."""
        self._chunk(table, number, [(Op.READ, None, row) for row in rows], len(rows), snapshot, generation)

    def heal(self, table: str, gone: Sequence[Row], rows: Sequence[Row], snapshot: int, generation: int = 1) -> None:
        changes = [(Op.DELETE, row, None) for row in gone] + [(Op.READ, None, row) for row in rows]
        self._chunk(table, HEAL, changes, len(changes), snapshot, generation)

    def _chunk(
        self,
        table: str,
        number: int,
        changes: Sequence[tuple[int, Row | None, Row | None]],
        rows: int,
        snapshot: int,
        generation: int,
    ) -> None:
        version = self.registered[table]
        partition = self.topics.load(version.table.id, self.shared)
        batches = [changes[at : at + 1000] for at in range(0, len(changes), 1000)]
        for batch in batches:
            self.loads.append(partition, Block(1, pack([(None, encode_batch(version.layout, batch))])))
        written = self.loads.flush().get(partition, Range(0, 0))
        manifest = Manifest(
            "public", table, generation, number, snapshot, partition.topic, partition.number, *written, rows, 0
        )
        self.control.put(self.topics.chunks, encode_control(manifest))

    def load(self, table: str, rows: Sequence[Row], chunks: int = 1, generation: int = 1) -> None:
        """Plan a table and write all of it as one snapshot shows it."""
        snapshot = self.snapshot()
        self.plan(table, chunks, generation)
        for number in range(chunks):
            self.chunk(table, number, rows[number::chunks], snapshot, generation)


def settle(*workers: object, steps: int = 2000, until: Callable[[], bool] | None = None) -> None:
    """Step the workers in turn until none has anything to do, or `until` holds."""
    idle = 0
    for _ in range(steps):
        if until is not None and until():
            return
        done = [worker.step() for worker in workers]  # type: ignore[attr-defined]
        idle = 0 if any(done) else idle + 1
        if idle > 20 and until is None:
            return
    raise AssertionError("the workers do not come to rest")
