"""Everything that a pipeline needs, looked at before anything starts: `penstock check`."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator
from typing import NamedTuple

from control.wiring import A_LOOK, exists, opened_log
from schemas.errors import ConfigInvalid, ReplicationError
from schemas.pipeline import Pipeline, Prepare, TargetSettings, matches
from schemas.table import Objects, SetupObjects, Table, TableId
from snapshot import rules
from transport.log import Log
from transport.topics import Topics
from transport.views import Chunks, Tables, read_setup


class Finding(NamedTuple):
    """Something to be mended (blocking) or to be known, and how."""

    where: str
    problem: str
    remedy: str
    blocking: bool


def check_all(pipeline: Pipeline) -> list[Finding]:
    """Return what is not as it has to be at source, log and targets; changes nothing anywhere.

    Raises `ConfigInvalid` for a pattern that no table fits.
    """
    found = list(_source(pipeline))
    catalogue = _catalogue(pipeline, found)
    found += _log(pipeline, catalogue[1] if catalogue else [])
    for target in pipeline.targets:
        found += _target(pipeline, target, catalogue)
    return found


def _source(pipeline: Pipeline) -> Iterator[Finding]:
    from engines.postgres.prerequisites import source_problems

    url = pipeline.source.url.get_secret_value()
    views = any(target.views for target in pipeline.targets)
    for problem in source_problems(url, pipeline.pipeline, pipeline.chooses, pipeline.mode, views=views):
        yield Finding("source", problem.what.removeprefix("source: "), problem.remedy, problem.severity == "error")


def _catalogue(pipeline: Pipeline, found: list[Finding]) -> tuple[SetupObjects, list[Table]] | None:
    """Return the source's chosen tables that can be carried, and what those rest on that each target takes; None if it
    can't be asked. What is missing has been told already, but for patterns that no table fits yet: they are put into
    `found`."""
    from engines.postgres.catalogue import tables
    from engines.postgres.companions import for_choices
    from engines.postgres.connect import connect
    from engines.postgres.errors import translated
    from engines.postgres.objects import refused

    try:
        with (
            translated("source", "reading the catalogue"),
            contextlib.closing(
                connect(pipeline.source.url.get_secret_value(), role="reader", application="penstock check")
            ) as connection,
        ):
            every = tables(connection, lambda _: True)
            pipeline.require_matches(table.id for table in every)
            for pattern in pipeline.awaited(table.id for table in every):
                found.append(Finding("source", pattern, "correct it, unless its tables are made later", False))
            chosen = [table for table in every if pipeline.chooses(table.id)]
            without = refused(connection, chosen)
            chosen = [table for table in chosen if table.id not in without]
            choices = {target.tables for target in pipeline.targets if target.tables}
            return for_choices(connection, chosen, pipeline.chooses, choices), chosen
    except ConfigInvalid:
        raise
    except ReplicationError:
        return None


def _log(pipeline: Pipeline, chosen: list[Table]) -> Iterator[Finding]:
    try:
        with opened_log(pipeline, patience=A_LOOK) as log:
            log.topics(Topics(pipeline.pipeline).prefix)  # fails if there is no answer
            for problem, remedy in log.problems():
                yield Finding("log", problem, remedy, False)
            yield from _newcomers(pipeline, log, chosen)
    except ReplicationError as error:
        remedy = error.remedy or ("start Kafka, or correct its address and credentials" if pipeline.log.url else "")
        yield Finding("log", str(error), remedy, True)


def _newcomers(pipeline: Pipeline, log: Log, chosen: list[Table]) -> Iterator[Finding]:
    """Look for tables that fit the patterns, and were made after the pipeline began."""
    if not exists(log):
        return
    topics = Topics(pipeline.pipeline)
    with log.reader() as reader:
        setup = read_setup(reader, topics)
        if setup is None:
            return
        chunks = Chunks(reader, topics)
        chunks.refresh()
        known = set(rules.chosen(setup, Tables(reader, topics), chunks))
    for table in chosen:
        if table.id not in known:
            problem = f"{table.id} is newer than the pipeline, and not part of it: it is not copied"
            remedy = (
                "the running pipeline takes it over, or tells why not: `penstock events`; or `penstock reconfigure`"
            )
            yield Finding("source", problem, remedy, False)


def _target(
    pipeline: Pipeline, settings: TargetSettings, catalogue: tuple[SetupObjects, list[Table]] | None
) -> Iterator[Finding]:
    from apply.postgres.control import prepared_tables
    from engines.postgres.prerequisites import target_problems

    where = f"target {settings.name}"
    tables = [table for table in catalogue[1] if matches(table.id, settings.tables)] if catalogue else []
    makes = settings.prepare in {Prepare.CREATE, Prepare.DROP_AND_CREATE}
    needed = catalogue[0].of_choice(settings.tables) if catalogue and makes else None
    prepared: set[TableId] = set()
    with contextlib.suppress(ReplicationError):  # told by what is asked next
        prepared = prepared_tables(settings, pipeline.pipeline)
    roles, owners = _roles(settings, needed, {table.id for table in tables}) if needed else ((), ())
    url = settings.url.get_secret_value()
    for problem in target_problems(url, tables, settings.prepare, needed, prepared, roles, owners):
        yield Finding(where, problem.what.removeprefix("target: "), problem.remedy, problem.severity == "error")
    if needed is None:
        return
    version = _version(settings)
    if version is None:
        return
    from conversion.loss import losses, objects_losses

    lost = objects_losses(needed, version)
    for table in tables:
        if table.id not in prepared:
            lost += losses(table, version)
    for loss in lost:
        of = f"{loss.table}: " if loss.table else ""
        yield Finding(where, f"{of}{loss.what}: {loss.consequence}", "", loss.refused)


def _roles(
    settings: TargetSettings, objects: Objects, tables: set[TableId]
) -> tuple[Collection[str], Collection[tuple[str, str]]]:
    """Return all roles that are named on a target, and who owns something in which schema there."""
    made = tables | ({view.id for view in objects.views} if settings.views else set())
    owners = [one for one in objects.owners if one.on in made] if settings.owners else []
    grants = [one for one in objects.grants if one.role and one.on in made] if settings.grants else []
    return {one.role for one in (*owners, *grants)}, {(one.on.schema, one.role) for one in owners}


def _version(settings: TargetSettings) -> int | None:
    from engines.postgres.connect import connect, major
    from engines.postgres.errors import translated

    try:
        with (
            translated("target", "connecting"),
            contextlib.closing(
                connect(settings.url.get_secret_value(), role="control", application="penstock check")
            ) as connection,
        ):
            return major(connection)
    except ReplicationError:
        return None
