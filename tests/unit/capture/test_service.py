"""How capture is opened: the registry of sources, the wait for the setup, versions of tables."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from importlib.metadata import EntryPoint
from types import ModuleType
from typing import Any

import pytest
from pydantic import SecretStr

from capture import loop, source
from capture.relations import matches, numbers_of
from capture.tables import TableVersions
from codec.pgoutput import Relation, RelationColumn
from schemas.errors import ConfigInvalid, LogRewound, SchemaUnsupported, Superseded
from schemas.frontier import Commit, Setup, TableRegistered
from schemas.pipeline import Pipeline
from schemas.record import encode_control
from schemas.table import Column, Identity, Leaf, Table, TableId
from schemas.types import Kind
from transport.log import LogReader, Partition
from transport.memory import MemoryLog
from transport.topics import Topics
from transport.views import Tables

TOPICS = Topics("shop")
SETUP = Setup("1", "penstock_shop", ("penstock_shop",), 100, 1, 1, (), "{}", "changes", 0)


def pipeline(url: str) -> Pipeline:
    """A pipeline with any URL: the file itself takes only those of engines that come with Penstock."""
    given = Pipeline.model_validate(
        {
            "pipeline": "shop",
            "source": {"url": "postgresql://u@h/d"},
            "targets": [{"name": "t", "url": "postgresql://u@h/e"}],
        }
    )
    return given.model_copy(update={"source": given.source.model_copy(update={"url": SecretStr(url)})})


@pytest.fixture
def log() -> MemoryLog:
    log = MemoryLog("shop")
    log.create_topics(TOPICS.fixed())
    return log


class Idle:
    """A source that has nothing."""

    def __init__(self, url: str, setup: Setup, tables: TableVersions) -> None:
        self.url, self.setup, self.tables = url, setup, tables
        self.started: list[int] = []

    def occupied(self) -> str:
        return ""

    def start(self, after: int, epoch: int, last: Commit) -> None:
        self.started.append(after)

    def poll(self, timeout: float) -> None:
        return None

    def confirm(self, position: int) -> None: ...

    def close(self) -> None: ...


@pytest.fixture
def idle(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A URL whose scheme is registered by another distribution."""
    module = ModuleType("elsewhere")
    module.__dict__["Idle"] = Idle
    monkeypatch.setitem(sys.modules, "elsewhere", module)
    entry = EntryPoint("idle", "elsewhere:Idle", source.ENTRY_POINTS)
    monkeypatch.setattr(source, "entry_points", lambda group: [entry] if group == source.ENTRY_POINTS else [])
    yield "idle://h/d"


def test_every_registered_source_can_be_imported() -> None:
    for scheme in source.SOURCES:
        assert callable(source.source_factory(f"{scheme}://host/db"))


def test_an_unknown_engine_is_told_before_anything_is_touched(log: MemoryLog) -> None:
    with pytest.raises(ConfigInvalid) as caught:
        loop.open(pipeline("oracle://h/d"), log)
    assert caught.value.remedy


def test_a_log_that_is_not_there_is_told() -> None:
    with pytest.raises(LogRewound):
        loop.open(pipeline("postgresql://h/d"), MemoryLog("shop"))


def test_nothing_is_claimed_before_there_is_a_setup(log: MemoryLog, idle: str) -> None:
    with closing(loop.open(pipeline(idle), log)) as service:
        assert not service.step()
        service.wait(0.0)
        assert not service.step()
        assert service.metrics() == {}
        assert log.offsets(TOPICS.frontier).end == 0
        with log.writer("control") as writer:
            writer.put(TOPICS.control, encode_control(SETUP))
        while service.step():
            pass
        assert log.offsets(TOPICS.frontier).end == 1
        assert service.capture is not None
        started: Any = service.capture._source
        assert started.started == [100] and started.url == "idle://h/d"
        service.wait(0.0)
        assert service.metrics()["frontiers"] == 0


def column(name: str, oid: int = 23, modifier: int = -1) -> Column:
    return Column(name=name, kind=Kind.INT32, source_type="integer", type_oid=oid, type_modifier=modifier)


TABLE = Table(
    id=TableId("public", "t"),
    columns=(column("a"), column("b")),
    key=(0,),
    leaves=(Leaf(id=TableId("public", "t"), oid=16384),),
)


@pytest.fixture
def reader(log: MemoryLog) -> Iterator[LogReader]:
    with log.reader() as reader:
        yield reader


def test_versions_are_kept_in_order_and_shared_over_the_log(log: MemoryLog, reader: LogReader) -> None:
    with log.writer("control") as writer:
        put: Callable[[Partition, bytes, bytes], int] = writer.put
        mine, others = TableVersions(reader, TOPICS, put), TableVersions(reader, TOPICS, put)
        changes = TOPICS.changes(TABLE.id)
        mine.succeed(0)
        first = mine.register(TABLE, changes)
        second = mine.register(TABLE.model_copy(update={"identity": Identity.FULL}), changes)
    assert others.of(TABLE.id) == []
    others.refresh()
    assert [v.schema_id for v in others.of(TABLE.id)] == [first.schema_id, second.schema_id] == [66, 68]
    assert others.names() == [TABLE.id] and second.changes == changes
    assert second.table.identity is Identity.FULL


def test_what_a_capture_registers_that_has_a_successor_does_not_count(log: MemoryLog, reader: LogReader) -> None:
    with log.writer("control") as writer:
        put: Callable[[Partition, bytes, bytes], int] = writer.put
        stalled, successor = TableVersions(reader, TOPICS, put), TableVersions(reader, TOPICS, put)
        changes = TOPICS.changes(TABLE.id)
        stalled.succeed(3)
        first = stalled.register(TABLE, changes)
        successor.succeed(5)
        successor.refresh()
        with pytest.raises(Superseded):
            stalled.leave_out(TABLE.id, SchemaUnsupported("column b has a type that can't be carried"))
        stalled.succeed(3)  # as if it had stalled before that
        with pytest.raises(Superseded):
            stalled.register(TABLE, changes)
        last = successor.register(TABLE, changes)
    tables = Tables(reader, TOPICS)
    tables.refresh()
    assert tables.left_out(TABLE.id) is None and log.offsets(TOPICS.events).end == 0
    assert [v.schema_id for v in successor.of(TABLE.id)] == [first.schema_id, last.schema_id]
    assert (latest := tables.latest(TABLE.id)) is not None and latest.schema_id == last.schema_id


def test_who_gives_a_pipeline_its_tables_does_not_count_if_he_did_not_know_the_last_version(
    log: MemoryLog, reader: LogReader
) -> None:
    changes, key = TOPICS.changes(TABLE.id), str(TABLE.id).encode()

    def give(table: Table, known: int) -> None:
        entry = TableRegistered(table.model_dump_json(), changes.topic, changes.number, known=known)
        writer.put(TOPICS.tables, encode_control(entry), key)

    with log.writer("control") as writer:
        give(TABLE, known=0)
        capture = TableVersions(reader, TOPICS, writer.put)
        capture.succeed(0)
        told = capture.register(TABLE.model_copy(update={"identity": Identity.FULL}), changes)
        give(TABLE, known=2)  # he looked when there was only the claim behind the first version
        tables = Tables(reader, TOPICS)
        tables.refresh()
        capture.refresh()
        assert (latest := tables.latest(TABLE.id)) is not None and latest.schema_id == told.schema_id
        assert capture.of(TABLE.id)[-1] is told
        give(TABLE, known=4)
    tables.refresh()
    assert (latest := tables.latest(TABLE.id)) is not None and latest.table.identity is Identity.KEY


def relation(*columns: tuple[str, bool, int, int], identity: str = "d") -> Relation:
    return Relation(16384, "public", "t", identity, tuple(RelationColumn(*c) for c in columns))


@pytest.mark.parametrize(
    ("sent", "planned", "fits"),
    [
        (relation(("a", True, 23, -1), ("b", False, 23, -1)), Identity.KEY, True),
        (relation(("a", True, 23, -1)), Identity.KEY, False),
        (relation(("b", False, 23, -1), ("a", True, 23, -1)), Identity.KEY, False),
        (relation(("a", True, 23, -1), ("c", False, 23, -1)), Identity.KEY, False),
        (relation(("a", True, 23, -1), ("b", False, 20, -1)), Identity.KEY, False),
        (relation(("a", True, 23, -1), ("b", False, 23, 7)), Identity.KEY, False),
        (relation(("a", False, 23, -1), ("b", True, 23, -1)), Identity.KEY, False),
        (relation(("a", False, 23, -1), ("b", False, 23, -1)), Identity.KEY, False),
        (relation(("a", True, 23, -1), ("b", True, 23, -1), identity="f"), Identity.KEY, False),
    ],
    ids=["same", "fewer", "other order", "renamed", "other type", "other modifier", "other key", "no key", "full"],
)
def test_a_version_fits_a_relation_with_the_same_columns_and_key(sent: Relation, planned: Identity, fits: bool) -> None:
    assert matches(TABLE, sent, planned) is fits


def test_the_key_of_a_table_that_is_published_without_updates_does_not_matter() -> None:
    keyless = TABLE.model_copy(update={"key": (), "identity": Identity.NOTHING})
    sent = relation(("a", True, 23, -1), ("b", False, 23, -1))
    assert matches(keyless, sent, Identity.NOTHING)
    assert not matches(keyless, sent, Identity.KEY)


def test_with_full_identity_every_column_is_flagged_and_the_key_is_the_version_s_own() -> None:
    full = TABLE.model_copy(update={"identity": Identity.FULL})
    sent = relation(("a", True, 23, -1), ("b", True, 23, -1), identity="f")
    assert matches(full, sent, Identity.FULL)


def numbered(*columns: tuple[int, str]) -> list[Column]:
    return [column(name).model_copy(update={"number": number}) for number, name in columns]


@pytest.mark.parametrize(
    ("sent", "before", "now", "gone", "numbers"),
    [
        pytest.param("ab", "1a 2b", "1a 2b", [], "a1 b2", id="nothing"),
        pytest.param("abc", "1a 2b", "1a 2b 3c", [], "a1 b2 c3", id="added"),
        pytest.param("ac", "1a 2b", "1a 2c", [], "a1 c2", id="renamed"),
        pytest.param("ac", "1a 2b", "1a 3c", [], "a1 c3", id="dropped, another added"),
        pytest.param("ab", "1a 2b", "1a 3b", [], "", id="the same name, dropped or dropped and added"),
        pytest.param("abc", "1a 2b", "1a 2b", [3], "a1 b2 c3", id="added, and dropped since"),
        pytest.param("abc", "1a 2b", "1a 2b 4c", [3], "", id="added, dropped and added again: either"),
        pytest.param("ba", "1a 2b", "1b 2a", [], "b1 a2", id="names swapped"),
        pytest.param("axc", "1a 2b", "1a 2x 3d", [], "", id="a name that no version has"),
        pytest.param("avomfd", "1a 2v 3o", "1a 2w 4m 5f 6d", [], "a1 v2 o3 m4 f5 d6", id="many changes"),
    ],
)
def test_numbers_of_columns_are_found_where_there_is_one_way_to(
    sent: str, before: str, now: str, gone: list[int], numbers: str
) -> None:
    ours, theirs = (numbered(*((int(c[0]), c[1]) for c in text.split())) for text in (before, now))
    described = relation(*((name, False, 23, -1) for name in sent)).columns
    expected = {item[0]: int(item[1]) for item in numbers.split()}
    assert numbers_of(described, ours, theirs, gone) == expected
