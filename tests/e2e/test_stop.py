"""SIGTERM and Ctrl-C end a run within seconds with 0, at any moment, and all of its processes with it."""

import os
import signal
import time

import psutil
import pytest

from control.shop import fill
from tests.e2e.conftest import Project, one


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("after", ["start", "set-up", "load"])
def test_a_signal_stops_a_run(simple: Project, number: signal.Signals, after: str) -> None:
    fill(simple.source, 2_000)
    simple.write()
    run = simple.start("run", str(simple.file))
    simple.wait_until("a start", (simple.state / "pids.json").exists, run)
    if after != "start":
        slots = f"select count(*) from pg_replication_slots where slot_name = 'penstock_{simple.name}'"
        simple.wait_until("a slot", lambda: one(simple.source, slots) == 1, run)
    if after == "load":
        there = "select count(*) from pg_tables where schemaname = 'shop' and tablename = 'visits'"
        simple.wait_until("a table", lambda: one(simple.target, there) == 1, run)
    children = psutil.Process(run.pid).children(recursive=True)
    began = time.monotonic()
    # As a terminal does it: every process of the group gets the signal.
    os.killpg(run.pid, number) if number is signal.SIGINT else run.send_signal(number)
    output, _ = run.communicate(timeout=30)
    assert run.returncode == 0, output + simple.logs()
    assert time.monotonic() - began < 10
    assert not [child for child in children if child.is_running()]
    simple.succeed("run", str(simple.file), "--until-caught-up")
    assert simple.differences() == []


def test_services_do_not_outlive_a_supervisor_that_was_killed(simple: Project) -> None:
    fill(simple.source, 2_000)
    simple.write()
    run = simple.start("run", str(simple.file))
    simple.wait_until("a start", (simple.state / "pids.json").exists, run)
    children = psutil.Process(run.pid).children(recursive=True)
    run.kill()
    run.wait()
    _, alive = psutil.wait_procs(children, timeout=10)
    assert alive == []
