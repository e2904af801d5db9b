"""Pipelines as a user runs them: a file, and the program as a process of its own."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psycopg
import pytest

from control.servers.process import dying_with_us
from control.shop import Traffic
from tests import servers
from validation.rows import compare

SECONDS = 90.0


@dataclass
class Project:
    """A folder with a pipeline file, and what runs of it."""

    folder: Path
    name: str
    source: str
    target: str
    log: str = ""  # the `log:` line, empty for files
    running: list[subprocess.Popen[str]] = field(default_factory=list)

    @property
    def file(self) -> Path:
        return self.folder / "pipeline.yaml"

    @property
    def state(self) -> Path:
        return self.folder / ".penstock"

    def write(self, *, mode: str = "load-and-changes", tables: str = "shop.*", more_targets: str = "") -> None:
        self.file.write_text(
            f"pipeline: {self.name}\n"
            f"source:\n  url: {self.source}\n"
            f'tables: ["{tables}"]\n'
            f"{self.log}"
            f"mode: {mode}\n"
            f"workers: {{snapshot: 2, apply: 2}}\n"
            f"targets:\n  - name: copy\n    url: {self.target}\n{more_targets}"
        )

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """Start `penstock` in a process group of its own."""
        process = subprocess.Popen(
            dying_with_us([sys.executable, "-m", "control", *arguments], signal.SIGKILL),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self.running.append(process)
        return process

    def run(self, *arguments: str, seconds: float = SECONDS) -> subprocess.CompletedProcess[str]:
        """Run `penstock` to its end."""
        process = self.start(*arguments)
        try:
            output, _ = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            self.kill(process)
            output, _ = process.communicate()
            pytest.fail(f"penstock {' '.join(arguments)} did not end in {seconds:.0f} s:\n{output}\n{self.logs()}")
        return subprocess.CompletedProcess(list(arguments), process.returncode, output)

    def succeed(self, *arguments: str) -> str:
        """Run `penstock`, and fail the test with all that was said if it does."""
        done = self.run(*arguments)
        assert done.returncode == 0, f"{done.stdout}\n{self.logs()}"
        return done.stdout

    def kill(self, process: subprocess.Popen[str]) -> None:
        """Kill -9 a run with all its services at once."""
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def logs(self) -> str:
        """Return what the services have written."""
        return "\n".join(f"{path.name}:\n{path.read_text()}" for path in sorted(self.state.glob("logs/*.log")))

    def differences(self, target: str | None = None) -> list[str]:
        return [str(difference) for difference in compare(self.source, target or self.target, ["shop.*"])]

    def all_differences(self) -> list[str]:
        return [str(difference) for difference in compare(self.source, self.target)]

    def wait_until(self, what: str, reached: Callable[[], bool], process: subprocess.Popen[str] | None = None) -> None:
        """Look again and again; fail when the run has ended, or after long."""
        deadline = time.monotonic() + SECONDS
        while not reached():
            ended = process is not None and process.poll() is not None
            if ended or time.monotonic() > deadline:
                output = process.communicate()[0] if process is not None and ended else ""
                pytest.fail(f"{what}: not reached\n{output}\n{self.logs()}")
            time.sleep(0.02)

    def close(self) -> None:
        for process in self.running:
            if process.poll() is None:
                self.kill(process)
            if process.stdout is not None:
                process.stdout.close()


@pytest.fixture(params=["sqlite", pytest.param("kafka", marks=pytest.mark.slow)])
def project(request: pytest.FixtureRequest, tmp_path: Path, source_db: str, target_db: str) -> Iterator[Project]:
    """A pipeline over each kind of log."""
    log = ""
    if request.param == "kafka":
        broker: servers.Kafka = request.getfixturevalue("kafka_broker")
        log = f"log: kafka://{broker.bootstrap}\n"
    yield from project_of(tmp_path, source_db, target_db, log)


@pytest.fixture
def simple(tmp_path: Path, source_db: str, target_db: str) -> Iterator[Project]:
    """A pipeline over files, for what has nothing to do with the log."""
    yield from project_of(tmp_path, source_db, target_db, "")


def project_of(folder: Path, source: str, target: str, log: str) -> Iterator[Project]:
    # Slots and topics are the server's, not the database's: their names must be this test's alone.
    made = Project(folder, f"e2e_{os.urandom(4).hex()}", source, target, log)
    try:
        yield made
    finally:
        made.close()
        if made.file.exists():
            made.run("drop", "--yes", str(made.file))
        made.close()


@contextlib.contextmanager
def traffic(url: str, rate: float, seed: int = 1) -> Iterator[None]:
    """Have a shop's application write for as long as the block lasts."""
    made = Traffic(url, rate, seed)
    try:
        yield
    finally:
        made.stop()


def one(url: str, query: str) -> int:
    """Return the one number that a query gives."""
    with psycopg.connect(url, autocommit=True) as connection:
        row = connection.execute(query.encode()).fetchone()
    assert row is not None
    return int(row[0])
