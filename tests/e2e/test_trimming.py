"""The log forgets what every target has: with a small budget traffic goes on without end, whoever is killed when."""

import json
import os
import signal
import subprocess

import psycopg
import pytest

from control.wiring import opened_log
from schemas.pipeline import load_pipeline
from tests import servers
from tests.conftest import fresh_database
from tests.e2e.conftest import Project, one
from transport.log import Partition, Usage
from transport.topics import Topics
from transport.views import read_trimmed

BUDGET = 24_000_000
ROWS = 2_000  # of a kilobyte, in each transaction
LOADED = "select sum(generation) + sum(rows_loaded) from penstock.tables"
LIVE = "select count(*) from penstock.tables where state = 'live'"


@pytest.fixture
def small(simple: Project) -> Project:
    """A pipeline with little room for its log, and one table."""
    simple.log = f"log: {{budget: {BUDGET // 1_000_000}MB}}\n"
    with psycopg.connect(simple.source, autocommit=True) as source:
        source.execute("create schema shop")
        source.execute("create table shop.notes (id int primary key, edition int not null default 0, body text)")
        notes = "insert into shop.notes (id, body) select n, repeat('n', 1000) from generate_series(1, %s) n"
        source.execute(notes, [ROWS])
    simple.write()
    return simple


def write(project: Project, transactions: int) -> int:
    """Write so many times two megabytes of changes, and return how many they are in all."""
    with psycopg.connect(project.source, autocommit=True) as source:
        for number in range(transactions):
            change = "update shop.notes set edition = edition + 1, body = repeat(%s, 1000)"
            source.execute(change, [chr(97 + number % 26)])
    return transactions * ROWS * 1000


def has_all(project: Project) -> bool:
    edition = "select min(edition) from shop.notes"
    return one(project.target, edition) == one(project.source, edition)


def usage(project: Project) -> Usage:
    with opened_log(load_pipeline(project.file)) as log:
        return log.usage()


def trims(project: Project) -> int:
    """Return how far the frontiers were trimmed; 0: not yet."""
    with opened_log(load_pipeline(project.file)) as log, log.reader() as reader:
        trimmed = read_trimmed(reader, Topics(project.name))
        return trimmed.offset if trimmed else 0


def live(project: Project, tables: int = 1, target: str = "") -> bool:
    try:
        return one(target or project.target, LIVE) == tables
    except psycopg.errors.UndefinedTable:
        return False


def trimmer_of(project: Project) -> int:
    return int(json.loads((project.state / "pids.json").read_text()).get("trimmer", 0))


def test_more_than_the_budget_flows_through_whoever_is_killed(small: Project) -> None:
    run = small.start("run", str(small.file))
    small.wait_until("a live table", lambda: live(small), run)
    written = 0
    killed: list[int] = []
    while written < 4 * BUDGET:
        written += write(small, 10)
        small.wait_until("room", lambda: usage(small).used < BUDGET / 2, run)
        small.wait_until("a trimmer", lambda: trimmer_of(small) not in {0, *killed}, run)
        killed.append(trimmer_of(small))
        os.kill(killed[-1], signal.SIGKILL)
    small.wait_until("all rows", lambda: has_all(small), run)
    small.wait_until("room", lambda: usage(small).used < BUDGET / 2, run)
    assert trims(small) > 0
    before = trims(small)
    small.kill(run)

    # What starts now reads a log without a beginning.
    run = small.start("run", str(small.file))
    write(small, 12)
    small.wait_until("all rows", lambda: has_all(small), run)
    small.wait_until("a trim", lambda: trims(small) > before, run)
    stop(run, small)
    assert small.differences() == []


def stop(run: subprocess.Popen[str], project: Project) -> None:
    run.terminate()
    output, _ = run.communicate(timeout=30)
    assert run.returncode == 0, output + project.logs()


def test_a_target_that_is_added_after_a_trim_is_loaded_while_the_first_goes_on(
    small: Project, target_server: servers.Postgres, request: pytest.FixtureRequest
) -> None:
    with psycopg.connect(small.source, autocommit=True) as source:
        source.execute("create table shop.few (id int primary key, body text)")
        source.execute("insert into shop.few select n, 'few' from generate_series(1, 100) n")
    run = small.start("run", str(small.file))
    small.wait_until("live tables", lambda: live(small, 2), run)
    write(small, 12)
    small.wait_until("a trim", lambda: has_all(small) and trims(small) > 0, run)
    small.wait_until("room for a load", lambda: usage(small).used < BUDGET / 3, run)
    stop(run, small)
    with fresh_database(target_server, request.node.name) as late:
        small.write(more_targets=f"  - name: late\n    url: {late}\n")
        run = small.start("run", str(small.file))
        loaded = one(small.target, LOADED)
        write(small, 2)
        small.wait_until("all rows", lambda: has_all(small), run)
        small.wait_until("live tables of the new one", lambda: live(small, 2, late), run)
        before = trims(small)
        write(small, 12)
        small.wait_until("another trim", lambda: trims(small) > before and has_all(small), run)
        stop(run, small)
        small.succeed("run", str(small.file), "--until-caught-up")
        assert small.differences() == small.differences(late) == []
        assert one(small.target, LOADED) == loaded  # only the new one was loaded
        small.succeed("drop", "--yes", str(small.file))


def chunks_forgotten(project: Project) -> int:
    """Return how many batches of the load the log does not hold any more."""
    with opened_log(load_pipeline(project.file)) as log:
        topics = log.topics(Topics(project.name).prefix + "load.")
        return sum(log.offsets(Partition(topic.name, n)).start for topic in topics for n in range(topic.partitions))


@pytest.mark.parametrize("mode", ["load-and-changes", "load"])
def test_a_load_larger_than_the_log_runs_through_though_all_are_killed(small: Project, mode: str) -> None:
    budget, tables = 40_000_000, 90
    small.log = f"log: {{budget: {budget // 1_000_000}MB}}\n"
    with psycopg.connect(small.source, autocommit=True) as source:
        for number in range(tables):
            source.execute(f"create table shop.t{number} (id int primary key, body text)")
            rows = f"insert into shop.t{number} select n, repeat('r', 1000) from generate_series(1, %s) n"
            source.execute(rows.encode(), [ROWS])
    assert tables * ROWS * 1000 > 4 * budget
    small.write(mode=mode)
    run = small.start("run", str(small.file))
    small.wait_until("chunks that are forgotten", lambda: chunks_forgotten(small) > 0, run)
    small.kill(run)
    assert not live(small, tables + 1)
    small.succeed("run", str(small.file), "--until-caught-up")
    assert small.differences() == []
