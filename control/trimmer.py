"""The trimmer: lets the log forget what every target has applied, and under pressure what every target has loaded.

Before anything is forgotten a `Trimmed` is durable that says where the frontiers begin from then on: whoever reads
them from the beginning begins there, so nobody meets a frontier whose rows are gone. Killed at any point the trimmer
is simply started again: what it has announced and not carried out it finds at the log's own beginning.

As long as there is room, nothing is forgotten: a target that is added later is then loaded from the log alone.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from apply.commands import is_due
from apply.target import MakeTarget, Progress, TableProgress, find_target
from control.status import TargetView
from control.wiring import exists
from schemas.errors import LOAD_TABLE_AGAIN, LogRewound
from schemas.events import EventKind
from schemas.frontier import Chosen, Freed, Plan, Setup, Trimmed, Unneeded
from schemas.pipeline import Mode, Pipeline, matches
from schemas.record import encode_control
from schemas.states import GIVEN_UP, STOPPED, TableState
from schemas.table import TableId
from snapshot import rules
from transport.events import Teller
from transport.log import Log, LogReader, LogWriter, Partition
from transport.topics import Topics
from transport.views import Chunks, Frontiers, TableChunks, Tables, ValidFrontier, read_setup, trims

_log = logging.getLogger(__name__)

WARN_FROM = 0.75
WARN_SECONDS = 60.0
"""The share of the log's budget from which on people are told what holds it, and how often."""

_AT_LEISURE = 200
"""How many times as long as it takes to ask the targets they are left alone, while there is room in the log."""

MOST_EVENTS = 100_000
EVENTS_SECONDS = 60.0

_READ_AT_ONCE = 1_000


@dataclass(frozen=True, slots=True)
class Limits:
    """How much is kept, and how often is looked, in seconds."""

    full_from: float = 0.25  # the share of its budget from which on a log is trimmed of all that can go
    most_frontiers: int = 100_000  # however little room they take: who starts reads them all
    most_records: int = 1_000_000  # in a log that does not know how much room it takes, or has no limit
    look_every: float = 5.0
    look_full_every: float = 0.5
    sweep_from: float = 0.75  # the share from which on failed tables, and what no manifest names, hold nothing
    still: float = 60.0  # after so many seconds in which nobody wrote behind it


@dataclass(frozen=True, slots=True)
class Answer:
    """What one target says of itself."""

    name: str
    error: str  # why it can't be asked
    tables: Mapping[TableId, TableProgress]
    groups: Mapping[int, Progress]
    loaded: Mapping[tuple[TableId, int], set[int]] = field(default_factory=dict)  # by table and generation


class Held(Exception):
    """Nothing may be trimmed; the message says why."""


def to_be_loaded(answers: Sequence[Answer], chunks: Chunks) -> dict[tuple[str, TableId], int]:
    """Return what is to be loaded anew and has not heard of it yet, with the offsets of the commands."""
    return {
        (answer.name, issued.table): issued.offset
        for issued in chunks.commands
        if issued.reloads
        for answer in answers
        if issued.table in answer.tables and is_due(issued, answer.tables[issued.table], answer.name)
    }


def needed_from(answers: Sequence[Answer], chosen: Sequence[TableId], chunks: Chunks, mode: Mode) -> int:
    """Return the offset in `p.frontier` before which nothing is needed by any target. Raises `Held`.

    A table that is not live yet may need everything. One that has failed, or is paused, may be told to go on from
    where it stopped, as long as there is room for that. One that is skipped or dropped needs nothing any more.
    """
    if mode is not Mode.CHANGES:
        for table in chosen:
            if not chunks.of(table).settled():
                raise Held(f"{table} is being read at the source")
    places = []
    for answer in answers:
        if answer.error:
            raise Held(f"target {answer.name} can't be asked: {answer.error}")
        for name, table in to_be_loaded([answer], chunks):
            raise Held(f"{table} on target {name} is to be loaded anew")
        for table, progress in answer.tables.items():
            if progress.state is TableState.LIVE or progress.state in GIVEN_UP:
                continue
            loads = progress.goes_on_in is TableState.LOADING  # of a part it has a place beside
            if progress.state not in STOPPED or progress.progress.offset < 0 or loads:
                raise Held(f"{table} on target {answer.name} is {progress.state}")
            places.append(progress.progress.offset)
        places += [progress.offset for progress in answer.groups.values()]
    if not places:
        raise Held("no target has a table")
    return min(places)


def loaded_until(answers: Sequence[Answer], chunks: Chunks, still: Mapping[Partition, int]) -> dict[Partition, int]:
    """Return up to which offset of each load partition no target needs anything.

    That is the end of a chunk that all have, or where nobody has written for long (`still`), with no final chunk
    before it that one of them still needs. A worker that is about to make another one before it final is late, and
    `Freed` tells it.
    """
    ends, needed = dict(chunks.superseded), dict[Partition, int]()
    coming = to_be_loaded(answers, chunks)
    for partition, end in still.items():
        ends[partition] = max(ends.get(partition, 0), end)
    for table, load in chunks.tables.items():
        progresses = [(answer, answer.tables[table]) for answer in answers if table in answer.tables]
        for generation, part in load.parts.items():
            if (manifest := part.manifest) is None:
                continue
            partition = Partition(manifest.topic, manifest.partition)
            if any(
                (progress.generation == generation and progress.goes_on_in is TableState.LOADING)
                or coming.get((answer.name, table), -1) >= part.issued.offset
                for answer, progress in progresses
                if part.issued.is_for(answer.name)
            ):
                needed[partition] = min(needed.get(partition, manifest.start), manifest.start)
            else:
                ends[partition] = max(ends.get(partition, 0), manifest.end)
        if load.plan is None:
            continue
        waiting = [
            _has(answer, progress, load.plan)
            for answer, progress in progresses
            if _loads(progress, load) or (answer.name, table) in coming
        ]
        for number, manifest in load.manifests.items():
            if manifest.start == manifest.end:
                continue
            partition = Partition(manifest.topic, manifest.partition)
            if all(number in has for has in waiting):
                ends[partition] = max(ends.get(partition, 0), manifest.end)
            else:
                needed[partition] = min(needed.get(partition, manifest.start), manifest.start)
    return {partition: min(end, needed.get(partition, end)) for partition, end in ends.items()}


def _loads(progress: TableProgress, load: TableChunks) -> bool:
    """Whether a target may still load chunks of the plan that counts; one that is outdated is begun by nobody."""
    assert load.plan is not None
    begun = progress.generation == load.plan.generation
    return progress.goes_on_in in {TableState.WAITING, TableState.LOADING} and (begun or not load.outdated)


def _has(answer: Answer, progress: TableProgress, plan: Plan) -> set[int]:
    return (
        answer.loaded.get((progress.table, plan.generation), set()) if progress.generation == plan.generation else set()
    )


class Trimmer:
    """The trimmer of one pipeline, as a machine of small steps."""

    def __init__(
        self,
        pipeline: Pipeline,
        log: Log,
        *,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], float] = time.time,
        sleep: Callable[[float], None] = time.sleep,
        make_target: MakeTarget = find_target,
        limits: Limits | None = None,
    ) -> None:
        self._limits = limits or Limits()
        self._pipeline, self._log = pipeline, log
        self._clock, self._now, self._sleep = clock, now, sleep
        self._topics = Topics(pipeline.pipeline)
        self._views = [TargetView(target, pipeline.pipeline, clock, make_target) for target in pipeline.targets]
        self._teller = Teller(log, self._topics, "trimmer", now)
        self._events_at = 0.0
        self._stack = contextlib.ExitStack()
        self._reader: LogReader | None = None
        self._writer: LogWriter | None = None
        self._identity = ""
        self._setup: Setup | None = None
        self._chunks: Chunks
        self._chosen: list[TableId] = []
        self._chose: Chosen | None = None  # what that was made of
        self._look_at = 0.0
        self._warn_at = 0.0
        self._warned = ""  # what was told last to hold the log

        self._frontiers: Frontiers
        self._until = 0  # nobody needs the frontiers before it
        self._asked = False  # whether that was just heard
        self._last: ValidFrontier | None = None  # the last of them, which stays
        self._commit_time = self._max_xid = 0  # as of those before it
        self._ends: dict[Partition, int] = {}  # of the ranges of those before it
        self._count = self._records = 0
        self._unfinished = False  # whether an earlier trimmer announced more than it carried out
        self._todo: deque[tuple[Partition, int]] = deque()
        self._loads_at = -1  # how far `p.chunks` was read when the loads were trimmed last
        self._loads_until: dict[Partition, int] = {}  # how far they were trimmed before all tables were live
        self._written: dict[Partition, tuple[int, float]] = {}  # where each ended, and when that was first seen
        self._sweep_at = 0.0
        self._let_go: set[tuple[str, TableId]] = set()  # failed tables for which people were told nothing is kept
        self._said: Trimmed | None = None  # the farthest that was announced
        self._said_until = 0  # the offset behind the last announcement
        self._known = 0  # how far `p.chunks` was read when the targets were asked
        self._unchecked = False  # whether it was not looked yet for whom that was news

    def step(self) -> bool:
        """Do one bounded piece of work and say whether there was any. Raises what the log raises; a target that
        can't be asked holds everything, and is asked again."""
        if self._reader is None or self._setup is None:
            return self._begin()
        if self._unchecked:
            self._unchecked = False
            self._chunks.refresh()
            if not self._knows_all_targets():
                self._todo.clear()
                self._setup = None  # what was announced is found again
                return True
        if self._todo:
            partition, end = self._todo.popleft()
            self._log.trim(partition, end)
            return True
        if self._frontiers.next < self._until:
            try:
                self._read_on()
            except LogRewound:
                if self._log.offsets(self._topics.frontier).start <= self._frontiers.next:
                    raise
                self._setup = None  # another trimmer has gone on: begin where it left off
            return True
        if self._asked:
            self._asked = False
            if self._last is not None and self._is_worth_it() and self._make_durable():
                self._announce(self._last)
            return True
        if self._clock() < self._look_at:
            return False
        self._look()
        self._trim_events()
        self._teller.flush()
        return True

    def wait(self, timeout: float) -> None:
        """Wait until there may be something to do, at most `timeout` seconds."""
        self._sleep(max(0.0, min(timeout, self._look_at - self._clock())) if self._setup else min(timeout, 0.2))

    def close(self) -> None:
        """Let go of targets and log; never raises."""
        for view in self._views:
            view.close()
        self._teller.close()
        with contextlib.suppress(Exception):
            self._stack.close()

    def _trim_events(self) -> None:
        """Of what was told to people keep the latest."""
        now = self._clock()
        if now >= self._events_at:
            self._events_at = now + EVENTS_SECONDS
            start, end = self._log.offsets(self._topics.events)
            if end - start > MOST_EVENTS + MOST_EVENTS // 10:
                self._log.trim(self._topics.events, end - MOST_EVENTS)

    def _begin(self) -> bool:
        """Wait for a log with a setup in it, and begin where the log does."""
        if self._reader is None:
            if not exists(self._log):
                return False
            if not self._topics.are_made(self._log):
                return False
            self._identity = self._log.identity()
            self._reader = self._stack.enter_context(self._log.reader())
        setup = read_setup(self._reader, self._topics)
        if setup is None:
            return False
        self._last, self._until, self._asked = None, 0, False
        self._ends, self._count, self._records = {}, 0, 0
        self._loads_at, self._loads_until = -1, {}
        self._chosen = []
        self._chunks = Chunks(self._reader, self._topics)
        start = self._log.offsets(self._topics.frontier).start
        told = list(trims(self._reader, self._topics))
        announced = sorted((trimmed for _, trimmed in told), key=lambda trimmed: trimmed.offset)
        self._said, self._said_until = (announced[-1], told[-1][0]) if told else (None, 0)
        # All that was trimmed was announced, but not the reverse: the frontiers themselves go last.
        begin = next((trimmed for trimmed in announced if start and trimmed.offset >= start), None)
        if begin is None:
            self._frontiers = Frontiers(self._reader, self._topics, start)
        else:
            self._frontiers = Frontiers(self._reader, self._topics, begin.offset, begin.epoch)
            self._commit_time, self._max_xid = begin.commit_time, begin.max_xid
        self._unfinished = bool(announced) and self._frontiers.next < announced[-1].offset
        self._setup = setup
        if self._full() < self._limits.full_from:
            self._look_at = self._clock() + self._limits.look_every  # others that have just started come first
        return True

    def _look(self) -> None:
        """Ask the targets how far they are."""
        assert self._setup is not None and self._reader is not None
        full = self._full()
        limits = self._limits
        began = self._clock()
        self._look_at = began + (limits.look_full_every if full >= limits.full_from else limits.look_every)
        try:
            # Not when others begin: to read thousands of tables takes a while.
            self._chunks.refresh()
            self._known = self._chunks.next
            if not self._chosen or self._chunks.chosen is not self._chose:
                self._chose = self._chunks.chosen
                self._chosen = rules.chosen(self._setup, Tables(self._reader, self._topics), self._chunks)
            answers = [self._ask(view) for view in self._views]
            if full < limits.full_from:
                self._look_at = max(self._look_at, began + _AT_LEISURE * (self._clock() - began))
            if full >= limits.sweep_from:
                answers = [self._without_stopped(answer, full) for answer in answers]
            self._chunks.refresh()
            if not self._knows_all_targets():
                raise Held("other targets are loaded than those that are known here")
            if full >= limits.full_from and self._loads_at != self._chunks.next:
                self._trim_loads(answers, self._still() if full >= limits.sweep_from else {})
            self._until = needed_from(answers, self._chosen, self._chunks, Mode(self._setup.mode))
            # A target that was taken back to an earlier state needs what has been read here already.
            self._asked = self._until >= self._frontiers.next
        except Held as held:
            if full >= WARN_FROM and self._clock() >= self._warn_at:
                self._warn_at = self._clock() + WARN_SECONDS
                _log.warning("the log is %.0f %% full and can't be trimmed: %s", full * 100, held)
                if str(held) != self._warned:
                    self._warned = str(held)
                    self._teller.tell(
                        EventKind.WARNING,
                        f"the log is {full:.0%} full and can't be trimmed: {held}",
                        remedy="let what holds it go on, or skip that table; or give the log a larger `budget`",
                    )

    def _without_stopped(self, answer: Answer, full: float) -> Answer:
        """Leave out the tables that have failed or are paused: all others would come to a stop for them when the log is
        full."""
        coming = to_be_loaded([answer], self._chunks)
        tables = {
            table: held
            for table, held in answer.tables.items()
            if held.state not in STOPPED or (answer.name, table) in coming
        }
        for table in answer.tables.keys() - tables.keys():
            state = answer.tables[table].state
            if state not in GIVEN_UP and (answer.name, table) not in self._let_go:
                self._let_go.add((answer.name, table))
                text = f"the log is {full:.0%} full: it no longer keeps what the table needs to go on, which is {state}"
                _log.error("%s on target %s: %s; %s", table, answer.name, text, LOAD_TABLE_AGAIN)
                self._teller.tell(EventKind.WARNING, text, table=table, target=answer.name, remedy=LOAD_TABLE_AGAIN)
        return replace(answer, tables=tables)

    def _knows_all_targets(self) -> bool:
        admitted = self._chunks.admitted
        return admitted is not None and admitted.targets == tuple(view.settings.name for view in self._views)

    def _make_durable(self) -> bool:
        """Make sure that no target loses any more what it has said; return whether all could."""
        return all(view.make_durable() for view in self._views)

    def _still(self) -> dict[Partition, int]:
        """Return where nobody has written to a load for long: what no manifest names there was left behind."""
        now = self._clock()
        if now >= self._sweep_at:
            self._sweep_at = now + self._limits.still / 4
            for partition in self._load_partitions():
                end = self._log.offsets(partition).end
                if end and self._written.get(partition, (0, now))[0] != end:
                    self._written[partition] = end, now
        return {
            partition: end
            for partition, (end, since) in self._written.items()
            if now - since >= self._limits.still
            and end > self._loads_until.get(partition, 0)
            and end == self._log.offsets(partition).end
        }

    def _load_partitions(self) -> Iterator[Partition]:
        for topic in self._log.topics(f"{self._topics.prefix}load."):
            for number in range(topic.partitions):
                yield Partition(topic.name, number)

    def _trim_loads(self, answers: Sequence[Answer], still: Mapping[Partition, int]) -> None:
        """Trim the chunks that all targets have, though there are others: a load may be larger than the log."""
        if any(answer.error for answer in answers):
            return
        asked = [replace(answer, loaded=view.chunks()) for view, answer in zip(self._views, answers, strict=True)]
        ends = loaded_until(asked, self._chunks, still)
        more = {partition: end for partition, end in ends.items() if end > self._loads_until.get(partition, 0)}
        if not more or not self._make_durable():
            return
        freed = [Freed(*partition, end, self._micros()) for partition, end in more.items()]
        self._control().put_all(self._topics.chunks, [encode_control(entry) for entry in freed])
        # What had become final before that was said counts.
        self._chunks.refresh()
        ends = loaded_until(asked, self._chunks, still)
        more = {partition: min(end, ends[partition]) for partition, end in more.items()}
        admitted = self._chunks.admitted
        if admitted is None or self._said_until <= admitted.trimmed:
            # Who comes later is to know that the load is not whole.
            trimmed = self._said or self._nothing_trimmed()
            if trimmed is not None:
                self._say(replace(trimmed, at=self._micros()))
        self._loads_until.update(more)
        self._todo.extend(more.items())

    def _nothing_trimmed(self) -> Trimmed | None:
        """Return how things stand before the first frontier; None if there is none, and so no final chunk either."""
        assert self._reader is not None
        view, at = Frontiers(self._reader, self._topics), -1
        while at != view.next:
            at = view.next
            for offset, frontier in view.poll():
                return Trimmed(offset, frontier.epoch, frontier.after, 0, -1, 0)
        return None

    def _ask(self, view: TargetView) -> Answer:
        view.refresh(self._identity)
        name, patterns = view.settings.name, view.settings.tables
        tables = {
            table: view.tables.get(table) or TableProgress(table, -1)
            for table in self._chosen
            if matches(table, patterns)
        }
        return Answer(name, view.error, tables, view.groups)

    def _read_on(self) -> None:
        """Read the next frontiers that no target needs, and add up what they name; all but the last may go."""
        for valid in self._frontiers.poll(min(_READ_AT_ONCE, self._until - self._frontiers.next)):
            passed, self._last = self._last, valid
            if passed is None:
                continue
            frontier = passed.frontier
            self._commit_time, self._max_xid = frontier.commit_time or self._commit_time, frontier.max_xid
            self._count += 1
            for named in frontier.ranges:
                self._ends[Partition(named.topic, named.partition)] = named.end
                self._records += named.end - named.start

    def _is_worth_it(self) -> bool:
        if self._unfinished:
            return self._count > 0
        if not self._count and self._loads_at == self._chunks.next:
            return False
        if self._full() >= self._limits.full_from or self._count >= self._limits.most_frontiers:
            return True
        return self._records >= self._limits.most_records and not self._log.usage().budget

    def _full(self) -> float:
        used, budget = self._log.usage()
        return used / budget if budget else 0.0

    def _announce(self, last: ValidFrontier) -> None:
        """Say where the frontiers begin from now on, and note what may go therefore; the frontiers themselves go
        last, because they tell the next trimmer what else may."""
        offset, frontier = last
        loads = []
        if self._loads_at != self._chunks.next:
            self._loads_at = self._chunks.next
            # As far as they reach now: what comes behind is for targets that are admitted from here on.
            loads = [(partition, self._log.offsets(partition).end) for partition in self._load_partitions()]
        if not self._is_unneeded():
            self._loads_at = -1
            self._look_at = 0.0
            return
        self._say(Trimmed(offset, frontier.epoch, frontier.after, self._commit_time, self._max_xid, self._micros()))
        self._todo.extend(self._ends.items())
        self._todo.extend(loads)
        self._todo.append((self._topics.frontier, offset))
        self._ends.clear()
        self._unfinished = False
        self._count = self._records = 0

    def _is_unneeded(self) -> bool:
        """Say that nobody needs what is about to be forgotten, and return whether that counts: it does not if somebody
        has asked meanwhile for a table to be loaded anew, or if there are other targets by now."""
        self._control().put(self._topics.chunks, encode_control(Unneeded(self._max_xid, self._known, self._micros())))
        self._chunks.refresh()
        return self._chunks.unneeded[1] and self._knows_all_targets()

    def _say(self, trimmed: Trimmed) -> None:
        self._said_until = self._control().put(self._topics.control, encode_control(trimmed), b"trimmed") + 1
        self._said, self._unchecked = trimmed, True

    def _control(self) -> LogWriter:
        if self._writer is None:
            self._writer = self._stack.enter_context(self._log.writer("control"))
        return self._writer

    def _micros(self) -> int:
        return int(self._now() * 1_000_000)
