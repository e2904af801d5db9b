"""Kill -9 of the supervisor and all its services at once, at random moments under traffic: a further run ends equal."""

import random
import time

import pytest

from control.shop import fill
from tests.e2e.conftest import Project, traffic

KILLS = 5


@pytest.mark.parametrize("seed", [1, 2])
def test_runs_that_are_killed_lose_and_double_nothing(project: Project, seed: int) -> None:
    chance = random.Random(seed)
    fill(project.source, 40_000)
    project.write()
    with traffic(project.source, 300, seed):
        for _ in range(KILLS):
            run = project.start("run", str(project.file))
            # The moment is what is tested, whatever it is: nothing waits for anything here.
            time.sleep(chance.uniform(0.3, 4.0))
            assert run.poll() is None, run.communicate()[0] + project.logs()
            project.kill(run)
    project.succeed("run", str(project.file), "--until-caught-up")
    assert project.differences() == []
