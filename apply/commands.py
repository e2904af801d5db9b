"""What commands make of a table: where it stands on a target once one has been carried out; and the carrying out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from apply.limits import Limits
from apply.standing import BeginAgain, Standing
from apply.tables import TargetTables
from apply.target import NOWHERE, Batch, Progress, TableMove, TableProgress
from schemas.frontier import CommandKind
from schemas.states import STOPPED, TableState
from schemas.table import TableId
from transport.views import Issued

RENEWABLE = frozenset({TableState.LIVE, TableState.CATCHING_UP})
"""The states of tables that have a place in the frontiers, so that a part of them can be loaded anew."""


def is_due(issued: Issued, progress: TableProgress, target: str) -> bool:
    """Whether a command is still to be carried out for a table on a target."""
    return issued.offset > progress.command and issued.is_for(target)


def obeyed(issued: Issued, before: TableProgress, place: Progress) -> TableProgress:
    """Return where a table stands when a command is carried out; `place` is where it has come to in the frontiers.

    A command that has nothing to do, as to pause what is paused, is carried out all the same.
    """
    after = replace(before, command=issued.offset)
    stopped = before.state in STOPPED
    match issued.command.kind:
        case CommandKind.PAUSE if before.state is TableState.FAILED:
            return replace(after, state=TableState.PAUSED)
        case CommandKind.PAUSE if not stopped:
            return replace(after, state=TableState.PAUSED, stopped_in=before.state.value, progress=place)
        case CommandKind.SKIP if before.state in {TableState.FAILED, TableState.PAUSED}:
            return replace(after, state=TableState.SKIPPED, error="", remedy="")
        case CommandKind.SKIP if not stopped:
            return replace(after, state=TableState.SKIPPED, stopped_in=before.state.value, progress=place)
        case CommandKind.RESUME if before.state in {TableState.FAILED, TableState.PAUSED}:
            return replace(after, state=resumed(before), error="", remedy="", stopped_in="")
        case CommandKind.RESUME if before.state is TableState.LIVE and before.error:
            return replace(after, tied=False, error="", remedy="")  # what could not be made beside its rows
        case CommandKind.RELOAD if issued.is_partial:
            return _renewed(issued, after)
        case CommandKind.RELOAD:
            return _reloaded(issued, after)
    return after


def resumed(before: TableProgress) -> TableState:
    """Return the state to go on in. What was live has to catch up with its group first."""
    state = TableState(before.stopped_in)
    return TableState.CATCHING_UP if state is TableState.LIVE else state


def _renewed(issued: Issued, table: TableProgress) -> TableProgress:
    """Let a table wait, where it has stopped, for the part of it that is read anew. What it needs was found out for
    this very place: if it has gone on meanwhile, there is nothing to be done."""
    command = issued.command
    stands = table.state in {TableState.FAILED, TableState.PAUSED} and table.stopped_in in RENEWABLE
    if not stands or (table.progress.offset, table.schema_id) != (command.place, command.schema_id):
        return table
    return replace(table, state=TableState.LOADING, generation=issued.generation, error="", remedy="", stopped_in="")


def _reloaded(issued: Issued, table: TableProgress) -> TableProgress:
    """Let a table wait for the first plan that follows the command. Its generation is the command's own, so that
    nobody takes it for one that the chunks of an earlier plan are for; its rows stay until that plan is there."""
    begun = table.is_there
    return replace(
        table,
        state=TableState.LOADING if begun else TableState.WAITING,
        generation=issued.generation if begun else -1,
        progress=NOWHERE,
        snapshot=-1,
        rows=0,
        tied=False,
        error="",
        remedy="",
        stopped_in="",
    )


class Obedience:
    """Carries out the commands for this worker's tables."""

    def __init__(
        self, tables: TargetTables, standing: Standing, name: str, clock: Callable[[], float], limits: Limits
    ) -> None:
        self._tables, self._standing, self._name = tables, standing, name
        self._clock, self._limits = clock, limits
        self._obeyed = 0  # of the commands, those that are carried out or not for this worker
        self._asked_at = -1e9

    def begin_again(self) -> None:
        self._obeyed = 0

    def obey(self) -> bool:
        """Carry out the commands for this worker's tables, in order, those for different tables together.

        The offset of each is stored with the state that it makes: so it is carried out exactly once, whoever dies.
        Raises `BeginAgain` when something was carried out, or the pipeline has other tables by now.
        """
        standing, chunks = self._standing, self._tables.chunks
        now = self._clock()
        if now - self._asked_at >= self._limits.share_every:
            self._asked_at = now
            chunks.refresh(fresh=False)
        if self._tables.are_others:
            raise BeginAgain
        issued = chunks.commands
        groups: dict[int, Progress] = {}  # that tables leave
        moves: dict[TableId, TableMove] = {}
        while self._obeyed < len(issued) and len(moves) < self._limits.commands_at_once:
            command = issued[self._obeyed]
            before = standing.tables.get(command.table)
            if before is not None and standing.is_mine(before) and is_due(command, before, self._name):
                if before.table in moves:
                    break
                place = standing.place_of(before)
                if before.state is TableState.LIVE:
                    groups[before.group] = place
                moves[before.table] = TableMove(before, obeyed(command, before, place))
            self._obeyed += 1
        if not moves:
            return False
        left = [standing.group_move(group, place, other_members=True) for group, place in sorted(groups.items())]
        standing.write(Batch(left, list(moves.values())))
        raise BeginAgain

    def to_load_anew(self) -> set[TableId]:
        """Return the tables that a command which is not carried out yet lets load anew."""
        known = self._standing.tables
        return {
            issued.table
            for issued in self._tables.chunks.commands
            if issued.reloads and issued.table in known and is_due(issued, known[issued.table], self._name)
        }
