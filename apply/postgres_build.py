"""Statements that take long and must hold nobody up: each on a connection of its own, looked at now and then."""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import psycopg
from psycopg import pq
from psycopg.errors import error_from_result

from engines.postgres.connect import connect
from engines.postgres.errors import translated

THERE_ALREADY = frozenset({"42P07", "42710"})
"""SQLSTATEs of what exists: made before a crash, or by the worker that had the table before."""


@dataclass(slots=True)
class _Job:
    waiting: deque[str]
    connection: psycopg.Connection | None = None


class Builder:
    """Runs lists of statements, several lists at once, the statements of one list in order."""

    def __init__(self, url: str, application: str, at_once: int) -> None:
        self._url, self._application, self._at_once = url, application, at_once
        self._jobs: dict[Hashable, _Job] = {}
        self._idle: list[psycopg.Connection] = []

    def go_on(self, name: Hashable, statements: Sequence[str]) -> bool:
        """Begin the list `name`, or look how far it is; True, once, when it is done.

        What a statement is to make may be there already. Any other error ends the list and is raised as the driver's.
        """
        job = self._jobs.get(name)
        if job is None:
            if not statements:
                return True
            job = self._jobs[name] = _Job(deque(statements))
        try:
            done = self._look(job)
        except BaseException:
            del self._jobs[name]
            if job.connection is not None:
                job.connection.close()
            raise
        if done:
            del self._jobs[name]
        return done

    def _look(self, job: _Job) -> bool:
        if job.connection is None:
            running = sum(other.connection is not None for other in self._jobs.values())
            if running >= self._at_once:
                return False
            job.connection = self._take()
            self._send(job)
        pgconn = job.connection.pgconn
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
                self._idle.append(job.connection)
                job.connection = None
                return True
            self._send(job)

    def _take(self) -> psycopg.Connection:
        if self._idle:
            return self._idle.pop()
        with translated("target", "connecting"):
            return connect(self._url, role="writer", application=self._application)

    def _send(self, job: _Job) -> None:
        assert job.connection is not None
        pgconn = job.connection.pgconn
        pgconn.send_query(job.waiting.popleft().encode())
        pgconn.flush()

    def close(self) -> None:
        """End everything that runs; what is not finished leaves nothing behind."""
        for job in self._jobs.values():
            if job.connection is not None:
                job.connection.cancel_safe(timeout=1.0)
                job.connection.close()
        for connection in self._idle:
            connection.close()
        self._jobs.clear()
        self._idle.clear()
