"""Capture from a real PostgreSQL: every committed change is named by valid frontiers exactly once."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import threading
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from typing import Any

import psycopg
import pytest

from capture import definitions, postgres
from capture.loop import Capture
from capture.postgres import PostgresSource
from capture.source import Step
from capture.tables import TableVersions
from control.choosing import Chooser
from control.servers.postgres import PostgresServer
from engines.postgres import catalogue, replication
from engines.postgres.connect import connect
from schemas.errors import (
    LOAD_AGAIN,
    LogRewound,
    PositionLost,
    PrerequisiteMissing,
    SchemaUnsupported,
    SourceUnavailable,
    Superseded,
)
from schemas.frontier import Frontier, TableRegistered
from schemas.pipeline import Mode, Pipeline
from schemas.record import Op, encode_control
from schemas.table import Identity, Table, TableId
from tests.integration.capture.conftest import SECONDS, World, make_world, until
from transport.log import Topic
from transport.topics import Topics

pytestmark = pytest.mark.versions


def ops(world: World, table: str) -> list[str]:
    return [item.change.op.name for item in world.captured() if item.table == table]


@pytest.mark.versions(where=lambda versions: versions.source >= 15)  # older ones publish no lists of columns
def test_a_column_that_goes_while_publications_are_looked_at_is_not_missed_in_them(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.run("create table public.t (id int primary key, v text, w text)")
    world.prepare()
    look = replication.publication_problems
    drops = ["alter table public.t drop column v", "alter table public.t drop column w"]

    def look_late(*arguments: Any) -> list[str]:
        if drops:
            world.run(drops.pop())
        return look(*arguments)

    monkeypatch.setattr(replication, "publication_problems", look_late)
    world.catch_up(world.capture())
    assert not drops


def test_inserts_updates_key_changes_and_deletes_arrive_in_commit_order(world: World) -> None:
    world.run("create table public.t (id int primary key, v text)")
    world.prepare()
    capture = world.capture()
    world.run(
        "insert into public.t select g, 'v' || g from generate_series(1, 100) g",
        "update public.t set v = 'x' where id % 2 = 0",
        "update public.t set id = id + 1000 where id % 10 = 0",
        "delete from public.t where id between 41 and 59",
    )
    with world.db.transaction():
        world.run("insert into public.t values (5000, 'a')", "update public.t set v = 'b' where id = 5000")
    world.catch_up(capture)
    assert world.rows("public.t") == world.source_rows("public.t")
    items = [item.change for item in world.captured()]
    assert [(i.position, i.ordinal) for i in items] == sorted((i.position, i.ordinal) for i in items)
    assert [i.ordinal for i in items][-2:] == [0, 1] and items[-1].xid == items[-2].xid


def test_a_value_that_was_not_fetched_is_marked_unchanged(world: World) -> None:
    world.run(
        "create table public.t (id int primary key, n int, big text)",
        "alter table public.t alter big set storage external",
        "insert into public.t values (1, 1, repeat('x', 10000))",
    )
    world.prepare()
    capture = world.capture()
    world.run("update public.t set n = 2", "update public.t set id = 7", "update public.t set big = 'small'")
    world.catch_up(capture)
    changes = [item.change for item in world.captured()]
    assert [c.unchanged for c in changes] == [(2,), (2,), ()]
    assert changes[1].before == ("1", None, None)


def test_a_table_without_key_and_with_full_identity_has_whole_old_rows(world: World) -> None:
    world.run(
        "create table public.t (a int, big text)",
        "alter table public.t replica identity full",
        "alter table public.t alter big set storage external",
        "insert into public.t values (1, repeat('x', 10000)), (2, null)",
    )
    world.prepare()
    capture = world.capture()
    world.run("update public.t set a = 3 where a = 1", "delete from public.t where a = 2")
    world.catch_up(capture)
    update, delete = (item.change for item in world.captured())
    assert update.before == ("1", "x" * 10000) and update.after == ("3", "x" * 10000) and update.unchanged == ()
    assert delete.before == ("2", None)


def test_a_column_that_is_gone_before_anybody_looked_stops_a_table_whose_rows_are_found_by_it(world: World) -> None:
    world.run(
        "create table public.t (a int)",
        "create table public.k (a int primary key)",
        "alter table public.t replica identity full",
        "alter table public.k replica identity full",
        "insert into public.t values (1)",
        "insert into public.k values (1)",
    )
    world.prepare()
    for t in "tk":
        world.run(
            f"alter table public.{t} add more text default 'm'",
            f"update public.{t} set a = 2",
            f"alter table public.{t} drop more",
        )
    world.catch_up(world.capture())
    refused = {t: [v.since.refused for v in world.versions(f"public.{t}") if v.since] for t in "tk"}
    assert "column more was added, and what the rows that were there hold in it is not known" in refused["t"]
    assert not any(refused["k"])


def test_a_table_without_any_identity_gives_its_inserts(world: World) -> None:
    world.run("create table public.t (a int)")
    world.prepare()
    capture = world.capture()
    world.run("insert into public.t values (1), (1)", "update public.t set a = 2", "truncate public.t")
    world.catch_up(capture)
    assert ops(world, "public.t") == ["INSERT", "INSERT", "TRUNCATE"]


PARTITIONED = (
    "create table public.p (id int, v text, primary key (id)) partition by range (id)",
    "create table public.p1 partition of public.p for values from (0) to (100)",
    # a partition that was a table before, with its columns in another order and a hole
    "create table public.p2 (gone int, v text, id int not null)",
    "alter table public.p2 drop gone",
    "alter table public.p attach partition public.p2 for values from (100) to (200)",
)


def test_changes_of_partitions_are_their_root_s_also_of_those_made_later(world: World) -> None:
    world.run(*PARTITIONED)
    world.prepare()
    capture = world.capture()
    world.run(
        "insert into public.p select g, 'v' || g from generate_series(0, 49) g",
        "insert into public.p select g, 'v' || g from generate_series(100, 149) g",
        "update public.p set id = id + 150 where id = 7",  # moves to the other partition
        "create table public.p3 partition of public.p for values from (200) to (300)",
        "insert into public.p values (201, 'new')",
    )
    world.catch_up(capture)
    assert world.rows("public.p") == world.source_rows("public.p")
    assert {item.table for item in world.captured()} == {"public.p"}
    before = tables = world.versions("public.p")
    assert {leaf.id.name for leaf in tables[-1].leaves} == {"p1", "p2", "p3"}
    assert sorted(c.name for c in tables[-1].columns) == ["id", "v"]
    assert [p.id.name for p in tables[-1].definition.partitions] == ["p1", "p2", "p3"]
    # another incarnation finds the versions that are there, and adds none
    capture.close()
    again = world.capture()
    world.run("update public.p set v = v || '!'")
    world.catch_up(again)
    assert world.rows("public.p") == world.source_rows("public.p")
    assert world.versions("public.p") == before


def test_rows_of_all_partitions_go_on_with_those_that_there_are(world: World) -> None:
    """A row of an older version would have targets take back what has come since, with its rows."""
    world.run(*PARTITIONED)
    world.prepare()
    capture = world.capture()
    world.run(
        "insert into public.p values (1, 'a'), (101, 'b')",
        "create table public.p3 partition of public.p for values from (200) to (300)",
        "insert into public.p values (201, 'c'), (2, 'd'), (102, 'e')",
    )
    world.catch_up(capture)
    rows = {item.after["id"]: item.partitions for item in world.captured() if item.after is not None}
    assert [rows[id] for id in ("201", "2", "102")] == [("p1", "p2", "p3")] * 3
    # What the catalogue says is for rows of all of them too.
    world.run("create table public.p4 partition of public.p for values from (300) to (400)")
    until(capture, lambda: "p4" in {p.id.name for p in world.versions("public.p")[-1].definition.partitions})
    world.run("insert into public.p values (3, 'f'), (103, 'g'), (203, 'h')")
    world.catch_up(capture)
    assert [item.partitions for item in world.captured()[-3:]] == [("p1", "p2", "p3", "p4")] * 3


def test_a_partition_that_was_detached_before_another_one_s_row_came_is_not_dropped(world: World) -> None:
    world.run(*PARTITIONED)
    world.prepare()
    world.run(
        "alter table public.p detach partition public.p2",
        "create table public.p3 partition of public.p for values from (100) to (200)",
        "insert into public.p values (101, 'a')",
    )
    world.catch_up(world.capture())
    detached = [version.since.detached for version in world.versions("public.p") if version.since is not None]
    assert detached[0] == (TableId("public", "p2"),)


def test_a_truncate_of_the_root_is_one_record_and_one_of_a_single_partition_names_it(world: World) -> None:
    world.run(*PARTITIONED, "create table public.t (id int primary key)")
    world.prepare()
    capture = world.capture()
    world.run(
        "insert into public.p select g, '' from generate_series(90, 109) g",
        "insert into public.t values (1)",
        "truncate public.p, public.t restart identity cascade",
        "insert into public.p values (1, 'after')",
        "create table public.p9 partition of public.p for values from (900) to (1000)",
        "truncate public.p",
        "insert into public.p values (1, 'after that')",
    )
    world.catch_up(capture)
    assert [op for op in ops(world, "public.p") if op != "INSERT"] == ["RESTART", "TRUNCATE"]
    assert ops(world, "public.t") == ["INSERT", "RESTART"]
    assert world.rows("public.p") == world.source_rows("public.p")
    world.run("truncate public.p2", "insert into public.p values (2, 'later')")
    world.catch_up(capture)
    assert ops(world, "public.p")[-2:] == ["DEFINE", "INSERT"]
    since = world.versions("public.p")[-1].since
    assert since is not None and since.emptied == (TableId("public", "p2"),)


def test_a_partition_that_the_log_knows_already_was_not_there_when_the_root_was_truncated(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.run(*PARTITIONED)
    world.prepare()
    first = world.capture()
    world.run(
        "insert into public.p values (1, 'a'), (101, 'b')",
        "truncate public.p",
        "create table public.p3 partition of public.p for values from (200) to (300)",
        "insert into public.p values (1, 'c'), (201, 'd')",
    )

    def die(*arguments: object) -> None:
        raise SourceUnavailable("died before its frontier")

    monkeypatch.setattr(first, "_seal", die)
    with pytest.raises(SourceUnavailable, match="died"):
        world.catch_up(first)
    first.close()
    assert "p3" in {leaf.id.name for leaf in world.versions("public.p")[-1].leaves}
    world.catch_up(world.capture())
    assert world.rows("public.p") == world.source_rows("public.p")


def test_tables_that_were_not_chosen_are_passed_over(world: World) -> None:
    world.run("create table public.mine (id int primary key)", "create table public.other (id int primary key)")
    world.prepare(lambda id: id.name == "mine")
    world.run("alter publication penstock_shop add table public.other")
    capture = world.capture()
    world.run("insert into public.other values (1)", "insert into public.mine values (1)", "truncate public.other")
    world.catch_up(capture)
    assert [item.table for item in world.captured()] == ["public.mine"]


def test_a_changed_table_gets_a_version_of_its_own(world: World) -> None:
    world.run(
        "create type public.mood as enum ('good', 'bad')",
        "create domain public.few as int check (value < 10)",
        "create table public.t (id int primary key, v text, old int)",
    )
    world.prepare()
    capture = world.capture()
    world.run(
        "insert into public.t values (1, 'a', 1)",
        "alter table public.t add m public.mood default 'good', add f public.few, add d numeric(8,2)",
        "insert into public.t values (2, 'b', 2, 'bad', 3, 1.5)",
        "alter table public.t drop old, alter v type varchar(20)",
        "insert into public.t values (3, 'c', 'good', null, 2.50)",
        "alter table public.t rename v to w",
        "insert into public.t values (4, 'd', 'good', 1, 3)",
    )
    world.catch_up(capture)
    tables = world.versions("public.t")
    assert [[c.name for c in t.columns] for t in tables] == [
        ["id", "v", "old"],
        ["id", "v", "old", "m", "f", "d"],
        ["id", "v", "m", "f", "d"],
        ["id", "w", "m", "f", "d"],
    ]
    assert [(c.source_type, c.kind.name) for c in tables[1].columns[3:]] == [
        ("public.mood", "TEXT"),
        ("public.few", "INT32"),
        ("numeric(8,2)", "NUMERIC"),
    ]
    assert [t.columns[1].number for t in tables] == [2, 2, 2, 2]  # a rename is told by the number
    assert all(t.key == (0,) and t.identity is Identity.KEY for t in tables)
    assert [c.name for c in tables[-1].definition.columns] == ["id", "w", "m", "f", "d"]
    assert [item.after for item in world.captured()] == [
        {"id": "1", "v": "a", "old": "1"},
        {"id": "2", "v": "b", "old": "2", "m": "bad", "f": "3", "d": "1.50"},
        {"id": "3", "v": "c", "m": "good", "f": None, "d": "2.50"},
        {"id": "4", "w": "d", "m": "good", "f": "1", "d": "3.00"},
    ]


def test_a_changed_replica_identity_is_a_version_too(world: World) -> None:
    world.run("create table public.t (id int primary key, u int not null unique)", "insert into public.t values (1, 2)")
    world.prepare()
    capture = world.capture()
    world.run(
        "alter table public.t replica identity full",
        "update public.t set u = 3",
        "alter table public.t replica identity using index t_u_key",
        "update public.t set u = 4",
    )
    world.catch_up(capture)
    tables = world.versions("public.t")
    assert [(t.identity, t.key) for t in tables[1:]][-1] == (Identity.KEY, (1,))
    assert tables[1].identity is Identity.FULL
    assert [item.change.before for item in world.captured()] == [("1", "2"), (None, "3")]


@pytest.fixture
def watching(world: World, monkeypatch: pytest.MonkeyPatch) -> Capture:
    """A capture of `public.t` that compares definitions all the time, and has caught up."""
    monkeypatch.setattr(definitions, "LOOK_SECONDS", 0.1)
    world.run("create table public.t (id int primary key, v text)")
    world.prepare()
    capture = world.capture()
    world.catch_up(capture)
    return capture


def test_a_definition_that_a_capture_took_to_its_grave_is_told_by_the_next_one(
    world: World, watching: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    seal = watching._seal

    def dies(step: Step, position: int) -> None:
        if len(world.versions("public.t")) > 1:
            raise SourceUnavailable("killed before the frontier")
        seal(step, position)

    monkeypatch.setattr(watching, "_seal", dies)
    world.run("alter table public.t alter column v set default 'new'")
    with pytest.raises(SourceUnavailable):
        until(watching, lambda: False)
    assert [table.definition.columns[1].default for table in world.versions("public.t")] == ["", "'new'::text"]
    watching.close()
    capture = world.capture()
    until(capture, lambda: ops(world, "public.t") == ["DEFINE"])
    assert world.versions("public.t")[-1].definition.columns[1].default == "'new'::text"


def test_a_definition_that_is_found_when_all_else_is_told_is_told_too(
    world: World, watching: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = watching._source
    assert isinstance(source, PostgresSource)
    emit, overtaken = replication.emit_message, threading.Event()

    def emit_slowly(connection: psycopg.Connection, prefix: str, content: str) -> int:
        position = emit(connection, prefix, content)
        for _ in range(1000):
            if content != "definitions" or source._position >= position:
                overtaken.set()
                break
            time.sleep(0.01)
        return position

    monkeypatch.setattr(replication, "emit_message", emit_slowly)
    world.run("alter table public.t alter column v set default 'new'")
    until(watching, lambda: ops(world, "public.t") == ["DEFINE"])
    assert overtaken.is_set()


def test_a_renamed_table_goes_on_under_its_first_name(world: World) -> None:
    world.run("create table public.t (id int primary key)")
    world.prepare()
    capture = world.capture()
    world.run("alter table public.t rename to u", "insert into public.u values (1)")
    world.catch_up(capture)
    assert [item.table for item in world.captured()] == ["public.t"]


def test_a_transaction_of_200_000_rows_is_one_frontier_in_bounded_memory(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres, "SPILL_BYTES", 1 << 20)
    world.run("create table public.t (id int primary key, v text)", "create table public.u (id int primary key)")
    world.prepare()
    capture = world.capture()
    source = capture._source
    assert isinstance(source, PostgresSource)
    largest = 0

    def look() -> None:
        nonlocal largest
        if hasattr(source, "_decoder"):
            largest = max(largest, source._decoder.pending_bytes)

    with world.db.transaction():
        world.run(
            "insert into public.u values (1)",
            "insert into public.t select g, 'some text ' || g from generate_series(1, 200000) g",
        )
    world.catch_up(capture, each=look)
    named = [f for f in world.frontiers() if f.ranges]
    assert len(named) == 1
    assert {(r.topic, r.end - r.start) for r in named[0].ranges} == {
        ("shop.changes.public.t", 200_000),
        ("shop.changes.public.u", 1),
    }
    assert largest < 2 * (1 << 20)
    assert capture.records == 200_001


def test_kills_and_lost_connections_lose_nothing_and_double_nothing(
    world: World, other_session: psycopg.Connection
) -> None:
    world.run("create table public.t (id int primary key, v int)")
    world.prepare()
    stop = threading.Event()

    def work() -> None:
        n = 0
        while not stop.is_set():
            n += 1
            with other_session.transaction():
                other_session.execute("insert into public.t values (%s, 0), (%s, 0)", [2 * n, 2 * n + 1])
                other_session.execute("update public.t set v = v + 1 where id = %s", [n])
            if n % 50 == 0:  # now and then one that comes in pieces
                other_session.execute(
                    "insert into public.t select 1000000 + %s * 5000 + g, 0 from generate_series(1, 5000) g", [n]
                )

    worker = threading.Thread(target=work)
    worker.start()
    try:
        for round in range(12):
            capture = world.capture()
            end = time.monotonic() + 0.2
            with contextlib.suppress(SourceUnavailable):
                while time.monotonic() < end:
                    if not capture.step():
                        capture.wait(0.01)
                if round % 3 == 0:  # the server cuts the connection
                    world.run(
                        "select pg_terminate_backend(active_pid) from pg_replication_slots"
                        f" where slot_name = '{world.setup.slot if world.setup else ''}'"
                    )
                    until(capture, lambda: False)
            # Killed: whatever it had in hand is gone, nothing is confirmed on the way out.
            capture._failed = True
            capture.close()
    finally:
        stop.set()
        worker.join()
    last = world.capture()
    world.catch_up(last)
    assert world.rows("public.t") == world.source_rows("public.t")
    positions = [(f.after, f.position) for f in world.frontiers()]
    assert all(before[1] == after[0] for before, after in itertools.pairwise(positions))


def test_the_source_is_never_told_to_forget_what_no_frontier_holds(world: World) -> None:
    world.run("create table public.t (id int primary key)")
    setup = world.prepare()
    capture = world.capture(confirm_seconds=0.0)
    n = 0

    def look() -> None:
        nonlocal n
        n += 1
        if n <= 50:
            world.run(f"insert into public.t values ({n})")
        assert world.confirmed() <= max([setup.position, *(f.position for f in world.frontiers())])

    until(capture, lambda: n >= 60, look)
    world.catch_up(capture)
    until(capture, lambda: world.confirmed() >= capture.position)


def test_an_idle_database_holds_no_history_back(world: World, other_session: psycopg.Connection) -> None:
    world.run("create table public.t (id int primary key)", "create table public.unrelated (id int)")
    world.prepare(lambda id: id.name == "t")
    capture = world.capture(empty_seconds=0.2)
    until(capture, lambda: capture.position > 0)
    for _ in range(3):
        world.run("insert into public.unrelated select generate_series(1, 1000)")
        end = replication.wal_flush_lsn(world.db)
        until(capture, lambda end=end: world.confirmed() >= end)  # type: ignore[misc]
    assert world.captured() == []
    assert all(f.ranges == () for f in world.frontiers())


def test_a_heartbeat_makes_a_frontier_with_a_commit_time(world: World) -> None:
    world.run("create table public.t (id int primary key)")
    world.prepare()
    capture = world.capture(heartbeat=1.0)
    until(capture, lambda: capture.commit_time > 0)
    assert abs(capture.commit_time / 1e6 - time.time()) < 30
    assert 0 <= capture.lag < 30
    assert world.captured() == []


def test_a_newer_capture_takes_the_slot_over(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """As happens when both have looked before either of them streams."""
    monkeypatch.setattr(PostgresSource, "occupied", lambda self: "")
    world.run("create table public.t (id int primary key)")
    world.prepare()
    old = world.capture()
    world.run("insert into public.t values (1)")
    world.catch_up(old)
    new = world.capture()
    new.step()  # claims; the old one finds out with its next frontier, and lets the slot go
    world.run("insert into public.t values (2)")
    with pytest.raises(Superseded):
        world.catch_up(old)
    old.close()
    world.catch_up(new)
    assert world.rows("public.t") == world.source_rows("public.t")


def test_a_slot_that_another_reader_keeps_is_a_passing_error(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postgres, "ACQUIRE_SECONDS", 0.2)
    world.run("create table public.t (id int primary key)")
    world.prepare()
    old = world.capture()
    until(old, lambda: old.confirmed > 0)
    new = world.capture()
    with pytest.raises(SourceUnavailable, match=r"read by process \d+ .*application penstock ") as caught:
        new.step()
    assert "stop one of the two" in caught.value.remedy
    monkeypatch.setattr(PostgresSource, "occupied", lambda self: "")
    last = world.capture()
    with pytest.raises(SourceUnavailable, match="in use"):
        until(last, lambda: False)
    with pytest.raises(Superseded, match="claimed: "):
        world.catch_up(old, world.here() + 1)


def test_a_slot_that_was_dropped_says_so_at_the_start_and_while_streaming(world: World) -> None:
    world.run("create table public.t (id int primary key)")
    setup = world.prepare()
    capture = world.capture()
    until(capture, lambda: capture.confirmed > 0)
    replication.drop_slot(world.db, setup.slot)
    with pytest.raises(PositionLost, match="no replication slot") as caught:
        until(capture, lambda: False)
    assert LOAD_AGAIN in caught.value.remedy
    with pytest.raises(PositionLost, match="no replication slot") as caught:
        until(world.capture(), lambda: False)
    assert LOAD_AGAIN in caught.value.remedy


def test_a_slot_that_the_source_has_given_up_says_so_while_streaming_and_at_the_start(
    make_postgres: Callable[..., PostgresServer],
) -> None:
    sizes = {"max_slot_wal_keep_size": "1MB", "max_wal_size": "32MB", "min_wal_size": "32MB", "wal_keep_size": 0}
    server = make_postgres(16, conf=sizes)
    with make_world(server.url()) as world:
        world.run("create table public.t (id int primary key)")
        setup = world.prepare()
        capture = world.capture()
        until(capture, lambda: capture.confirmed > 0)
        # It does not come to read, and the source writes on.
        deadline = time.monotonic() + 30
        while (state := replication.slot_state(world.db, setup.slot)) is not None and not state.lost:
            assert time.monotonic() < deadline
            world.run("select pg_logical_emit_message(false, 'fill', repeat('x', 4000000))", "select pg_switch_wal()")
            world.run("checkpoint")
        for one in (capture, world.capture()):
            with pytest.raises(PositionLost, match="has given up slot") as caught:
                until(one, lambda: False)
            assert LOAD_AGAIN in caught.value.remedy


def test_another_cluster_is_refused(world: World) -> None:
    world.run("create table public.t (id int primary key)")
    setup = world.prepare()
    world.setup = setup.__class__(**{**{n: getattr(setup, n) for n in setup.__slots__}, "system": "123"})
    with pytest.raises(PositionLost, match="another cluster"):
        until(world.capture(), lambda: False)


def test_a_source_that_was_restored_to_an_earlier_state_is_refused(world: World) -> None:
    world.run("create table public.t (id int primary key)")
    world.prepare()
    ahead = replication.wal_insert_lsn(world.db) + (1 << 40)
    with world.log.writer("changes") as writer:
        epoch = world.capture()
        epoch.step()
        writer.put(world.topics.frontier, encode_control(Frontier(epoch.epoch, 0, ahead, 0, 0, 0)))
    with pytest.raises(PositionLost, match="restored to an earlier state"):
        until(world.capture(), lambda: False)


def test_a_log_that_lost_its_end_is_refused(world: World) -> None:
    world.run("create table public.t (id int primary key)")
    world.prepare()
    capture = world.capture()
    world.run("insert into public.t values (1)")
    world.catch_up(capture)
    until(capture, lambda: world.confirmed() >= capture.position)
    capture.close()
    world.log.delete_topics([world.topics.frontier.topic])
    world.log.create_topics(world.topics.fixed())
    with pytest.raises(LogRewound, match="lost its end"):
        until(world.capture(), lambda: False)


def test_a_publication_that_lacks_a_table_stops_capture(world: World) -> None:
    world.run("create table public.t (id int primary key)", "create table public.u (id int primary key)")
    world.prepare()
    capture = world.capture()
    until(capture, lambda: capture.confirmed > 0)
    world.run("alter publication penstock_shop drop table public.u")
    source = capture._source
    assert isinstance(source, PostgresSource) and source._caretaker is not None
    source._caretaker._next_check = 0.0
    with pytest.raises(PrerequisiteMissing, match=r"public\.u"):
        until(capture, lambda: False)
    capture.close()
    with pytest.raises(PrerequisiteMissing, match=r"public\.u"):
        until(world.capture(), lambda: False)


@pytest.mark.parametrize(
    "there_and_back",
    [
        ("drop table public.t", "add table public.t"),
        ("set (publish = 'insert')", "set (publish = 'insert, update, delete, truncate')"),
    ],
)
def test_a_publication_that_was_altered_and_put_back_stops_capture(
    world: World, there_and_back: tuple[str, str]
) -> None:
    world.run("create table public.t (id int primary key)")
    world.prepare()
    capture = world.capture()
    until(capture, lambda: capture.confirmed > 0)
    world.run("create table public.other (id int)", "alter publication penstock_shop add table public.other")
    source = capture._source
    assert isinstance(source, PostgresSource) and source._caretaker is not None
    source._caretaker._next_check = 0.0
    until(capture, lambda: source._caretaker is not None and source._caretaker._next_check > 0)
    for change in there_and_back:
        world.run(f"alter publication penstock_shop {change}")
    source._caretaker._next_check = 0.0
    with pytest.raises(PrerequisiteMissing, match="penstock_shop was altered") as caught:
        until(capture, lambda: False)
    assert LOAD_AGAIN in caught.value.remedy


def test_a_dropped_table_partition_or_column_is_no_problem_of_the_publications(world: World) -> None:
    world.run(*PARTITIONED, "create table public.t (id int primary key)", "create table public.u (id int, c int)")
    world.prepare()
    world.run("drop table public.t", "alter table public.u drop c")
    world.run("drop table public.p1", "alter table public.p detach partition public.p2")
    capture = world.capture()
    world.run("insert into public.u values (1)")
    world.catch_up(capture)
    assert [item.after for item in world.captured()] == [{"id": "1"}]


def test_a_version_that_nobody_chose_takes_no_rows_of_the_table_by_its_later_name(world: World) -> None:
    """As of a setup that began again, or of a taking over that was killed, because of the renaming."""
    world.run("create table public.before (id int primary key)")
    world.prepare()
    world.run("alter table public.before rename to fresh")
    assert world.setup is not None
    replication.drop_slot(world.db, world.setup.slot)
    world.prepare()
    capture = world.capture()
    until(capture, lambda: capture.confirmed > 0)
    source = capture._source
    assert isinstance(source, PostgresSource)
    source._definitions.look_soon()
    until(capture, lambda: bool(source._definitions._seen))  # it has looked, and found what there is
    world.catch_up(capture)
    world.run("insert into public.fresh values (1)")
    world.catch_up(capture)
    assert ops(world, "public.fresh") == ["INSERT"]


def test_a_table_that_is_added_and_dropped_before_a_row_of_it_comes_is_told(world: World) -> None:
    world.run("create table public.t (id int primary key)")
    world.prepare()
    capture = world.capture()
    until(capture, lambda: capture.confirmed > 0)
    world.run("create table public.added (id int primary key)")
    register(world, "added")
    source = capture._source
    assert isinstance(source, PostgresSource)
    source._definitions.look_soon()
    until(capture, lambda: TableId("public", "added") in source._definitions._seen)
    world.run("drop table public.added")
    source._definitions.look_soon()
    until(capture, lambda: world.versions("public.added")[-1].dropped)


def register(world: World, name: str) -> None:
    """Do what is done when a table is added."""
    (table,) = catalogue.tables(world.db, TableId("public", name).__eq__)
    changes = world.topics.changes(table.id)
    world.log.create_topics([Topic(changes.topic)])
    known = world.log.offsets(world.topics.tables).end
    entry = TableRegistered(table.model_dump_json(), changes.topic, changes.number, known=known)
    with world.log.writer("control") as writer:
        writer.put(world.topics.tables, encode_control(entry), str(table.id).encode())


def test_a_version_that_comes_while_its_table_is_published_is_not_passed_over(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.run("create table public.t (id int primary key)")
    setup = replace(world.prepare(), mode=Mode.LOAD_AND_CHANGES)
    pipeline = Pipeline.model_validate(
        {
            "pipeline": "shop",
            "source": {"url": world.url},
            "targets": [{"name": "t", "url": world.url}],
        }
    )
    calls = 0
    register_ = Chooser._register

    with world.log.writer("control") as writer:
        versions = TableVersions(world.reader, world.topics, writer.put)
        versions.succeed(0)

        def late(self: Chooser, catalogue: Any, found: list[Table]) -> dict[TableId, int]:
            nonlocal calls
            calls += 1
            if calls == 1:  # capture has come to the table's next version
                versions.refresh()
                versions.register(found[0], world.topics.changes(found[0].id))
            return register_(self, catalogue, found)

        monkeypatch.setattr(Chooser, "_register", late)
        with closing(Chooser(pipeline, world.log, world.reader, setup, "test")) as chooser:
            published = chooser.publish([TableId("public", "t")])
        versions.refresh()
    assert calls == 2
    assert [versions.of(TableId("public", "t"))[-1].schema_id] == list(published.schemas.values())


def test_a_table_that_was_made_again_is_another_one(world: World) -> None:
    world.run("create table public.t (id int primary key)")
    world.prepare()
    capture = world.capture()
    until(capture, lambda: capture.confirmed > 0)
    world.run(
        "drop table public.t",
        "create table public.t (id int primary key)",
        "alter publication penstock_shop add table public.t",
        "insert into public.t values (1)",
    )
    until(capture, lambda: world.versions("public.t")[-1].dropped)
    world.catch_up(capture)
    assert ops(world, "public.t") == ["DEFINE"]


def test_a_log_that_keeps_capture_waiting_does_not_cost_it_the_connection(
    make_postgres: Callable[..., PostgresServer],
) -> None:
    server = make_postgres(16, conf={"wal_sender_timeout": "3s"})
    with make_world(server.url()) as world:
        world.run("create table public.t (id int primary key)")
        world.prepare()
        capture = world.capture()
        world.run("insert into public.t values (1)")
        until(capture, lambda: capture.confirmed > 0)
        assert world.setup is not None
        before = replication.slot_state(world.db, world.setup.slot)
        time.sleep(5)  # as long as an append may wait for room in the log
        world.run("insert into public.t values (2)")
        world.catch_up(capture)
        after = replication.slot_state(world.db, world.setup.slot)
        assert before is not None and after is not None and before.active_pid == after.active_pid
        assert len(world.captured()) == 2


def test_a_server_that_crashes_and_comes_back_is_a_passing_error(
    make_postgres: Callable[..., PostgresServer],
) -> None:
    server = make_postgres(16, durable=True)
    with make_world(server.url()) as world:
        world.run("create table public.t (id int primary key)")
        world.prepare()
        capture = world.capture()
        world.run("insert into public.t values (1)")
        world.catch_up(capture)
        world.run("insert into public.t values (2)")
        server.restart(hard=True)
        with pytest.raises(SourceUnavailable):
            until(capture, lambda: False)
        world.db.close()
        world.db = connect(server.url(), role="control", application="test")
        world.run("insert into public.t values (3)")
        again = world.capture()
        world.catch_up(again)
        assert world.rows("public.t") == world.source_rows("public.t")
        assert [item.change.op for item in world.captured()] == [Op.INSERT] * 3


def test_a_server_that_says_nothing_any_more_is_a_passing_error(make_postgres: Callable[..., PostgresServer]) -> None:
    """As when the network swallows everything: no connection ends, and it looks as if there were nothing to tell."""
    server = make_postgres(16)
    with make_world(server.url()) as world:
        world.run("create table public.t (id int primary key)")
        setup = world.prepare()
        silence = 60.0
        capture = world.capture(silence=silence)
        source, ahead = capture._source, 0.0
        assert isinstance(source, PostgresSource)
        source._clock = lambda: time.monotonic() + ahead
        world.run("insert into public.t values (1)")
        world.catch_up(capture)
        for _ in range(2):  # idle, but it answers when it is asked
            ahead += 0.6 * silence
            began = source._clock()
            until(capture, lambda began=began: source._heard > began)  # type: ignore[misc]
        state = replication.slot_state(world.db, setup.slot)
        assert state is not None and state.active_pid is not None
        os.kill(state.active_pid, signal.SIGSTOP)
        world.run("insert into public.t values (2)")
        ahead += 0.6 * silence
        until(capture, lambda: source._asked is not None and source._asked > source._heard)
        ahead += 0.6 * silence
        with pytest.raises(SourceUnavailable, match="nothing was heard") as caught:
            until(capture, lambda: False)
        assert "network" in caught.value.remedy
        os.kill(state.active_pid, signal.SIGCONT)
        capture.close()
        world.catch_up(world.capture())
        assert world.rows("public.t") == world.source_rows("public.t")


def test_a_source_without_room_for_a_large_transaction_is_tried_again(
    make_postgres: Callable[..., PostgresServer],
) -> None:
    """It keeps what it decodes of one in files beside the slot; where the first of them belongs, the disk is full."""
    server = make_postgres(16, conf={"logical_decoding_work_mem": "64kB"})
    with make_world(server.url()) as world:
        world.run("create table public.t (id int primary key, b text)")
        setup = world.prepare()
        capture = world.capture()
        until(capture, lambda: capture.confirmed > 0)
        with world.db.transaction():
            xid = world.db.execute("select pg_current_xact_id()::text::int8").fetchall()[0][0]
            segment = replication.wal_insert_lsn(world.db) >> 24 << 24
            name = f"xid-{xid}-lsn-{replication.lsn_text(segment).replace('/', '-')}.spill"
            (server.data / "pg_replslot" / setup.slot / name).symlink_to("/dev/full")
            world.run("insert into public.t select g, repeat('x', 100) from generate_series(1, 5000) g")
        with pytest.raises(SourceUnavailable, match="No space left on device") as caught:
            world.catch_up(capture)
        assert "free disk space" in caught.value.remedy
        capture.close()
        world.catch_up(world.capture())
        assert world.rows("public.t") == world.source_rows("public.t")


def test_a_row_that_the_server_can_not_send_is_looked_for_among_the_tables_of_large_values(world: World) -> None:
    """The server's error is made by hand: one in earnest takes a gigabyte, and a minute."""
    world.run("create table public.small (id int primary key, t text)", "create table public.films (id int, t text)")
    world.run("alter table public.films alter t set storage external, replica identity full")
    world.run("insert into public.films values (1, repeat('x', 5 << 20))")
    world.run(
        'create function public."in the change callback, associated LSN 1/8CF21B28"() returns void language plpgsql'
        " as $$ begin raise exception using errcode = '54000', message = 'out of memory'; end $$"
    )
    world.prepare()
    capture = world.capture()
    world.run("insert into public.small values (1, 'x')")
    world.catch_up(capture)
    with pytest.raises(psycopg.errors.ProgramLimitExceeded) as caught:
        world.run('select public."in the change callback, associated LSN 1/8CF21B28"()')
    source = capture._source
    assert isinstance(source, PostgresSource)
    ours = source._ended(caught.value)
    assert isinstance(ours, SchemaUnsupported)
    assert str(ours).endswith("it is in public.films, at 1/8CF21B28")
    assert LOAD_AGAIN in ours.remedy


@pytest.mark.parametrize("large", [False, True], ids=["small", "handed over in parts"])
def test_a_row_that_the_server_can_not_send_stops_capture_behind_all_that_came_before(
    world: World, monkeypatch: pytest.MonkeyPatch, large: bool
) -> None:
    """Of 140 MB, as every bit is a byte in the stream."""
    if large:
        monkeypatch.setattr(postgres, "SPILL_BYTES", 1)
        monkeypatch.setattr(postgres, "SLICE_BYTES", 1)
    world.run("create table public.t (id int primary key, v varbit)", "create table public.other (id int primary key)")
    setup = world.prepare()
    begin = PostgresSource._stream_after

    def begin_and_be_slow(*arguments: Any) -> None:
        """Read nothing before the server has said all, and is gone."""
        begin(*arguments)
        deadline = time.monotonic() + SECONDS
        while (state := replication.slot_state(world.db, setup.slot)) is None or state.active_pid:
            assert time.monotonic() < deadline
            time.sleep(0.05)

    monkeypatch.setattr(PostgresSource, "_stream_after", begin_and_be_slow)
    world.run("insert into public.other values (1)", "insert into public.other values (2)")
    bits = " || ".join(["v"] * 14)
    with world.db.transaction():
        world.run("insert into public.other values (3)", "insert into public.t values (1)")
        world.run(f"insert into public.t select 2, {bits} from (select b'1'::bit(83886080)::varbit) n (v)")
    world.run("insert into public.other values (4)")
    capture = world.capture()
    with pytest.raises(
        SchemaUnsupported, match=r"more than the 1 GB .*; it is in .*public\.t.*, at [0-9A-F]+/"
    ) as caught:
        world.catch_up(capture)
    assert "penstock drop" in caught.value.remedy
    assert [item.after for item in world.captured()] == [{"id": "1"}, {"id": "2"}]


def test_topics_stay_where_the_first_version_put_them(world: World) -> None:
    world.run("create table public.t (id int primary key)")
    world.prepare()
    capture = world.capture()
    world.run("alter table public.t add v int", "insert into public.t values (1, 2)")
    world.catch_up(capture)
    topics = {ranges.topic for frontier in world.frontiers() for ranges in frontier.ranges}
    assert topics == {Topics("shop").changes(TableId("public", "t")).topic}
