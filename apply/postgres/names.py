"""Who of a pipeline's tables has which name on the target. The source's tables get each other's names, and on a target
they do not stand at one moment: of two that have a name there one waits under a third, until its own turn comes or the
name is free."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence

from apply.postgres import state
from apply.postgres.session import Session
from apply.postgres.transactions import Transactions
from apply.postgres.writers import Writers, third_name
from apply.target import TableMove
from engines.postgres.quoting import quote
from schemas.errors import WriteConflict
from schemas.table import TableId

Called = Callable[[TableId, int], TableId]


class Names:
    """Gives names, in the transactions of one connection.

    What it goes by is read in the transaction: what a worker knows of others' tables may be late, and to take one for
    another would let rows come into the wrong one.
    """

    def __init__(self, session: Session, transactions: Transactions, writers: Writers, pipeline: str) -> None:
        self._session, self._transactions, self._writers = session, transactions, writers
        self._pipeline, self._key = pipeline, state.text(pipeline)
        self.called: Called = lambda table, _: table
        """What a table is called here whose version has this row schema."""
        self._moves: Sequence[TableMove] = ()
        self._now: dict[TableId, TableId | None] = {}

    def begin(self, moves: Sequence[TableMove]) -> None:
        """Begin a transaction that stores these moves first, and carries them out table by table."""
        self._moves, self._now = moves, {}

    def note(self, table: TableId, name: TableId | None) -> None:
        """Note what a table is called from here on in this transaction; None: it is gone."""
        self._now[table] = name

    def free(self, wanted: Mapping[TableId, TableId], left: Mapping[TableId, TableId] | None = None) -> None:
        """Let names be free, and nobody else give or take any until the transaction ends. Tables that have names which
        others want get a third one; names that others leave can be given back behind this.

        Raises `WriteConflict` if somebody does the same at this moment.
        """
        session, left = self._session, left or {}
        concerned = self._holders(wanted) | self._waiting(left)
        # Whoever follows them has to look again before he writes to them by the names that he knows; whoever loads them
        # is waited for. First that, then the lock: so do all.
        for table in sorted(concerned):
            for statement in (state.TAKE_GROUP, state.TAKE_TABLE):
                session.queue(statement, [self._key, *map(state.text, table)])
        session.query(f"select pg_advisory_xact_lock({state.LOCK})")
        holders = self._holders(wanted)
        if concerned != holders | self._waiting(left):
            raise WriteConflict("others give tables other names at this moment")
        for table, name in holders.items():
            self._rename(name, third_name(table, name.schema), wanted[name])

    def give_back(self, name: TableId, left_by: TableId) -> None:
        """Give a name that a table has left to one that waits for it, if it is free."""
        waiting = self._waiting({name: left_by})
        if waiting and self._writers.shape(name) is None:
            self._rename(third_name(min(waiting), name.schema), name, left_by)

    def _holders(self, names: Collection[TableId]) -> dict[TableId, TableId]:
        """Return the tables that have these names, and not only by their versions."""
        self._look_again(names)
        called = self._called(self._writers.shapes(names).keys())
        return {table: name for table, name in called.items() if not self._writers.waits(table, name.schema)}

    def _waiting(self, left: Mapping[TableId, TableId]) -> dict[TableId, TableId]:
        """Return the tables that wait for names, but for those that leave them."""
        self._look_again(left)
        called = {table: name for table, name in self._called(left).items() if table != left[name]}
        return {table: name for table, name in called.items() if self._writers.waits(table, name.schema)}

    def _called(self, names: Collection[TableId]) -> dict[TableId, TableId]:
        """Return the tables that have one of these names by their versions, each with its name."""
        if not names:
            return {}
        self._session.flush()
        versions = state.versions(self._session.connection, self._pipeline)
        for before in (move.after for move in self._moves):
            if before.is_there:
                versions[before.table] = before.schema_id
            else:
                versions.pop(before.table, None)
        called = {table: self._now.get(table, self.called(table, schema_id)) for table, schema_id in versions.items()}
        return {table: name for table, name in called.items() if name is not None and name in names}

    def _rename(self, name: TableId, to: TableId, because_of: TableId) -> None:
        self._session.run(f"alter table {quote(*name)} rename to {quote(to.name)}", because_of)
        self._look_again([name, to])

    def _look_again(self, names: Collection[TableId]) -> None:
        self._transactions.redefined.update(names)
        self._writers.look_again(names)
