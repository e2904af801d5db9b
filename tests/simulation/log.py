"""The log in memory, with faults at every call, as one process sees it.

Of what Kafka does there is: a member that stalls for too long is put out of its group and comes back as the last one,
and who is put out learns it late; in some histories all members own everything, as nothing may rely on that they
don't. Of a disk budget: blocks are refused until there is room again.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Protocol

from schemas.errors import IntegrityError, LogUnavailable
from tests.simulation.faults import Faults, Process, T
from transport.log import WORK_PARTITIONS, Block, LogReader, LogWriter, Partition, Range, Record, Topic, Usage
from transport.memory import MemoryLog

LATE = 0.8
"""How often a member still hears of the share that it had."""


class Call(Protocol):
    """A call outwards: what it is, for people, and its effect."""

    def __call__(self, what: str, effect: Callable[[], T]) -> T: ...


class SimulatedLog:
    """`MemoryLog` for one process. A writer whose call failed is dead, whether the call took effect or not."""

    shared_topics: int | None = None

    def __init__(self, log: MemoryLog, process: Process, faults: Faults, shared: Shared) -> None:
        self._log, self._process, self._faults, self._shared = log, process, faults, shared

    def _call(self, what: str, effect: Callable[[], T]) -> T:
        return self._faults.call(self._process, what, effect, LogUnavailable)

    def create_topics(self, topics: list[Topic]) -> None:
        self._call("create topics", lambda: self._log.create_topics(topics))

    def delete_topics(self, names: list[str]) -> None:
        self._call("delete topics", lambda: self._log.delete_topics(names))

    def topics(self, prefix: str) -> list[Topic]:
        return self._call("list topics", lambda: self._log.topics(prefix))

    def offsets(self, partition: Partition) -> Range:
        return self._call(f"ask the end of {partition.topic}", lambda: self._log.offsets(partition))

    def trim(self, partition: Partition, offset: int) -> None:
        self._call(f"trim {partition.topic}", lambda: self._log.trim(partition, offset))

    def identity(self) -> str:
        return self._call("ask who the log is", self._log.identity)

    def usage(self) -> Usage:
        return self._log.usage()

    @contextmanager
    def writer(self, purpose: str) -> Iterator[LogWriter]:
        with self._log.writer(purpose) as writer:
            yield self._call("open a writer", lambda: _Writer(writer, self._shared, self._call))

    @contextmanager
    def reader(self) -> Iterator[LogReader]:
        with self._log.reader() as reader:
            yield self._call("open a reader", lambda: _Reader(reader, self._call))

    @contextmanager
    def membership(self, group: str) -> Iterator[_Membership]:
        member = _Membership(self._shared, group, self._process, self._call)
        try:
            self._call(f"join {group}", lambda: self._shared.join(member))
            yield member
        finally:
            self._shared.leave(member)

    def problems(self) -> list[tuple[str, str]]:
        return []

    def close(self) -> None:
        """There is nothing to free."""


class _Writer:
    def __init__(self, writer: LogWriter, shared: Shared, call: Call) -> None:
        self._writer, self._shared, self._call, self._dead = writer, shared, call, False

    def append(self, partition: Partition, block: Block) -> int:
        def take() -> int:
            if self._shared.full:
                raise LogUnavailable("the log has taken all that it may take")
            return self._writer.append(partition, block)

        return self._do(f"append {block.count} to {partition.topic}", take)

    def flush(self) -> dict[Partition, Range]:
        return self._do("flush", self._writer.flush)

    def seal(
        self, partition: Partition, make: Callable[[dict[Partition, Range]], bytes], key: bytes | None = None
    ) -> int:
        return self._do(f"seal in {partition.topic}", lambda: self._writer.seal(partition, make, key))

    def put(self, partition: Partition, value: bytes | None, key: bytes | None = None) -> int:
        return self._do(f"put to {partition.topic}", lambda: self._writer.put(partition, value, key))

    def put_all(self, partition: Partition, values: Sequence[bytes]) -> None:
        self._do(f"put {len(values)} to {partition.topic}", lambda: self._writer.put_all(partition, values))

    def _do(self, what: str, effect: Callable[[], T]) -> T:
        if self._dead:
            raise IntegrityError("this writer has failed before and must not be used again")
        try:
            return self._call(what, effect)
        except BaseException:
            self._dead = True
            raise


class _Reader:
    def __init__(self, reader: LogReader, call: Call) -> None:
        self._reader, self._call = reader, call
        self._known: dict[Partition, int] = {}

    def records(self, partition: Partition, start: int, limit: int = 1000, *, fresh: bool = True) -> list[Record]:
        def look() -> list[Record]:
            found = self._reader.records(partition, start, limit)
            known = self._known.get(partition, 0)
            self._known[partition] = max(known, found[-1].offset + 1) if found else known
            # Who does not ask for more than that learns late what there is.
            return found if fresh else [record for record in found if record.offset < known]

        return self._call(f"look at {partition.topic} from {start}", look)

    def wait(self, ends: Mapping[Partition, int], timeout: float) -> bool:
        """Nobody waits here: others take their turns when this one has returned."""
        return True

    def read(self, partition: Partition, wanted: Range) -> Iterator[Block]:
        return iter(
            self._call(
                f"read {partition.topic} {wanted.start}..{wanted.end}",
                lambda: list(self._reader.read(partition, wanted)),
            )
        )


class Shared:
    """What all processes share of the log beside its records: its room, and who is in which group of workers."""

    def __init__(self, rng: random.Random, *, overlapping: bool) -> None:
        self.rng, self._overlapping = rng, overlapping
        self.full = False
        self._groups: dict[str, list[_Membership]] = {}

    def join(self, member: _Membership) -> None:
        self._groups.setdefault(member.group, []).append(member)

    def leave(self, member: _Membership) -> None:
        if member in (members := self._groups.get(member.group, [])):
            members.remove(member)

    def put_out(self, process: Process) -> None:
        """Take a process that died, or did not answer for too long, out of its groups."""
        for group, members in self._groups.items():
            self._groups[group] = [member for member in members if member.process is not process]

    def share(self, member: _Membership) -> frozenset[int]:
        members = self._groups[member.group]
        if member not in members:
            members.append(member)
        if self._overlapping:
            return frozenset(range(WORK_PARTITIONS))
        return frozenset(range(members.index(member), WORK_PARTITIONS, len(members)))


class _Membership:
    """One member, who may be told of a change late."""

    def __init__(self, shared: Shared, group: str, process: Process, call: Call) -> None:
        self._shared, self.group, self.process, self._call = shared, group, process, call
        self._told: frozenset[int] = frozenset()

    def poll(self) -> frozenset[int]:
        def ask() -> frozenset[int]:
            if self._shared.rng.random() >= LATE:
                self._told = self._shared.share(self)
            return self._told

        return self._call(f"ask for the share of {self.group}", ask)
