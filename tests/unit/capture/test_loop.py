"""The rules of capture's loop, over a log in memory and a source that does what a test says."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest

from capture.loop import Capture
from capture.source import Step
from capture.tables import TableVersions
from codec.frames import pack
from schemas.errors import (
    GapDetected,
    IntegrityError,
    OrderViolated,
    ReplicationError,
    SourceUnavailable,
    Superseded,
    TransientError,
)
from schemas.frontier import Claim, Commit, Frontier, Setup, Trimmed
from schemas.record import decode_control, encode_control
from transport.log import Block, LogReader, LogWriter, Partition, Range, RecordTooLarge, Topic
from transport.memory import MemoryLog
from transport.topics import Topics
from transport.views import Frontiers

TOPICS = Topics("shop")
A, B = Partition("shop.changes.public.a"), Partition("shop.changes.public.b")
SETUP = Setup("1", "penstock_shop", ("penstock_shop",), 100, 1, 1, (), "{}", "changes", 0)


class Clock:
    def __init__(self) -> None:
        self.time = 1000.0

    def __call__(self) -> float:
        return self.time


class ScriptedSource:
    """Gives the steps it was made with, one a poll, and notes what it is told."""

    def __init__(self, steps: list[Step | None] | None = None) -> None:
        self.steps = list(steps or [])
        self.started: list[tuple[int, int]] = []
        self.confirmed: list[int] = []
        self.polled: list[float] = []
        self.closed = 0
        self.left_out: list[tuple[int, ReplicationError]] = []
        self.before_confirm: Callable[[int], None] = lambda position: None
        self.other = ""

    def occupied(self) -> str:
        return self.other

    def start(self, after: int, epoch: int, last: Commit) -> None:
        self.started.append((after, epoch))

    def poll(self, timeout: float) -> Step | None:
        self.polled.append(timeout)
        return self.steps.pop(0) if self.steps else None

    def leave_out(self, schema_id: int, cause: ReplicationError) -> None:
        self.left_out.append((schema_id, cause))

    def confirm(self, position: int) -> None:
        self.before_confirm(position)
        self.confirmed.append(position)

    def close(self) -> None:
        self.closed += 1


def block(*values: str) -> Block:
    return Block(len(values), pack((None, value.encode()) for value in values))


def changes(position: int | None, commit_time: int = 5, **blocks: list[str]) -> Step:
    """A step with records for the partitions A and B; the schema id is 64 in A, 66 in B."""
    partitions = {"a": (A, 64), "b": (B, 66)}
    return Step(
        {partitions[name][0]: block(*values) for name, values in blocks.items()},
        {partitions[name][0]: frozenset({partitions[name][1]}) for name in blocks},
        position,
        commit_time if position is not None else 0,
        max_xid=position or 0,
    )


@pytest.fixture
def log() -> MemoryLog:
    log = MemoryLog("shop", eager=True)
    log.create_topics([*TOPICS.fixed(), Topic(A.topic), Topic(B.topic)])
    return log


@pytest.fixture
def reader(log: MemoryLog) -> Iterator[LogReader]:
    with log.reader() as reader:
        yield reader


@pytest.fixture
def make(log: MemoryLog, reader: LogReader) -> Iterator[Callable[..., Capture]]:
    """Make an incarnation of capture; it is closed with the test."""
    made: list[Capture] = []

    def incarnation(
        source: ScriptedSource, writer: LogWriter | None = None, clock: Clock | None = None, **named: Any
    ) -> Capture:
        with log.writer("changes") as own:  # a log in memory frees nothing when its writer is closed
            pass
        writer = writer or own
        tables = TableVersions(reader, TOPICS, own.put)
        capture = Capture(
            writer, reader, TOPICS, source, tables, SETUP, clock=clock or Clock(), now=lambda: 1.5, holder="t", **named
        )
        made.append(capture)
        return capture

    yield incarnation
    for capture in made:
        capture.close()


def run(capture: Capture) -> None:
    """Step until nothing more comes."""
    while capture.step():
        pass


def entries(reader: LogReader) -> list[Claim | Frontier]:
    records = reader.records(TOPICS.frontier, 0)
    return [decode_control(record.value) for record in records if record.value is not None]


def frontiers(reader: LogReader) -> list[Frontier]:
    return [valid.frontier for valid in Frontiers(reader, TOPICS).poll()]


def named(reader: LogReader) -> dict[Partition, list[str]]:
    """The records that valid frontiers name, in order."""
    found: dict[Partition, list[str]] = {}
    for frontier in frontiers(reader):
        for r in frontier.ranges:
            partition = Partition(r.topic, r.partition)
            records = reader.records(partition, r.start, r.end - r.start)
            found.setdefault(partition, []).extend(record.value.decode() for record in records if record.value)
    return found


def test_claims_before_it_looks_for_the_last_frontier(
    make: Callable[..., Capture], reader: LogReader, log: MemoryLog
) -> None:
    first = make(ScriptedSource([changes(110, a=["x"])]))
    run(first)
    second = make(source := ScriptedSource())
    assert second.step()  # the claim alone
    assert isinstance(entries(reader)[-1], Claim)
    assert source.started == []
    # What an older capture writes now comes after the claim, and must not move the point to go on from.
    with log.writer("changes") as zombie:
        zombie.put(TOPICS.frontier, encode_control(Frontier(0, 110, 120, 0, 0, 0)))
    run(second)
    assert source.started == [(110, 2)]


def test_begins_at_the_setup_s_position_when_there_is_no_frontier(make: Callable[..., Capture]) -> None:
    run(make(source := ScriptedSource()))
    assert source.started == [(100, 0)]


def test_the_epoch_is_the_offset_of_the_claim_and_each_incarnation_goes_on_from_the_last_valid_frontier(
    make: Callable[..., Capture], reader: LogReader
) -> None:
    run(make(ScriptedSource([changes(110, a=["x"]), changes(120, b=["y"])])))
    run(make(source := ScriptedSource([changes(130, a=["z"])])))
    assert source.started == [(120, 3)]
    assert [(f.epoch, f.after, f.position) for f in frontiers(reader)] == [
        (0, 100, 110),
        (0, 110, 120),
        (3, 120, 130),
    ]
    assert named(reader) == {A: ["x", "z"], B: ["y"]}


def test_a_frontier_names_ranges_schemas_commit_time_and_the_largest_transaction_id(
    make: Callable[..., Capture], reader: LogReader
) -> None:
    run(make(ScriptedSource([changes(110, 7, a=["x", "y"], b=["z"]), Step({}, {}, 120, 9, 115)])))
    first, second = frontiers(reader)
    assert [(r.topic, r.partition, r.start, r.end, r.schemas) for r in first.ranges] == [
        (A.topic, 0, 0, 2, (64,)),
        (B.topic, 0, 0, 1, (66,)),
    ]
    assert (first.commit_time, first.max_xid, first.captured_at) == (7, 110, 1_500_000)
    assert (second.ranges, second.commit_time, second.max_xid) == ((), 9, 115)


def test_a_claim_that_comes_between_ends_capture_without_confirming(
    make: Callable[..., Capture], reader: LogReader
) -> None:
    old = make(source := ScriptedSource([changes(110, a=["x"]), None, changes(120, a=["y"])]), clock=(clock := Clock()))
    run(old)
    assert source.confirmed == [110]
    run(make(ScriptedSource()))
    clock.time += 60
    with pytest.raises(Superseded, match="claimed: t"):
        run(old)
    with pytest.raises(Superseded):
        old.step()
    old.close()
    assert source.confirmed == [110]
    assert [f.position for f in frontiers(reader)] == [110]  # the zombie's frontier is in the log and does not count
    assert len(entries(reader)) == 4


def test_who_claims_also_claims_the_versions_of_tables(make: Callable[..., Capture], reader: LogReader) -> None:
    run(make(ScriptedSource()))
    run(make(ScriptedSource()))
    claims = [decode_control(record.value) for record in reader.records(TOPICS.tables, 0) if record.value is not None]
    assert [claim.epoch for claim in claims] == [0, 1]


def test_a_zombie_s_late_frontier_does_not_end_the_capture_that_took_over(
    make: Callable[..., Capture], reader: LogReader
) -> None:
    old = make(ScriptedSource([changes(110, a=["x"]), None, changes(120, a=["y"])]))
    run(old)
    new = make(source := ScriptedSource([changes(120, b=["y"])]))
    new.step()
    with pytest.raises(Superseded):
        run(old)
    run(new)
    assert source.started == [(110, 2)]
    assert named(reader) == {A: ["x"], B: ["y"]}


def test_who_finds_another_capture_at_work_says_so_and_leaves_it_alone(
    make: Callable[..., Capture], reader: LogReader
) -> None:
    run(make(ScriptedSource([changes(110, a=["x"])])))
    late = make(source := ScriptedSource())
    source.other = "process 7"
    with pytest.raises(SourceUnavailable, match=r"another capture of this pipeline runs \(t\): .* process 7") as caught:
        late.step()
    assert "stop one of the two" in caught.value.remedy
    assert len(entries(reader)) == 2 and source.started == []


def test_a_newer_claim_is_noticed_before_anything_is_read(make: Callable[..., Capture]) -> None:
    old = make(source := ScriptedSource())
    old.step()
    make(ScriptedSource()).step()
    with pytest.raises(Superseded):
        run(old)
    assert source.started == []


def test_records_without_a_frontier_are_read_by_nobody(
    make: Callable[..., Capture], log: MemoryLog, reader: LogReader
) -> None:
    with log.writer("changes") as dead:
        dead.append(A, block("orphan"))
        dead.flush()
    run(make(ScriptedSource([changes(110, a=["x"])])))
    assert named(reader) == {A: ["x"]}


def test_a_transaction_in_pieces_is_one_frontier(make: Callable[..., Capture], reader: LogReader) -> None:
    capture = make(
        source := ScriptedSource([changes(None, a=["1", "2"]), changes(None, a=["3"], b=["4"]), changes(110, a=["5"])]),
        clock=(clock := Clock()),
    )
    for _ in range(3):
        capture.step()
    for _ in range(2):
        clock.time += 60
        capture.step()
        assert frontiers(reader) == []
    assert source.confirmed == [100]
    run(capture)
    (only,) = frontiers(reader)
    assert [(r.topic, r.start, r.end) for r in only.ranges] == [(A.topic, 0, 4), (B.topic, 0, 1)]
    assert named(reader) == {A: ["1", "2", "3", "5"], B: ["4"]}
    clock.time += 60
    run(capture)
    assert source.confirmed == [100, 110]


def test_a_transaction_that_was_cut_off_comes_again_as_a_whole(make: Callable[..., Capture], reader: LogReader) -> None:
    run(make(ScriptedSource([changes(None, a=["1", "2"])])))
    run(make(ScriptedSource([changes(None, a=["1", "2"]), changes(110, a=["3"])])))
    assert named(reader) == {A: ["1", "2", "3"]}


def test_no_frontier_is_sealed_over_half_a_transaction(make: Callable[..., Capture], reader: LogReader) -> None:
    clock = Clock()
    capture = make(ScriptedSource([Step(position=105), None, changes(None, a=["1"]), None, None]), clock=clock)
    run(capture)  # the empty step's own frontier comes at once, the first time
    clock.time += 0.01
    capture._source.steps[:0] = [Step(position=106)]  # type: ignore[attr-defined]
    for _ in range(4):
        capture.step()
        clock.time += 60
    assert [f.ranges for f in frontiers(reader)] == [()]


def test_nothing_is_confirmed_before_its_frontier_is_in_the_log(
    make: Callable[..., Capture], reader: LogReader
) -> None:
    clock = Clock()
    source = ScriptedSource([changes(110 + i, a=["x"]) for i in range(20)])

    def durable(position: int) -> None:
        assert position <= max((f.position for f in frontiers(reader)), default=100)

    source.before_confirm = durable
    capture = make(source, clock=clock)
    for _ in range(30):
        capture.step()
        clock.time += 0.03
    assert source.confirmed[-1] == 129
    assert len(source.confirmed) < 10  # not each by itself


def test_a_failed_seal_is_neither_confirmed_nor_repeated(
    make: Callable[..., Capture], log: MemoryLog, reader: LogReader
) -> None:
    class Failing:
        """A writer whose frontier fails, though it took effect."""

        def __init__(self, writer: LogWriter) -> None:
            self._writer = writer
            self.append, self.flush, self.put = writer.append, writer.flush, writer.put

        def seal(
            self, partition: Partition, make: Callable[[dict[Partition, Range]], bytes], key: bytes | None = None
        ) -> int:
            self._writer.seal(partition, make, key)
            raise SourceUnavailable("the answer was lost")

    with log.writer("changes") as writer:
        capture = make(source := ScriptedSource([changes(110, a=["x"])]), Failing(writer))
    with pytest.raises(SourceUnavailable):
        run(capture)
    capture.close()
    assert source.confirmed == [] and source.closed == 1
    run(make(again := ScriptedSource()))
    assert again.started == [(110, 2)]


def test_positions_must_grow(make: Callable[..., Capture], reader: LogReader) -> None:
    with pytest.raises(OrderViolated):
        run(make(ScriptedSource([changes(110, a=["x"]), changes(110, a=["y"])])))
    assert [f.position for f in frontiers(reader)] == [110]


class Lying:
    """A writer whose ranges are not what was written."""

    def __init__(
        self, writer: LogWriter, change: Callable[[Mapping[Partition, Range]], dict[Partition, Range]]
    ) -> None:
        self._writer, self._change = writer, change
        self.append, self.flush, self.put = writer.append, writer.flush, writer.put

    def seal(
        self, partition: Partition, make: Callable[[dict[Partition, Range]], bytes], key: bytes | None = None
    ) -> int:
        return self._writer.seal(partition, lambda ranges: make(self._change(ranges)), key)


@pytest.mark.parametrize(
    "change",
    [
        lambda ranges: {p: Range(r.start, r.end + 1) for p, r in ranges.items()},
        lambda ranges: {},
        lambda ranges: {**ranges, B: Range(0, 1)},
    ],
    ids=["a record too many", "a partition missing", "a partition too many"],
)
def test_a_range_that_is_not_ours_alone_is_no_frontier(
    make: Callable[..., Capture],
    log: MemoryLog,
    reader: LogReader,
    change: Callable[[Mapping[Partition, Range]], dict[Partition, Range]],
) -> None:
    with log.writer("changes") as writer, pytest.raises(GapDetected):
        run(make(ScriptedSource([changes(110, a=["x"])]), Lying(writer, change)))
    assert frontiers(reader) == []


def test_a_range_must_begin_where_the_one_before_it_ended(
    make: Callable[..., Capture], log: MemoryLog, reader: LogReader
) -> None:
    def later(ranges: Mapping[Partition, Range]) -> dict[Partition, Range]:
        return {p: Range(r.start + 1, r.end + 1) if r.start else r for p, r in ranges.items()}

    with log.writer("changes") as writer, pytest.raises(GapDetected):
        run(make(ScriptedSource([changes(110, a=["x"]), changes(120, a=["y"])]), Lying(writer, later)))
    assert [f.position for f in frontiers(reader)] == [110]


def test_a_foreign_record_between_ours_stops_capture(
    make: Callable[..., Capture], log: MemoryLog, reader: LogReader
) -> None:
    capture = make(ScriptedSource([changes(110, a=["x"]), None, changes(120, a=["y"])]))
    run(capture)
    with log.writer("changes") as other:
        other.append(A, block("foreign"))
        other.flush()
    with pytest.raises(IntegrityError):
        run(capture)
    assert [f.position for f in frontiers(reader)] == [110]


def test_an_idle_pipeline_writes_seldom_and_the_last_position_gets_there(
    make: Callable[..., Capture], reader: LogReader
) -> None:
    clock = Clock()
    source = ScriptedSource([Step(position=100 + i) for i in range(1, 41)])
    capture = make(source, clock=clock, empty_seconds=3.0)
    for _ in range(43):
        capture.step()
        clock.time += 0.1
    assert [f.position for f in frontiers(reader)] == [101, 131]
    clock.time += 3
    run(capture)
    assert [f.position for f in frontiers(reader)] == [101, 131, 140]
    before = len(entries(reader))
    clock.time += 1000
    run(capture)
    assert len(entries(reader)) == before  # nothing moved
    assert source.confirmed[-1] == 140


def test_transactions_without_changes_of_ours_are_merged_but_come_soon(
    make: Callable[..., Capture], reader: LogReader
) -> None:
    clock = Clock()
    steps: list[Step | None] = [Step(position=100 + i, commit_time=i, max_xid=i) for i in range(1, 11)]
    capture = make(ScriptedSource([*steps, Step(position=111)]), clock=clock)
    run(capture)
    clock.time += 0.01
    for _ in range(11):
        capture.step()
    clock.time += 0.3
    run(capture)
    assert [(f.position, f.commit_time, f.max_xid) for f in frontiers(reader)] == [(101, 1, 1), (111, 10, 10)]


def test_waiting_ends_when_a_confirmation_is_due(make: Callable[..., Capture]) -> None:
    clock = Clock()
    capture = make(source := ScriptedSource([None, changes(110, a=["x"])]), clock=clock, confirm_seconds=0.1)
    run(capture)
    run(capture)
    assert source.confirmed == [100]
    capture.wait(5.0)
    assert source.polled[-1] == pytest.approx(0.02)  # 0.1, but nothing has come meanwhile
    clock.time += 0.02
    capture.step()
    assert source.confirmed == [100, 110]
    capture.wait(5.0)
    assert source.polled[-1] == 5.0


def test_what_waiting_found_is_written_by_the_next_step(make: Callable[..., Capture], reader: LogReader) -> None:
    capture = make(source := ScriptedSource())
    run(capture)
    source.steps = [changes(110, a=["x"])]
    capture.wait(1.0)
    assert frontiers(reader) == []
    assert capture.step()
    assert named(reader) == {A: ["x"]}


def test_closing_confirms_what_is_durable_and_lets_the_source_go_once(make: Callable[..., Capture]) -> None:
    capture = make(source := ScriptedSource([None, changes(110, a=["x"])]))
    run(capture)
    run(capture)
    capture.close()
    capture.close()
    assert source.confirmed == [100, 110] and source.closed == 1


def test_an_error_of_the_source_ends_the_incarnation(make: Callable[..., Capture]) -> None:
    class Broken(ScriptedSource):
        def poll(self, timeout: float) -> Step | None:
            raise SourceUnavailable("gone")

    capture = make(source := Broken())
    with pytest.raises(SourceUnavailable):
        run(capture)
    capture.close()
    assert source.confirmed == []


def test_a_trimmed_topic_is_read_from_where_it_begins_with_the_epoch_in_force_there(
    make: Callable[..., Capture], log: MemoryLog
) -> None:
    run(make(ScriptedSource([changes(110, a=["x"]), changes(120, a=["y"])])))
    with log.writer("control") as writer:
        writer.put(TOPICS.control, encode_control(Trimmed(2, 0, 110, 0, 0, 0)))
    log.trim(TOPICS.frontier, 2)
    run(make(source := ScriptedSource()))
    assert source.started == [(120, 3)]


def test_counters_tell_what_was_captured(make: Callable[..., Capture]) -> None:
    capture = make(ScriptedSource([Step({A: block("x", "y")}, {A: frozenset({64})}, 110, 500_000, 3, 1, end=150)]))
    run(capture)
    assert (capture.records, capture.bytes, capture.frontiers) == (2, len(block("x", "y").data), 1)
    assert (capture.position, capture.commit_time, capture.lag, capture.behind) == (110, 500_000, 1.0, 40)
    assert capture.metrics() == {
        "rows": 2,
        "bytes": capture.bytes,
        "transactions": 1,
        "frontiers": 1,
        "lag_bytes": 40,
        "lag_seconds": 1.0,
    }


def test_a_wait_that_was_stopped_leaves_what_is_durable_to_be_confirmed(make: Callable[..., Capture]) -> None:
    class Stopped(BaseException):
        pass

    class Stopping(ScriptedSource):
        def poll(self, timeout: float) -> Step | None:
            if timeout:
                raise Stopped
            return super().poll(timeout)

    capture = make(source := Stopping([None, changes(110, a=["x"])]))
    run(capture)
    run(capture)
    with pytest.raises(Stopped):
        capture.wait(1.0)
    capture.close()
    assert source.confirmed == [100, 110]


def test_a_record_that_the_log_does_not_take_has_its_table_left_out(
    log: MemoryLog, make: Callable[..., Capture], reader: LogReader
) -> None:
    small, large = (
        (None, b"\0" + schema_id.to_bytes(4, "big") + bytes(size)) for schema_id, size in ((64, 3), (70, 9))
    )
    step = Step({A: Block(2, pack([small, large]))}, {A: frozenset({64, 70})}, 110, 1, max_xid=110)

    class Narrow:
        def append(self, partition: Partition, block: Block) -> int:
            raise RecordTooLarge("too large", partition, remedy="")

        def put(self, partition: Partition, value: bytes) -> int:
            with log.writer("changes") as writer:
                return writer.put(partition, value)

    capture = make(source := ScriptedSource([step]), Narrow())
    with pytest.raises(TransientError, match="beginning again without its table"):
        run(capture)
    assert [(schema_id, str(cause)) for schema_id, cause in source.left_out] == [(70, "too large")]
    assert frontiers(reader) == []
