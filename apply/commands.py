"""What commands make of a table: where it stands on a target once one has been carried out."""

from __future__ import annotations

from dataclasses import replace

from apply.target import NOWHERE, Progress, TableProgress
from schemas.frontier import CommandKind
from schemas.states import STOPPED, TableState
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
            return replace(after, state=_resumed(before), error="", remedy="", stopped_in="")
        case CommandKind.RELOAD if issued.is_partial:
            return _renewed(issued, after)
        case CommandKind.RELOAD:
            return _reloaded(issued, after)
    return after


def _resumed(before: TableProgress) -> TableState:
    """The state to go on in. What was live has to catch up with its group first."""
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
    begun = {TableState.WAITING, TableState.DROPPED}.isdisjoint({table.state, table.stopped_in})
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
