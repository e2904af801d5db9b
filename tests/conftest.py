"""Servers and databases for tests, and the rule that continuous integration skips nothing."""

import contextlib
import ctypes
import os
import re
import signal
import zlib
from collections.abc import Callable, Generator, Iterator
from functools import cache
from typing import Any

import psycopg
import pytest
from psycopg import sql

from control.servers.kafka import KafkaServer
from control.servers.postgres import PostgresServer
from tests import servers

_PR_SET_PDEATHSIG = 1
_NO_PAIR = servers.Versions(0, 0)


def pytest_configure(config: pytest.Config) -> None:
    """Let workers end with pytest, and with them all that they have started, even when pytest is killed; on Linux."""
    prctl = getattr(ctypes.CDLL(None), "prctl", None)
    if prctl is not None and hasattr(config, "workerinput"):
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--pairs",
        type=servers.parse_pairs,
        default=(),
        help="run tests marked `versions` on these PostgreSQL versions of source and target: 14-18,17-17 or all",
    )


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Choose the versions that a test marked `versions` runs on, out of those that its `where` lets through.

    Without `--pairs` it runs on one pair, and the tests of a suite take turns, so that together they have seen
    every version as source and as target; with `every=True`, on each of these pairs.
    """
    mark = metafunc.definition.get_closest_marker("versions")
    if mark is None or "versions" not in metafunc.fixturenames or servers.given():
        return
    asked: tuple[servers.Versions, ...] = metafunc.config.getoption("--pairs")
    fit = mark.kwargs.get("where", lambda versions: True)
    pairs = [versions for versions in asked or servers.IN_TURN if fit(versions)]
    if not asked and not mark.kwargs.get("every", False):
        turn = zlib.crc32(metafunc.definition.nodeid.encode()) % len(pairs)
        pairs = pairs[turn : turn + 1]
    metafunc.parametrize("versions", pairs or [_NO_PAIR], indirect=True, ids=str)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out, rather than skip, what does not run on any of `--pairs`."""
    out = {
        item
        for item in items
        if isinstance(item, pytest.Function)
        and hasattr(item, "callspec")
        and item.callspec.params.get("versions") == _NO_PAIR
    }
    if out:
        config.hook.pytest_deselected(items=list(out))
        items[:] = [item for item in items if item not in out]


def pytest_report_header() -> list[str]:
    return [
        f"servers: PostgreSQL {servers.DEFAULT.source} (source) from {servers.origin(servers.SOURCE_VARIABLE)}, "
        f"{servers.DEFAULT.target} (target) from {servers.origin(servers.TARGET_VARIABLE)}, "
        f"Kafka from {servers.origin(servers.KAFKA_VARIABLE)}"
    ]


def refuse_skip(report: pytest.TestReport | pytest.CollectReport) -> None:
    """Under CI=true turn a skip into a failure; an expected failure is reported as a skip too, and stays."""
    if os.environ.get("CI") == "true" and report.outcome == "skipped" and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"skipped, which CI does not allow: {report.longrepr}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    refuse_skip(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    refuse_skip(report)
    return report


@pytest.fixture
def versions(request: pytest.FixtureRequest) -> servers.Versions:
    """What `source_server` and `target_server` are; other pairs than 16 and 18 for tests marked `versions`."""
    chosen: servers.Versions = getattr(request, "param", servers.DEFAULT)
    return chosen


@pytest.fixture(scope="session")
def lend_postgres() -> Iterator[Callable[[int, str], servers.Postgres]]:
    """Start servers when they are first asked for, by version and by the variable that can replace them."""
    with contextlib.ExitStack() as stack:

        @cache
        def lend(major: int, variable: str) -> servers.Postgres:
            return stack.enter_context(servers.postgres(major, variable))

        yield lend


@pytest.fixture
def source_server(
    versions: servers.Versions, lend_postgres: Callable[[int, str], servers.Postgres]
) -> servers.Postgres:
    return lend_postgres(versions.source, servers.SOURCE_VARIABLE)


@pytest.fixture
def target_server(
    versions: servers.Versions, lend_postgres: Callable[[int, str], servers.Postgres]
) -> servers.Postgres:
    return lend_postgres(versions.target, servers.TARGET_VARIABLE)


@pytest.fixture(scope="session")
def kafka_broker() -> Iterator[servers.Kafka]:
    with servers.kafka() as server:
        yield server


@pytest.fixture
def source_db(source_server: servers.Postgres, request: pytest.FixtureRequest) -> Iterator[str]:
    """The URL of a source database that only this test has."""
    with fresh_database(source_server, request.node.name) as url:
        yield url


@pytest.fixture
def target_db(target_server: servers.Postgres, request: pytest.FixtureRequest) -> Iterator[str]:
    """The URL of a target database that only this test has."""
    with fresh_database(target_server, request.node.name) as url:
        yield url


@pytest.fixture
def make_postgres() -> Iterator[Callable[..., PostgresServer]]:
    """Start local PostgreSQL servers that the test may kill and restart; takes `PostgresServer`'s arguments."""
    with contextlib.ExitStack() as stack:

        def make(*arguments: Any, **named: Any) -> PostgresServer:
            return stack.enter_context(PostgresServer(*arguments, **named))

        yield make


@pytest.fixture
def make_kafka() -> Iterator[Callable[..., KafkaServer]]:
    """Start local Kafka brokers that the test may kill and restart; takes `KafkaServer`'s arguments."""
    with contextlib.ExitStack() as stack:

        def make(**named: Any) -> KafkaServer:
            return stack.enter_context(KafkaServer(**named))

        yield make


@contextlib.contextmanager
def fresh_database(server: servers.Postgres, test: str, encoding: str = "UTF8") -> Iterator[str]:
    """Make a database whose name tells the test, and drop it with its sessions and slots."""
    readable = re.sub(r"\W+", "_", test.lower()).strip("_")[:40]
    name = f"{readable}_{os.urandom(4).hex()}"
    with psycopg.connect(server.admin, autocommit=True) as connection:
        made = sql.SQL("create database {}").format(sql.Identifier(name))
        if encoding != "UTF8":
            made += sql.SQL(" encoding {} template template0 lc_collate 'C' lc_ctype 'C'").format(encoding)
        connection.execute(made)
    try:
        yield server.url(name)
    finally:
        with psycopg.connect(server.admin, autocommit=True) as connection:
            # Forcing ends sessions, but not those that stream from a slot; idle slots go with their database.
            connection.execute(
                "select pg_terminate_backend(active_pid, 10000) from pg_replication_slots"
                " where database = %s and active_pid is not null",
                [name],
            )
            connection.execute(sql.SQL("drop database {} with (force)").format(sql.Identifier(name)))
