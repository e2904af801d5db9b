"""Where the servers of a test run come from: an environment variable, else Docker, else local processes."""

import contextlib
import gc
import os
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

from psycopg.conninfo import conninfo_to_dict, make_conninfo

from control.servers.kafka import BROKER_SETTINGS, KafkaServer
from control.servers.postgres import MAJORS, PostgresServer
from control.servers.process import free_port


class Versions(NamedTuple):
    """The major versions of a source and of its target."""

    source: int
    target: int

    def __str__(self) -> str:
        return f"{self.source}-{self.target}"


DEFAULT = Versions(16, 18)
# Every version once as source and once as target, each beside another.
IN_TURN = (Versions(14, 18), Versions(15, 17), Versions(16, 14), Versions(17, 16), Versions(18, 15))
ALL = tuple(Versions(source, target) for source in MAJORS for target in MAJORS)
SOURCE_VARIABLE = "PENSTOCK_TEST_SOURCE_URL"
TARGET_VARIABLE = "PENSTOCK_TEST_TARGET_URL"
KAFKA_VARIABLE = "PENSTOCK_TEST_KAFKA"
KAFKA_IMAGE = "apache/kafka:4.1.0"


@dataclass(frozen=True, slots=True)
class Postgres:
    """A PostgreSQL that the whole test session shares; to kill one, a test makes its own `PostgresServer`."""

    base_url: str
    origin: str

    def url(self, database: str) -> str:
        """Return a URL of `database` on this server, with everything else as it was given."""
        scheme, _, rest = self.base_url.partition("://")
        authority = rest.partition("?")[0].partition("/")[0]
        query = rest.partition("?")[2]
        return f"{scheme}://{authority}/{database}" + (f"?{query}" if query else "")

    @property
    def admin(self) -> str:
        """A conninfo string of the database that the server itself brought."""
        given = conninfo_to_dict(self.base_url)
        return make_conninfo(self.base_url, dbname=given.get("dbname") or "postgres")


@dataclass(frozen=True, slots=True)
class Kafka:
    """A broker that the whole test session shares; to kill one, a test makes its own `KafkaServer`."""

    bootstrap: str
    origin: str


@cache
def docker_answers() -> bool:
    """Say whether there is an engine; without one testcontainers would fail slowly and obscurely."""
    import docker
    from docker.errors import DockerException

    with warnings.catch_warnings():
        # Its client forgets a socket that cannot connect, and a warning is an error here.
        warnings.simplefilter("ignore", ResourceWarning)
        try:
            with contextlib.closing(docker.from_env()) as client:
                answers = bool(client.ping())
        except DockerException:
            answers = False
        gc.collect()
    return answers


def origin(variable: str) -> str:
    """Name where the server that `variable` can replace comes from."""
    if os.environ.get(variable):
        return variable
    return "Docker" if docker_answers() else "local process"


def parse_pairs(text: str) -> tuple[Versions, ...]:
    """Read `all`, or pairs such as `14-18,17-17`; raise `ValueError` for anything else."""
    if text == "all":
        return ALL
    pairs = [pair.split("-") for pair in text.split(",")]
    if not all(len(pair) == 2 for pair in pairs):
        raise ValueError(f"{text} is neither `all` nor pairs of versions such as 14-18,17-17")
    return tuple(Versions(int(source), int(target)) for source, target in pairs)


def given() -> bool:
    """Say whether somebody has given a server, whose version is then the only one."""
    return any(os.environ.get(variable) for variable in (SOURCE_VARIABLE, TARGET_VARIABLE))


@contextlib.contextmanager
def postgres(major: int, variable: str) -> Iterator[Postgres]:
    """Lend a PostgreSQL for as long as the block lasts."""
    place = origin(variable)
    if place == variable:
        yield Postgres(os.environ[variable], place)
    elif place == "Docker":
        from testcontainers.community.postgres import PostgresContainer

        settings = ["fsync=off", "full_page_writes=off", "wal_level=logical", "timezone=UTC"]
        settings += ["max_wal_senders=50", "max_replication_slots=50"]
        container = PostgresContainer(
            f"postgres:{major}", username="postgres", password="postgres", dbname="postgres", driver=None
        )
        container.with_command("postgres " + " ".join(f"-c {setting}" for setting in settings))
        with container:
            yield Postgres(container.get_connection_url(), place)
    else:
        with PostgresServer(major) as server:
            yield Postgres(server.url(), place)


@contextlib.contextmanager
def kafka() -> Iterator[Kafka]:
    """Lend a broker for as long as the block lasts."""
    place = origin(KAFKA_VARIABLE)
    if place == KAFKA_VARIABLE:
        yield Kafka(os.environ[KAFKA_VARIABLE], place)
    elif place == "Docker":
        with _kafka_container() as bootstrap:
            yield Kafka(bootstrap, place)
    else:
        with KafkaServer() as server:
            yield Kafka(server.bootstrap, place)


@contextlib.contextmanager
def _kafka_container() -> Iterator[str]:
    from testcontainers.core.container import DockerContainer
    from testcontainers.core.wait_strategies import LogMessageWaitStrategy

    # The broker tells clients its address, so the port outside has to be known before it starts.
    port = free_port()
    settings = {
        **BROKER_SETTINGS,
        "process.roles": "broker,controller",
        "node.id": "1",
        "listeners": "CLIENT://:9092,CONTROLLER://:9093",
        "advertised.listeners": f"CLIENT://127.0.0.1:{port}",
        "listener.security.protocol.map": "CLIENT:PLAINTEXT,CONTROLLER:PLAINTEXT",
        "inter.broker.listener.name": "CLIENT",
        "controller.listener.names": "CONTROLLER",
        "controller.quorum.voters": "1@localhost:9093",
    }
    container = DockerContainer(KAFKA_IMAGE).with_bind_ports(9092, port)
    for key, value in settings.items():
        container.with_env("KAFKA_" + key.replace(".", "_").upper(), value)
    with container.waiting_for(LogMessageWaitStrategy("Kafka Server started")):
        yield f"127.0.0.1:{port}"
