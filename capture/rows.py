"""What has become of a table's rows between two of its versions, as far as anybody can tell.

The stream tells of rows that are written, not of those that a definition has changed. What the event trigger has said,
the catalogue and the rows themselves show whether one follows from the other; where they do not, the version says so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import psycopg

from engines.postgres import definitions
from engines.postgres.asking import ask
from engines.postgres.quoting import quote
from schemas.table import ColumnDetails, Leaf, Since, Table, TableId

# What a table held when it became a partition is in the stream no more than the rows of any table that is not ours.
OLDER = """
select exists (select from only {leaf} r
                 join pg_inherits i on i.inhrelid = %(oid)s::int8::oid
                where age(r.xmin) > age(i.xmin)
                   or (r.xmin = i.xmin and r.cmin::text::int8 < i.cmin::text::int8))
"""

NAMED = """
select n.nspname, c.relname, a.attname
  from pg_class c
  join pg_namespace n on n.oid = c.relnamespace
  join pg_attribute a on a.attrelid = c.oid and a.attnum = %(number)s and not a.attisdropped
 where c.oid = %(oid)s::int8::oid
"""

HELD = "select exists (select from {table} where {column} is not null)"

# Whoever rewrites a table for another reason, as VACUUM FULL does, keeps what holds its large values.
MADE_LATER = """
select exists (select from pg_attribute t, unnest(%(writers)s::text[]::xid[]) w (xid)
                where t.attrelid = %(toast)s::int8::oid and age(t.xmin) <= age(w.xid))
"""
"""Whether what holds a table's large values was made by one of these transactions, or later."""

# Whoever rewrites a table for another reason leaves to each row the transaction that wrote it.
WRITTEN = "select exists (select from only {leaf} where xmin = any (%(writers)s::text[]::xid[]))"

UNKNOWN = "column {column} was added, and what the rows that were there hold in it is not known"

COMPUTED = "was rewritten to give a column another type, or other values of its type; what they have become is not told"


class Said(NamedTuple):
    """What the event trigger has said of all commands since the last version of a table."""

    cast: bool = True  # none may have computed values from others but by a default cast
    bare: bool = True  # none may have given new columns values
    computed: bool = False  # one has rewritten rows, and may have computed values


SILENCE = Said(cast=False, bare=False)


def since(
    connection: psycopg.Connection, last: Table, table: Table, said: Said, owners: Mapping[int, TableId]
) -> Since:
    """Return what has become of the rows since the last version, as far as that can be told. `owners` are the tables
    that relations belong to, by their oids."""
    before = {leaf.oid: leaf for leaf in last.leaves}
    joined = [leaf for leaf in table.leaves if leaf.oid not in before] if table.definition.partition_key else []
    moved = [leaf for leaf in table.leaves if leaf.oid in before and leaf.node != before[leaf.oid].node]
    refused = unknown = ""
    now = definitions.names(connection, [leaf.oid for leaf in joined])
    for leaf in joined:
        query = OLDER.replace("{leaf}", quote(*now.get(leaf.oid, leaf.id)))
        if owners.get(leaf.oid, table.id) != table.id:
            refused = f"{leaf.id} was copied as a table of its own, and is a partition of this one now"
        elif ask(connection, query, oid=leaf.oid) != [(False,)]:
            refused = f"{leaf.id} was attached with rows in it, which the stream does not tell"
    there = {p.oid: p.attached for p in last.definition.partitions if p.attached}
    for partition in table.definition.partitions:
        if partition.attached and there.get(partition.oid, partition.attached) != partition.attached:
            refused = f"{partition.id} was detached for a while, and what was written to it meanwhile is not told"
    if moved and not said.bare and not refused and (unknown := _unknown_column(connection, last, table)):
        refused = UNKNOWN.format(column=unknown)
    writers = _writers(last, table)
    for leaf in moved:
        if said.computed or (writers and not said.cast and _rewrote(connection, writers, before[leaf.oid], leaf)):
            refused, unknown = f"{leaf.id} {COMPUTED}", ""
    left = {p.oid: p.id for p in last.definition.partitions} if table.definition.partition_key else {}
    for partition in table.definition.partitions:
        left.pop(partition.oid, None)
    detached = tuple(left[oid] for oid in definitions.names(connection, left)) if left else ()
    return Since(rewritten=bool(moved), recast=said.cast, refused=refused, column=unknown, detached=detached)


def _unknown_column(connection: psycopg.Connection, last: Table, table: Table) -> str:
    """Return a column that a table has got since the last version, and that some row may have got a value in that the
    stream does not tell; the table was rewritten meanwhile. Empty if there is none.

    Where nothing is rewritten the catalogue keeps, apart, what older rows hold in a new column. Else they hold it
    themselves, and a default that it came from may be gone. Yet if no row has a value there now, none had one that
    the stream has not taken back.
    """
    known = {column.number for column in last.columns} | {column.number for column in last.definition.columns}
    details = details_by_number(table)
    fresh = {column.number for column in table.columns if column.number} - known
    for number in sorted(number for number in fresh if number in details and not details[number].missing):
        found = ask(connection, NAMED, oid=table.oid, number=number)
        for schema, name, column in found:
            query = HELD.replace("{table}", quote(schema, name)).replace("{column}", quote(column))
            try:
                held = ask(connection, query) == [(True,)]
            except (psycopg.errors.UndefinedTable, psycopg.errors.UndefinedColumn):
                held = True  # it has just got another name, or is gone
            if held:
                return details[number].name
    return ""


def _writers(last: Table, table: Table) -> list[str]:
    """Return the transactions since the last version, by 32 bits, that wrote what the catalogue says of a column which
    looks as it did. Other columns tell by themselves that they were altered."""
    before = {(detail.number, detail.source_type): detail.written for detail in last.definition.columns}
    return [
        str(detail.written)
        for detail in table.definition.columns
        if not detail.generated and before.get((detail.number, detail.source_type), 0) not in (0, detail.written)
    ]


def _rewrote(connection: psycopg.Connection, writers: Sequence[str], before: Leaf, leaf: Leaf) -> bool:
    """Whether one of these transactions may have been that of an ALTER TABLE which has rewritten the rows of a table.
    Both is true of a command that computes the values of a column anew, and leaves no other trace."""
    if leaf.toast:
        made = leaf.toast != before.toast
        return made and ask(connection, MADE_LATER, writers=writers, toast=leaf.toast) == [(True,)]
    try:
        return ask(connection, WRITTEN.replace("{leaf}", quote(*leaf.id)), writers=writers) == [(True,)]
    except psycopg.errors.UndefinedTable:
        return True  # it has just got another name, or is gone


def details_by_number(table: Table) -> dict[int, ColumnDetails]:
    """Return what is known of the columns by their numbers."""
    by_name = {detail.name: detail for detail in table.definition.columns}
    return {column.number: by_name[column.name] for column in table.columns if column.name in by_name}
