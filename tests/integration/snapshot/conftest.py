"""A pipeline over a real source and the embedded log, and a target that is nothing but dictionaries."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol, TypeVar

import psycopg
import pytest

import capture.loop
import snapshot.holder
import snapshot.loop
from capture.loop import CaptureService
from codec.frames import unpack
from codec.rows import Change, decode, decode_batch
from engines.postgres.connect import connect
from engines.postgres.quoting import quote
from engines.postgres.replication import emit_message
from engines.postgres.types import text_of
from schemas.frontier import HEAL, Setup
from schemas.pipeline import Pipeline
from schemas.record import Op, schema_id_of
from schemas.table import TableId
from snapshot import delivery
from snapshot.holder import Holder
from snapshot.loop import SnapshotWorker
from transport import open_log
from transport.log import Log, Partition, Range
from transport.topics import Topics
from transport.views import Chunks, Frontiers, TableChunks, Tables, read_setup

SECONDS = 60.0

Row = tuple[str | None, ...]


class Machine(Protocol):
    def step(self) -> bool: ...
    def close(self) -> None: ...


M = TypeVar("M", bound=Machine)


def pipeline(name: str, url: str, tables: tuple[str, ...], mode: str) -> Pipeline:
    return Pipeline.model_validate(
        {
            "pipeline": name,
            "source": {"url": url},
            "tables": tables,
            "mode": mode,
            "targets": [{"name": "t", "url": "postgresql://nowhere/t"}],
        }
    )


def hold(state: str, *about: Any) -> None:
    """Be a holder until it is done; the body of a process."""
    made = pipeline(*about)
    log = open_log(None, made.pipeline, Path(state))
    with contextlib.closing(log), contextlib.closing(snapshot.holder.open(made, log)) as holder:
        while not holder.done:
            if not holder.step():
                holder.wait(0.05)


class World:
    """One pipeline. Names of slots are the whole server's, so each has a name of its own."""

    def __init__(self, url: str, state: Path, tables: tuple[str, ...] = ("*.*",), mode: str = "load"):
        self.url, self.state = url, state
        self._about = (f"t{os.urandom(4).hex()}", url, tables, mode)
        self.pipeline = pipeline(*self._about)
        self.log: Log = open_log(None, self.pipeline.pipeline, state)
        self.topics = Topics(self.pipeline.pipeline)
        self.stack = contextlib.ExitStack()
        self.stack.callback(self.log.close)
        self.db = connect(url, role="control", application="test")
        self.stack.callback(self.db.close)
        self.machines: list[Machine] = []

    # ----------------------------------------------------------------------------------------------------- running

    def run(self, *statements: str) -> None:
        for statement in statements:
            self.db.execute(statement)

    def add(self, machine: M) -> M:
        self.machines.append(machine)
        return machine

    def remove(self, machine: Machine) -> None:
        self.machines.remove(machine)
        machine.close()

    def holder(self) -> Holder:
        return self.add(snapshot.holder.open(self.pipeline, self.log))

    def capture(self) -> CaptureService:
        self.log.create_topics(self.topics.fixed())
        return self.add(capture.loop.open(self.pipeline, self.log))

    def worker(self, number: int = 0) -> SnapshotWorker:
        return self.add(snapshot.loop.open(self.pipeline, self.log, number))

    def holder_process(self) -> multiprocessing.process.BaseProcess:
        arguments = (str(self.state), *self._about)
        process = multiprocessing.get_context("spawn").Process(target=hold, args=arguments, daemon=True)
        process.start()
        self.stack.callback(process.join)
        self.stack.callback(process.kill)
        return process

    def until(self, done: Callable[[], bool], each: Callable[[], object] = lambda: None) -> None:
        """Let every machine step in turn until something holds."""
        deadline = time.monotonic() + SECONDS
        while not done():
            assert time.monotonic() < deadline, "it takes too long"
            each()
            if not any([machine.step() for machine in self.machines]) and self.setup() is not None:
                with self.log.reader() as reader:
                    reader.wait({self.topics.chunks: self.log.offsets(self.topics.chunks).end}, 0.01)

    def load(self, each: Callable[[], object] = lambda: None) -> None:
        """Run until every table is complete."""
        self.until(lambda: all(m.done for m in self.machines if isinstance(m, SnapshotWorker)), each)

    def catch_up(self) -> None:
        """Run until capture has passed this moment."""
        here = emit_message(self.db, "test", "here")
        with self.log.reader() as reader:
            frontiers = Frontiers(reader, self.topics)

            def passed() -> bool:
                frontiers.to_end()
                return frontiers.position >= here

            self.until(passed)

    def close(self) -> None:
        for machine in reversed(self.machines):
            machine.close()
        self.machines.clear()
        self.stack.close()

    # -------------------------------------------------------------------------------------------------- what came of it

    def setup(self) -> Setup | None:
        with self.log.reader() as reader:
            made = {topic.name for topic in self.log.topics(self.topics.prefix)}
            return read_setup(reader, self.topics) if self.topics.control.topic in made else None

    def chunks(self, table: str) -> TableChunks:
        with self.log.reader() as reader:
            chunks = Chunks(reader, self.topics)
            chunks.refresh()
            return chunks.of(TableId(*table.split(".", 1)))

    def final(self, table: str) -> int:
        return len(self.chunks(table).manifests) if self.setup() else 0

    def source_rows(self, table: str) -> Counter[Row]:
        """The rows of now, as the source's own output functions write them."""
        id = TableId(*table.split(".", 1))
        with self.log.reader() as reader:
            tables = Tables(reader, self.topics)
            tables.refresh()
            version = tables.latest(id)
        assert version is not None
        listed = ", ".join(text_of(quote(column.name)) for column in version.table.columns)
        only = "" if version.table.definition.partition_key else "only "
        found = self.db.execute(f"select {listed} from {only}{quote(*id)}").fetchall()
        return Counter(tuple(row) for row in found)

    def loaded_rows(self, table: str) -> Counter[Row]:
        """The rows that the manifests name, without any change."""
        return self._loaded(table).rows()

    def rebuilt_rows(self, table: str) -> Counter[Row]:
        """The rows that a target has: those loaded, then every change that their snapshot did not see, in order.

        Strict: a change must fit what is there, so that one that is missing or twice is found out.
        """
        id = TableId(*table.split(".", 1))
        replica = self._loaded(table)
        with self.log.reader() as reader:
            chunks, tables = Chunks(reader, self.topics), Tables(reader, self.topics)
            chunks.refresh()
            tables.refresh()
            number = chunks.of(id).effective_snapshot()
            assert number is not None
            visibility = chunks.snapshots[number].visibility
            frontiers = Frontiers(reader, self.topics)
            at = -1
            while at != frontiers.next:
                at = frontiers.next
                for _, frontier in frontiers.poll():
                    if frontier.max_xid < visibility.xmin:
                        continue
                    for r in frontier.ranges:
                        for block in reader.read(Partition(r.topic, r.partition), Range(r.start, r.end)):
                            for _, value in unpack(block.data):
                                assert value is not None
                                written = tables.by_schema(schema_id_of(value))
                                if written.table.id == id:
                                    change = decode(written.layout, value)
                                    if not visibility.sees(change.xid):
                                        replica.apply(change)
        return replica.rows()

    def _loaded(self, table: str) -> Replica:
        manifests = self.chunks(table).manifests
        with self.log.reader() as reader:
            tables = Tables(reader, self.topics)
            tables.refresh()
            latest = tables.latest(TableId(*table.split(".", 1)))
            assert latest is not None
            replica = Replica(latest.table.key)
            for number in sorted(manifests, key=lambda n: (n == HEAL, n)):
                manifest = manifests[number]
                held = Range(manifest.start, manifest.end)
                counted = 0
                for block in reader.read(Partition(manifest.topic, manifest.partition), held):
                    for _, value in unpack(block.data):
                        assert value is not None
                        changes = decode_batch(tables.by_schema(schema_id_of(value)).layout, value)
                        counted += len(changes)
                        for change in changes:
                            replica.load(change)
                assert counted == manifest.rows
        return replica


class Replica:
    """What a target has of a table."""

    def __init__(self, key: tuple[int, ...]) -> None:
        self._key = key
        self._keyed: dict[Row, Row] = {}
        self._counted: Counter[Row] = Counter()  # of a table without key

    def rows(self) -> Counter[Row]:
        return Counter(self._keyed.values()) + self._counted

    def load(self, change: Change) -> None:
        """Take a row of a chunk, or of a healing, which begins with deletes."""
        if change.op is Op.DELETE:
            assert change.before is not None
            self._keyed.pop(self._of(change.before), None)
            return
        assert change.op is Op.READ and change.after is not None
        if self._key:
            # Chunks of several snapshots may have the same row; it is healed then.
            self._keyed[self._of(change.after)] = change.after
        else:
            self._counted[change.after] += 1

    def apply(self, change: Change) -> None:
        """Apply a change; it must fit what is there, so that one that is missing or twice is found out."""
        if change.op is Op.TRUNCATE:
            self._keyed.clear()
            self._counted.clear()
        elif change.op is Op.INSERT:
            assert change.after is not None
            if not self._key:
                self._counted[change.after] += 1
                return
            assert self._of(change.after) not in self._keyed, f"{change} comes twice"
            self._keyed[self._of(change.after)] = change.after
        else:
            given = change.before or change.after
            assert given is not None
            assert self._of(given) in self._keyed, f"{change} is of a row that is not there"
            old = self._keyed.pop(self._of(given))
            if change.after is not None:
                new = tuple(old[n] if n in change.unchanged else v for n, v in enumerate(change.after))
                self._keyed[self._of(new)] = new

    def _of(self, row: Row) -> Row:
        return tuple(row[place] for place in self._key)


@pytest.fixture
def make_world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., World]]:
    # Whatever happens to a chunk shall happen before the next one.
    monkeypatch.setattr(delivery, "TOGETHER_BYTES", 0)
    with contextlib.ExitStack() as stack:

        def make(url: str, *tables: str, mode: str = "load") -> World:
            folder = tmp_path / f"world{len(list(tmp_path.iterdir()))}"
            folder.mkdir()
            world = World(url, folder, tables or ("*.*",), mode)
            stack.callback(world.close)
            return world

        yield make


@pytest.fixture
def world(source_db: str, make_world: Callable[..., World]) -> World:
    return make_world(source_db)


@pytest.fixture
def other_session(source_db: str) -> Iterator[psycopg.Connection]:
    with contextlib.closing(connect(source_db, role="writer", application="other")) as connection:
        yield connection
