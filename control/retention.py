"""Keeps what the source must keep of its log for us within a budget: measures it, warns in time, and lets go if asked.

A process of its own, with nothing but a connection to the source: a slot keeps most when capture does not run well,
when the log takes nothing, or when both databases take no more connections; then too the budget has to hold.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Mapping
from enum import IntEnum
from typing import Protocol

import psycopg

from control.amounts import bytes_text, duration_text
from control.trend import Trend
from engines.postgres import retention
from engines.postgres.connect import connect
from engines.postgres.errors import translated
from engines.postgres.retention import Retained
from schemas.errors import PositionLost
from schemas.events import EventKind
from schemas.pipeline import AtBudget

_log = logging.getLogger(__name__)

LOOK_SECONDS = 0.25, 1.0
"""How soon, and how seldom at most, is looked again: ten times until the budget is full, at the rate there is."""

WARN_FROM, WARN_SOON_FROM, SOON_SECONDS = 0.75, 0.25, 3600.0
"""People are told from this share on; from the smaller one on if the rest will be full within so many seconds."""

REMIND_SECONDS = 300.0

RELEASE_REMEDY = "at the limit the slot is dropped, and all has to be loaded again"
WARN_REMEDY = "at the limit nothing but warning follows: see to the source's disk"


class Level(IntEnum):
    """How things stand. People are told when it gets worse, again and again while it is bad, and when it is well."""

    FINE = 0
    FILLING = 1
    FULL = 2


class Slot(Protocol):
    """The pipeline's slot at the source."""

    def retained(self) -> Retained | None: ...
    def holders(self) -> list[str]: ...
    def release(self, why: str) -> PositionLost:
        """Drop it, for good, and return what that means."""

    def released(self) -> PositionLost | None:
        """Return what that means if it was done before."""

    def close(self) -> None: ...


class PostgresSlot:
    """A slot of PostgreSQL, over a connection that is made at the first question and kept: it may be the last one."""

    def __init__(self, url: str, slot: str) -> None:
        self._url, self._slot = url, slot
        self._opened: psycopg.Connection | None = None

    def retained(self) -> Retained | None:
        with translated("source", f"asking what slot {self._slot} keeps"):
            return retention.retained(self._connection(), self._slot)

    def holders(self) -> list[str]:
        with translated("source", f"asking who holds slot {self._slot}"):
            return retention.holders(self._connection())

    def release(self, why: str) -> PositionLost:
        with translated("source", f"releasing slot {self._slot}"):
            return retention.release(self._connection(), self._slot, why)

    def released(self) -> PositionLost | None:
        with translated("source", f"looking for slot {self._slot}"):
            return retention.released(self._connection(), self._slot)

    def close(self) -> None:
        if self._opened is not None:
            self._opened.close()

    def _connection(self) -> psycopg.Connection:
        if self._opened is None:
            self._opened = connect(self._url, role="control", application="penstock retention")
        return self._opened


class Retention:
    """The loop: one look at a time, more often as the budget fills."""

    def __init__(
        self,
        slot: Slot,
        budget: int,
        policy: AtBudget,
        tell: Callable[[EventKind, str, str], None],
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._slot, self._budget, self._policy, self._tell = slot, budget, policy, tell
        self._clock, self._sleep = clock, sleep
        self._trend = Trend()
        self._retained = 0
        self._level = Level.FINE
        self._told_at = 0.0
        self._look_at = 0.0

    def metrics(self) -> Mapping[str, float]:
        """Return what is kept, what may be, and when that will be full."""
        figures: dict[str, float] = {"wal_retained_bytes": self._retained, "wal_budget_bytes": self._budget}
        if (left := self._trend.seconds_to(self._budget)) is not None:
            figures["wal_full_seconds"] = left
        return figures

    def step(self) -> bool:
        """Look once, if it is time. Raises `PositionLost` when the slot was let go, now or earlier, and
        `SourceUnavailable`."""
        now = self._clock()
        if now < self._look_at:
            return False
        found = self._slot.retained()
        if found is None:
            if (lost := self._slot.released()) is not None:
                raise lost
            self._retained, self._trend = 0, Trend()
            self._look_at = now + LOOK_SECONDS[1]
            return True
        self._retained = found.size
        self._trend.add(now, found.size)
        left = self._trend.seconds_to(self._budget)
        soonest, latest = LOOK_SECONDS
        unhurried = latest if self._trend.known else soonest
        self._look_at = now + (unhurried if left is None else min(latest, max(soonest, left / 10)))
        self._judge(found, left, now)
        return True

    def wait(self, timeout: float) -> None:
        """Wait until it is time to look, at most `timeout` seconds."""
        self._sleep(max(0.0, min(timeout, self._look_at - self._clock())))

    def close(self) -> None:
        """Let go of the source; never raises."""
        with contextlib.suppress(Exception):
            self._slot.close()

    def _judge(self, found: Retained, left: float | None, now: float) -> None:
        level = self._level_of(found.size / self._budget, left)
        size = f"the source keeps {bytes_text(found.size)} of its log for us"
        budget = f"wal-budget is {bytes_text(self._budget)}"
        if found.size >= self._budget and self._policy is AtBudget.RELEASE:
            raise self._slot.release(f"the source kept {bytes_text(found.size)} of its log for it, {budget}")
        worse = level > self._level
        if worse or (level is not Level.FINE and now - self._told_at >= REMIND_SECONDS):
            self._told_at = now
            soon = f", full in about {duration_text(left)}" if left else ""
            text = f"{size}, {budget}{soon}: {self._cause(found)}"
            remedy = RELEASE_REMEDY if self._policy is AtBudget.RELEASE else WARN_REMEDY
            _log.warning("%s → %s", text, remedy)
            if worse:
                self._tell(EventKind.WARNING, text, remedy)
        elif level is Level.FINE and self._level is not Level.FINE:
            _log.warning("%s again, %s", size, budget)
            self._tell(EventKind.NOTICE, f"{size} again, {budget}", "")
        self._level = level

    def _level_of(self, share: float, left: float | None) -> Level:
        # What was told once does not come and go with every change of size and rate.
        if share >= 1 or (self._level is Level.FULL and share >= WARN_SOON_FROM):
            return Level.FULL
        soon = left is not None and left <= SOON_SECONDS and share >= WARN_SOON_FROM
        if share >= WARN_FROM or soon or (self._level is Level.FILLING and share >= WARN_SOON_FROM):
            return Level.FILLING
        return Level.FINE

    def _cause(self, found: Retained) -> str:
        """Say what holds it: our own delay, or transactions of the source's that are open."""
        if found.behind >= found.size / 2:
            return f"capture has not taken the last {bytes_text(found.behind)} of it, see `penstock status`"
        open_ones = self._slot.holders()
        if open_ones:
            return f"it is kept since the beginning of what is open at the source: {'; '.join(open_ones[:3])}"
        return "it goes with the source's next checkpoint"
