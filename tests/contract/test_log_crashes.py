"""What a log still promises when processes are killed and servers stop.

The children are this file run as a program, with a role and where the log is.
"""

import ast
import contextlib
import os
import random
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from codec.frames import pack, unpack
from control.servers.kafka import KafkaServer
from schemas.errors import IntegrityError, LogUnavailable, ReplicationError
from transport import open_log
from transport.log import WORK_PARTITIONS, Block, Log, Partition, Range, Topic
from transport.topics import Topics

PATIENCE = 30.0
TABLES = 3
SUPERSEDED = 7
STEPS = 60
"""So many a writer makes at most: what it writes must not depend on how late it is killed on a busy machine."""


@dataclass(frozen=True)
class Place:
    """What a child process needs to open the same log."""

    url: str
    pipeline: str
    state: Path

    def open(self, deadline_s: float = PATIENCE) -> Log:
        return open_log(self.url, self.pipeline, self.state, deadline_s=deadline_s)

    def child(self, role: str) -> subprocess.Popen[str]:
        arguments = [role, self.url, self.pipeline, str(self.state)]
        return subprocess.Popen(
            [sys.executable, "-m", "tests.contract.test_log_crashes", *arguments],
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[2],
        )


@contextlib.contextmanager
def making(url: str, state: Path) -> Iterator[Place]:
    place = Place(url, f"t{uuid.uuid4().hex[:10]}", state)
    log = place.open()
    names = Topics(place.pipeline)
    log.create_topics([*names.fixed(), *(Topic(changes(names, n).topic) for n in range(TABLES))])
    yield place
    log.close()


@pytest.fixture(params=["sqlite", "kafka"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    url = "sqlite:" if request.param == "sqlite" else f"kafka://{request.getfixturevalue('kafka_broker').bootstrap}"
    with making(url, tmp_path) as made:
        yield made


def changes(names: Topics, table: int) -> Partition:
    return Partition(f"{names.prefix}changes.public.t{table}")


def write_steps(place: Place) -> None:
    """Capture in small: claim, then steps whose records say whose they are; each is told when it is acknowledged.

    Ends with `SUPERSEDED` where a record of another writer stands among its own: one beside it, or one that was
    killed, whose last requests the broker had not yet read. A service that ends so is started again.
    """
    names, rng = Topics(place.pipeline), random.Random()
    with place.open().writer("changes") as writer:
        epoch = writer.put(names.frontier, b"claim")
        for step in range(1, STEPS + 1):
            try:
                for table in range(TABLES):
                    size = rng.choice([0, 1, 1, 3, 50, 2000])
                    length = rng.choice([10, 400])
                    if rng.random() < 0.02:
                        size, length = 1, 9 << 20  # no log keeps that in one piece
                    record = (b"key", b"%d/%d/" % (epoch, step) + b"x" * length)
                    writer.append(changes(names, table), Block(size, pack([record] * size)))
                    if rng.random() < 0.2:
                        writer.flush()
                offset = writer.seal(names.frontier, partial(frontier, epoch, step))
            except IntegrityError:
                sys.exit(SUPERSEDED)
            print(offset, epoch, step, flush=True)
        signal.pause()


def frontier(epoch: int, step: int, ranges: dict[Partition, Range]) -> bytes:
    return repr((epoch, step, [(tuple(partition), tuple(found)) for partition, found in ranges.items()])).encode()


def poll_membership(place: Place) -> None:
    with place.open().membership("target") as member:
        while True:
            print(len(member.poll()), flush=True)
            time.sleep(0.05)


def kill(child: subprocess.Popen[str]) -> str:
    child.send_signal(signal.SIGKILL)
    output, _ = child.communicate(timeout=PATIENCE)
    return output


def verify(place: Place, acknowledged: dict[int, tuple[int, int]]) -> int:
    """Read the whole log: every acknowledged frontier is where it was said to be, and every frontier, acknowledged
    or not, leads to exactly the records of its own step. The ranges of those that count, which are of the epoch in
    force, follow each other."""
    names, ends = Topics(place.pipeline), dict.fromkeys(range(TABLES), 0)
    seen, in_force = 0, -1
    log = place.open()
    with log.reader() as reader:
        at = 0
        while records := reader.records(names.frontier, at):
            for record in records:
                assert record.offset == at
                at += 1
                assert record.value is not None
                if record.value == b"claim":
                    assert record.offset not in acknowledged
                    in_force = record.offset
                    continue
                epoch, step, ranges = ast.literal_eval(record.value.decode())
                if record.offset in acknowledged:
                    assert acknowledged.pop(record.offset) == (epoch, step)
                    seen += 1
                for partition, (start, end) in ranges:
                    if epoch == in_force:
                        table = int(partition[0][-1])
                        assert start >= ends[table]
                        ends[table] = end
                    blocks = list(reader.read(Partition(*partition), Range(start, end)))
                    assert sum(block.offsets for block in blocks) == end - start
                    marks = {value[: value.rindex(b"/")] for b in blocks for _, value in unpack(b.data) if value}
                    assert marks == {b"%d/%d" % (epoch, step)}
    assert not acknowledged
    return seen


@pytest.mark.slow
def test_a_writer_killed_at_any_moment_loses_nothing_and_tears_nothing(place: Place) -> None:
    acknowledged: dict[int, tuple[int, int]] = {}

    def note(line: str) -> None:
        offset, epoch, step = map(int, line.split())
        acknowledged[offset] = (epoch, step)

    for turn in range(8):
        # The second one starts beside the first: two captures at once.
        children = [place.child("write_steps") for _ in range(1 + turn % 2)]
        for child in children:
            assert child.stdout is not None
            for _ in range(random.Random(turn).randrange(1, 40)):
                line = child.stdout.readline()
                if not line:
                    break
                note(line)
        for child in children:
            for line in kill(child).splitlines(keepends=True):
                if line.endswith("\n"):
                    note(line)
            assert child.returncode in (-signal.SIGKILL, SUPERSEDED)
    assert verify(place, acknowledged) > 20


@pytest.mark.slow
def test_work_of_a_member_that_was_killed_is_taken_over(place: Place) -> None:
    everything = frozenset(range(WORK_PARTITIONS))

    def until(condition: Callable[[frozenset[int]], bool]) -> float:
        began = time.monotonic()
        while not condition(member.poll()):
            assert time.monotonic() - began < PATIENCE
            time.sleep(0.01)
        return time.monotonic() - began

    with place.open().membership("target") as member:
        until(lambda mine: mine == everything)
        child = place.child("poll_membership")
        try:
            until(lambda mine: len(mine) == WORK_PARTITIONS // 2)
            assert child.stdout is not None
            for line in child.stdout:
                member.poll()  # a member that does not is in the way of the others
                if line.strip() == str(WORK_PARTITIONS // 2):
                    break
        finally:
            kill(child)
        took = until(lambda mine: mine == everything)
        assert took < 10  # Kafka's part is its session time, which the broker sets


@pytest.mark.slow
def test_a_broker_that_is_killed_in_the_middle_costs_time_and_nothing_else(
    make_kafka: Callable[..., KafkaServer], tmp_path: Path
) -> None:
    broker = make_kafka()
    with making(f"kafka://{broker.bootstrap}", tmp_path) as place:
        acknowledged: dict[int, tuple[int, int]] = {}
        child = place.child("write_steps")
        try:
            assert child.stdout is not None

            def read(lines: int) -> None:
                for _ in range(lines):
                    assert child.stdout is not None
                    offset, epoch, step = map(int, child.stdout.readline().split())
                    acknowledged[offset] = (epoch, step)

            read(20)
            broker.restart(hard=True)
            read(20)
        finally:
            kill(child)
        assert verify(place, acknowledged) == 40


@pytest.mark.slow
def test_a_broker_that_stalls_runs_into_our_own_deadline(
    make_kafka: Callable[..., KafkaServer], tmp_path: Path
) -> None:
    broker = make_kafka()
    with making(f"kafka://{broker.bootstrap}", tmp_path) as place:
        names, log = Topics(place.pipeline), place.open(deadline_s=2.0)
        table = changes(names, 0)
        with log.writer("changes") as writer, log.reader() as reader:
            writer.append(table, Block(2, pack([(None, b"1")] * 2)))
            writer.seal(names.frontier, lambda _: b"one")
            os.kill(broker.pid, signal.SIGSTOP)
            try:
                writer.append(table, Block(3, pack([(None, b"2")] * 3)))
                attempts: list[Callable[[], object]] = [
                    writer.flush,
                    lambda: list(reader.read(table, Range(0, 2))),
                    lambda: reader.records(names.frontier, 0),
                    lambda: log.offsets(table),
                    log.identity,
                ]
                for attempt in attempts:
                    began = time.monotonic()
                    with pytest.raises(LogUnavailable):
                        attempt()
                    assert time.monotonic() - began < 10
                with contextlib.suppress(LogUnavailable):
                    assert not reader.wait({names.frontier: 1}, 0.2)
                assert log.problems()
                with pytest.raises(ReplicationError):  # the writer is dead, and never writes those records again
                    writer.flush()
            finally:
                os.kill(broker.pid, signal.SIGCONT)
        # Whoever comes next finds whole ranges of its own, whatever became of the unfinished ones. A broker that was
        # away for so long has to be let in again first: a service would try until then, too.
        for last in (False, False, True):
            try:
                return _check_next_writer(place, names, table)
            except LogUnavailable:
                if last:
                    raise


def _check_next_writer(place: Place, names: Topics, table: Partition) -> None:
    with place.open().writer("changes") as writer, place.open().reader() as reader:
        writer.append(table, Block(2, pack([(None, b"3")] * 2)))
        told: list[Range] = []

        def make(ranges: dict[Partition, Range]) -> bytes:
            told.append(ranges[table])
            return b"two"

        offset = writer.seal(names.frontier, make)
        assert reader.records(names.frontier, offset)[0].value == b"two"
        found = [value for b in reader.read(table, told[0]) for _, value in unpack(b.data)]
        assert found == [b"3", b"3"]


if __name__ == "__main__":
    role, url, pipeline, state = sys.argv[1:]
    {"write_steps": write_steps, "poll_membership": poll_membership}[role](Place(url, pipeline, Path(state)))
