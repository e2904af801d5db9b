"""One pipeline under faults: the program as processes of its own, eyes on its log and its targets, and proof."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import psycopg
import pytest

from control.servers.process import dying_with_us
from control.status import Collector, caught_up
from control.watch import note_goal
from control.wiring import exists, opened_log
from schemas.errors import ReplicationError
from schemas.frontier import Setup
from schemas.pipeline import Pipeline, load_pipeline
from schemas.states import TableState
from schemas.table import TableId
from tests.fault.shop import TABLES, TOTAL, Traffic
from transport.log import Log, LogReader, Partition, Record
from transport.topics import Topics
from transport.views import Chunks, read_setup
from validation.rows import compare

SECONDS = 60.0
_LOOK = 0.003


class Run:
    """One `penstock …` that this test has started, and what its state folder says of its services."""

    def __init__(self, arguments: list[str], output: Path, pids: Path) -> None:
        self.output, self._pids = output, pids
        with output.open("wb") as file:
            self.process = subprocess.Popen(
                dying_with_us([sys.executable, "-m", "control", *arguments], signal.SIGKILL),
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    def pids(self) -> dict[str, int]:
        """Return the services of this very run; nothing while it has written none, or if another run's stand there."""
        try:
            found: dict[str, int] = json.loads(self._pids.read_text())
        except FileNotFoundError:
            return {}
        return found if found.pop("supervisor", 0) == self.process.pid else {}

    def signal(self, name: str, number: signal.Signals) -> int:
        """Send a signal to a service and return its process id; 0 if it does not run now."""
        pid = self.pids().get(name, 0)
        try:
            # Nothing but a child of our own process is ever hit, however old the file is.
            if pid and psutil.Process(pid).ppid() == self.process.pid:
                os.kill(pid, number)
                return pid
        except (psutil.NoSuchProcess, ProcessLookupError):
            pass
        return 0

    def kill_all(self) -> None:
        """Kill -9 the supervisor and every service at once; the processes that were stopped as well."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


class World:
    """A pipeline file with what runs of it."""

    def __init__(self, folder: Path, source: str, target: str, log: str) -> None:
        # Slots and topics are the server's: their names must be this test's alone.
        self.name = f"fault_{os.urandom(4).hex()}"
        self.folder, self.source, self.log_lines = folder, source, log
        self.source_lines = ""
        self.targets = {"copy": target}
        self.runs: list[Run] = []
        self.traffic: Traffic | None = None
        self._stack = contextlib.ExitStack()
        self._eyes: Eyes | None = None
        self._began = time.monotonic()
        self.write()

    @property
    def file(self) -> Path:
        return self.folder / "pipeline.yaml"

    @property
    def state(self) -> Path:
        return self.folder / ".penstock"

    @property
    def target(self) -> str:
        return self.targets["copy"]

    @property
    def pipeline(self) -> Pipeline:
        return load_pipeline(self.file)

    def write(self) -> None:
        """Write the file anew, with the targets that there are now."""
        targets = "".join(f"  - name: {name}\n    url: {url}\n" for name, url in self.targets.items())
        self.file.write_text(
            f'pipeline: {self.name}\nsource:\n  url: {self.source}\n{self.source_lines}tables: ["app.*"]\n'
            f"{self.log_lines}workers: {{snapshot: 2, apply: 2}}\ntargets:\n{targets}"
        )

    # ------------------------------------------------------------------------------------------------- running

    def start(self, command: str = "run", *options: str) -> Run:
        pids = self.state / ("capture-pids.json" if command == "capture" else "pids.json")
        output = self.folder / f"output-{len(self.runs)}.txt"
        run = Run([command, str(self.file), *options], output, pids)
        self.runs.append(run)
        return run

    def begin_traffic(self, rate: float = 250.0, seed: int = 1) -> Traffic:
        self.traffic = Traffic(self.source, rate=rate, seed=seed)
        return self.traffic

    def look(self) -> Eyes:
        """Return eyes on the log, opened at the first call."""
        if self._eyes is None:
            self._eyes = self._stack.enter_context(contextlib.closing(Eyes(self)))
        return self._eyes

    def wait(self, what: str, reached: Callable[[], object], run: Run | None = None, seconds: float = SECONDS) -> None:
        """Look again and again until the moment has come; fail if the run ends before, or when it takes too long.

        While a server is down nothing is seen, and nothing is wrong.
        """
        deadline = time.monotonic() + seconds
        problem = ""
        while True:
            try:
                if reached():
                    self.tell(what)
                    return
            except (psycopg.OperationalError, ReplicationError) as error:
                problem = f" ({error})"
            if run is not None and not run.alive:
                pytest.fail(f"{what}: the run ended with {run.process.returncode}\n{self.told()}")
            if time.monotonic() > deadline:
                pytest.fail(f"{what}: not within {seconds:.0f} s{problem}\n{self.told()}")
            time.sleep(_LOOK)

    def tell(self, what: str) -> None:
        """Note what happened when; shown if the test fails."""
        print(f"{time.monotonic() - self._began:7.2f} s  {what}")

    def started(self, run: Run) -> None:
        """Wait until the services of a run are there."""
        self.wait("a start", run.pids, run)

    def kill(self, run: Run, *names: str) -> bool:
        """Kill -9 services at once and wait until each runs again; False if none of them was there to be killed.

        Who reads the load ends by itself when all is read: the kill may have come just then.
        """
        killed = {name: pid for name in names if (pid := run.signal(name, signal.SIGKILL))}
        self.tell(f"kill -9 {' '.join(killed)}")
        for name, pid in killed.items():
            ends = name == "holder" or name.startswith("snapshot")

            def is_back(name: str = name, pid: int = pid, ends: bool = ends) -> bool:
                found = run.pids()
                return found.get(name, pid) != pid or (ends and bool(found) and name not in found)

            self.wait(f"another {name}", is_back, run)
        return bool(killed)

    def more_commits(self, number: int, seconds: float = SECONDS) -> None:
        """Wait until the application has committed so many more transactions."""
        assert self.traffic is not None
        goal = self.traffic.commits + number
        self.wait(f"{number} commits", lambda: self.traffic is not None and self.traffic.commits >= goal, None, seconds)

    # -------------------------------------------------------------------------------------------------- targets

    def states(self, target: str = "copy") -> dict[str, str]:
        """Return the state of every table as the target has it; nothing before it has heard of any."""
        with contextlib.closing(
            psycopg.connect(self.targets[target], autocommit=True, connect_timeout=2)
        ) as connection:
            try:
                found = connection.execute(
                    "select table_name, state from penstock.tables where pipeline = %s", [self.name]
                ).fetchall()
            except (psycopg.errors.UndefinedTable, psycopg.errors.InvalidSchemaName):
                return {}
        return dict(found)

    def all_live(self, target: str = "copy") -> bool:
        states = self.states(target)
        failed = [name for name, state in states.items() if state == TableState.FAILED]
        assert not failed, f"{failed} have failed\n{self.told()}"
        return bool(states) and set(states.values()) == {TableState.LIVE}

    # ---------------------------------------------------------------------------------------------------- the end

    def finish(self, run: Run | None) -> None:
        """End the traffic, let every target catch up, stop the run in order and compare all rows.

        The run that went through the faults has to catch up itself; None: there is none, and a fresh one is made.
        """
        if self.traffic is not None:
            self.traffic.stop()
        if run is None:
            run = self.start("run")
        self.catch_up(run)
        run.process.send_signal(signal.SIGTERM)
        assert run.process.wait(30) == 0, self.told()
        self.tell("the end of the run")
        self.require_equal()
        self.tell("equal")

    def catch_up(self, run: Run) -> None:
        """Wait until every target has what is committed at the source now."""
        pipeline = self.pipeline
        goals: list[int] = []

        def note() -> bool:
            goals.append(note_goal(pipeline))
            return True

        self.wait("a word to the source", note, run)
        with opened_log(pipeline) as log:
            self.wait("a log", lambda: exists(log), run)
            with contextlib.closing(Collector(pipeline, log)) as collector:

                def reached() -> bool:
                    if not collector.ready():
                        return False
                    found = collector.progress()
                    for _, _, tables, _ in found:
                        for table in tables.values():
                            assert table.state is not TableState.FAILED, f"{table.table}: {table.error}\n{self.told()}"
                    return all(not error and caught_up(tables, groups, goals[0]) for _, error, tables, groups in found)

                self.wait("catching up", reached, run)

    def require_equal(self) -> None:
        """Compare every target with the source row by row, and fail with every difference."""
        for name, url in self.targets.items():
            differences = [str(difference) for difference in compare(self.source, url, TABLES)]
            if differences:
                pytest.fail(f"{len(differences)} differences of {name}:\n" + "\n".join(differences) + self.told())

    def told(self) -> str:
        """Return the last of what all processes have said."""
        said = [f"--- {run.output.name}:\n{run.output.read_text(errors='replace')[-3000:]}" for run in self.runs]
        logs = [f"--- {path.name}:\n{path.read_text()[-5000:]}" for path in sorted(self.state.glob("logs/*.log"))]
        return "\n".join(["", *said, *logs])

    def retries(self, service: str = "*") -> int:
        """Return how often services have begun anew after an error: more than a few a second would be a busy loop."""
        logs = self.state.glob(f"logs/{service}.log*")
        return sum(path.read_text().count('"will try again"') for path in logs)

    def close(self) -> None:
        """End everything."""
        if self.traffic is not None and self.traffic.is_alive():
            with contextlib.suppress(BaseException):
                self.traffic.stop()
        self._stack.close()
        for run in self.runs:
            run.kill_all()

    def forget_topics(self) -> None:
        """Delete this pipeline's topics: a broker is everybody's. One of the test's own may be gone."""
        if self.log_lines:
            with contextlib.suppress(ReplicationError), opened_log(self.pipeline) as log:
                log.delete_topics([topic.name for topic in log.topics(f"{self.name}.")])


class Eyes:
    """Reads the pipeline's log beside its services."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._stack = contextlib.ExitStack()
        self.log: Log = self._stack.enter_context(opened_log(world.pipeline))
        self.topics = Topics(world.name)
        self._reader: LogReader | None = None
        self._chunks: Chunks | None = None

    def records(self, partition: Partition) -> list[Record]:
        """Return all that a control topic holds now; nothing while there is no such topic."""
        if self._reader is None:
            if not exists(self.log):
                return []
            if not self.topics.are_made(self.log):
                return []
            self._reader = self._stack.enter_context(self.log.reader())
        found: list[Record] = []
        while more := self._reader.records(partition, found[-1].offset + 1 if found else 0):
            found += more
        return found

    def setup(self) -> Setup | None:
        self.records(self.topics.control)
        return read_setup(self._reader, self.topics) if self._reader is not None else None

    def chunks(self) -> Chunks:
        """Return snapshots, plans and manifests as they are now; only once the log is there."""
        self.records(self.topics.chunks)
        assert self._reader is not None, "there is no log yet"
        if self._chunks is None:
            self._chunks = Chunks(self._reader, self.topics)
        self._chunks.refresh()
        return self._chunks

    def claims_and_frontiers(self) -> int:
        return len(self.records(self.topics.frontier))

    def end(self, partition: Partition) -> int:
        return self.log.offsets(partition).end

    def close(self) -> None:
        self._stack.close()


def ledger() -> TableId:
    """The table of many chunks."""
    return TableId("app", "ledger")


class Balance:
    """Asks the target again and again, while faults happen, whether it shows a state that the source was in."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.seen = 0

    def check(self) -> None:
        """Look once; a target that is down or not loaded yet shows nothing."""
        try:
            with contextlib.closing(psycopg.connect(self._world.target, autocommit=True)) as connection:
                row = connection.execute(
                    "select (select state from penstock.tables where pipeline = %s and table_name = 'accounts'),"
                    " (select sum(balance) from app.accounts)",
                    [self._world.name],
                ).fetchone()
        except (psycopg.OperationalError, psycopg.errors.UndefinedTable):
            return
        if row is not None and row[0] == TableState.LIVE:
            self.seen += 1
            assert row[1] == TOTAL, f"the target shows a sum of {row[1]}: a transaction was split"
