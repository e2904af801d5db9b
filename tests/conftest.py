"""Servers and databases for tests, and the rule that continuous integration skips nothing."""

import contextlib
import ctypes
import os
import re
import signal
from collections.abc import Callable, Generator, Iterator
from typing import Any

import psycopg
import pytest
from psycopg import sql

from control.servers.kafka import KafkaServer
from control.servers.postgres import PostgresServer
from tests import servers

_PR_SET_PDEATHSIG = 1


def pytest_configure(config: pytest.Config) -> None:
    """Let workers end with pytest, and with them all that they have started, even when pytest is killed; on Linux."""
    prctl = getattr(ctypes.CDLL(None), "prctl", None)
    if prctl is not None and hasattr(config, "workerinput"):
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def pytest_report_header() -> list[str]:
    return [
        f"servers: PostgreSQL {servers.SOURCE_MAJOR} (source) from {servers.origin(servers.SOURCE_VARIABLE)}, "
        f"{servers.TARGET_MAJOR} (target) from {servers.origin(servers.TARGET_VARIABLE)}, "
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


@pytest.fixture(scope="session")
def source_server() -> Iterator[servers.Postgres]:
    with servers.postgres(servers.SOURCE_MAJOR, servers.SOURCE_VARIABLE) as server:
        yield server


@pytest.fixture(scope="session")
def target_server() -> Iterator[servers.Postgres]:
    with servers.postgres(servers.TARGET_MAJOR, servers.TARGET_VARIABLE) as server:
        yield server


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
def fresh_database(server: servers.Postgres, test: str) -> Iterator[str]:
    """Make a database whose name tells the test, and drop it with its sessions and slots."""
    readable = re.sub(r"\W+", "_", test.lower()).strip("_")[:40]
    name = f"{readable}_{os.urandom(4).hex()}"
    with psycopg.connect(server.admin, autocommit=True) as connection:
        connection.execute(sql.SQL("create database {}").format(sql.Identifier(name)))
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
