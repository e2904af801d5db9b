"""The log between the services: what every implementation promises, and nothing of how.

A log has topics, a topic has partitions, a partition has records at offsets that only grow. Offsets in arguments
are always the next to read. Rows travel in `Block`s, the bytes of many records, so that no object a row is made.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from schemas.errors import ValueUnsupported


class Partition(NamedTuple):
    """One ordered sequence of records."""

    topic: str
    number: int = 0


class Range(NamedTuple):
    """Offsets `[start, end)` of a partition."""

    start: int
    end: int


class Record(NamedTuple):
    """One record that is looked at by itself: control records, and `penstock log`."""

    offset: int
    key: bytes | None
    value: bytes | None


@dataclass(frozen=True, slots=True)
class Block:
    """Many records of one partition, in order.

    `data` is, for each record: key length and value length (two 32-bit little-endian integers; 0xFFFFFFFF says
    "none"), key, value. `codec.frames` packs and unpacks it.
    """

    count: int
    data: bytes
    more: int = 0
    """Offsets beyond the one that a record takes: those of the other pieces of a large one, which is alone here."""

    @property
    def offsets(self) -> int:
        """How many offsets the records take in the log."""
        return self.count + self.more


class Topic(NamedTuple):
    """A topic to make. It keeps everything until that is trimmed, and never loses anything by age or size."""

    name: str
    partitions: int = 1


class Usage(NamedTuple):
    """Bytes that the log takes, and may take (0: not known, or no limit)."""

    used: int
    budget: int


class RecordTooLarge(ValueUnsupported):
    """The log takes no record of that size in a partition."""

    def __init__(self, message: str, partition: Partition, *, remedy: str) -> None:
        super().__init__(message, remedy=remedy)
        self.partition = partition


class LogWriter(Protocol):
    """Appends in order. Not shared between threads or processes.

    After any exception the writer is dead: whether records of the last, unfinished flush are in the log is unknown,
    and they are never written again by it. Raises `LogUnavailable` if the log does not answer within its deadline
    or is at its disk budget for longer than that; `IntegrityError` if its records are not where they must be;
    `RecordTooLarge` when one is handed over, or at the next flush.
    """

    def append(self, partition: Partition, block: Block) -> int:
        """Take a block, and return how many offsets its records take: one each, more where the log can keep a large
        one only in pieces. It may be visible to readers before it is durable, and becomes durable with `flush`."""

    def flush(self) -> dict[Partition, Range]:
        """Return, once everything appended since the last flush is durable, the range of each partition: without a
        gap, and holding this writer's records alone."""

    def seal(
        self, partition: Partition, make: Callable[[dict[Partition, Range]], bytes], key: bytes | None = None
    ) -> int:
        """Flush, then append the one record that `make` returns for the ranges, and return its offset once that is
        durable too. No reader sees the sealing record without all that it seals; where the log can, both become
        durable in one step. The ranges of `flush`es since the last seal are included, joined."""

    def put(self, partition: Partition, value: bytes | None, key: bytes | None = None) -> int:
        """Append one record and return its offset once it is durable. `seal` with nothing to seal. A record that is
        put, or seals, is never kept in pieces."""

    def put_all(self, partition: Partition, values: Sequence[bytes]) -> None:
        """Append a record for each value, in order, and return when all are durable; others' may stand between."""


class LogReader(Protocol):
    """Reads. Not shared between threads or processes."""

    def records(self, partition: Partition, start: int, limit: int = 1000, *, fresh: bool = True) -> list[Record]:
        """Return the records at and after `start` that are there now, at most `limit`, without waiting for more.

        Meant for control topics that are read on and on. Without `fresh` the answer may lack what has come in the last
        seconds, which is cheaper: for whoever goes on to `wait`, because that tells of every record. Raises
        `LogRewound` if `start` is beyond the end of the log, or before its beginning.
        """

    def wait(self, ends: Mapping[Partition, int], timeout: float) -> bool:
        """Return True as soon as any of the partitions holds a record at or after its offset, False after
        `timeout` seconds. May return True without reason; then `records` finds nothing."""

    def read(self, partition: Partition, wanted: Range) -> Iterator[Block]:
        """Yield the records of exactly this range as blocks of bounded size (about 1 MB, more only for one large
        record). Pieces of which the others are not in the range, or were never written, come as one record with an
        empty value, which no decoder takes. Raises `GapDetected` if records are missing, `LogRewound` if the range is
        not within the log, `LogUnavailable` if the log stops answering."""


class Membership(Protocol):
    """A share in the work partitions of a group of workers."""

    def poll(self) -> frozenset[int]:
        """Return the work partitions that are this member's now. Cheap; call it between two pieces of work.

        Two members may hold the same one for a moment, after a stall: whoever works relies on the compare-and-set
        in the target, never on this."""


class Log(Protocol):
    """One log. Opening it makes nothing; `create_topics` does."""

    shared_topics: int | None
    """Into how many topics the changes of very many tables should be hashed; None: a topic a table costs nothing."""

    def create_topics(self, topics: list[Topic]) -> None:
        """Make those that do not exist, and return when all can be written and read."""

    def delete_topics(self, names: list[str]) -> None:
        """Delete topics and all that is in them; those that do not exist are ignored."""

    def topics(self, prefix: str) -> list[Topic]:
        """Return the topics whose names begin with `prefix`."""

    def offsets(self, partition: Partition) -> Range:
        """Return the offset of the first record that is still there, and the next one to be given out."""

    def trim(self, partition: Partition, offset: int) -> None:
        """Allow the log to forget the records below `offset`; it may keep some of them."""

    def identity(self) -> str:
        """Return an id that a log made again under the same name does not have. Raises `LogRewound` if there is no
        log of this pipeline yet."""

    def usage(self) -> Usage:
        """Return how much room the log takes."""

    def writer(self, purpose: str) -> AbstractContextManager[LogWriter]:
        """Open a writer. `purpose` is `changes` (one capture: small steps, each durable), `control`, or
        `load-N` for the N-th snapshot worker (large blocks, durable at `flush`). It appends to partition N of load
        topics and nobody else does, on any machine: a range holds one writer's records."""

    def reader(self) -> AbstractContextManager[LogReader]:
        """Open a reader."""

    def membership(self, group: str) -> AbstractContextManager[Membership]:
        """Join a group of workers that share `WORK_PARTITIONS` between them."""

    def problems(self) -> list[tuple[str, str]]:
        """Return what keeps this log from being durable and large enough, each with its remedy, for `check`."""

    def close(self) -> None:
        """Free what the log holds itself; its writers, readers and memberships are closed on their own."""


WORK_PARTITIONS = 64
"""Into how many shares the work of a target is divided."""
