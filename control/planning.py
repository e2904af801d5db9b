"""What a pipeline is going to do, told before it does anything: `penstock plan`."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import psycopg

from apply.groups import components
from apply.postgres.control import prepared_tables
from control.registrar import fate_of
from control.wiring import A_LOOK, exists, opened_log
from conversion.ddl import access, after_load, foreign_keys, in_order, objects_made
from conversion.loss import Loss, all_losses
from engines.postgres.catalogue import tables as tables_of
from engines.postgres.companions import for_choices
from engines.postgres.connect import NEWEST, connect, major
from engines.postgres.errors import translated
from engines.postgres.objects import ANOTHER_TYPE, refused
from schemas.errors import LogUnavailable, ReplicationError
from schemas.pipeline import Mode, Pipeline, Prepare, TargetSettings, matches
from schemas.table import Identity, Objects, Table, TableId
from schemas.types import Kind
from transport.topics import Topics
from transport.views import Choices, Tables, read_setup

BYTES_A_SECOND, ROWS_A_SECOND, TABLE_SECONDS = 60e6, 200e3, 0.02
INDEX_ROWS_A_SECOND = 500e3
"""What a machine of two cores does, disks included; a plan can only tell the order of magnitude."""

SIZES = "select oid::int8, pg_table_size(oid::oid) from unnest(%s::int8[]) as t(oid)"

COLUMNS = """
select n.nspname, c.relname, a.attname, format_type(a.atttypid, a.atttypmod)
from pg_class c
join pg_namespace n on n.oid = c.relnamespace
left join pg_attribute a on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
where c.relkind in ('r', 'p', 'f', 'v', 'm')
"""


@dataclass(frozen=True, slots=True)
class ColumnPlan:
    """What becomes of one column."""

    name: str
    source_type: str
    type: str  # on the target
    how: str  # empty: it is carried as it is


@dataclass(frozen=True, slots=True)
class TablePlan:
    """What becomes of one table on one target."""

    table: str
    action: str
    group: int  # its number on this target; tables of one group change together
    rows: int  # estimated
    bytes: int
    seconds: float
    changes: str  # by what its rows are told apart in the stream
    columns: tuple[ColumnPlan, ...]
    first: tuple[str, ...]  # constraints that are made with the table
    then: tuple[str, ...]  # statements after its load
    last: tuple[str, ...]  # and when all that they tie together is live; with it, to whom the table is given
    losses: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class TargetPlan:
    """What happens on one target, its tables in the order in which they are made."""

    name: str
    version: int  # 0: it can't be asked
    error: str
    rows: int
    bytes: int
    seconds: float
    objects: tuple[str, ...]  # statements before the tables, of which each is left out if its object is there
    losses: tuple[str, ...]  # that are no table's
    tables: tuple[TablePlan, ...]
    views: tuple[
        tuple[str, ...], ...
    ]  # what makes each, and gives it to others, when the tables that it reads are live


def plan_all(pipeline: Pipeline) -> list[TargetPlan]:
    """Return what is going to happen on each target; changes nothing anywhere.

    A target that can't be asked is planned as if it were empty, and of the newest version. Raises `ConfigInvalid` for a
    pattern that no table fits, and what the source raises.
    """
    url = pipeline.source.url.get_secret_value()
    with (
        translated("source", "reading the catalogue"),
        contextlib.closing(connect(url, role="reader", application="penstock plan")) as connection,
    ):
        every = tables_of(connection, lambda _: True)
        pipeline.require_matches(table.id for table in every)
        chosen = [table for table in every if pipeline.chooses(table.id)]
        without = refused(connection, chosen)
        carried = [table for table in chosen if table.id not in without]
        choices = {settings.tables for settings in pipeline.targets}
        rests_on = for_choices(connection, carried, pipeline.chooses, choices)
        oids = [leaf.oid for table in chosen for leaf in table.leaves]
        sizes: dict[int, int] = dict(connection.execute(SIZES, [oids]).fetchall())
    fates = _fates(pipeline, chosen)
    fates |= {id: f"stops the pipeline: {why} -> {ANOTHER_TYPE}" for id, why in without.items()}
    return [
        _target(pipeline, settings, chosen, rests_on.of_choice(settings.tables), sizes, fates)
        for settings in pipeline.targets
    ]


def _fates(pipeline: Pipeline, chosen: Sequence[Table]) -> dict[TableId, str]:
    """Return what becomes of tables that a pipeline which has begun does not have, or does not carry.

    A log that can't be asked is taken for one that is not there yet.
    """
    try:
        with opened_log(pipeline, patience=A_LOOK) as log, contextlib.ExitStack() as stack:
            topics = Topics(pipeline.pipeline)
            if not exists(log) or not topics.are_made(log):
                return {}
            reader = stack.enter_context(log.reader())
            if (setup := read_setup(reader, topics)) is None:
                return {}
            tables, choices = Tables(reader, topics), Choices()
            tables.refresh()
            choices.refresh(reader, topics)
            has = {tables.by_schema(n).id for n in choices.tables_of(setup)}
            had = {tables.by_schema(n).id for n in setup.tables} | choices.added
    except LogUnavailable:
        return {}
    fates = {}
    for table in chosen:
        if table.id in has:
            if (left_out := tables.left_out(table.id)) is not None:
                fates[table.id] = f"is left out: {left_out.cause} -> {left_out.remedy}"
        elif table.id in had or not matches(table.id, choices.patterns_of(setup)):
            fates[table.id] = "is not the pipeline's: `penstock reconfigure` takes it over"
        else:
            fates[table.id] = fate_of(pipeline, table)
    return fates


def _target(
    pipeline: Pipeline,
    settings: TargetSettings,
    chosen: Sequence[Table],
    objects: Objects,
    sizes: Mapping[int, int],
    fates: Mapping[TableId, str],
) -> TargetPlan:
    tables = in_order(table for table in chosen if matches(table.id, settings.tables))
    version, there, prepared, error = 0, dict[TableId, dict[str, str]](), set[TableId](), ""
    try:
        version, there = _look(settings)
        prepared = prepared_tables(settings, pipeline.pipeline)
    except ReplicationError as unreached:
        error = str(unreached)
    makes = settings.prepare in {Prepare.CREATE, Prepare.DROP_AND_CREATE}
    losses = all_losses(tables, objects, version or NEWEST) if makes else []
    group_of = {table: n for n, group in enumerate(components(tables)) for table in group}
    plans = tuple(
        _table(
            pipeline,
            settings,
            table,
            there.get(table.id),
            fates.get(table.id, ""),
            table.id in prepared,
            group_of,
            objects,
            losses,
            version,
            sizes,
        )
        for table in tables
    )
    return TargetPlan(
        settings.name,
        version,
        error,
        sum(plan.rows for plan in plans),
        sum(plan.bytes for plan in plans),
        sum(plan.seconds for plan in plans),
        tuple(made for made, _ in objects_made(objects, tables, version=version or NEWEST)) if makes else (),
        tuple(_told(loss) for loss in losses if loss.table is None),
        plans,
        tuple(_views(settings, objects, version or NEWEST)) if makes else (),
    )


def _views(settings: TargetSettings, objects: Objects, version: int) -> Iterator[tuple[str, ...]]:
    for view in objects.views if settings.views else ():
        given = access(view.id, objects, grants=settings.grants, owners=settings.owners, version=version)
        yield (*view.statements, *given)


def _look(settings: TargetSettings) -> tuple[int, dict[TableId, dict[str, str]]]:
    """Return a target's version, and the columns of its tables with their types."""
    url = settings.url.get_secret_value()
    with (
        translated("target", "looking what is there"),
        contextlib.closing(connect(url, role="control", application="penstock plan")) as connection,
    ):
        found: dict[TableId, dict[str, str]] = {}
        for schema, name, column, kind in _rows(connection):
            columns = found.setdefault(TableId(schema, name), {})
            if column is not None:
                columns[column] = kind
        return major(connection), found


def _rows(connection: psycopg.Connection) -> list[tuple[str, str, str | None, str]]:
    return connection.execute(COLUMNS).fetchall()


def _table(
    pipeline: Pipeline,
    settings: TargetSettings,
    table: Table,
    there: dict[str, str] | None,
    fate: str,
    prepared: bool,
    group_of: Mapping[TableId, int],
    objects: Objects,
    losses: Sequence[Loss],
    version: int,
    sizes: Mapping[int, int],
) -> TablePlan:
    makes = (there is None or settings.prepare is Prepare.DROP_AND_CREATE) and settings.prepare is not Prepare.KEEP
    definition, newest = table.definition, version or NEWEST
    loads = pipeline.mode is not Mode.CHANGES and not prepared
    rows = table.rows if loads else 0
    size = sum(sizes.get(leaf.oid, 0) for leaf in table.leaves) if loads else 0
    then = tuple(after_load(table, version=newest)) if makes else ()
    seconds = max(size / BYTES_A_SECOND, rows / ROWS_A_SECOND) + TABLE_SECONDS + len(then) * rows / INDEX_ROWS_A_SECOND
    keys = foreign_keys(table, group_of.keys(), version=newest) if makes else []
    given = access(table.id, objects, grants=settings.grants, owners=settings.owners, version=newest) if makes else []
    first = [c for c in (definition.primary_key, *definition.checks) if c is not None] if makes else []
    return TablePlan(
        str(table.id),
        fate or _action(settings.prepare, there is not None, prepared),
        group_of[table.id],
        rows,
        size,
        round(seconds, 2) if loads else 0.0,
        _identified(table),
        tuple(_columns(table, None if makes else there)),
        tuple(f"{constraint.name} {constraint.definition}" for constraint in first),
        then,
        (*keys, *given),
        tuple(_told(loss) for loss in losses if loss.table == table.id),
    )


def _action(prepare: Prepare, there: bool, prepared: bool) -> str:
    if prepared:
        return "goes on: it is loaded, or being loaded"
    match prepare:
        case Prepare.KEEP if not there:
            return "stops: the target has no such table, and prepare: keep makes none"
        case Prepare.CREATE if there:
            return "stops: the target has a table of this name (prepare: keep, truncate or drop-and-create)"
        case Prepare.DROP_AND_CREATE if there:
            return "is dropped, and made again"
        case Prepare.TRUNCATE if there:
            return "is emptied"
        case Prepare.KEEP:
            return "is filled as it is there"
    return "is made"


def _identified(table: Table) -> str:
    if table.identity is Identity.NOTHING:
        return "inserts and truncates only: it has no replica identity"
    if not table.key:
        return "by all columns: it has no key"
    return "by " + ", ".join(table.columns[place].name for place in table.key)


def _columns(table: Table, there: dict[str, str] | None) -> Iterator[ColumnPlan]:
    carried = {column.name: column for column in table.columns}
    names = [detail.name for detail in table.definition.columns] or list(carried)
    details = {detail.name: detail for detail in table.definition.columns}
    for name in names:
        detail, column = details.get(name), carried.get(name)
        source_type = detail.source_type if detail is not None else carried[name].source_type
        wanted = source_type if there is None else there.get(name, "")
        if column is None:
            how = "computed by the target"
        elif not wanted:
            how = "stops the table: the target's has no such column"
        elif wanted != source_type:
            how = "compared when it is prepared: only what fits without loss goes on"
        else:
            how = "carried as text" if column.kind is Kind.OTHER else ""
        yield ColumnPlan(name, source_type, wanted, how)


def _told(loss: Loss) -> str:
    return f"{loss.what}: {loss.consequence}" + (" (refused)" if loss.refused else "")


# ------------------------------------------------------------------------------------------------------- showing


def lines_of(plan: TargetPlan) -> Iterator[str]:
    """Yield a target's plan for people."""
    from control.amounts import bytes_text

    where = f"PostgreSQL {plan.version}" if plan.version else f"can't be asked, taken as empty: {plan.error}"
    yield f"target {plan.name} ({where}): {len(plan.tables)} tables, about {plan.rows:,} rows, {bytes_text(plan.bytes)}"
    yield f"  load: about {duration_text(plan.seconds)}, on a machine of two cores"
    yield from (f"  first, unless it is there: {statement}" for statement in plan.objects)
    yield from (f"  LOSS: {loss}" for loss in plan.losses)
    tied = [group for group in {table.group: 0 for table in plan.tables} if _members(plan, group)[1:]]
    for group in tied:
        yield f"  change together, tied by foreign keys: {', '.join(_members(plan, group))}"
    for table in plan.tables:
        size = f"about {table.rows:,} rows, {bytes_text(table.bytes)}, {duration_text(table.seconds)}"
        yield f"  {table.table}: {table.action}; {size}; changes {table.changes}"
        for column in table.columns:
            becomes = column.type if column.type == column.source_type else f"{column.source_type} -> {column.type}"
            yield f"    {column.name} {becomes}" + (f" ({column.how})" if column.how else "")
        for when, statements in (("with it", table.first), ("after its load", table.then), ("at last", table.last)):
            yield from (f"    {when}: {statement}" for statement in statements)
        yield from (f"    LOSS: {loss}" for loss in table.losses)
    for view in plan.views:
        yield from (f"  at last, unless it is there: {' '.join(map(str.strip, made.splitlines()))}" for made in view)


def _members(plan: TargetPlan, group: int) -> list[str]:
    return [table.table for table in plan.tables if table.group == group]


def duration_text(seconds: float) -> str:
    """A duration in words, as exact as an estimate is."""
    if seconds < 60:
        return f"{max(1, round(seconds))} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
