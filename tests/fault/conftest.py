"""A pipeline to be treated badly, over each kind of log."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from control.servers.postgres import PostgresServer
from tests import servers
from tests.fault.shop import fill
from tests.fault.world import World

MakeWorld = Callable[..., World]


@pytest.fixture(params=["embedded", "kafka"])
def log_lines(request: pytest.FixtureRequest) -> str:
    """The `log:` of a pipeline file, for each kind of log."""
    if request.param == "embedded":
        return ""
    broker: servers.Kafka = request.getfixturevalue("kafka_broker")
    return f"log: kafka://{broker.bootstrap}\n"


@pytest.fixture
def make_world(tmp_path: Path) -> Iterator[MakeWorld]:
    """Make pipelines between databases that are given; what they leave in slots and topics is removed."""
    with contextlib.ExitStack() as stack:

        def make(source: str, target: str, log: str, rows: int = 3_000) -> World:
            fill(source, rows)
            world = World(tmp_path, source, target, log)
            stack.callback(world.forget_topics)
            stack.callback(world.close)
            return world

        yield make


@pytest.fixture
def world(make_world: MakeWorld, source_db: str, target_db: str, log_lines: str) -> World:
    """A pipeline between two databases of servers that others use too."""
    return make_world(source_db, target_db, log_lines)


@pytest.fixture
def own_servers(
    versions: servers.Versions, make_postgres: Callable[..., PostgresServer]
) -> tuple[PostgresServer, PostgresServer]:
    """A source and a target that the test may kill."""
    made = make_postgres(versions.source), make_postgres(versions.target)
    for server in made:
        server.create_database("app")
    return made
