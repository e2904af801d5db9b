"""What the snapshot service needs of a database: snapshots that are held, and tables that are read in them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any, NamedTuple, Protocol, runtime_checkable

from schemas.errors import ConfigInvalid
from schemas.frontier import Chunk, Visibility
from schemas.table import SetupObjects, Table, TableId
from transport.views import Registered

GONE = "gone"
"""The mark of a leaf that does not exist."""


class Rows(NamedTuple):
    """A batch value of the log, about 1,000 rows or 900 kB, and how many rows are in it."""

    value: bytes
    number: int


class Mark(NamedTuple):
    """Where a leaf's rows physically are: as the open snapshot sees it, and as it is now. If these differ, the
    snapshot can't read the leaf any more: what it would see is wrong, without an error."""

    seen: str
    now: str


class Planned(NamedTuple):
    """How a table is divided, and the present marks of its leaves."""

    chunks: tuple[Chunk, ...]
    physical: tuple[str, ...]


class Reader(Protocol):
    """One database's tables, read in snapshots that somebody else holds. Used by one thread.

    Everything but `open` and `close` happens within the snapshot opened last. After any exception but
    `SnapshotLost` a reader is of no more use than to be closed.
    """

    def open(self, snapshot: str) -> None:
        """Begin to read in a snapshot, after `release` of the one before. Raises `SnapshotLost` if nobody holds it
        any more; once open it stays readable until `release`, whatever becomes of its holder."""

    def plan(self, tables: Sequence[Table]) -> list[Planned]:
        """Divide each table into chunks without scanning it: at least one, numbered from 0, that together hold each of
        its rows exactly once, whatever is inserted meanwhile. Takes no lock that lasts."""

    def marks(self, leaves: Sequence[TableId]) -> list[Mark]:
        """Return the marks of leaves."""

    def leave(self, leaves: Sequence[TableId]) -> list[Mark]:
        """Return the marks of leaves that were read, which are those that they were read with, and `release`."""

    def read(self, version: Registered, chunk: Chunk) -> Iterator[Rows]:
        """Yield the rows of a chunk as batches, never holding more than one. Closing the iterator early abandons
        the chunk. Raises `ValueUnsupported` for a row that the log can't carry, `SchemaUnsupported` if the table no
        longer has the columns of this version, `PermissionMissing`, `SourceUnavailable`."""

    def read_keys(self, version: Registered, keys: Sequence[tuple[str, ...]]) -> Iterator[Rows]:
        """Yield the rows with these keys (canonical text, in the order of `Table.key`), as `read` does. A key
        without a row yields nothing."""

    def read_where(self, version: Registered, condition: str) -> Iterator[Rows]:
        """Yield the rows that fulfil a condition in SQL, as `read` does."""

    def release(self) -> None:
        """Let go of the snapshot and of every lock on the tables. Does nothing if none is open."""

    def close(self) -> None:
        """Let go of the connection; never raises, and may be called twice."""


@runtime_checkable
class Comparer(Protocol):
    """What a reader may offer besides: to tell whether a version of a table is that of now."""

    def is_current(self, table: Table) -> bool:
        """Whether the table has exactly the columns of this version. False if there is no such table."""


class Held(Protocol):
    """A snapshot that is kept alive. It lives as long as this object's connection."""

    name: str
    visibility: Visibility

    def ping(self) -> None:
        """Raise `SnapshotLost` if the snapshot is gone or its connection does not answer."""

    def close(self) -> None:
        """Let it go; never raises."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """What setting up has made at the source."""

    system: str
    slot: str
    publications: tuple[str, ...]
    position: int  # where the stream begins
    visibility: Visibility  # what the beginning of the stream has already seen
    snapshot: Held | None  # exactly that state of the source; None if it was not asked for


class SnapshotSource(Protocol):
    """The holder's side of a database. Used by one thread; of no use after an exception but to be closed."""

    def claim(self) -> bool:
        """Become the pipeline's only holder, until `close` or the loss of the connection; False if another is."""

    def is_prepared(self) -> bool:
        """Whether the change stream of a pipeline of this name is there already, whoever has prepared it."""

    def catalogue(
        self, chooses: Callable[[TableId], bool], choices: Sequence[tuple[str, ...]] = ()
    ) -> tuple[SetupObjects, list[Table]]:
        """Return the tables that are chosen, and what they rest on; also what those rest on that each of the choices
        takes of them."""

    def prepare(self, tables: Sequence[Table], *, hold: bool) -> Prepared:
        """Make what the change stream of these tables needs; what an earlier attempt left behind is removed first.

        The stream begins here: whatever commits later is in it, whatever `Prepared.visibility` sees is not. May wait
        for the transactions that are running."""

    def take(self) -> Held:
        """Take and hold a snapshot of now."""

    def announce(self) -> int:
        """Write a message into the source's own log, flush it, and return its position: capture has passed it when
        it has seen everything that was committed before."""

    def ping(self) -> None:
        """Raise `SourceUnavailable` if the claim's connection is lost, and with it the claim."""

    def close(self) -> None:
        """Give the claim back and let go of the connections; never raises. Held snapshots are closed on their own."""


READERS: dict[str, str] = {
    "postgresql": "snapshot.postgres:PostgresReader",
    "postgres": "snapshot.postgres:PostgresReader",
}
"""Readers by the scheme of their URL, as dotted names, so that no driver is imported before it is needed."""

SNAPSHOT_SOURCES: dict[str, str] = {
    "postgresql": "snapshot.postgres:PostgresSnapshotSource",
    "postgres": "snapshot.postgres:PostgresSnapshotSource",
}

READER_ENTRY_POINTS = "penstock.readers"
SNAPSHOT_SOURCE_ENTRY_POINTS = "penstock.snapshot_sources"
"""The entry-point groups in which other distributions name theirs."""


def reader_factory(url: str) -> Callable[[str], Reader]:
    """Return what makes the reader for a URL; making it connects. Raises `ConfigInvalid` for an unknown scheme."""
    made: Callable[[str], Reader] = _find(url, READERS, READER_ENTRY_POINTS)
    return made


def snapshot_source_factory(url: str) -> Callable[[str, str], SnapshotSource]:
    """Return what makes the holder's side for a URL and a pipeline's name. Raises as `reader_factory` does."""
    made: Callable[[str, str], SnapshotSource] = _find(url, SNAPSHOT_SOURCES, SNAPSHOT_SOURCE_ENTRY_POINTS)
    return made


def _find(url: str, known: dict[str, str], group: str) -> Any:
    scheme = url.partition("://")[0].partition("+")[0]
    if scheme in known:
        module, _, name = known[scheme].partition(":")
        return getattr(import_module(module), name)
    for entry in entry_points(group=group):
        if entry.name == scheme:
            return entry.load()
    raise ConfigInvalid(
        f"no snapshots can be taken of sources whose URL begins with {scheme}://",
        remedy=f"use one of {', '.join(sorted(known))}",
    )
