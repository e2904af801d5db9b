"""Histories in the simulated world: they hold, and with a deliberate mistake they don't.

Each run is a process of its own: a mistake can't leak, and the order of hashes, which is part of a history, is fixed.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.simulation.mistakes import MISTAKES, RARE

ROOT = Path(__file__).parents[2]
KEPT = sorted((Path(__file__).parent / "kept").glob("*.json"))

HISTORIES, SHARES = 5_000, 20
ENOUGH = 12_000
"""Histories within which every mistake must be found. Which ones find it shifts with every call that a loop makes; the
rarest are found by one in some thousand, so that half as many could miss one by chance."""


def simulate(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tests.simulation", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def told(run: subprocess.CompletedProcess[str]) -> str:
    return f"{run.stdout}{run.stderr}"


@pytest.mark.timeout(600)
@pytest.mark.parametrize("share", range(SHARES))
def test_every_history_holds(share: int) -> None:
    number = HISTORIES // SHARES
    run = simulate("--seed", share * number, "--histories", number, "--jobs", 1)
    assert run.returncode == 0, told(run)
    assert f"{number} histories, 0 failed" in run.stdout


@pytest.mark.parametrize("path", KEPT, ids=lambda path: path.stem)
def test_a_history_that_once_failed_holds(path: Path) -> None:
    run = simulate("--replay", path)
    assert (run.returncode, run.stdout) == (0, "holds\n"), told(run)


@pytest.mark.timeout(1_500)
@pytest.mark.parametrize("mistake", sorted(MISTAKES.keys() - RARE))
def test_a_deliberate_mistake_is_found(mistake: str) -> None:
    run = simulate("--break", mistake, "--histories", ENOUGH, "--jobs", 1)
    assert run.returncode == 0, told(run)
    assert f"{mistake}: found by seed" in run.stdout


def test_a_failing_seed_is_told_with_the_command_that_replays_it() -> None:
    found = simulate("--break", "epoch-not-checked", "--jobs", 2)
    told_failure = re.search(r"^seed \d+: (.+)$", found.stdout, re.MULTILINE)
    command = re.search(r"replay: python -m tests\.simulation (.+)$", found.stdout, re.MULTILINE)
    assert told_failure and command, told(found)
    again = simulate(*command[1].split())
    assert again.returncode == 1
    assert f"fails: {told_failure[1]}" in again.stdout
