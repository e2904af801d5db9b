"""The way of a chunk from rows that were read to one that is final.

It is final when its manifest is in the log. That is written only when its rows are durable, and when capture has passed
the message of the snapshot that it was read in: until then the source may still lose, in a crash, commits that the
snapshot has shown. Small chunks go this way together.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import takewhile

from schemas.errors import IntegrityError
from schemas.frontier import Manifest, Plan
from schemas.record import encode_control
from schemas.table import TableId
from snapshot.reader import Rows
from snapshot.tasks import Task
from transport.log import Log, LogWriter, Partition
from transport.topics import Topics
from transport.views import Chunks

TOGETHER_ROWS = 10_000
TOGETHER_BYTES = 8 << 20
TOGETHER_SECONDS = 0.2
"""Chunks of up to so many rows are made durable several at once: up to so much, and for no longer than that."""

FINAL_AT_ONCE = 100


class Writer:
    """A writer of the log that is opened when it is needed, and again after it has failed."""

    def __init__(self, log: Log, purpose: str) -> None:
        self._log, self._purpose = log, purpose
        self._stack = contextlib.ExitStack()
        self._open: LogWriter | None = None

    def __call__(self) -> LogWriter:
        if self._open is None:
            self._open = self._stack.enter_context(self._log.writer(self._purpose))
        return self._open

    def drop(self) -> None:
        """Leave what is not durable; never raises."""
        self._open = None
        with contextlib.suppress(Exception):
            self._stack.close()


@dataclass(slots=True)
class Reading:
    """A chunk, or a healing, on its way into the log."""

    task: Task
    plan: Plan
    snapshot: int
    partition: Partition
    rows: Iterator[Rows | None]
    leaves: list[TableId]  # that must still be what the plan says when all is read
    records: int = 0
    number: int = 0
    size: int = 0


class Delivery:
    """What one worker has read to the end and is not final yet.

    Its rows are in order in the partitions that `load` writes, which nobody else writes; nothing else is appended there
    between two calls of `add` but the rows of the reading that the second one adds.
    """

    def __init__(
        self,
        log: Log,
        topics: Topics,
        load: Writer,
        control: Writer,
        clock: Callable[[], float],
        micros: Callable[[], int],
    ) -> None:
        self._log, self._topics, self._load, self._control = log, topics, load, control
        self._clock, self._micros = clock, micros
        self._read: dict[Task, Reading] = {}  # not durable yet
        self._read_at = 0.0  # the first of them
        self._durable: dict[Task, Manifest] = {}
        self._due = 0  # the position before which none of them can become final

    def __contains__(self, task: Task) -> bool:
        return task in self._durable or task in self._read

    @property
    def has_read(self) -> bool:
        """Whether something is not durable yet."""
        return bool(self._read)

    @property
    def pending(self) -> int:
        """How many are durable, and wait for capture."""
        return len(self._durable)

    def add(self, reading: Reading) -> bool:
        """Take a reading that is complete; return whether it is time to make all durable."""
        if not self._read:
            self._read_at = self._clock()
        self._read[reading.task] = reading
        size = sum(read.size for read in self._read.values())
        return size >= TOGETHER_BYTES or self._clock() - self._read_at >= TOGETHER_SECONDS

    def make_durable(self, chunks: Chunks) -> None:
        """Make all that was read durable. In the midst of a reading its records would be among the others."""
        read, self._read = self._read, {}
        written = self._load().flush()
        begins = {partition: span.start for partition, span in written.items()}
        for task, reading in read.items():
            partition = reading.partition
            if partition not in begins:
                begins[partition] = self._log.offsets(partition).end
            start = begins[partition]
            begins[partition] = end = start + reading.records
            self._durable[task] = Manifest(
                table_schema=task.table.schema,
                table_name=task.table.name,
                generation=reading.plan.generation,
                chunk=task.what,
                snapshot=reading.snapshot,
                topic=partition.topic,
                partition=partition.number,
                start=start,
                end=end,
                rows=reading.number,
                bytes=reading.size,
                at=self._micros(),
            )
            self._due = min(self._due, chunks.snapshots[reading.snapshot].position)
        for partition, span in written.items():
            if begins[partition] != span.end:
                self._durable.clear()
                raise IntegrityError(
                    f"batches up to {begins[partition]} were written to {partition}, but they end at {span.end}"
                )

    def is_due(self, position: int) -> bool:
        """Whether something may become final when capture has come to a position."""
        return position >= self._due

    def forget_unwanted(self, chunks: Chunks) -> bool:
        """Forget what the log does not want any more, or not as it is; return whether there was such."""
        unwanted = [
            task
            for task, manifest in self._durable.items()
            if not chunks.of(task.table).wants(manifest) or chunks.is_freed(manifest)
        ]
        for task in unwanted:
            del self._durable[task]
        return bool(unwanted)

    def make_final(self, chunks: Chunks, position: int) -> int:
        """Write the manifests of what may be final when capture has come to a position; return how many.

        In the order in which the rows were written: what lies before a final chunk may be forgotten with it.
        """
        passed = list(takewhile(lambda d: chunks.snapshots[d[1].snapshot].position <= position, self._durable.items()))[
            :FINAL_AT_ONCE
        ]
        if passed:
            entries = [encode_control(manifest) for _, manifest in passed]
            self._control().put_all(self._topics.chunks, entries)
        for task, _ in passed:
            del self._durable[task]
        self._due = min((chunks.snapshots[m.snapshot].position for m in self._durable.values()), default=0)
        return len(passed)

    def drop(self) -> bool:
        """Leave what is not durable, to be read once more; return whether there was anything."""
        dropped = bool(self._read)
        self._read.clear()
        self._load.drop()
        return dropped
