"""The tables that the pipeline has for a target: what the log says of them, and the rules of the file."""

from __future__ import annotations

from collections.abc import Callable

from apply.groups import assign, components
from apply.target import Progress, TableProgress, Target
from schemas.frontier import Chosen, Setup
from schemas.pipeline import Ddl, OnRowError, TablePolicy, matches
from schemas.table import SetupObjects, TableId
from transport.log import LogReader
from transport.topics import Topics
from transport.views import Chunks, Registered, Tables, read_trimmed


class TargetTables:
    """Which tables there are, in which versions, what of them is to be loaded, and how each is treated.

    Which they are may change while everything runs: `are_others` says so, and `register` takes them over.
    """

    def __init__(
        self,
        reader: LogReader,
        topics: Topics,
        setup: Setup,
        target: Target,
        patterns: tuple[str, ...],
        policy: Callable[[TableId], TablePolicy],
    ) -> None:
        self._reader, self._topics, self._target, self._patterns = reader, topics, target, patterns
        self.setup, self.policy = setup, policy
        self.versions = Tables(reader, topics)
        self.versions.refresh()
        self.chunks = Chunks(reader, topics)
        self.chunks.refresh()
        self._made_with: dict[TableId, Registered] = {}
        self._tied_to: dict[TableId, tuple[TableId, ...]] = {}
        self._by_schema: dict[int, Registered | None] = {}
        self._names: dict[tuple[TableId, int], TableId] = {}  # on the target, of tables by their versions
        self._chosen: Chosen | None = None  # what was registered last

    def __contains__(self, table: TableId) -> bool:
        return table in self._made_with

    @property
    def are_others(self) -> bool:
        """Whether the log tells of other tables than those that were registered last."""
        return self.chunks.chosen is not self._chosen

    def register(self) -> None:
        """Let the target know the tables that the pipeline has for it now."""
        self._chosen = self.chunks.chosen
        self._made_with.clear()
        self._tied_to.clear()
        self._by_schema.clear()
        for schema_id in self.chunks.tables_of(self.setup):
            version = self.versions.by_schema(schema_id)
            if matches(version.id, self._patterns):
                self._made_with[version.id] = version
        tables = [version.table for version in self._made_with.values()]
        for component in components(tables):
            self._tied_to |= dict.fromkeys(component, component)
        known = self._target.tables()
        groups = assign(tables, {table: progress.group for table, progress in known.items()})
        beginning = Progress(0, -1, self.setup.position)
        if (trimmed := read_trimmed(self._reader, self._topics)) is not None:
            beginning = Progress(trimmed.offset, trimmed.epoch, trimmed.position, trimmed.commit_time)
        if there := self._target.groups():
            # A new group has nothing to apply before its tables join it; where another stands nothing is trimmed.
            beginning = min(there.values(), key=lambda progress: progress.offset).place
        rows = [
            TableProgress(version.table.id, groups[version.table.id], schema_id=version.schema_id)
            for version in self._made_with.values()
            if version.table.id not in known
        ]
        objects = SetupObjects.model_validate_json(self.setup.objects).of_choice(self._patterns)
        self._target.register(dict.fromkeys(groups.values(), beginning), rows, tables, objects, self._called)

    def tied_to(self, table: TableId) -> tuple[TableId, ...]:
        """Return the tables that foreign keys tie together with one, itself among them."""
        return self._tied_to[table]

    def version(self, schema_id: int) -> Registered | None:
        """Return the version of one of these tables that a row schema stands for; None if it is another's."""
        try:
            return self._by_schema[schema_id]
        except KeyError:
            version = self.versions.by_schema(schema_id)
            found = self._by_schema[schema_id] = version if version.table.id in self._made_with else None
            return found

    def version_of(self, schema_id: int) -> Registered:
        """Return the version of one of these tables that a row schema stands for."""
        version = self.version(schema_id)
        assert version is not None
        return version

    def on_target(self, progress: TableProgress) -> Registered:
        """Return the version of a table that the target has."""
        return self.versions.by_schema(progress.schema_id)

    def accepted(self, version: Registered) -> Registered:
        """Return a version as it is written to the target: whole, unless the target's table does not follow."""
        return self._target.accepted(version) if self.policy(version.id).ddl is Ddl.IGNORE else version

    def _called(self, table: TableId, schema_id: int) -> TableId:
        """Return what a table is called on the target; one that does not follow definitions keeps its first name."""
        name = self._names.get((table, schema_id))
        if name is None:  # it is asked for all tables again and again while thousands are made
            name = table if self.policy(table).ddl is Ddl.IGNORE else self.versions.by_schema(schema_id).name
            self._names[table, schema_id] = name
        return name

    def sets_aside(self, table: TableId) -> bool:
        return self.policy(table).on_row_error is OnRowError.SET_ASIDE
