"""A source that does what a test says, and the few helpers to run holder and workers over a log in memory."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

from codec.copy import encode_batch
from codec.frames import pack, unpack
from codec.rows import Change, decode_batch, encode
from schemas.errors import LogUnavailable, ReplicationError, SnapshotLost
from schemas.frontier import Chunk, Claim, Frontier, Manifest, Plan, Setup, SnapshotTaken, TopicRange, Visibility
from schemas.pipeline import Pipeline
from schemas.record import Op, decode_control, encode_control
from schemas.table import Column, Identity, Leaf, Objects, SetupObjects, Table, TableId
from schemas.types import Kind
from snapshot.holder import Holder
from snapshot.loop import SnapshotWorker
from snapshot.reader import GONE, Held, Mark, Planned, Prepared, Rows
from transport.log import Block, LogWriter, Partition, Range
from transport.memory import MemoryLog
from transport.topics import Topics
from transport.views import Chunks, Registered, Tables, read_setup

TOPICS = Topics("p")
A, B = TableId("s", "a"), TableId("s", "b")

Values = dict[str, str]


def table(id: TableId, *, keyed: bool = True) -> Table:
    return Table(
        id=id,
        columns=(
            Column(name="id", kind=Kind.INT64, source_type="bigint", number=1, nullable=False),
            Column(name="v", kind=Kind.TEXT, source_type="text", number=2),
        ),
        key=(0,) if keyed else (),
        identity=Identity.KEY if keyed else Identity.NOTHING,
        leaves=(Leaf(id=id),),
    )


class Clock:
    def __init__(self) -> None:
        self.time = 1000.0

    def __call__(self) -> float:
        return self.time


@dataclass
class Database:
    """Rows of now and of every snapshot, by key; where the rows lie; and what is to go wrong."""

    tables: dict[TableId, Table]
    rows: dict[TableId, Values] = field(default_factory=dict)
    node: dict[TableId, str] = field(default_factory=dict)
    chunks: dict[TableId, int] = field(default_factory=dict)
    next_xid: int = 100
    running: set[int] = field(default_factory=set)
    position: int = 1000
    # of every snapshot that was taken, by name
    seen_rows: dict[str, dict[TableId, Values]] = field(default_factory=dict)
    seen_node: dict[str, dict[TableId, str]] = field(default_factory=dict)
    alive: set[str] = field(default_factory=set)
    claimed: object | None = None
    slot: int | None = None
    slots_made: int = 0
    log: list[str] = field(default_factory=list)
    failing: Callable[[str], None] = lambda call: None

    def called(self, call: str) -> None:
        self.failing(call)
        self.log.append(call)

    def visibility(self) -> Visibility:
        running = tuple(sorted(self.running))
        return Visibility(min(running, default=self.next_xid), self.next_xid, running)

    def snapshot(self) -> ScriptedHeld:
        name = f"snapshot-{len(self.seen_rows) + 1}"
        self.seen_rows[name] = {id: dict(rows) for id, rows in self.rows.items()}
        self.seen_node[name] = dict(self.node)
        self.alive.add(name)
        return ScriptedHeld(self, name, self.visibility())

    def xid(self) -> int:
        self.next_xid += 1
        return self.next_xid - 1


class ScriptedHeld:
    def __init__(self, db: Database, name: str, visibility: Visibility) -> None:
        self._db, self.name, self.visibility = db, name, visibility

    def ping(self) -> None:
        if self.name not in self._db.alive:
            raise SnapshotLost(self.name)

    def close(self) -> None:
        self._db.alive.discard(self.name)


class ScriptedSource:
    def __init__(self, db: Database) -> None:
        self._db = db

    def claim(self) -> bool:
        if self._db.claimed is None:
            self._db.claimed = self
        return self._db.claimed is self

    def is_prepared(self) -> bool:
        return self._db.slot is not None

    def catalogue(
        self, chooses: Callable[[TableId], bool], choices: Sequence[tuple[str, ...]] = ()
    ) -> tuple[SetupObjects, list[Table]]:
        self._db.called("catalogue")
        of_choices = tuple((choice, Objects(schemas=("s",))) for choice in choices)
        objects = SetupObjects(schemas=("s",), of_choices=of_choices)
        return objects, [t for t in self._db.tables.values() if chooses(t.id)]

    def prepare(self, tables: Sequence[Table], *, hold: bool) -> Prepared:
        self._db.called("prepare")
        self._db.slots_made += 1
        self._db.position += 10
        self._db.slot = self._db.position
        held = self._db.snapshot()
        if not hold:
            held.close()
        return Prepared("system", "slot", ("all", "keyless"), self._db.slot, held.visibility, held if hold else None)

    def take(self) -> Held:
        self._db.called("take")
        return self._db.snapshot()

    def announce(self) -> int:
        self._db.called("announce")
        self._db.xid()
        self._db.position += 10
        return self._db.position

    def ping(self) -> None:
        self._db.called("ping")

    def close(self) -> None:
        if self._db.claimed is self:
            self._db.claimed = None


class ScriptedReader:
    """Chunk n of a table that is divided in m holds the keys that leave n when divided by m."""

    def __init__(self, db: Database) -> None:
        self._db, self._open = db, ""
        self.closed = False

    def open(self, snapshot: str) -> None:
        assert not self.closed
        self._db.called(f"open {snapshot}")
        if snapshot not in self._db.alive:
            raise SnapshotLost(snapshot)
        self._open = snapshot

    def plan(self, tables: Sequence[Table]) -> list[Planned]:
        return [self._plan(table) for table in tables]

    def _plan(self, table: Table) -> Planned:
        self._db.called(f"plan {table.id}")
        number = self._db.chunks.get(table.id, 1)
        chunks = tuple(Chunk(n, *table.id, str(n), str(number), 1) for n in range(number))
        return Planned(chunks, (self._db.node.get(table.id, GONE),))

    def marks(self, leaves: Sequence[TableId]) -> list[Mark]:
        assert self._open
        return [Mark(self._db.seen_node[self._open].get(leaf, GONE), self._db.node.get(leaf, GONE)) for leaf in leaves]

    def leave(self, leaves: Sequence[TableId]) -> list[Mark]:
        marks = self.marks(leaves)
        self.release()
        return marks

    def read(self, version: Registered, chunk: Chunk) -> Iterator[Rows]:
        assert self._open
        self._db.called(f"read {version.table.id}/{chunk.number} in {self._open}")
        rows = self._db.seen_rows[self._open][version.table.id]
        wanted = {key: value for key, value in rows.items() if int(key) % int(chunk.upper) == int(chunk.lower)}
        for row in wanted.items():
            yield Rows(encode_batch(version.layout, [(Op.READ, None, row)]), 1)
            self._db.called(f"row of {version.table.id}/{chunk.number}")

    def read_keys(self, version: Registered, keys: Sequence[tuple[str, ...]]) -> Iterator[Rows]:
        assert self._open
        self._db.called(f"keys of {version.table.id} in {self._open}: {' '.join(sorted(k for (k,) in keys))}")
        rows = self._db.seen_rows[self._open][version.table.id]
        found = [(key, rows[key]) for (key,) in keys if key in rows]
        if found:
            yield Rows(encode_batch(version.layout, [(Op.READ, None, row) for row in found]), len(found))

    def read_where(self, version: Registered, condition: str) -> Iterator[Rows]:
        """Knows conditions that name a key."""
        yield from self.read_keys(version, [(condition,)])

    def release(self) -> None:
        self._open = ""

    def close(self) -> None:
        self.closed = True


class RefusingLog(MemoryLog):
    """Can be made to take nothing more."""

    def __init__(self, pipeline: str) -> None:
        super().__init__(pipeline, eager=True)
        self.refuse: Callable[[Partition], bool] = lambda partition: False

    @contextlib.contextmanager
    def writer(self, purpose: str) -> Iterator[Any]:
        with super().writer(purpose) as writer:
            yield _Refusing(writer, self)


class _Refusing:
    def __init__(self, writer: LogWriter, log: RefusingLog) -> None:
        self._writer, self._log, self._dead = writer, log, False

    def append(self, partition: Partition, block: Block) -> int:
        self._check(partition)
        return self._writer.append(partition, block)

    def put(self, partition: Partition, value: bytes | None, key: bytes | None = None) -> int:
        self._check(partition)
        return self._writer.put(partition, value, key)

    def put_all(self, partition: Partition, values: Sequence[bytes]) -> None:
        self._check(partition)
        self._writer.put_all(partition, values)

    def flush(self) -> dict[Partition, Range]:
        assert not self._dead
        return self._writer.flush()

    def seal(self, partition: Partition, make: Callable[[dict[Partition, Range]], bytes]) -> int:
        return self._writer.seal(partition, make)

    def _check(self, partition: Partition) -> None:
        assert not self._dead, "a writer that has failed is used again"
        if self._log.refuse(partition):
            self._dead = True
            raise LogUnavailable("full")


class World:
    """One pipeline: its source, its log, and whoever a test starts."""

    def __init__(self, *tables_: Table, mode: str = "load") -> None:
        self.db = Database({t.id: t for t in tables_})
        for t in tables_:
            self.db.rows[t.id], self.db.node[t.id] = {}, "1"
        self.log = RefusingLog("p")
        self.clock = Clock()
        self.pipeline = Pipeline.model_validate(
            {
                "pipeline": "p",
                "source": {"url": "postgresql://source/db"},
                "tables": ["s.*"],
                "mode": mode,
                "targets": [{"name": "t", "url": "postgresql://target/db"}],
            }
        )
        self._stack = contextlib.ExitStack()
        self.reader = self._stack.enter_context(self.log.reader())
        self.holder = self.new_holder()
        self._epoch = -1
        self._captured = 0

    def new_holder(self) -> Holder:
        return Holder(self.pipeline, self.log, ScriptedSource(self.db), clock=self.clock, sleep=lambda s: None)

    def start(self) -> Setup:
        """Let the holder set up."""
        while self.holder.setup is None:
            assert self.holder.step()
        return self.holder.setup

    def worker(self, number: int = 0) -> SnapshotWorker:
        return SnapshotWorker(
            self.log, TOPICS, lambda: ScriptedReader(self.db), number, clock=self.clock, sleep=lambda s: None
        )

    def settle(self, *machines: Holder | SnapshotWorker) -> None:
        """Let all of them step until none has anything to do."""
        while any([machine.step() for machine in machines]):
            pass

    def later(self, seconds: float = 1.0) -> None:
        self.clock.time += seconds

    def capture(self, *changes: tuple[TableId, Change], position: int | None = None) -> None:
        """Write changes and a frontier as capture would: by default at the source's present position."""
        with self.log.writer("changes") as writer:
            if self._epoch < 0:
                self._epoch = writer.put(TOPICS.frontier, encode_control(Claim("test", 0)))
            schemas: dict[Partition, set[int]] = {}
            for id, change in changes:
                version = self.version(id)
                writer.append(version.changes, Block(1, pack([encode(version.layout, change)])))
                schemas.setdefault(version.changes, set()).add(version.schema_id)
            position = self.db.position if position is None else position

            def frontier(ranges: dict[Partition, Range]) -> bytes:
                named = tuple(TopicRange(*p, *r, tuple(schemas[p])) for p, r in ranges.items())
                entry = Frontier(self._epoch, self._captured, position, 0, 0, self.db.next_xid - 1, named)
                return encode_control(entry)

            writer.seal(TOPICS.frontier, frontier)
            self._captured = position

    def change(self, id: TableId, op: Op, key: str, value: str | None = None, *, old: str | None = None) -> Any:
        """Commit a change now, and return it as capture would read it."""
        xid, rows = self.db.xid(), self.db.rows[id]
        if op is Op.TRUNCATE:
            rows.clear()
            return id, Change(op, 0, 0, xid, 0, 0, (), None, None)
        if op is Op.DELETE:
            del rows[key]
            return id, Change(op, 0, 0, xid, 0, 0, (), (key, None), None)
        assert value is not None
        rows.pop(old if old is not None else key, None)
        rows[key] = value
        before = (old, None) if old is not None else None
        return id, Change(op, 0, 0, xid, 0, 0, (), before, (key, value))

    # ---------------------------------------------------------------------------------------------- what came of it

    def version(self, id: TableId) -> Registered:
        tables = Tables(self.reader, TOPICS)
        tables.refresh()
        found = tables.latest(id)
        assert found is not None
        return found

    def chunks(self) -> Chunks:
        chunks = Chunks(self.reader, TOPICS)
        chunks.refresh()
        return chunks

    def entries(self) -> list[SnapshotTaken | Plan | Manifest]:
        return [decode_control(record.value) for record in self.reader.records(TOPICS.chunks, 0) if record.value]

    def setup(self) -> Setup | None:
        return read_setup(self.reader, TOPICS) if self.log.topics("p.") else None

    def batches(self, manifest: Manifest) -> list[list[tuple[Op, Any]]]:
        """The rows that a manifest names, by batch: (operation, key or row)."""
        version = self.version(TableId(manifest.table_schema, manifest.table_name))
        partition = Partition(manifest.topic, manifest.partition)
        return [
            [(change.op, change.after or change.before) for change in decode_batch(version.layout, value)]
            for block in self.reader.read(partition, Range(manifest.start, manifest.end))
            for _, value in unpack(block.data)
            if value is not None
        ]

    def loaded(self, id: TableId) -> Values:
        """What a target has of a table when all that is final is loaded, the healing last."""
        rows: Values = {}
        manifests = self.chunks().of(id).manifests
        for number in sorted(manifests, key=lambda n: (n < 0, n)):
            for op, row in [pair for batch in self.batches(manifests[number]) for pair in batch]:
                if op is Op.DELETE:
                    rows.pop(row[0], None)
                else:
                    assert row[0] not in rows, f"row {row[0]} is loaded twice"
                    rows[row[0]] = row[1]
        return rows

    def reads(self) -> list[str]:
        return [call for call in self.db.log if call.startswith(("read ", "keys "))]


def fails_once(matching: str, error: ReplicationError) -> Callable[[str], None]:
    """Return a failure of the first call that begins like this."""
    left = [error]

    def fail(call: str) -> None:
        if call.startswith(matching) and left:
            raise left.pop()

    return fail


def closing(*machines: Any) -> AbstractContextManager[Any]:
    stack = contextlib.ExitStack()
    for machine in machines:
        stack.callback(machine.close)
    return stack
