"""By which names people speak of a table: the one that `status` lists it by, and the one that it has got since."""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase

from transport.views import Tables


def fits(name: str, pattern: str) -> bool:
    """Whether a table's name is a pattern to the letter, or fits it."""
    return name == pattern or fnmatchcase(name, pattern)


class Names:
    """What the source calls the tables now, as far as capture has come."""

    def __init__(self, tables: Tables) -> None:
        self._tables = tables
        self._now: dict[str, str] = {}

    def refresh(self) -> None:
        """Read on; without it no table has another name."""
        self._tables.refresh()
        self._now = {str(version.id): str(version.name) for version in self._tables.all_latest()}

    def now(self, listed: str) -> str:
        """Return what a table is called that is listed by a name."""
        return self._now.get(listed, listed)

    def fit(self, listed: str, patterns: Iterable[str]) -> bool:
        """Whether either name of a table fits one of the patterns."""
        return any(fits(name, pattern) for name in (listed, self.now(listed)) for pattern in patterns)
