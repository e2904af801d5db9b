"""Taking over tables that were added to the file, or removed from it, while changes flow: `penstock reconfigure`."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from typing import NamedTuple

import psycopg

from control.choosing import Chooser, Published
from control.commanding import asking
from control.wiring import exists
from engines.postgres.catalogue import tables
from engines.postgres.errors import translated
from schemas.errors import ConfigInvalid
from schemas.events import EventKind
from schemas.frontier import Setup
from schemas.pipeline import Pipeline
from schemas.table import TableId
from transport.events import Teller
from transport.log import Log
from transport.topics import Topics
from transport.views import Chunks, read_setup

_APPLICATION = "penstock reconfigure"
_LOOK_SECONDS = 0.05


class Difference(NamedTuple):
    """How the file differs from what runs."""

    added: list[TableId]
    removed: list[TableId]
    patterns: tuple[str, ...]  # for tables that are made later; empty if they are what they were
    targets_added: list[str]
    targets_removed: list[str]

    @property
    def now(self) -> bool:
        """Whether there is anything to be done now."""
        return bool(self.added or self.removed or self.patterns)

    def lines(self) -> list[str]:
        """Return it for people."""
        found = [f"+ {table}: is published at the source, and loaded" for table in self.added]
        found += [f"- {table}: is not applied any more; its rows stay on the targets" for table in self.removed]
        found += [f"  tables that are made later have to fit: {' '.join(self.patterns)}"] if self.patterns else []
        found += [f"+ target {name}: begins with the next `penstock run` or `apply`" for name in self.targets_added]
        found += [f"- target {name}: ends with the next `penstock run`" for name in self.targets_removed]
        return found


class Reconfiguration:
    """One look at the difference between file and pipeline, and what is to be done about it.

    Raises `ConfigInvalid` if there is nothing that could be changed: no pipeline yet, or one that does not follow
    changes, or a pattern that no table fits.
    """

    def __init__(self, pipeline: Pipeline, log: Log, sleep: Callable[[float], None] = time.sleep) -> None:
        self._pipeline, self._log, self._sleep = pipeline, log, sleep
        self._topics = Topics(pipeline.pipeline)
        self._stack = contextlib.ExitStack()
        try:
            setup = self._begin()
            self._chooser = self._stack.enter_context(
                contextlib.closing(Chooser(pipeline, log, self._reader, setup, _APPLICATION))
            )
            with translated("source", "reading the catalogue"):
                there = _names(self._chooser.source)
            pipeline.require_matches(there)
            has, again = self._chooser.chosen, self._chooser.dropped
            chunks = Chunks(self._reader, self._topics)
            chunks.refresh()
            admitted = chunks.admitted.targets if chunks.admitted else ()
            names = [target.name for target in pipeline.targets]
            self.difference = Difference(
                [table for table in there if pipeline.chooses(table) and (table not in has or table in again)],
                [table for table in has if not pipeline.chooses(table)],
                pipeline.tables if pipeline.tables != self._chooser.patterns else (),
                [name for name in names if name not in admitted],
                [name for name in admitted if name not in names],
            )
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Let go of source and log."""
        self._stack.close()

    def _begin(self) -> Setup:
        if not exists(self._log) or not self._topics.are_made(self._log):
            raise ConfigInvalid(f"pipeline {self._pipeline.pipeline} has no log yet", remedy="`penstock run` makes it")
        self._reader = self._stack.enter_context(self._log.reader())
        setup = read_setup(self._reader, self._topics)
        if setup is None:
            raise ConfigInvalid(f"pipeline {self._pipeline.pipeline} is not set up yet", remedy="`penstock run` begins")
        return setup

    def carry_out(self) -> None:
        """Let the tables be other ones, for all services that run or will run."""
        added, removed = self.difference.added, self.difference.removed
        chooser = self._chooser
        published = chooser.publish(added) if added else Published({}, 0)
        while added and chooser.is_awaited(published):
            self._sleep(_LOOK_SECONDS)
        by, at = asking()
        while not chooser.choose(published, removed, self._pipeline.tables, by, at):
            # What somebody else has taken over meanwhile need not be loaded once more.
            there = chooser.chosen.keys() - chooser.dropped
            published = Published({id: n for id, n in published.schemas.items() if id not in there}, published.before)
        with contextlib.closing(Teller(self._log, self._topics, "command")) as teller:
            for tables_, text in ((added, "added"), (removed, "removed")):
                for table in tables_:
                    teller.tell(EventKind.COMMAND, f"{text} by {by}", table=table)
        chooser.withdraw()


def _names(catalogue: psycopg.Connection) -> list[TableId]:
    """Return the tables that could be chosen."""
    found: list[TableId] = []

    def note(table: TableId) -> bool:
        found.append(table)
        return False

    tables(catalogue, note)
    return sorted(found)
