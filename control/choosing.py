"""Giving a pipeline other tables while its changes flow: how `penstock reconfigure` does it, and the registrar.

A table is registered and published, which capture needs; then nobody may write any more who began before that; then a
`Chosen` makes it the pipeline's, and it is loaded. Killed anywhere it is simply done again: what was published and
registered, and not chosen, nobody looks at. Two who do it at once do no harm: a `Chosen` whose author did not know the
last one does not count.
"""

from __future__ import annotations

import contextlib
import time
from collections import defaultdict
from collections.abc import Collection, Iterable
from typing import NamedTuple

import psycopg
from pydantic import BaseModel

from engines.postgres.asking import run
from engines.postgres.catalogue import objects, tables
from engines.postgres.connect import connect
from engines.postgres.errors import translated
from engines.postgres.publications import add_to_publications, remove_from_publications, require_logged
from engines.postgres.replication import current_snapshot
from schemas.errors import ConfigInvalid
from schemas.frontier import Chosen, Name, Setup, TableRegistered
from schemas.pipeline import Mode, Pipeline
from schemas.record import encode_control, value_schema_id
from schemas.table import Table, TableId
from snapshot import rules
from transport.log import Log, LogReader, Topic
from transport.topics import Topics
from transport.views import Choices, Registrations

LOCK_SECONDS = 2
"""How long a table may be locked against us: whoever waits is in the way of those who come after."""


class _Numbers(BaseModel):
    """Of a table in JSON only its name, the source's numbers of it and of what holds its rows, and whether it is no
    more."""

    class _Leaf(BaseModel):
        oid: int = 0

    id: TableId
    oid: int = 0
    leaves: tuple[_Leaf, ...] = ()
    dropped: bool = False


class Versions:
    """Which relations of the source every registered version is about; with very many tables this is all there is room
    for."""

    def __init__(self, reader: LogReader, topics: Topics) -> None:
        self._registrations = Registrations(reader, topics)
        self.ids: dict[int, TableId] = {}  # by the id of the row schema
        self.oids: dict[TableId, set[int]] = defaultdict(set)
        self.drops: dict[TableId, int] = {}  # the row schema by which capture told last that a table was dropped

    def refresh(self) -> None:
        """Read on in `p.tables`."""
        for schema_id, entry in self._registrations.read():
            found = _Numbers.model_validate_json(entry.table)
            self.ids[schema_id] = found.id
            if found.dropped:
                self.drops[found.id] = schema_id
            self.oids[found.id].update(oid for oid in (found.oid, *(leaf.oid for leaf in found.leaves)) if oid)

    @property
    def next(self) -> int:
        """How far that has been read."""
        return self._registrations.next


class Published(NamedTuple):
    """Tables that are registered and published, and are not the pipeline's yet."""

    schemas: dict[TableId, int]
    before: int  # a transaction below this one may have written to them when they were not published


class Chooser:
    """What a pipeline has, and how it gets other tables."""

    def __init__(self, pipeline: Pipeline, log: Log, reader: LogReader, setup: Setup, application: str) -> None:
        """Raises `ConfigInvalid` for a pipeline whose tables never change."""
        if setup.mode != Mode.LOAD_AND_CHANGES:
            raise ConfigInvalid(
                f"a pipeline that was begun with mode: {setup.mode} keeps its tables",
                remedy="copy others by a pipeline of their own",
            )
        self._pipeline, self._log, self._reader, self._setup = pipeline, log, reader, setup
        self._application = application
        self._topics = Topics(pipeline.pipeline)
        self._stack = contextlib.ExitStack()
        self._writer = self._stack.enter_context(log.writer("control"))
        self._versions, self._choices = Versions(reader, self._topics), Choices()
        self._source: psycopg.Connection | None = None
        self._read = -1, -1
        self.chosen: dict[TableId, int] = {}
        """The tables that the pipeline has, with the versions that they were published with."""
        self.dropped: set[TableId] = set()
        """Those of them that were dropped at the source since they were published, as capture has told: what is made
        under such a name again may be taken over."""
        self.ever_chosen: set[TableId] = set()
        """All that it has, or had."""
        self.oids_taken: set[int] = set()
        """The source's numbers of these, but of those that were dropped, and of all that has ever held their rows."""
        self.refresh()

    def close(self) -> None:
        """Let go of source and log."""
        self._stack.close()

    # ------------------------------------------------------------------------------------------- what there is

    def refresh(self) -> None:
        """Read what the log says by now; where that is nothing new, it costs next to nothing."""
        self._choices.refresh(self._reader, self._topics)
        self._versions.refresh()
        if (self._choices.next, self._versions.next) == self._read:
            return
        self._read = self._choices.next, self._versions.next
        ids, drops = self._versions.ids, self._versions.drops
        self.chosen = {ids[n]: n for n in self._choices.tables_of(self._setup)}
        self.dropped = {id for id, n in self.chosen.items() if drops.get(id, -1) > n}
        self.ever_chosen = {ids[n] for n in self._setup.tables} | self._choices.added
        self.oids_taken = self.oids(self.ever_chosen - self.dropped)

    @property
    def patterns(self) -> tuple[str, ...]:
        """The patterns of the file that a person had taken over last."""
        return self._choices.patterns_of(self._setup)

    @property
    def publications(self) -> tuple[str, ...]:
        """The names of the pipeline's publications."""
        return self._setup.publications

    @property
    def last(self) -> Chosen | None:
        """What told last what the pipeline has; None if that is what it began with."""
        return self._choices.last

    def oids(self, ids: Iterable[TableId]) -> set[int]:
        """Return the source's numbers of tables, and of all that has ever held their rows."""
        return {oid for id in ids for oid in self._versions.oids[id]}

    @property
    def source(self) -> psycopg.Connection:
        """A connection to the source, which gives up on what somebody else has locked."""
        if self._source is None:
            url = self._pipeline.source.url.get_secret_value()
            connection = connect(url, role="control", application=self._application)
            self._source = self._stack.enter_context(contextlib.closing(connection))
            run(self._source, "select set_config('lock_timeout', %(seconds)s, false)", seconds=f"{LOCK_SECONDS}s")
        return self._source

    # ------------------------------------------------------------------------------------------------ changing it

    def publish(self, ids: Collection[TableId]) -> Published:
        """Publish tables, and register them as they are then.

        Capture meets a table in the stream only when this is committed, and knows it by then. Nobody alters it in
        between: to publish a table locks its definition. Raises `SchemaUnsupported` if one is unlogged, or gone,
        `PermissionMissing`, and `TransientError` if one is locked.
        """
        url = self._pipeline.source.url.get_secret_value()
        with translated("source", "publishing tables"), contextlib.ExitStack() as stack:
            # What is read of the catalogue must not be in the transaction that publishes.
            connection = connect(url, role="reader", application=self._application)
            catalogue = stack.enter_context(contextlib.closing(connection))
            while True:
                try:
                    found = tables(catalogue, set(ids).__contains__)
                    require_logged(found)
                    with self.source.transaction():
                        run(self.source, "set local synchronous_commit = local")
                        # The stream describes a table anew that was published before, for whatever came to nothing.
                        remove_from_publications(self.source, self.publications[0], {table.oid for table in found})
                        add_to_publications(self.source, self.publications[0], found)
                        self._versions.refresh()
                        schemas = self._register(catalogue, tables(catalogue, set(ids).__contains__))
                    self._versions.refresh()
                    if self._versions.ids.keys() >= set(schemas.values()):
                        return Published(schemas, current_snapshot(self.source).xmax)
                    # Else capture has registered one that was the pipeline's before, and ours does not count.
                except (psycopg.errors.DuplicateObject, psycopg.errors.UniqueViolation):
                    continue  # somebody else has just published one of them

    def _register(self, catalogue: psycopg.Connection, found: list[Table]) -> dict[TableId, int]:
        shared = self._setup.shared_topics
        topics = {self._topics.changes(table.id, shared).topic: 1 for table in found}
        topics |= {self._topics.load(table.id, shared).topic: rules.LOAD_PARTITIONS for table in found}
        self._log.create_topics([Topic(name, partitions) for name, partitions in topics.items()])
        known, schemas = self._versions.next, {}
        for table in found:
            whole = table.model_copy(update={"objects": objects(catalogue, [table])})
            changes = self._topics.changes(table.id, shared)
            entry = TableRegistered(
                whole.model_dump_json(),
                changes.topic,
                changes.number,
                time.time_ns() // 1_000,
                known=known,
            )
            offset = self._writer.put(self._topics.tables, encode_control(entry), str(table.id).encode())
            schemas[table.id] = value_schema_id(offset)
        return schemas

    def is_awaited(self, published: Published) -> bool:
        """Whether somebody may still write who began before the tables were published: what such a transaction wrote
        before is not in the stream."""
        with translated("source", "waiting for transactions to end"):
            return current_snapshot(self.source).xmin < published.before

    def choose(
        self, added: Published, removed: Collection[TableId], patterns: tuple[str, ...], by: str, at: int
    ) -> bool:
        """Let the pipeline have these tables too, and others not any more; return whether that counts. If not, somebody
        else has changed what there is since the last `refresh`, and has to be looked at first."""
        stay = [n for id, n in self.chosen.items() if id not in removed and id not in added.schemas]
        names = tuple(Name(*id) for id in added.schemas)
        chosen = Chosen((*stay, *added.schemas.values()), names, patterns, by, self._choices.next, at)
        self._writer.put(self._topics.chunks, encode_control(chosen))
        self.refresh()
        return self._choices.last == chosen

    def withdraw(self) -> None:
        """Take out of the publications what was removed, lest the source decodes and sends it for nobody.

        Capture asks the log what the pipeline has before it minds what is not published; so this comes last. What is
        put back is loaded anew.
        """
        gone = self.oids(self.ever_chosen) - self.oids(self.chosen)
        with translated("source", "taking tables out of the publications"):
            remove_from_publications(self.source, self.publications[0], gone)
