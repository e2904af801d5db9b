"""Who reads the frontiers together: groups and catching-up tables that stand at the same place.

A group follows the frontiers; a table that was loaded follows them alone, from a place of its own, until it stands
where its group stands. Read one by one, two thousand tables would read every frontier two thousand times. So all
that stand at one place make a cohort, with one view of the frontiers; the one that is behind goes on to where the next
stands, and becomes part of it.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from enum import Enum

from apply.target import Progress
from schemas.errors import GapDetected, LogRewound
from schemas.frontier import TopicRange
from schemas.table import TableId
from transport.log import LogReader, Partition
from transport.topics import Topics
from transport.views import Frontiers, ValidFrontier


@dataclass(slots=True)
class Span:
    """Offsets of one partition that one epoch wrote, and the wanted row schemas in them."""

    epoch: int
    start: int
    end: int
    schemas: set[int]


@dataclass(slots=True)
class Portion:
    """What a cohort does next: frontiers one after the other, and what is to be read for them."""

    progress: Progress
    frontiers: int = 0
    records: int = 0
    redefines: bool = False  # rows of several versions of a table are in it, and their order matters
    spans: dict[Partition, list[Span]] = field(default_factory=dict)
    expected: dict[int, int] = field(default_factory=dict)  # about how many records a row schema has

    def add(self, piece: TopicRange, epoch: int, wanted: list[int]) -> None:
        size = piece.end - piece.start
        self.records += size
        for schema_id in wanted:
            self.expected[schema_id] = self.expected.get(schema_id, 0) + size
        spans = self.spans.setdefault(Partition(piece.topic, piece.partition), [])
        if spans and spans[-1].epoch == epoch and spans[-1].end == piece.start:
            spans[-1].end = piece.end
            spans[-1].schemas.update(wanted)
        else:
            spans.append(Span(epoch, piece.start, piece.end, set(wanted)))


class Wanted(Enum):
    """Whether rows of a schema are for a cohort."""

    NO = 0
    YES = 1
    ALONE = 2  # they are, but of another version of the table than the target's: their frontier goes by itself


Wants = Callable[["Cohort", int], Wanted]


class Cohort:
    """All that stands at one place in the frontiers.

    `reached` is that place; what is stored in the target may be behind it by frontiers that held nothing for the
    member in question. What was read ahead is taken again until `done` says that it is in the target.
    """

    def __init__(self, reader: LogReader, topics: Topics, progress: Progress) -> None:
        self._view = Frontiers(reader, topics, progress.offset, progress.epoch)
        self._ahead: deque[ValidFrontier] = deque()
        self.reached = progress
        self.groups: set[int] = set()
        self.tables: set[TableId] = set()

    def take(self, wants: Wants, bound: Cohort | None, max_records: int, max_frontiers: int) -> Portion | None:
        """Return what comes next, up to where `bound` stands, if given; None if there is nothing.

        A frontier with rows of another version of a table comes alone. Raises `GapDetected` if a frontier does not
        continue where the one before it ended.
        """
        portion = Portion(self.reached)
        end = bound.reached.offset if bound else None
        while portion.records < max_records and portion.frontiers < max_frontiers:
            if portion.frontiers == len(self._ahead):
                if end is not None and self._view.next >= end:
                    break
                before = self._view.next
                self._ahead.extend(self._view.poll(fresh=False))
                if self._view.next == before:
                    break
                continue
            offset, frontier = self._ahead[portion.frontiers]
            if end is not None and offset >= end:
                break
            if frontier.after != portion.progress.position:
                raise GapDetected(
                    f"frontier {offset} continues from {frontier.after}, but {portion.progress.position} is reached"
                )
            wanted: list[tuple[TopicRange, list[int]]] = []
            redefines = False
            for piece in frontier.ranges:
                mine = []
                for schema_id in piece.schemas:
                    answer = wants(self, schema_id)
                    if answer is not Wanted.NO:
                        mine.append(schema_id)
                        redefines |= answer is Wanted.ALONE
                if mine:
                    wanted.append((piece, mine))
            if redefines and portion.frontiers:
                return portion  # what comes before it goes first
            # A large transaction goes alone, so that what was ready before it does not wait for it.
            size = sum(piece.end - piece.start for piece, _ in wanted)
            if portion.records and portion.records + size > max_records:
                return portion
            for piece, mine in wanted:
                portion.add(piece, frontier.epoch, mine)
            portion.frontiers += 1
            commit_time = frontier.commit_time or portion.progress.commit_time
            portion.progress = Progress(
                offset + 1, frontier.epoch, frontier.position, commit_time, frontier.captured_at
            )
            if redefines:
                portion.redefines = True
                break
        rest = len(self._ahead) > portion.frontiers
        next_offset = self._ahead[portion.frontiers].offset if rest else self._view.next
        if bound and next_offset >= bound.reached.offset:
            # Only records that don't count lie between; where `bound` stands, the epoch in force is known.
            if portion.progress.position != bound.reached.position:
                raise GapDetected(
                    f"frontier {bound.reached.offset} stands at {bound.reached.position}, but replaying up to it ends"
                    f" at {portion.progress.position}"
                )
            portion.progress = portion.progress._replace(offset=bound.reached.offset, epoch=bound.reached.epoch)
        elif not rest:
            portion.progress = portion.progress._replace(offset=self._view.next, epoch=self._view.epoch)
        return None if portion.progress == self.reached else portion

    def done(self, portion: Portion) -> None:
        """Go on behind `portion`."""
        for _ in range(portion.frontiers):
            self._ahead.popleft()
        self.reached = portion.progress

    @property
    def next(self) -> int:
        """The offset behind all that was read."""
        return self._view.next

    def absorb(self, other: Cohort) -> None:
        """Take in the members of a cohort that stands at the same place."""
        assert self.reached.offset == other.reached.offset
        self.groups |= other.groups
        self.tables |= other.tables


class Cohorts:
    """All cohorts of a worker, in the order of where they stand."""

    def __init__(self, reader: LogReader, topics: Topics) -> None:
        self._reader, self._topics = reader, topics
        self._cohorts: list[Cohort] = []

    def __iter__(self) -> Iterator[Cohort]:
        return iter(self._cohorts)

    @property
    def ahead(self) -> Cohort | None:
        """The one that all others catch up with."""
        return self._cohorts[-1] if self._cohorts else None

    @property
    def behind(self) -> tuple[Cohort, Cohort] | None:
        """The last one, and the one that it comes to next."""
        return (self._cohorts[0], self._cohorts[1]) if len(self._cohorts) > 1 else None

    def at(self, progress: Progress) -> Cohort:
        """Return the cohort that stands at a place, made if there is none."""
        at = bisect_left(self._cohorts, progress.offset, key=lambda cohort: cohort.reached.offset)
        if at < len(self._cohorts) and self._cohorts[at].reached.offset == progress.offset:
            return self._cohorts[at]
        made = Cohort(self._reader, self._topics, progress)
        self._cohorts.insert(at, made)
        return made

    def unite(self, cohort: Cohort, with_: Cohort) -> None:
        """Make one of two that stand at the same place."""
        with_.absorb(cohort)
        self._cohorts.remove(cohort)

    def forget(self, table: TableId) -> None:
        """Let a table stand nowhere."""
        for cohort in self._cohorts:
            cohort.tables.discard(table)
        self._cohorts = [cohort for cohort in self._cohorts if cohort.groups or cohort.tables]

    def clear(self) -> None:
        self._cohorts.clear()


class Beginning:
    """Finds where the replay of a loaded table begins, reading every frontier at most once for each snapshot.

    Raises `LogRewound` if frontiers are gone that the snapshot does not show.
    """

    def __init__(self, reader: LogReader, topics: Topics, position: int, xmin: int) -> None:
        self._view = Frontiers(reader, topics)
        self._xmin = xmin
        self._found: Progress | None = None
        self._position, self._commit_time = position, 0

    def find(self) -> Progress:
        """Return the place of the first frontier that may hold a transaction which the snapshot does not show: one
        whose largest transaction id is at or above the snapshot's xmin; the end, as long as there is none."""
        while self._found is None:
            before = self._view.next
            found = self._view.poll()
            if (trimmed := self._view.trimmed) is not None:
                if trimmed.max_xid >= self._xmin:
                    raise LogRewound(
                        "the log has been trimmed, and what is gone is not in the snapshot that the table was read in",
                        remedy="load the target by a pipeline of its own",
                    )
                if trimmed.position > self._position:
                    self._position, self._commit_time = trimmed.position, trimmed.commit_time
            for offset, frontier in found:
                if frontier.max_xid >= self._xmin:
                    self._found = Progress(offset, frontier.epoch, frontier.after, self._commit_time)
                    break
                self._position, self._commit_time = frontier.position, frontier.commit_time or self._commit_time
            if self._found is None and self._view.next == before:
                return Progress(self._view.next, self._view.epoch, self._position, self._commit_time)
        return self._found
