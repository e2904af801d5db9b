"""Dead letters on a target: rows are sifted, stored with what was written, and taken out again to be replayed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain

from apply.dead_letters import Bundle, Keyed, Letter, Refusal, Tray, net_of
from apply.postgres import state
from apply.postgres.merge import COLLISIONS, DIRECT, Work, Writer
from apply.postgres.session import Session
from apply.postgres.transactions import Transactions
from apply.postgres.writers import Writers
from apply.target import Change, TableRefused, Taken
from schemas.errors import ReplicationError, RowError
from schemas.table import TableId


class Letters:
    """The dead letters of a pipeline, in the transactions of one connection."""

    def __init__(self, session: Session, transactions: Transactions, writers: Writers, pipeline: str) -> None:
        self._session, self._transactions, self._writers = session, transactions, writers
        self._pipeline, self._key = pipeline, state.text(pipeline)

    def sift(
        self, writer: Writer, changes: Sequence[Keyed], tray: Tray, exact: bool, *, refused_together: bool
    ) -> None:
        """Write changes of one table but for those that the target refuses, which its tray gets."""
        version = writer.version

        def attempt(some: Sequence[Bundle]) -> Refusal | None:
            def write() -> None:
                binary = writer.binary and len(some) > DIRECT
                net = net_of(version.layout, chain.from_iterable(some), binary=binary)
                Work(writer, Change(version, net, exact)).run()

            refused = self._transactions.attempt(writer.id, write)
            if refused is None:
                return None
            if not isinstance(refused.cause, RowError):
                raise refused
            return Refusal(refused.cause, isinstance(refused.__cause__, COLLISIONS))

        tray.sift(version.layout, changes, attempt, refused_together=refused_together)

    def store(self, writer: Writer, tray: Tray) -> None:
        """Store what a tray holds, in the transaction that is open."""
        clear, letters = tray.take()
        if clear:
            state.queue_forgetting(self._session, self._key, writer.id)
        state.queue_letters(self._session, self._key, writer.version.layout, letters)

    @contextmanager
    def taken(self, table: TableId) -> Iterator[Taken]:
        with self._transactions.begun(f"taking the dead letters of {table}", durable=True) as session:
            # In the order in which a worker takes them.
            for statement in (state.TAKE_GROUP, state.TAKE_TABLE):
                session.queue(statement, [self._key, *map(state.text, table)])
            session.flush()
            letters = state.letters(session.connection, self._pipeline, table)
            yield TakenLetters(letters, session, self._key, self._attempt)

    def _attempt(self, changes: Sequence[Change]) -> TableRefused | None:
        def write() -> None:
            for change in changes:
                Work(self._writers.writer(change.version), change).run()
                self._session.flush()

        return self._transactions.attempt(changes[0].version.table.id, write)


@dataclass(frozen=True, slots=True)
class TakenLetters:
    """The letters of one table in the midst of a transaction; see `apply.target.Taken`."""

    letters: list[Letter]
    _session: Session
    _pipeline: bytes
    _attempt: Callable[[Sequence[Change]], TableRefused | None]

    def attempt(self, changes: Sequence[Change]) -> ReplicationError | None:
        refused = self._attempt(changes)
        return refused.cause if refused is not None else None

    def remove(self, letters: Sequence[Letter]) -> None:
        numbers = ",".join(str(letter.number) for letter in letters)
        self._session.queue(state.REMOVE_LETTERS, [self._pipeline, b"{%s}" % numbers.encode()])

    def change(self, letter: Letter) -> None:
        values = [state.text(letter.number), state.data(letter.change)]
        values += [state.text(letter.cause), state.text(letter.remedy)]
        self._session.queue(state.CHANGE_LETTER, [self._pipeline, *values])
