"""The source has dropped what was not captured: the targets get what was, and then the run ends and says so."""

from __future__ import annotations

import contextlib
import signal

import psycopg

from engines.postgres.replication import emit_message, slot_state
from tests.fault.conftest import MakeWorld


def test_the_targets_get_what_is_in_the_log_before_the_run_ends(
    make_world: MakeWorld, source_db: str, target_db: str
) -> None:
    world = make_world(source_db, target_db, "", 300)
    run = world.start()
    world.wait("live tables", world.all_live, run)
    applying = [name for name in run.pids() if name.startswith("apply-")]
    slot = f"penstock_{world.name}"
    with contextlib.closing(psycopg.connect(source_db, autocommit=True)) as source:

        def confirmed() -> int:
            state = slot_state(source, slot)
            return state.confirmed_flush or 0 if state else 0

        assert all(run.signal(name, signal.SIGSTOP) for name in applying)
        source.execute("insert into app.accounts select g, 0 from generate_series(10001, 10500) g")
        captured = emit_message(source, "test", "")
        world.wait("a log that has all", lambda: confirmed() >= captured, run)
        assert run.signal("capture", signal.SIGSTOP)
        source.execute(
            "select pg_terminate_backend(active_pid, 5000) from pg_replication_slots where slot_name = %s", [slot]
        )
        source.execute("select pg_drop_replication_slot(%s)", [slot])
        assert run.signal("capture", signal.SIGCONT)
        world.wait(
            "a word", lambda: "go on until the targets have all that is in the log" in run.output.read_text(), run
        )
        assert all(run.signal(name, signal.SIGCONT) for name in applying)
        assert run.process.wait(30) == 3, world.told()
    world.require_equal()
    told = run.output.read_text()
    assert "run it again with prepare: drop-and-create" in told

    again = world.start()
    assert again.process.wait(30) == 3, world.told()
    assert "run it again with prepare: drop-and-create" in again.output.read_text()
