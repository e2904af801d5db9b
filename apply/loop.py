"""The service: prepare, load, catch up, and follow the frontiers. One worker; its share comes from the log.

What it does is decided by what the target says of itself, so that it may be killed anywhere. It is a machine of small
steps, taken in turn: the cohort that is ahead, a cohort that is behind, a chunk, a table's next state.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from functools import partial

from apply import commands
from apply.cohort import Beginning, Cohort, Portion, Span, Wanted
from apply.dead_letters import REPLAY, Tray, Waiting, key_columns
from apply.groups import assign, chunk_share, components
from apply.narrowing import Narrowed
from apply.target import (
    NOWHERE,
    Batch,
    Change,
    GroupMove,
    Progress,
    Redefinition,
    TableMove,
    TableProgress,
    TableRefused,
    Target,
)
from apply.telling import StateTeller
from codec.frames import pack, unpack
from codec.rows import Head, head
from schemas.errors import (
    LOAD_AGAIN,
    LOAD_TABLE_AGAIN,
    GapDetected,
    LogRewound,
    ReplicationError,
    RowError,
    SchemaUnsupported,
    WriteConflict,
)
from schemas.events import EventKind
from schemas.frontier import HEAL, Chosen, Manifest, Setup, Visibility
from schemas.pipeline import Ddl, Mode, OnRowError, TablePolicy, matches
from schemas.record import Op
from schemas.states import STOPPED, TableState
from schemas.table import Objects, TableId
from transport.events import Teller
from transport.log import Log, LogReader, Membership, Partition, Range
from transport.topics import Topics
from transport.views import Chunks, Part, Registered, TableChunks, Tables, read_setup, read_trimmed

_TOLD = 5  # refused rows of one transaction that people are told of one by one
_AT_LEISURE = 200  # times as long as a look at the target's tables takes nobody looks again once all is settled
PREPARED_AT_ONCE = 50
"""Tables, partitions counted, that are made in one transaction: the target's server has room for so many locks."""

_IMPATIENT = 0.001  # seconds until it is asked again what has been built; doubled as long as nothing has


@dataclass(frozen=True, slots=True)
class Limits:
    """How much is done at once, and how often what rarely changes is looked at, in seconds."""

    batch_records: int = 100_000
    batch_frontiers: int = 5_000
    piece_bytes: int = 64 << 20  # of the log; its net changes take as much again, and their form for the target too
    note_every: float = 1.0  # progress that holds no changes
    look_every: float = 0.25  # for what other workers do: loaded chunks, prepared tables
    share_every: float = 0.05
    commands_at_once: int = 1_000
    tell_every: float = 0.5
    move_seconds: float = 0.05  # for tables that move to their next states, before others get their turn
    failed_every: float = 1.0  # whether a failed table was told to go on
    together_seconds: float = 10.0  # that those who are ahead wait for tables that are loaded, and about to join them
    settled_every: float = 5.0  # whether the target still is as it was when the last table became live


@dataclass(slots=True)
class Stats:
    """What a worker has done since it started, and where it stands; for metrics, never for decisions."""

    batches: int = 0
    records: int = 0  # before folding
    changes: int = 0  # after it
    rows_loaded: int = 0
    chunks_loaded: int = 0
    conflicts: int = 0
    failures: int = 0
    dead_letters: int = 0
    position: int = 0  # of the cohort that is ahead
    commit_time: int = 0
    captured_at: int = 0
    by_table: dict[TableId, int] = field(default_factory=lambda: defaultdict(int))


class Apply:
    """One apply worker of one target.

    Nothing is opened before the first `step`. After an exception it must be closed and made anew; what was done is
    in the target. One that does not follow only helps to load: whoever follows alone keeps all tables at one moment of
    the source, not only those that are tied together.
    """

    def __init__(
        self,
        pipeline: str,
        log: Log,
        target: Target,
        *,
        name: str,
        tables: tuple[str, ...] = (),
        follows: bool = True,
        policy: Callable[[TableId], TablePolicy] = lambda table: TablePolicy(),
        clock: Callable[[], float] = time.monotonic,
        limits: Limits | None = None,
        teller: Teller | None = None,
    ) -> None:
        self._log, self._target, self._clock = log, target, clock
        self._topics, self._name = Topics(pipeline), name
        self._names = (
            (f"{pipeline}.load.{name}", f"{pipeline}.apply.{name}") if follows else (f"{pipeline}.load.{name}",)
        )
        self._patterns, self._policy = tables, policy
        self._limits = limits or Limits()
        self._stack = ExitStack()
        self._reader: LogReader | None = None
        self._shares: list[Membership] = []  # of the chunks, and of the groups if it follows
        self._tasks = (
            self._obey,
            self._move_tables,
            self._follow_ahead,
            self._follow_behind,
            self._load_chunk,
            self._recall,
        )
        self._turn = 0
        self.stats = Stats()

        self._teller = teller or Teller(log, self._topics, f"apply-{name}")
        self._told_at = self._recall_from = -1e9

        self._setup: Setup | None = None
        self._chosen: Chosen | None = None  # what was registered last
        self._states: StateTeller
        self._versions: Tables
        self._chunks: Chunks
        self._made_with: dict[TableId, Registered] = {}
        self._tied_to: dict[TableId, tuple[TableId, ...]] = {}
        self._schema_of: dict[int, Registered | None] = {}
        self._beginnings: dict[int, Beginning] = {}

        self._chunk_share: frozenset[int] = frozenset()
        self._owned: frozenset[int] = frozenset()
        self._stored: dict[int, Progress] = {}
        self._known: dict[TableId, TableProgress] = {}
        self._unsettled: set[TableId] = set()  # of this worker's tables, those that go on by themselves
        self._unsettled_anywhere: set[TableId] = set()
        self._failed: set[TableId] = set()
        self._waiting: dict[TableId, Waiting] = {}  # what the tables that this worker follows have in the dead letters
        self._cohorts: list[Cohort] = []
        self._loaded: dict[tuple[TableId, int], set[int]] = {}  # by table and generation
        self._loaded_until = -1e9  # when they may be asked for again
        self._to_move: dict[TableId, None] = {}  # in this order
        self._building: set[TableId] = set()  # the target has something to make for them
        self._arriving: dict[TableId, float] = {}  # loaded, and not live yet; since when
        self._patience = _IMPATIENT
        self._todo: list[tuple[TableId, int, int]] = []
        self._obeyed = 0  # of the commands, those that are carried out or not for this worker
        self._counted: dict[TableId, int] = defaultdict(int)
        self._noted_at = self._looked_at = self._find_from = self._asked_at = self._shared_at = self._moved_at = -1e9
        self._refreshed_at = self._refresh_from = -1e9
        self._refresh_took = 0.0
        self._moves_due = self._again_due = self._chunks_due = True
        self._well = True  # whether no step was broken off

    # ------------------------------------------------------------------------------------------------ outside

    @property
    def tables(self) -> dict[TableId, TableProgress]:
        """What this worker knows of every table of the target; of those that others own it may be late."""
        return dict(self._known)

    @property
    def owned(self) -> frozenset[int]:
        """The groups that are this worker's."""
        return self._owned

    @property
    def started(self) -> bool:
        """Whether the source is set up, and the target open."""
        return bool(self._shares)

    def step(self) -> bool:
        """Do one bounded piece of work, and return whether there was any."""
        self._well = False
        worked = self._step()
        self._well = True
        return worked

    def _step(self) -> bool:
        try:
            if not self._shares:
                return self._start()
            if self._take_share():
                return True
            if self._clock() - self._told_at >= self._limits.tell_every:
                self._tell()
            for _ in self._tasks:
                task = self._tasks[self._turn]
                self._turn = (self._turn + 1) % len(self._tasks)
                if task():
                    return True
            return self._note(idle=True)
        except (WriteConflict, LogRewound) as error:
            # Another owner went on, and the log may have been trimmed behind him: see how far, and go on from there.
            self.stats.conflicts += 1
            if not self._shares:
                raise
            before = self._standing()
            self._reload()
            if isinstance(error, LogRewound) and before == self._standing():
                raise
            return True

    def wait(self, timeout: float) -> None:
        """Return when there may be work again, or after `timeout` seconds."""
        self._tell()
        if self._reader is None:
            time.sleep(min(timeout, 0.2))
            return
        if self._setup is None:
            # What came after the latest step looked is seen by the next one, not much later.
            self._reader.wait({self._topics.control: self._log.offsets(self._topics.control).end}, min(timeout, 0.2))
            return
        ends = {self._topics.chunks: self._chunks.next}
        if self._cohorts and not self._awaits():
            ends[self._topics.frontier] = self._cohorts[-1].next
        if self._unsettled:
            timeout = min(timeout, self._patience if self._building else self._limits.share_every)
            self._patience = min(2 * self._patience, self._limits.share_every) if self._building else _IMPATIENT
        elif self._is_behind_with_notes():
            timeout = min(timeout, max(0.0, self._noted_at + self._limits.note_every - self._clock()))
        if self._reader.wait(ends, timeout) and self._unsettled_anywhere:
            self._looked_at = -1e9  # what has come may be a chunk: it is looked at now, or the next wait would be none

    def close(self) -> None:
        """Give up everything; what is unfinished is done again by the next. Never raises.

        What was only to be noted from time to time is noted first, unless something has gone wrong.
        """
        if self._well and self._shares:
            self._noted_at = -1e9
            with suppress(ReplicationError):
                self._note(idle=False)
        self._teller.close()
        self._stack.close()
        self._target.close()

    # ------------------------------------------------------------------------------------------------ start

    def _start(self) -> bool:
        if self._reader is None:
            if not self._topics.are_made(self._log):
                return False
            self._reader = self._stack.enter_context(self._log.reader())
        setup = read_setup(self._reader, self._topics)
        if setup is None:
            return False
        self._versions = Tables(self._reader, self._topics)
        self._versions.refresh()
        self._chunks = Chunks(self._reader, self._topics)
        self._chunks.refresh()
        self._target.open(self._log.identity())
        self._states = StateTeller(self._teller, self._log, self._reader, self._topics, self._name)
        self._register(setup)
        self._setup = setup
        self._shares = [self._stack.enter_context(self._log.membership(name)) for name in self._names]
        return True

    def _register(self, setup: Setup) -> None:
        """Let the target know the tables that the pipeline has for it now."""
        self._chosen = self._chunks.chosen
        self._made_with.clear()
        self._tied_to.clear()
        self._schema_of.clear()
        for schema_id in self._chunks.tables_of(setup):
            version = self._versions.by_schema(schema_id)
            if matches(version.id, self._patterns):
                self._made_with[version.id] = version
        tables = [version.table for version in self._made_with.values()]
        for component in components(tables):
            self._tied_to |= dict.fromkeys(component, component)
        known = self._target.tables()
        groups = assign(tables, {table: progress.group for table, progress in known.items()})
        assert self._reader is not None
        beginning = Progress(0, -1, setup.position)
        if (trimmed := read_trimmed(self._reader, self._topics)) is not None:
            beginning = Progress(trimmed.offset, trimmed.epoch, trimmed.position, trimmed.commit_time)
        if there := self._target.groups():
            # A new group has nothing to apply before its tables join it; where another stands nothing is trimmed.
            beginning = _place(min(there.values(), key=lambda progress: progress.offset))
        rows = [
            TableProgress(version.table.id, groups[version.table.id], schema_id=version.schema_id)
            for version in self._made_with.values()
        ]
        objects = Objects.model_validate_json(setup.objects)
        self._target.register(dict.fromkeys(groups.values(), beginning), rows, tables, objects)

    def _take_share(self) -> bool:
        now = self._clock()
        if now - self._shared_at < self._limits.share_every:
            return False
        self._shared_at = now
        chunks, *groups = [share.poll() for share in self._shares]
        owned = groups[0] if groups else frozenset()
        if (chunks, owned) == (self._chunk_share, self._owned):
            return False
        self._chunk_share, self._owned = chunks, owned
        self._states.begin_again()
        self._recall_from = -1e9
        self._reload()
        return True

    def _reload(self) -> None:
        """Read everything anew from the target."""
        assert self._setup is not None and self._reader is not None
        self._chunks.refresh()
        while self._chunks.chosen is not self._chosen:
            self._register(self._setup)
            self._chunks.refresh()
        stored = self._target.groups()
        self._stored = {group: progress for group, progress in stored.items() if group in self._owned}
        for of_tables in (self._known, self._unsettled, self._unsettled_anywhere, self._failed, self._arriving):
            of_tables.clear()
        for table in self._target.tables().values():
            self._learn(table)
        # After all rosters: if letters are taken in between, what is known here can't be moved.
        self._waiting = self._target.waiting()
        # What another worker has brought a table to may rest on snapshots that were not there when we looked last.
        self._chunks.refresh()
        if self._chunks.chosen is not self._chosen:
            self._reload()
            return
        self._refreshed_at = self._clock()
        self._refresh_from = self._refreshed_at + self._limits.look_every
        self._read_loaded()
        self._obeyed = 0
        self._todo.clear()
        self._to_move.clear()
        self._building.clear()
        self._turn = 0  # first of all it is seen which tables are about to join the others
        self._looked_at = -1e9
        self._cohorts.clear()
        self._moves_due = self._again_due = True
        start, end = self._log.offsets(self._topics.frontier)
        for group, progress in sorted(self._stored.items()):
            if progress.offset > end:
                raise LogRewound(
                    f"the target has applied the log up to {progress.offset}, but it ends at {end}",
                    remedy=f"restore the log, or {LOAD_AGAIN}",
                )
            if progress.offset < start:
                raise LogRewound(
                    f"the target has applied the log up to {progress.offset}, but it was trimmed up to {start}",
                    remedy="the target was restored, or not in the file for a while: drop its schema penstock and the"
                    " tables that were loaded, and give it another name in the file",
                )
            self._cohort_at(_place(progress)).groups.add(group)
        self._leave_out()
        coming = {
            issued.table
            for issued in self._chunks.commands
            if issued.reloads
            and issued.table in self._known
            and commands.is_due(issued, self._known[issued.table], self._name)
        }
        behind = [
            table for table in self._mine() if table.state is TableState.CATCHING_UP and table.table not in coming
        ]
        # What is said to be forgotten is not there for whoever goes on now, though some of it still may be: the
        # frontiers go last.
        trimmed = read_trimmed(self._reader, self._topics) if behind else None
        for table in behind:
            if trimmed is not None and table.progress.position < trimmed.position:
                self._fail(table.table, _forgotten())
            else:
                self._cohort_at(table.progress).tables.add(table.table)
        self._show()

    def _leave_out(self) -> None:
        """Let the live tables that the file no longer has for this target stay behind where their groups are, which go
        on without them: if they are there again one day, they have to catch up from here."""
        left = [
            progress
            for progress in self._known.values()
            if progress.state is TableState.LIVE
            and progress.group in self._stored
            and progress.table not in self._made_with
        ]
        if not left:
            return
        places = {progress.group: _place(self._stored[progress.group]) for progress in left}
        self._write(
            Batch(
                [self._group_move(group, place, other_members=True) for group, place in sorted(places.items())],
                [
                    self._table_move(progress.table, state=TableState.CATCHING_UP, progress=places[progress.group])
                    for progress in left
                ],
            )
        )

    def _standing(self) -> list[object]:
        """Return where all that is this worker's stands."""
        return [*self._stored.items(), *((t.table, t.state, t.generation, t.progress) for t in self._mine())]

    def _learn(self, progress: TableProgress) -> None:
        """Note what a table's state is, and whether there is anything to do about it."""
        table = progress.table
        before = self._known.get(table)
        self._known[table] = progress
        if before is None or (before.state, before.generation) != (progress.state, progress.generation):
            self._chunks_due = True
        stopped = progress.state in STOPPED
        settled = stopped or (progress.state is TableState.LIVE and progress.tied)
        if self._is_mine(progress):
            self._states.note(progress)
        for tables, belongs in (
            (self._unsettled, not settled and self._is_mine(progress)),
            (self._unsettled_anywhere, not settled and table in self._made_with),
            (self._failed, progress.state is TableState.FAILED),
        ):
            if belongs:
                tables.add(table)
            else:
                tables.discard(table)
        if progress.state in {TableState.INDEXING, TableState.CATCHING_UP} and self._is_mine(progress):
            self._arriving.setdefault(table, self._clock())
        else:
            self._arriving.pop(table, None)

    def _is_mine(self, progress: TableProgress) -> bool:
        return progress.group in self._owned and progress.table in self._made_with

    def _mine(self) -> list[TableProgress]:
        return [progress for progress in self._known.values() if self._is_mine(progress)]

    def _show(self) -> None:
        """Put in the figures how far the cohort is that is ahead."""
        if self._cohorts:
            reached = self._cohorts[-1].reached
            self.stats.position = reached.position
            self.stats.commit_time, self.stats.captured_at = reached.commit_time, reached.captured_at

    def _cohort_at(self, progress: Progress) -> Cohort:
        """Return the cohort that stands at a place, made if there is none; they are kept in order."""
        assert self._reader is not None
        at = bisect_left(self._cohorts, progress.offset, key=lambda cohort: cohort.reached.offset)
        if at < len(self._cohorts) and self._cohorts[at].reached.offset == progress.offset:
            return self._cohorts[at]
        made = Cohort(self._reader, self._topics, progress)
        self._cohorts.insert(at, made)
        return made

    # ------------------------------------------------------------------------------------------------ follow

    def _follow_ahead(self) -> bool:
        return bool(self._cohorts) and not self._awaits() and self._follow(self._cohorts[-1], None)

    def _awaits(self) -> bool:
        """Whether those who are ahead wait for tables that are loaded and only have to come to where they stand, so
        that the target is as of one moment; not for ever, for these may have far to go."""
        if not self._arriving:
            return False
        there = self._cohorts[-1].tables
        late = self._clock() - self._limits.together_seconds
        return any(since > late for table, since in self._arriving.items() if table not in there)

    def _follow_behind(self) -> bool:
        return len(self._cohorts) > 1 and self._follow(self._cohorts[0], self._cohorts[1])

    def _follow(self, cohort: Cohort, bound: Cohort | None) -> bool:
        """Apply the next frontiers to the members of a cohort."""
        limits = self._limits
        try:
            portion = cohort.take(self._wants, bound, limits.batch_records, limits.batch_frontiers)
            if portion is not None:
                self._apply(cohort, portion)
                cohort.done(portion)
        except TableRefused as refused:
            self._fail(refused.table, refused.cause)
            return True
        if bound is not None and cohort.reached.offset == bound.reached.offset:
            bound.absorb(cohort)
            self._cohorts.remove(cohort)
            cohort = bound
        joined = self._join(cohort)
        if portion is None:
            return joined
        self._show()
        self._note(idle=False)
        return True

    def _wants(self, cohort: Cohort, schema_id: int) -> Wanted:
        try:
            version = self._schema_of[schema_id]
        except KeyError:
            version = self._schema_of[schema_id] = self._version(schema_id)
        if version is None:
            return Wanted.NO
        progress = self._known[version.id]
        if progress.state is TableState.LIVE:
            if progress.group not in cohort.groups:
                return Wanted.NO
        elif progress.table not in cohort.tables:
            return Wanted.NO
        return Wanted.YES if schema_id == progress.schema_id else Wanted.ALONE

    def _version(self, schema_id: int) -> Registered | None:
        """Return the version of one of this target's tables that a schema id stands for."""
        version = self._versions.by_schema(schema_id)
        return version if version.table.id in self._known and version.table.id in self._made_with else None

    def _target_version(self, progress: TableProgress) -> Registered:
        return self._versions.by_schema(progress.schema_id)

    def _apply(self, cohort: Cohort, portion: Portion) -> None:
        """Write what a portion holds, and the progress of the members that it holds something for."""
        if not portion.records:
            return
        groups: set[int] = set()
        tables: set[TableId] = set()
        for schema_id in portion.expected:
            version = self._schema_of[schema_id]
            assert version is not None
            progress = self._known[version.table.id]
            if progress.state is TableState.LIVE:
                groups.add(progress.group)
            else:
                tables.add(progress.table)
        moves = {table: self._table_move(table, progress=portion.progress) for table in tables}
        left: set[int] = set()  # groups that a table leaves
        for table, version in (self._redefined(portion) if portion.redefines else {}).items():
            place = portion.progress if table in tables else self._known[table].progress
            moves[table] = self._table_move(table, progress=place, schema_id=version.schema_id)
            if version.table.dropped and self._policy(table).ddl is not Ddl.IGNORE:
                moves[table] = self._table_move(
                    table, progress=portion.progress, schema_id=version.schema_id, state=TableState.DROPPED
                )
                left |= {self._known[table].group} & groups
        group_moves = [
            self._group_move(group, portion.progress, other_members=group in left) for group in sorted(groups)
        ]
        table_moves = [moves[table] for table in sorted(moves)]

        def write(refused: TableId | None) -> None:
            counts: dict[TableId, int] = defaultdict(int)
            trays: dict[TableId, Tray] = {}
            read = self._pieces_in_order if portion.redefines else self._pieces
            pieces = read(portion, counts, trays, refused is not None)
            self._write(Batch(group_moves, table_moves, pieces, refused=refused))
            for tray in trays.values():
                self._set_aside(tray)
            for table, count in counts.items():
                self._counted[table] += count
                self.stats.by_table[table] += count
                self.stats.changes += count

        try:
            write(None)
        except TableRefused as refused:
            if not isinstance(refused.cause, RowError):
                raise
            write(refused.table)  # row by row where that is needed
        for move in table_moves:
            if move.progress.state is TableState.DROPPED:
                self._forget_letters(move.progress.table, "was dropped at the source")
                cohort.tables.discard(move.progress.table)
        self.stats.batches += 1
        self.stats.records += portion.records

    def _pieces(
        self, portion: Portion, counts: dict[TableId, int], trays: dict[TableId, Tray], sifts: bool
    ) -> Iterator[list[Change]]:
        """Read what a portion names and fold it; a piece is handed out whenever it is as large as may be."""
        assert self._reader is not None
        changes: dict[int, Change] = {}
        visibility = {schema_id: self._visibility(schema_id) for schema_id in portion.expected}
        size = 0
        for partition, spans in portion.spans.items():
            for span in spans:
                count = 0
                for block in self._reader.read(partition, Range(span.start, span.end)):
                    count += block.offsets
                    for schema_id in span.schemas:
                        change = changes.get(schema_id)
                        if change is None:
                            expected = portion.expected[schema_id]
                            change = changes[schema_id] = self._change(schema_id, expected, trays, sifts=sifts)
                        table = change.version.table.id
                        try:
                            taken = change.add(block.data, visibility[schema_id], span.epoch)
                        except RowError as error:
                            raise TableRefused(table, error) from error
                        counts[table] += taken
                    size += len(block.data) + 64 * block.count
                    if size >= self._limits.piece_bytes:
                        yield list(changes.values())
                        changes.clear()
                        size = 0
                _require_all(partition, span, count)
        if changes:
            yield list(changes.values())

    def _redefined(self, portion: Portion) -> dict[TableId, Registered]:
        """Let the target get ready for the versions in a portion, and return the last one of each table that is another
        one behind it than before."""
        last: dict[TableId, Registered] = {}
        for version, _, _ in self._records(portion):
            if (left_out := version.left_out) is not None:
                raise TableRefused(version.id, SchemaUnsupported(left_out.cause, remedy=left_out.remedy))
            before = last.get(version.id) or self._target_version(self._known[version.id])
            if version.schema_id != before.schema_id and self._policy(version.id).ddl is Ddl.APPLY:
                self._target.get_ready(version)
            last[version.id] = version
        return {table: version for table, version in last.items() if version.schema_id != self._known[table].schema_id}

    def _records(self, portion: Portion) -> Iterator[tuple[Registered, Head, bytes]]:
        """Yield the records of a portion that count, each with its version and framed alone, those of each table in
        their order."""
        assert self._reader is not None
        snapshots = {schema_id: self._snapshot(schema_id) for schema_id in portion.expected}
        for partition, spans in portion.spans.items():
            for span in spans:
                count = 0
                for block in self._reader.read(partition, Range(span.start, span.end)):
                    count += block.offsets
                    for key, value in unpack(block.data):
                        if value is None:
                            continue
                        about = head(value)
                        if about.schema_id not in span.schemas:
                            continue
                        snapshot = snapshots[about.schema_id]
                        if snapshot is not None and snapshot.sees(about.xid):
                            continue
                        version = self._schema_of[about.schema_id]
                        assert version is not None
                        yield version, about, pack(((key, value),))
                _require_all(partition, span, count)

    def _pieces_in_order(
        self, portion: Portion, counts: dict[TableId, int], trays: dict[TableId, Tray], sifts: bool
    ) -> Iterator[list[Change] | Redefinition]:
        """Do what `_pieces` does where tables become others on the way: record by record, which takes its time."""
        changes: dict[int, Change] = {}
        now: dict[TableId, Registered] = {}
        size = 0
        epochs = {span.epoch for spans in portion.spans.values() for span in spans}
        (epoch,) = epochs  # of a single frontier
        for version, about, data in self._records(portion):
            table = version.id
            before = now.get(table) or self._target_version(self._known[table])
            told = about.op is Op.DEFINE
            if told or before.schema_id != version.schema_id or size >= self._limits.piece_bytes:
                yield list(changes.values())
                changes.clear()
                size = 0
            if told or before.schema_id != version.schema_id:
                yield Redefinition(
                    before, version, self._known[table], told, self._policy(table).ddl, self._displaced(before, version)
                )
                now[table] = version
            if told:
                continue
            change = changes.get(version.schema_id)
            if change is None:
                expected = portion.expected[version.schema_id]
                change = changes[version.schema_id] = self._change(version.schema_id, expected, trays, sifts=sifts)
            try:
                counts[table] += change.add(data, None, epoch)
            except RowError as error:
                raise TableRefused(table, error) from error
            size += len(data) + 64
        if changes:
            yield list(changes.values())

    def _displaced(self, before: Registered, after: Registered) -> TableId | None:
        """Return which other table has, on the target, the name that one gets: the source has exchanged names."""
        if after.table.name == before.table.name:
            return None
        others = (progress for progress in self._known.values() if progress.table != after.id)
        return next((p.table for p in others if self._target_version(p).table.name == after.table.name), None)

    def _change(self, schema_id: int, expected: int, trays: dict[TableId, Tray], *, sifts: bool) -> Change:
        version = self._schema_of[schema_id]
        assert version is not None
        table = version.table.id
        if table not in trays and (sifts or table in self._waiting):
            trays[table] = Tray(table, self._waiting_of(version), keeps=self._sets_aside(table), sifts=sifts)
        version = self._accepted(version)
        return Change(version, self._target.net(version, expected), tray=trays.get(table))

    def _accepted(self, version: Registered) -> Registered:
        """Return a version as it is written to the target: whole, unless the target's table does not follow."""
        return self._target.accepted(version) if self._policy(version.id).ddl is Ddl.IGNORE else version

    def _sets_aside(self, table: TableId) -> bool:
        return self._policy(table).on_row_error is OnRowError.SET_ASIDE

    def _waiting_of(self, version: Registered) -> Waiting:
        """Return what waits of a table; its keys must be comparable with those of a version."""
        waiting = self._waiting.get(version.table.id, Waiting())
        for schema_id in waiting.schema_ids:
            if key_columns(self._versions.by_schema(schema_id).table) != key_columns(version.table):
                raise TableRefused(
                    version.table.id,
                    SchemaUnsupported(
                        "the table's key was changed at the source while some of its rows are in the dead letters",
                        remedy="`penstock dead-letters` replays or discards them; then resume the table",
                    ),
                )
        return waiting

    def _set_aside(self, tray: Tray) -> None:
        """Keep in mind, and tell, what has become a dead letter in a transaction that is committed."""
        if tray.waiting.letters:
            self._waiting[tray.table] = tray.waiting
        else:
            self._waiting.pop(tray.table, None)
        self._tell_letters(tray)

    def _forget_letters(self, table: TableId, why: str) -> None:
        """Tell that the letters of a table are gone with its rows."""
        if (waiting := self._waiting.pop(table, None)) is not None:
            text = f"{waiting.letters} dead letters are gone: the table {why}"
            self._teller.tell(EventKind.NOTICE, text, table=table, target=self._name)

    def _tell_letters(self, tray: Tray) -> None:
        self.stats.dead_letters += tray.added
        tell = partial(self._teller.tell, table=tray.table, target=self._name)
        for row, cause, position in tray.refused[:_TOLD]:
            tell(EventKind.ERROR, f"{row}, was set aside: {cause}", remedy=REPLAY, position=position)
        if len(tray.refused) > _TOLD:
            tell(EventKind.ERROR, f"{len(tray.refused) - _TOLD} more rows were set aside", remedy=REPLAY)
        if tray.cleared:
            tell(EventKind.NOTICE, f"{tray.cleared} dead letters are gone: what they were about {tray.why_cleared}")

    def _visibility(self, schema_id: int) -> tuple[int, int, frozenset[int]] | None:
        """Return what the loaded rows of a table show already, as the transcoder takes it."""
        snapshot = self._snapshot(schema_id)
        return (snapshot.xmin, snapshot.xmax, frozenset(snapshot.xip)) if snapshot is not None else None

    def _snapshot(self, schema_id: int) -> Visibility | None:
        """Return what the loaded rows of a table show already. A table that has joined its group is past all that."""
        version = self._schema_of[schema_id]
        assert version is not None
        progress = self._known[version.id]
        if progress.state is TableState.LIVE or progress.snapshot < 0:
            return None
        return self._chunks.snapshots[progress.snapshot].visibility

    def _join(self, cohort: Cohort) -> bool:
        """Let the tables that stand where their group stands go on with it, once that is past all their snapshots."""
        ready = [
            table
            for table in sorted(cohort.tables)
            if self._known[table].group in cohort.groups and cohort.reached.position >= self._join_position(table)
        ]
        if not ready:
            return False
        # Rows of the group up to here are in the target, though that may not be noted yet: it must be, because the
        # table's own are counted from here on with the group's.
        groups = {self._known[table].group for table in ready}
        self._write(
            Batch(
                [self._group_move(group, cohort.reached, other_members=True) for group in sorted(groups)],
                [self._table_move(table, state=TableState.LIVE, progress=cohort.reached) for table in ready],
            )
        )
        cohort.tables.difference_update(ready)
        self._moves_due = True
        return True

    def _join_position(self, table: TableId) -> int:
        """Return the position that capture must have passed before nothing that a snapshot saw can be lost."""
        if self._known[table].snapshot < 0:
            return 0
        # It is the newest of those that the table was read in, and so its message is the last.
        return self._chunks.snapshots[self._known[table].snapshot].position

    def _note(self, *, idle: bool) -> bool:
        """Store how far the members have come that had no changes for a while, all at once and not often."""
        now = self._clock()
        if now - self._noted_at < self._limits.note_every or not self._is_behind_with_notes():
            return False
        groups = [
            self._group_move(group, cohort.reached)
            for cohort in self._cohorts
            for group in sorted(cohort.groups)
            if _place(self._stored[group]) != cohort.reached
        ]
        tables = [
            self._table_move(table, progress=cohort.reached)
            for cohort in self._cohorts
            for table in sorted(cohort.tables)
            if self._known[table].progress != cohort.reached
        ]
        self._noted_at = now
        counted, self._counted = self._counted, defaultdict(int)
        self._write(Batch(groups, tables, changes=counted))
        return idle

    def _is_behind_with_notes(self) -> bool:
        return bool(self._counted) or any(
            any(_place(self._stored[group]) != cohort.reached for group in cohort.groups)
            or any(self._known[table].progress != cohort.reached for table in cohort.tables)
            for cohort in self._cohorts
        )

    # ------------------------------------------------------------------------------------------------ moves

    def _table_move(self, table: TableId, **changed: object) -> TableMove:
        before = self._known[table]
        return TableMove(before, replace(before, **changed))  # type: ignore[arg-type]

    def _group_move(self, group: int, progress: Progress, *, other_members: bool = False) -> GroupMove:
        """Return the move of a group to a place. If a table joins or leaves it in the same batch, whoever does not know
        of that must not move the group any more: he would leave that table's changes out, or apply them twice."""
        before = self._stored[group]
        return GroupMove(group, before, progress._replace(roster=before.roster + other_members))

    def _write(self, batch: Batch) -> None:
        self._target.write(batch)
        for group in batch.groups:
            self._stored[group.group] = group.progress
        for table in batch.tables:
            self._learn(table.progress)

    def _fail(self, table: TableId, cause: ReplicationError) -> None:
        """Set a table aside with its error, where it stands; its group goes on without it."""
        before = self._known[table]
        groups: list[GroupMove] = []
        progress = before.progress
        if before.state is TableState.LIVE:
            # Whatever its group has applied it has applied too, but nothing after that; what is stored is certain.
            progress = _place(self._stored[before.group])
            groups.append(self._group_move(before.group, progress, other_members=True))
        move = self._table_move(
            table,
            state=TableState.FAILED,
            progress=progress,
            error=f"{type(cause).__name__}: {cause}",
            remedy=cause.remedy,
            stopped_in=before.state.value,
        )
        self._write(Batch(groups, [move]))
        self.stats.failures += 1
        self._forget_place(table)
        self._todo = [entry for entry in self._todo if entry[0] != table]
        self._moves_due = True

    # ------------------------------------------------------------------------------------------------ commands

    def _obey(self) -> bool:
        """Carry out the commands for this worker's tables, in order, those for different tables together.

        The offset of each is stored with the state that it makes: so it is carried out exactly once, whoever dies.
        """
        now = self._clock()
        if now - self._asked_at >= self._limits.share_every:
            self._asked_at = now
            self._hear()
        if self._chunks.chosen is not self._chosen:
            self._reload()
            return True
        issued = self._chunks.commands
        groups: set[int] = set()
        moves: dict[TableId, TableMove] = {}
        while self._obeyed < len(issued) and len(moves) < self._limits.commands_at_once:
            command = issued[self._obeyed]
            before = self._known.get(command.table)
            if before is not None and self._is_mine(before) and commands.is_due(command, before, self._name):
                if before.table in moves:
                    break
                place = before.progress
                if before.state is TableState.LIVE:
                    # Whatever its group has applied it has applied too, but nothing after that.
                    place = _place(self._stored[before.group])
                    groups.add(before.group)
                moves[before.table] = TableMove(before, commands.obeyed(command, before, place))
            self._obeyed += 1
        if not moves:
            return False
        left = [self._group_move(group, _place(self._stored[group]), other_members=True) for group in sorted(groups)]
        self._write(Batch(left, list(moves.values())))
        self._reload()
        return True

    def _recall(self) -> bool:
        """Look now and then what people were told of this worker's tables."""
        if not self._owned or self._clock() < self._recall_from:
            return False
        if self._states.recall(self._mine):
            return True
        self._recall_from = self._clock() + self._limits.settled_every
        return False

    def _tell(self) -> None:
        # After a while of silence at once: what is not told yet when this process dies is lost.
        if self._teller.flush():
            self._told_at = self._clock()

    # ------------------------------------------------------------------------------------------------ load

    def _hear(self) -> None:
        """Read on in the chunks."""
        if self._chunks.refresh(fresh=False):
            self._moves_due = self._again_due = self._chunks_due = True

    def _load_chunk(self) -> bool:
        """Load the next final chunk of this worker's share."""
        if not self._todo:
            now = self._clock()
            if now - self._looked_at < self._limits.share_every:
                return False
            self._looked_at = now
            self._hear()
            if self._chunks_due and now >= self._find_from:
                self._chunks_due = self._find_chunks()
                # With very many tables that takes its time, and every chunk of any table is a reason for it.
                self._find_from = now + 10 * (self._clock() - now)
            if not self._todo:
                return False
        table, generation, number = self._todo.pop()
        progress = self._known[table]
        if progress.state is not TableState.LOADING or progress.generation != generation:
            return True
        chunks = self._chunks.of(table)
        if chunks.plan is None or chunks.plan.generation != generation or number not in chunks.manifests:
            return True  # the log knows a later plan by now
        self._load(progress, chunks.manifests[number], self._versions.by_schema(chunks.plan.schema_id))
        return True

    def _find_chunks(self) -> bool:
        """Note the chunks that are final, of this worker's share, and not loaded yet; return whether there may be more
        once it is known what others did."""
        late = False
        for table, chunks in self._chunks.tables.items():
            progress = self._known.get(table)
            if progress is None or chunks.plan is None or table not in self._made_with:
                continue
            if progress.state is not TableState.LOADING or progress.generation != chunks.plan.generation:
                late |= _is_loading(progress) and progress.generation < chunks.plan.generation
                continue
            self._todo += [
                (table, progress.generation, number)
                for number in sorted(chunks.manifests, reverse=True)
                if number != HEAL
                and chunk_share(table, number) in self._chunk_share
                and number not in self._loaded_of(progress)
            ]
        if late:
            self._refresh()
        return late

    def _loaded_of(self, progress: TableProgress) -> set[int]:
        return self._loaded.setdefault((progress.table, progress.generation), set())

    def _read_loaded(self) -> None:
        """Ask the target which chunks are loaded, others' too; not again before ten times as long as that took."""
        began = self._clock()
        self._loaded = self._target.chunks()
        took = self._clock() - began
        self._loaded_until = self._clock() + max(self._limits.share_every, 10 * took)

    def _load(self, progress: TableProgress, manifest: Manifest, version: Registered) -> None:
        """Write a chunk's rows."""
        number = manifest.chunk
        try:
            version = self._accepted(version)
            # Only what is healed may have letters already, and then all chunks are in, whoever loaded them.
            waiting = self._target.waiting().get(progress.table, Waiting()) if number == HEAL else Waiting()
            tray = Tray(
                progress.table,
                waiting,
                keeps=self._sets_aside(progress.table),
                sifts=True,
                where="the healing" if number == HEAL else f"chunk {number}",
            )
            if manifest.generation in self._chunks.of(progress.table).parts:
                tray.clear()
            rows = self._target.load(
                version, progress, number, manifest.rows, lambda: self._rows_of(manifest, version), tray
            )
        except TableRefused as refused:
            self._fail(progress.table, refused.cause)
            return
        self._loaded_of(progress).add(number)
        if rows >= 0:
            self.stats.chunks_loaded += 1
            self.stats.rows_loaded += rows
            self._tell_letters(tray)
        self._to_move[progress.table] = None

    def _rows_of(self, manifest: Manifest, version: Registered) -> Iterator[bytes]:
        partition, span = Partition(manifest.topic, manifest.partition), Range(manifest.start, manifest.end)
        try:
            for batch in self._batches(partition, span):
                yield version.narrow.batch(batch) if isinstance(version, Narrowed) else batch
        except LogRewound as error:
            if self._log.offsets(partition).start <= span.start:
                raise
            table = TableId(manifest.table_schema, manifest.table_name)
            self._chunks.refresh()
            load = self._chunks.of(table)
            planned = load.plan is not None and load.plan.generation == manifest.generation and not load.outdated
            if not (planned or manifest.generation in load.parts) or self._chunks.chosen is not self._chosen:
                raise WriteConflict(f"a chunk of {table} was forgotten because nobody needs it any more") from error
            raise TableRefused(table, _forgotten()) from error

    def _batches(self, partition: Partition, span: Range) -> Iterable[bytes]:
        assert self._reader is not None
        if span.start == span.end:
            return
        count = 0
        for block in self._reader.read(partition, span):
            count += block.offsets
            for _, value in unpack(block.data):
                if value is None:
                    raise GapDetected(f"a batch in {partition.topic} is empty")
                yield value
        if count != span.end - span.start:
            raise GapDetected(f"{partition.topic} holds {count} batches in {span}")

    # ------------------------------------------------------------------------------------------------ tables

    def _move_tables(self) -> bool:
        """Bring a table to its next state."""
        now = self._clock()
        limits = self._limits
        # Though all is settled, the target may have been restored to an earlier state meanwhile; and somebody may have
        # let a failed table go on.
        often = limits.failed_every if self._failed else max(limits.settled_every, _AT_LEISURE * self._refresh_took)
        if now >= self._refresh_from and (self._unsettled_anywhere or now - self._refreshed_at >= often):
            if self._refresh():
                return True
            self._moves_due = True
        if self._building and (built := self._target.built()):
            self._building.difference_update(built)
            self._to_move |= dict.fromkeys(built)
            self._patience = _IMPATIENT
        if not self._to_move and (self._moves_due or (self._unsettled and now - self._moved_at >= limits.share_every)):
            self._moves_due, self._moved_at = False, now
            # A table that has failed has to move only when it is to be loaded again.
            again = self._chunks.tables.keys() & self._failed if self._again_due else set()
            self._to_move = dict.fromkeys(sorted(self._unsettled | again))
            self._again_due = False
        return bool(self._to_move) and self._move_some()

    def _move_some(self) -> bool:
        """Bring tables to their next states, each by one; what needs no work of its own is written all at once."""
        moves: list[TableMove] = []
        moved: list[TableId] = []
        until = self._clock() + self._limits.move_seconds
        while self._to_move and self._clock() <= until:
            table = next(iter(self._to_move))
            del self._to_move[table]
            progress = self._known[table]
            if not self._is_mine(progress):
                continue
            try:
                done = self._move(progress)
            except TableRefused as refused:
                self._fail(refused.table, refused.cause)
                done = True
            if isinstance(done, TableMove):
                moves.append(done)
            if done:
                moved.append(progress.table)
        if moves:
            self._write(Batch(tables=moves))
            self._take_places([move.progress for move in moves])
        self._to_move |= dict.fromkeys(moved)
        return bool(moved or self._to_move)

    def _take_places(self, tables: list[TableProgress]) -> None:
        """Let tables that have moved stand where their new states say."""
        cohorts: list[Cohort] = []
        if any(progress.state is TableState.CATCHING_UP for progress in tables):
            self._waiting = self._target.waiting()  # whoever loaded chunks has set rows of them aside
        for progress in tables:
            if progress.state is TableState.LOADING:
                self._forget_place(progress.table)
                self._looked_at = -1e9
            elif progress.state is TableState.CATCHING_UP:
                cohort = self._cohort_at(progress.progress)
                cohort.tables.add(progress.table)
                if cohort not in cohorts:
                    cohorts.append(cohort)
        for cohort in cohorts:
            self._join(cohort)

    def _forget_place(self, table: TableId) -> None:
        for cohort in self._cohorts:
            cohort.tables.discard(table)
        self._cohorts = [cohort for cohort in self._cohorts if cohort.groups or cohort.tables]

    def _refresh(self) -> bool:
        """Look at what others did to the tables' states, not again before ten times as long as that took; return
        whether this worker had to begin anew."""
        now = self._clock()
        if now < self._refresh_from:
            return False
        tables = self._target.tables()
        self._refreshed_at = self._clock()
        self._refresh_took = self._refreshed_at - now
        self._refresh_from = self._refreshed_at + max(self._limits.look_every, 10 * self._refresh_took)
        for table, progress in tables.items():
            before = self._known.get(table)
            if progress is before:
                continue
            if before is not None and self._is_mine(progress):
                if (before.state, before.generation) != (progress.state, progress.generation):
                    self._reload()
                    return True
            else:
                self._learn(progress)
        return False

    def _move(self, progress: TableProgress) -> TableMove | bool:
        """Bring one table to its next state, if it is ripe for that; return whether it was, or the move that is to be
        written."""
        chunks = self._chunks.of(progress.table)
        generation = chunks.plan.generation if chunks.plan else -1
        if progress.state is TableState.WAITING:
            return self._prepare(progress)
        if progress.state is TableState.LOADING and progress.generation in chunks.parts:
            return self._end_part(progress, chunks.parts[progress.generation])
        if generation > progress.generation and _is_loading(progress) and self._may_load(chunks):
            return self._begin_generation(progress, generation)
        match progress.state:
            case TableState.LOADING:
                return self._end_load(progress, chunks)
            case TableState.INDEXING:
                return self._finish(progress, chunks)
            case TableState.LIVE if not progress.tied:
                return self._tie(progress)
            case _:
                return False

    def _prepare(self, progress: TableProgress) -> bool:
        """Prepare a table, and those that wait behind it for the same: a transaction for each would cost more."""
        assert self._setup is not None
        if not self._may_prepare(progress):
            return False
        tables: list[TableId] = []
        weight = 0
        for table in (progress.table, *self._to_move):
            weight += 1 + len(self._target_version(self._known[table]).table.definition.partitions)
            if tables and (weight > PREPARED_AT_ONCE or not self._may_prepare(self._known[table])):
                break
            tables.append(table)
        for table in tables:
            self._to_move.pop(table, None)
        loads = self._setup.mode != Mode.CHANGES
        state = TableState.LOADING if loads else TableState.INDEXING
        moves = [(self._target_version(self._known[table]), self._table_move(table, state=state)) for table in tables]
        try:
            for version, _ in moves:
                self._target.get_ready(version)  # tables that were added bring what they rest on
            prepared = self._target.prepare(moves)
        except TableRefused as refused:
            self._to_move |= dict.fromkeys(table for table in tables if table != refused.table)
            raise
        for done in prepared:
            self._learn(done)
        self._to_move |= dict.fromkeys(tables)
        return True

    def _may_prepare(self, progress: TableProgress) -> bool:
        if progress.state is not TableState.WAITING or not self._is_mine(progress):
            return False
        definition = self._target_version(progress).table.definition
        others = (*definition.inherits, *definition.row_types)
        # The statement that makes the table names them.
        return all(other not in self._known or self._known[other].state is not TableState.WAITING for other in others)

    def _may_load(self, chunks: TableChunks) -> bool:
        """Whether a table's plan is for this target too: it is not, if it came when the log had been trimmed."""
        admitted = self._chunks.admitted
        return not chunks.outdated and (admitted is None or self._name in admitted.targets)

    def _begin_generation(self, progress: TableProgress, generation: int) -> TableMove | bool:
        plan = self._chunks.of(progress.table).plan
        assert plan is not None
        before, version = self._target_version(progress), self._versions.by_schema(plan.schema_id)
        move = self._table_move(
            progress.table,
            state=TableState.LOADING,
            schema_id=plan.schema_id,
            generation=generation,
            progress=NOWHERE,
            snapshot=-1,
            rows=0,
            error="",
            remedy="",
            stopped_in="",
        )
        if self._policy(progress.table).ddl is Ddl.IGNORE:
            version = before = self._accepted(version)
        if progress.generation < 0 and version is before:
            return move
        self._target.get_ready(version)
        piece = Redefinition(before, version, progress, False, displaces=self._displaced(before, version))
        if progress.generation < 0:
            self._target.write(Batch(tables=[move], pieces=[piece]))
        else:
            self._target.restart(piece, move)
            self._forget_letters(progress.table, "is loaded anew")
        self._learn(move.progress)
        self._take_places([move.progress])
        return True

    def _end_load(self, progress: TableProgress, chunks: TableChunks) -> TableMove | bool:
        """Once everything final is loaded, healing last, the rows stand for one snapshot."""
        snapshot = chunks.effective_snapshot()
        if chunks.plan is None or not chunks.complete() or progress.generation != chunks.plan.generation:
            return False
        if snapshot is not None and snapshot not in self._chunks.snapshots:
            return False
        wanted = {number for number in chunks.manifests if number != HEAL}
        if not wanted <= self._loaded_of(progress) and self._clock() >= self._loaded_until:
            self._read_loaded()
        if not wanted <= self._loaded_of(progress):
            return False
        if chunks.healed and HEAL not in self._loaded_of(progress):
            version = self._versions.by_schema(chunks.plan.schema_id)
            self._load(progress, chunks.manifests[HEAL], version)
            return True
        rows = sum(manifest.rows for number, manifest in chunks.manifests.items() if number != HEAL)
        if snapshot is None:
            # A table without a single chunk: nothing was read, so it stands for the oldest snapshot there is.
            snapshot = min(self._chunks.snapshots)
        return self._table_move(progress.table, state=TableState.INDEXING, snapshot=snapshot, rows=rows)

    def _end_part(self, progress: TableProgress, part: Part) -> TableMove | bool:
        """Once a part is loaded all rows stand for the snapshot that it was read in, and the table goes on from there;
        if it can't be had, from where it has stopped."""
        if part.given_up:
            return self._table_move(progress.table, state=TableState.CATCHING_UP)
        if part.manifest is None:
            return False
        if HEAL not in self._loaded_of(progress):
            self._load(progress, part.manifest, self._target_version(progress))
            return True
        return self._catch_up(progress, part.manifest.snapshot)

    def _finish(self, progress: TableProgress, chunks: TableChunks) -> TableMove | bool:
        """Once its indexes are there, a table begins to catch up where its snapshot ends."""
        if not self._target.finish(self._target_version(progress), progress):
            self._building.add(progress.table)
            return False
        return self._catch_up(progress, progress.snapshot)

    def _catch_up(self, progress: TableProgress, snapshot: int) -> TableMove:
        assert self._setup is not None and self._reader is not None
        # Without a snapshot all that was ever captured is to be applied.
        xmin = self._chunks.snapshots[snapshot].xmin if snapshot >= 0 else 0
        if xmin not in self._beginnings:
            self._beginnings[xmin] = Beginning(self._reader, self._topics, self._setup.position, xmin)
        try:
            start = self._beginnings[xmin].find()
        except LogRewound as error:
            raise TableRefused(progress.table, error) from error
        return self._table_move(progress.table, state=TableState.CATCHING_UP, progress=start, snapshot=snapshot)

    def _tie(self, progress: TableProgress) -> TableMove | bool:
        """Make foreign keys when all that they tie together is live."""
        tied = self._tied_to[progress.table]
        if any(table not in self._known or self._known[table].state is not TableState.LIVE for table in tied):
            return False
        assert self._setup is not None
        try:
            if not self._target.tie(self._target_version(progress), progress, last=self._setup.mode == Mode.LOAD):
                self._building.add(progress.table)
                return False
        except TableRefused as refused:
            # The rows are what the source's are: a key that does not hold is told, but stops nothing.
            error, remedy = f"{type(refused.cause).__name__}: {refused.cause}", refused.cause.remedy
            self._states.tell(EventKind.ERROR, progress.table, error, remedy)
            return self._table_move(progress.table, tied=True, error=error, remedy=remedy)
        return self._table_move(progress.table, tied=True)


def _require_all(partition: Partition, span: Span, count: int) -> None:
    """Raise `GapDetected` unless that are as many records as the frontiers have named."""
    if count != span.end - span.start:
        raise GapDetected(
            f"{partition.topic} holds {count} records from {span.start} to {span.end} instead of"
            f" {span.end - span.start}"
        )


def _is_loading(progress: TableProgress) -> bool:
    """Whether a table takes another generation. One that is past its load has all of a generation that was complete;
    one that is paused takes it when it goes on."""
    return progress.state is not TableState.PAUSED and progress.goes_on_in is TableState.LOADING


def _forgotten() -> LogRewound:
    """Say why a table that had failed, or was not in the file for a while, can't go on."""
    return LogRewound("what it needs was forgotten while it had failed or was left out", remedy=LOAD_TABLE_AGAIN)


def _place(progress: Progress) -> Progress:
    """Return where a group stands, without what only groups have."""
    return progress._replace(roster=0)
