"""The stage of a benchmark: two servers that really write to disk, a log, and Penstock as users run it."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self

import psycopg

from bench.workloads import FINGERPRINT, KEYS
from control.servers.kafka import KafkaServer
from control.servers.postgres import PostgresServer

SETTINGS = {
    "shared_buffers": "1GB",
    "max_wal_size": "40GB",
    "autovacuum": "off",
    "checkpoint_timeout": "1h",
    "max_connections": "100",
}


class BenchFailed(RuntimeError):
    """A peer did not do its work, so there is no figure."""


class Service:
    """One `penstock` command and all its processes."""

    def __init__(self, verb: str, file: Path, *options: str) -> None:
        self.log = file.with_suffix(f".{verb}.log")
        self._out = self.log.open("ab")
        self.started = time.perf_counter()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "control", verb, str(file), *options],
            stdin=subprocess.DEVNULL,
            stdout=self._out,
            stderr=self._out,
            start_new_session=True,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def wait(self, seconds: float) -> float:
        """Return how long it ran until it ended by itself with exit code 0."""
        try:
            code = self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.stop()
            raise BenchFailed(f"not finished after {seconds:.0f} s\n{self.tail()}") from None
        took = time.perf_counter() - self.started
        if code:
            raise BenchFailed(f"exit code {code}\n{self.tail()}")
        return took

    def stop(self) -> None:
        """End it in order, or with force if that takes longer than 30 seconds."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(30)
            except subprocess.TimeoutExpired:
                self.kill()
        self._out.close()

    def kill(self) -> None:
        """kill -9 of everything at once."""
        for pid in [self.process.pid, *descendants(self.process.pid)]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()

    def tail(self) -> str:
        return self.log.read_text(errors="replace")[-2000:]


def descendants(pid: int) -> list[int]:
    """Return the processes below one, whatever their session."""
    found: list[int] = []
    queue = [pid]
    while queue:
        parent = queue.pop()
        with contextlib.suppress(OSError):
            children = [int(c) for c in Path(f"/proc/{parent}/task/{parent}/children").read_text().split()]
            found += children
            queue += children
    return found


def cpu_seconds(pids: list[int]) -> float:
    """Return the CPU seconds that living processes have used so far."""
    ticks = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def peak_memory(pids: list[int]) -> dict[int, int]:
    """Return the largest resident memory, in bytes, that each living process has had so far."""
    peaks = {}
    for pid in pids:
        with contextlib.suppress(OSError, IndexError):
            status = Path(f"/proc/{pid}/status").read_text()
            peaks[pid] = int(status.split("VmHWM:")[1].split()[0]) * 1024
    return peaks


class Stage:
    """Source and target server, a folder for state, and a Kafka broker once somebody asks for it."""

    def __init__(self, folder: Path, source: PostgresServer, target: PostgresServer) -> None:
        self.folder, self.source, self.target = folder, source, target
        self._kafka: KafkaServer | None = None
        self._pipelines = 0

    def broker(self) -> str:
        """Return the address of a real broker that syncs every record to disk before it answers."""
        if self._kafka is None:
            self._kafka = KafkaServer(flush_messages=1, quick_start=False, heap="1g")
            self._kafka.start()
        return self._kafka.bootstrap

    def close(self) -> None:
        if self._kafka is not None:
            self._kafka.close()

    def sql(self, server: PostgresServer, database: str, *statements: str) -> list[tuple[Any, ...]]:
        """Run statements, each in a transaction of its own, and return the rows of the last."""
        with psycopg.connect(server.url(database), autocommit=True) as connection:
            for statement in statements:
                cursor = connection.execute(statement.encode())
            return cursor.fetchall() if cursor.description else []

    def fresh(self, server: PostgresServer, database: str, *statements: str) -> None:
        """Make an empty database, in place of one of that name."""
        self.sql(
            server,
            "postgres",
            "select pg_terminate_backend(active_pid, 10000) from pg_replication_slots"
            f" where database = '{database}' and active_pid is not null",
            f"select pg_drop_replication_slot(slot_name) from pg_replication_slots where database = '{database}'",
            f"drop database if exists {database} with (force)",
            f"create database {database}",
        )
        if statements:
            self.sql(server, database, *statements)

    def settle(self) -> None:
        """Leave no work of the past to the next measurement."""
        for server in (self.source, self.target):
            self.sql(server, "postgres", "checkpoint")

    def pipeline(
        self,
        source_db: str,
        target_db: str,
        tables: list[str],
        *,
        kafka: bool,
        mode: str = "load-and-changes",
        target: str = "",
    ) -> Path:
        """Write the pipeline file of a new pipeline, into a folder of its own; `target` are further lines of its
        target."""
        self._pipelines += 1
        name = f"bench_{self._pipelines}"
        folder = self.folder / name
        folder.mkdir()
        log = f"log: kafka://{self.broker()}\n" if kafka else ""
        chosen = ", ".join(f'"public.{table}"' for table in tables)
        file = folder / "pipeline.yaml"
        file.write_text(
            f"pipeline: {name}\nsource:\n  url: {self.source.url(source_db)}\ntables: [{chosen}]\n{log}mode: {mode}\n"
            f"targets:\n  - name: copy\n    url: {self.target.url(target_db)}\n    prepare: keep\n{target}"
        )
        return file

    def forget(self, file: Path) -> None:
        """Drop everything of a pipeline."""
        drop = [sys.executable, "-m", "control", "drop", str(file), "--yes"]
        done = subprocess.run(drop, check=False, capture_output=True, text=True, timeout=120)
        if done.returncode:
            raise BenchFailed(f"drop: exit code {done.returncode}\n{done.stdout}{done.stderr}")
        shutil.rmtree(file.parent)

    def must_equal(self, source_db: str, target_db: str, tables: list[str]) -> None:
        """Raise `BenchFailed` unless the tables are equal on both sides, row by row."""
        for table in tables:
            query = FINGERPRINT.format(table=table, key=KEYS[table])
            left = self.sql(self.source, source_db, "set timezone = 'UTC'", query)
            right = self.sql(self.target, target_db, "set timezone = 'UTC'", query)
            if left != right:
                raise BenchFailed(f"{table} differs: {left} at the source, {right} at the target")


@contextlib.contextmanager
def stage() -> Iterator[Stage]:
    """Start both servers, with fsync and full durability."""
    folder = Path(tempfile.mkdtemp(prefix="penstock-bench-"))
    try:
        with (
            PostgresServer(16, durable=True, conf=SETTINGS) as source,
            PostgresServer(18, durable=True, conf=SETTINGS) as target,
        ):
            made = Stage(folder, source, target)
            try:
                yield made
            finally:
                made.close()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def until(ready: Callable[[], bool], seconds: float, every: float = 0.005) -> float:
    """Wait until `ready`, and return the moment; raise `BenchFailed` if it does not come."""
    deadline = time.perf_counter() + seconds
    while time.perf_counter() < deadline:
        if ready():
            return time.perf_counter()
        time.sleep(every)
    raise BenchFailed(f"nothing after {seconds:.0f} s")
