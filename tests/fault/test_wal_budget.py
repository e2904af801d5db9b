"""The source's log, which is kept for us, grows while capture does not run: its budget holds all the same."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable

import psycopg

from control.servers.postgres import PostgresServer
from engines.postgres.replication import slot_state
from schemas.record import decode_control
from tests import servers
from tests.fault.conftest import MakeWorld
from tests.fault.world import Run, World

BUDGET = 50_000_000
FILL = "select pg_logical_emit_message(false, 'fill', repeat('x', 1000000))"


def test_the_budget_of_the_sources_log_is_told_and_kept(
    make_world: MakeWorld, make_postgres: Callable[..., PostgresServer], target_db: str
) -> None:
    source = make_postgres(servers.DEFAULT.source)
    world = make_world(source.url(), target_db, "", 300)
    world.source_lines = "  wal-budget: 50MB\n"
    world.write()
    run = world.start()
    world.wait("live tables", world.all_live, run)
    with contextlib.closing(psycopg.connect(source.url(), autocommit=True)) as connection:
        # Warned of, and no more than that.
        _fill(world, connection, run, lambda: _kept(world, connection) > BUDGET)
        world.wait("a warning", lambda: "wal-budget is 50.0 MB" in run.output.read_text(), run)
        shown = json.loads(_penstock(world, "status", "--json").stdout)["source"]
        assert shown["wal_budget"] == BUDGET and shown["retained_bytes"] > BUDGET
        assert shown["wal_full_seconds"] == 0.0
        assert run.signal("capture", signal.SIGCONT)
        connection.execute("checkpoint")  # from where on the source keeps its log moves with what it notes then
        world.wait("room again", lambda: "of its log for us again" in run.output.read_text(), run)
        world.wait("events", lambda: len(_events(world)) >= 2, run)
        assert any("capture has not taken" in text for text in _events(world)), _events(world)
        world.catch_up(run)
        run.process.send_signal(signal.SIGTERM)
        assert run.process.wait(30) == 0
        world.require_equal()

        # Let go, so that the source lives on; and said so at once, and at every start.
        world.source_lines += "  at-wal-budget: release\n"
        world.write()
        run = world.start()
        world.started(run)
        name = f"penstock_{world.name}"
        _fill(world, connection, run, lambda: slot_state(connection, name) is None)
        run.signal("capture", signal.SIGCONT)
        for again in (run, world.start()):
            began = time.monotonic()
            assert again.process.wait(30) == 3
            assert time.monotonic() - began < 20
            told = again.output.read_text()
            assert f"replication slot {name} was let go: the source kept " in told
            assert "wal-budget is 50.0 MB" in told and "run it again with prepare: drop-and-create" in told

        assert any(f"slot {name} was let go" in text for text in _events(world)), _events(world)

        checked = _penstock(world, "check")
        assert checked.returncode == 4 and f"slot {name} was let go" in checked.stdout

        # The remedy is one.
        connection.execute("insert into app.accounts values (1001, 0)")
        assert _penstock(world, "drop", "--yes").returncode == 0
        world.file.write_text(world.file.read_text() + "    prepare: drop-and-create\n")
        run = world.start()
        world.wait("live tables", world.all_live, run)
        world.finish(run)


def _fill(world: World, connection: psycopg.Connection, run: Run, full: Callable[[], bool]) -> None:
    """Stop capture, and let the source write until it is enough."""
    assert run.signal("capture", signal.SIGSTOP)

    def filled() -> bool:
        connection.execute(FILL.encode())
        return full()

    world.wait("much of the source's log", filled, run)


def _kept(world: World, connection: psycopg.Connection) -> int:
    row = connection.execute(
        "select pg_current_wal_insert_lsn() - restart_lsn from pg_replication_slots where slot_name = %s",
        [f"penstock_{world.name}"],
    ).fetchone()
    assert row is not None
    return int(row[0])


def _events(world: World) -> list[str]:
    eyes = world.look()
    records = [record.value for record in eyes.records(eyes.topics.events)]
    return [decode_control(value).text for value in records if value is not None]


def _penstock(world: World, command: str, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "control", command, str(world.file), *options],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )
