"""The servers that other tests rest on start, die, come back and keep what they were given."""

import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import psycopg
import pytest
from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from control.servers.kafka import KafkaServer
from control.servers.postgres import MAJORS, PostgresServer
from control.servers.process import ServerProcess, ServerUnavailable, free_port
from tests import servers
from tests.conftest import fresh_database

DEADLINE = 30.0


def query(url: str, statement: str) -> list[tuple[object, ...]]:
    with psycopg.connect(url, autocommit=True) as connection:
        cursor = connection.execute(statement.encode())
        return cursor.fetchall() if cursor.description else []


def produce(bootstrap: str, topic: str, values: list[bytes]) -> None:
    failures: list[object] = []
    producer = Producer({"bootstrap.servers": bootstrap, "enable.idempotence": True})
    for value in values:
        producer.produce(
            topic, value, partition=0, on_delivery=lambda error, _: failures.append(error) if error else None
        )
    assert producer.flush(DEADLINE) == 0
    assert failures == []


def consume(bootstrap: str, topic: str, count: int) -> list[bytes]:
    consumer = Consumer({"bootstrap.servers": bootstrap, "group.id": "none", "enable.auto.commit": False})
    try:
        consumer.assign([TopicPartition(topic, 0, 0)])
        values = [message.value() for message in consumer.consume(count, DEADLINE)]
    finally:
        consumer.close()
    return [value for value in values if value is not None]


def runs(process: psutil.Process) -> bool:
    """Say whether a process is there, and not only waits to be reaped."""
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def make_topic(bootstrap: str, topic: str) -> None:
    admin = AdminClient({"bootstrap.servers": bootstrap})
    admin.create_topics([NewTopic(topic, 1, 1)])[topic].result(DEADLINE)


def test_source_and_target_are_fresh_databases_of_servers_that_can_be_decoded(source_db: str, target_db: str) -> None:
    for url in (source_db, target_db):
        assert query(url, "select count(*) from pg_class where relnamespace = 'public'::regnamespace") == [(0,)]
    assert query(source_db, "show wal_level") == [("logical",)]
    assert query(source_db, "show synchronous_commit") == [("on",)]


def test_a_database_goes_with_the_sessions_and_slots_that_hold_it(source_server: servers.Postgres) -> None:
    with fresh_database(source_server, "held") as url:
        query(url, "create table held (id int primary key)")
        query(url, "select pg_create_logical_replication_slot('held', 'pgoutput')")
        session = psycopg.connect(url)
    assert session.info.transaction_status is not None
    with pytest.raises(psycopg.OperationalError):
        session.execute("select 1")
    session.close()
    assert query(source_server.admin, "select 1 from pg_replication_slots where slot_name = 'held'") == []


@pytest.mark.versions(every=True)
def test_source_and_target_are_of_the_versions_that_were_asked_for(
    versions: servers.Versions, source_db: str, target_db: str
) -> None:
    major = "select current_setting('server_version_num')::int / 10000"
    assert query(source_db, major) == [(versions.source,)]
    assert query(target_db, major) == [(versions.target,)]


@pytest.mark.parametrize("major", MAJORS)
def test_postgres_keeps_committed_rows_when_it_is_killed(
    make_postgres: Callable[..., PostgresServer], major: int
) -> None:
    server = make_postgres(major)
    server.create_database("kept")
    url = server.url("kept")
    query(url, "create table kept as select generate_series(1, 1000) as id")
    backends = psutil.Process(server.pid).children()
    server.kill()
    assert not server.running
    assert [process for process in backends if runs(process)] == []
    server.start()
    assert query(url, "select count(*) from kept") == [(1000,)]
    server.restart()
    assert query(url, "select count(*) from kept") == [(1000,)]
    assert query(url, "select current_setting('server_version_num')::int / 10000") == [(major,)]


def test_postgres_takes_durability_and_settings_as_given(make_postgres: Callable[..., PostgresServer]) -> None:
    server = make_postgres(18, durable=True, conf={"wal_sender_timeout": "5s", "max_wal_senders": 3})
    names = "('fsync', 'full_page_writes', 'wal_sender_timeout', 'max_wal_senders')"
    rows = query(server.url(), f"select name, setting from pg_settings where name in {names}")
    assert sorted(map(str, rows)) == [
        "('fsync', 'on')",
        "('full_page_writes', 'on')",
        "('max_wal_senders', '3')",
        "('wal_sender_timeout', '5000')",
    ]


def test_kafka_gives_back_what_it_was_given(kafka_broker: servers.Kafka) -> None:
    topic = f"given-{os.urandom(4).hex()}"
    make_topic(kafka_broker.bootstrap, topic)
    values = [str(number).encode() for number in range(100)]
    produce(kafka_broker.bootstrap, topic, values)
    assert consume(kafka_broker.bootstrap, topic, 100) == values


def test_kafka_keeps_acknowledged_messages_when_it_is_killed(make_kafka: Callable[..., KafkaServer]) -> None:
    server = make_kafka(flush_messages=1)
    make_topic(server.bootstrap, "kept")
    produce(server.bootstrap, "kept", [b"before"])
    server.restart(hard=True)
    produce(server.bootstrap, "kept", [b"after"])
    assert consume(server.bootstrap, "kept", 2) == [b"before", b"after"]


def test_a_closed_server_leaves_nothing(make_postgres: Callable[..., PostgresServer]) -> None:
    server = make_postgres()
    process, folder = psutil.Process(server.pid), server.folder
    server.close()
    assert not process.is_running()
    assert not folder.exists()


def test_a_server_ends_with_a_parent_that_is_killed() -> None:
    program = (
        "import signal; from control.servers.postgres import PostgresServer\n"
        "server = PostgresServer().start(); print(server.pid, server.folder, flush=True); signal.pause()"
    )
    root = Path(__file__).parents[2]
    with subprocess.Popen([sys.executable, "-c", program], cwd=root, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pid, folder = parent.stdout.readline().split()
        server = psutil.Process(int(pid))
        parent.send_signal(signal.SIGKILL)
    try:
        server.wait(DEADLINE)
    finally:
        subprocess.run(["rm", "-rf", folder], check=True)


class _Broken(ServerProcess):
    name = "broken"

    def __init__(self, script: str) -> None:
        super().__init__()
        self.script = script

    def command(self) -> list[str]:
        return [sys.executable, "-c", self.script]

    def ready(self) -> bool:
        return False


def test_a_server_that_ends_at_once_says_why() -> None:
    server = _Broken("raise SystemExit('no such setting')")
    with pytest.raises(ServerUnavailable, match="broken ended with 1:\nno such setting"), server:
        pass
    assert not server.folder.exists()


class _Silent(_Broken):
    start_seconds = 0.3


def test_a_server_that_never_answers_is_given_up() -> None:
    server = _Silent("import signal; signal.pause()")
    with pytest.raises(ServerUnavailable, match="does not answer"), server:
        pass
    assert not server.running


def test_a_free_port_lies_below_the_range_for_clients() -> None:
    low = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    assert all(1024 < free_port() < low for _ in range(20))


def test_a_free_port_is_given_once_though_nobody_listens_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = free_port(), free_port()
    offered, randrange = [second, first], random.randrange
    monkeypatch.setattr(
        "control.servers.process.random.randrange",
        lambda low, high: offered.pop() if offered else randrange(low, high),
    )
    assert free_port() not in {first, second}
    assert not offered
