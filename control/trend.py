"""How fast something grows, and when it will be full."""

from __future__ import annotations

from collections import deque

RATE_SECONDS = 60.0
"""The rate is taken over so long."""


class Trend:
    """How fast something grows."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, int]] = deque()

    def add(self, at: float, size: int) -> None:
        """Note how much there is at a moment."""
        self._seen.append((at, size))
        while len(self._seen) > 2 and self._seen[1][0] <= at - RATE_SECONDS:
            self._seen.popleft()

    @property
    def known(self) -> bool:
        return len(self._seen) > 1

    def seconds_to(self, limit: int) -> float | None:
        """Return when it will be as much, at the rate of late; None if that is not to be expected."""
        if not self.known:
            return None
        (began, least), (now, size) = self._seen[0], self._seen[-1]
        if size >= limit:
            return 0.0
        return (limit - size) * (now - began) / (size - least) if size > least and now > began else None
