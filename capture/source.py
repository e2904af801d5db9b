"""What capture needs of a database: its committed changes as encoded blocks, and leave to forget them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from importlib.metadata import entry_points
from typing import Protocol

from capture.tables import TableVersions
from schemas.errors import ConfigInvalid, ReplicationError
from schemas.frontier import NO_COMMIT, Commit, Setup
from transport.log import Block, Partition


@dataclass(frozen=True, slots=True)
class Step:
    """The next changes of a source, encoded, by the partition they belong to.

    With a `position` everything up to it is whole: the changes of this step and of the steps without a position
    before it are all transactions that end after the previous position and up to this one. Without one, a
    transaction is not complete yet: its changes are handed over early so that memory stays bounded, and count only
    once a later step names a position.
    """

    blocks: Mapping[Partition, Block] = field(default_factory=dict)
    schemas: Mapping[Partition, frozenset[int]] = field(default_factory=dict)
    position: int | None = None
    commit_time: int = 0  # of the last transaction, at the source; 0 if the step completes none
    max_xid: int = 0  # the largest id among the transactions so far; 0 if there were none
    transactions: int = 0  # that end in the step
    end: int = 0  # how far the source's own log reaches, as far as is known: tells how much is still to come
    last: Commit = NO_COMMIT  # of the transactions, to be known again by

    @property
    def records(self) -> int:
        return sum(block.count for block in self.blocks.values())

    @property
    def bytes(self) -> int:
        return sum(len(block.data) for block in self.blocks.values())


class Source(Protocol):
    """One database's committed changes, in commit order, already encoded.

    Used by one thread. After any exception the source is of no more use than to be closed; a new one goes on from
    the last position that the log holds.
    """

    def occupied(self) -> str:
        """Return, for people, who else reads the stream; empty if nobody does. Asked before anything else is.

        Waits a few seconds for another reader to go. By the time `start` is called there may be another one all the
        same. Raises as `start` does.
        """

    def start(self, after: int, epoch: int, last: Commit) -> None:
        """Connect and make the changes flow that were committed after the position `after`; `last` is the last of
        those up to it.

        `epoch` is written into every record. A transaction that ends at `after` does not come again; each that ends
        later comes, exactly once. Raises `PositionLost` if the source no longer has them all, is not the source that
        the pipeline was made with, or went back in its history and took another way from there, `LogRewound` if more
        has been confirmed to it than the log holds, and `SourceUnavailable` if it can't be reached now or another
        reader still holds the stream.
        """

    def poll(self, timeout: float) -> Step | None:
        """Return the next step, or None if nothing worth one has come within `timeout` seconds.

        Transactions come whole and in commit order, many of them in one step when there is much to catch up with,
        up to a few megabytes or some milliseconds; a transaction that is larger than that comes in several steps,
        of which only the last has a position. Positions only grow. An idle source gives a step without blocks from
        time to time, if its position has moved. Raises `SourceUnavailable` if the connection is lost,
        `PositionLost` if the source has given the stream up, `SchemaUnsupported` if nothing of it can be read any more.

        A table that can't be carried is left out, and the others go on. In each transaction that has rows of it, one
        record `DEFINE` of a version that says why stands for them: whoever reads the log can't take the table for
        whole. This goes on, in later incarnations too, until somebody has asked to load the table anew.
        """

    def leave_out(self, schema_id: int, cause: ReplicationError) -> None:
        """Leave the table out that has this row schema, as the log does not take a record of it: from the next
        incarnation on, so that there is nothing to be done with this one but to close it."""

    def confirm(self, position: int) -> None:
        """Allow the source to forget everything up to `position`: it is durable in the log.

        Only ever called with a position that a durable, valid frontier holds. It may take effect late or, if the
        connection is lost, not at all: the next incarnation confirms again.
        """

    def close(self) -> None:
        """Let go of the connection; never raises, and may be called twice."""


class SourceFactory(Protocol):
    """How an engine's source is made; making it touches nothing, `start` connects."""

    def __call__(self, url: str, setup: Setup, tables: TableVersions) -> Source: ...


SOURCES: dict[str, str] = {
    "postgresql": "capture.postgres:PostgresSource",
    "postgres": "capture.postgres:PostgresSource",
}
"""Sources by the scheme of their URL, as dotted names, so that no driver is imported before it is needed."""

ENTRY_POINTS = "penstock.sources"
"""The entry-point group in which other distributions name theirs."""


def source_factory(url: str) -> Callable[[str, Setup, TableVersions], Source]:
    """Return what makes the source for a URL. Raises `ConfigInvalid` if no engine knows its scheme."""
    scheme = url.partition("://")[0].partition("+")[0]
    if scheme in SOURCES:
        module, _, name = SOURCES[scheme].partition(":")
        made: Callable[[str, Setup, TableVersions], Source] = getattr(import_module(module), name)
        return made
    for entry in entry_points(group=ENTRY_POINTS):
        if entry.name == scheme:
            found: Callable[[str, Setup, TableVersions], Source] = entry.load()
            return found
    raise ConfigInvalid(
        f"there is no source for URLs that begin with {scheme}://", remedy=f"use one of {', '.join(sorted(SOURCES))}"
    )
