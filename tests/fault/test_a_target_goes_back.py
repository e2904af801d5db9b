"""A target is brought back as it was some time ago: from the log it becomes what it was, or says what is missing."""

from __future__ import annotations

import contextlib
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import psycopg

from control.servers.postgres import PostgresServer
from tests.fault.conftest import MakeWorld
from tests.fault.world import Run

WRITE = """
insert into app.events
select now(), (select string_agg(md5(random()::text), '') from generate_series(1, 3000 + g % 2)), g
  from generate_series(1, 10) g
"""


def _copy(server: PostgresServer, to: Path) -> None:
    server.stop()
    subprocess.run(["cp", "-a", str(server.data), str(to)], check=True)
    server.start()


def _bring_back(server: PostgresServer, copy: Path) -> None:
    server.kill()
    shutil.rmtree(server.data)
    subprocess.run(["cp", "-a", str(copy), str(server.data)], check=True)
    server.start()


def test_a_target_that_was_taken_back_catches_up_as_far_as_the_log_reaches(
    make_world: MakeWorld, make_postgres: Callable[..., PostgresServer], source_db: str, tmp_path: Path
) -> None:
    target = make_postgres(18)
    target.create_database("app")
    world = make_world(source_db, target.url("app"), "log: {budget: 40MB}\n", 300)
    traffic = world.begin_traffic(rate=100)
    run = world.start()
    world.wait("live tables", world.all_live, run)
    _copy(target, tmp_path / "copy")
    world.more_commits(50)
    world.catch_up(run)

    # While everything runs: the log still has it all.
    _bring_back(target, tmp_path / "copy")
    world.more_commits(20)
    world.catch_up(run)

    # Now the log has forgotten what the copy lacks.
    traffic.stop()
    world.traffic = None
    log, frontiers = world.look().log, world.look().topics.frontier
    with contextlib.closing(psycopg.connect(source_db, autocommit=True)) as connection:

        def trimmed() -> bool:
            connection.execute(WRITE.encode())
            return log.offsets(frontiers).start > 0

        world.wait("a trim", trimmed, run)
    world.catch_up(run)
    _stop(run)
    _bring_back(target, tmp_path / "copy")
    run = world.start()
    told = run.output.read_text
    world.wait("a word of it", lambda: "drop its schema penstock" in told() and "it was trimmed up to" in told(), run)
    assert world.retries() < 40
    _stop(run)

    # The remedy is one, and so is what the trimmer says of a log that is full of what the others have: room for a load.
    with contextlib.closing(psycopg.connect(world.target, autocommit=True)) as connection:
        connection.execute("drop schema penstock, app cascade")
    world.targets = {"again": world.target}
    world.log_lines = "log: {budget: 1GB}\n"
    world.write()
    world.finish(world.start())


def _stop(run: Run) -> None:
    run.process.send_signal(signal.SIGTERM)
    assert run.process.wait(30) == 0
