"""What a target promises, and the small values that go to and fro between it and the loop.

Rows and progress change together, or not at all: that is the whole of exactly-once. Everything that the loop must
remember is in the target; the loop reads it when it starts, and after every `WriteConflict`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from importlib import import_module
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, NamedTuple, Protocol

from apply.narrowing import Narrowed
from codec.net import Net
from schemas.errors import ConfigInvalid, ConstraintViolated, ReplicationError
from schemas.pipeline import Ddl, TargetSettings
from schemas.states import TableState
from schemas.table import Objects, Table, TableId
from transport.views import Registered

if TYPE_CHECKING:
    from apply.dead_letters import Keyed, Letter, Tray, Visibility, Waiting


class Progress(NamedTuple):
    """A place in the frontiers, and what the source was like there.

    `offset` is the next of `p.frontier` to read, `epoch` the one in force there: validity of what follows can't be
    judged without it.
    """

    offset: int
    epoch: int
    position: int
    commit_time: int = 0
    captured_at: int = 0
    roster: int = 0  # of a group: goes up when a table joins or leaves it, so that who missed that can't move it

    @property
    def place(self) -> Progress:
        """Where a group stands, without what only groups have."""
        return self._replace(roster=0)


NOWHERE = Progress(-1, -1, 0)
"""The progress of a table that has no place in the frontiers yet."""


@dataclass(frozen=True, slots=True)
class TableProgress:
    """Where one table stands on a target."""

    table: TableId
    group: int
    state: TableState = TableState.WAITING
    schema_id: int = 0  # of the version that the target's table was made with
    generation: int = -1  # of the plan whose chunks are loaded; -1 before there is one
    progress: Progress = NOWHERE  # of its own: while it catches up, and where it stopped if it failed
    snapshot: int = -1  # offset in `p.chunks` of the snapshot that its rows stand for; -1: none, take every change
    rows: int = 0  # loaded
    changes: int = 0  # applied; about right: what was counted since the last note is lost with the process
    made: bool = False  # we made the table, so its indexes and keys are ours to make too
    tied: bool = False  # its foreign keys are made, or not ours to make
    error: str = ""
    remedy: str = ""
    stopped_in: str = ""  # the state that it failed or was paused in, to go on from
    command: int = -1  # offset in `p.chunks` of the last command that was carried out
    roster: int = 0  # goes up when letters were taken from the table, so that who missed that can't move it

    @property
    def goes_on_in(self) -> TableState:
        """The table's state; of one that has failed or is paused, the one that it would go on in."""
        stopped = self.state in {TableState.FAILED, TableState.PAUSED}
        return TableState(self.stopped_in) if stopped else self.state

    @property
    def is_there(self) -> bool:
        """Whether the target has the table, as far as that is ours to know."""
        return {TableState.WAITING, TableState.DROPPED}.isdisjoint({self.state, self.stopped_in})

    @property
    def is_constrained(self) -> bool:
        """Whether it has failed because a constraint of the target refuses a row."""
        return self.state is TableState.FAILED and self.error.startswith(ConstraintViolated.__name__)


@dataclass(frozen=True, slots=True)
class Change:
    """Net changes of one table, folded to one write a key (or in order, for a table without key)."""

    version: Registered
    net: Net
    exact: bool = True  # the source's own changes, so that none may be missing on the target; not so when healing
    tray: Tray | None = None  # there is one if some of its changes wait, or were refused
    sifted: list[Keyed] = field(default_factory=list)  # all that is in `net`, where rows are sifted

    def add(self, data: bytes, visibility: Visibility | None, epoch: int) -> int:
        """Take the changes of a block but for those that have to wait, and return how many were taken; see
        `codec.net.Net.add`."""
        if isinstance(self.version, Narrowed):
            data = self.version.narrow.block(data)
        if self.tray is not None:
            data = self.tray.divide(self.version.layout, data, visibility, epoch, self.sifted)
        return self.net.add(data, visibility, epoch)


@dataclass(frozen=True, slots=True)
class Load:
    """A chunk that is to be loaded; `HEAL` comes alone."""

    version: Registered
    table: TableProgress
    chunk: int
    rows: int
    batches: Callable[[], Iterable[bytes]]  # may be asked for twice
    tray: Tray


@dataclass(frozen=True, slots=True)
class Redefinition:
    """A table is another one from here on; what comes before it, comes before, and what comes after it, after."""

    before: Registered
    after: Registered
    table: TableProgress
    told: bool  # by a record of its own, not only by the rows that follow
    ddl: Ddl = Ddl.APPLY


class GroupMove(NamedTuple):
    """A group goes from one place to the next; refused if it is not at `after` any more, or has other members."""

    group: int
    after: Progress
    progress: Progress


class TableMove(NamedTuple):
    """A table's state goes from one value to the next; refused if it is not at `after` any more."""

    after: TableProgress
    progress: TableProgress


@dataclass(frozen=True, slots=True)
class Batch:
    """What changes in one transaction of the target.

    `pieces` are asked for one after the other while the transaction is open, and each is forgotten before the next:
    so a transaction of the source may be larger than memory. Changes of one table in different pieces are in order,
    and a redefinition is a piece of its own.
    """

    groups: Sequence[GroupMove] = ()
    tables: Sequence[TableMove] = ()
    pieces: Iterable[Sequence[Change] | Redefinition] = ()
    changes: Mapping[TableId, int] = field(default_factory=dict)  # to add to what was counted, for people
    refused: TableId | None = None  # rows of this table were refused when the batch was tried before: they are sifted


class TableRefused(Exception):
    """One table can't go on for the reason in `cause`; all that was tried with it has been rolled back.

    Not a `ReplicationError`: it does not leave the loop, which marks the table as failed and goes on without it.
    """

    def __init__(self, table: TableId, cause: ReplicationError) -> None:
        super().__init__(f"{table}: {cause}")
        self.table, self.cause = table, cause


class Taken(Protocol):
    """The letters of one table, in their order, in the hands of whoever replays, changes or discards them."""

    @property
    def letters(self) -> list[Letter]: ...

    def attempt(self, changes: Sequence[Change]) -> ReplicationError | None:
        """Write changes, one after the other, so that they stay if the transaction does; or none of them, and return
        why. Raises `TransientError`, which is no answer."""

    def remove(self, letters: Sequence[Letter]) -> None: ...

    def change(self, letter: Letter) -> None:
        """Store the change, cause and remedy of a letter anew."""


class Target(Protocol):
    """A place that rows are carried to. Not shared between threads or processes.

    After any error but `TableRefused` and `WriteConflict` it must be closed and opened again: whether the last
    transaction took effect is unknown until progress has been read anew. An error that is one table's alone comes
    as `TableRefused`.
    """

    def open(self, log: str) -> None:
        """Connect, and make what the bookkeeping needs. `log` is the log's identity: raises `LogRewound` if the
        progress stored here was made in another one."""

    def register(
        self,
        groups: Mapping[int, Progress],
        tables: Sequence[TableProgress],
        definitions: Sequence[Table],
        objects: Objects,
        called: Callable[[TableId, int], TableId],
    ) -> None:
        """Add the groups and tables that are not known yet, and with the latter make `objects`, which all tables in
        `definitions` rest on, as far as they are not there; all at once. `called` tells the name that any table has on
        the target whose version there has some row schema."""

    def groups(self) -> dict[int, Progress]:
        """Return where every group stands."""

    def tables(self) -> dict[TableId, TableProgress]:
        """Return where every table stands."""

    def chunks(self) -> dict[tuple[TableId, int], set[int]]:
        """Return the chunks that are loaded of every table that is loading, by table and generation."""

    def waiting(self) -> dict[TableId, Waiting]:
        """Return what waits in the dead letters, of every table that has any."""

    def letter_counts(self) -> dict[TableId, int]:
        """Return how many dead letters every table has that has any."""

    def letters(self) -> list[Letter]:
        """Return all dead letters, in their order."""

    def taken(self, table: TableId) -> AbstractContextManager[Taken]:
        """Give the letters of a table into somebody's hands for the length of the block, in one transaction: nobody
        else writes to the table or its letters meanwhile, and who kept in mind what waits gets a `WriteConflict`."""

    def make_durable(self) -> None:
        """Return when nothing that was read through this connection can be lost any more by a crash of the target:
        then what it tells of may be forgotten."""

    def prepare(self, tables: Sequence[tuple[Registered, TableMove]]) -> list[TableProgress]:
        """Make tables, or make sure that they fit, as the settings say, all together with their moves, and return what
        is stored then; a table made here has `made` set. Raises `TableRefused`, for all, if there is a table where none
        should be, or one that does not fit."""

    def restart(self, piece: Redefinition, move: TableMove) -> None:
        """Empty the table, make of it the version that is loaded next, and forget its chunks, together with the move to
        a new generation."""

    def load(self, loads: Sequence[Load]) -> list[int]:
        """Write the rows of chunks and their numbers, all in one transaction, and return how many rows of each; a chunk
        that is there is left alone (-1). Chunk `HEAL` replaces and deletes rows by key, and their letters go; any other
        must have exactly `rows` rows, and may hold a row that an earlier one had too. Of one chunk alone the rows that
        are refused are the tray's, and count; of several none is, and `TableRefused` is raised. Raises `WriteConflict`
        if a table is not loading this generation any more."""

    def finish(self, version: Registered, table: TableProgress) -> bool:
        """Go on with what is made after the load: indexes and unique constraints. Returns soon: True when all is there,
        False to be asked again. Several tables may be under way at once."""

    def tie(self, version: Registered, table: TableProgress, *, last: bool) -> bool:
        """Go on with statistics, the table's foreign keys and the values of its sequences, in the same way; `last` says
        that no changes follow. Raises `TableRefused` if a key does not hold."""

    def built(self) -> Collection[TableId]:
        """Return the tables for which `finish` or `tie`, having said False, is done since this was asked last."""

    def net(self, version: Registered, expected: int) -> Net:
        """Return an empty fold in the form that suits the table and about so many changes."""

    def accepted(self, version: Registered) -> Registered:
        """Return of a version what the table has room for as it is: it does not follow changes of its definition."""

    def get_ready(self, version: Registered) -> None:
        """Make what a version of a table rests on, as far as it is not there: types, their new labels. To be called
        before a batch that redefines a table as this version, which can't do that itself. Changes nothing else."""

    def write(self, batch: Batch) -> None:
        """Carry out a batch in one transaction, whose first statement is the comparison of all that moves. Raises
        `WriteConflict` if any of it is not where it should be, and `TableRefused` if the target refuses what one table
        has, or does not have what is to be changed. Where there are trays, what is in them in the end is stored with
        the rest; those that sift get the rows that are refused."""

    def resume(self, table: TableId) -> bool:
        """Let a failed table go on from where it stopped; return whether it was failed."""

    def close(self) -> None:
        """Give up what is open; never raises."""


TARGETS: dict[str, str] = {
    "postgresql": "apply.postgres.target:PostgresTarget",
    "postgres": "apply.postgres.target:PostgresTarget",
}
"""Targets by the scheme of their URL: dotted names, so that a driver is imported only where it is used. Others are
found through the entry-point group `penstock.targets`."""

MakeTarget = Callable[[TargetSettings, str], Target]


def find_target(settings: TargetSettings, pipeline: str) -> Target:
    """Return the target that the settings name, not opened yet. Raises `ConfigInvalid` if there is no such kind."""
    scheme = settings.url.get_secret_value().partition(":")[0]
    name = TARGETS.get(scheme)
    if name is None:
        found = [point for point in entry_points(group="penstock.targets") if point.name == scheme]
        if not found:
            raise ConfigInvalid(
                f"target {settings.name}: there is no kind of target called {scheme!r}",
                remedy=f"use one of {', '.join(sorted(TARGETS))}",
            )
        name = found[0].value
    module, _, attribute = name.partition(":")
    make: MakeTarget = getattr(import_module(module), attribute)
    return make(settings, pipeline)
