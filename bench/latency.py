"""From a commit at the source until it is visible at the target, under a steady load of small transactions."""

from __future__ import annotations

import subprocess
import threading
import time
from dataclasses import dataclass

import psycopg

from bench.stage import BenchFailed, Stage, until

BEAT_SECONDS = 0.010
LOOK_SECONDS = 0.002


@dataclass(frozen=True, slots=True)
class Latency:
    """Percentiles in milliseconds."""

    p50: float
    p99: float
    worst: float


def watch(stage: Stage, source_db: str, target_db: str, load: list[str], seconds: float) -> Latency:
    """Run the command `load` for about `seconds`, commit a beat every 10 ms beside it, and see when each arrives.

    The looker looks every 2 ms, which the figures include. Raises `BenchFailed` if a beat does not arrive.
    """
    sent: dict[int, float] = {}
    seen: dict[int, float] = {}
    with psycopg.connect(stage.source.url(source_db), autocommit=True) as connection:
        row = connection.execute("select v from mark where id = 3").fetchone()
    assert row is not None
    first = int(row[0]) + 1
    count = int(seconds / BEAT_SECONDS)

    def look() -> None:
        with psycopg.connect(stage.target.url(target_db), autocommit=True) as connection:
            deadline, last = time.perf_counter() + seconds + 60, first - 1
            while last < first + count - 1 and time.perf_counter() < deadline:
                found = connection.execute("select v from mark where id = 3").fetchone()
                now = time.perf_counter()
                if found is not None and found[0] > last:
                    for beat in range(last + 1, found[0] + 1):
                        seen[beat] = now
                    last = found[0]
                time.sleep(LOOK_SECONDS)

    looker = threading.Thread(target=look)
    traffic = subprocess.Popen(load, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        looker.start()
        with psycopg.connect(stage.source.url(source_db), autocommit=True) as connection:
            began = time.perf_counter()
            for n in range(count):
                time.sleep(max(0.0, began + n * BEAT_SECONDS - time.perf_counter()))
                connection.execute("update mark set v = %s where id = 3", (first + n,))
                sent[first + n] = time.perf_counter()
        looker.join()
    finally:
        traffic.terminate()
        traffic.wait()
    if len(seen) < count:
        raise BenchFailed(f"{count - len(seen)} of {count} beats did not arrive")
    took = sorted(max(0.0, seen[beat] - sent[beat]) * 1000 for beat in sent)
    return Latency(took[len(took) // 2], took[int(len(took) * 0.99)], took[-1])


def pgbench(stage: Stage, script: str, database: str, rate: int, seconds: float) -> list[str]:
    """Return a command that runs a script at a steady rate of transactions a second."""
    path = stage.folder / f"steady_{database}.sql"
    path.write_text(script)
    tool = stage.target.tool("pgbench")
    common = ["-n", "-c", "4", "-j", "1", "-R", str(rate), "-T", str(int(seconds) + 2)]
    return [tool, *common, "-f", str(path), stage.source.url(database)]


def settled(stage: Stage, target_db: str) -> None:
    """Wait until every table of a target is live, so that nothing of the past is measured."""
    until(lambda: bool(stage.sql(stage.target, target_db, "select v from mark where id = 3")), 120, 0.05)
    left = "select count(*) from penstock.tables where state <> 'live' or not tied"
    until(lambda: stage.sql(stage.target, target_db, left)[0][0] == 0, 120, 0.1)
