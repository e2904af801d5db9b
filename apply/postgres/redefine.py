"""Making other tables of a target's tables, between the rows before and after, as the source did."""

from __future__ import annotations

from apply.postgres import state
from apply.postgres.prepare import empty_table
from apply.postgres.session import Session
from apply.postgres.shape import misfits, require
from apply.postgres.transactions import Transactions, refused_alone
from apply.postgres.writers import Writers, third_name
from apply.target import Redefinition, TableMove, TableRefused
from conversion.alter import additions, alter_table, emptied_partitions, new_labels, require_told
from engines.postgres.errors import translated
from engines.postgres.quoting import quote
from schemas.errors import SchemaUnsupported
from schemas.pipeline import Ddl
from schemas.table import Table, TableId
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

    def __init__(self, session: Session, transactions: Transactions, writers: Writers, pipeline: str) -> None:
        self._session, self._transactions, self._writers = session, transactions, writers
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
                if after.name != before.name:
                    before = self._make_way(before, after.name, piece.displaces)
                else:
                    before, after = self._writers.placed(before), self._writers.placed(after)
                self._redefine(before, after, made=piece.table.made)
            else:
                self._require_redefined(before, after, made=piece.table.made)
            if piece.told:
                for statement in emptied_partitions(after, made=piece.table.made):
                    self._session.run(statement, after.id)
        except SchemaUnsupported as error:
            raise TableRefused(after.id, error) from error

    def _make_way(self, table: Table, name: TableId, displaces: TableId | None) -> Table:
        """Let a name be free for a table that gets it, and return the table by the name that it has now.

        Where tables have exchanged names, one of them has to wait under another one until its own turn comes. No row
        of it comes before that, as the stream would tell its new name first.
        """
        session, waits = self._session, third_name(table.id, table.name.schema)
        if displaces is not None:
            # Whoever follows it has to look again before he writes to it by the name that he knows; whoever loads it is
            # waited for.
            for statement in (state.TAKE_GROUP, state.TAKE_TABLE):
                session.queue(statement, [self._key, *map(state.text, displaces)])
        # Others may be about to do the same to the other one.
        session.query(f"select pg_advisory_xact_lock({state.LOCK})")
        self._transactions.redefined |= {table.name, name, waits}
        self._writers.look_again({name, waits})
        if displaces is not None and self._writers.shape(name) is not None:
            aside = third_name(displaces, name.schema)
            session.run(f"alter table {quote(*name)} rename to {quote(aside.name)}", table.id)
            self._transactions.redefined.add(aside)
            self._writers.look_again({name, aside})
        return self._writers.placed(table)

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
            table = self._writers.placed(table)
            empty_table(self._session, quote(*table.name), require(self._writers.shape(table.name), table))
            if after.name != table.name:
                table = self._make_way(table, after.name, piece.displaces)
            self._redefine(table, after, made=move.after.made, empty=True)
