"""The life of a table on one target: one enum; the target itself stores it, beside the rows."""

from __future__ import annotations

from enum import StrEnum


class TableState(StrEnum):
    """Where a table stands on one target. Every change of state is made by the apply worker that owns the table's
    group, in the target, in the transaction that makes it true."""

    WAITING = "waiting"  # known, but not prepared: set when the target first hears of the table
    LOADING = "loading"  # exists on the target, chunks come in
    INDEXING = "indexing"  # all chunks are in; secondary indexes are being made
    CATCHING_UP = "catching-up"  # replays alone from its own next frontier to where its group stands
    LIVE = "live"  # is applied with its group
    FAILED = "failed"  # stopped with an error, kept with the state; its group goes on
    PAUSED = "paused"  # stopped because somebody asked for it; the log keeps what it needs to go on
    SKIPPED = "skipped"  # left as it is for good, because somebody asked for it: only a reload brings it back
    DROPPED = "dropped"  # the source has no such table any more, and so the target has none


GIVEN_UP = frozenset({TableState.SKIPPED, TableState.DROPPED})
"""The states of tables that need nothing of the log any more."""

STOPPED = frozenset({TableState.FAILED, TableState.PAUSED, *GIVEN_UP})
"""The states in which nothing is applied to a table, while its group goes on."""
