"""The table model: what a row record needs to know of a table, and what a target needs to make it.

Everything is engine-neutral but the texts named `*_definition` and `source_type`, which are the source's own SQL:
a target of the same engine uses them as they are, `conversion` translates them for others.
"""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple

from pydantic import BaseModel, ConfigDict

from schemas.types import Kind


class TableId(NamedTuple):
    """A table by schema and name, exactly as the source has them, unquoted."""

    schema: str
    name: str

    def __str__(self) -> str:
        return f"{self.schema}.{self.name}"


class Identity(StrEnum):
    """What the source tells of the old row of an update or delete."""

    KEY = "key"  # the columns of `Table.key`, only when they changed (update), always (delete)
    FULL = "full"  # every column
    NOTHING = "nothing"  # inserts and truncates only


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Column(_Model):
    """One column that is carried. Dropped columns and generated ones (computed again by the target) are not."""

    name: str
    kind: Kind
    source_type: str  # with modifiers, as the source writes it: `numeric(12,2)`, `shop.status`
    type_oid: int = 0  # of the source; 0 where the engine has none
    type_modifier: int = -1
    number: int = 0  # the source's own number of the column: survives a rename
    nullable: bool = True


class Constraint(_Model):
    """A constraint, index or the like that is made on the target, by its whole definition."""

    name: str
    definition: str  # what follows `constraint NAME` (constraints), or the whole statement (indexes)
    columns: tuple[str, ...] = ()
    references: TableId | None = None  # foreign keys

    @property
    def is_index(self) -> bool:
        """Whether it is made by a statement of its own, and belongs to no constraint."""
        return self.definition.upper().startswith("CREATE ")


class ColumnDetails(_Model):
    """What only `create table` needs; also of generated columns, which are not carried."""

    name: str
    source_type: str
    nullable: bool = True
    default: str = ""
    identity: str = ""  # "", "always", "by default"
    generated: str = ""  # expression
    generated_virtual: bool = False
    collation: str = ""
    comment: str = ""
    sequence: TableId | None = None  # owned by the column (serial, identity)
    missing: str = ""  # what rows from before the column show for it, as an expression
    number: int = 0  # the source's own, as `Column.number`
    written: int = 0  # the transaction, by 32 bits, that wrote what the source says of the column last


class Definition(_Model):
    """What a target needs to make the table as the source has it."""

    columns: tuple[ColumnDetails, ...] = ()  # in the source's order
    primary_key: Constraint | None = None
    uniques: tuple[Constraint, ...] = ()  # unique and exclusion constraints
    checks: tuple[Constraint, ...] = ()
    foreign_keys: tuple[Constraint, ...] = ()
    indexes: tuple[Constraint, ...] = ()  # those that no constraint owns; `definition` is the statement
    comment: str = ""
    partition_key: str = ""  # `range (created)`: the table is a partitioned root
    partitions: tuple[Partitioned, ...] = ()
    inherits: tuple[TableId, ...] = ()
    row_types: tuple[TableId, ...] = ()  # tables whose rows are the type of a column
    unlogged: bool = False

    @property
    def restrictions(self) -> list[Constraint]:
        """Everything that may refuse a row: keys, constraints, unique indexes."""
        primary = [self.primary_key] if self.primary_key else []
        unique = [index for index in self.indexes if index.definition.upper().startswith("CREATE UNIQUE ")]
        return [*primary, *self.uniques, *self.checks, *self.foreign_keys, *unique]


class Partitioned(_Model):
    """A partition of a root, at any depth. Only leaves hold rows."""

    id: TableId
    parent: TableId
    bound: str  # `for values from ('2024-01-01') to ('2025-01-01')`
    partition_key: str = ""  # it is partitioned itself
    oid: int = 0
    attached: int = 0  # the transaction, by 32 bits, that made it a partition; 0 if that is not known


class Leaf(_Model):
    """A physical piece of a table: the table itself, or a leaf partition of it."""

    id: TableId
    oid: int = 0
    node: str = ""  # where its rows lie: another one says that they were rewritten
    toast: int = 0  # the source's own number of what holds its large values: a rewriting by ALTER TABLE makes another
    pages: int = 0  # the source's own estimate, for planning
    rows: int = 0


class Since(_Model):
    """What happened to a table between the version before and this one, and does not show in either."""

    emptied: tuple[TableId, ...] = ()  # partitions that were emptied where this version begins
    detached: tuple[TableId, ...] = ()  # that were partitions, and are tables of their own now
    rewritten: bool = False  # the source may have changed rows without a word
    recast: bool = False  # columns of another type got it by its default cast, by nothing else
    refused: str = ""  # why rows that are at a target can't be brought from the version before to this one
    column: str = ""  # the only one that this is about, if it was added
    passed: int = 0  # the source position that capture had come to: its frontiers beyond name this version, if it lived


class LeftOut(_Model):
    """Why capture carries no more rows of a table. It goes on when somebody has asked to load the table anew."""

    cause: str
    remedy: str
    known: int  # how far capture had read in `p.chunks`: a command that stands there or behind it counts


class Table(_Model):
    """One version of a table as its changes and its load are recorded.

    `key` holds indexes into `columns`: the columns that identify a row in the stream (replica identity; the
    primary key where the identity is FULL and there is one), in the order of `columns`. It is empty for a table
    without key. Record keys are made of these columns.
    """

    id: TableId
    columns: tuple[Column, ...]
    key: tuple[int, ...] = ()
    identity: Identity = Identity.KEY
    leaves: tuple[Leaf, ...] = ()
    definition: Definition = Definition()
    oid: int = 0  # the source's own number of the table; 0 where the engine has none
    renamed: TableId | None = None  # how the source calls it, if not any more by what it was chosen by
    objects: Objects | None = None  # what it rests on; of the first version the setup tells, for all tables together
    dropped: bool = False  # from here on the source has no such table
    since: Since | None = None  # of the first version there is none
    left_out: LeftOut | None = None  # a record of this version stands for rows of its transaction that are not there

    @property
    def name(self) -> TableId:
        """How source and target call the table. Its `id`, by which the log knows it, never changes."""
        return self.renamed or self.id

    @property
    def oids(self) -> list[int]:
        """The source's numbers of the table and of what holds its rows, each once."""
        return list(dict.fromkeys(oid for oid in (self.oid, *(leaf.oid for leaf in self.leaves)) if oid))

    @property
    def rows(self) -> int:
        """The source's estimate of the number of rows."""
        return sum(leaf.rows for leaf in self.leaves)

    def same_rows_as(self, other: Table) -> bool:
        """Whether records of both have the same Avro schema and key."""
        return (self.columns, self.key, self.identity) == (other.columns, other.key, other.identity)


class Sequence(_Model):
    """A sequence that a target gets: its definition at once, its value when the load is over."""

    id: TableId
    definition: str  # what follows `create sequence NAME`


class View(_Model):
    """A view, materialised or not: made on a target when all that it reads is there and loaded."""

    id: TableId
    reads: tuple[TableId, ...]  # tables, and views that come before it
    statements: tuple[str, ...]  # the view's own, then those of its indexes


class Granted(_Model):
    """What a role is given on a table or view (or on the schema that it is in): a right, or the thing itself."""

    on: TableId
    role: str  # empty: everybody
    statement: str


class Objects(_Model):
    """What tables rest on: made before them, in this order."""

    schemas: tuple[str, ...] = ()
    extensions: tuple[str, ...] = ()
    collations: tuple[tuple[TableId, str], ...] = ()  # (name, whole `create collation` statement)
    types: tuple[
        tuple[TableId, str], ...
    ] = ()  # (name, whole `create type`/`create domain` statement), in order of dependence
    labels: tuple[tuple[TableId, tuple[str, ...]], ...] = ()  # of the enumerations among the types, in order
    sequences: tuple[Sequence, ...] = ()
    # What stands beside the tables; a target gets it only if its settings say so.
    views: tuple[View, ...] = ()
    owners: tuple[Granted, ...] = ()
    grants: tuple[Granted, ...] = ()


class SetupObjects(Objects):
    """What all tables of a pipeline rest on as it begins."""

    of_choices: tuple[tuple[tuple[str, ...], Objects], ...] = ()  # what those rest on that some target takes

    def of_choice(self, patterns: tuple[str, ...]) -> Objects:
        """Return what the tables rest on that a target takes; all, for a choice that there was not at the beginning."""
        return next((objects for choice, objects in self.of_choices if choice == patterns), self)


Definition.model_rebuild()
Table.model_rebuild()
