"""Asking for something for single tables while everything runs: `penstock pause`, `resume`, `reload`, `skip`."""

from __future__ import annotations

import contextlib
import getpass
import os
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from apply.commands import is_due
from apply.target import TableProgress
from control.status import Collector
from control.wiring import exists
from engines.postgres.problems import some
from schemas.errors import ConfigInvalid, OperatorError
from schemas.events import EventKind
from schemas.frontier import Command, CommandKind
from schemas.pipeline import Mode, Pipeline, TargetSettings
from schemas.record import encode_control
from schemas.states import TableState
from schemas.table import Table, TableId
from transport.events import Teller
from transport.log import Log
from transport.topics import Topics
from transport.views import Chunks, Issued

WAIT_SECONDS = 20.0
"""How long is waited for all targets, when everything runs: far longer than it takes."""

_QUICKEST, _SLOWEST = 0.02, 0.5


class Answer(NamedTuple):
    """What has become of a command for one table on one target."""

    table: TableId
    target: str
    state: TableState
    carried_out: bool


def remark(kind: CommandKind, answer: Answer) -> str:
    """Say why a command has left a table as it is; nothing if it has not, or if that is plain."""
    if not answer.carried_out or kind is CommandKind.RELOAD:
        return ""
    match answer.state:
        case TableState.SKIPPED if kind is not CommandKind.SKIP:
            return ", and stays so: only `penstock reload` brings it back"
        case TableState.DROPPED:
            return ", and stays so: the source has no such table any more"
    return ""


class Standing(NamedTuple):
    """One table on one target."""

    target: TargetSettings
    progress: TableProgress


def asking() -> tuple[str, int]:
    """Return who asks for something, for people, and when."""
    return f"{getpass.getuser()}@{socket.gethostname()}:{os.getpid()}", time.time_ns() // 1_000


class Commander:
    """Gives one command for some tables, and looks what becomes of it.

    Raises `ConfigInvalid` if nothing can be asked for: no pipeline yet, no such table, no such target.
    """

    def __init__(
        self, pipeline: Pipeline, log: Log, kind: CommandKind, patterns: Sequence[str], target: str = ""
    ) -> None:
        self._pipeline, self._log, self._kind, self._target = pipeline, log, kind, target
        self._topics = Topics(pipeline.pipeline)
        names = [pipeline.target(target).name] if target else None
        self._collector = Collector(pipeline, log, targets=names)
        try:
            self._tables = self._find(patterns)
        except BaseException:
            self.close()
            raise
        self._issued: list[Issued] = []

    def close(self) -> None:
        """Let go of targets and log."""
        self._collector.close()

    def _find(self, patterns: Sequence[str]) -> list[TableId]:
        if not self._collector.ready():
            raise ConfigInvalid(
                f"pipeline {self._pipeline.pipeline} is not set up yet",
                remedy="`penstock run` begins; what is not to be copied is excluded in its `tables` (`!schema.table`)",
            )
        there = sorted({table for _, _, tables, _ in self._collector.progress() for table in tables})
        names = self._collector.names
        names.refresh()
        found: dict[TableId, None] = {}
        for pattern in patterns:
            fitting = [table for table in there if names.fit(str(table), pattern)]
            if not fitting:
                where = f" that target {self._target} has" if self._target else ""
                raise ConfigInvalid(
                    f"no table of the pipeline{where} fits {pattern!r}",
                    remedy="write schema.table, with * and ? as wildcards; `penstock status` lists them",
                )
            there_still = [table for table in fitting if not names.is_dropped(table)]
            if self._kind is CommandKind.RELOAD and not there_still:
                raise ConfigInvalid(
                    f"{some(fitting)}: dropped at the source",
                    remedy="what was made there under such a name again is taken over by `penstock reconfigure`",
                )
            found |= dict.fromkeys(there_still if self._kind is CommandKind.RELOAD else fitting)
        return list(found)

    def give(self) -> None:
        """Write the commands into the log, where they are found by whoever runs the targets, now or later."""
        by, at = asking()
        self._write(
            [Command(self._kind.value, table.schema, table.name, self._target, "", by, at) for table in self._tables]
        )

    def standing(self) -> list[Standing]:
        """Return where the tables stand on the targets. Raises `OperatorError` if a target can't be asked."""
        found = []
        for settings, error, tables, _ in self._collector.progress():
            if error:
                raise OperatorError(
                    f"target {settings.name} can't be asked: {error}", remedy="ask again when it can be"
                )
            found += [Standing(settings, tables[table]) for table in self._tables if table in tables]
        return found

    def version(self, progress: TableProgress) -> Table:
        """Return a table as it is on a target."""
        return self._collector.version(progress.schema_id)

    def keys_of_letters(self, one: Standing) -> list[tuple[str, ...]]:
        """Return all keys that the dead letters of a table touch."""
        return self._collector.keys_of_letters(one.target.name, one.progress.table)

    def renew(self, parts: Sequence[tuple[Standing, tuple[str, ...]]], where: str) -> None:
        """Write the commands to load a part of each table anew, that has stopped; beside each are the keys of the rows
        that only the target has among those that fulfil the condition."""
        by, at = asking()
        self._write(
            [
                Command(
                    CommandKind.RELOAD.value,
                    *progress.table,
                    settings.name,
                    where,
                    by,
                    at,
                    progress.progress.offset,
                    progress.schema_id,
                    keys,
                )
                for (settings, progress), keys in parts
            ]
        )

    def _write(self, asked: Sequence[Command]) -> None:
        teller = Teller(self._log, self._topics, "command")
        for command in asked:
            what = f"{command.kind} where {command.where}" if command.where else command.kind
            table = TableId(command.table_schema, command.table_name)
            teller.tell(EventKind.COMMAND, f"{what} asked by {command.by}", table=table, target=command.target)
        teller.close()
        with self._log.writer("control") as writer:
            writer.put_all(self._topics.chunks, [encode_control(command) for command in asked])
        with self._log.reader() as reader:
            chunks = Chunks(reader, self._topics)
            chunks.refresh()
        ours = set(asked)
        self._issued = [issued for issued in chunks.commands if issued.command in ours]

    def look(self) -> tuple[list[Answer], dict[str, str]]:
        """Return what has become of the commands, and the targets that can't be asked, with the reason."""
        answers, unreached = [], {}
        for settings, error, tables, _ in self._collector.progress():
            if error:
                unreached[settings.name] = error
            for issued in self._issued:
                if (progress := tables.get(issued.table)) is not None and issued.is_for(settings.name):
                    due = is_due(issued, progress, settings.name)
                    answers.append(Answer(issued.table, settings.name, progress.state, not due))
        return answers, unreached

    def wait(self, seconds: float, sleep: Callable[[float], None] = time.sleep) -> list[Answer]:
        """Return when all targets have carried everything out, or after a while; raises `OperatorError` if one has not
        by then, though it will as soon as it can."""
        deadline, pause = time.monotonic() + seconds, _QUICKEST
        while True:
            answers, unreached = self.look()
            late = [answer for answer in answers if not answer.carried_out]
            if not late:
                return answers
            if time.monotonic() > deadline:
                break
            sleep(pause)
            pause = min(pause * 1.5, _SLOWEST)
        raise OperatorError(
            f"{self._issued[0].command.kind} is asked for, but not carried out yet: "
            + "; ".join(_late(late, unreached)),
            remedy="it is carried out as soon as the pipeline runs there: `penstock run`, or `penstock apply`",
        )


def _late(answers: Sequence[Answer], unreached: dict[str, str]) -> Iterator[str]:
    for name in dict.fromkeys(answer.target for answer in answers):
        tables = [str(answer.table) for answer in answers if answer.target == name]
        shown = ", ".join(tables[:5]) + (f" and {len(tables) - 5} more" if len(tables) > 5 else "")
        why = unreached.get(name, "nobody applies to it, or not with this file")
        yield f"{shown} on {name} ({why})"


def require_possible(pipeline: Pipeline, log: Log, kind: CommandKind) -> None:
    """Raise `ConfigInvalid` if this kind of pipeline can't do that."""
    if not exists(log):
        raise ConfigInvalid(f"pipeline {pipeline.pipeline} has no log yet", remedy="`penstock run` makes it")
    if kind is CommandKind.RELOAD and pipeline.mode is not Mode.LOAD_AND_CHANGES:
        raise ConfigInvalid(
            f"{pipeline.where('mode')}a pipeline with mode: {pipeline.mode} can't load a table anew",
            remedy="load it by a pipeline of its own, with mode: load-and-changes and prepare: drop-and-create",
        )


def command(
    pipeline: Pipeline,
    log: Log,
    kind: CommandKind,
    patterns: Sequence[str],
    target: str,
    seconds: float | None,
) -> list[Answer]:
    """Give a command and, unless `seconds` is None, wait until it is carried out."""
    require_possible(pipeline, log, kind)
    with contextlib.closing(Commander(pipeline, log, kind, patterns, target)) as commander:
        commander.give()
        return commander.look()[0] if seconds is None else commander.wait(seconds)
