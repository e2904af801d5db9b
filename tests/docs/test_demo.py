"""`make demo`, with fewer rows: it succeeds over both logs, is readable in a file, and Ctrl-C leaves nothing behind."""

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).parents[2]
SECONDS = 110


def demo(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "control.demo", *arguments],
        cwd=ROOT,
        env={**os.environ, "TMPDIR": str(folder)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


@pytest.fixture
def folder() -> Iterator[Path]:
    """Where the demo puts its files: a short path, for sockets, which PostgreSQL's own user finds the way to."""
    with tempfile.TemporaryDirectory(prefix="demo-") as name:
        Path(name).chmod(0o711)
        yield Path(name)


@pytest.mark.parametrize("log", ["sqlite", pytest.param("kafka", marks=pytest.mark.slow)])
def test_the_demo_ends_with_equal_tables(folder: Path, log: str) -> None:
    process = demo(folder, "--log", log, "--rows", "20000")
    said, _ = process.communicate(timeout=SECONDS)
    assert process.returncode == 0, said
    assert "All tables are equal, after kill -9 of " in said
    assert said.count("was killed by SIGKILL; it is started again") >= 3
    assert said.count(" equal\n") == 6
    assert "DIFFERENCES" not in said
    assert "\x1b" not in said
    assert [line for line in said.splitlines() if len(line) > 140] == []
    assert list(folder.iterdir()) == []


def test_ctrl_c_leaves_nothing_behind(folder: Path) -> None:
    process = demo(folder, "--rows", "5000")
    assert process.stdout is not None
    for line in process.stdout:
        if "tables live" in line:
            break
    family = psutil.Process(process.pid).children(recursive=True)
    assert len(family) > 10
    os.killpg(process.pid, signal.SIGINT)
    said, _ = process.communicate(timeout=SECONDS)
    assert process.returncode == 130, said
    assert "Traceback" not in said
    _, alive = psutil.wait_procs(family, timeout=5)
    assert alive == []
    assert list(folder.iterdir()) == []
