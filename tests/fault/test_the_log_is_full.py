"""The embedded log has taken all that it may while nobody applies: capture waits, the application does not."""

from __future__ import annotations

import contextlib
import signal

import psycopg

from tests.fault.conftest import MakeWorld

BUDGET = 40_000_000
# A megabyte that nothing makes smaller.
WRITE = """
insert into app.events
select now(), (select string_agg(md5(random()::text), '') from generate_series(1, 3000 + g % 2)), g
  from generate_series(1, 10) g
"""
APPLIERS = ("apply-copy-0", "apply-copy-1")


def test_a_full_log_holds_up_capture_and_nobody_else(make_world: MakeWorld, source_db: str, target_db: str) -> None:
    world = make_world(source_db, target_db, "log: {budget: 40MB}\n", 1_000)
    traffic = world.begin_traffic()
    log = world.look().log
    run = world.start()
    world.wait("live tables", world.all_live, run)
    for name in APPLIERS:
        assert run.signal(name, signal.SIGSTOP)
    with contextlib.closing(psycopg.connect(source_db, autocommit=True)) as connection:

        def filled() -> bool:
            if log.usage().used >= BUDGET:
                return True
            connection.execute(WRITE.encode())
            return False

        world.wait("a full log", filled, run)
    world.more_commits(200)
    for name in APPLIERS:
        assert run.signal(name, signal.SIGCONT)
    assert traffic.longest < 5.0
    world.finish(run)
