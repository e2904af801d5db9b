"""What PostgreSQL's catalogue says of the tables: one question of each sort, whatever their number."""

from __future__ import annotations

import gc
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import psycopg
from psycopg.rows import TupleRow

from engines.postgres import catalogue_queries as queries
from engines.postgres.asking import ask, one_moment
from engines.postgres.objects import objects, sequence_values
from engines.postgres.quoting import quote
from engines.postgres.types import kind_of
from schemas.table import Column, ColumnDetails, Constraint, Definition, Identity, Leaf, Partitioned, Table, TableId

__all__ = ["estimate", "filenodes", "objects", "pages", "sequence_values", "tables"]

DEFAULT, INDEX, FULL = "d", "i", "f"
ORDINARY, PARTITIONED, FOREIGN = "r", "p", "f"
BEST_COMPRESSED_GIGABYTE = 4 << 20  # lz4 makes a 255th of it at best
ROWS_A_PAGE = 60  # where nobody has counted: rows of about 130 bytes


class Relation(NamedTuple):
    """A row of `RELATIONS`."""

    oid: int
    schema: str
    name: str
    relkind: str
    persistence: str
    replica_identity: str
    is_partition: bool
    rows: float
    pages: int
    partition_key: str | None
    bound: str | None
    comment: str | None
    toast: int
    attached: int

    @property
    def id(self) -> TableId:
        return TableId(self.schema, self.name)


class Catalogue(NamedTuple):
    """All relations by oid, and who descends from whom."""

    relations: Mapping[int, Relation]
    parents: Mapping[int, Sequence[int]]
    children: Mapping[int, Sequence[int]]

    def descendants(self, oid: int) -> list[int]:
        """Return the partitions below a root, parents before their children."""
        below: list[int] = []
        for child in self.children.get(oid, ()):
            below += [child, *self.descendants(child)]
        return below

    def leaves(self, oid: int) -> list[int]:
        """Return what holds the rows: the table itself or its leaf partitions."""
        relation = self.relations[oid]
        if relation.relkind != PARTITIONED:
            return [oid]
        below = [self.relations[child] for child in self.descendants(oid)]
        return [child.oid for child in below if child.relkind == ORDINARY]


def relations(conn: psycopg.Connection) -> Catalogue:
    """Return every table of users, partitions and foreign tables included."""
    found = {row[0]: Relation(*row) for row in ask(conn, queries.RELATIONS)}
    parents: dict[int, list[int]] = defaultdict(list)
    children: dict[int, list[int]] = defaultdict(list)
    for child, parent in ask(conn, queries.PARENTS):
        if child in found and parent in found:
            parents[child].append(parent)
            children[parent].append(child)
    return Catalogue(found, parents, children)


def tables(conn: psycopg.Connection, chooses: Callable[[TableId], bool]) -> list[Table]:
    """Return the tables that are chosen, those that others inherit from or have columns of before these, else by name.

    A table is an ordinary one or a partitioned root; partitions are its leaves. Rows of foreign tables can't be
    carried: as a partition such a one is in the definition, but no leaf. What an extension made, and the schema
    `penstock`, are never chosen.
    """
    with one_moment(conn):
        catalogue = relations(conn)
        roots = [
            relation.oid
            for relation in catalogue.relations.values()
            if relation.relkind in {ORDINARY, PARTITIONED} and not relation.is_partition and chooses(relation.id)
        ]
        with _collector_resting():
            details = _Details.read(conn, catalogue, roots)
            chosen = {oid: _table(details, oid) for oid in roots}
    before = {oid: [*catalogue.parents.get(oid, ()), *details.row_types.get(oid, ())] for oid in roots}
    return [chosen[oid] for oid in _in_order(roots, before)]


def estimate(conn: psycopg.Connection, ids: Iterable[TableId]) -> dict[TableId, int]:
    """Return how many rows the tables may have, as far as they exist."""
    wanted = set(ids)
    return {table.id: table.rows for table in tables(conn, lambda id: id in wanted)}


def pages(conn: psycopg.Connection, oids: Iterable[int]) -> dict[int, int]:
    """Return how many pages relations have now; what was dropped is missing."""
    return dict(ask(conn, queries.SIZES, oids=list(oids)))


def largest(conn: psycopg.Connection, tables: Iterable[Table]) -> set[TableId]:
    """Return those of the tables that may have a row of a gigabyte."""
    owners = {leaf.oid: table.id for table in tables for leaf in table.leaves}
    found = ask(conn, queries.LARGE_VALUES, oids=list(owners), least=BEST_COMPRESSED_GIGABYTE)
    return {owners[oid] for (oid,) in found}


def filenodes(conn: psycopg.Connection, oids: Iterable[int]) -> dict[int, str]:
    """Return where the rows of relations lie now, to be compared; empty for what was dropped.

    It looks past the snapshot of the transaction it is asked in.
    """
    return {oid: str(node or "") for oid, node in ask(conn, queries.FILENODES, oids=list(oids))}


@contextmanager
def _collector_resting() -> Iterator[None]:
    """Make many objects without a cycle among them: looking for cycles would take half of the time."""
    resting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if resting:
            gc.enable()


FULL_WITHOUT_GENERATED_SINCE = 18
"""From here on a table whose replica identity is full takes no updates and deletes when they are published and it has
generated columns: the application's own would fail. A virtual one can't be published at all."""


class _Details(NamedTuple):
    """Answers about the chosen tables, by the oid of the table (by that of the leaf: identities and sizes)."""

    catalogue: Catalogue
    columns: Mapping[int, Sequence[TupleRow]]
    bases: Mapping[int, tuple[int, str]]
    constraints: Mapping[int, Sequence[TupleRow]]
    indexes: Mapping[int, Sequence[TupleRow]]
    identities: Mapping[int, Sequence[TupleRow]]
    row_types: Mapping[int, Sequence[int]]
    pages: Mapping[int, int]
    nodes: Mapping[int, str]
    missing: Mapping[int, Sequence[TupleRow]]
    version: int

    @staticmethod
    def read(conn: psycopg.Connection, catalogue: Catalogue, roots: list[int]) -> _Details:
        leaves = [leaf for root in roots for leaf in catalogue.leaves(root)]
        columns = _by_table(ask(conn, queries.COLUMNS, oids=roots))
        types = {row[3] for rows in columns.values() for row in rows}
        row_types: dict[int, list[int]] = defaultdict(list)
        for oid, other in ask(conn, queries.ROW_TYPES, oids=roots):
            row_types[oid].append(other)
        return _Details(
            catalogue=catalogue,
            columns=columns,
            bases={oid: (base, kind) for oid, base, kind in ask(conn, queries.BASES, oids=list(types))},
            constraints=_by_table(ask(conn, queries.versioned(queries.CONSTRAINTS, conn), oids=roots)),
            indexes=_by_table(ask(conn, queries.INDEXES, oids=roots)),
            identities=_by_table(ask(conn, queries.IDENTITIES, oids=[*roots, *leaves])),
            row_types=row_types,
            pages=pages(conn, leaves),
            nodes=filenodes(conn, leaves),
            missing=_by_table(ask(conn, queries.MISSING, oids=leaves)),
            version=conn.info.server_version // 10_000,
        )


def _table(details: _Details, oid: int) -> Table:
    relation = details.catalogue.relations[oid]
    names: dict[int, str] = {}
    columns: list[Column] = []
    all_columns: list[ColumnDetails] = []
    # A constraint that is not validated promises nothing: existing rows may hold nulls.
    unchecked = {number for row in details.constraints.get(oid, ()) if row[2] == "n" for number in row[4]}
    missing = {
        name: value for leaf in details.catalogue.leaves(oid) for _, name, value in details.missing.get(leaf, ())
    }
    for row in details.columns.get(oid, ()):
        number, name, type_oid, modifier, written, not_null, _, generated = row[1:9]
        nullable = not not_null or number in unchecked
        if number in names:  # it owns a second sequence
            continue
        names[number] = name
        all_columns.append(_column_details(row, nullable, missing))
        if not generated:
            base, typtype = details.bases[type_oid]
            columns.append(
                Column(
                    name=name,
                    kind=kind_of(base, typtype),
                    source_type=written,
                    type_oid=type_oid,
                    type_modifier=modifier,
                    number=number,
                    nullable=nullable,
                )
            )
    identity, key = _identity(details, oid, [column.name for column in columns])
    return Table(
        id=relation.id,
        columns=tuple(columns),
        key=key,
        identity=identity,
        leaves=tuple(_leaf(details, leaf) for leaf in details.catalogue.leaves(oid)),
        definition=_definition(details, oid, tuple(all_columns), names),
        oid=oid,
    )


def _column_details(row: TupleRow, nullable: bool, missing: Mapping[str, str]) -> ColumnDetails:
    _, number, name, _, _, written, _, identity, generated, default, *rest = row
    collation_schema, collation, comment, sequence_schema, sequence, writer = rest
    return ColumnDetails(
        name=name,
        source_type=written,
        nullable=nullable,
        default="" if generated else default or "",
        identity={"a": "always", "d": "by default"}.get(identity, ""),
        generated=default if generated else "",
        generated_virtual=generated == "v",
        collation=quote(collation_schema, collation) if collation_schema else "",
        comment=comment or "",
        sequence=TableId(sequence_schema, sequence) if sequence else None,
        missing=missing.get(name, ""),
        number=number,
        written=writer,
    )


def _definition(
    details: _Details, oid: int, columns: tuple[ColumnDetails, ...], names: Mapping[int, str]
) -> Definition:
    catalogue = details.catalogue
    relation = catalogue.relations[oid]
    constraints: dict[str, list[Constraint]] = defaultdict(list)
    for _, name, contype, definition, numbers, schema, referenced in details.constraints.get(oid, ()):
        constraints[contype].append(
            Constraint(
                name=name,
                definition=definition,
                columns=tuple(names[number] for number in numbers or () if number in names),
                references=TableId(schema, referenced) if referenced else None,
            )
        )
    partitions = [catalogue.relations[child] for child in catalogue.descendants(oid)] if relation.partition_key else []
    return Definition(
        columns=columns,
        primary_key=constraints["p"][0] if constraints["p"] else None,
        uniques=tuple(constraints["u"] + constraints["x"]),
        checks=tuple(constraints["c"] + constraints["n"]),
        foreign_keys=tuple(constraints["f"]),
        indexes=tuple(_index(row, relation, names) for row in details.indexes.get(oid, ())),
        comment=relation.comment or "",
        partition_key=relation.partition_key or "",
        partitions=tuple(
            Partitioned(
                id=child.id,
                parent=catalogue.relations[catalogue.parents[child.oid][0]].id,
                bound=child.bound or "",
                partition_key=child.partition_key or "",
                oid=child.oid,
                attached=child.attached,
            )
            for child in partitions
        ),
        inherits=tuple(
            catalogue.relations[parent].id for parent in catalogue.parents.get(oid, ()) if parent in details.columns
        ),
        row_types=tuple(catalogue.relations[other].id for other in details.row_types.get(oid, ())),
        unlogged=relation.persistence == "u",
    )


def _index(row: TupleRow, relation: Relation, names: Mapping[int, str]) -> Constraint:
    _, name, unique, definition, numbers, keys = row
    if relation.relkind == PARTITIONED:
        # "on only" would leave the partitions without, and the whole index invalid.
        _, only, rest = definition.partition(" ON ONLY ")
        if only:
            definition = f"CREATE {'UNIQUE ' if unique else ''}INDEX {quote(name)} ON {rest}"
    columns = tuple(names[number] for number in numbers[:keys] if number in names)
    return Constraint(name=name, definition=definition, columns=columns)


def _leaf(details: _Details, oid: int) -> Leaf:
    relation = details.catalogue.relations[oid]
    now = details.pages.get(oid, relation.pages)
    a_page = relation.rows / relation.pages if relation.pages > 0 and relation.rows >= 0 else ROWS_A_PAGE
    return Leaf(
        id=relation.id,
        oid=oid,
        node=details.nodes.get(oid, ""),
        toast=relation.toast,
        pages=now,
        rows=round(now * a_page),
    )


def _identity(details: _Details, oid: int, carried: list[str]) -> tuple[Identity, tuple[int, ...]]:
    """Return what the stream tells of old rows: every leaf has an identity of its own, the least of them counts."""
    found = {_identity_of(details, leaf, carried) for leaf in details.catalogue.leaves(oid) or [oid]}
    keys = {key for _, key in found}
    identities = {identity for identity, _ in found}
    if len(keys) > 1 or Identity.NOTHING in identities:
        return Identity.NOTHING, ()
    if len(identities) > 1 and keys == {()}:
        return Identity.NOTHING, ()
    generates = any(generated for *_, generated in (row[:9] for row in details.columns.get(oid, ())))
    if generates and Identity.FULL in identities and details.version >= FULL_WITHOUT_GENERATED_SINCE:
        return Identity.NOTHING, ()
    return (Identity.FULL if identities == {Identity.FULL} else Identity.KEY), keys.pop()


def _identity_of(details: _Details, oid: int, carried: list[str]) -> tuple[Identity, tuple[int, ...]]:
    relation = details.catalogue.relations[oid]
    places = {name: place for place, name in enumerate(carried)}
    key: tuple[int, ...] = ()
    for _, primary, replica, names in details.identities.get(oid, ()):
        if replica if relation.replica_identity == INDEX else primary:
            # A generated column is not in the stream, so a key with one tells nothing.
            key = tuple(sorted(places[name] for name in names)) if set(names) <= places.keys() else ()
    if relation.replica_identity == FULL:
        return Identity.FULL, key
    if relation.replica_identity in {DEFAULT, INDEX} and key:
        return Identity.KEY, key
    return Identity.NOTHING, ()


def _in_order(oids: list[int], before: Mapping[int, Sequence[int]]) -> list[int]:
    """Return the tables with those that come `before` others before these; in a circle it is as it comes."""
    chosen = set(oids)
    ordered: dict[int, None] = {}
    visiting: set[int] = set()

    def put(oid: int) -> None:
        if oid in visiting:
            return
        visiting.add(oid)
        for other in before.get(oid, ()):
            if other in chosen:
                put(other)
        ordered[oid] = None

    for oid in oids:
        put(oid)
    return list(ordered)


def _by_table(rows: Iterable[TupleRow]) -> dict[int, list[TupleRow]]:
    grouped: dict[int, list[TupleRow]] = defaultdict(list)
    for row in rows:
        grouped[row[0]].append(row)
    return grouped
