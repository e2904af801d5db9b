"""Networks between us and both databases that are slow, lose all connections, or swallow everything for a while."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

import psutil
import pytest

from tests.fault.conftest import MakeWorld
from tests.fault.proxy import Wire
from tests.fault.world import Run

STALL_SECONDS = 2.5


@pytest.fixture
def wires(source_db: str, target_db: str) -> Iterator[tuple[Wire, Wire]]:
    with contextlib.closing(Wire(source_db)) as source, contextlib.closing(Wire(target_db)) as target:
        yield source, target


def cpu_seconds(run: Run) -> float:
    """Return what all services of a run have taken of the processors."""
    seconds = 0.0
    for pid in run.pids().values():
        with contextlib.suppress(psutil.NoSuchProcess):  # who reads the load ends when all is read
            spent = psutil.Process(pid).cpu_times()
            seconds += spent.user + spent.system
    return seconds


def test_networks_that_delay_cut_and_stall(
    make_world: MakeWorld, source_db: str, target_db: str, wires: tuple[Wire, Wire]
) -> None:
    world = make_world(source_db, target_db, "", 500)
    world.begin_traffic(rate=100)
    source, target = wires
    world.source, world.targets = source.url, {"copy": target.url}
    world.write()
    source.delay = target.delay = 0.002
    run = world.start()
    world.wait("live tables", world.all_live, run)
    source.delay = target.delay = 0.0
    for wire in (source, target, source, target):
        wire.cut()
        world.more_commits(20)
    # Nobody is told that the network carries nothing: what was on its way arrives late, and nothing twice.
    before, retries = cpu_seconds(run), world.retries()
    for wire in (source, target):
        wire.stall()
        began = time.monotonic()
        world.wait("the end of a stall", lambda: time.monotonic() - began > STALL_SECONDS, run)  # noqa: B023
        wire.flow()
    assert cpu_seconds(run) - before < STALL_SECONDS
    assert world.retries() - retries < 10
    world.more_commits(50)
    world.finish(run)
