"""Kill -9 of each service at named steps of its work; the run goes on by itself, and ends equal."""

from __future__ import annotations

import signal
from collections.abc import Callable

import pytest

from schemas.states import TableState
from tests.fault.conftest import MakeWorld
from tests.fault.world import World, ledger


def test_a_holder_is_killed_while_it_sets_up(world: World) -> None:
    """At the first registered table, and again between the snapshot and the setup, or as near to that as can be."""
    world.begin_traffic()
    eyes = world.look()
    run = world.start()
    # Before it can follow anything: so no chunk gets final, and the holder is not done.
    world.wait("capture", lambda: run.signal("capture", signal.SIGSTOP), run)
    world.wait("a table", lambda: eyes.records(eyes.topics.tables), run)
    assert world.kill(run, "holder")
    taken = len(eyes.records(eyes.topics.chunks))
    world.wait("a snapshot", lambda: len(eyes.records(eyes.topics.chunks)) > taken, run)
    assert world.kill(run, "holder")
    assert run.signal("capture", signal.SIGCONT)
    world.wait("live tables", world.all_live, run)
    world.finish(run)


def test_a_snapshot_that_is_lost_in_the_middle_of_a_load_is_healed(
    make_world: MakeWorld, source_db: str, target_db: str, log_lines: str
) -> None:
    """When the first of many chunks of a table is final, whoever holds the snapshot dies, and all who read in it."""
    world = make_world(source_db, target_db, log_lines, 20_000)
    world.begin_traffic(rate=500)
    eyes = world.look()
    run = world.start()
    world.wait("a final chunk", lambda: eyes.setup() and eyes.chunks().of(ledger()).manifests, run)
    assert run.signal("capture", signal.SIGSTOP)  # no more chunks get final
    assert world.kill(run, "holder", "snapshot-0", "snapshot-1")
    assert not eyes.chunks().of(ledger()).complete()
    assert run.signal("capture", signal.SIGCONT)
    world.wait("healing", lambda: eyes.chunks().of(ledger()).healed, run)
    world.wait("live tables", world.all_live, run)
    assert len(eyes.chunks().of(ledger()).snapshots()) > 1
    world.finish(run)


STEPS = ["setup", "plan", "manifest", "loaded", "live"]
VICTIMS = ["capture", "snapshot-0", "holder", "apply-copy-0", "snapshot-1"]


@pytest.mark.parametrize("shift", range(3))
def test_services_are_killed_one_after_the_other_at_each_step_of_the_load(world: World, shift: int) -> None:
    """When there is a setup, a plan, a manifest, a table that is loaded, and one that is live: each time another
    service, and in each round another one at the same step."""
    world.begin_traffic()
    eyes = world.look()
    moments: dict[str, Callable[[], bool]] = {
        "setup": lambda: eyes.setup() is not None,
        "plan": lambda: any(table.plan for table in eyes.chunks().tables.values()),
        "manifest": lambda: any(table.manifests for table in eyes.chunks().tables.values()),
        "loaded": lambda: bool(set(world.states().values()) - {TableState.WAITING, TableState.LOADING}),
        "live": lambda: TableState.LIVE in world.states().values(),
    }
    run = world.start()
    world.started(run)
    for place, step in enumerate(STEPS):
        world.wait(step, moments[step], run)
        # A holder, or a snapshot worker, that is done already is not there to be killed.
        world.kill(run, VICTIMS[(place + shift) % len(VICTIMS)])
    world.wait("live tables", world.all_live, run)
    world.finish(run)


def test_an_apply_worker_is_killed_while_tables_catch_up(world: World) -> None:
    """What was changed since the snapshot is much, and is applied by nobody until the whole load is there."""
    world.begin_traffic(rate=500)
    eyes = world.look()
    run = world.start()
    world.started(run)
    world.wait("a setup", eyes.setup, run)
    for name in ("apply-copy-0", "apply-copy-1"):
        assert run.signal(name, signal.SIGSTOP)
    world.wait("a load in the log", lambda: eyes.chunks().of(ledger()).complete(), run)
    world.more_commits(1_000)
    for name in ("apply-copy-0", "apply-copy-1"):
        assert run.signal(name, signal.SIGCONT)
    for _ in range(2):
        world.wait("catching up", lambda: TableState.CATCHING_UP in world.states().values() or world.all_live(), run)
        assert world.kill(run, "apply-copy-0", "apply-copy-1")
    world.wait("live tables", world.all_live, run)
    world.finish(run)


def test_a_capture_is_killed_after_frontiers(world: World) -> None:
    """Each time as soon as a frontier is in the log: most often before it has been confirmed to the source."""
    traffic = world.begin_traffic()
    eyes = world.look()
    run = world.start()
    world.wait("live tables", world.all_live, run)
    for _ in range(6):
        before = eyes.end(eyes.topics.frontier)
        # The claim of the one that was killed before counts too.
        world.wait("frontiers", lambda before=before: eyes.end(eyes.topics.frontier) >= before + 2, run)  # type: ignore[misc]
        assert world.kill(run, "capture")
    assert traffic.longest < 5.0
    world.finish(run)
