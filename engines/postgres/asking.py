"""Putting a question to a server, and several to one moment of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
from psycopg.pq import TransactionStatus
from psycopg.rows import TupleRow, tuple_row


def ask(conn: psycopg.Connection, query: str, **arguments: Any) -> list[TupleRow]:
    """Return the rows of a query as tuples, whatever the connection's own row factory."""
    with conn.cursor(row_factory=tuple_row) as cursor:
        return cursor.execute(query, arguments or None).fetchall()


def run(conn: psycopg.Connection, statement: str, **arguments: Any) -> None:
    """Run a statement whose identifiers went through `quote()`."""
    conn.execute(statement, arguments or None)


@contextmanager
def one_moment(conn: psycopg.Connection) -> Iterator[None]:
    """Let all questions of the block see the same state, if no transaction is open already."""
    fresh = conn.info.transaction_status == TransactionStatus.IDLE
    with conn.transaction():
        if fresh:
            conn.execute("set transaction isolation level repeatable read, read only")
        yield
