"""The source as capture, the readers and the holder see it: their protocols over the simulated database."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise

from capture.source import Step
from capture.tables import TableVersions
from codec.copy import encode_batch
from codec.frames import pack
from codec.rows import Change as RowChange
from codec.rows import encode
from schemas.errors import (
    LogRewound,
    PositionLost,
    ReplicationError,
    SchemaUnsupported,
    SnapshotLost,
    SourceUnavailable,
)
from schemas.frontier import Chunk, Commit, Visibility
from schemas.record import Op
from schemas.table import Column, Constraint, Definition, Identity, Leaf, SetupObjects, Table, TableId
from schemas.types import Kind
from snapshot.reader import Mark, Planned, Prepared, Rows
from tests.simulation.database import Change, Database, Shape, Value
from tests.simulation.faults import Faults, Process, Session, T
from transport.log import Block, Partition
from transport.views import Registered

SCHEMA = "shop"
UNFIT = "its rows have no form in the log now"
_OPS = {"i": Op.INSERT, "u": Op.UPDATE, "d": Op.DELETE, "t": Op.TRUNCATE}

Row = tuple[str | None, ...]


def table_id(name: str) -> TableId:
    return TableId(SCHEMA, name)


def table_of(shape: Shape, tied_to: str | None) -> Table:
    """Return a table as the catalogue has it."""
    columns = [
        Column(name="small", kind=Kind.TEXT, source_type="text", number=2),
        Column(name="large", kind=Kind.TEXT, source_type="text", number=3),
    ]
    if shape.keyed:
        columns.insert(0, Column(name="key", kind=Kind.INT32, source_type="integer", number=1, nullable=False))
    tie = (Constraint(name="tie", definition="…", references=table_id(tied_to)),) if tied_to else ()
    return Table(
        id=table_id(shape.name),
        columns=tuple(columns),
        key=(0,) if shape.keyed else (),
        identity=shape.identity,
        leaves=(Leaf(id=table_id(shape.name)),),
        definition=Definition(foreign_keys=tie),
    )


def row_of(keyed: bool, key: int, value: tuple[str | None, str | None]) -> Row:
    """Return a row's columns as canonical text."""
    return (str(key), *value) if keyed else value


class Connection:
    """What all connections to the source share: faults at each call, and an end."""

    def __init__(self, database: Database, process: Process, faults: Faults) -> None:
        self.database, self.process, self._faults = database, process, faults
        self._session: Session | None = None

    def connect(self, on_end: Callable[[], None] | None = None) -> Session:
        session = Session(self.process, on_end)
        sessions = self.database.sessions
        sessions.append(session)

        def ended() -> None:
            sessions.remove(session)
            if on_end is not None:
                on_end()

        session.on_end = ended
        return session

    def call(self, what: str, effect: Callable[[], T]) -> T:
        """Let the server do something: with faults, and only as long as the connection lives."""

        def checked() -> T:
            self.database.go_on()
            if self._session is None or not self._session.alive:
                raise SourceUnavailable(f"the connection was lost: {what}")
            return effect()

        try:
            return self._faults.call(self.process, what, checked, SourceUnavailable)
        except SourceUnavailable:
            # Whatever went wrong, this connection is not used again.
            if self._session is not None:
                self._session.end()
            raise

    def close(self) -> None:
        if self._session is not None:
            self._session.end()


class SimulatedSource(Connection):
    """The change stream of the slot."""

    def __init__(self, database: Database, process: Process, faults: Faults, tables: TableVersions) -> None:
        super().__init__(database, process, faults)
        self._tables = tables
        self._position = 0
        self._epoch = -1
        self._max_xid = 0
        self._part = 0  # of the transaction at `_position`: changes that were handed over already
        self._left_out: set[TableId] = set()

    def occupied(self) -> str:
        """As if it could never be told: so they get in each other's way as often as they can."""
        return ""

    def start(self, after: int, epoch: int, last: Commit) -> None:
        self._session = self.connect(self._let_go)
        self.call("start the stream", lambda: self._take_slot(after))
        self._position, self._epoch = after, epoch
        self._tables.refresh()
        self._left_out = {id for id in self._tables.names() if self._tables.of(id)[-1].left_out is not None}

    def _take_slot(self, after: int) -> None:
        database = self.database
        other = database.streaming
        if other is not None and other.alive:
            if database.rng.random() < 0.5:
                raise SourceUnavailable("another reader holds the stream")
            other.end()  # it did not answer for too long
        if database.confirmed is None:
            raise PositionLost("there is no slot")
        if database.confirmed > after:
            raise LogRewound(f"{database.confirmed} is confirmed, but the log ends at {after}")
        if after > database.flushed:
            raise PositionLost(f"the log reaches {after}, but the source ends at {database.flushed}")
        database.streaming = self._session

    def _let_go(self) -> None:
        if self.database.streaming is self._session:
            self.database.streaming = None

    def poll(self, timeout: float) -> Step | None:
        for id in sorted(self._left_out):
            if self._part == 0 and id.name not in self.database.unfit and self._tables.is_asked_for(id):
                self._carry(id)
        return self.call("poll", self._next)

    def _carry(self, id: TableId) -> None:
        table = self._tables.of(id)[-1].table
        if table.left_out is not None:
            begun = max((xid for xid, _ in self.database.log[: self.database.flushed]), default=0)
            self._tables.carry(table.model_copy(update={"left_out": None}), begun)
        self._left_out.remove(id)

    def _next(self) -> Step | None:
        database, r = self.database, self.database.rng
        # Only what is flushed is sent.
        there = database.log[self._position : database.flushed]
        if not there:
            return None
        changes: dict[Partition, list[tuple[bytes | None, bytes]]] = {}
        schemas: dict[Partition, set[int]] = {}
        whole = r.randint(0 if len(there[0][1]) - self._part > 1 else 1, 3)
        for xid, transaction in there[: whole or 1]:
            upto = len(transaction) if whole else r.randint(self._part + 1, len(transaction) - 1)
            for ordinal in range(self._part, upto):
                change = transaction[ordinal]
                if not change.published:
                    continue
                if not self._tables.of(table_id(change.table)):
                    self._tables.refresh()  # as when the stream describes a table for the first time
                version = self._tables.of(table_id(change.table))[-1]
                if change.table in database.unfit and version.left_out is None:
                    version = self._tables.leave_out(version.id, SchemaUnsupported(UNFIT))
                if version.left_out is None:
                    record = self._encode(version, change, xid, ordinal)
                else:
                    self._left_out.add(version.id)
                    record = self._stands_for(version, xid, ordinal)
                schemas.setdefault(version.changes, set()).add(version.schema_id)
                changes.setdefault(version.changes, []).append(record)
            self._part = 0 if whole else upto
            if whole:
                self._position += 1
                self._max_xid = max(self._max_xid, xid)
        return Step(
            blocks={partition: Block(len(records), pack(records)) for partition, records in changes.items()},
            schemas={partition: frozenset(numbers) for partition, numbers in schemas.items()},
            position=self._position if whole else None,
            commit_time=self._position + 1,
            max_xid=self._max_xid,
            end=database.flushed,
        )

    def _encode(self, version: Registered, change: Change, xid: int, ordinal: int) -> tuple[bytes | None, bytes]:
        keyed, full = bool(version.table.key), version.table.identity is Identity.FULL
        before: Row | None = None
        if full and change.before is not None:
            before = row_of(keyed, change.key if change.old_key is None else change.old_key, change.before)
        elif change.op == "d":
            before = (str(change.key), None, None)
        elif change.old_key is not None:
            before = (str(change.old_key), None, None)
        after = None if change.value is None else row_of(keyed, change.key, change.value)
        unchanged = (len(version.table.columns) - 1,) if change.value is not None and change.value[1] is None else ()
        position = self._position + 1
        return encode(
            version.layout,
            RowChange(_OPS[change.op], self._epoch, position, xid, ordinal, position, unchanged, before, after),
        )

    def _stands_for(self, version: Registered, xid: int, ordinal: int) -> tuple[bytes | None, bytes]:
        position = self._position + 1
        stands = RowChange(Op.DEFINE, self._epoch, position, xid, ordinal, position, (), None, None)
        return encode(version.layout, stands)

    def leave_out(self, schema_id: int, cause: ReplicationError) -> None:
        self._tables.leave_out(self._tables.by_schema(schema_id), cause)

    def confirm(self, position: int) -> None:
        self.call(f"confirm {position}", lambda: self.database.confirm(position))


class SimulatedReader(Connection):
    """A connection that reads tables in somebody else's snapshot."""

    def __init__(self, database: Database, process: Process, faults: Faults, chunks: int) -> None:
        super().__init__(database, process, faults)
        self._session = self.connect()
        self._seen: Visibility | None = None
        self._chunks = chunks

    def open(self, snapshot: str) -> None:
        self.release()
        self._seen = self.call(f"open {snapshot}", lambda: self._import(snapshot))

    def _import(self, snapshot: str) -> Visibility:
        if snapshot not in self.database.exported:
            raise SnapshotLost(f"{snapshot} is gone")
        return self.database.exported[snapshot]

    def plan(self, tables: Sequence[Table]) -> list[Planned]:
        names = " ".join(str(table.id) for table in tables)
        return self.call(f"plan {names}", lambda: [self._plan(table) for table in tables])

    def _plan(self, table: Table) -> Planned:
        name = table.id.name
        size = self.database.highest_place(name) + 1
        count = min(self._chunks, size)
        bounds = ["", *(str(size * n // count) for n in range(1, count)), ""]
        chunks = tuple(Chunk(n, SCHEMA, name, lower, upper, 1) for n, (lower, upper) in enumerate(pairwise(bounds)))
        return Planned(chunks, (str(self.database.filenode(name)),))

    def marks(self, leaves: Sequence[TableId]) -> list[Mark]:
        return self.call("ask the marks", lambda: [self._mark(leaf.name) for leaf in leaves])

    def leave(self, leaves: Sequence[TableId]) -> list[Mark]:
        marks = self.marks(leaves)
        self.release()
        return marks

    def _mark(self, name: str) -> Mark:
        return Mark(str(self.database.filenode(name, self._seen)), str(self.database.filenode(name)))

    def read(self, version: Registered, chunk: Chunk) -> Iterator[Rows]:
        low, high = int(chunk.lower or 0), int(chunk.upper or 1 << 30)
        yield from self._rows(version, self._read(chunk.leaf_name, low, high))

    def read_keys(self, version: Registered, keys: Sequence[tuple[str, ...]]) -> Iterator[Rows]:
        wanted = {int(key) for (key,) in keys}
        rows = self._read(version.table.id.name, 0, 1 << 30)
        yield from self._rows(version, [row for row in rows if row[0] in wanted])

    def read_where(self, version: Registered, condition: str) -> Iterator[Rows]:
        rows = self._read(version.table.id.name, 0, 1 << 30)
        yield from self._rows(version, [row for row in rows if row[0] > int(condition.removeprefix("key > "))])

    def _read(self, table: str, low: int, high: int) -> list[tuple[int, Value]]:
        assert self._seen is not None
        seen = self._seen
        return self.call(f"read {table} {low}..{high}", lambda: self.database.read(table, seen, low, high))

    def _rows(self, version: Registered, rows: list[tuple[int, Value]]) -> Iterator[Rows]:
        keyed = bool(version.table.key)
        for at in range(0, len(rows), 2):
            some = [(int(Op.READ), None, row_of(keyed, key, value)) for key, value in rows[at : at + 2]]
            yield Rows(encode_batch(version.layout, some), len(some))

    def release(self) -> None:
        self._seen = None


class SimulatedHeld(Connection):
    """A snapshot, alive as long as its connection."""

    def __init__(self, database: Database, process: Process, faults: Faults, visibility: Visibility) -> None:
        super().__init__(database, process, faults)
        self.visibility = visibility
        self.name = database.export(visibility)
        self._session = self.connect(lambda: database.forget(self.name))

    def ping(self) -> None:
        try:
            self.call(f"ping {self.name}", lambda: None)
        except SourceUnavailable as error:
            raise SnapshotLost(f"{self.name} is gone") from error


class SimulatedSnapshotSource(Connection):
    """The holder's side of the source."""

    def __init__(self, database: Database, process: Process, faults: Faults, tables: Callable[[], list[Table]]) -> None:
        super().__init__(database, process, faults)
        self._tables = tables

    def claim(self) -> bool:
        if self._session is None:
            self._session = self.connect(self._unclaim)
        return self.call("claim", self._claim)

    def _claim(self) -> bool:
        other = self.database.claimed
        if other is not None and other.alive and other is not self._session:
            return False
        self.database.claimed = self._session
        return True

    def _unclaim(self) -> None:
        if self.database.claimed is self._session:
            self.database.claimed = None

    def is_prepared(self) -> bool:
        return self.database.confirmed is not None

    def catalogue(
        self, chooses: Callable[[TableId], bool], choices: Sequence[tuple[str, ...]] = ()
    ) -> tuple[SetupObjects, list[Table]]:
        return self.call(
            "read the catalogue", lambda: (SetupObjects(), [table for table in self._tables() if chooses(table.id)])
        )

    def prepare(self, tables: Sequence[Table], *, hold: bool) -> Prepared:
        def drop() -> None:
            if self.database.claimed is not self._session:
                raise SourceUnavailable("the claim was lost")
            self.database.drop_slot()

        self.call("drop what was left", drop)

        def create() -> tuple[int, Visibility, SimulatedHeld]:
            if self.is_prepared():
                raise SourceUnavailable("the slot exists")
            visibility, confirmed = self.database.create_slot(), self.database.confirmed
            assert confirmed is not None
            return confirmed, visibility, SimulatedHeld(self.database, self.process, self._faults, visibility)

        confirmed, visibility, held = self.call("create the slot", create)
        if not hold:
            held.close()
        return Prepared("system", "slot", ("all",), confirmed, visibility, held if hold else None)

    def take(self) -> SimulatedHeld:
        return self.call(
            "take a snapshot",
            lambda: SimulatedHeld(self.database, self.process, self._faults, self.database.snapshot()),
        )

    def announce(self) -> int:
        return self.call("announce", self.database.emit)

    def ping(self) -> None:
        self.call("ping", lambda: None)
