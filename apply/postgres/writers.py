"""What a target's tables are like, and how rows are written to them: known until they may be others."""

from __future__ import annotations

import zlib
from collections.abc import Collection

from apply.narrowing import Narrowed
from apply.postgres.merge import Stages, Writer
from apply.postgres.session import Session
from apply.postgres.shape import Shape, misfits, require, shapes_of
from apply.target import TableRefused
from engines.postgres.errors import translated
from schemas.errors import SchemaUnsupported
from schemas.table import Table, TableId
from transport.views import Registered

ASIDE_PREFIX = "penstock aside "

ASIDE = """
select n.nspname, c.relname from pg_class c join pg_namespace n on n.oid = c.relnamespace where c.relname like %s
"""


class Writers:
    """The writers of all versions of tables that rows come of, for one connection."""

    def __init__(self, session: Session, stages: Stages) -> None:
        self._session, self._stages = session, stages
        self._writers: dict[int, Writer] = {}  # by version
        self._shapes: dict[TableId, Shape] = {}  # by the target's names, as are those below
        self._accepted: dict[int, Registered] = {}  # by version, of tables that do not follow their definitions
        self._waiting_names: frozenset[TableId] | None = None  # of tables whose names others have got
        self._unseen: set[TableId] = set()  # tables that may have changed since they were looked at

    def shape(self, table: TableId) -> Shape | None:
        """Return what a table is like, or None if there is none. Whenever one must be looked at, all are that will
        have to be: the first changes of many tables come together."""
        return self.shapes([table]).get(table)

    def shapes(self, tables: Collection[TableId]) -> dict[TableId, Shape]:
        """Return what tables are like; those that there are not are left out."""
        if unknown := [table for table in tables if table not in self._shapes]:
            self._session.flush()
            with translated("target", f"looking at {unknown[0]}"):
                self._shapes |= shapes_of(self._session.connection, self._unseen.union(unknown))
            self._unseen.clear()
        return {table: self._shapes[table] for table in tables if table in self._shapes}

    def writer(self, version: Registered) -> Writer:
        """Return how to write to a table as it was when it was looked at."""
        writer = self._writers.get(version.schema_id)
        if writer is None:
            if version.table.name not in self._shapes:
                self._waiting_names = None  # what a table is like, and where it is, must be known of one moment
            placed = self._as_placed(version)
            shape = self.shape(placed.table.name)
            if shape is None or misfits(shape, placed.table):
                # It may be another worker that has made of the table what it is now.
                self.look_again({placed.table.name, version.table.name})
                placed = self._as_placed(version)
            try:
                shape = require(self.shape(placed.table.name), placed.table)
            except SchemaUnsupported as error:
                raise TableRefused(version.table.id, error) from error
            writer = Writer(self._session, self._stages, placed, shape)
            writer.require_harmless()
            self._writers[version.schema_id] = writer
        return writer

    def _as_placed(self, version: Registered) -> Registered:
        """Return a version with the name that its table has here now."""
        placed = self.placed(version.table)
        return version if placed is version.table else _Placed(version, placed)

    def placed(self, table: Table) -> Table:
        """Return a table by the name that it has here now: if another one has got its own, it waits under a third."""
        if not self.waits(table.id, table.name.schema):
            return table
        return table.model_copy(update={"renamed": third_name(table.id, table.name.schema)})

    def waits(self, table: TableId, schema: str) -> bool:
        """Return whether a table waits for its name in a schema under a third one."""
        if self._waiting_names is None:
            with translated("target", "looking for tables whose names others have"):
                self._session.flush()
                rows = self._session.connection.execute(ASIDE, [f"{ASIDE_PREFIX}%"]).fetchall()
            self._waiting_names = frozenset(TableId(schema, name) for schema, name in rows)
        return third_name(table, schema) in self._waiting_names

    def look_again_at_all(self, tables: Collection[TableId]) -> None:
        """Forget what these tables are like, and all others that are known."""
        self.look_again({*tables, *self._shapes})

    def look_again(self, tables: Collection[TableId]) -> None:
        """Forget what tables are like, because they are others now, or may be."""
        self._unseen.update(tables)
        self._accepted.clear()
        self._waiting_names = None
        for table in tables:
            self._shapes.pop(table, None)
        for schema_id in [n for n, writer in self._writers.items() if writer.version.table.name in tables]:
            del self._writers[schema_id]

    def accepted(self, version: Registered) -> Registered:
        """Return of a version what its table has room for as it is: it does not follow changes of its definition."""
        if version.schema_id not in self._accepted:
            table = version.table
            name = table.id if self.shape(table.name) is None else table.name
            shape = self.shape(name)
            there = {name for name, column in shape.columns.items() if not column.generated} if shape else set()
            accepted = version
            if shape is not None and (name != table.name or not {column.name for column in table.columns} <= there):
                try:
                    accepted = Narrowed(version, name, there)
                except ValueError as error:
                    cause = SchemaUnsupported(
                        f"the target's table {name} lacks a column of the key by which the source tells rows",
                        remedy="alter the table, or let it follow: ddl: apply",
                    )
                    raise TableRefused(table.id, cause) from error
            self._accepted[version.schema_id] = accepted
        return self._accepted[version.schema_id]

    def named(self, schema: str | None, name: str | None) -> TableId | None:
        """Return which table that is written to is called so on the target."""
        tables = (writer.version.table for writer in self._writers.values())
        return next((table.id for table in tables if tuple(table.name) == (schema, name)), None)


class _Placed(Registered):
    """A version of a table that has another name here for now."""

    def __init__(self, whole: Registered, table: Table) -> None:
        self.schema_id, self.changes, self.id, self.layout = whole.schema_id, whole.changes, whole.id, whole.layout
        self.table = table


def third_name(table: TableId, schema: str) -> TableId:
    """Return what a table is called while another one has got its name."""
    return TableId(schema, f"{ASIDE_PREFIX}{zlib.crc32(str(table).encode()):08x}")
