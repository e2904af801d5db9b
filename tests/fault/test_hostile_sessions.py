"""Databases whose settings end sessions and statements, poolers in between, and somebody who kills what is idle."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator

import psycopg
import pytest
from psycopg import sql

from tests.fault.conftest import MakeWorld
from tests.fault.pooler import Pooler

HOSTILE = {
    "statement_timeout": "200ms",
    "lock_timeout": "20ms",
    "idle_in_transaction_session_timeout": "300ms",
    "idle_session_timeout": "300ms",
    "default_transaction_isolation": "serializable",
    "datestyle": "SQL, DMY",
    "intervalstyle": "sql_standard",
    "bytea_output": "escape",
    "extra_float_digits": "-3",
    "timezone": "Asia/Kathmandu",
    "search_path": "pg_temp",
}

UNHARMED = "-c idle_session_timeout=0 -c statement_timeout=0"
"""For whoever kills: the settings would end his own session when he comes late."""

KILL_IDLE = """
select count(pg_terminate_backend(pid)) from pg_stat_activity
 where datname = current_database() and pid <> pg_backend_pid() and application_name like 'penstock%'
   and state like 'idle%' and clock_timestamp() > state_change + interval '0.3 seconds'
"""


class IdleKiller(threading.Thread):
    """A guard as many databases have one: it ends what has been idle for a while, again and again."""

    def __init__(self, *urls: str) -> None:
        super().__init__(name="killer", daemon=True)
        self._urls = urls
        self._over = threading.Event()
        self.killed = 0
        self.start()

    def run(self) -> None:
        with contextlib.ExitStack() as stack:
            connections = [
                stack.enter_context(contextlib.closing(psycopg.connect(url, autocommit=True, options=UNHARMED)))
                for url in self._urls
            ]
            while not self._over.wait(0.1):
                for connection in connections:
                    row = connection.execute(KILL_IDLE.encode()).fetchone()
                    self.killed += row[0] if row is not None else 0

    def close(self) -> None:
        self._over.set()
        self.join()


@pytest.fixture
def poolers(source_db: str, target_db: str) -> Iterator[tuple[Pooler, Pooler]]:
    with contextlib.closing(Pooler(source_db)) as source, contextlib.closing(Pooler(target_db)) as target:
        yield source, target


def test_settings_that_end_sessions_and_poolers_in_between_change_nothing(
    make_world: MakeWorld, source_db: str, target_db: str, poolers: tuple[Pooler, Pooler]
) -> None:
    world = make_world(source_db, target_db, "", 1_000)
    for url in (source_db, target_db):
        with contextlib.closing(psycopg.connect(url, autocommit=True)) as connection:
            for name, value in HOSTILE.items():
                database = sql.Identifier(connection.info.dbname)
                connection.execute(
                    sql.SQL("alter database {} set {} = {}").format(database, sql.Identifier(name), sql.Literal(value))
                )
    world.begin_traffic(rate=100)
    source, target = poolers
    world.source, world.targets = source.url, {"copy": target.url}
    world.write()
    run = world.start()
    world.wait("live tables", world.all_live, run)
    world.more_commits(100)
    with contextlib.closing(IdleKiller(source_db, target_db)) as killer:
        world.wait("idle sessions to be killed", lambda: killer.killed > 3, run)
        world.more_commits(50)
    assert world.retries() < 60
    run.process.send_signal(signal.SIGTERM)
    assert run.process.wait(30) == 0, world.told()
    run = world.start()
    world.source, world.targets = source_db, {"copy": target_db}  # to be looked at; the file has the others
    world.finish(run)
    assert source.shared and target.shared
