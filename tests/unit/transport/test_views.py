"""The rules of the protocol that all services see alike: which frontiers, plans and manifests count."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from schemas.errors import GapDetected
from schemas.frontier import (
    HEAL,
    Chunk,
    Claim,
    Command,
    CommandKind,
    Frontier,
    GivenUp,
    Manifest,
    Plan,
    SnapshotTaken,
    TableRegistered,
)
from schemas.record import encode_control, value_schema_id
from schemas.table import Column, Table, TableId
from schemas.types import Kind
from transport.log import Partition
from transport.memory import MemoryLog
from transport.topics import Topics
from transport.views import Chunks, Frontiers, Tables

TOPICS = Topics("p")
TABLE = TableId("s", "t")


@pytest.fixture
def log() -> MemoryLog:
    log = MemoryLog("p")
    log.create_topics(TOPICS.fixed())
    return log


def write(log: MemoryLog, partition: Partition, *records: object) -> list[int]:
    with log.writer("control") as writer:
        return [writer.put(partition, encode_control(r)) for r in records]  # type: ignore[arg-type]


def frontier(epoch: int, position: int) -> Frontier:
    return Frontier(epoch, 0, position, 0, 0, 0)


def test_a_frontier_counts_only_under_the_latest_claim(log: MemoryLog) -> None:
    write(
        log,
        TOPICS.frontier,
        frontier(0, 1),  # before any claim
        Claim("a", 0),  # epoch 1
        frontier(1, 10),
        Claim("b", 0),  # epoch 3
        frontier(1, 11),  # a zombie's
        frontier(3, 12),
    )
    with log.reader() as reader:
        view = Frontiers(reader, TOPICS)
        assert [(v.offset, v.frontier.position) for v in view.poll()] == [(2, 10), (5, 12)]
        assert (view.next, view.epoch, view.position) == (6, 3, 12)


def test_a_view_that_starts_in_the_middle_needs_the_epoch_in_force(log: MemoryLog) -> None:
    write(log, TOPICS.frontier, Claim("a", 0), frontier(0, 1), frontier(0, 2))
    with log.reader() as reader:
        assert [v.offset for v in Frontiers(reader, TOPICS, 2, 0).poll()] == [2]
        assert Frontiers(reader, TOPICS, 2, -1).poll() == []


def test_reading_to_the_end_takes_any_number_of_records(log: MemoryLog) -> None:
    write(log, TOPICS.frontier, Claim("a", 0), *(frontier(0, n) for n in range(1, 2501)))
    with log.reader() as reader:
        last = Frontiers(reader, TOPICS).to_end()
    assert last is not None and last.frontier.position == 2500


def plan(generation: int, chunks: int = 2) -> Plan:
    return Plan("s", "t", generation, 64, tuple(Chunk(n, "s", "t", "", "", 1) for n in range(chunks)), ("1",))


def manifest(chunk: int, snapshot: int, generation: int = 0, rows: int = 1) -> Manifest:
    return Manifest("s", "t", generation, chunk, snapshot, "load", 0, 0, rows, rows, 1)


def snapshot(name: str) -> SnapshotTaken:
    return SnapshotTaken(name, 1, 2, (), 3, 0, 4)


def test_the_first_plan_and_the_first_manifest_count(log: MemoryLog) -> None:
    write(log, TOPICS.chunks, snapshot("x"), plan(0), plan(0, 5), manifest(0, 0, rows=7), manifest(0, 0, rows=9))
    with log.reader() as reader:
        chunks = Chunks(reader, TOPICS)
        assert chunks.refresh() and not chunks.refresh()
        table = chunks.of(TABLE)
        assert table.plan is not None and len(table.plan.chunks) == 2
        assert table.manifests[0].rows == 7 and table.missing == [1]


def test_one_snapshot_makes_a_table_complete_and_two_need_healing(log: MemoryLog) -> None:
    with log.reader() as reader:
        chunks = Chunks(reader, TOPICS)
        write(log, TOPICS.chunks, snapshot("x"), plan(0), manifest(0, 0))
        chunks.refresh()
        assert not chunks.of(TABLE).complete()
        write(log, TOPICS.chunks, snapshot("y"), manifest(1, 3))
        chunks.refresh()
        assert chunks.of(TABLE).needs_healing() and chunks.of(TABLE).effective_snapshot() is None
        write(log, TOPICS.chunks, snapshot("z"), manifest(HEAL, 5))
        chunks.refresh()
        assert chunks.of(TABLE).complete() and chunks.of(TABLE).effective_snapshot() == 5


def test_a_new_generation_forgets_what_was_finished(log: MemoryLog) -> None:
    write(log, TOPICS.chunks, plan(0), manifest(0, 0), plan(1), manifest(1, 0), manifest(0, 0, generation=1))
    with log.reader() as reader:
        chunks = Chunks(reader, TOPICS)
        chunks.refresh()
        assert set(chunks.of(TABLE).manifests) == {0}  # the late manifest of generation 0 does not count


def test_a_part_has_a_chunk_of_its_own_and_leaves_the_load_as_it_is(log: MemoryLog) -> None:
    first, _ = write(log, TOPICS.chunks, snapshot("x"), plan(0))
    write(log, TOPICS.chunks, manifest(0, first), manifest(1, first))
    asked = Command(CommandKind.RELOAD, *TABLE, "copy", "id > 1", "somebody", 0, 5, 64)
    at, later = write(log, TOPICS.chunks, asked, snapshot("y"))
    early = manifest(HEAL, first, generation=1)
    final = manifest(HEAL, later, generation=1)
    with log.reader() as reader:
        chunks = Chunks(reader, TOPICS)
        write(log, TOPICS.chunks, plan(1), early)  # of somebody who has not seen the command
        chunks.refresh()
        table = chunks.of(TABLE)
        assert (list(table.parts), table.complete(), table.settled()) == ([1], True, False)
        assert (table.parts[1].issued.offset, table.parts[1].manifest) == (at, None)
        write(log, TOPICS.chunks, final, GivenUp(*TABLE, 1, "too late", "", 0))
        chunks.refresh()
        assert (table.parts[1].manifest, table.parts[1].given_up, table.settled()) == (final, False, True)
        assert (table.effective_snapshot(), table.used()) == (first, {first, later})

        write(log, TOPICS.chunks, asked, GivenUp(*TABLE, 2, "truncated", "", 0), replace(final, generation=2))
        chunks.refresh()
        assert (table.parts[2].manifest, table.parts[2].given_up, table.settled()) == (None, True, True)
        write(log, TOPICS.chunks, replace(asked, target="", where=""))
        chunks.refresh()
        assert (table.parts, table.outdated) == ({}, True)


def test_a_plan_that_can_not_be_read_to_its_end_leaves_nothing_to_be_read_until_the_next(log: MemoryLog) -> None:
    first, _ = write(log, TOPICS.chunks, snapshot("x"), plan(0))
    with log.reader() as reader:
        chunks = Chunks(reader, TOPICS)
        write(log, TOPICS.chunks, manifest(0, first), GivenUp(*TABLE, 0, "bad", "mend it", 0), manifest(1, first))
        chunks.refresh()
        table = chunks.of(TABLE)
        assert (table.missing, table.complete(), table.settled()) == ([], False, True)
        assert set(table.manifests) == {0} and table.effective_snapshot() is None
        asked = Command(CommandKind.RELOAD, *TABLE, "", "", "somebody", 0)
        write(log, TOPICS.chunks, asked)
        chunks.refresh()
        assert not table.settled()
        write(log, TOPICS.chunks, plan(2), GivenUp(*TABLE, 0, "bad", "mend it", 0))  # of somebody who is late
        chunks.refresh()
        assert (table.given_up, table.missing) == (None, [0, 1])


def test_a_table_is_known_by_its_schema_id_and_the_latest_version_by_name(log: MemoryLog) -> None:
    def version(*names: str, known: int = 0) -> TableRegistered:
        columns = tuple(Column(name=n, kind=Kind.TEXT, source_type="text") for n in names)
        return TableRegistered(Table(id=TABLE, columns=columns).model_dump_json(), "p.changes.s.t", 0, known=known)

    write(log, TOPICS.tables, version("a"), version("a", "b", known=1))
    with log.reader() as reader:
        tables = Tables(reader, TOPICS)
        assert len(tables.by_schema(value_schema_id(0)).table.columns) == 1
        latest = tables.latest(TABLE)
        assert latest is not None and latest.schema_id == value_schema_id(1)
        assert latest.changes == Partition("p.changes.s.t", 0)
        with pytest.raises(GapDetected):
            tables.by_schema(value_schema_id(9))


def test_topics_of_tables_never_collide() -> None:
    names = [("a.b", "c"), ("a", "b.c"), ("a", "b"), ("a b", "c"), ("a_b", "c"), ("ä", "c"), ("x" * 63, "y" * 63)]
    topics = {TOPICS.changes(TableId(*n)).topic for n in names} | {TOPICS.load(TableId(*n)).topic for n in names}
    assert len(topics) == 2 * len(names)
    assert TOPICS.changes(TableId("public", "orders")).topic == "p.changes.public.orders"
    long = Topics("p" * 40).changes(TableId("é" * 31, "ü" * 63)).topic
    assert len(long) <= 249 and Path(long).name == long
