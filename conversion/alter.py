"""Statements that bring a table of a PostgreSQL target from one version to the next, without its rows being read again.

What the source did is told by the difference of two versions, not by what somebody has typed: columns are known by
the source's own numbers, so that a rename is no drop. What the rows that are there have become by it must follow from
the difference alone; where it does not, `SchemaUnsupported` says why, and the table has to be loaded anew.

Of indexes and constraints only the key is made when the source gets it, as rows are told apart by it. What might refuse
the source's rows goes when the source has it no more.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from conversion.ddl import (
    column_definition,
    if_there,
    key_constraint,
    objects_statements,
    partition_statement,
    partitions_of,
)
from engines.postgres.connect import NEWEST
from engines.postgres.quoting import literal, quote
from schemas.errors import RELOAD, SchemaUnsupported
from schemas.table import Column, ColumnDetails, Constraint, Objects, Partitioned, Since, Table, TableId
from schemas.types import Kind

# By a modifier alone, or between these, a value becomes the same on every server, whatever its settings are.
_WHOLE = (Kind.INT16, Kind.INT32, Kind.INT64, Kind.NUMERIC)
_CASTS = frozenset(
    [(a, b) for a in _WHOLE for b in _WHOLE]
    + [(a, b) for a in (*_WHOLE, Kind.UUID, Kind.TEXT) for b in (Kind.TEXT,)]
    + [(Kind.FLOAT32, Kind.FLOAT64), (Kind.DATE, Kind.TIMESTAMP), (Kind.TEXT, Kind.JSONB), (Kind.JSONB, Kind.TEXT)]
    + [(kind, kind) for kind in Kind]
)


def additions(table: Table, *, version: int = NEWEST) -> list[str]:
    """Return what makes what a version of a table rests on, as far as it is not there. It changes nothing that is, so
    it may be made at any time before rows need it; new labels of an enumeration must be, in a transaction before."""
    return objects_statements(table.objects or Objects(), [table], version=version)


def new_labels(type: TableId, labels: Sequence[str], there: Sequence[str]) -> list[str]:
    """Return what adds to an enumeration the labels that it lacks, each behind the one that it follows."""
    known, statements = set(there), []
    for place, label in enumerate(labels):
        if label in known:
            continue
        where = f"after {literal(labels[place - 1])}" if place else f"before {literal(there[0])}" if there else ""
        statements.append(f"alter type {quote(*type)} add value if not exists {literal(label)} {where}".rstrip())
    return statements


def renamed_labels(old: Objects, new: Objects) -> list[str]:
    """Return what gives labels of enumerations their new names: as many as before, at the same places."""
    before = dict(old.labels)
    return [
        f"alter type {quote(*type)} rename value {literal(was)} to {literal(label)}"
        for type, labels in new.labels
        if len(before.get(type, ())) == len(labels)
        for was, label in zip(before[type], labels, strict=True)
        if was != label and was not in labels and label not in before[type]
    ]


def require_told(table: Table) -> None:
    """Raise `SchemaUnsupported` if rows have become others where this version begins, of which nothing is told."""
    if table.since is not None and table.since.refused:
        raise SchemaUnsupported(f"{table.id}: {table.since.refused}", remedy=RELOAD.format(table=table.id))


def alter_table(old: Table, new: Table, *, made: bool, empty: bool = False, version: int = NEWEST) -> list[str]:
    """Return what makes of a table as `old` one as `new`, in this order, in one transaction. Of one that is not `made`
    by us the key, and what holds its rows, are not ours to change.

    Raises `SchemaUnsupported` where the target's rows would not be what the source's are, unless there are none.
    """
    since = new.since or Since()
    if not empty:
        require_told(new)
    if new.dropped:
        return [f"drop table if exists {quote(*old.name)}"]
    statements = [*_name(old.name, new.name)]
    if old.objects and new.objects:
        statements += renamed_labels(old.objects, new.objects)
    statements += _columns(old, new, since, version, empty)
    if made:
        statements += _key(old, new)
        statements += _partitions(old, new, since)
    return statements


def loosened(old: Table, new: Table) -> Table:
    """Return a table as `old`, but without what may refuse rows and is no more where the table is as `new`; the key, by
    which rows are told apart, stays. Its rows are the same, so it may be that before the order of the rows says so."""
    definition, key = old.definition, key_constraint(old)
    held = {old.columns[place].name for place in old.key}

    def stays(constraint: Constraint) -> bool:
        return constraint == key or any(_same(constraint, old, other, new) for other in new.definition.restrictions)

    primary = definition.primary_key
    if primary is not None and stays(primary):
        held.update(primary.columns)
    now = {column.number: column for column in new.definition.columns if column.number}

    def column(was: ColumnDetails) -> ColumnDetails:
        nullable = was.number in now and now[was.number].nullable and not was.identity and was.name not in held
        return was.model_copy(update={"nullable": was.nullable or nullable})

    unique = definition.restrictions
    looser = definition.model_copy(
        update={
            "columns": tuple(map(column, definition.columns)),
            "primary_key": primary if primary is not None and stays(primary) else None,
            "uniques": tuple(filter(stays, definition.uniques)),
            "checks": tuple(filter(stays, definition.checks)),
            "foreign_keys": tuple(filter(stays, definition.foreign_keys)),
            "indexes": tuple(index for index in definition.indexes if index not in unique or stays(index)),
        }
    )
    return old.model_copy(update={"definition": looser, "since": None})


def emptied_partitions(table: Table, *, made: bool) -> list[str]:
    """Return what empties the partitions that were emptied where this version begins."""
    emptied = table.since.emptied if table.since else ()
    if emptied and not made:
        raise SchemaUnsupported(
            f"a partition of {table.id} was truncated alone, and the target's table may have others",
            remedy=RELOAD.format(table=table.id),
        )
    return [f"truncate {quote(*partition)}" for partition in emptied]


def _name(old: TableId, new: TableId) -> list[str]:
    if old == new:
        return []
    statements = []
    if old.schema != new.schema:
        statements += [f"alter table {quote(*old)} set schema {quote(new.schema)}"]
    if old.name != new.name:
        statements += [f"alter table {quote(new.schema, old.name)} rename to {quote(new.name)}"]
    return statements


def _columns(old: Table, new: Table, since: Since, version: int, empty: bool) -> list[str]:
    table = f"alter table {quote(*new.name)}"
    before, after = _by_number(old), _by_number(new)
    known = {column.name: column for column in old.definition.columns}
    details = {column.name: column for column in new.definition.columns}
    # Of a column that is computed no more the rows keep what they have.
    kept = {
        column.number: column
        for column in old.definition.columns
        if column.generated and column.number in after and column.number not in before
    }
    names = {number: column.name for number, column in before.items()}
    names |= {number: column.name for number, column in kept.items()}
    computed = {(c.name, c.generated) for c in old.definition.columns if c.generated and c.number not in kept}
    wanted = {(c.name, c.generated) for c in new.definition.columns if c.generated}
    gone = sorted(name for name, _ in computed - wanted)
    gone += [column.name for number, column in before.items() if number not in after]
    statements = [f"{table} drop column {quote(name)}" for name in gone]
    statements += [f"{table} alter column {quote(names[number])} drop expression if exists" for number in kept]
    statements += _renames(table, {name: after[number].name for number, name in names.items() if number in after})
    for number, column in after.items():
        detail = details.get(column.name) or ColumnDetails(name=column.name, source_type=column.source_type)
        if number not in names:
            statements += _added(table, new, column, detail, since, version, empty)
            continue
        was, had = before.get(number), known.get(names[number])
        if was is not None and (was.source_type, was.kind) != (column.source_type, column.kind):
            if not empty:
                _require_cast(new, since, was, column)
            statements += _retyped(table, column, had, detail, empty)
        statements += _changed(table, column, had, detail)
    made = sorted(name for name, _ in wanted - computed)
    return statements + [f"{table} add column {column_definition(details[name], {}, version)}" for name in made]


def _by_number(table: Table) -> dict[int, Column]:
    found = {column.number: column for column in table.columns}
    if len(found) != len(table.columns) or 0 in found:
        raise SchemaUnsupported(
            f"{table.id}: it can't be told which of its columns are new and which have another name",
            remedy=RELOAD.format(table=table.id),
        )
    return found


def _renames(table: str, names: dict[str, str]) -> list[str]:
    """Return what gives columns their new names, some of which others may have had."""
    moved = {old: new for old, new in names.items() if old != new}
    taken = set(moved)
    first, second = [], []
    for place, (old, new) in enumerate(moved.items()):
        if new in taken:
            between = f"penstock rename {place}"
            first.append(f"{table} rename column {quote(old)} to {quote(between)}")
            second.append(f"{table} rename column {quote(between)} to {quote(new)}")
        else:
            first.append(f"{table} rename column {quote(old)} to {quote(new)}")
    return first + second


def _retyped(table: str, column: Column, old: ColumnDetails | None, new: ColumnDetails, empty: bool) -> list[str]:
    """Give a column another type. Its default may have no cast to that, so it goes, and comes again."""
    name = quote(column.name)
    using = f" using null::{column.source_type}" if empty else ""
    collation = f" collate {new.collation}" if new.collation else ""
    changed = [f"{table} alter column {name} type {column.source_type}{collation}{using}"]
    if old is None or not old.default:
        return changed
    again = [f"{table} alter column {name} set default {new.default}"] if new.default else []
    return [f"{table} alter column {name} drop default", *changed, *again]


def _added(
    table: str, new: Table, column: Column, detail: ColumnDetails, since: Since, version: int, empty: bool
) -> list[str]:
    """Add a column so that the rows that are there show what the source's do, whatever its default gives today."""
    if not empty and (detail.identity or (detail.default and not detail.missing and since.rewritten)):
        raise SchemaUnsupported(
            f"{new.id}: column {column.name} was added, and what the rows that were there hold in it is not known",
            remedy=RELOAD.format(table=new.id),
        )
    plain = detail.model_copy(update={"default": detail.missing, "nullable": True})
    statements = [f"{table} add column {column_definition(plain, {}, version)}"]
    if detail.default != detail.missing:
        change = f"set default {detail.default}" if detail.default else "drop default"
        statements.append(f"{table} alter column {quote(column.name)} {change}")
    return statements + ([] if detail.nullable else [f"{table} alter column {quote(column.name)} set not null"])


def _changed(table: str, column: Column, old: ColumnDetails | None, new: ColumnDetails) -> Iterable[str]:
    """Yield what changes of a column besides its values. Defaults and the like matter to who writes to the target
    one day instead of to the source."""
    name = quote(column.name)
    if old is None:
        return
    if old.nullable != new.nullable:
        yield f"{table} alter column {name} {'drop' if new.nullable else 'set'} not null"
    if old.identity != new.identity:
        if old.identity:
            yield f"{table} alter column {name} drop identity if exists"
        if new.identity:
            yield f"{table} alter column {name} add generated {new.identity} as identity"
    if old.default != new.default:
        yield f"{table} alter column {name} {f'set default {new.default}' if new.default else 'drop default'}"


def _require_cast(table: Table, since: Since, old: Column, new: Column) -> None:
    """Raise unless the rows that are there have, by the column's new type, the values that the source's have."""
    if not since.rewritten and old.kind == new.kind:
        return  # the source has not touched its rows, so a value is what it was
    if since.recast and (old.kind, new.kind) in _CASTS:
        return
    raise SchemaUnsupported(
        f"{table.id}: column {new.name} was {old.source_type} and is {new.source_type} now; what the rows that were"
        " there have become by that is not told",
        remedy=RELOAD.format(table=table.id),
    )


def _key(old: Table, new: Table) -> list[str]:
    """Return what takes away the constraints that the source has no more, which might refuse its rows, and makes the
    key by which rows are told apart."""
    name = quote(*new.name)
    before, after = old.definition.restrictions, new.definition.restrictions
    statements = []
    key = key_constraint(new)
    for constraint in before:
        if any(_same(constraint, old, other, new) for other in after):
            continue
        if constraint.is_index:
            statements.append(f"drop index if exists {quote(new.name.schema, constraint.name)}")
        else:
            statements.append(f"alter table {name} drop constraint if exists {quote(constraint.name)}")
    if key is not None and not any(_same(other, old, key, new) for other in before):
        add = f"alter table {name} add constraint {quote(key.name)} {key.definition}"
        statements.append(key.definition if key.is_index else add)
    return statements


def _same(first: Constraint, of: Table, second: Constraint, of_second: Table) -> bool:
    """Whether two versions of a table have a constraint in common: by its definition, or by name, where only columns or
    tables in it have other names."""
    if first.definition == second.definition:
        return True
    return first.name == second.name and _numbers(first, of) == _numbers(second, of_second)


def _numbers(constraint: Constraint, table: Table) -> list[int]:
    numbers = {column.name: column.number for column in table.columns}
    return [numbers.get(name, 0) for name in constraint.columns]


def _partitions(old: Table, new: Table, since: Since) -> list[str]:
    """Return what lets the target's table have the partitions that the source's has. What goes makes room first, for
    others may have its place and its name by now."""
    before = {partition.oid: partition for partition in partitions_of(old)}
    after = {partition.oid: partition for partition in partitions_of(new)}
    names = {old.name: new.name} | {partition.id: after[oid].id for oid, partition in before.items() if oid in after}
    taken = {partition.id for partition in after.values()}

    def stays(partition: Partitioned) -> bool:
        now, parent = after.get(partition.oid), names.get(partition.parent, partition.parent)
        return now is not None and (parent, partition.bound) == (now.parent, now.bound)

    statements: list[str] = []
    gone = {oid: partition for oid, partition in before.items() if not stays(partition)}
    dropped = {p.id for oid, p in gone.items() if oid not in after and p.id not in since.detached}
    for oid, partition in gone.items():
        if partition.id in dropped:
            continue
        parent = new.name if partition.parent == old.name else partition.parent
        statements.append(f"alter table {quote(*parent)} detach partition {quote(*partition.id)}")
        if oid not in after and partition.id in taken:
            aside = f"{partition.id.name.encode()[:40].decode(errors='ignore')} detached {oid}"
            statements.append(f"alter table {quote(*partition.id)} rename to {quote(aside)}")
    roots = [p for p in gone.values() if p.id in dropped and p.parent not in dropped]
    statements += [f"drop table {quote(*partition.id)}" for partition in roots]
    renamed = {oid: (p.id, after[oid].id) for oid, p in before.items() if oid in after and p.id != after[oid].id}
    held = {was for was, _ in renamed.values()}
    between = {oid: TableId(was.schema, f"penstock rename {oid}") for oid, (was, now) in renamed.items() if now in held}
    for oid, (was, now) in renamed.items():
        statements += _name(was, between.get(oid, now))
    for oid, third in between.items():
        statements += _name(third, after[oid].id)
    return statements + [_attach(p) for oid, p in after.items() if oid not in before or oid in gone]


def _attach(partition: Partitioned) -> str:
    attach = f"alter table {quote(*partition.parent)} attach partition {quote(*partition.id)} {partition.bound}"
    return if_there(partition.id, attach, partition_statement(partition))
