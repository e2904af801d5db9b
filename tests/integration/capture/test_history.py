"""A source that goes back in its history, or fails over: it goes on, or capture says what is to be done."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from psycopg import pq

from capture import caretaker
from capture.loop import Capture
from capture.postgres import PostgresSource
from control.retention import PostgresSlot
from control.servers.postgres import PostgresServer
from engines.postgres import replication
from engines.postgres.connect import replication as connect_for_replication
from engines.postgres.prerequisites import source_problems
from schemas.errors import LOAD_AGAIN, PositionLost, SourceUnavailable
from tests.integration.capture.conftest import SECONDS, World, make_world, until
from tests.standby import SLOT, SYNCED, Standby

MakePostgres = Callable[..., PostgresServer]


def move_to(world: World, server: PostgresServer) -> None:
    """Let the URL lead to another server, as an address that moves with a fail-over does."""
    world.url = server.url()
    world.reconnect()


def bring_back(server: PostgresServer, copy: Path) -> None:
    """Replace what the server has by an earlier copy of it."""
    server.stop()
    shutil.rmtree(server.data)
    subprocess.run(["cp", "-a", str(copy), str(server.data)], check=True)
    server.start()


@pytest.fixture
def server(make_postgres: MakePostgres) -> PostgresServer:
    return make_postgres(18)


def test_a_copy_that_was_brought_back_and_written_to_is_another_history(server: PostgresServer, tmp_path: Path) -> None:
    """The machine's snapshot, as it were: slots and all."""
    with make_world(server.url()) as world:
        world.run("create table public.t (id int primary key)")
        world.prepare()
        first = world.capture()
        world.run("insert into public.t values (1)")
        world.catch_up(first)
        first.close()
        server.stop()
        copy = tmp_path / "copy"
        subprocess.run(["cp", "-a", str(server.data), str(copy)], check=True)
        server.start()

        # Brought back as it was when capture stopped it is the same one.
        bring_back(server, copy)
        move_to(world, server)
        world.run("insert into public.t values (2)")
        second = world.capture()
        world.catch_up(second)
        assert world.rows("public.t") == world.source_rows("public.t")
        second.close()

        # Now it lacks what was captured; and then it has other transactions at the same positions.
        bring_back(server, copy)
        move_to(world, server)
        with pytest.raises(PositionLost, match="restored to an earlier state") as caught:
            until(world.capture(), lambda: False)
        assert LOAD_AGAIN in caught.value.remedy
        world.run(*[f"insert into public.t select generate_series({n}00, {n}99)" for n in range(1, 40)])
        assert replication.wal_insert_lsn(world.db) > second.position
        with pytest.raises(PositionLost, match="taken back to an earlier state") as caught:
            until(world.capture(), lambda: False)
        assert LOAD_AGAIN in caught.value.remedy


def unconfirmed(world: World, monkeypatch: pytest.MonkeyPatch) -> Capture:
    """Return a capture of three rows that has told the source nothing of them."""
    world.run("create table public.t (id int primary key)")
    world.prepare()
    capture = world.capture()
    until(capture, lambda: capture.confirmed > 0)
    monkeypatch.setattr(PostgresSource, "confirm", lambda self, position: None)
    for n in range(3):
        world.run(f"insert into public.t values ({n})")
        world.catch_up(capture)
    return capture


def test_what_was_captured_and_not_confirmed_is_known_again(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """As when capture dies between the two, or the source forgets a confirmation in a crash."""
    with monkeypatch.context() as patched:
        first = unconfirmed(world, patched)
        first.close()
    assert world.confirmed() < first.position
    second = world.capture()
    world.run("insert into public.t values (10)")
    world.catch_up(second)
    assert world.rows("public.t") == world.source_rows("public.t")
    assert len(world.captured()) == 4


def test_what_is_confirmed_while_the_slot_is_waited_for_is_the_same_history(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a capture does that was superseded, and let go of the slot just after its last confirmation."""
    with monkeypatch.context() as patched:
        first = unconfirmed(world, patched)

    def confirmed_just_before(url: str, *, application: str) -> pq.abc.PGconn:
        source = first._source
        assert isinstance(source, PostgresSource)
        source.confirm(first.position)
        deadline = time.monotonic() + SECONDS
        while world.confirmed() < first.position:
            assert time.monotonic() < deadline, "the source does not hear of it"
        source.close()
        return connect_for_replication(url, application=application)

    monkeypatch.setattr("capture.history.connect_for_replication", confirmed_just_before)
    monkeypatch.setattr(PostgresSource, "occupied", lambda self: "")
    second = world.capture()
    world.run("insert into public.t values (10)")
    world.catch_up(second)
    assert world.confirmed() >= first.position
    assert world.rows("public.t") == world.source_rows("public.t")
    assert len(world.captured()) == 4


@pytest.fixture
def standby(server: PostgresServer) -> Iterator[Standby]:
    with Standby(server, conf=SYNCED) as made:
        yield made


def begin(world: World) -> Capture:
    world.run("create table public.t (id int primary key)")
    world.prepare()
    capture = world.capture()
    world.run("insert into public.t values (1)")
    world.catch_up(capture)
    return capture


def go_on(world: World, capture: Capture) -> None:
    world.run("checkpoint")  # notes which transactions run, and so lets the slot move
    world.catch_up(capture)
    until(capture, lambda: world.confirmed() >= capture.position)


def fail_over(world: World, primary: PostgresServer, standby: Standby) -> None:
    primary.kill()
    standby.promote()
    move_to(world, standby)


def test_a_fail_over_to_a_standby_that_has_the_slot_goes_on(server: PostgresServer, standby: Standby) -> None:
    both = f"127.0.0.1:{server.port},127.0.0.1:{standby.port}"
    with make_world(f"postgresql://postgres@{both}/postgres?target_session_attrs=read-write") as world:
        before = begin(world)
        assert world.setup is not None
        world.run(f"alter system set synchronized_standby_slots = '{SLOT}'", "select pg_reload_conf()")
        standby.sync(world.setup.slot, lambda: go_on(world, before))
        # The slot there stays behind: what was captured since comes from what the standby has of the log.
        for n in range(2, 6):
            world.run(f"insert into public.t values ({n})")
            world.catch_up(before)
        server.kill()
        standby.promote()
        with pytest.raises(SourceUnavailable):
            until(before, lambda: False)
        world.reconnect()
        world.run("insert into public.t values (6)")
        after = world.capture()
        world.catch_up(after)
        assert world.rows("public.t") == world.source_rows("public.t")
        assert len(world.captured()) == 6


def test_a_fail_over_to_a_standby_that_lacks_what_was_captured_is_told(
    server: PostgresServer, standby: Standby
) -> None:
    with make_world(server.url()) as world:
        before = begin(world)
        assert world.setup is not None
        standby.sync(world.setup.slot, lambda: go_on(world, before))
        standby.stop()
        world.run("insert into public.t values (2)")
        world.catch_up(before)
        server.kill()
        standby.start()
        fail_over(world, server, standby)
        world.run(*[f"insert into public.t select generate_series({n}00, {n}99)" for n in range(1, 20)])
        with pytest.raises(PositionLost, match="failed over to a standby that lacked what was captured") as caught:
            until(world.capture(), lambda: False)
        assert LOAD_AGAIN in caught.value.remedy


def test_a_standby_that_the_address_leads_to_too_early_is_waited_for(server: PostgresServer, standby: Standby) -> None:
    """Not even the slot has to be there yet."""
    with make_world(server.url()) as world:
        begin(world).close()
        world.url = standby.url()
        capture = world.capture()
        with pytest.raises(SourceUnavailable, match="is a standby now") as caught:
            until(capture, lambda: False)
        assert "primary" in caught.value.remedy
        assert world.setup is not None
        with contextlib.closing(PostgresSlot(standby.url(), world.setup.slot)) as slot:
            with pytest.raises(SourceUnavailable) as caught:
                slot.retained()
            assert "standby" in caught.value.remedy
            assert slot.released() is None


def test_a_fail_over_to_a_standby_without_the_slot_is_told(server: PostgresServer, standby: Standby) -> None:
    with make_world(server.url()) as world:
        begin(world)
        standby.catch_up()
        fail_over(world, server, standby)
        with pytest.raises(PositionLost, match="no replication slot") as caught:
            until(world.capture(), lambda: False)
        assert "sync_replication_slots" in caught.value.remedy and LOAD_AGAIN in caught.value.remedy


def test_a_standby_that_the_source_awaits_is_named(
    server: PostgresServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The source itself sends nothing then, and says nothing to us."""
    monkeypatch.setattr(caretaker, "END_SECONDS", 0.2)
    with make_world(server.url()) as world:
        before = begin(world)
        world.run("alter system set synchronized_standby_slots = 'gone'", "select pg_reload_conf()")
        world.run("insert into public.t values (2)")
        until(before, lambda: bool(caplog.records))
        assert "until standby gone streams" in caplog.text and "synchronized_standby_slots" in caplog.text
        assert world.setup is not None
        problems = source_problems(server.url(), world.setup.slot.removeprefix("penstock_"), lambda id: True, "load")
        assert any("until standby gone streams" in problem.what for problem in problems)
        world.run("alter system set synchronized_standby_slots = ''", "select pg_reload_conf()")
        world.catch_up(before)
        assert world.rows("public.t") == world.source_rows("public.t")
