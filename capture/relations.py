"""Which table a relation of PostgreSQL's stream belongs to, and which version of it its rows are.

The stream names physical tables, and describes each before its first change and again after every change of its
definition, as it was when the change was made. The plan names tables: an ordinary one, or a partitioned root whose
rows lie in leaves, which may have their columns in another order.
"""

from __future__ import annotations

from collections.abc import Iterable

import psycopg
from psycopg.rows import tuple_row

from capture.tables import TableVersions
from codec.pgoutput import Relation
from engines.postgres import catalogue
from engines.postgres import catalogue_queries as queries
from engines.postgres.types import kind_of
from schemas.errors import LOAD_AGAIN, SchemaUnsupported, SourceUnavailable
from schemas.table import Column, ColumnDetails, Definition, Identity, Table, TableId
from transport.views import Registered

ROOT = """
select r.oid::int8, n.nspname, r.relname
  from pg_class c
  join pg_class r on r.oid = case when c.relispartition then pg_partition_root(c.oid)::oid else c.oid end
  join pg_namespace n on n.oid = r.relnamespace
 where c.oid = %(oid)s::int8::oid
"""

ATTACHED = """
select c.oid::int8,
       (select array_agg(i.xmin::text::int8)
          from pg_partition_ancestors(c.oid) a (oid)
          join pg_inherits i on i.inhrelid = a.oid)
  from pg_class c
 where c.oid = any (%(oids)s::int8[]::oid[]) and c.relispartition
"""
"""Which of these are partitions, with the 32-bit ids of the transactions that made them, and those above them, so."""

TYPES = "select format_type(%(oid)s::int8::oid, %(modifier)s)"


def matches(table: Table, relation: Relation, planned: Identity) -> bool:
    """Whether rows of the relation can be recorded with this version: same columns in the same order, same key.

    Of a table that is published without updates and deletes (`planned` is nothing) the key does not matter.
    """
    if len(table.columns) != len(relation.columns):
        return False
    for column, sent in zip(table.columns, relation.columns, strict=True):
        if (column.name, column.type_oid, column.type_modifier) != (sent.name, sent.type_oid, sent.type_modifier):
            return False
    identity = _identity(relation, planned)
    if identity is not table.identity:
        return False
    # With FULL the stream flags every column; which of them are the key was known when the version was made.
    return identity is not Identity.KEY or _flagged(relation) == table.key


def _flagged(relation: Relation) -> tuple[int, ...]:
    return tuple(i for i, column in enumerate(relation.columns) if column.is_key)


def _identity(relation: Relation, planned: Identity) -> Identity:
    if planned is Identity.NOTHING:
        return Identity.NOTHING
    if relation.identity == "f":
        return Identity.FULL
    return Identity.KEY if _flagged(relation) else Identity.NOTHING


class Relations:
    """Finds the version for each relation, and registers one where the log knows none.

    `connection` is asked about relations that the plan does not know and about types that are new. Raises
    `SchemaUnsupported` where changes can't be recorded without a new load.
    """

    def __init__(self, tables: TableVersions) -> None:
        self._tables = tables
        self._owners: dict[int, TableId] = {}  # leaf oid -> table
        self._read()

    def planned(self) -> list[Table]:
        """Return the latest version of every table, with the identity that it was published by."""
        latest = [self._tables.of(id)[-1].table for id in self._tables.names()]
        return [table.model_copy(update={"identity": self._planned(table.id)}) for table in latest]

    def _leaves(self, table: TableId) -> set[int]:
        """Every leaf that any version of the table has had."""
        return {leaf.oid for version in self._tables.of(table) for leaf in version.table.leaves}

    def version(self, connection: psycopg.Connection, relation: Relation) -> Registered | None:
        """Return the version that the relation's rows are recorded with; None for a table that was not chosen."""
        id = self._owners.get(relation.oid)
        if id is None:
            self._read()  # tables are added while everything runs
            id = self._owners.get(relation.oid) or self._adopt(connection, relation)
        if id is None:
            return None
        planned, versions = self._planned(id), self._tables.of(id)
        # The latest that fits: after a restart relations come again as they were then, and leaves of one root may
        # differ in the order of their columns.
        for version in reversed(versions):
            if matches(version.table, relation, planned):
                return version
        changed = self._changed(connection, versions[-1].table, relation, planned)
        return self._tables.register(changed, versions[-1].changes)

    def _read(self) -> None:
        self._tables.refresh()
        for id in self._tables.names():
            for version in self._tables.of(id):
                self._owners.update((leaf.oid, id) for leaf in version.table.leaves if leaf.oid)

    def _planned(self, id: TableId) -> Identity:
        return self._tables.of(id)[0].table.identity

    def _adopt(self, connection: psycopg.Connection, relation: Relation) -> TableId | None:
        """Find out whether an unknown relation is a partition that was added to one of our tables.

        Registers a version that has the partition, so that targets learn of it. A partition that is gone again, or
        was detached, is none: the source's own table does not have its rows any more either.
        """
        name = TableId(relation.schema, relation.name)
        with connection.cursor(row_factory=tuple_row) as cursor:
            root = cursor.execute(ROOT, {"oid": relation.oid}).fetchone()
        if root is None or root[0] == relation.oid:
            if self._tables.of(name):
                raise SchemaUnsupported(
                    f"{name} was dropped, or renamed, and made again on the source", remedy=LOAD_AGAIN
                )
            return None
        id = TableId(root[1], root[2])
        versions = self._tables.of(id)
        if not versions:
            return None
        fresh = _today(connection, id)
        if fresh is None:
            raise SourceUnavailable(f"{id} is locked, so that nothing can be learnt of its partition {name}")
        leaf = next((leaf for leaf in fresh.leaves if leaf.oid == relation.oid), None)
        if leaf is None:
            return None
        # This leaf alone: others that are there by now come into the stream only later.
        latest = next((v for v in reversed(versions) if _shapes(v.table) == _shapes(fresh)), versions[-1]).table
        definition = latest.definition.model_copy(update={"partitions": fresh.definition.partitions})
        grown = latest.model_copy(update={"leaves": (*latest.leaves, leaf), "definition": definition})
        self._tables.register(grown, versions[-1].changes)
        self._read()
        return id

    def _changed(self, connection: psycopg.Connection, old: Table, relation: Relation, planned: Identity) -> Table:
        """Return the version of a table as the relation shows it, with what the catalogue of today adds to that."""
        fresh = _today(connection, old.id) or old
        known = {_shape(column): column for table in (fresh, old) for column in table.columns}
        numbers = {column.name: column.number for table in (old, fresh) for column in table.columns}
        columns = tuple(
            known.get((sent.name, sent.type_oid, sent.type_modifier))
            or _column(connection, old.id, sent.name, sent.type_oid, sent.type_modifier, numbers.get(sent.name, 0))
            for sent in relation.columns
        )
        identity = _identity(relation, planned)
        key: tuple[int, ...] = _flagged(relation) if identity is Identity.KEY else ()
        if identity is Identity.FULL:
            places = {column.name: i for i, column in enumerate(columns)}
            for table in (fresh, old):
                names = [table.columns[i].name for i in table.key]
                if names and all(name in places for name in names):
                    key = tuple(sorted(places[name] for name in names))
                    break
        return Table(
            id=old.id,
            columns=columns,
            key=key,
            identity=identity,
            leaves=old.leaves,
            definition=_definition(fresh, old, columns),
        )

    def whole(self, connection: psycopg.Connection, table: TableId, truncated: Iterable[int], xid: int) -> bool:
        """Whether all of a table is empty after the transaction `xid` truncated these leaves.

        What counts is which leaves there were then: those of the plan, and those that gave rows to the log since,
        unless they were attached by a later transaction (after a restart the log may know them already). A leaf that
        is no partition any more took its rows out of the source's own table.
        """
        missing = self._leaves(table) - set(truncated)
        if not missing:
            return True
        planned = {leaf.oid for leaf in self._tables.of(table)[0].table.leaves}
        with connection.cursor(row_factory=tuple_row) as cursor:
            there = cursor.execute(ATTACHED, {"oids": list(missing)}).fetchall()
        return all(oid not in planned and any(_later(made, xid) for made in attached) for oid, attached in there)


def _later(short: int, xid: int) -> bool:
    """Whether a 32-bit transaction id is after a full one, in the half circle of ids around it."""
    return 0 < (short - xid) % (1 << 32) < 1 << 31


def _shape(column: Column) -> tuple[str, int, int]:
    return column.name, column.type_oid, column.type_modifier


def _shapes(table: Table) -> list[tuple[str, int, int]]:
    return [_shape(column) for column in table.columns]


def _today(connection: psycopg.Connection, id: TableId) -> Table | None:
    """Return the table as the catalogue has it now; None if it is gone, or locked by whoever changes it."""
    try:
        return next(iter(catalogue.tables(connection, lambda table: table == id)), None)
    except (psycopg.errors.LockNotAvailable, psycopg.errors.QueryCanceled):
        return None


def _column(
    connection: psycopg.Connection, table: TableId, name: str, type_oid: int, modifier: int, number: int
) -> Column:
    with connection.cursor(row_factory=tuple_row) as cursor:
        base = cursor.execute(queries.BASES, {"oids": [type_oid]}).fetchone()
        written = cursor.execute(TYPES, {"oid": type_oid, "modifier": modifier}).fetchone()
    if base is None or written is None:
        raise SchemaUnsupported(
            f"{table}: the type of column {name} (oid {type_oid}) was dropped since the change was made",
            remedy=LOAD_AGAIN,
        )
    return Column(
        name=name,
        kind=kind_of(base[1], base[2]),
        source_type=written[0],
        type_oid=type_oid,
        type_modifier=modifier,
        number=number,
    )


def _definition(fresh: Table, old: Table, columns: tuple[Column, ...]) -> Definition:
    """Return what today's catalogue says, unless it has gone on already: then only the columns are brought along."""
    if {_shape(column) for column in fresh.columns} == {_shape(column) for column in columns}:
        return fresh.definition
    details = {(d.name, d.source_type): d for table in (fresh, old) for d in table.definition.columns}
    carried = tuple(
        details.get((c.name, c.source_type)) or ColumnDetails(name=c.name, source_type=c.source_type) for c in columns
    )
    generated = tuple(d for d in old.definition.columns if d.generated)
    return old.definition.model_copy(update={"columns": carried + generated})
