"""Kill -9 of the source, of the target and of the broker, in the middle of the load and of the stream."""

from __future__ import annotations

import signal
from collections.abc import Callable

import pytest

from control.servers.kafka import KafkaServer
from control.servers.postgres import PostgresServer
from schemas.states import TableState
from tests import servers
from tests.fault.conftest import MakeWorld
from tests.fault.world import Run, World, ledger

Servers = tuple[PostgresServer, PostgresServer]


def _middle_of_load(world: World, run: Run) -> None:
    """Wait until rows are in the log and no chunk is final: capture is stopped, and goes on when this returns."""
    eyes = world.look()
    world.started(run)
    assert run.signal("capture", signal.SIGSTOP)
    world.wait("a plan", lambda: eyes.setup() and eyes.chunks().of(ledger()).plan, run)
    world.wait("tables at the target", lambda: TableState.LOADING in world.states().values(), run)
    assert run.signal("capture", signal.SIGCONT)


def _both_servers_die(world: World, source: PostgresServer, target: PostgresServer) -> None:
    world.begin_traffic()
    run = world.start()
    _middle_of_load(world, run)
    source.restart(hard=True)
    world.wait("a state", world.states, run)
    target.restart(hard=True)
    world.wait("live tables", world.all_live, run)
    for server in (source, target, source):
        world.more_commits(100)
        server.restart(hard=True)
    world.more_commits(100)
    world.finish(run)


def test_source_and_target_die(make_world: MakeWorld, own_servers: Servers, log_lines: str) -> None:
    source, target = own_servers
    _both_servers_die(make_world(source.url("app"), target.url("app"), log_lines), source, target)


@pytest.fixture
def own_broker(make_kafka: Callable[..., KafkaServer]) -> KafkaServer:
    if servers.origin(servers.KAFKA_VARIABLE) != "local process":
        pytest.skip("only a broker of our own may be killed, and there is none on this machine")
    return make_kafka()


def test_the_broker_dies(own_broker: KafkaServer, make_world: MakeWorld, source_db: str, target_db: str) -> None:
    world = make_world(source_db, target_db, f"log: kafka://{own_broker.bootstrap}\n")
    traffic = world.begin_traffic()
    run = world.start()
    _middle_of_load(world, run)
    own_broker.restart(hard=True)
    world.wait("live tables", world.all_live, run)
    world.more_commits(100)
    own_broker.restart(hard=True)
    world.more_commits(100)
    assert traffic.reconnects == 0 and traffic.longest < 5.0
    world.finish(run)
