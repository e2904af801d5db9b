"""Kill -9 of single services while everything else goes on: the supervisor starts them again, and nothing is lost."""

import json
import os
import random
import signal
import time

from control.shop import fill
from tests.e2e.conftest import Project, traffic

KILLS = 12


def test_services_that_are_killed_come_back(project: Project) -> None:
    chance = random.Random(7)
    fill(project.source, 20_000)
    project.write()
    run = project.start("run", str(project.file))
    pids = project.state / "pids.json"
    project.wait_until("a start", pids.exists, run)
    with traffic(project.source, 300):
        for _ in range(KILLS):
            time.sleep(chance.uniform(0.05, 1.0))
            running = json.loads(pids.read_text())
            name = chance.choice(sorted(running.keys() - {"supervisor"}))
            try:
                os.kill(running[name], signal.SIGKILL)
            except ProcessLookupError:
                continue  # it was done
            assert run.poll() is None
    run.send_signal(signal.SIGTERM)
    output, _ = run.communicate(timeout=30)
    assert run.returncode == 0, output + project.logs()
    assert "is started again" in output
    project.succeed("run", str(project.file), "--until-caught-up")
    assert project.differences() == []
