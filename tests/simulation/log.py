"""The log in memory, with faults at every call, as one process sees it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from schemas.errors import IntegrityError, LogUnavailable
from tests.simulation.faults import Faults, Process, T
from transport.log import WORK_PARTITIONS, Block, LogReader, LogWriter, Partition, Range, Record, Topic, Usage
from transport.memory import MemoryLog


class SimulatedLog:
    """`MemoryLog` for one process. A writer whose call failed is dead, whether the call took effect or not."""

    shared_topics: int | None = None

    def __init__(self, log: MemoryLog, process: Process, faults: Faults, members: Members) -> None:
        self._log, self._process, self._faults, self._members = log, process, faults, members

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
        return self._log.identity()

    def usage(self) -> Usage:
        return self._log.usage()

    @contextmanager
    def writer(self, purpose: str) -> Iterator[LogWriter]:
        with self._log.writer(purpose) as writer:
            yield _Writer(writer, self._call)

    @contextmanager
    def reader(self) -> Iterator[LogReader]:
        with self._log.reader() as reader:
            yield _Reader(reader, self._call)

    @contextmanager
    def membership(self, group: str) -> Iterator[_Membership]:
        member = _Membership(self._members, group, self._process)
        self._members.join(member)
        try:
            yield member
        finally:
            self._members.leave(member)

    def problems(self) -> list[tuple[str, str]]:
        return []

    def close(self) -> None:
        """There is nothing to free."""


class _Writer:
    def __init__(self, writer: LogWriter, call: Callable[[str, Callable[[], object]], object]) -> None:
        self._writer, self._call, self._dead = writer, call, False

    def append(self, partition: Partition, block: Block) -> None:
        self._do(f"append {block.count} to {partition.topic}", lambda: self._writer.append(partition, block))

    def flush(self) -> dict[Partition, Range]:
        return self._do("flush", self._writer.flush)

    def seal(
        self, partition: Partition, make: Callable[[dict[Partition, Range]], bytes], key: bytes | None = None
    ) -> int:
        return self._do(f"seal in {partition.topic}", lambda: self._writer.seal(partition, make, key))

    def put(self, partition: Partition, value: bytes | None, key: bytes | None = None) -> int:
        return self._do(f"put to {partition.topic}", lambda: self._writer.put(partition, value, key))

    def _do(self, what: str, effect: Callable[[], T]) -> T:
        if self._dead:
            raise IntegrityError("this writer has failed before and must not be used again")
        try:
            return self._call(what, effect)  # type: ignore[return-value]
        except BaseException:
            self._dead = True
            raise


class _Reader:
    def __init__(self, reader: LogReader, call: Callable[[str, Callable[[], object]], object]) -> None:
        self._reader, self._call = reader, call

    def records(self, partition: Partition, start: int, limit: int = 1000) -> list[Record]:
        return self._call(  # type: ignore[return-value]
            f"look at {partition.topic} from {start}", lambda: self._reader.records(partition, start, limit)
        )

    def wait(self, ends: Mapping[Partition, int], timeout: float) -> bool:
        """Nobody waits here: others take their turns when this one has returned."""
        return True

    def read(self, partition: Partition, wanted: Range) -> Iterator[Block]:
        blocks: list[Block] = self._call(  # type: ignore[assignment]
            f"read {partition.topic} {wanted.start}..{wanted.end}",
            lambda: list(self._reader.read(partition, wanted)),
        )
        return iter(blocks)


class Members:
    """Who is in which group of workers."""

    def __init__(self) -> None:
        self._groups: dict[str, list[_Membership]] = {}

    def join(self, member: _Membership) -> None:
        self._groups.setdefault(member.group, []).append(member)

    def leave(self, member: _Membership) -> None:
        if member in (members := self._groups[member.group]):
            members.remove(member)

    def forget(self, process: Process) -> None:
        """Take a process that died out of its groups."""
        for group, members in self._groups.items():
            self._groups[group] = [member for member in members if member.process is not process]

    def share(self, member: _Membership) -> frozenset[int]:
        members = self._groups[member.group]
        if member not in members:
            return frozenset()
        return frozenset(range(members.index(member), WORK_PARTITIONS, len(members)))


class _Membership:
    def __init__(self, members: Members, group: str, process: Process) -> None:
        self._members, self.group, self.process = members, group, process

    def poll(self) -> frozenset[int]:
        return self._members.share(self)
