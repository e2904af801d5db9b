"""What a table is like on the target: read from its catalogue, because it may not have been made by us."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import psycopg
from psycopg.rows import tuple_row

from engines.postgres.quoting import quote
from schemas.errors import SchemaUnsupported
from schemas.table import Column, Table, TableId
from schemas.types import Kind

RELATIONS = """
select w.place, c.oid::int8, c.relkind::text,
       exists (select from pg_trigger t where t.tgrelid = c.oid and not t.tgisinternal and t.tgenabled in ('O', 'A'))
from unnest(%(schemas)s::name[], %(names)s::name[]) with ordinality as w (schema, name, place)
join pg_namespace n on n.nspname = w.schema
join pg_class c on c.relnamespace = n.oid and c.relname = w.name
where c.relkind in ('r', 'p', 'f', 'v', 'm')
"""

# No index leads from a table to the keys that refer to it: all keys are gone through once, for all tables.
FOREIGN_KEYS = """
select f.conrelid::int8, f.confrelid::int8, f.confdeltype in ('c', 'n', 'd') or f.confupdtype in ('c', 'n', 'd')
from pg_constraint f
where f.contype = 'f' and (f.conrelid = any(%(oids)s::oid[]) or f.confrelid = any(%(oids)s::oid[]))
"""

# A domain is looked through to the type that it rests on at last: that is what is sent. Types of extensions have the
# operator that is equality in a schema of their own.
COLUMNS = """
with recursive base as (
    select a.attrelid, a.attnum, a.attname, a.atttypid, a.atttypmod, a.attidentity, a.attgenerated, a.attnotnull,
           a.atthasdef, a.atttypid as oid, a.atttypmod as typmod
    from pg_attribute a
    where a.attrelid = any(%(oids)s::oid[]) and a.attnum > 0 and not a.attisdropped
    union all
    select b.attrelid, b.attnum, b.attname, b.atttypid, b.atttypmod, b.attidentity, b.attgenerated, b.attnotnull,
           b.atthasdef, t.typbasetype, case when t.typtypmod >= 0 then t.typtypmod else b.typmod end
    from base b
    join pg_type t on t.oid = b.oid
    where t.typtype = 'd'
)
select b.attrelid::int8, b.attname, b.atttypid::int8, b.atttypmod, format_type(b.atttypid, b.atttypmod), b.oid::int8,
       b.typmod, t.typtype::text, bn.nspname, t.typname, b.attidentity::text, b.attgenerated::text, b.attnotnull,
       b.atthasdef,
       (select opn.nspname
        from pg_opclass c
        join pg_am am on am.oid = c.opcmethod and am.amname = 'btree'
        join pg_amop o on o.amopfamily = c.opcfamily and o.amoplefttype = c.opcintype
                      and o.amoprighttype = c.opcintype and o.amopstrategy = 3
        join pg_operator op on op.oid = o.amopopr
        join pg_namespace opn on opn.oid = op.oprnamespace
        where c.opcintype = t.oid and c.opcdefault)
from base b
join pg_type t on t.oid = b.oid and t.typtype <> 'd'
join pg_namespace bn on bn.oid = t.typnamespace
order by b.attrelid, b.attnum
"""

# Indexes of partitions count too, where they are not merely a part of the root's.
UNIQUES = """
select w.oid::int8, i.indrelid = w.oid and i.indimmediate and i.indisvalid and i.indisready
                    and i.indpred is null and i.indexprs is null and not i.indisexclusion,
       i.indpred is not null or i.indexprs is not null or i.indisexclusion,
       array(select a.attname
             from unnest(i.indkey::int2[]) with ordinality as k (number, place)
             join pg_attribute a on a.attrelid = i.indrelid and a.attnum = k.number
             where k.place <= i.indnkeyatts)
from unnest(%(oids)s::oid[]) as w (oid)
cross join lateral (select w.oid union select p.relid from pg_partition_tree(w.oid) p) as part (oid)
join pg_index i on i.indrelid = part.oid
join pg_class c on c.oid = i.indexrelid
where (i.indisunique or i.indisexclusion) and (part.oid = w.oid or not c.relispartition)
"""

BINARY: Mapping[Kind, frozenset[int]] = {
    Kind.BOOL: frozenset({16}),
    Kind.INT16: frozenset({21}),
    Kind.INT32: frozenset({23}),
    Kind.INT64: frozenset({20}),
    Kind.FLOAT32: frozenset({700}),
    Kind.FLOAT64: frozenset({701}),
    Kind.DATE: frozenset({1082}),
    Kind.TIME: frozenset({1083}),
    Kind.TIMESTAMP: frozenset({1114}),
    Kind.TIMESTAMPTZ: frozenset({1184}),
    Kind.BYTES: frozenset({17}),
    Kind.TEXT: frozenset({19, 25, 114, 1042, 1043}),
    Kind.JSONB: frozenset({3802}),
    Kind.UUID: frozenset({2950}),
    Kind.NUMERIC: frozenset({1700}),
}
"""Types whose binary form is the one that the transcoder writes for a kind; enumerations go with TEXT."""

WIDER: Mapping[int, frozenset[int]] = {
    21: frozenset({23, 20, 1700}),
    23: frozenset({20, 1700}),
    20: frozenset({1700}),
    700: frozenset({701}),
    1043: frozenset({25}),
    25: frozenset({1043}),
    114: frozenset({25, 3802}),
    2950: frozenset({25}),
    1082: frozenset({1114}),
}
"""Types that hold every value of another and take its text; the length of the second is looked at as well."""

NUMERIC, VARCHAR, CHAR, TEXT = 1700, 1043, 1042, 25
FIRST_USER_OID = 16_384


class TargetColumn(NamedTuple):
    """A column as it is on the target; `base` is its type, or what its domain rests on."""

    name: str
    type_oid: int
    typmod: int
    written: str
    base: int
    base_typmod: int
    typtype: str
    base_schema: str
    base_name: str
    identity: str
    generated: str
    not_null: bool
    has_default: bool
    equality_schema: str | None

    @property
    def cast(self) -> str:
        """The type without its modifier, by which a cast would cut values silently."""
        return quote(self.base_schema, self.base_name)

    def equal(self, one: str, other: str) -> str:
        """Return the condition that two values of the column are the same to its type; an index can serve it."""
        if self.type_oid != self.base:
            # Domains over enumerations have no equality of their own.
            one, other = f"{one}::{self.cast}", f"{other}::{self.cast}"
        if self.equality_schema in (None, "pg_catalog"):
            return f"{one} = {other}"
        return f"{one} operator({quote(self.equality_schema)}.=) {other}"


@dataclass(frozen=True, slots=True)
class Shape:
    """A table of the target, as far as it matters to writing rows."""

    oid: int
    relkind: str
    columns: Mapping[str, TargetColumn]
    uniques: tuple[frozenset[str], ...]  # of plain, immediate unique indexes: what `on conflict` can name
    others: tuple[frozenset[str], ...]  # of everything else that may collide; empty: expressions
    triggers: bool
    cascades: bool  # something else changes when rows of this table do
    references: frozenset[int]
    referenced: frozenset[int]

    @property
    def only(self) -> str:
        """What keeps a statement off the tables that inherit from this one; a partitioned one has rows only below."""
        return "only " if self.relkind == "r" else ""

    def may_collide(self, key: frozenset[str]) -> bool:
        """Whether a constraint over other columns than the key may refuse a row. One whose columns hold the whole
        key can't, if the key itself is unique."""
        covered = any(unique <= key for unique in self.uniques)
        return any(not (covered and key <= unique) for unique in (*self.uniques, *self.others) if unique != key)

    def takes_binary(self, table: Table) -> bool:
        """Whether the columns of the table can be written in binary form."""
        return all(
            (found := self.columns[column.name]).base in BINARY.get(column.kind, ())
            or (column.kind is Kind.TEXT and found.typtype == "e")
            for column in table.columns
        )


def shapes_of(connection: psycopg.Connection, tables: Collection[TableId]) -> dict[TableId, Shape]:
    """Return what tables are like, in as many queries for all as for one; those that there are not are left out."""
    asked = list(tables)
    with connection.cursor(row_factory=tuple_row) as cursor:
        names = {"schemas": [table.schema for table in asked], "names": [table.name for table in asked]}
        relations = cursor.execute(RELATIONS, names).fetchall()
        if not relations:
            return {}
        oids = {"oids": [oid for _, oid, _, _ in relations]}
        columns: dict[int, dict[str, TargetColumn]] = defaultdict(dict)
        for oid, *column in cursor.execute(COLUMNS, oids):
            found = TargetColumn(*column)
            columns[oid][found.name] = found
        uniques: dict[int, list[frozenset[str]]] = defaultdict(list)
        others: dict[int, list[frozenset[str]]] = defaultdict(list)
        for oid, plain, conditional, of in cursor.execute(UNIQUES, oids):
            if plain:
                uniques[oid].append(frozenset(of))
            else:
                others[oid].append(frozenset() if conditional else frozenset(of))
        references: dict[int, set[int]] = defaultdict(set)
        referenced: dict[int, set[int]] = defaultdict(set)
        cascades: set[int] = set()
        for child, parent, acts in cursor.execute(FOREIGN_KEYS, oids):
            references[child].add(parent)
            referenced[parent].add(child)
            if acts:
                cascades.add(parent)
    return {
        asked[place - 1]: Shape(
            oid,
            relkind,
            columns[oid],
            tuple(uniques[oid]),
            tuple(others[oid]),
            triggers,
            oid in cascades,
            frozenset(references[oid]) - {oid},
            frozenset(referenced[oid]) - {oid},
        )
        for place, oid, relkind, triggers in relations
    }


def misfits(shape: Shape, table: Table) -> list[str]:
    """Return why rows of the table could not be written there, or not as they are."""
    if shape.relkind not in {"r", "p"}:
        return ["it is no table that rows can be written to"]
    found: list[str] = []
    for column in table.columns:
        target = shape.columns.get(column.name)
        if target is None:
            found.append(f"column {column.name} is missing")
        elif target.generated:
            found.append(f"column {column.name} is generated")
        elif not _fits(column, target):
            found.append(f"column {column.name} is {target.written}, which does not hold every {column.source_type}")
    carried = {column.name for column in table.columns}
    found += [
        f"column {column.name} is not null, and the source has none of that name"
        for column in shape.columns.values()
        if column.name not in carried
        and column.not_null
        and not (column.has_default or column.identity or column.generated)
    ]
    return found


def require(shape: Shape | None, table: Table) -> Shape:
    """Return the shape, or raise `SchemaUnsupported` if there is no such table or rows would not fit."""
    if shape is None:
        raise SchemaUnsupported(
            f"the target has no table {table.name}", remedy="create it, or set prepare: create for the target"
        )
    if problems := misfits(shape, table):
        raise SchemaUnsupported(
            f"the target's table {table.name} does not fit: {'; '.join(problems)}",
            remedy="alter the table, or set prepare: drop-and-create",
        )
    return shape


def _fits(column: Column, target: TargetColumn) -> bool:
    """Whether every value of the source's column is one of the target's. COPY cuts and rounds without a word."""
    if column.source_type == target.written:
        return True
    if column.type_oid == 0 or column.type_oid >= FIRST_USER_OID:
        # An engine's own or a user's type: by name, or as the text that it is carried as.
        return target.base == TEXT and column.kind in {Kind.TEXT, Kind.OTHER}
    if target.base == TEXT:
        return column.kind in {Kind.TEXT, Kind.OTHER, Kind.UUID, Kind.JSONB}
    if column.type_oid == target.base:
        return _holds(column.type_oid, column.type_modifier, target.base_typmod)
    if target.base not in WIDER.get(column.type_oid, ()):
        return False
    return target.base_typmod == -1 or (
        target.base == VARCHAR and column.type_oid == CHAR and column.type_modifier <= target.base_typmod
    )


def _holds(oid: int, source: int, target: int) -> bool:
    """Whether a type with the target's modifier holds what it holds with the source's."""
    if target in (-1, source):
        return True
    if source == -1:
        return False
    if oid == NUMERIC:
        whole, scale = _numeric(source)
        target_whole, target_scale = _numeric(target)
        return target_whole >= whole and target_scale >= scale
    if oid in {VARCHAR, 1083, 1114, 1184, 1266}:
        return target >= source
    return False


def _numeric(typmod: int) -> tuple[int, int]:
    """Return the digits before and behind the point; the scale is 11 bits, with sign, since PostgreSQL 15."""
    precision, scale = (typmod - 4) >> 16 & 0xFFFF, ((typmod - 4) & 0x7FF ^ 1024) - 1024
    return precision - scale, scale
