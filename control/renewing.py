"""Loading a part of a table anew on a target that has it: `penstock reload --where`.

First the table is paused: what is known of it then stays true until it goes on. A row that fulfils the condition on
the target alone is not found at the source by the condition, which may have it all the same: such rows are found by
comparison here, and are read there by their keys.
"""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Iterator
from itertools import chain
from typing import Literal

from apply.commands import RENEWABLE
from control.commanding import Answer, Commander, Standing, require_possible
from engines.postgres.conditions import keys_where, require_condition
from engines.postgres.connect import connect
from engines.postgres.errors import translated
from schemas.errors import ConfigInvalid, OperatorError
from schemas.frontier import CommandKind
from schemas.pipeline import Pipeline
from schemas.states import TableState
from schemas.table import Table
from transport.log import Log

MOST_BYTES = 512 << 10
"""Of the keys that one command can name."""

_APPLICATION = "penstock reload"


def reload_where(
    pipeline: Pipeline, log: Log, patterns: list[str], where: str, target: str, seconds: float, *, waits: bool
) -> list[Answer]:
    """Ask for the rows that fulfil a condition, and unless told otherwise wait until that is carried out.

    Raises `ConfigInvalid`, before anything is asked for, if it is no condition on source and targets, or a table has no
    key or no place in the stream; `OperatorError` later. Then the tables go on as they were.
    """
    require_possible(pipeline, log, CommandKind.RELOAD)
    with contextlib.closing(Commander(pipeline, log, CommandKind.PAUSE, patterns, target)) as commander:
        standing = commander.standing()
        for one in standing:
            _require_possible(pipeline, commander, one, where)
        names = [str(one.progress.table) for one in standing if one.progress.state is not TableState.PAUSED]
        commander.give()
        try:
            commander.wait(seconds)
            standing = commander.standing()
            parts = [(one, _only_there(pipeline, commander, one, where)) for one in standing]
            commander.renew(parts, where)
        except BaseException:
            if names:
                _go_on(pipeline, log, names, target)
            raise
        if not waits:
            return commander.look()[0]
        answers = commander.wait(seconds)
        for answer in answers:
            if answer.state in {TableState.PAUSED, TableState.FAILED}:
                raise OperatorError(
                    f"{answer.table} on {answer.target} is {answer.state}, and not reloaded: somebody else has given a"
                    " command for it meanwhile",
                    remedy="ask again, or `penstock resume` it",
                )
        return answers


def _require_possible(pipeline: Pipeline, commander: Commander, one: Standing, where: str) -> None:
    settings, progress = one
    if progress.goes_on_in not in RENEWABLE:
        raise ConfigInvalid(
            f"{progress.table} on {settings.name} is {progress.state}: a part can be reloaded of what is loaded",
            remedy="wait until the table is live, or reload all of it",
        )
    table = commander.version(progress)
    if not table.key:
        raise ConfigInvalid(
            f"{table.id} has no key by which rows could be told from each other", remedy="reload all of it"
        )
    sides = (("source", pipeline.source.url), (f"target {settings.name}", settings.url))
    for side, url in sides:
        with translated("source" if side == "source" else "target", "looking at a condition"):
            connection = connect(url.get_secret_value(), role="reader", application=_APPLICATION)
            with contextlib.closing(connection):
                require_condition(connection, table.name, where, side)


def _only_there(pipeline: Pipeline, commander: Commander, one: Standing, where: str) -> tuple[str, ...]:
    """Return the keys of the rows that fulfil a condition on a target, and not at the source; and those that dead
    letters are about, which are read anew as well: a letter may need the row of another one."""
    settings, progress = one
    table = commander.version(progress)
    keys: list[str] = []
    size = 0
    differing = _differing(pipeline.source.url.get_secret_value(), settings.url.get_secret_value(), table, where)
    for key in chain(differing, commander.keys_of_letters(one)):
        keys += key
        size += sum(len(value.encode()) + 4 for value in key)
        if size > MOST_BYTES:
            raise OperatorError(
                f"more than {len(keys) // len(key):,} rows of {table.id} fulfil the condition on {settings.name}, but"
                " not at the source, or are in the dead letters: so many can't be named one by one",
                remedy="reload in several parts, or all of the table",
            )
    return tuple(keys)


def _differing(source_url: str, target_url: str, table: Table, where: str) -> Iterator[tuple[str, ...]]:
    """Yield the keys that only the target has, out of two lists in the same order."""
    with (
        contextlib.closing(_keys("source", source_url, table, where)) as ours,
        contextlib.closing(_keys("target", target_url, table, where)) as theirs,
    ):
        here = next(ours, None)
        for exact, key in theirs:
            # Byte by byte, as the servers have sorted them.
            while here is not None and here[0].encode() < exact.encode():
                here = next(ours, None)
            if here is None or here[0] != exact:
                yield key


def _keys(
    side: Literal["source", "target"], url: str, table: Table, where: str
) -> Generator[tuple[str, tuple[str, ...]], None, None]:
    with (
        translated(side, f"reading keys of {table.id}"),
        contextlib.closing(connect(url, role="reader", application=_APPLICATION)) as connection,
    ):
        yield from keys_where(connection, table, where)


def _go_on(pipeline: Pipeline, log: Log, names: list[str], target: str) -> None:
    """Let tables go on that were paused for nothing."""
    with contextlib.closing(Commander(pipeline, log, CommandKind.RESUME, names, target)) as commander:
        commander.give()
