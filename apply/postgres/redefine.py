"""Making other tables of a target's tables, between the rows before and after, as the source did."""

from __future__ import annotations

from apply.postgres import state
from apply.postgres.names import Names
from apply.postgres.prepare import empty_table
from apply.postgres.session import Session
from apply.postgres.shape import misfits, require
from apply.postgres.transactions import Transactions, refused_alone
from apply.postgres.writers import Writers
from apply.target import Redefinition, TableMove, TableRefused
from conversion.alter import additions, alter_table, emptied_partitions, new_labels, require_told
from engines.postgres.errors import translated
from engines.postgres.quoting import quote
from schemas.errors import SchemaUnsupported
from schemas.pipeline import Ddl
from schemas.table import Table
from transport.views import Registered

LOCK_SECONDS = 5
"""How long a change of a table's definition waits for those who use the table; then it is tried again."""

LABELS = """
select e.enumlabel
from pg_enum e
where e.enumtypid = to_regtype(%s)
order by e.enumsortorder
"""


class Redefinitions:
    """Carries out redefinitions in the transactions of one connection."""

    def __init__(
        self, session: Session, transactions: Transactions, writers: Writers, names: Names, pipeline: str
    ) -> None:
        self._session, self._transactions, self._writers, self._names = session, transactions, writers, names
        self._key = state.text(pipeline)

    def get_ready(self, version: Registered) -> None:
        """Make what a version of a table rests on, as far as it is not there."""
        objects = version.table.objects
        if objects is None:
            return
        connection = self._session.connection
        with translated("target", f"making what {version.table.name} rests on"):
            for statement in additions(version.table, version=self._session.major):
                connection.execute(statement)
            for type, labels in objects.labels:
                there = [row[0] for row in connection.execute(LABELS, [quote(*type)]).fetchall()]
                for statement in new_labels(type, labels, there):
                    connection.execute(statement)

    def carry_out(self, piece: Redefinition) -> None:
        """Make another table of one, in the transaction that is open."""
        before, after = piece.before.table, piece.after.table
        try:
            if after.dropped and piece.ddl is not Ddl.IGNORE:
                # They are about rows that are gone.
                state.queue_forgetting(self._session, self._key, after.id)
            if piece.ddl is Ddl.IGNORE:
                about = after.since.column if after.since else ""
                accepted = self._writers.accepted(piece.after).table
                if not about or about in {column.name for column in accepted.columns}:
                    require_told(after)  # a definition may be left alone, rows may not
                after = accepted
            elif piece.ddl is Ddl.APPLY:
                self._follow(before, after, made=piece.table.made)
            else:
                self._require_redefined(before, after, made=piece.table.made)
            if piece.told:
                for statement in emptied_partitions(after, made=piece.table.made):
                    self._session.run(statement, after.id)
        except SchemaUnsupported as error:
            raise TableRefused(after.id, error) from error

    def _follow(self, before: Table, after: Table, *, made: bool) -> None:
        """Make of a table what the source has made of it, and let names go to whom they belong."""
        if not after.dropped and after.name == before.name:
            self._redefine(self._writers.placed(before), self._writers.placed(after), made=made)
            return
        self._names.free({} if after.dropped else {after.name: after.id}, left={before.name: after.id})
        self._redefine(self._writers.placed(before), after, made=made)
        self._names.note(after.id, None if after.dropped else after.name)
        self._names.give_back(before.name, after.id)

    def _require_redefined(self, before: Table, after: Table, *, made: bool) -> None:
        """Raise `SchemaUnsupported` unless somebody has made of a table what it is from here on, as far as rows can
        tell."""
        if not alter_table(before, after, made=made, version=self._session.major):
            return
        self._writers.look_again({before.name, after.name})
        shape = self._writers.shape(after.name)
        if shape is None if after.dropped else shape is not None and not misfits(shape, after):
            return
        raise SchemaUnsupported(
            f"{before.name} was {'dropped' if after.dropped else 'altered'} at the source",
            remedy=f"do the same to the target's table, then `penstock resume FILE {after.id}`",
        )

    def _redefine(self, before: Table, after: Table, *, made: bool, empty: bool = False) -> None:
        """Make of a table what it is from here on, within the transaction."""
        statements = alter_table(before, after, made=made, empty=empty, version=self._session.major)
        session = self._session
        if statements:
            # Behind somebody who reads for long everybody else would wait who comes after us.
            session.run(f"set local lock_timeout = '{LOCK_SECONDS}s'", after.id)
        for statement in statements:
            session.run(statement, after.id)
        self._transactions.redefined |= {before.name, after.name}
        self._writers.look_again({before.name, after.name})

    def restart(self, piece: Redefinition, move: TableMove) -> None:
        """Empty a table and make of it the version that is loaded next, together with its move."""
        table, after = piece.before.table, piece.after.table
        doing = f"emptying {table.id}"
        with refused_alone(table.id, doing), self._transactions.begun(doing, durable=True) as session:
            # First the state: that waits for whoever loads a chunk, and keeps everybody else from beginning.
            state.queue_moves(session, self._key, [], [move])
            session.queue(state.FORGET_CHUNKS, [self._key, *map(state.text, table.id)])
            state.queue_forgetting(session, self._key, table.id)
            session.flush()
            self._writers.look_again({table.name})  # another one may have the name by now
            placed = self._writers.placed(table)
            empty_table(self._session, quote(*placed.name), require(self._writers.shape(placed.name), placed))
            if after.name != placed.name:
                self._names.begin([move])
                self._names.free({after.name: after.id}, left={table.name: after.id})
            self._redefine(self._writers.placed(table), after, made=move.after.made, empty=True)
            if after.name != table.name:
                self._names.note(after.id, after.name)
                self._names.give_back(table.name, after.id)
