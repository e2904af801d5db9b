"""Statements that take long and must hold nobody up: each on a connection of its own, looked at now and then."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import psycopg
from psycopg import pq
from psycopg.errors import error_from_result

from engines.postgres.connect import connect
from engines.postgres.errors import translated
from schemas.table import TableId

THERE_ALREADY = frozenset({"42P07", "42710"})
"""SQLSTATEs of what exists: made before a crash, or by the worker that had the table before."""

Name = tuple[str, TableId]
"""What is made, and for which table."""


@dataclass(slots=True)
class _Job:
    waiting: deque[str]
    ended: bool = False
    error: psycopg.Error | None = None


class Builder:
    """Runs lists of statements, several lists at once, the statements of one list in order."""

    def __init__(self, url: str, application: str, at_once: int) -> None:
        self._url, self._application, self._at_once = url, application, at_once
        self._jobs: dict[Name, _Job] = {}
        self._waiting: deque[Name] = deque()
        self._running: dict[Name, psycopg.Connection] = {}
        self._idle: list[psycopg.Connection] = []

    def go_on(self, name: Name, statements: Sequence[str]) -> bool:
        """Begin the list `name`, or say whether it has ended; True, once, when all of it is done.

        What a statement is to make may be there already. Any other error ends the list and is raised as the driver's.
        """
        job = self._jobs.get(name)
        if job is None:
            if not statements:
                return True
            self._jobs[name] = _Job(deque(statements))
            self._waiting.append(name)
            self._begin()
            return False
        if not job.ended:
            return False
        del self._jobs[name]
        if job.error is not None:
            raise job.error
        return True

    def give_up(self, table: TableId) -> None:
        """End what is being made for a table; nothing of the statement under way stays behind."""
        for name in [name for name in self._jobs if name[1] == table]:
            del self._jobs[name]
            if name in self._waiting:
                self._waiting.remove(name)
            if (connection := self._running.pop(name, None)) is not None:
                _cancel(connection)

    def poll(self) -> list[Name]:
        """Look how far everything is, begin what waits, and return the lists that have ended meanwhile."""
        ended = [name for name, connection in list(self._running.items()) if self._look(name, connection)]
        self._begin()
        return ended

    def _look(self, name: Name, connection: psycopg.Connection) -> bool:
        """Go on with one list; return whether it has ended, by an error too."""
        job, pgconn = self._jobs[name], connection.pgconn
        try:
            while True:
                pgconn.consume_input()
                if pgconn.is_busy():
                    return False
                result = pgconn.get_result()
                if result is not None:
                    if result.status not in {pq.ExecStatus.COMMAND_OK, pq.ExecStatus.TUPLES_OK}:
                        error = error_from_result(result, encoding="utf-8")
                        if error.sqlstate not in THERE_ALREADY:
                            raise error
                    continue
                if not job.waiting:
                    break
                _send(connection, job)
        except psycopg.Error as error:
            job.error = error
        job.ended = True
        del self._running[name]
        if job.error is None:
            self._idle.append(connection)
        else:
            connection.close()
        return True

    def _begin(self) -> None:
        while self._waiting and len(self._running) < self._at_once:
            connection = self._idle.pop() if self._idle else self._connect()
            name = self._waiting.popleft()
            self._running[name] = connection
            _send(connection, self._jobs[name])

    def _connect(self) -> psycopg.Connection:
        with translated("target", "connecting"):
            return connect(self._url, role="writer", application=self._application)

    def close(self) -> None:
        """End everything that runs; what is not finished leaves nothing behind."""
        for connection in self._running.values():
            _cancel(connection)
        for connection in self._idle:
            connection.close()
        for collected in (self._jobs, self._waiting, self._running, self._idle):
            collected.clear()


def _cancel(connection: psycopg.Connection) -> None:
    with contextlib.suppress(psycopg.Error):
        connection.cancel_safe(timeout=1.0)
    connection.close()


def _send(connection: psycopg.Connection, job: _Job) -> None:
    connection.pgconn.send_query(job.waiting.popleft().encode())
    connection.pgconn.flush()
