"""Two captures of one pipeline, and several owners of one group: each pair believes that it is alone."""

from __future__ import annotations

import re
import signal
import subprocess
import sys

from control.servers.process import dying_with_us
from tests.fault.world import World


def test_two_captures_run_at_once(world: World) -> None:
    """One works, the other says who that is and waits; what a capture has not sealed does not exist for the next."""
    world.begin_traffic()
    run = world.start()
    other = world.start("capture")
    for one in (run, other):
        world.started(one)
    world.wait("live tables", world.all_live, run)
    world.wait("a word of it", lambda: "another capture of this pipeline runs" in world.told(), run)
    for one in (other, run, other):
        world.more_commits(100)
        world.kill(one, "capture")
    world.more_commits(100)
    other.kill_all()
    world.finish(run)


def _owner(world: World) -> subprocess.Popen[str]:
    return subprocess.Popen(
        dying_with_us([sys.executable, "-m", "tests.fault.owner", str(world.file)], signal.SIGKILL),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_several_workers_own_everything_at_once(world: World) -> None:
    """Two that take all there is, beside two that share it: the target lets only one of them through."""
    world.begin_traffic()
    run = world.start()
    world.started(run)
    owners = [_owner(world), _owner(world)]
    conflicts = 0
    try:
        world.wait("live tables", world.all_live, run)
        world.more_commits(500)
    finally:
        for owner in owners:
            owner.terminate()
            said, _ = owner.communicate(timeout=30)
            print(said)
            conflicts += sum(int(number) for number in re.findall(r"conflicts: (\d+)", said))
    assert conflicts
    assert [owner.returncode for owner in owners] == [0, 0]
    world.finish(run)
