"""Where a pipeline stands: per target and table the state, the rows, and the lag and where it sits."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from apply.dead_letters import Letter, key_values
from apply.target import NOWHERE, MakeTarget, Progress, TableProgress, Target, find_target
from control.naming import Names
from control.trend import Trend
from control.wiring import exists
from schemas.errors import ReplicationError, TargetUnavailable
from schemas.frontier import HEAL, Claim, Frontier, Setup
from schemas.pipeline import Mode, Pipeline, TargetSettings, matches
from schemas.record import decode_control
from schemas.states import STOPPED, TableState
from schemas.table import Table, TableId
from transport.log import Log, LogReader
from transport.topics import Topics
from transport.views import Chunks, Registered, Tables, read_setup

_LOOK_BACK = 16  # records of the frontier topic: more claims than that never follow each other
_RETRY_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class Lag:
    """How far something is behind the source, and where what is missing waits: source, log or target."""

    seconds: float = 0.0
    bytes: int = 0
    where: str = ""


@dataclass(frozen=True, slots=True)
class TableStatus:
    """One table on one target."""

    table: str
    state: str
    rows_estimated: int
    rows_read: int  # from the source into the log
    rows_loaded: int
    changes_applied: int
    lag: Lag
    error: str = ""
    remedy: str = ""
    dead_letters: int = 0
    renamed: str = ""  # how the source calls it, if not any more by that name


@dataclass(frozen=True, slots=True)
class TargetStatus:
    """One target."""

    name: str
    position: int
    lag: Lag
    tables: tuple[TableStatus, ...]
    error: str = ""  # why nothing is known of it now


@dataclass(frozen=True, slots=True)
class SourceStatus:
    """The source, and how far capture is."""

    wal_end: int = 0  # 0: not asked, or not reached
    captured: int = 0
    captured_at: float = 0.0  # seconds since 1970
    retained_bytes: int = 0  # of its log, for the slot
    wal_budget: int = 0  # how many it may be; 0: any number
    wal_full_seconds: float | None = None  # until it is as many, at the rate of late; None: that is not to be expected
    slot: str = ""  # how the slot is
    error: str = ""


@dataclass(frozen=True, slots=True)
class PipelineStatus:
    """All of it at one moment."""

    pipeline: str
    at: float
    set_up: bool
    source: SourceStatus
    log_bytes: int
    log_budget: int
    targets: tuple[TargetStatus, ...] = field(default=())

    def as_json(self) -> dict[str, Any]:
        """Return it as plain values."""
        return asdict(self)


class TargetView:
    """A connection to one target, made again when it is lost."""

    def __init__(
        self, settings: TargetSettings, pipeline: str, clock: Callable[[], float], make: MakeTarget = find_target
    ) -> None:
        self.settings, self._pipeline, self._clock, self._make = settings, pipeline, clock, make
        self._target: Target | None = None
        self._again_at = 0.0
        self.error = "not reached yet"
        self.groups: dict[int, Progress] = {}
        self.tables: dict[TableId, TableProgress] = {}

    def refresh(self, identity: str) -> None:
        """Ask anew. What goes wrong is kept as `error`, and what was known stays."""
        if self._target is None and self._clock() < self._again_at:
            return
        try:
            if self._target is None:
                target = self._make(self.settings, self._pipeline)
                self._target = target
                target.open(identity)
            self.groups = self._target.groups()
            self.tables = self._target.tables()
            self.error = ""
        except ReplicationError as error:
            self._lose(error)

    def chunks(self) -> dict[tuple[TableId, int], set[int]]:
        """Return the loaded chunks of tables that are loading, by table and generation."""
        if self._target is None:
            return {}
        try:
            return self._target.chunks()
        except ReplicationError as error:
            self._lose(error)
            return {}

    def letters(self) -> dict[TableId, int]:
        """Return how many dead letters each table has that has any."""
        if self._target is None:
            return {}
        try:
            return self._target.letter_counts()
        except ReplicationError as error:
            self._lose(error)
            return {}

    def letters_of(self, table: TableId) -> list[Letter]:
        """Return the dead letters of a table. Raises what the target raises."""
        if self._target is None:
            raise TargetUnavailable(self.error)
        return [letter for letter in self._target.letters() if letter.table == table]

    def make_durable(self) -> bool:
        """Make what was just read here durable; return whether that is certain.

        Targets write progress without waiting for the disk, since the log can tell them again what a crash takes
        back. So before the log forgets anything, what was read of a target must be on its disk: a crash right after
        would lose it for good. It must be the connection that was read through; if that is lost, nobody knows.
        """
        if self._target is None:
            return False
        try:
            self._target.make_durable()
        except ReplicationError as error:
            self._lose(error)
            return False
        return True

    def _lose(self, error: ReplicationError) -> None:
        self.error = str(error)
        self.close()
        self._again_at = self._clock() + _RETRY_SECONDS

    def close(self) -> None:
        if self._target is not None:
            self._target.close()
        self._target = None


class Collector:
    """Looks at log, targets and source, again and again; reads on where it was in the log.

    Only ever reads, except that a target gets its bookkeeping tables if it has none yet.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        log: Log,
        *,
        targets: Iterable[str] | None = None,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._pipeline, self._log, self._clock, self._now = pipeline, log, clock, now
        self._topics = Topics(pipeline.pipeline)
        names = set(targets) if targets is not None else {target.name for target in pipeline.targets}
        self._views = [TargetView(t, pipeline.pipeline, clock) for t in pipeline.targets if t.name in names]
        self._stack = contextlib.ExitStack()
        self._reader: LogReader | None = None
        self._identity = ""
        self._chunks: Chunks
        self._tables: Tables
        self.names: Names
        self.setup: Setup | None = None
        self._chosen: list[Registered] = []
        self._source: Any = None
        self._source_status = SourceStatus()
        self._kept = Trend()

    def close(self) -> None:
        """Let go of everything."""
        for view in self._views:
            view.close()
        if self._source is not None:
            self._source.close()
        self._stack.close()

    def ready(self) -> bool:
        """Whether there is a setup in the log, and so something to be seen."""
        if self.setup is not None:
            return True
        if self._reader is None:
            if not exists(self._log):
                return False
            self._identity = self._log.identity()
            if not self._topics.are_made(self._log):
                return False
            self._reader = self._stack.enter_context(self._log.reader())
            self._chunks, self._tables = Chunks(self._reader, self._topics), Tables(self._reader, self._topics)
            self.names = Names(self._tables)
        self.setup = read_setup(self._reader, self._topics)
        if self.setup is None:
            return False
        self._choose(self.setup)
        return True

    def _choose(self, setup: Setup) -> None:
        """Read which tables the pipeline has now."""
        self._chunks.refresh()
        self._chosen = [self._tables.by_schema(schema_id) for schema_id in self._chunks.tables_of(setup)]

    def progress(self) -> list[tuple[TargetSettings, str, dict[TableId, TableProgress], dict[int, Progress]]]:
        """Return what each target says: its error if it can't be asked, its tables, its groups."""
        if self.setup is not None:
            self._choose(self.setup)
        for view in self._views:
            view.refresh(self._identity)
        return [(view.settings, view.error, self._of(view), view.groups) for view in self._views]

    def version(self, schema_id: int) -> Table:
        """Return one version of a table."""
        return self._tables.by_schema(schema_id).table

    def keys_of_letters(self, target: str, table: TableId) -> list[tuple[str, ...]]:
        """Return all keys that the dead letters of a table touch on a target, as canonical text."""
        (view,) = (view for view in self._views if view.settings.name == target)
        found = []
        for letter in view.letters_of(table):
            layout = self._tables.by_schema(letter.schema_id).layout
            found += [key_values(layout, key) for key in (letter.key, letter.origin) if key is not None]
        return found

    def _of(self, view: TargetView) -> dict[TableId, TableProgress]:
        """The tables of a target that the pipeline has now, whether or not the target knows them yet."""
        found = {}
        for version in self._chosen:
            table = version.id
            if matches(table, view.settings.tables):
                found[table] = view.tables.get(table) or TableProgress(table, -1)
        return found

    def collect(self, *, ask_source: bool = True) -> PipelineStatus:
        """Return where everything stands now."""
        if not self.ready():
            return PipelineStatus(self._pipeline.pipeline, self._now(), False, SourceStatus(), 0, 0)
        now = self._now()
        self._chunks.refresh()
        captured = self._last_frontier()
        if ask_source:
            self._source_status = self._ask_source()
        source = replace(
            self._source_status,
            captured=captured.position if captured else 0,
            captured_at=captured.captured_at / 1e6 if captured else 0.0,
        )
        usage = self._log.usage()
        self.names.refresh()
        targets = tuple(
            self._target_status(view, error, tables, groups, source, now)
            for view, (_, error, tables, groups) in zip(self._views, self.progress(), strict=True)
        )
        return PipelineStatus(self._pipeline.pipeline, now, True, source, usage.used, usage.budget, targets)

    def _last_frontier(self) -> Frontier | None:
        """Return the last frontier, from the end of the topic: its validity is the business of those who apply it."""
        assert self._reader is not None
        start, end = self._log.offsets(self._topics.frontier)
        for record in reversed(self._reader.records(self._topics.frontier, max(start, end - _LOOK_BACK))):
            assert record.value is not None
            entry = decode_control(record.value)
            if not isinstance(entry, Claim):
                assert isinstance(entry, Frontier)
                return entry
        return None

    def _target_status(
        self,
        view: TargetView,
        error: str,
        tables: dict[TableId, TableProgress],
        groups: dict[int, Progress],
        source: SourceStatus,
        now: float,
    ) -> TargetStatus:
        rows = []
        loading = any(progress.state is TableState.LOADING for progress in tables.values())
        chunks_loaded = view.chunks() if loading else {}
        letters = view.letters()
        lags = {group: _lag(progress, source, now, bool(error)) for group, progress in groups.items()}
        for version in self._chosen:
            progress = tables.get(version.id)
            if progress is None:
                continue
            chunks = self._chunks.of(progress.table)
            estimated = sum(c.rows for c in chunks.plan.chunks) if chunks.plan else version.table.rows
            done = {n: m.rows for n, m in chunks.manifests.items() if n != HEAL}
            read = sum(done.values())
            loaded = progress.rows
            if progress.state is TableState.LOADING and progress.generation not in chunks.parts:
                there = chunks_loaded.get((progress.table, progress.generation), ())
                loaded = sum(done.get(number, 0) for number in there)
            if not chunks.missing and chunks.plan:
                estimated = read
            if progress.state is TableState.LIVE:
                lag = lags.get(progress.group, Lag())
            elif progress.progress != NOWHERE:
                lag = _lag(progress.progress, source, now, True)
            else:
                assert self.setup is not None
                lag = _lag(Progress(0, -1, self.setup.position, 0, self.setup.at), source, now, True)
            rows.append(
                TableStatus(
                    str(progress.table),
                    progress.state.value,
                    max(estimated, read),
                    read,
                    loaded,
                    progress.changes,
                    lag,
                    progress.error,
                    progress.remedy,
                    letters.get(progress.table, 0),
                    name if (name := self.names.now(str(progress.table))) != str(progress.table) else "",
                )
            )
        used = {progress.group for progress in tables.values()}
        positions = [progress.position for group, progress in groups.items() if group in used]
        going = [row.lag for row in rows if row.state not in STOPPED]
        worst = max(going, key=lambda lag: (lag.seconds, lag.bytes), default=Lag())
        return TargetStatus(view.settings.name, min(positions, default=0), worst, tuple(rows), error)

    def _ask_source(self) -> SourceStatus:
        from engines.postgres.connect import connect
        from engines.postgres.errors import translated
        from engines.postgres.replication import slot_state, wal_insert_lsn

        assert self.setup is not None
        try:
            with translated("source", "asking where it stands"):
                if self._source is None:
                    url = self._pipeline.source.url.get_secret_value()
                    self._source = connect(url, role="control", application="penstock status")
                end = wal_insert_lsn(self._source)
                slot = slot_state(self._source, self.setup.slot)
        except ReplicationError as error:
            if self._source is not None:
                self._source.close()
            self._source = None
            return SourceStatus(error=str(error))
        if slot is None:
            # A load that is complete has dropped its slot, and follows nothing any more.
            return SourceStatus(0 if self.setup.mode == Mode.LOAD else end, slot="missing")
        state = "lost" if slot.lost else slot.wal_status or "reserved"
        kept = max(0, end - slot.restart) if slot.restart else 0
        budget = self._pipeline.source.wal_budget or 0
        self._kept.add(self._clock(), kept)
        full = self._kept.seconds_to(budget) if budget else None
        return SourceStatus(end, retained_bytes=kept, wal_budget=budget, wal_full_seconds=full, slot=state)


def _lag(progress: Progress, source: SourceStatus, now: float, at_target: bool) -> Lag:
    """Compare a place with what capture has reached, and that with the end of the source's own log."""
    end = max(source.wal_end, source.captured)
    missing = max(0, end - progress.position)
    if progress.position < source.captured:
        since = progress.captured_at / 1e6 or now
        return Lag(max(0.0, now - since), missing, "target" if at_target else "log")
    if source.wal_end > source.captured and source.captured_at:
        return Lag(max(0.0, now - source.captured_at), missing, "source")
    return Lag(0.0, missing, "")


def caught_up(
    tables: dict[TableId, TableProgress],
    groups: dict[int, Progress],
    goal: int | None,
) -> bool:
    """Whether a target is done: every table live or stopped, and, with a goal, every group at it.

    A table becomes live only when capture has passed the snapshots that it was read in, so without a goal its state
    alone says that the load is whole. Foreign keys are waited for, but for those that may tie a table to one that has
    stopped: they are not made before that goes on.
    """
    without = {progress.group for progress in tables.values() if progress.state in STOPPED}
    for progress in tables.values():
        if progress.state in STOPPED:
            continue
        if progress.state is not TableState.LIVE or not (progress.tied or progress.group in without):
            return False
        if goal is not None and groups.get(progress.group, NOWHERE).position < goal:
            return False
    return bool(tables)
