"""Making the tables of a target, or seeing that those which are there fit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from apply.postgres import state
from apply.postgres.names import Names
from apply.postgres.session import Session
from apply.postgres.shape import Shape, require
from apply.postgres.transactions import Transactions, refused_alone
from apply.postgres.writers import Writers
from apply.target import TableMove, TableProgress
from conversion.ddl import create_table
from conversion.loss import losses
from engines.postgres.quoting import quote
from schemas.errors import PrerequisiteMissing, SchemaUnsupported
from schemas.pipeline import Prepare
from schemas.table import Objects, Table, TableId
from transport.views import Registered

# Keys that refer to a table hold it; those of tables of this pipeline are made again when all is live.
DROP_KEYS = """
select n.nspname, c.relname, f.conname,
       exists (select from penstock.tables t
               where t.pipeline = %s and t.table_schema = n.nspname and t.table_name = c.relname)
from pg_constraint f
join pg_class c on c.oid = f.conrelid
join pg_namespace n on n.oid = c.relnamespace
where f.confrelid = %s and f.contype = 'f' and f.conparentid = 0
"""


class Preparation:
    """Prepares tables as the settings of the target say."""

    def __init__(
        self,
        session: Session,
        transactions: Transactions,
        writers: Writers,
        names: Names,
        prepare: Prepare,
        pipeline: str,
    ) -> None:
        self._session, self._transactions, self._writers, self._names = session, transactions, writers, names
        self._prepare, self._pipeline, self._key = prepare, pipeline, state.text(pipeline)

    def prepare(self, tables: Sequence[tuple[Registered, TableMove]], objects: Objects) -> list[TableProgress]:
        """Make tables, or make sure that they fit, together with their moves; see `apply.target.Target.prepare`."""
        made: set[TableId] = set()
        done: list[TableProgress] = []
        with self._transactions.begun(f"preparing {len(tables)} tables", durable=False) as session:
            names = [version.table.name for version, _ in tables]
            self._names.begin([move for _, move in tables])
            # A table that is late may still have the name that another one has got.
            self._names.free({version.table.name: version.id for version, _ in tables})
            shapes = self._writers.shapes(names)
            for version, move in tables:
                with refused_alone(version.id, f"preparing {version.id}"):
                    is_made = self._make(version.table, shapes.get(version.table.name), objects)
                if is_made:
                    made.add(version.table.name)
                done.append(replace(move.progress, made=is_made, tied=not is_made))
            moves = zip((move for _, move in tables), done, strict=True)
            state.queue_moves(session, self._key, [], [TableMove(move.after, progress) for move, progress in moves])
        self._writers.look_again(made)
        return done

    def _make(self, table: Table, shape: Shape | None, objects: Objects) -> bool:
        """Make the table, or see that the one that is there fits; return whether it was made."""
        connection, prepare = self._session.connection, self._prepare
        name = quote(*table.name)
        if shape is not None and prepare is Prepare.DROP_AND_CREATE:
            self._drop(table.name, shape)
            shape = None
        if shape is None and prepare is not Prepare.KEEP:
            if refused := [loss for loss in losses(table, self._session.major) if loss.refused]:
                raise SchemaUnsupported(
                    f"{table.id} can't be made on PostgreSQL {self._session.major}: "
                    + "; ".join(f"{loss.what}: {loss.consequence}" for loss in refused),
                    remedy="leave the table out, or use a newer target",
                )
            for statement in create_table(table, objects, version=self._session.major):
                connection.execute(statement)
            return True
        if shape is not None and prepare is Prepare.CREATE:
            raise PrerequisiteMissing(
                f"the target has a table {table.name} already",
                remedy="drop it, or set prepare: keep, truncate or drop-and-create for the target",
            )
        shape = require(shape, table)
        if prepare is Prepare.TRUNCATE:
            empty_table(self._session, name, shape)
        return False

    def _drop(self, table: TableId, shape: Shape) -> None:
        connection = self._session.connection
        for schema, name, key, ours in connection.execute(DROP_KEYS, [self._pipeline, shape.oid]).fetchall():
            if not ours:
                raise PrerequisiteMissing(
                    f"{schema}.{name} refers to {table}, which is to be dropped",
                    remedy=f"drop the foreign key {key} of {schema}.{name}, or set prepare: truncate",
                )
            connection.execute(f"alter table {quote(schema, name)} drop constraint {quote(key)}")
        kind = {"v": "view", "m": "materialized view", "f": "foreign table"}.get(shape.relkind, "table")
        connection.execute(f"drop {kind} {quote(*table)}")


def empty_table(session: Session, name: str, shape: Shape) -> None:
    """Empty a table. One that others refer to can't be truncated without them; where we may, its rows go alone."""
    connection = session.connection
    if shape.referenced and session.replica:
        connection.execute(f"delete from {shape.only}{name}")
    else:
        connection.execute(f"truncate {shape.only}{name}")
