"""Statements that make on a PostgreSQL target, of any version from 12 to 18, what the source has.

In this order: `objects_statements`, `create_table` of each table of `in_order`, the load, `after_load`,
`foreign_keys` when all tables are there, `sequence_value` when changes stop. What rests on nothing can be run
again; the statements of one table belong in one transaction.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

from engines.postgres.connect import NEWEST
from engines.postgres.quoting import literal, quote
from schemas.table import ColumnDetails, Constraint, Objects, Partitioned, Table, TableId, View

VIRTUAL_SINCE = 18
NOT_ENFORCED_SINCE = 18
MULTIRANGE_SINCE = 14
MAINTAIN_SINCE = 17
MULTIRANGE = re.compile(r', multirange_type_name = "(?:[^"]|"")*"\."(?:[^"]|"")*"')


def in_order(tables: Iterable[Table]) -> list[Table]:
    """Return the tables with those that others inherit from, or have columns of, before these, else as they come."""
    by_id = {table.id: table for table in tables}
    ordered: dict[TableId, Table] = {}

    def put(table: Table) -> None:
        for parent in (*table.definition.inherits, *table.definition.row_types):
            if parent in by_id and parent not in ordered:
                put(by_id[parent])
        ordered.setdefault(table.id, table)

    for table in by_id.values():
        put(table)
    return list(ordered.values())


def objects_statements(objects: Objects, tables: Iterable[Table], *, version: int = NEWEST) -> list[str]:
    """Return what makes schemas, extensions, collations, types and sequences, as far as they are not there."""
    made = objects_made(objects, tables, version=version)
    return [_unless(there, statement) if there else statement for statement, there in made]


def objects_made(objects: Objects, tables: Iterable[Table], *, version: int = NEWEST) -> Iterator[tuple[str, str]]:
    """Yield each statement of `objects_statements` as it is, with the condition under which it has nothing to do, if
    it does not ask by itself.

    `create table` itself makes the sequences of identity columns.
    """
    identities = {column.sequence for table in tables for column in table.definition.columns if column.identity}
    for schema in objects.schemas:
        # Not "if not exists": that asks for the right to create even if there is nothing to do.
        yield f"create schema {quote(schema)}", f"to_regnamespace({literal(quote(schema))}) is not null"
    for extension in objects.extensions:
        yield f"create extension if not exists {_extension(extension)} cascade", ""
    for id, statement in objects.collations:
        yield statement, _has_collation(id)
    for id, statement in objects.types:
        yield type_statement(statement, version), f"to_regtype({literal(quote(*id))}) is not null"
    for sequence in objects.sequences:
        if sequence.id not in identities:
            yield f"create sequence if not exists {quote(*sequence.id)} {sequence.definition}", ""


def _has_collation(id: TableId) -> str:
    # One can be made for each encoding; `to_regcollation` came with 13.
    return (
        "exists (select from pg_catalog.pg_collation c join pg_catalog.pg_namespace n on n.oid = c.collnamespace"
        f" where n.nspname = {literal(id.schema)} and c.collname = {literal(id.name)})"
    )


def type_statement(statement: str, version: int) -> str:
    """Return a type's statement for a target of that major version: before 14 no range brings a multirange."""
    return statement if version >= MULTIRANGE_SINCE else MULTIRANGE.sub("", statement)


def create_table(table: Table, objects: Objects | None = None, *, version: int = NEWEST) -> list[str]:
    """Return what makes the table with its key, its partitions and its comments, for a target of that major version.

    Without `objects`, identity columns count by 1 from 1. Other constraints and the indexes come after the load.
    """
    definition = table.definition
    options = {sequence.id: sequence.definition for sequence in objects.sequences} if objects else {}
    parts = [column_definition(column, options, version) for column in definition.columns]
    parts += [f"constraint {quote(c.name)} {c.definition}" for c in _early_constraints(table, version)]
    inherits = ", ".join(quote(*parent) for parent in definition.inherits)
    statement = (
        f"create {'unlogged ' if definition.unlogged else ''}table {quote(*table.name)} ({', '.join(parts)})"
        + (f" inherits ({inherits})" if inherits else "")
        + (f" partition by {definition.partition_key}" if definition.partition_key else "")
    )
    statements = [statement, *map(partition_statement, partitions_of(table))]
    statements += [index.definition for index in definition.indexes if _is_key(table, index)]
    statements += [
        f"alter sequence {quote(*column.sequence)} owned by {quote(*table.name, column.name)}"
        for column in definition.columns
        if column.sequence and not column.identity
    ]
    return statements + _comments(table)


def after_load(table: Table, *, version: int = NEWEST) -> list[str]:
    """Return what makes the indexes, and the constraints that the load does not need.

    A check that the source never validated is among them: the rows of the load may break it.
    """
    definition = table.definition
    late = [c for c in definition.uniques if not _is_key(table, c)]
    late += [c for c in definition.checks if _not_valid(c) and not (_only_since_18(c) and version < NOT_ENFORCED_SINCE)]
    statements = [_add_constraint(table, constraint) for constraint in late]
    return statements + [index.definition for index in definition.indexes if not _is_key(table, index)]


def foreign_keys(table: Table, among: Collection[TableId] | None = None, *, version: int = NEWEST) -> list[str]:
    """Return what makes the table's foreign keys; with `among`, those to these tables only."""
    return [
        _add_constraint(table, constraint)
        for constraint in table.definition.foreign_keys
        if (among is None or constraint.references in among)
        and not (_only_since_18(constraint) and version < NOT_ENFORCED_SINCE)
    ]


def access(id: TableId, objects: Objects, *, grants: bool, owners: bool, version: int = NEWEST) -> list[str]:
    """Return what lets others use a table or a view, and gives it to its owner."""
    wanted = [*(objects.grants if grants else ()), *(objects.owners if owners else ())]
    maintains = version >= MAINTAIN_SINCE
    return [g.statement for g in wanted if g.on == id and (maintains or "grant MAINTAIN" not in g.statement)]


def make_view(
    view: View, pipeline: str, lock: int, access: Iterable[str], below: Mapping[TableId, Sequence[str]]
) -> str:
    """Return what makes a view that is not there, with `access` to it, unless a table that it reads is not live yet.

    `below` is the access to each table that it reads, be it through other views: a materialized view is filled with
    the rights of those whom the views under it belong to. The advisory `lock` is waited for first: two tables may come
    to be live at once.
    """
    reads = ", ".join(f"({literal(schema)}, {literal(name)})" for schema, name in view.reads)
    missing = (
        "exists (select from penstock.tables t"
        f" where t.pipeline = {literal(pipeline)} and t.state <> 'live'"
        f" and (t.table_schema, t.table_name) in ({reads}))"
        if reads
        else "false"
    )
    absent = " or ".join(f"to_regclass({literal(quote(*read))}) is null" for read in view.reads) or "false"
    there = f"to_regclass({literal(quote(*view.id))}) is not null"
    given = [
        f"if exists (select from penstock.tables t where t.pipeline = {literal(pipeline)} and t.made"
        f" and (t.table_schema, t.table_name) = ({literal(table.schema)}, {literal(table.name)}))"
        f" then {'; '.join(statements)}; end if"
        for table, statements in below.items()
        if statements
    ]
    made = "; ".join((*given, *view.statements, *access))
    return one_at_a_time([f"if not ({there} or {absent} or {missing}) then {made}; end if"], lock)


def one_at_a_time(statements: Iterable[str], lock: int) -> str:
    """Return one statement for all of them that holds the advisory `lock`: what several give to the same object, as a
    schema's rights, the server refuses to all but one of them."""
    return _block(f"perform pg_catalog.pg_advisory_xact_lock({lock}); {'; '.join(statements)};")


def drop_tables(tables: Iterable[Table]) -> list[str]:
    """Return the statement that drops the tables, all in one: they may refer to each other. Nobody else may to them."""
    names = ", ".join(quote(*table.name) for table in tables)
    return [f"drop table if exists {names}"] if names else []


def sequence_value(sequence: TableId, last_value: int, is_called: bool) -> str:
    """Return what sets a sequence to where the source's stands."""
    return f"select pg_catalog.setval({literal(quote(*sequence))}::regclass, {last_value}, {str(is_called).lower()})"


def key_constraint(table: Table) -> Constraint | None:
    """Return the primary key, unique constraint or unique index that is over exactly the columns of `Table.key`."""
    definition = table.definition
    candidates = [*([definition.primary_key] if definition.primary_key else []), *definition.uniques]
    return next((c for c in [*candidates, *definition.indexes] if _is_key(table, c)), None)


def _is_key(table: Table, constraint: Constraint) -> bool:
    """Whether rows can be found and told apart by it: what the load and the changes need."""
    key = {table.columns[place].name for place in table.key}
    text = constraint.definition.upper()
    if not key or set(constraint.columns) != key or " DEFERRABLE" in text or " WITHOUT OVERLAPS" in text:
        return False
    if constraint.is_index:
        return text.startswith("CREATE UNIQUE INDEX") and " WHERE " not in text and _lists_only_columns(text)
    return text.startswith(("PRIMARY KEY", "UNIQUE"))


def _lists_only_columns(index: str) -> bool:
    """Whether the list of columns in an index's definition holds no expression (nor options of an operator class)."""
    bare = re.sub(r'"(?:[^"]|"")*"', "x", index)
    return "(" not in bare.partition(" USING ")[2].partition("(")[2].partition(")")[0]


def _early_constraints(table: Table, version: int) -> list[Constraint]:
    definition = table.definition
    early = [definition.primary_key] if definition.primary_key else []
    early += [c for c in definition.uniques if _is_key(table, c)]
    early += [c for c in definition.checks if not _not_valid(c) and not (_only_since_18(c) and version < 18)]
    return early


def _not_valid(constraint: Constraint) -> bool:
    return constraint.definition.endswith(" NOT VALID")


def _only_since_18(constraint: Constraint) -> bool:
    """Whether it is one that an older server has no word for, and that no row depends on."""
    return constraint.definition.endswith(" NOT ENFORCED") or constraint.definition.startswith("NOT NULL ")


def _add_constraint(table: Table, constraint: Constraint) -> str:
    # A foreign key or check of an inheritance parent was the source's own choice of "only" or not: "no inherit".
    return f"alter table {quote(*table.name)} add constraint {quote(constraint.name)} {constraint.definition}"


def column_definition(column: ColumnDetails, options: dict[TableId, str], version: int) -> str:
    text = f"{quote(column.name)} {column.source_type}"
    if column.collation:
        text += f" collate {column.collation}"
    if column.generated:
        virtual = column.generated_virtual and version >= VIRTUAL_SINCE
        text += f" generated always as ({column.generated}) {'virtual' if virtual else 'stored'}"
    elif column.identity:
        text += f" generated {column.identity} as identity{_identity_options(column, options)}"
    elif column.default:
        text += f" default {column.default}"
    return text if column.nullable else f"{text} not null"


def _identity_options(column: ColumnDetails, options: dict[TableId, str]) -> str:
    if column.sequence is None:
        return ""
    text = options.get(column.sequence, "")
    if text.startswith("as "):  # the column says the type
        text = text.split(" ", 2)[2]
    return f" (sequence name {quote(*column.sequence)}{' ' + text if text else ''})"


def partitions_of(table: Table) -> tuple[Partitioned, ...]:
    """Return the partitions of a table as parts of it by the name that it has in this version: the source may call it
    otherwise, since or before it said so."""
    parts = table.definition.partitions
    ids = {part.id for part in parts}
    return tuple(p if p.parent in ids else p.model_copy(update={"parent": table.name}) for p in parts)


def partition_statement(partition: Partitioned) -> str:
    by = f" partition by {partition.partition_key}" if partition.partition_key else ""
    return f"create table {quote(*partition.id)} partition of {quote(*partition.parent)} {partition.bound}{by}"


def _comments(table: Table) -> list[str]:
    definition = table.definition
    comments = [f"comment on table {quote(*table.name)} is {literal(definition.comment)}"] if definition.comment else []
    return comments + [
        f"comment on column {quote(*table.name, column.name)} is {literal(column.comment)}"
        for column in definition.columns
        if column.comment
    ]


def _extension(extension: str) -> str:
    name, _, schema = extension.partition(" schema ")
    return f"{quote(name)} schema {quote(schema)}" if schema else quote(name)


def _unless(there: str, statement: str) -> str:
    return _block(f"if not ({there}) then {statement}; end if;")


def if_there(table: TableId, then: str, otherwise: str) -> str:
    """Return a statement that carries out one of two others, as there is such a table or not."""
    return _block(f"if to_regclass({literal(quote(*table))}) is not null then {then}; else {otherwise}; end if;")


def _block(body: str) -> str:
    tag = "$penstock$"
    while tag in body:  # a label of the source's must not end the block
        tag = tag[:-1] + "_$"
    return f"do {tag} begin {body} end {tag}"
