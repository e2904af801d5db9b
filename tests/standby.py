"""A standby of a PostgreSQL server, to fail over to."""

from __future__ import annotations

import contextlib
import subprocess
import time
from collections.abc import Callable, Mapping

import psycopg

from control.servers.postgres import PostgresServer

SLOT = "standby"
SYNCED: Mapping[str, str | int] = {"sync_replication_slots": "on", "hot_standby_feedback": "on"}
"""With it a standby of 17 or newer keeps slots for fail-over."""

_THERE = "select exists (select from pg_replication_slots where slot_name = '{}' and synced and not temporary)"


class Standby(PostgresServer):
    """Streams from `primary` through a slot of its own, `standby`; read-only until it is promoted."""

    def __init__(self, primary: PostgresServer, *, conf: Mapping[str, str | int] | None = None) -> None:
        super().__init__(primary.major, conf=conf)
        self._primary = primary

    def prepare(self) -> None:
        # Through `-R` it knows where to stream from, and in which database slots are to be looked up.
        command = [self.tool("pg_basebackup"), "-D", str(self.data), "-R", "-X", "stream", "-c", "fast", "-C"]
        command += ["-S", SLOT, "-d", self._primary.url()]
        subprocess.run(command, check=True, user=self.user, extra_groups=None if self.user is None else [])
        with (self.data / "postgresql.conf").open("a") as file:
            for key, value in self._settings.items():
                file.write(f"{key} = '{value}'\n")

    def ask(self, query: str) -> str:
        """Return the one value that a query has."""
        with contextlib.closing(psycopg.connect(self.url(), autocommit=True)) as connection:
            row = connection.execute(query.encode()).fetchone()
        assert row is not None
        return str(row[0])

    def sync(self, slot: str, go_on: Callable[[], None]) -> None:
        """Wait until a slot is kept here; `go_on` lets its reader confirm something. That is needed: a slot is not
        kept here before the primary's has left behind what was there when this standby first saw it."""
        deadline = time.monotonic() + 30
        while self.ask(_THERE.format(slot)) != "True":
            assert time.monotonic() < deadline, self.output()[-3000:]
            self.ask("select pg_reload_conf()")  # wakes the server's worker: without news it sleeps up to half a minute
            go_on()

    def catch_up(self) -> None:
        """Wait until everything that is committed on the primary is here."""
        with contextlib.closing(psycopg.connect(self._primary.url(), autocommit=True)) as connection:
            row = connection.execute("select pg_current_wal_insert_lsn()::text").fetchone()
        assert row is not None
        deadline = time.monotonic() + 30
        while self.ask(f"select pg_last_wal_replay_lsn() >= '{row[0]}'") != "True":
            assert time.monotonic() < deadline, self.output()[-3000:]

    def promote(self) -> None:
        """Make it a primary, and return when it is one."""
        assert self.ask("select pg_promote()") == "True", self.output()[-3000:]
