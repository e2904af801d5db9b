"""What an older PostgreSQL can't have as the source has it."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from typing import NamedTuple

from conversion.ddl import MULTIRANGE, MULTIRANGE_SINCE, key_constraint, type_statement
from schemas.table import Constraint, Objects, Table, TableId


class Loss(NamedTuple):
    """Something of a table (or of none in particular) that the target does not get as it is.

    `refused`: its statement would fail, or rows could not be written. Else the target does without.
    """

    table: TableId | None
    what: str
    consequence: str
    refused: bool


TYPES_SINCE = (
    (re.compile(r"multirange\b"), 14, "multiranges"),
    (re.compile(r"\b(xid8|pg_snapshot)\b"), 13, "the type"),
    (re.compile(r"numeric\(\d+,-\d+\)"), 15, "a negative scale"),
)
FUNCTIONS_SINCE = (
    (re.compile(r"\bgen_random_uuid\("), 13),
    (re.compile(r"\b(uuidv7|uuidv4|casefold|array_sort|crc32c?|gamma|lgamma)\("), 18),
    (re.compile(r"\b(to_bin|to_oct|uuid_extract_timestamp|xmltext)\("), 17),
    (re.compile(r"\b(array_shuffle|array_sample|random_normal|any_value)\("), 16),
    (re.compile(r"\b(regexp_count|regexp_instr|regexp_like|regexp_substr)\("), 15),
)
SYNTAX_SINCE = (
    (" NULLS NOT DISTINCT", 15),
    (" WITHOUT OVERLAPS", 18),
    (" PERIOD ", 18),
    ("ON DELETE SET NULL (", 15),
    ("ON DELETE SET DEFAULT (", 15),
    ("deduplicate_items", 13),
)


def losses(table: Table, version: int) -> list[Loss]:
    """Return what does not carry over to a target of that major version."""
    return [*_columns(table, version), *_constraints(table, version), *_key(table)]


def objects_losses(objects: Objects, version: int) -> list[Loss]:
    """Return which types a target of that major version can't have."""
    return [
        Loss(None, f"type {id}", f"it needs {name}, of PostgreSQL {since}", refused=True)
        for id, statement in objects.types
        for pattern, since, name in TYPES_SINCE
        if version < since and pattern.search(type_statement(statement, version))
    ]


def all_losses(tables: Collection[Table], objects: Objects, version: int) -> list[Loss]:
    """Return the losses of tables and objects together."""
    multiranges = set()
    if version < MULTIRANGE_SINCE:
        named = (MULTIRANGE.search(statement) for _, statement in objects.types)
        multiranges = {_bare(found[0].partition(" = ")[2]) for found in named if found}
    return [
        *objects_losses(objects, version),
        *(loss for table in tables for loss in losses(table, version)),
        *(
            Loss(table.id, f"column {column.name}", f"{column.source_type} is a multirange, of PostgreSQL 14", True)
            for table in tables
            for column in table.definition.columns
            if _bare(column.source_type) in multiranges
        ),
    ]


def _bare(name: str) -> str:
    """Return a type's name without quotes and array brackets, to be compared."""
    return name.replace('"', "").removesuffix("[]")


def _columns(table: Table, version: int) -> Iterator[Loss]:
    for column in table.definition.columns:
        what = f"column {column.name}"
        for pattern, since, name in TYPES_SINCE:
            if version < since and pattern.search(column.source_type):
                yield Loss(table.id, what, f"{column.source_type} needs {name}, of PostgreSQL {since}", refused=True)
        for pattern, since in FUNCTIONS_SINCE:
            if version < since and (found := pattern.search(f"{column.default} {column.generated}")):
                yield Loss(table.id, what, f"{found[0]}…) came with PostgreSQL {since}", refused=True)
        if column.source_type == '"char"' and version < 16:
            told = "a byte above 127, as 16 and newer write it, would become a backslash"
            yield Loss(table.id, what, told, refused=False)
        if column.generated_virtual and version < 18:
            yield Loss(table.id, what, "it is virtual, of PostgreSQL 18: the target stores it", refused=False)


def _constraints(table: Table, version: int) -> Iterator[Loss]:
    definition = table.definition
    primary: tuple[Constraint, ...] = (definition.primary_key,) if definition.primary_key else ()
    for constraint in (
        *primary,
        *definition.uniques,
        *definition.checks,
        *definition.foreign_keys,
        *definition.indexes,
    ):
        text = constraint.definition
        if version < 18 and text.endswith(" NOT ENFORCED"):
            yield Loss(table.id, constraint.name, "it is not enforced: the target does without", refused=False)
        elif version < 18 and text.startswith("NOT NULL "):
            yield Loss(table.id, constraint.name, "it was never validated: the target does without", refused=False)
        for syntax, since in SYNTAX_SINCE:
            if version < since and syntax in text:
                words = syntax.strip().rstrip("(").strip()
                yield Loss(table.id, constraint.name, f"{words} came with PostgreSQL {since}", refused=True)


def _key(table: Table) -> Iterator[Loss]:
    if table.key and table.definition.columns and key_constraint(table) is None:
        key = ", ".join(table.columns[place].name for place in table.key)
        yield Loss(table.id, f"key ({key})", "only the partitions have it, not the table as a whole", refused=False)
