"""What has to be done beside reading PostgreSQL's stream: signs of life, heartbeats, a look at the publications."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence, Set
from typing import NamedTuple

import psycopg
from psycopg.rows import tuple_row

from capture.definitions import Definitions
from engines.postgres import replication
from engines.postgres.connect import connect
from schemas.errors import LOAD_AGAIN, PrerequisiteMissing, ReplicationError
from schemas.frontier import Setup
from schemas.table import Leaf, Table, TableId

LOOK_SECONDS = 0.5
CHECK_SECONDS = 30.0
END_SECONDS = 5.0
REMIND_SECONDS = 60.0
LOOKS = 3
"""How often tables and publications must seem to differ: what is altered between the two questions is in one alone."""

AWAITED_REMEDY = "start the standby, or take it out of synchronized_standby_slots: alter system set …; pg_reload_conf()"

_log = logging.getLogger(__name__)

PRESENT = """
select c.oid::int8, n.nspname, c.relname,
       case when c.relispartition then pg_partition_root(c.oid)::oid else c.oid end::int8,
       array(select a.attname from pg_attribute a
              where a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped)
  from pg_class c
  join pg_namespace n on n.oid = c.relnamespace
 where c.oid = any (%(oids)s::int8[]::oid[])
"""


class _Present(NamedTuple):
    """What a relation is now: its name, what it is a part of, at last, or itself, and its columns."""

    id: TableId
    root: int
    columns: set[str]


def publications_fit(connection: psycopg.Connection, setup: Setup, tables: Sequence[Table]) -> None:
    """Raise `PrerequisiteMissing` if changes of the tables, as far as they still exist, are not all published.

    The source itself would leave them out without a word.
    """
    problems: list[str] = []
    for _ in range(LOOKS):
        with connection.cursor(row_factory=tuple_row) as cursor:
            rows = cursor.execute(PRESENT, {"oids": [leaf.oid for table in tables for leaf in table.leaves]})
            present = {
                oid: _Present(TableId(schema, name), root, set(columns)) for oid, schema, name, root, columns in rows
            }
        existing = [_as_it_is(table, present) for table in tables]
        problems = replication.publication_problems(connection, setup.publications[0], existing)
        if not problems:
            return
    raise PrerequisiteMissing(
        "; ".join(problems),
        remedy="bring the publications back to what they were; if rows of the tables that are named were changed"
        f" meanwhile, {LOAD_AGAIN}",
    )


def _as_it_is(table: Table, present: Mapping[int, _Present]) -> Table:
    """Return a table with the leaves and columns that it still has: itself if that is all of them, as it mostly is."""
    there = [(leaf.oid, present[leaf.oid]) for leaf in table.leaves if leaf.oid in present]
    # What was detached is a table of its own, and what was attached a part of another one; the log may not know yet.
    leaves = [(found.id, oid) for oid, found in there if found.root == (table.oid or oid)]
    kept: set[str] = set().union(*(present[oid].columns for _, oid in leaves))
    columns = tuple(column for column in table.columns if column.name in kept)
    if columns == table.columns and leaves == [(leaf.id, leaf.oid) for leaf in table.leaves]:
        return table
    return table.model_copy(update={"leaves": tuple(Leaf(id=id, oid=oid) for id, oid in leaves), "columns": columns})


def publications_untouched(connection: psycopg.Connection, setup: Setup, before: Mapping[tuple[str, int], str]) -> None:
    """Raise `PrerequisiteMissing` if somebody altered a publication and put it back: for a while it was another."""
    now = replication.publication_prints(connection, setup.publications[0])
    touched = sorted({name for (name, table), mark in before.items() if now.get((name, table), mark) != mark})
    if touched:
        raise PrerequisiteMissing(
            f"publication {', '.join(touched)} was altered while changes were captured, and is as it has to be again",
            remedy=f"if no rows were changed meanwhile, start again; else they are missing in the stream: {LOAD_AGAIN}",
        )


class Caretaker(threading.Thread):
    """A thread with a connection of its own, so that nothing it waits for holds up the stream.

    `problem` is set to what makes going on wrong; `end` to how far the source's log reaches. An error of its
    connection is none: it tries again, and whether the source can be reached at all the stream itself tells.
    """

    def __init__(
        self,
        url: str,
        setup: Setup,
        heartbeat: float,
        sign_of_life: Callable[[], None],
        definitions: Definitions,
        published: Callable[[], Sequence[Table]],
        prints: Mapping[tuple[str, int], str],
    ) -> None:
        super().__init__(name="caretaker", daemon=True)
        self._url, self._setup, self._heartbeat = url, setup, heartbeat
        self._sign_of_life, self._definitions = sign_of_life, definitions
        self._published, self._prints = published, prints
        self._over = threading.Event()
        self._connection: psycopg.Connection | None = None
        self._next_check = self._next_end = self._next_beat = time.monotonic()
        self._next_check += CHECK_SECONDS  # the first one was made at the start
        self._awaited: list[str] = []
        self._remind_at = 0.0
        self.problem: ReplicationError | None = None
        self.end = 0

    def run(self) -> None:
        while not self._over.wait(LOOK_SECONDS):
            with contextlib.suppress(ReplicationError, psycopg.Error):  # the first thread meets it by itself
                self._sign_of_life()
            try:
                self._work(time.monotonic())
            except PrerequisiteMissing as error:
                self.problem = error
            except (ReplicationError, psycopg.Error):
                self._disconnect()
        self._disconnect()

    def stop(self) -> None:
        """End the thread, and wait a moment for it."""
        self._over.set()
        if self.is_alive():
            self.join(LOOK_SECONDS)

    def check(self, connection: psycopg.Connection) -> None:
        """Raise `PrerequisiteMissing` if the publications are not what they have to be, or were not for a while."""
        publications_fit(connection, self._setup, self._published())
        publications_untouched(connection, self._setup, self._prints)

    def forget(self, oids: Set[int]) -> None:
        """Do not mind what becomes of these tables in the publications."""
        self._prints = {(name, oid): mark for (name, oid), mark in self._prints.items() if oid not in oids}

    def _work(self, now: float) -> None:
        if now >= self._next_end:
            self._next_end = now + END_SECONDS
            self.end = replication.wal_insert_lsn(self._connected())
            self._look_for_standbys(now)
        if self._heartbeat and now >= self._next_beat:
            self._next_beat = now + self._heartbeat
            replication.emit_message(self._connected(), "penstock", "heartbeat")
        if now >= self._next_check:
            self._next_check = now + CHECK_SECONDS
            self.check(self._connected())
        if self._definitions.due:
            self._definitions.look(self._connected())

    def _look_for_standbys(self, now: float) -> None:
        """Warn if changes do not come because the source awaits standbys; one that is just restarting is no news."""
        missing = replication.standbys_awaited(self._connected(), self._setup.slot)
        if missing and missing == self._awaited and now >= self._remind_at:
            self._remind_at = now + REMIND_SECONDS
            _log.warning(
                "the source holds all changes back until standby %s streams, as synchronized_standby_slots says → %s",
                ", ".join(missing),
                AWAITED_REMEDY,
            )
        self._awaited = missing

    def _connected(self) -> psycopg.Connection:
        if self._connection is None:
            self._connection = connect(self._url, role="control", application=f"penstock {self._setup.slot} caretaker")
            # Waiting here would end the signs of life.
            for setting in ("lock_timeout", "statement_timeout"):
                self._connection.execute("select set_config(%s, '2s', false)", [setting])
        return self._connection

    def _disconnect(self) -> None:
        if self._connection is not None:
            with contextlib.suppress(psycopg.Error):
                self._connection.close()
            self._connection = None
