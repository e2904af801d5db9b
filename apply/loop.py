"""The service: prepare, load, catch up, and follow the frontiers. One worker; its share comes from the log.

What it does is decided by what the target says of itself, so that it may be killed anywhere. It is a machine of small
steps, taken in turn: a command, a table's next state, the cohort that is ahead, a cohort that is behind, a chunk.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack, suppress

from apply.cohort import Cohorts
from apply.commands import Obedience
from apply.follower import Follower
from apply.limits import Limits
from apply.loader import Loader
from apply.mover import Mover
from apply.portions import PortionReader
from apply.standing import BeginAgain, Standing
from apply.stats import Stats
from apply.tables import TargetTables
from apply.target import TableProgress, Target
from apply.telling import StateTeller
from apply.trays import Trays
from schemas.errors import LogRewound, ReplicationError, WriteConflict
from schemas.frontier import Setup
from schemas.pipeline import TablePolicy
from schemas.table import TableId
from transport.events import Teller
from transport.log import Log, LogReader, Membership
from transport.topics import Topics
from transport.views import read_setup


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
        self._memberships = (
            (f"{pipeline}.load.{name}", f"{pipeline}.apply.{name}") if follows else (f"{pipeline}.load.{name}",)
        )
        self._patterns, self._policy = tables, policy
        self._limits = limits or Limits()
        self._teller = teller or Teller(log, self._topics, f"apply-{name}")
        self._told_at = -1e9
        self._stack = ExitStack()
        self._reader: LogReader | None = None
        self._worker: _Worker | None = None
        self._well = True  # whether no step was broken off
        self.stats = Stats()

    @property
    def tables(self) -> dict[TableId, TableProgress]:
        """What this worker knows of every table of the target; of those that others own it may be late."""
        return dict(self._worker.standing.tables) if self._worker else {}

    @property
    def owned(self) -> frozenset[int]:
        """The groups that are this worker's."""
        return self._worker.standing.owned if self._worker else frozenset()

    @property
    def started(self) -> bool:
        """Whether the source is set up, and the target open."""
        return self._worker is not None

    def step(self) -> bool:
        """Do one bounded piece of work, and return whether there was any."""
        self._well = False
        worked = self._start() if self._worker is None else self._step(self._worker)
        self._well = True
        return worked

    def _step(self, worker: _Worker) -> bool:
        try:
            if worker.take_share():
                return True
            if self._clock() - self._told_at >= self._limits.tell_every:
                self._tell()
            return worker.step()
        except (WriteConflict, LogRewound) as error:
            # Another owner went on, and the log may have been trimmed behind him: see how far, and go on from there.
            self.stats.conflicts += 1
            before = worker.standing.places()
            worker.begin_again()
            if isinstance(error, LogRewound) and before == worker.standing.places():
                raise
            return True

    def _start(self) -> bool:
        if self._reader is None:
            if not self._topics.are_made(self._log):
                return False
            self._reader = self._stack.enter_context(self._log.reader())
        setup = read_setup(self._reader, self._topics)
        if setup is None:
            return False
        self._worker = self._made(self._reader, setup)
        return True

    def _made(self, reader: LogReader, setup: Setup) -> _Worker:
        log, target, topics, clock, limits = self._log, self._target, self._topics, self._clock, self._limits
        tables = TargetTables(reader, topics, setup, target, self._patterns, self._policy)
        target.open(log.identity())
        tables.register()
        shares = [self._stack.enter_context(log.membership(name)) for name in self._memberships]
        states = StateTeller(self._teller, log, reader, topics, self._name)
        standing = Standing(target, tables, Cohorts(reader, topics), states, clock, limits, self.stats)
        trays = Trays(target, tables, self._teller, self.stats, self._name)
        portions = PortionReader(reader, target, tables, standing, trays, limits)
        follower = Follower(log, reader, topics, tables, standing, portions, trays, clock, limits, self.stats)
        loader = Loader(log, reader, target, tables, standing, trays, clock, limits, self.stats)
        mover = Mover(
            reader, topics, target, tables, standing, loader, follower, trays, states, self._name, clock, limits
        )
        obedience = Obedience(tables, standing, self._name, clock, limits)
        return _Worker(shares, tables, standing, trays, states, follower, loader, mover, obedience, clock, limits)

    def wait(self, timeout: float) -> None:
        """Return when there may be work again, or after `timeout` seconds."""
        self._tell()
        if self._reader is None:
            time.sleep(min(timeout, 0.2))
        elif self._worker is None:
            # What came after the latest step looked is seen by the next one, not much later.
            self._reader.wait({self._topics.control: self._log.offsets(self._topics.control).end}, min(timeout, 0.2))
        else:
            self._worker.wait(self._reader, self._topics, timeout)

    def _tell(self) -> None:
        # After a while of silence at once: what is not told yet when this process dies is lost.
        if self._teller.flush():
            self._told_at = self._clock()

    def close(self) -> None:
        """Give up everything; what is unfinished is done again by the next. Never raises.

        What was only to be noted from time to time is noted first, unless something has gone wrong.
        """
        if self._well and self._worker is not None:
            with suppress(ReplicationError):
                self._worker.follower.note(now=True)
        self._teller.close()
        self._stack.close()
        self._target.close()


class _Worker:
    """A worker whose source is set up, and whose target is open: its tasks, in turn."""

    def __init__(
        self,
        shares: list[Membership],
        tables: TargetTables,
        standing: Standing,
        trays: Trays,
        states: StateTeller,
        follower: Follower,
        loader: Loader,
        mover: Mover,
        obedience: Obedience,
        clock: Callable[[], float],
        limits: Limits,
    ) -> None:
        self._shares = shares  # of the chunks, and of the groups if it follows
        self._tables, self._trays, self._states = tables, trays, states
        self.standing, self.follower = standing, follower
        self._loader, self._mover, self._obedience = loader, mover, obedience
        self._clock, self._limits = clock, limits
        self._shared_at = self._recall_from = -1e9
        self._tasks = (
            obedience.obey,
            mover.move,
            follower.follow_ahead,
            follower.follow_behind,
            loader.load_next,
            self._recall,
        )
        self._turn = 0

    def take_share(self) -> bool:
        """Take what is this worker's now; return whether that is something else than before."""
        now = self._clock()
        if now - self._shared_at < self._limits.share_every:
            return False
        self._shared_at = now
        chunks, *groups = [share.poll() for share in self._shares]
        owned = groups[0] if groups else frozenset()
        if (chunks, owned) == (self._loader.share, self.standing.owned):
            return False
        self._loader.share, self.standing.owned = chunks, owned
        self._states.begin_again()
        self._recall_from = -1e9
        self.begin_again()
        return True

    def begin_again(self) -> None:
        """Read everything anew from the target."""
        self._tables.chunks.refresh()
        while True:
            while self._tables.are_others:
                self._tables.register()
                self._tables.chunks.refresh()
            self.standing.read()
            self._trays.read()
            # What another worker has brought a table to may rest on snapshots that were not there when we looked last.
            self._tables.chunks.refresh()
            if not self._tables.are_others:
                break
        self._loader.begin_again()
        self._mover.begin_again()
        self._obedience.begin_again()
        self._turn = 0  # first of all it is seen which tables are about to join the others
        self.follower.begin_again(self._obedience.to_load_anew())

    def step(self) -> bool:
        """Let the next task that has something to do, do it."""
        try:
            for _ in self._tasks:
                task = self._tasks[self._turn]
                self._turn = (self._turn + 1) % len(self._tasks)
                if task():
                    return True
        except BeginAgain:
            self.begin_again()
            return True
        return self.follower.note()

    def wait(self, reader: LogReader, topics: Topics, timeout: float) -> None:
        """Return when there may be work again, or after `timeout` seconds."""
        ends = {topics.chunks: self._tables.chunks.next}
        if (next := self.follower.next) is not None:
            ends[topics.frontier] = next
        if self.standing.unsettled:
            timeout = min(timeout, self._mover.next_pause())
        elif self.follower.is_behind_with_notes():
            timeout = min(timeout, self.follower.until_note)
        if reader.wait(ends, timeout) and self.standing.unsettled_anywhere:
            self._loader.look_now()  # what has come may be a chunk: it is looked at now, or the next wait would be none

    def _recall(self) -> bool:
        """Look now and then what people were told of this worker's tables."""
        if not self.standing.owned or self._clock() < self._recall_from:
            return False
        if self._states.recall(self.standing.mine):
            return True
        self._recall_from = self._clock() + self._limits.settled_every
        return False
