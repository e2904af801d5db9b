"""What may go wrong at a call outwards, and who is calling.

Each call of a loop to its source, its log or its target passes through `Faults.call`. One number is drawn for every
call, whatever becomes of it: so a history in which some faults are left out stays close to the one it came from, which
is what shrinking needs. What a fault is:

* the process dies before the call took effect, or after it;
* the call fails before it took effect, or though it did;
* the process stalls, before or after, while others take their turns: among them, sometimes, a second incarnation of
  itself, so that it comes back as a zombie.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, TypeVar

from schemas.errors import TransientError

T = TypeVar("T")


class Killed(BaseException):
    """The process that is running has been killed: its stack unwinds, without another effect."""


class Fault(Enum):
    """What goes wrong at one call."""

    DIES_BEFORE = "dies before"
    DIES_AFTER = "dies after"
    FAILS_BEFORE = "fails before"
    FAILS_AFTER = "fails after"
    STALLS_BEFORE = "stalls before"
    STALLS_AFTER = "stalls after"


FAULTS = tuple(Fault)


@dataclass(eq=False)
class Process:
    """One incarnation of a service."""

    kind: str
    number: int
    loop: Any = None
    dead: bool = False
    busy: bool = False  # in the midst of a step, perhaps stalled there
    stalled: int = 0  # turns that it will not get
    memory: dict[str, Any] = field(default_factory=dict)
    sessions: list[Session] = field(default_factory=list)

    @property
    def name(self) -> str:
        return f"{self.kind}#{self.number}"

    def die(self) -> None:
        """End the process; its connections end with it."""
        self.dead = True
        self.cut()

    def cut(self) -> None:
        """Lose every connection."""
        sessions, self.sessions = self.sessions, []
        for session in sessions:
            session.end()


class Session:
    """A connection to a database: ends with its process, with the server, or by itself."""

    def __init__(self, process: Process, on_end: Callable[[], None] | None = None) -> None:
        self.process, self.on_end, self.alive = process, on_end, True
        process.sessions.append(self)

    def end(self) -> None:
        if self.alive:
            self.alive = False
            if self in self.process.sessions:
                self.process.sessions.remove(self)
            if self.on_end is not None:
                self.on_end()


class Faults:
    """Decides what goes wrong, at which of all calls outwards."""

    def __init__(self, seed: int, rate: float, only: frozenset[int] | None, stall: Callable[[Process, float], None]):
        self._draw = random.Random(seed * 3 + 1).random
        self._rate, self._only, self._stall = rate, only, stall
        self.calls = 0
        self.quiet = False
        self.happened: list[tuple[int, str]] = []
        self.trace: Callable[[str], None] | None = None

    def call(self, process: Process, what: str, effect: Callable[[], T], error: type[TransientError]) -> T:
        """Let a call take effect, or let it go wrong; `error` is how the process hears of it."""
        if process.dead:
            raise Killed
        number, self.calls = self.calls, self.calls + 1
        x = self._draw()
        if x >= self._rate or self.quiet or (self._only is not None and number not in self._only):
            if self.trace is not None:
                self.trace(f"{number} {process.name} {what}")
            return effect()
        x /= self._rate
        fault = FAULTS[int(x * len(FAULTS))]
        rest = x * len(FAULTS) % 1
        self.happened.append((number, f"{process.name} {fault.value} {what}"))
        if self.trace is not None:
            self.trace(f"{number} {process.name} {what}: {fault.value}")
        if fault is Fault.DIES_BEFORE:
            self._die(process)
        if fault is Fault.FAILS_BEFORE:
            raise error(f"{what} failed")
        if fault is Fault.STALLS_BEFORE:
            self._stall(process, rest)
            if process.dead:
                raise Killed
        result = effect()
        if fault is Fault.DIES_AFTER:
            self._die(process)
        if fault is Fault.FAILS_AFTER:
            raise error(f"{what} took effect, but its answer was lost")
        if fault is Fault.STALLS_AFTER:
            self._stall(process, rest)
            if process.dead:
                raise Killed
        return result

    @staticmethod
    def _die(process: Process) -> None:
        process.die()
        raise Killed
