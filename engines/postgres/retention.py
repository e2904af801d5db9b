"""How much of its log a source keeps for a slot, and letting it go before that takes the source's own room."""

from __future__ import annotations

import contextlib
from typing import NamedTuple

import psycopg

from engines.postgres.asking import ask, run
from engines.postgres.errors import RESTART_REMEDY
from engines.postgres.quoting import literal, quote
from engines.postgres.replication import BLOCKING, drop_slot, is_standby, slot_state, wal_insert_lsn
from schemas.errors import PositionLost

RELEASED = "released by Penstock: "
"""How the note on a publication begins whose slot was let go. It stands beside the slot, so whoever misses that finds
it, on whatever machine, and also while the log takes nothing."""

NOTE = """
select obj_description(oid, 'pg_publication') from pg_publication
 where pubname = %(name)s and obj_description(oid, 'pg_publication') like %(begin)s
"""

SLOT_GONE_REMEDY = (
    f"{RESTART_REMEDY}; so that a fail-over of the source does not need that, let its standby (17 or newer) keep the"
    " slot: sync_replication_slots and hot_standby_feedback on there, synchronized_standby_slots on the primary"
)


class Retained(NamedTuple):
    """What a slot keeps, in bytes of the source's log."""

    size: int
    behind: int  # of it, what its reader has not confirmed yet; the rest is held by open transactions


def retained(connection: psycopg.Connection, slot: str) -> Retained | None:
    """Return what a slot keeps; None if there is no such slot, or it keeps nothing any more."""
    end = wal_insert_lsn(connection)
    state = slot_state(connection, slot)
    if state is None or state.lost or state.restart is None:
        return None
    return Retained(max(0, end - state.restart), max(0, end - (state.confirmed_flush or state.restart)))


def holders(connection: psycopg.Connection) -> list[str]:
    """Return the transactions that have written and are open, for people: a slot keeps the log from their beginning."""
    return [line for (line,) in ask(connection, BLOCKING)]


def release(connection: psycopg.Connection, slot: str, why: str) -> PositionLost:
    """Drop a slot for good, ending its reader, note why where it is looked for, and return what that means. Raises our
    errors."""
    note = literal(f"{RELEASED}{why}")
    # Publications that somebody else made can't carry it: then the slot is missed without a reason.
    with contextlib.suppress(psycopg.errors.InsufficientPrivilege, psycopg.errors.UndefinedObject):
        run(connection, f"comment on publication {quote(slot)} is {note}")
    drop_slot(connection, slot)
    return _let_go(slot, why)


def released(connection: psycopg.Connection, slot: str) -> PositionLost | None:
    """Return what it means that a slot was let go; None if it was not, or there is one again."""
    why = why_released(connection, slot)
    return _let_go(slot, why) if why and slot_state(connection, slot) is None else None


def _let_go(slot: str, why: str) -> PositionLost:
    return PositionLost(f"replication slot {slot} was let go: {why}", remedy=RESTART_REMEDY)


def forget_release(connection: psycopg.Connection, slot: str) -> None:
    """Take the note away: a new slot is about to be made."""
    if why_released(connection, slot):
        run(connection, f"comment on publication {quote(slot)} is null")


def why_released(connection: psycopg.Connection, slot: str) -> str:
    """Return why the slot of that name was let go; empty if it was not."""
    found = ask(connection, NOTE, name=slot, begin=f"{RELEASED}%")
    return str(found[0][0]).removeprefix(RELEASED) if found else ""


def slot_lost(connection: psycopg.Connection, slot: str) -> PositionLost | None:
    """Return the error of a slot that nothing can be streamed from any more; None if it is well, or if that can't be
    known: a standby may get the slot, and become the primary."""
    if is_standby(connection):
        return None
    state = slot_state(connection, slot)
    if state is None:
        gone = PositionLost(f"the source has no replication slot {slot}", remedy=SLOT_GONE_REMEDY)
        return released(connection, slot) or gone
    if state.lost:
        cause = state.invalidation_reason or "it held more than max_slot_wal_keep_size"
        return PositionLost(f"the source has given up slot {slot}: {cause}", remedy=RESTART_REMEDY)
    return None
