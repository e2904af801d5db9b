"""Very many tables: a start, a restart, an idle pipeline, and groups of tables whose worker is killed."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass

import psycopg

from bench.scale import idle, largest_process, many_tables
from bench.stage import BenchFailed, Service, Stage, cpu_seconds, descendants, until

GROUPED = 96
"""Tables that are not tied to each other: their names fall into some fifty of the 64 groups."""

WORKERS = 4
BEAT_SECONDS = 0.1
LIVE = "select count(*) from penstock.tables where state = 'live'"


@dataclass(frozen=True, slots=True)
class Started:
    """Seconds, and CPU seconds of all our processes and of both servers meanwhile."""

    seconds: float
    ours: float
    servers: float

    def __str__(self) -> str:
        return f"{self.seconds:.0f} s (CPU: ours {self.ours:.0f} s, the servers' {self.servers:.0f} s)"


@dataclass(frozen=True, slots=True)
class Many:
    first: Started  # until every table is loaded and live
    again: Started  # until a change arrives
    memory: int  # MB of the largest process
    idle: float  # percent of a core


def start(made: Stage, tables: int) -> Many:
    """Begin a pipeline of that many small tables, stop it, start it again, and let it idle."""
    many_tables(made, "start", tables)
    file = made.pipeline("start", "start", ["t*", "mark"], kafka=False)
    with Service("run", file) as service:
        first = _until(made, service, lambda: _live(made, "start") == tables + 1)
        memory = largest_process(service)
    made.sql(made.source, "start", "update mark set v = 1 where id = 3")
    with Service("run", file) as service:
        arrived = "select 1 from mark where id = 3 and v = 1"
        again = _until(made, service, lambda: bool(made.sql(made.target, "start", arrived)))
        time.sleep(30)  # what a start leaves to be done is not what an idle pipeline costs
        cost = idle(service, 20)
        memory = max(memory, largest_process(service))
    made.forget(file)
    return Many(first, again, memory, cost)


def _until(made: Stage, service: Service, ready: Callable[[], bool]) -> Started:
    servers = [pid for server in (made.source, made.target) for pid in (server.pid, *descendants(server.pid))]
    before = cpu_seconds(servers)
    spent: dict[int, float] = {}  # a process that has ended can't be asked any more

    def look() -> bool:
        for pid in (service.process.pid, *descendants(service.process.pid)):
            spent[pid] = max(spent.get(pid, 0.0), cpu_seconds([pid]))
        if service.process.poll() is not None:
            raise BenchFailed(f"it has ended\n{service.tail()}")
        return ready()

    took = until(look, 900, 0.25) - service.started
    now = [pid for server in (made.source, made.target) for pid in (server.pid, *descendants(server.pid))]
    return Started(took, sum(spent.values()), cpu_seconds(now) - before)


def _live(made: Stage, database: str) -> int:
    with contextlib.suppress(psycopg.errors.UndefinedTable):
        return int(made.sql(made.target, database, LIVE)[0][0])
    return 0


def takeover(made: Stage, *, kafka: bool) -> tuple[float, int]:
    """Kill one of four apply workers that nobody starts again; return after how long what is committed then has
    arrived in every table, and how many groups there were."""
    many_tables(made, "groups", GROUPED)
    file = made.pipeline("groups", "groups", ["t*", "mark"], kafka=kafka)
    beat = "; ".join(f"update t{n} set v = v + 1 where id = 1" for n in range(1, GROUPED + 1))
    least = "select least(" + ", ".join(f"(select v from t{n} where id = 1)" for n in range(1, GROUPED + 1)) + ")"
    with contextlib.ExitStack() as stack:
        for verb in ("capture", "snapshot"):
            stack.enter_context(Service(verb, file))
        workers = [stack.enter_context(Service("apply", file)) for _ in range(WORKERS)]
        until(lambda: _live(made, "groups") == GROUPED + 1, 300, 0.2)
        groups = int(made.sql(made.target, "groups", "select count(distinct grp) from penstock.tables")[0][0])
        made.sql(made.source, "groups", beat)
        until(lambda: made.sql(made.target, "groups", least) == [(1,)], 60, 0.02)
        workers[0].kill()
        killed = time.perf_counter()
        made.sql(made.source, "groups", beat)
        took = until(lambda: made.sql(made.target, "groups", least) == [(2,)], 120, 0.02) - killed
    made.forget(file)
    return took, groups
