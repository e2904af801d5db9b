"""What every log promises to the services, asked of each of the three."""

import os
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from codec.frames import count, pack, unpack
from schemas.errors import GapDetected, IntegrityError, LogRewound
from transport import open_log
from transport.log import WORK_PARTITIONS, Block, Log, LogReader, Partition, Range, Record, Topic
from transport.memory import MemoryLog
from transport.topics import Topics

PATIENCE = 20.0


@dataclass
class Subject:
    """One log under test, which can be opened again as another process would."""

    kind: str
    open: Callable[[], Log]
    names: Topics

    @property
    def changes(self) -> Partition:
        return Partition(f"{self.names.prefix}changes.public.a")

    @property
    def other(self) -> Partition:
        return Partition(f"{self.names.prefix}changes.public.b")

    def load(self, number: int) -> Partition:
        return Partition(f"{self.names.prefix}load.public.a", number)

    def topics(self) -> list[Topic]:
        return [
            *self.names.fixed(),
            Topic(self.changes.topic),
            Topic(self.other.topic),
            Topic(self.load(0).topic, 4),
        ]


@pytest.fixture(params=["memory", "memory-eager", "sqlite", "kafka"])
def empty(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Subject]:
    """A log of which nothing has been made yet."""
    pipeline = f"t{uuid.uuid4().hex[:10]}"
    names = Topics(pipeline)
    if request.param.startswith("memory"):
        memory = MemoryLog(pipeline, eager=request.param.endswith("eager"))
        yield Subject("memory", lambda: memory, names)
        return
    url = f"kafka://{request.getfixturevalue('kafka_broker').bootstrap}" if request.param == "kafka" else None
    opened = []

    def opening() -> Log:
        opened.append(open_log(url, pipeline, tmp_path, deadline_s=PATIENCE))
        return opened[-1]

    subject = Subject(request.param, opening, names)
    yield subject
    if request.param == "kafka":
        log = opening()
        log.delete_topics([topic.name for topic in log.topics(names.prefix)])
    for each in opened:
        each.close()


@pytest.fixture
def subject(empty: Subject) -> Subject:
    empty.open().create_topics(empty.topics())
    return empty


def block(*values: bytes | None, key: bytes | None = b"key") -> Block:
    return Block(len(values), pack([(key, value) for value in values]))


def values(reader: LogReader, partition: Partition, wanted: Range) -> list[bytes | None]:
    return [value for found in reader.read(partition, wanted) for _, value in unpack(found.data)]


def test_records_come_back_in_the_order_they_were_appended(subject: Subject) -> None:
    log = subject.open()
    written = [b"%d" % n for n in range(2500)]
    with log.writer("changes") as writer, subject.open().reader() as reader:
        for at in range(0, 2500, 100):
            writer.append(subject.changes, block(*written[at : at + 100]))
        ranges = writer.flush()
        assert ranges == {subject.changes: Range(0, 2500)}
        assert values(reader, subject.changes, Range(0, 2500)) == written


def test_keys_and_values_may_be_empty_or_none(subject: Subject) -> None:
    records = [(None, b""), (b"", None), (b"", b""), (None, None), (b"k", b"v")]
    with subject.open().writer("changes") as writer, subject.open().reader() as reader:
        writer.append(subject.changes, Block(len(records), pack(records)))
        writer.flush()
        assert [r for b in reader.read(subject.changes, Range(0, 5)) for r in unpack(b.data)] == records
        offset = writer.put(subject.names.control, None, b"gone")
        [found] = reader.records(subject.names.control, offset)
        assert (found.offset, found.key, found.value) == (offset, b"gone", None)


def test_a_seal_is_told_the_ranges_of_everything_since_the_last_one(subject: Subject) -> None:
    told: list[dict[Partition, Range]] = []

    def make(ranges: dict[Partition, Range]) -> bytes:
        told.append(ranges)
        return b"frontier"

    with subject.open().writer("changes") as writer:
        writer.append(subject.changes, block(b"1", b"2"))
        assert writer.flush() == {subject.changes: Range(0, 2)}
        writer.append(subject.other, block(b"1"))
        assert writer.flush() == {subject.other: Range(0, 1)}
        writer.append(subject.changes, block(b"3"))
        assert writer.seal(subject.names.frontier, make) == 0
        assert writer.seal(subject.names.frontier, make) == 1
        writer.append(subject.changes, block(b"4"))
        assert writer.seal(subject.names.frontier, make) == 2
    assert told == [
        {subject.changes: Range(0, 3), subject.other: Range(0, 1)},
        {},
        {subject.changes: Range(3, 4)},
    ]


def test_nothing_appended_is_nothing_flushed(subject: Subject) -> None:
    with subject.open().writer("changes") as writer, subject.open().reader() as reader:
        assert writer.flush() == {}
        writer.append(subject.changes, Block(0, b""))
        assert writer.flush() == {}
        assert writer.seal(subject.names.frontier, lambda ranges: repr(ranges).encode()) == 0
        assert reader.records(subject.names.frontier, 0)[0].value == b"{}"
        assert list(reader.read(subject.changes, Range(0, 0))) == []
        assert reader.records(subject.changes, 0) == []


def test_a_load_is_sealed_by_a_manifest_elsewhere(subject: Subject) -> None:
    with subject.open().writer("load-2") as writer, subject.open().reader() as reader:
        writer.append(subject.load(2), block(b"chunk"))
        assert writer.seal(subject.names.chunks, lambda ranges: repr(sorted(ranges)).encode()) == 0
        assert reader.records(subject.names.chunks, 0)[0].value == repr([subject.load(2)]).encode()
        assert values(reader, subject.load(2), Range(0, 1)) == [b"chunk"]
        assert subject.open().offsets(subject.load(1)) == Range(0, 0)


def test_a_writer_that_failed_writes_nothing_more(subject: Subject) -> None:
    def refuse(ranges: dict[Partition, Range]) -> bytes:
        raise ZeroDivisionError

    log = subject.open()
    with log.writer("changes") as writer:
        writer.append(subject.changes, block(b"1"))
        with pytest.raises(ZeroDivisionError):
            writer.seal(subject.names.frontier, refuse)
        for again in (
            lambda: writer.append(subject.changes, block(b"1")),
            writer.flush,
            lambda: writer.put(subject.names.frontier, b"x"),
        ):
            with pytest.raises(IntegrityError):
                again()
    assert log.offsets(subject.names.frontier).end == 0


def test_several_records_are_put_at_once_and_others_may_stand_between(subject: Subject) -> None:
    with subject.open().writer("control") as first, subject.open().writer("control") as second:
        for n in range(3):
            first.put_all(subject.names.chunks, [b"first %d %d" % (n, at) for at in range(20)])
            second.put_all(subject.names.chunks, [b"second %d %d" % (n, at) for at in range(20)])
    with subject.open().reader() as reader:
        found = [record.value for record in reader.records(subject.names.chunks, 0)]
    assert len(found) == 120
    for name in (b"first", b"second"):
        mine = [value for value in found if value is not None and value.startswith(name)]
        assert mine == [b"%s %d %d" % (name, n, at) for n in range(3) for at in range(20)]


def test_a_claim_between_two_frontiers_shows_in_their_offsets(subject: Subject) -> None:
    with subject.open().writer("changes") as first, subject.open().writer("changes") as second:
        claimed = first.put(subject.names.frontier, b"claim")
        assert first.seal(subject.names.frontier, lambda _: b"one") == claimed + 1
        second.put(subject.names.frontier, b"claim")
        assert first.seal(subject.names.frontier, lambda _: b"two") == claimed + 3
    with subject.open().reader() as reader:
        found = reader.records(subject.names.frontier, 0)
        assert [r.value for r in found] == [b"claim", b"one", b"claim", b"two"]


def test_two_writers_never_share_a_range(subject: Subject) -> None:
    with subject.open().writer("changes") as first, subject.open().writer("changes") as second:
        first.append(subject.changes, block(b"first"))
        assert first.flush()[subject.changes] == Range(0, 1)
        second.append(subject.changes, block(b"second", b"second"))
        assert second.flush()[subject.changes] == Range(1, 3)
        with pytest.raises(IntegrityError):  # what it appends would not follow what it has appended
            first.append(subject.changes, block(b"first"))
            first.seal(subject.names.frontier, lambda _: b"torn")
    assert subject.open().offsets(subject.names.frontier).end == 0


def test_any_part_of_a_range_can_be_read(subject: Subject) -> None:
    sizes = [3, 1, 40, 7, 300, 2]
    written = [b"%d" % n for n in range(sum(sizes))]
    with subject.open().writer("changes") as writer, subject.open().reader() as reader:
        at = 0
        for step, size in enumerate(sizes):
            writer.append(subject.changes, block(*written[at : at + size]))
            at += size
            if step % 2:
                writer.seal(subject.names.frontier, lambda _: b"frontier")
        writer.flush()
        for start in (0, 1, 2, 3, 4, 5, 43, 44, 50, 51, 200, 350, 352):
            for end in (start, start + 1, start + 2, start + 50, len(written)):
                end = min(end, len(written))  # noqa: PLW2901
                assert values(reader, subject.changes, Range(start, end)) == written[start:end]


def test_blocks_that_are_read_are_of_bounded_size(subject: Subject) -> None:
    with subject.open().writer("load-0") as writer, subject.open().reader() as reader:
        big = os.urandom(3 << 20)
        writer.append(subject.load(0), block(*[os.urandom(100_000)] * 64, big, *[b"small"] * 1000))
        wanted = writer.flush()[subject.load(0)]
        blocks = list(reader.read(subject.load(0), wanted))
        assert sum(b.count for b in blocks) == 1065
        for found in blocks:
            assert count(found.data) == found.count
            assert found.count == 1 or len(found.data) <= 1 << 20
        assert values(reader, subject.load(0), Range(64, 65)) == [big]


@pytest.mark.slow
def test_a_large_value_travels_whole(subject: Subject) -> None:
    value = os.urandom(70 << 20)
    with subject.open().writer("changes") as writer, subject.open().reader() as reader:
        took = writer.append(subject.changes, block(b"before", value, b"after"))
        told: list[Range] = []

        def make(ranges: dict[Partition, Range]) -> bytes:
            told.append(ranges[subject.changes])
            return b"frontier"

        writer.seal(subject.names.frontier, make)
        assert told == [Range(0, took)]
        assert sum(found.offsets for found in reader.read(subject.changes, told[0])) == took
        assert values(reader, subject.changes, told[0]) == [b"before", value, b"after"]


@pytest.mark.slow
def test_a_step_may_be_larger_than_the_writers_memory(subject: Subject) -> None:
    rows = block(*[os.urandom(1000)] * 1000)
    with subject.open().writer("changes") as writer, subject.open().reader() as reader:
        for _ in range(120):
            writer.append(subject.changes, rows)
        assert subject.open().offsets(subject.names.frontier).end == 0
        told: list[Range] = []

        def make(ranges: dict[Partition, Range]) -> bytes:
            told.append(ranges[subject.changes])
            return b"frontier"

        writer.seal(subject.names.frontier, make)
        assert told == [Range(0, 120_000)]
        assert sum(b.count for b in reader.read(subject.changes, told[0])) == 120_000


def test_what_is_not_in_the_log_is_told(subject: Subject) -> None:
    log = subject.open()
    with log.writer("changes") as writer:
        writer.append(subject.changes, block(b"1", b"2", b"3"))
        writer.seal(subject.names.frontier, lambda _: b"frontier")
    with log.reader() as reader:
        assert reader.records(subject.names.frontier, 1) == []
        for start in (2, 1000):
            with pytest.raises(LogRewound):
                reader.records(subject.names.frontier, start)
        for wanted in (Range(0, 4), Range(3, 5), Range(100, 200)):
            with pytest.raises((LogRewound, GapDetected)):
                list(reader.read(subject.changes, wanted))
        assert values(reader, subject.changes, Range(0, 3)) == [b"1", b"2", b"3"]
        with pytest.raises(LogRewound):
            reader.records(Partition(f"{subject.names.prefix}changes.nothing"), 0)
        with pytest.raises(LogRewound):
            list(reader.read(Partition(subject.changes.topic, 7), Range(0, 1)))
    with pytest.raises(LogRewound), log.writer("changes") as writer:
        writer.append(Partition(f"{subject.names.prefix}changes.nothing"), block(b"1"))


def test_a_reader_sees_at_once_what_is_durable(subject: Subject) -> None:
    with subject.open().writer("changes") as writer, subject.open().reader() as reader:
        for n in range(50):
            offset = writer.put(subject.names.frontier, b"%d" % n)
            [found] = reader.records(subject.names.frontier, offset)
            assert found.value == b"%d" % n


def test_two_positions_in_one_topic_do_not_disturb_each_other(subject: Subject) -> None:
    with subject.open().writer("changes") as writer, subject.open().reader() as reader:
        for n in range(60):
            writer.put(subject.names.frontier, b"%d" % n)
        front = 50
        assert reader.wait({subject.names.frontier: front}, PATIENCE)
        for behind in range(0, 40, 4):
            assert reader.records(subject.names.frontier, behind, 4)[0].value == b"%d" % behind
            assert reader.records(subject.names.frontier, front)[0].value == b"%d" % front
            front += 1
            writer.put(subject.names.frontier, b"more")


def test_waiting_ends_when_a_record_comes(subject: Subject) -> None:
    frontier, control = subject.names.frontier, subject.names.control
    ready, woken = threading.Event(), threading.Event()
    found: list[bytes | None] = []

    def follow() -> None:
        with subject.open().reader() as reader:
            assert not reader.wait({frontier: 0, control: 0}, 0.05)
            ready.set()
            until = time.monotonic() + PATIENCE
            while len(found) < 20 and time.monotonic() < until:
                reader.wait({frontier: len(found), control: 0}, PATIENCE)
                found.extend(r.value for r in reader.records(frontier, len(found)))
                woken.set()

    thread = threading.Thread(target=follow)
    thread.start()
    assert ready.wait(PATIENCE)
    with subject.open().writer("changes") as writer:
        for n in range(20):
            woken.clear()
            began = time.monotonic()
            writer.put(frontier, b"%d" % n)
            assert woken.wait(PATIENCE)
            assert time.monotonic() - began < PATIENCE / 2
    thread.join(PATIENCE)
    assert found == [b"%d" % n for n in range(20)]


def test_waiting_tells_of_what_an_answer_may_lack_that_need_not_be_fresh(subject: Subject) -> None:
    frontier = subject.names.frontier
    with subject.open().writer("changes") as writer, subject.open().reader() as reader:
        assert not reader.wait({frontier: 0}, 0.05)
        for n in range(20):
            offset = writer.put(frontier, b"%d" % n)
            found: list[Record] = []
            until = time.monotonic() + PATIENCE
            while not found and time.monotonic() < until:
                assert reader.wait({frontier: offset}, PATIENCE)
                found = reader.records(frontier, offset, fresh=False)
            assert [record.value for record in found] == [b"%d" % n]


def test_waiting_for_what_is_there_does_not_wait(subject: Subject) -> None:
    with subject.open().writer("changes") as writer, subject.open().reader() as reader:
        writer.put(subject.names.frontier, b"1")
        writer.put(subject.names.frontier, b"2")
        assert reader.wait({subject.names.chunks: 0, subject.names.frontier: 0}, PATIENCE)
        assert reader.wait({subject.names.frontier: 1}, PATIENCE)
        assert not reader.wait({subject.names.frontier: 2}, 0.05)


def test_every_version_of_a_table_stays(subject: Subject) -> None:
    """Records of an older version can't be read without it, and versions of a table have one key."""
    tables = subject.names.tables
    log = subject.open()
    with log.writer("control") as writer, log.reader() as reader:
        for n in range(3):
            writer.put(tables, b"%d" % n, b"shop.orders")
        assert [record.value for record in reader.records(tables, 0)] == [b"0", b"1", b"2"]


def test_what_is_trimmed_is_gone_and_the_rest_is_not(subject: Subject) -> None:
    log = subject.open()
    with log.writer("changes") as writer, log.reader() as reader:
        for n in range(10):
            writer.append(subject.changes, block(b"%d" % n))
            writer.seal(subject.names.frontier, lambda _: b"frontier")
        log.trim(subject.changes, 4)
        log.trim(subject.changes, 2)
        assert log.offsets(subject.changes) == Range(4, 10)
        assert log.offsets(subject.names.frontier) == Range(0, 10)
        assert values(reader, subject.changes, Range(4, 10)) == [b"%d" % n for n in range(4, 10)]
        with pytest.raises(LogRewound):
            list(reader.read(subject.changes, Range(3, 10)))
        with pytest.raises(LogRewound):
            reader.records(subject.changes, 0)
        log.trim(subject.changes, 1000)
        assert log.offsets(subject.changes) == Range(10, 10)
        writer.append(subject.changes, block(b"10"))
        assert writer.flush() == {subject.changes: Range(10, 11)}
        assert values(reader, subject.changes, Range(10, 11)) == [b"10"]


def test_topics_are_made_once_and_listed(subject: Subject) -> None:
    log = subject.open()
    before = log.identity()
    log.create_topics(subject.topics())
    assert log.identity() == before == subject.open().identity()
    assert sorted(log.topics(subject.names.prefix)) == sorted(subject.topics())
    assert log.topics(subject.names.prefix + "load.") == [Topic(subject.load(0).topic, 4)]


def test_a_topic_that_is_deleted_takes_its_records_with_it(subject: Subject) -> None:
    log = subject.open()
    with log.writer("changes") as writer:
        writer.append(subject.changes, block(b"old", b"old"))
        writer.flush()
    log.delete_topics([subject.changes.topic, "there.is.no.such.topic"])
    assert subject.changes.topic not in [topic.name for topic in log.topics(subject.names.prefix)]
    with pytest.raises(LogRewound):
        log.offsets(subject.changes)
    log.create_topics([Topic(subject.changes.topic)])
    assert log.offsets(subject.changes) == Range(0, 0)
    with log.writer("changes") as writer, log.reader() as reader:
        writer.append(subject.changes, block(b"new"))
        assert writer.flush() == {subject.changes: Range(0, 1)}
        assert values(reader, subject.changes, Range(0, 1)) == [b"new"]


def test_a_log_made_again_is_another_log(empty: Subject) -> None:
    log = empty.open()
    with pytest.raises(LogRewound):
        log.identity()
    assert log.topics(empty.names.prefix) == []
    log.delete_topics([empty.names.frontier.topic])
    log.create_topics(empty.topics())
    first = log.identity()
    log.delete_topics([topic.name for topic in empty.topics()])
    with pytest.raises(LogRewound):
        log.identity()
    log.create_topics(empty.topics())
    assert first != log.identity() == empty.open().identity()


def test_the_log_tells_its_size_and_its_problems(subject: Subject) -> None:
    log = subject.open()
    with log.writer("changes") as writer:
        writer.append(subject.changes, block(os.urandom(2_000_000)))
        writer.flush()
    used, budget = log.usage()
    if subject.kind != "kafka":
        assert used > 2_000_000
        assert not budget or budget > used
    for problem, remedy in log.problems():
        assert problem
        assert remedy


def test_members_share_the_work_between_them(subject: Subject) -> None:
    everything = frozenset(range(WORK_PARTITIONS))

    def settle(shares: Callable[[], list[frozenset[int]]]) -> list[frozenset[int]]:
        """Wait until all work is somebody's, and nobody's twice."""
        until = time.monotonic() + PATIENCE
        while True:
            found = shares()
            if frozenset().union(*found) == everything and sum(map(len, found)) == WORK_PARTITIONS and all(found):
                return found
            assert time.monotonic() < until, found
            time.sleep(0.02)

    with subject.open().membership("target") as first:
        settle(lambda: [first.poll()])
        with subject.open().membership("target") as second, subject.open().membership("elsewhere") as alone:
            shares = settle(lambda: [first.poll(), second.poll()])
            assert sorted(map(len, shares)) == [WORK_PARTITIONS // 2] * 2
            settle(lambda: [alone.poll()])
        settle(lambda: [first.poll()])
