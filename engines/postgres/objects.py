"""What tables rest on: schemas, extensions, collations, types, sequences."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import psycopg

from engines.postgres.asking import ask, one_moment
from engines.postgres.quoting import literal, quote
from schemas.errors import SchemaUnsupported
from schemas.table import Objects, Table, TableId
from schemas.table import Sequence as SequenceObject

ANOTHER_TYPE = "use another type, or leave the table out of the pipeline: tables: ['!schema.table']"

ASKED_AT_ONCE = 100  # tables, if they rest on nothing

EXTENSION = "e.extname || case when en.nspname <> 'pg_catalog' then ' schema ' || en.nspname else '' end"
"""An extension with the schema that its objects are in: they are called by it."""

RELATION_OIDS = """
select c.oid::int8
  from unnest(%(schemas)s::text[], %(names)s::text[]) as wanted(schema, name)
  join pg_namespace n on n.nspname = wanted.schema
  join pg_class c on c.relnamespace = n.oid and c.relname = wanted.name
"""

COLUMN_TYPES = """
select distinct a.atttypid::int8
  from pg_attribute a
 where a.attrelid = any (%(oids)s::oid[]) and a.attnum > 0 and not a.attisdropped
"""

COLUMNS_OF_TYPES = """
select n.nspname, c.relname, a.attname, a.atttypid::int8
  from pg_attribute a
  join pg_class c on c.oid = a.attrelid
  join pg_namespace n on n.oid = c.relnamespace
 where a.attrelid = any (%(oids)s::oid[]) and a.atttypid = any (%(types)s::oid[]) and not a.attisdropped
 order by n.nspname, c.relname, a.attnum
"""

TYPES = """
select t.oid::int8, n.nspname, t.typname, t.typtype::text,
       n.nspname = 'pg_catalog' or n.nspname = 'information_schema',
       (select {extension}
          from pg_depend d
          join pg_extension e on e.oid = d.refobjid
          join pg_namespace en on en.oid = e.extnamespace
         where d.classid = 'pg_type'::regclass and d.objid = t.oid and d.deptype = 'e'
           and d.refclassid = 'pg_extension'::regclass),
       t.typelem::int8, t.typlen = -1 and t.typelem <> 0,
       t.typbasetype::int8, format_type(t.typbasetype, t.typtypmod), t.typnotnull, t.typdefault,
       c.relkind::text, c.oid::int8,
       case when t.typcollation <> 0 and t.typtype = 'd'
             and t.typcollation <> (select b.typcollation from pg_type b where b.oid = t.typbasetype)
            then cn.nspname end,
       co.collname
  from pg_type t
  join pg_namespace n on n.oid = t.typnamespace
  left join pg_class c on c.oid = t.typrelid
  left join pg_collation co on co.oid = t.typcollation
  left join pg_namespace cn on cn.oid = co.collnamespace
 where t.oid = any (%(oids)s::oid[])
 order by n.nspname, t.typname
"""

ENUM_LABELS = """
select e.enumtypid::int8, e.enumlabel
  from pg_enum e
 where e.enumtypid = any (%(oids)s::oid[])
 order by e.enumtypid, e.enumsortorder
"""

DOMAIN_CHECKS = """
select c.contypid::int8, c.conname, pg_get_constraintdef(c.oid)
  from pg_constraint c
 where c.contypid = any (%(oids)s::oid[]) and c.contype = 'c' and c.convalidated
 order by c.contypid, c.conname
"""
"""A check that is not validated is left out: rows of the source may break it, and `create domain` can't say so."""

ATTRIBUTES = """
select t.oid::int8, a.attname, a.atttypid::int8, format_type(a.atttypid, a.atttypmod),
       case when a.attcollation <> at.typcollation then cn.nspname end, co.collname
  from pg_type t
  join pg_attribute a on a.attrelid = t.typrelid
  join pg_type at on at.oid = a.atttypid
  left join pg_collation co on co.oid = a.attcollation
  left join pg_namespace cn on cn.oid = co.collnamespace
 where t.oid = any (%(oids)s::oid[]) and a.attnum > 0 and not a.attisdropped
 order by t.oid, a.attnum
"""

RANGES = """
select r.rngtypid::int8, {multirange}, r.rngsubtype::int8, format_type(r.rngsubtype, null),
       ocn.nspname, oc.opcname,
       case when r.rngcollation <> st.typcollation then cn.nspname end, co.collname,
       case when r.rngsubdiff <> 0 then pn.nspname end, p.proname
  from pg_range r
  join pg_type st on st.oid = r.rngsubtype
  join pg_opclass oc on oc.oid = r.rngsubopc
  join pg_namespace ocn on ocn.oid = oc.opcnamespace
  left join pg_collation co on co.oid = r.rngcollation
  left join pg_namespace cn on cn.oid = co.collnamespace
  left join pg_proc p on p.oid = r.rngsubdiff
  left join pg_namespace pn on pn.oid = p.pronamespace
  {multirange_join}
 where r.rngtypid = any (%(oids)s::oid[]) or {multirange_oid} = any (%(oids)s::oid[])
"""

EXTENSIONS = """
select distinct {extension}
  from pg_depend d
  join pg_depend m
    on m.classid = d.refclassid and m.objid = d.refobjid and m.deptype = 'e'
   and m.refclassid = 'pg_extension'::regclass
  join pg_extension e on e.oid = m.refobjid
  join pg_namespace en on en.oid = e.extnamespace
 where (d.classid = 'pg_class'::regclass
        and (d.objid = any (%(oids)s::oid[])
             or d.objid in (select i.indexrelid from pg_index i where i.indrelid = any (%(oids)s::oid[]))))
    or (d.classid = 'pg_attrdef'::regclass
        and d.objid in (select a.oid from pg_attrdef a where a.adrelid = any (%(oids)s::oid[])))
    or (d.classid = 'pg_constraint'::regclass
        and d.objid in (select c.oid from pg_constraint c where c.conrelid = any (%(oids)s::oid[])))
 order by 1
"""
"""Extensions whose functions, types or operator classes columns, defaults, checks and indexes name."""

COLLATIONS = """
select distinct n.nspname, co.collname, to_jsonb(co)
  from pg_depend d
  join pg_collation co on co.oid = d.refobjid
  join pg_namespace n on n.oid = co.collnamespace
 where d.refclassid = 'pg_collation'::regclass and n.nspname <> 'pg_catalog'
   and not exists (select from pg_depend e
                    where e.classid = 'pg_collation'::regclass and e.objid = co.oid and e.deptype = 'e')
   and ((d.classid = 'pg_type'::regclass and d.objid = any (%(types)s::oid[]))
        or (d.classid = 'pg_class'::regclass
            and (d.objid = any (%(oids)s::oid[])
                 or d.objid in (select t.typrelid from pg_type t where t.oid = any (%(types)s::oid[]))
                 or d.objid in (select i.indexrelid from pg_index i where i.indrelid = any (%(oids)s::oid[]))))
        or (d.classid = 'pg_attrdef'::regclass
            and d.objid in (select a.oid from pg_attrdef a where a.adrelid = any (%(oids)s::oid[])))
        or (d.classid = 'pg_constraint'::regclass
            and d.objid in (select c.oid from pg_constraint c
                             where c.conrelid = any (%(oids)s::oid[]) or c.contypid = any (%(types)s::oid[]))))
 order by n.nspname, co.collname
"""
"""Collations that users have made. Their attributes have other names in almost every version, hence the JSON."""

PROVIDERS = {"c": "libc", "i": "icu", "b": "builtin"}

SEQUENCES = """
select s.seqrelid::int8, n.nspname, c.relname, format_type(s.seqtypid, null),
       s.seqincrement, s.seqmin, s.seqmax, s.seqstart, s.seqcache, s.seqcycle
  from pg_sequence s
  join pg_class c on c.oid = s.seqrelid
  join pg_namespace n on n.oid = c.relnamespace
 where s.seqrelid in (
        select d.objid
          from pg_depend d
         where d.classid = 'pg_class'::regclass and d.refclassid = 'pg_class'::regclass
           and d.refobjid = any (%(oids)s::oid[]) and d.deptype in ('a', 'i')
        union
        select d.refobjid
          from pg_depend d
          join pg_attrdef a on a.oid = d.objid
         where d.classid = 'pg_attrdef'::regclass and d.refclassid = 'pg_class'::regclass
           and a.adrelid = any (%(oids)s::oid[]))
 order by n.nspname, c.relname
"""
"""Sequences that columns own (serial, identity) or that defaults take their values from."""

AT_ONCE = 500  # sequences whose values are asked in one statement


class _Type(NamedTuple):
    """A row of `TYPES`."""

    oid: int
    schema: str
    name: str
    typtype: str
    built_in: bool
    extension: str | None
    element: int
    is_array: bool
    base: int
    base_written: str
    not_null: bool
    default: str | None
    relkind: str | None
    relation: int | None
    collation_schema: str | None
    collation: str | None


def objects(conn: psycopg.Connection, tables: Iterable[Table]) -> Objects:
    """Return what must be there before the tables, each thing after what it rests on.

    An extension is `citext`, or `citext schema public`. Identity columns' sequences are among the sequences,
    though `create table` makes them. Functions are not carried. Raise `SchemaUnsupported` for a type that no
    statement can make on another server.
    """
    chosen = list(tables)
    with one_moment(conn):
        oids = _oids(conn, chosen)
        types = _types(conn, [oid for (oid,) in ask(conn, COLUMN_TYPES, oids=oids)])
        if types.unmakeable:
            refused = _refused(conn, chosen, oids, types)
            raise SchemaUnsupported("; ".join(f"{id}: {why}" for id, why in refused.items()), remedy=ANOTHER_TYPE)
        extensions = types.extensions
        extensions |= {name for (name,) in ask(conn, EXTENSIONS.replace("{extension}", EXTENSION), oids=oids)}
        collations = [
            (TableId(schema, name), _collation(TableId(schema, name), details))
            for schema, name, details in ask(conn, COLLATIONS, oids=oids, types=types.oids)
        ]
        sequences = [
            SequenceObject(id=TableId(schema, name), definition=_sequence(*details))
            for _, schema, name, *details in ask(conn, SEQUENCES, oids=oids)
        ]
    schemas = _own_schemas(chosen)
    schemas |= {id.schema for id, _ in [*types.made, *collations]} | {sequence.id.schema for sequence in sequences}
    return Objects(
        schemas=tuple(sorted(schemas)),
        extensions=tuple(sorted(extensions)),
        collations=tuple(collations),
        types=tuple(types.made),
        labels=tuple(types.labels),
        sequences=tuple(sequences),
    )


def refused(conn: psycopg.Connection, tables: Iterable[Table]) -> dict[TableId, str]:
    """Return the tables for which `objects` raises, and what is the matter with each."""
    chosen = list(tables)
    with one_moment(conn):
        oids = _oids(conn, chosen)
        types = _types(conn, [oid for (oid,) in ask(conn, COLUMN_TYPES, oids=oids)])
        return _refused(conn, chosen, oids, types) if types.unmakeable else {}


def _refused(
    conn: psycopg.Connection, tables: Iterable[Table], oids: Sequence[int], types: _Types
) -> dict[TableId, str]:
    found: dict[TableId, list[str]] = {}
    for schema, name, column, oid in ask(conn, COLUMNS_OF_TYPES, oids=oids, types=list(types.unmakeable)):
        why = f"column {column}: type {types.unmakeable[oid]} is written in C and belongs to no extension"
        found.setdefault(TableId(schema, name), []).append(why)
    return {table.id: "; ".join(found[table.name]) for table in tables if table.name in found}


def objects_of_each(conn: psycopg.Connection, tables: Iterable[Table]) -> dict[TableId, Objects]:
    """Return the `objects` of each table alone, by the table's id.

    Most tables rest on nothing but their schemas, and are asked for many at once.
    """
    chosen, found = list(tables), dict[TableId, Objects]()
    for first in range(0, len(chosen), ASKED_AT_ONCE):
        some = chosen[first : first + ASKED_AT_ONCE]
        together = objects(conn, some)
        if together == Objects(schemas=together.schemas):
            found |= {table.id: Objects(schemas=tuple(sorted(_own_schemas([table])))) for table in some}
        else:
            found |= {table.id: objects(conn, [table]) for table in some}
    return found


def _own_schemas(tables: Iterable[Table]) -> set[str]:
    return {id.schema for table in tables for id in (table.name, *(part.id for part in table.definition.partitions))}


def sequence_values(conn: psycopg.Connection, tables: Iterable[Table]) -> list[tuple[TableId, int, bool]]:
    """Return name, last value and "was called" of every sequence of the tables, as `setval()` takes them."""
    found = [TableId(schema, name) for _, schema, name, *_ in ask(conn, SEQUENCES, oids=_oids(conn, list(tables)))]
    values: list[tuple[TableId, int, bool]] = []
    for start in range(0, len(found), AT_ONCE):
        some = found[start : start + AT_ONCE]
        # A sequence is a relation of its own: there is no view that tells "is_called" before 18.
        parts = [
            f"select {place}, last_value, is_called from {quote(id.schema, id.name)}" for place, id in enumerate(some)
        ]
        values += [(some[place], last, called) for place, last, called in ask(conn, " union all ".join(parts))]
    return values


def _oids(conn: psycopg.Connection, tables: Sequence[Table]) -> list[int]:
    """Return the oids of the tables by name: a partitioned root is no leaf, and so has none in `Table`."""
    schemas, names = [t.name.schema for t in tables], [t.name.name for t in tables]
    return [oid for (oid,) in ask(conn, RELATION_OIDS, schemas=schemas, names=names)]


def _sequence(written: str, increment: int, least: int, most: int, start: int, cache: int, cycle: bool) -> str:
    return (
        f"as {written} increment by {increment} minvalue {least} maxvalue {most}"
        f" start with {start} cache {cache}{' cycle' if cycle else ' no cycle'}"
    )


def _collation(id: TableId, details: Mapping[str, Any]) -> str:
    provider = PROVIDERS[details["collprovider"]]
    # ICU's locale was in `collcollate` up to 14, `colliculocale` up to 16, and is in `colllocale` since 17.
    locale = details.get("colllocale") or details.get("colliculocale")
    options = [f"provider = {provider}"]
    if locale is None and details["collcollate"] != details["collctype"]:
        options += [f"lc_collate = {literal(details['collcollate'])}", f"lc_ctype = {literal(details['collctype'])}"]
    else:
        options.append(f"locale = {literal(locale or details['collcollate'])}")
    if not details["collisdeterministic"]:
        options.append("deterministic = false")
    if rules := details.get("collicurules"):
        options.append(f"rules = {literal(rules)}")
    return f"create collation {quote(*id)} ({', '.join(options)})"


class _Types(NamedTuple):
    """The types that columns have, and what those rest on."""

    oids: list[int]  # of all of them
    made: list[tuple[TableId, str]]  # statements, in order of dependence
    labels: list[tuple[TableId, tuple[str, ...]]]  # of the enumerations that are made
    extensions: set[str]  # that bring the others
    unmakeable: dict[int, TableId]  # those that no statement makes, and what is written in C that they rest on


def _types(conn: psycopg.Connection, wanted: list[int]) -> _Types:
    found: dict[int, _Type] = {}
    needs: dict[int, list[int]] = {}
    statements: dict[int, str] = {}
    labels: dict[int, list[str]] = {}
    extensions: set[str] = set()
    aliases: dict[int, int] = {}  # a multirange comes with its range
    unmakeable: dict[int, TableId] = {}
    while wanted:
        step = {row[0]: _Type(*row) for row in ask(conn, TYPES.replace("{extension}", EXTENSION), oids=wanted)}
        found |= step
        ours = [t for t in step.values() if not t.built_in and not t.extension]
        extensions |= {t.extension for t in step.values() if t.extension}
        _describe_enums(conn, [t for t in ours if t.typtype == "e"], statements, labels)
        _describe_domains(conn, [t for t in ours if t.typtype == "d"], statements, needs)
        _describe_composites(conn, [t for t in ours if t.typtype == "c"], statements, needs)
        _describe_ranges(conn, [t for t in ours if t.typtype in {"r", "m"}], statements, needs, aliases)
        for t in ours:
            if t.is_array:
                needs[t.oid] = [t.element]
            elif t.typtype in {"b", "p"}:
                unmakeable[t.oid] = TableId(t.schema, t.name)
        wanted = list({need for t in ours for need in needs.get(t.oid, ()) if need and need not in found})
    while above := {
        oid: unmakeable[need]
        for oid, of in needs.items()
        for need in of
        if need in unmakeable and oid not in unmakeable
    }:
        unmakeable |= above
    ordered: dict[int, None] = {}

    def put(oid: int, below: frozenset[int]) -> None:
        if oid in ordered or oid in below or oid not in found:
            return
        for need in needs.get(oid, ()):
            put(need, below | {oid})
        ordered[oid] = None

    for oid in sorted(found, key=lambda oid: (found[oid].schema, found[oid].name)):
        put(aliases.get(oid, oid), frozenset())
    made = {oid: TableId(found[oid].schema, found[oid].name) for oid in ordered if oid in statements}
    return _Types(
        list(found),
        [(id, statements[oid]) for oid, id in made.items()],
        [(id, tuple(labels[oid])) for oid, id in made.items() if oid in labels],
        extensions,
        unmakeable,
    )


def _describe_enums(
    conn: psycopg.Connection, types: list[_Type], statements: dict[int, str], labels: dict[int, list[str]]
) -> None:
    labels |= {t.oid: [] for t in types}
    for oid, label in ask(conn, ENUM_LABELS, oids=[t.oid for t in types]):
        labels[oid].append(label)
    for t in types:
        written = ", ".join(map(literal, labels[t.oid]))
        statements[t.oid] = f"create type {quote(t.schema, t.name)} as enum ({written})"


def _describe_domains(
    conn: psycopg.Connection, types: list[_Type], statements: dict[int, str], needs: dict[int, list[int]]
) -> None:
    checks: dict[int, str] = {t.oid: "" for t in types}
    for oid, name, definition in ask(conn, DOMAIN_CHECKS, oids=list(checks)):
        checks[oid] += f" constraint {quote(name)} {definition}"
    for t in types:
        needs[t.oid] = [t.base]
        statements[t.oid] = (
            f"create domain {quote(t.schema, t.name)} as {t.base_written}"
            + _collate(t.collation_schema, t.collation)
            + (f" default {t.default}" if t.default is not None else "")
            + (" not null" if t.not_null else "")
            + checks[t.oid]
        )


def _describe_composites(
    conn: psycopg.Connection, types: list[_Type], statements: dict[int, str], needs: dict[int, list[int]]
) -> None:
    # The row type of a table comes with the table.
    standalone = {t.oid: t for t in types if t.relkind == "c"}
    attributes: dict[int, list[str]] = {oid: [] for oid in standalone}
    for oid, name, type_oid, written, collation_schema, collation in ask(conn, ATTRIBUTES, oids=list(standalone)):
        attributes[oid].append(f"{quote(name)} {written}{_collate(collation_schema, collation)}")
        needs.setdefault(oid, []).append(type_oid)
    for oid, t in standalone.items():
        statements[oid] = f"create type {quote(t.schema, t.name)} as ({', '.join(attributes[oid])})"


def _describe_ranges(
    conn: psycopg.Connection,
    types: list[_Type],
    statements: dict[int, str],
    needs: dict[int, list[int]],
    aliases: dict[int, int],
) -> None:
    if not types:
        return
    multiranges = conn.info.server_version >= 140_000
    query = (
        RANGES.replace("{multirange_join}", "left join pg_type mt on mt.oid = r.rngmultitypid" if multiranges else "")
        .replace("{multirange_oid}", "r.rngmultitypid" if multiranges else "0")
        .replace("{multirange}", "mt.typname" if multiranges else "null")
    )
    by_oid = {t.oid: t for t in types}
    for oid, multirange, subtype, written, *details in ask(conn, query, oids=list(by_oid)):
        opclass_schema, opclass, collation_schema, collation, diff_schema, diff = details
        if oid not in by_oid:  # only its multirange is used: have the range asked for too
            for t in types:
                if t.typtype == "m" and t.name == multirange:
                    needs[t.oid] = [oid]
                    aliases[t.oid] = oid
            continue
        needs[oid] = [subtype]
        t = by_oid[oid]
        options = [f"subtype = {written}", f"subtype_opclass = {quote(opclass_schema, opclass)}"]
        if collation_schema:
            options.append(f"collation = {quote(collation_schema, collation)}")
        if diff_schema == "pg_catalog":
            options.append(f"subtype_diff = {quote(diff_schema, diff)}")
        if multirange:
            options.append(f"multirange_type_name = {quote(t.schema, multirange)}")
        statements[oid] = f"create type {quote(t.schema, t.name)} as range ({', '.join(options)})"


def _collate(schema: str | None, collation: str | None) -> str:
    return f" collate {quote(schema, collation)}" if schema and collation else ""


def by_id(sequences: Iterable[SequenceObject]) -> Mapping[TableId, SequenceObject]:
    """Return sequences by name."""
    return {sequence.id: sequence for sequence in sequences}
