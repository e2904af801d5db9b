"""By which names people speak of a table: the one that `status` lists it by, and the one that it has got since."""

from __future__ import annotations

from fnmatch import fnmatchcase

from schemas.table import TableId
from transport.views import Tables


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

    def is_dropped(self, table: TableId) -> bool:
        """Whether the source has a table no more, as far as capture has come."""
        version = self._tables.latest(table)
        return version is not None and version.table.dropped

    def fit(self, listed: str, pattern: str) -> bool:
        """Whether a pattern means a table: what is listed so to the letter is meant alone, whatever else would fit."""
        if pattern in self._now:
            return listed == pattern
        return any(name == pattern or fnmatchcase(name, pattern) for name in (listed, self.now(listed)))
