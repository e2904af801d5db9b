"""Transactions of a target, and what becomes of the errors that they end with."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import psycopg

from apply.postgres.merge import Stages
from apply.postgres.session import Session, StatementFailed
from apply.postgres.writers import Writers
from apply.target import TableRefused
from engines.postgres.errors import translate, translated
from schemas.errors import ReplicationError, TransientError
from schemas.table import TableId


class Transactions:
    """The transactions of one connection, one after the other."""

    def __init__(self, session: Session, stages: Stages, writers: Writers) -> None:
        self._session, self._stages, self._writers = session, stages, writers
        self.redefined: set[TableId] = set()
        """Tables that the transaction which is open makes others: they are looked at again if it is rolled back."""

    @contextmanager
    def begun(self, doing: str, *, durable: bool) -> Iterator[Session]:
        """A transaction that is committed at the end of the block, and rolled back by any exception.

        Driver's errors come out as ours: with `TableRefused` around, if they are due to one table.
        """
        session = self._session
        try:
            session.queue("begin")
            if durable:
                session.queue("set local synchronous_commit = on")
            yield session
            session.flush()
            session.run("commit")
        except BaseException as error:
            self._ended(committed=False)
            if isinstance(error, StatementFailed):
                raise self._refusal(error, doing) from error.error
            if isinstance(error, psycopg.Error):
                raise translate(error, "target", doing) from error
            raise
        self._ended(committed=True)

    def _ended(self, *, committed: bool) -> None:
        self._stages.ended(committed=committed)
        redefined, self.redefined = self.redefined, set()
        if committed:
            self._stages.trim()
            return
        self._writers.look_again(redefined)
        # If the connection is lost there is nothing to roll back; whatever comes next will find that out.
        with suppress(psycopg.Error, StatementFailed):
            self._session.rollback()

    def attempt(self, table: TableId, write: Callable[[], None]) -> TableRefused | None:
        """Write something that stays, or leave nothing of it behind and return why the table can't take it."""
        session, stages = self._session, self._stages
        session.flush()
        made = stages.made
        try:
            session.queue("savepoint attempt")
            write()
            if not session.replica:  # nothing must be found only when all ends
                session.queue("set constraints all immediate", label=table)
            session.queue("release attempt")
            session.flush()
            return None
        except StatementFailed as failed:
            refused = self._refusal(failed, "")
            if not isinstance(refused, TableRefused):
                raise
            refused.__cause__ = failed.error
        except TableRefused as error:
            refused = error
            session.flush()
        session.run("rollback to attempt; release attempt")
        stages.rolled_back(made)
        return refused

    def _refusal(self, failed: StatementFailed, doing: str) -> Exception:
        table = failed.label if isinstance(failed.label, TableId) else self._blamed(failed.error)
        if table is None:
            return translate(failed.error, "target", doing)
        error = translate(failed.error, "target", f"writing {table}")
        return error if isinstance(error, TransientError) else TableRefused(table, error)

    def _blamed(self, error: psycopg.Error) -> TableId | None:
        """Return the table that an error names which no statement of its own has raised: a constraint that is looked at
        when the transaction ends."""
        return self._writers.named(error.diag.schema_name, error.diag.table_name)


@contextmanager
def refused_alone(table: TableId, doing: str) -> Iterator[None]:
    """Raise what goes wrong in the block, and will again, as `TableRefused`."""
    try:
        with translated("target", doing):
            yield
    except TransientError:
        raise
    except ReplicationError as error:
        raise TableRefused(table, error) from error
