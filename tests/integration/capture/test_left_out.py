"""A table that can't be carried is left out alone, and is carried again when somebody has asked to load it anew."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest

from capture.loop import Capture
from capture.postgres import PostgresSource
from capture.tables import TableVersions
from codec.frames import unpack
from engines.postgres import catalogue
from engines.postgres.connect import connect
from engines.postgres.definitions import drop_trigger, make_trigger
from engines.postgres.errors import NAMES_REMEDY, translated
from engines.postgres.prerequisites import source_problems
from schemas.errors import SchemaUnsupported, TransientError
from schemas.events import EventKind
from schemas.frontier import Carried, Command, CommandKind
from schemas.record import decode_control, encode_control
from tests import servers
from tests.conftest import fresh_database
from tests.integration.capture.conftest import World, make_world, until
from transport.events import told
from transport.log import Block, Partition, RecordTooLarge

pytestmark = pytest.mark.versions

BAD = r"insert into public.t values (2, e'h\344')"
ODD_TYPE = (
    "create type public.odd",
    "create function public.odd_in(cstring) returns public.odd language internal immutable strict as 'textin'",
    "create function public.odd_out(public.odd) returns cstring language internal immutable strict as 'textout'",
    "create type public.odd (input = public.odd_in, output = public.odd_out, like = text)",
)


@pytest.fixture
def ascii_world(source_server: servers.Postgres) -> Iterator[World]:
    """A world whose database takes text that is not UTF-8."""
    with fresh_database(source_server, "left_out", "SQL_ASCII") as url, make_world(url) as world:
        world.run("create table public.t (id int primary key, said text)", "create table public.other (id int)")
        world.prepare()
        yield world


def ops(world: World, table: str) -> list[str]:
    return [item.change.op.name for item in world.captured() if item.table == table]


def ask_to_reload(world: World, table: str) -> None:
    schema, _, name = table.partition(".")
    command = Command(CommandKind.RELOAD.value, schema, name, "", "", "test", 0)
    with world.log.writer("control") as writer:
        writer.put(world.topics.chunks, encode_control(command))


def carried(world: World) -> list[Carried]:
    values = [decode_control(record.value or b"") for record in world.reader.records(world.topics.chunks, 0)]
    return [value for value in values if isinstance(value, Carried)]


def carries_again(world: World, capture: Capture) -> None:
    until(capture, lambda: world.versions("public.t")[-1].left_out is None)


def test_a_value_without_a_form_in_the_log_stops_its_table_alone(ascii_world: World) -> None:
    world = ascii_world
    capture = world.capture()
    world.run("insert into public.t values (1, 'h\u00e4')", BAD, "insert into public.other values (1)")
    world.run("update public.t set said = 'x'", "insert into public.other values (2)")
    world.catch_up(capture)

    assert ops(world, "public.other") == ["INSERT", "INSERT"]
    assert ops(world, "public.t") == ["INSERT", "DEFINE", "DEFINE"]
    left_out = world.versions("public.t")[-1].left_out
    assert left_out is not None
    assert left_out.cause.startswith("public.t: column said: text that is not UTF-8 (in the transaction at ")
    assert left_out.remedy.endswith("`penstock reload FILE public.t`")
    (event,) = [entry.event for entry in told(world.reader, world.topics, 0)]
    assert (event.kind, event.table, event.remedy) == (EventKind.ERROR, "public.t", left_out.remedy)
    assert left_out.cause in event.text


def test_each_transaction_says_once_that_rows_of_it_are_left_out(ascii_world: World) -> None:
    world = ascii_world
    capture = world.capture()
    world.run(BAD)
    world.catch_up(capture)
    with world.db.transaction():
        world.run("insert into public.t values (3, 'x'), (4, 'x')", "insert into public.other values (1)")
        world.run("delete from public.t", "truncate public.t")
    world.run("truncate public.t", "insert into public.other values (2)")
    world.catch_up(capture)

    assert ops(world, "public.t") == ["DEFINE"] * 3
    assert ops(world, "public.other") == ["INSERT", "INSERT"]
    first, second, _ = [item.change for item in world.captured() if item.table == "public.t"]
    (other, _) = [item.change for item in world.captured() if item.table == "public.other"]
    assert first.xid < second.xid == other.xid


def test_a_table_stays_left_out_over_restarts_also_of_one_that_never_told_where(ascii_world: World) -> None:
    """The version is in the log before the frontier that names a record of it; in between capture may die."""
    world = ascii_world
    capture = world.capture()
    world.run("insert into public.t values (1, 'x')")
    world.catch_up(capture)
    world.run("insert into public.t values (3, 'x')", BAD)
    world.here()
    source = capture._source
    while world.versions("public.t")[-1].left_out is None:
        source.poll(1.0)  # what it returns is never written
    capture.close()
    assert ops(world, "public.t") == ["INSERT"]

    world.run("insert into public.t values (4, 'x')", "insert into public.other values (1)")
    world.catch_up(world.capture())
    assert ops(world, "public.t") == ["INSERT", "DEFINE", "DEFINE", "DEFINE"]
    assert ops(world, "public.other") == ["INSERT"]
    assert len([table for table in world.versions("public.t") if table.left_out]) == 1


@pytest.mark.parametrize("restarted", [False, True], ids=["running", "restarted"])
def test_a_table_is_carried_again_when_somebody_has_asked_for_it(ascii_world: World, restarted: bool) -> None:
    world = ascii_world
    ask_to_reload(world, "public.t")  # long ago
    capture = world.capture()
    world.run(BAD)
    world.catch_up(capture)
    with world.db.transaction():
        world.run("delete from public.t", "insert into public.t values (3, 'x')")
        (last,) = world.db.execute("select pg_current_xact_id()::text::int8").fetchone() or (0,)
    world.catch_up(capture)
    assert not carried(world)

    ask_to_reload(world, "public.t")
    if restarted:
        capture.close()
        capture = world.capture()
    carries_again(world, capture)
    (again,) = carried(world)
    assert (again.table_schema, again.table_name) == ("public", "t") and again.max_xid >= last
    world.run("insert into public.t values (5, 'y')")
    world.catch_up(capture)
    *before, item = [item for item in world.captured() if item.table == "public.t"]
    assert [one.change.op.name for one in before] == ["DEFINE", "DEFINE"]
    assert item.after == {"id": "5", "said": "y"} and item.change.xid > again.max_xid


def test_a_capture_that_dies_as_it_is_about_to_carry_a_table_again_leaves_that_to_the_next(
    ascii_world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = ascii_world
    capture = world.capture()
    world.run(BAD)
    world.catch_up(capture)
    ask_to_reload(world, "public.t")
    with monkeypatch.context() as patch:
        patch.setattr(TableVersions, "register", lambda *arguments: 1 / 0)  # behind `Carried`, before the version
        with pytest.raises(ZeroDivisionError):
            until(capture, lambda: False)
    capture.close()
    assert len(carried(world)) == 1 and world.versions("public.t")[-1].left_out is not None

    world.run("insert into public.t values (3, 'x')")
    capture = world.capture()
    carries_again(world, capture)
    world.catch_up(capture)
    first, second = carried(world)
    assert first.max_xid < second.max_xid  # what came in between is left out, or carried
    assert ops(world, "public.t") in (["DEFINE", "DEFINE"], ["DEFINE", "INSERT"])


def test_what_is_not_mended_is_left_out_again(ascii_world: World) -> None:
    world = ascii_world
    capture = world.capture()
    world.run(BAD)
    world.catch_up(capture)
    ask_to_reload(world, "public.t")
    carries_again(world, capture)
    world.run(BAD.replace("2", "3"), "insert into public.t values (4, 'x')")
    world.catch_up(capture)
    assert ops(world, "public.t") == ["DEFINE", "DEFINE", "DEFINE"]
    assert world.versions("public.t")[-1].left_out is not None
    assert len(carried(world)) == 1


class Narrow:
    """A writer of a log that takes no large records."""

    def __init__(self, writer: Any) -> None:
        self._writer = writer

    def __getattr__(self, name: str) -> Any:
        return getattr(self._writer, name)

    def append(self, partition: Partition, block: Block) -> int:
        if any(len(value or b"") > 100_000 for _, value in unpack(block.data)):
            raise RecordTooLarge("a record of 100,000 bytes is too large", partition, remedy="raise the limit")
        return int(self._writer.append(partition, block))


def test_a_record_that_the_log_does_not_take_stops_its_table_alone(world: World) -> None:
    world.run("create table public.t (id int primary key, said text)", "create table public.other (id int)")
    world.prepare()
    capture = world.capture()
    capture._writer = Narrow(capture._writer)
    world.run("insert into public.t values (1, 'x'), (2, repeat('x', 100000))", "insert into public.other values (1)")
    with pytest.raises(TransientError, match="is too large: beginning again without its table"):
        world.catch_up(capture)
    capture.close()

    capture = world.capture()
    capture._writer = Narrow(capture._writer)
    world.catch_up(capture)
    assert ops(world, "public.t") == ["DEFINE"] and ops(world, "public.other") == ["INSERT"]
    left_out = world.versions("public.t")[-1].left_out
    assert left_out is not None and left_out.remedy.startswith("raise the limit; then load the table anew")


def test_a_type_that_no_target_can_have_stops_its_table_until_the_column_is_gone(world: World) -> None:
    world.run(*ODD_TYPE, "create table public.t (id int primary key)", "create table public.other (id int)")
    world.prepare()
    capture = world.capture()
    world.run("insert into public.t values (1)")
    world.catch_up(capture)
    world.run("alter table public.t add o public.odd", "insert into public.t values (2, 'x')")
    world.run("insert into public.other values (1)", "insert into public.t values (3, 'x')")
    world.catch_up(capture)
    assert ops(world, "public.t") == ["INSERT", "DEFINE", "DEFINE"]
    assert ops(world, "public.other") == ["INSERT"]

    ask_to_reload(world, "public.t")
    until(capture, lambda: len([table for table in world.versions("public.t") if table.left_out]) == 2)
    world.run("insert into public.other values (2)")
    world.catch_up(capture)
    assert not carried(world)

    world.run("alter table public.t drop o", "insert into public.t values (4)")
    ask_to_reload(world, "public.t")
    carries_again(world, capture)
    world.run("insert into public.t values (5)")
    world.catch_up(capture)
    assert [i.after for i in world.captured() if i.table == "public.t"][-1] == {"id": "5"}
    assert ops(world, "public.other") == ["INSERT", "INSERT"]


def test_a_table_that_is_not_published_any_more_is_not_carried_again(ascii_world: World) -> None:
    """Its rows would be missing without a word."""
    world = ascii_world
    capture = world.capture()
    world.run(BAD)
    world.catch_up(capture)
    assert world.setup is not None
    for publication in world.setup.publications:
        with contextlib.suppress(Exception):
            world.run(f'alter publication "{publication}" drop table public.t')
    ask_to_reload(world, "public.t")
    until(capture, lambda: len([table for table in world.versions("public.t") if table.left_out]) == 2)
    assert "public.t" in (world.versions("public.t")[-1].left_out or pytest.fail()).cause
    assert not carried(world)


def test_a_table_that_is_locked_when_it_is_to_be_carried_again_waits_alone(
    ascii_world: World,
) -> None:
    world = ascii_world
    capture = world.capture()
    source = capture._source
    assert isinstance(source, PostgresSource)
    world.run(BAD)
    world.catch_up(capture)
    with contextlib.closing(connect(world.url, role="writer", application="other")) as other:
        other.execute("begin")
        other.execute("lock table public.t in access exclusive mode")
        ask_to_reload(world, "public.t")
        next_try = source._carry_at
        until(capture, lambda: source._carry_at > next_try)
        world.run("insert into public.other values (1)")
        world.catch_up(capture)
        assert ops(world, "public.other") == ["INSERT"] and not carried(world)
        other.execute("rollback")
    source._carry_at = 0.0
    carries_again(world, capture)


def test_a_name_that_is_not_utf_8_stops_its_table_alone_until_it_has_another(ascii_world: World) -> None:
    world = ascii_world
    setup = world.setup
    assert setup is not None
    make_trigger(world.db, setup.slot)
    capture = world.capture()
    world.run("insert into public.t values (1, 'x')")
    world.catch_up(capture)
    world.run(r"do $$ begin execute e'alter table public.t rename said to \"s\344id\"'; end $$")
    world.run("insert into public.t values (2, 'y')", "insert into public.other values (1)")
    world.catch_up(capture)
    assert ops(world, "public.t") == ["INSERT", "DEFINE"] and ops(world, "public.other") == ["INSERT"]
    left_out = world.versions("public.t")[-1].left_out
    assert left_out is not None and left_out.cause == r"public.t: the name s\xe4id is not UTF-8"
    problems = source_problems(world.url, "shop", lambda id: True, "load-and-changes")
    assert (r"source: names that are not UTF-8: public.t.s\xe4id", NAMES_REMEDY) in [p[1:] for p in problems]

    with (
        pytest.raises(SchemaUnsupported, match="a name, a default or a comment that is not UTF-8") as caught,
        translated("source", "reading the catalogue"),
    ):
        catalogue.tables(world.db, lambda id: True)
    assert "penstock check" in caught.value.remedy

    capture.close()
    capture = world.capture()
    world.run(r"do $$ begin execute e'alter table public.t rename \"s\344id\" to said'; end $$")
    ask_to_reload(world, "public.t")
    carries_again(world, capture)
    world.run("insert into public.t values (3, 'z')")
    world.catch_up(capture)
    assert ops(world, "public.t") == ["INSERT", "DEFINE", "INSERT"]
    drop_trigger(world.db, setup.slot)
