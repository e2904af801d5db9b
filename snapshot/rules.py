"""Which snapshot may serve what: the rules that holder and workers must see alike.

Snapshots are named by the offset of their `SnapshotTaken` in `p.chunks`, which is also the order of taking. Whether
one is still alive only its holder knows for sure; a worker learns it when it opens it.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping

from schemas.errors import LOAD_AGAIN, ConfigInvalid
from schemas.frontier import Setup, SnapshotTaken
from schemas.pipeline import Mode
from schemas.table import TableId
from transport.log import WORK_PARTITIONS
from transport.views import Chunks, Part, TableChunks, Tables

REWRITTEN = "rewritten"
"""Begins the cause of a plan whose generation before was spoilt because the table's rows moved under the snapshot:
such a table may need a snapshot that was taken later than the plan."""

ALONE = "read in several snapshots"
"""The cause of a plan whose generation before can't be healed, for want of a key."""

ADMITTED = "a target was added when the log had been trimmed"
"""The cause of a plan for those alone who do not have the table yet."""

ALTERED = "altered before the snapshot was taken"
"""The cause of a plan whose generation before had other columns than the snapshots that were to be read in."""

RELOADED = "somebody has asked for it"
"""The cause of a plan that follows a command to load the table anew."""

LOAD_PARTITIONS = 16
"""Partitions of a load topic, each written by one worker: so many snapshot workers there may be."""

_STRIDE = 39  # odd, and near the golden section of 64: neighbours fall to different workers, however these share


def work_of_table(table: TableId) -> int:
    """Return the work partition whose owner plans and heals a table."""
    return zlib.crc32(str(table).encode()) % WORK_PARTITIONS


def work_of_chunk(table: TableId, chunk: int) -> int:
    """Return the work partition whose owner reads a chunk. Consecutive chunks are dealt out evenly, which a hash of
    both would not do: with two workers one of them would get the first four chunks of a table."""
    return (work_of_table(table) + _STRIDE * chunk) % WORK_PARTITIONS


def chosen(setup: Setup, tables: Tables, chunks: Chunks) -> list[TableId]:
    """Return the tables that the pipeline has, in the order in which they were chosen."""
    return [tables.by_schema(schema_id).id for schema_id in chunks.tables_of(setup)]


def require_mode(setup: Setup, mode: Mode) -> None:
    """Raise `ConfigInvalid` if the pipeline was begun with another mode: there would be nobody who reads the load, or
    who follows the changes, or the slot would be dropped that others follow."""
    if setup.mode != mode:
        raise ConfigInvalid(
            f"the pipeline was begun with mode: {setup.mode}",
            remedy=f"write mode: {setup.mode} into the file; for another mode {LOAD_AGAIN}",
        )


def all_complete(setup: Setup, tables: Tables, chunks: Chunks) -> bool:
    """Whether nothing of any table is left to be read."""
    return all(chunks.of(table).settled() for table in chosen(setup, tables, chunks))


def fit(
    table: TableChunks, snapshots: Mapping[int, SnapshotTaken], setup: Setup, alive: Callable[[int], bool]
) -> list[int]:
    """Return the snapshots that a table may be read in: those that meet the stream, as they show what is not in the
    stream because it came before, and were taken after the last command to load the table anew."""
    return [
        number
        for number, taken in snapshots.items()
        if taken.known > table.after and alive(number) and taken.visibility.sees_all_of(setup.visibility)
    ]


def for_chunk(
    table: TableChunks, snapshots: Mapping[int, SnapshotTaken], setup: Setup, alive: Callable[[int], bool]
) -> int | None:
    """Return the snapshot to read a chunk in: if it can be one that the table was read in before, so that it need
    not be healed, else the newest."""
    candidates = fit(table, snapshots, setup, alive)
    used = table.snapshots().intersection(candidates)
    return max(used or candidates, default=None)


def for_healing(
    table: TableChunks, snapshots: Mapping[int, SnapshotTaken], setup: Setup, alive: Callable[[int], bool]
) -> int | None:
    """Return the newest snapshot that is newer than all the table was read in, and sees all that they saw."""
    used = table.snapshots()
    seen = [snapshots[number].visibility for number in used]
    candidates = [
        number
        for number in fit(table, snapshots, setup, alive)
        if number > max(used) and all(snapshots[number].visibility.sees_all_of(earlier) for earlier in seen)
    ]
    return max(candidates, default=None)


def for_part(
    table: TableChunks,
    part: Part,
    snapshots: Mapping[int, SnapshotTaken],
    setup: Setup,
    alive: Callable[[int], bool],
) -> int | None:
    """Return the newest snapshot that was taken after a part was asked for, and sees all that the table's rows show."""
    earlier = [setup.visibility, *(snapshots[number].visibility for number in table.used())]
    candidates = [
        number
        for number, taken in snapshots.items()
        if taken.known > part.issued.offset and alive(number) and all(map(taken.visibility.sees_all_of, earlier))
    ]
    return max(candidates, default=None)


def wants_newer(
    table: TableChunks,
    keyed: bool,
    snapshots: Mapping[int, SnapshotTaken],
    setup: Setup,
    alive: Callable[[int], bool],
) -> bool:
    """Whether a table can't go on in any of the snapshots that are alive."""
    waiting = [part for part in table.parts.values() if not part.settled]
    if any(for_part(table, part, snapshots, setup, alive) is None for part in waiting):
        return True
    if table.ended():
        return False
    if table.needs_healing() and keyed:
        return for_healing(table, snapshots, setup, alive) is None
    # Without key it is planned again, which takes a snapshot as well.
    candidates = fit(table, snapshots, setup, alive)
    if table.plan is not None and table.plan.cause.startswith(REWRITTEN):
        # Taken after the plan stood in the log, hence after the rewriting that the plan's author saw.
        candidates = [number for number in candidates if number > table.plan_offset]
    return not candidates
