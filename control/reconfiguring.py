"""Taking over tables that were added to the file, or removed from it, while changes flow: `penstock reconfigure`."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from typing import NamedTuple

import psycopg

from control.commanding import asking
from control.wiring import exists
from engines.postgres.asking import run
from engines.postgres.catalogue import objects, tables
from engines.postgres.connect import connect
from engines.postgres.errors import translated
from engines.postgres.publications import add_to_publications
from engines.postgres.replication import current_snapshot
from schemas.errors import ConfigInvalid, TransientError
from schemas.events import EventKind
from schemas.frontier import Chosen, Name, Setup, TableRegistered
from schemas.pipeline import Mode, Pipeline
from schemas.record import encode_control, value_schema_id
from schemas.table import Table, TableId
from snapshot import rules
from transport.events import Teller
from transport.log import Log, Topic
from transport.topics import Topics
from transport.views import Chunks, Tables, read_setup

_LOOK_SECONDS = 0.05


class Difference(NamedTuple):
    """How the file differs from what runs."""

    added: list[TableId]
    removed: list[TableId]
    targets_added: list[str]
    targets_removed: list[str]

    @property
    def tables(self) -> bool:
        """Whether there is anything to be done now."""
        return bool(self.added or self.removed)

    def lines(self) -> list[str]:
        """Return it for people."""
        found = [f"+ {table}: is published at the source, and loaded" for table in self.added]
        found += [f"- {table}: is not applied any more; its rows stay on the targets" for table in self.removed]
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
            self._setup = self._begin()
            with translated("source", "reading the catalogue"):
                url = pipeline.source.url.get_secret_value()
                self._source = self._stack.enter_context(
                    contextlib.closing(connect(url, role="control", application="penstock reconfigure"))
                )
                # What is read of the catalogue must not be in the transaction that publishes.
                self._catalogue = self._stack.enter_context(
                    contextlib.closing(connect(url, role="reader", application="penstock reconfigure"))
                )
                there = _names(self._catalogue)
            pipeline.require_matches(there)
            has = rules.chosen(self._setup, self._tables, self._chunks)
            wanted = [table for table in there if pipeline.chooses(table)]
            admitted = self._chunks.admitted.targets if self._chunks.admitted else ()
            names = [target.name for target in pipeline.targets]
            self.difference = Difference(
                [table for table in wanted if table not in has],
                [table for table in has if not pipeline.chooses(table)],
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
        if setup.mode != Mode.LOAD_AND_CHANGES:
            raise ConfigInvalid(
                f"a pipeline that was begun with mode: {setup.mode} keeps its tables",
                remedy="copy others by a pipeline of their own",
            )
        self._tables, self._chunks = Tables(self._reader, self._topics), Chunks(self._reader, self._topics)
        self._tables.refresh()
        self._chunks.refresh()
        return setup

    def carry_out(self) -> None:
        """Let the tables be other ones, for all services that run or will run.

        Killed anywhere it is simply done again: what was published and registered, and not chosen, nobody looks at.
        """
        added, removed = self.difference.added, self.difference.removed
        writer = self._stack.enter_context(self._log.writer("control"))
        with translated("source", "publishing tables"):
            # Capture meets a table in the stream only when this is committed, and must know it by then. Nobody
            # alters it before that: to publish a table locks its definition.
            with self._source.transaction():
                run(self._source, "set local synchronous_commit = local")
                made = self._publish(added)
                new = [
                    value_schema_id(writer.put(self._topics.tables, encode_control(entry), str(table.id).encode()))
                    for table, entry in made
                ]
            if added:
                self._wait_for_writers()
        dropped = set(removed)
        stay = [n for n in self._chunks.tables_of(self._setup) if self._tables.by_schema(n).id not in dropped]
        by, at = asking()
        names = tuple(Name(*table.id) for table, _ in made)
        known = self._chunks.chosen
        self._chunks.refresh()
        if self._chunks.chosen is not known:
            raise TransientError("somebody else has reconfigured the pipeline meanwhile", remedy="look again")
        writer.put(self._topics.chunks, encode_control(Chosen((*stay, *new), names, by, at)))
        teller = Teller(self._log, self._topics, "command")
        for tables_, text in ((added, "added"), (removed, "removed")):
            for table in tables_:
                teller.tell(EventKind.COMMAND, f"{text} by {by}", table=table)
        teller.close()

    def _publish(self, added: list[TableId]) -> list[tuple[Table, TableRegistered]]:
        """Publish tables, and return them as they are then, with what is to be registered of them."""
        if not added:
            return []
        chosen = set(added)
        found = tables(self._catalogue, chosen.__contains__)
        add_to_publications(self._source, f"penstock_{self._pipeline.pipeline}", found)
        found = tables(self._catalogue, chosen.__contains__)
        shared = self._setup.shared_topics
        topics = {self._topics.changes(table.id, shared).topic: 1 for table in found}
        topics |= {self._topics.load(table.id, shared).topic: rules.LOAD_PARTITIONS for table in found}
        self._log.create_topics([Topic(name, partitions) for name, partitions in topics.items()])
        made = []
        for table in found:
            whole = table.model_copy(update={"objects": objects(self._catalogue, [table])})
            changes = self._topics.changes(table.id, shared)
            entry = TableRegistered(whole.model_dump_json(), changes.topic, changes.number, time.time_ns() // 1_000)
            made.append((whole, entry))
        return made

    def _wait_for_writers(self) -> None:
        """Return when nobody writes any more who began before the tables were published: what such a transaction wrote
        before is not in the stream."""
        last = current_snapshot(self._source).xmax
        while current_snapshot(self._source).xmin < last:
            self._sleep(_LOOK_SECONDS)


def _names(catalogue: psycopg.Connection) -> list[TableId]:
    """Return the tables that could be chosen."""
    found: list[TableId] = []

    def note(table: TableId) -> bool:
        found.append(table)
        return False

    tables(catalogue, note)
    return sorted(found)
