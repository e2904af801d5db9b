"""A source that is set up for capture, over a log in memory."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import psycopg
import pytest

from capture.loop import Capture
from capture.postgres import PostgresSource
from capture.tables import TableVersions
from codec.frames import unpack
from codec.rows import Change, decode
from engines.postgres import catalogue, replication
from engines.postgres.connect import connect
from schemas.frontier import Frontier, Setup, TableRegistered
from schemas.record import Op, encode_control, schema_id_of, value_schema_id
from schemas.table import Table, TableId
from transport.log import LogReader, Partition, Range, Topic
from transport.memory import MemoryLog
from transport.topics import Topics
from transport.views import Frontiers, Tables

SECONDS = 60.0


class Captured(NamedTuple):
    """One record that a valid frontier names."""

    table: str
    change: Change
    columns: tuple[str, ...]
    partitions: tuple[str, ...]  # that its version has

    @property
    def after(self) -> dict[str, str | None] | None:
        if self.change.after is None:
            return None
        return {
            n: v
            for i, (n, v) in enumerate(zip(self.columns, self.change.after, strict=True))
            if i not in self.change.unchanged
        }

    @property
    def before(self) -> dict[str, str | None] | None:
        return None if self.change.before is None else dict(zip(self.columns, self.change.before, strict=True))


class World:
    """A database with slot, publications and log, and captures that come and go."""

    def __init__(self, url: str, log: MemoryLog, reader: LogReader) -> None:
        self.url, self.log, self.reader, self.topics = url, log, reader, Topics("shop")
        self.db = connect(url, role="control", application="test")
        self.setup: Setup | None = None
        self.captures: list[Capture] = []

    def reconnect(self) -> None:
        """Be connected again after the server went away."""
        self.db.close()
        self.db = connect(self.url, role="control", application="test")

    def run(self, *statements: str) -> None:
        for statement in statements:
            self.db.execute(statement)

    def prepare(self, chooses: Callable[[TableId], bool] = lambda id: True) -> Setup:
        """Do what the holder does on the first start."""
        self.log.create_topics(self.topics.fixed())
        tables = catalogue.tables(self.db, chooses)
        chosen = []
        with self.log.writer("control") as writer:
            for table in tables:
                changes = self.topics.changes(table.id)
                self.log.create_topics([Topic(changes.topic)])
                entry = TableRegistered(table.model_dump_json(), changes.topic, changes.number)
                offset = writer.put(self.topics.tables, encode_control(entry), str(table.id).encode())
                chosen.append(value_schema_id(offset))
        slot = "penstock_" + self.db.info.dbname[-8:]  # slots are the whole server's
        replication.make_publications(self.db, "penstock_shop", tables)
        created = replication.create_slot(self.url, slot, failover=True)
        created.pgconn.finish()
        self.setup = Setup(
            system=replication.system_identity(self.db),
            slot=slot,
            publications=replication.publication_names("penstock_shop"),
            position=created.consistent_point,
            xmin=0,
            xmax=0,
            xip=(),
            objects="{}",
            mode="changes",
            shared_topics=0,
            tables=tuple(chosen),
        )
        return self.setup

    def capture(self, *, heartbeat: float = 0.0, silence: float = 60.0, **named: Any) -> Capture:
        """Begin another incarnation."""
        assert self.setup is not None
        writer = self._writer()
        control = self._writer()
        versions = TableVersions(self.reader, self.topics, control.put)
        source = PostgresSource(self.url, self.setup, versions, heartbeat=heartbeat, silence=silence)
        capture = Capture(writer, self.reader, self.topics, source, versions, self.setup, **named)
        self.captures.append(capture)
        return capture

    def _writer(self) -> Any:
        with self.log.writer("changes") as writer:  # in memory there is nothing to free
            return writer

    def confirmed(self) -> int:
        assert self.setup is not None
        state = replication.slot_state(self.db, self.setup.slot)
        assert state is not None and state.confirmed_flush is not None
        return state.confirmed_flush

    def here(self) -> int:
        """Mark this moment in the stream and return a position that is captured when all before it is."""
        return replication.emit_message(self.db, "test", "here")

    def catch_up(self, capture: Capture, to: int | None = None, each: Callable[[], None] = lambda: None) -> None:
        """Run until all that has been committed is in valid frontiers."""
        goal = self.here() if to is None else to
        until(capture, lambda: capture.position >= goal, each)

    def frontiers(self) -> list[Frontier]:
        return [valid.frontier for valid in Frontiers(self.reader, self.topics).poll(100_000)]

    def captured(self) -> list[Captured]:
        """Return what valid frontiers name, by frontier, then by topic."""
        tables = Tables(self.reader, self.topics)
        tables.refresh()
        found = []
        for frontier in self.frontiers():
            for r in frontier.ranges:
                schemas = set()
                for block in self.reader.read(Partition(r.topic, r.partition), Range(r.start, r.end)):
                    for _, value in unpack(block.data):
                        assert value is not None
                        version = tables.by_schema(schema_id_of(value))
                        schemas.add(version.schema_id)
                        change = decode(version.layout, value)
                        assert change.epoch == frontier.epoch
                        # A definition that belongs to no transaction bears the position of the last one.
                        assert frontier.after < change.position or change.op is Op.DEFINE
                        assert change.position <= frontier.position
                        assert change.xid <= frontier.max_xid
                        names = tuple(column.name for column in version.table.columns)
                        parts = tuple(partition.id.name for partition in version.table.definition.partitions)
                        found.append(Captured(str(version.table.id), change, names, parts))
                assert schemas == set(r.schemas)
        return found

    def versions(self, table: str) -> list[Table]:
        """Return the versions of a table that the log knows, oldest first."""
        versions = TableVersions(self.reader, self.topics, lambda p, v, k: 0)
        versions.refresh()
        return [version.table for version in versions.of(TableId(*table.split(".")))]

    def rows(self, table: str, key: str = "id") -> dict[str | None, dict[str, str | None]]:
        """Return the table as the captured changes make it, strictly: a change must fit what is there."""
        state: dict[str | None, dict[str, str | None]] = {}
        for item in self.captured():
            if item.table != table:
                continue
            op = item.change.op.name
            if op in {"TRUNCATE", "RESTART"}:
                state = {}
            elif op == "INSERT":
                assert item.after is not None and item.after[key] not in state
                state[item.after[key]] = item.after
            elif op == "DELETE":
                assert item.before is not None
                del state[item.before[key]]
            else:
                assert item.after is not None
                old = state.pop(item.before[key] if item.before else item.after[key])
                state[item.after[key]] = {**old, **item.after}
        return state

    def source_rows(self, table: str, key: str = "id") -> dict[str | None, dict[str, str | None]]:
        with self.db.cursor() as cursor:
            cursor.execute(f"select * from {table} limit 0")
            names = [c.name for c in cursor.description or ()]
            listed = ", ".join(f'"{name}"::text' for name in names)
            rows = cursor.execute(f"select {listed} from {table}").fetchall()
        dicts = [dict(zip(names, row, strict=True)) for row in rows]
        return {row[key]: row for row in dicts}

    def close(self) -> None:
        for capture in self.captures:
            capture.close()
        self.db.close()


def until(capture: Capture, done: Callable[[], bool], each: Callable[[], None] = lambda: None) -> None:
    """Step, and wait where there is nothing to do, as control does it."""
    deadline = time.monotonic() + SECONDS
    while not done():
        assert time.monotonic() < deadline, "it takes too long"
        if not capture.step():
            capture.wait(0.05)
        each()


@contextlib.contextmanager
def make_world(url: str) -> Iterator[World]:
    log = MemoryLog("shop")
    with log.reader() as reader:
        world = World(url, log, reader)
        try:
            yield world
        finally:
            world.close()


@pytest.fixture
def world(source_db: str) -> Iterator[World]:
    with make_world(source_db) as world:
        yield world


@pytest.fixture
def other_session(source_db: str) -> Iterator[psycopg.Connection]:
    with contextlib.closing(connect(source_db, role="writer", application="other")) as connection:
        yield connection
