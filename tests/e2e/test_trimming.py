"""The log forgets what every target has: with a small budget traffic goes on without end, whoever is killed when."""

import json
import os
import signal
import subprocess

import psycopg
import pytest

from control.wiring import opened_log
from schemas.pipeline import load_pipeline
from tests.e2e.conftest import Project, one
from transport.log import Usage
from transport.topics import Topics
from transport.views import read_trimmed

BUDGET = 24_000_000
ROWS = 2_000  # of a kilobyte, in each transaction
LIVE = "select count(*) from penstock.tables where state = 'live'"


@pytest.fixture
def small(simple: Project) -> Project:
    """A pipeline with little room for its log, and one table."""
    simple.log = f"log: {{budget: {BUDGET // 1_000_000}MB}}\n"
    with psycopg.connect(simple.source, autocommit=True) as source:
        source.execute("create schema shop")
        source.execute("create table shop.notes (id bigint primary key generated always as identity, body text)")
        source.execute("insert into shop.notes (body) select repeat('n', 1000) from generate_series(1, 1000)")
    simple.write()
    return simple


def write(project: Project, transactions: int) -> int:
    """Write so many times two megabytes of changes, and return how many they are in all."""
    with psycopg.connect(project.source, autocommit=True) as source:
        for number in range(transactions):
            insert = "insert into shop.notes (body) select repeat(%s, 1000) from generate_series(1, %s)"
            source.execute(insert, [chr(97 + number % 26), ROWS])
    return transactions * ROWS * 1000


def has_all(project: Project) -> bool:
    count = "select count(*) from shop.notes"
    return one(project.target, count) == one(project.source, count)


def usage(project: Project) -> Usage:
    with opened_log(load_pipeline(project.file)) as log:
        return log.usage()


def trims(project: Project) -> int:
    """Return how far the frontiers were trimmed; 0: not yet."""
    with opened_log(load_pipeline(project.file)) as log, log.reader() as reader:
        trimmed = read_trimmed(reader, Topics(project.name))
        return trimmed.offset if trimmed else 0


def live(project: Project, tables: int = 1) -> bool:
    try:
        return one(project.target, LIVE) == tables
    except psycopg.errors.UndefinedTable:
        return False


def trimmer_of(project: Project) -> int:
    return int(json.loads((project.state / "pids.json").read_text()).get("trimmer", 0))


def test_more_than_the_budget_flows_through_whoever_is_killed(small: Project) -> None:
    run = small.start("run", str(small.file))
    small.wait_until("a live table", lambda: live(small), run)
    written = killed = 0
    while written < 4 * BUDGET:
        written += write(small, 10)
        small.wait_until("room", lambda: usage(small).used < BUDGET / 2, run)
        small.wait_until("a trimmer", lambda: trimmer_of(small) not in {0, killed}, run)
        killed = trimmer_of(small)
        os.kill(killed, signal.SIGKILL)
    small.wait_until("all rows", lambda: has_all(small), run)
    assert usage(small).used < BUDGET and trims(small) > 0
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
