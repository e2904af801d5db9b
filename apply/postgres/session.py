"""One connection to a PostgreSQL target, used as sparingly as it can be: few round trips, big buffers, no row objects.

`COPY` goes through `psycopg.pq`, which costs a twentieth of the client's time of the driver's own `Copy`. Small
statements go in a pipeline: any number of them in one round trip. libpq can't do both at once.
"""

from __future__ import annotations

import select
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import psycopg
from psycopg import pq
from psycopg.errors import error_from_result

from codec.copy import HEADER, TRAILER
from engines.postgres.connect import connect
from schemas.errors import ReplicationError

BUFFER = 256 << 10
"""Bytes handed to libpq at once: it copies them, so larger ones cost memory, and smaller ones calls."""

KEPT_STATEMENTS = 400
"""Prepared statements that stay: each takes tens of kilobytes of the server's memory."""

QUEUED = 300
"""Statements in one pipeline: while they are sent nobody reads the results, which must fit in the sockets' buffers."""

_FINE = {pq.ExecStatus.COMMAND_OK, pq.ExecStatus.TUPLES_OK}

Checked = Callable[[pq.abc.PGresult], None]


@dataclass(slots=True)
class _Sent:
    sql: str
    check: Checked | None
    label: object
    prepares: bool = False
    step: Callable[[], None] | None = None  # waits for no result of its own


class StatementFailed(Exception):
    """A statement was refused; `label` is what the caller said it was for, and the driver's error is the cause."""

    def __init__(self, label: object, error: psycopg.Error) -> None:
        super().__init__(str(error))
        self.label, self.error = label, error


class Session:
    """A connection whose transactions are begun and ended by hand."""

    def __init__(self, url: str, application: str) -> None:
        self.connection = connect(url, role="writer", application=application)
        # The driver's own prepared statements end, at a rollback or a drop, with "deallocate all": ours among them.
        self.connection.prepare_threshold = None
        self._pg = self.connection.pgconn
        # The driver reads and writes without blocking; here a full socket must hold us back, not fill our memory.
        self._pg.nonblocking = 0
        self.version = self.connection.info.server_version
        self.major = self.version // 10_000
        self._arrival = select.poll()
        self._arrival.register(self._pg.socket, select.POLLIN)
        self._queue: list[_Sent] = []
        self._names: OrderedDict[str, bytes] = OrderedDict()
        self._named = 0
        self.replica = self._become_replica()

    def _become_replica(self) -> bool:
        """Switch triggers and foreign keys off for this session, if we may."""
        try:
            self.connection.execute("set session_replication_role = replica")
        except psycopg.errors.InsufficientPrivilege:
            # Before PostgreSQL 15 only a superuser may; but he may have set it for our role.
            row = self.connection.execute("select current_setting('session_replication_role')").fetchone()
            return row == ("replica",)
        return True

    def close(self) -> None:
        self.connection.close()

    # ------------------------------------------------------------------------------------------- one at a time

    def run(self, sql: str, label: object = None) -> int:
        """Run one statement behind all that is queued, and return how many rows it touched."""
        return _touched(self.query(sql, label))

    def query(self, sql: str, label: object = None) -> pq.abc.PGresult:
        self.flush()
        result = self._pg.exec_(sql.encode())
        if result.status not in _FINE:
            raise StatementFailed(label, self._error(result))
        return result

    def copy(self, sql: str, parts: Iterable[bytes], *, binary: bool, label: object = None) -> int:
        """Run a `copy … from stdin` with the given rows, and return how many there were.

        An exception out of `parts` ends the statement, and so the transaction, before it is raised on.
        """
        self.flush()
        result = self._pg.exec_(f"{sql} (format binary)".encode() if binary else sql.encode())
        if result.status != pq.ExecStatus.COPY_IN:
            raise StatementFailed(label, self._error(result))
        try:
            if binary:
                self._pg.put_copy_data(HEADER)
            for part in parts:
                if len(part) <= BUFFER:
                    self._pg.put_copy_data(part)
                    continue
                for at in range(0, len(part), BUFFER):
                    self._pg.put_copy_data(part[at : at + BUFFER])
            if binary:
                self._pg.put_copy_data(TRAILER)
        except psycopg.Error:
            raise
        except BaseException:
            self._pg.put_copy_end(b"the client gave up")
            self._results()
            raise
        self._pg.put_copy_end()
        result = self._results()
        if result.status not in _FINE:
            raise StatementFailed(label, self._error(result))
        return _touched(result)

    def _error(self, result: pq.abc.PGresult) -> psycopg.Error:
        """Return the driver's error of a result; raise it if the connection is gone, which no statement is to blame
        for. Such a result has no SQLSTATE, and the driver then knows no better class than the widest."""
        error = error_from_result(result, encoding="utf-8")
        if self._pg.status == pq.ConnStatus.BAD or error.sqlstate is None:
            raise psycopg.OperationalError(str(error)) from error
        return error

    def _results(self) -> pq.abc.PGresult:
        """Return the first result and drop the rest, which is the end."""
        first = self._result()
        if first is None:
            raise psycopg.OperationalError("the server sent no result")
        while self._result() is not None:
            pass
        return first

    def _result(self) -> pq.abc.PGresult | None:
        """Return the next result. The driver would wait for it with the interpreter locked: a signal to stop, and
        whoever asks for our health, would have to wait as long as somebody's lock is held at the target."""
        pg = self._pg
        while pg.is_busy():
            self._arrival.poll()
            pg.consume_input()
        return pg.get_result()

    # ------------------------------------------------------------------------------------------------ pipeline

    @property
    def queued(self) -> int:
        return len(self._queue)

    def queue(
        self, sql: str, values: Sequence[bytes | None] = (), check: Checked | None = None, label: object = None
    ) -> None:
        """Send a statement without waiting; `check` looks at its result when that is there.

        Statements are prepared at their first use. Nothing reaches the server for certain before `flush`, and no more
        than a few hundred should be queued: while we send, nobody reads the results.
        """
        if not self._queue:
            self._pg.enter_pipeline_mode()
        name = self._names.get(sql)
        if name is None:
            if len(self._names) >= KEPT_STATEMENTS:
                _, old = self._names.popitem(last=False)
                statement = b"deallocate " + old
                self._pg.send_query_params(statement, [])
                self._queue.append(_Sent("", None, None))
            self._named += 1
            name = self._names[sql] = b"s%d" % self._named
            self._pg.send_prepare(name, sql.encode())
            self._queue.append(_Sent(sql, None, label, prepares=True))
        else:
            self._names.move_to_end(sql)
        self._pg.send_query_prepared(name, values)
        self._queue.append(_Sent(sql, check, label))

    def flush(self) -> None:
        """Wait for the results of all that is queued, and check them in order.

        Raises `StatementFailed` for the first statement that was refused; those behind it were not carried out.
        """
        if not self._queue:
            return
        queue, self._queue = self._queue, []
        self._pg.pipeline_sync()
        failed: tuple[_Sent, psycopg.Error] | None = None
        results: list[tuple[_Sent, pq.abc.PGresult | None]] = []
        for sent in queue:
            if sent.step is not None:
                if failed is None:
                    results.append((sent, None))
                continue
            result = self._results()
            if result.status in _FINE:
                results.append((sent, result))
                continue
            if sent.prepares:
                self._names.pop(sent.sql, None)
            if failed is None:
                failed = sent, self._error(result)
        ended = self._result()
        if ended is None or ended.status != pq.ExecStatus.PIPELINE_SYNC:
            raise psycopg.OperationalError("the connection was lost in a pipeline")
        self._pg.exit_pipeline_mode()
        for sent, found in results:
            if sent.step is not None:
                sent.step()
            elif sent.check is not None and found is not None:
                sent.check(found)
        if failed is not None:
            raise StatementFailed(failed[0].label, failed[1])

    def then(self, step: Callable[[], None]) -> None:
        """Do something when the results of all that is queued so far have been checked."""
        if self._queue:
            self._queue.append(_Sent("", None, None, step=step))
        else:
            step()

    # ------------------------------------------------------------------------------------------------ endings

    def rollback(self) -> None:
        """End the transaction without effect; raises the driver's error if the connection is lost.

        What is still queued is refused by its check or not: nothing of it stays either way.
        """
        try:
            self.flush()
        except (StatementFailed, ReplicationError):
            pass
        except psycopg.Error:
            # Whatever was sent is lost with the connection.
            self._queue.clear()
            raise
        if self._pg.transaction_status != pq.TransactionStatus.IDLE:
            self.query("rollback")


def _touched(result: pq.abc.PGresult) -> int:
    return result.command_tuples or 0
