"""What control asks of a target, by a connection of its own for each question."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager

import psycopg

from apply.postgres import state
from engines.postgres.connect import connect
from engines.postgres.errors import translated
from schemas.pipeline import TargetSettings
from schemas.table import TableId


def forget_pipeline(settings: TargetSettings, pipeline: str) -> bool:
    """Remove a pipeline's progress from a target, but none of its tables; return whether there was anything."""
    with _connected(settings, "removing the progress of a pipeline", "penstock drop") as connection:
        return state.forget(connection, pipeline)


def resume_failed(settings: TargetSettings, pipeline: str) -> int:
    """Let the tables of a pipeline that have failed try again from where they stopped; return how many there were."""
    with _connected(settings, "letting failed tables try again", "penstock run") as connection:
        return state.resume(connection, pipeline)


def prepared_tables(settings: TargetSettings, pipeline: str) -> set[TableId]:
    """Return the tables that a pipeline has prepared in a target; changes nothing."""
    with _connected(settings, "asking for the progress of a pipeline", "penstock check") as connection:
        return state.prepared(connection, pipeline)


@contextmanager
def _connected(settings: TargetSettings, doing: str, application: str) -> Iterator[psycopg.Connection]:
    """A connection for one question of control's."""
    url = settings.url.get_secret_value()
    with (
        translated("target", doing),
        closing(connect(url, role="control", application=application)) as connection,
    ):
        yield connection
