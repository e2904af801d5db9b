"""The trimmer: what it lets the log forget, and what holds it back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import replace
from typing import Any, cast

import pytest

from apply.target import NOWHERE, Progress, TableProgress, Target
from codec.frames import pack
from control.trimmer import Answer, Held, Limits, Trimmer, needed_from
from schemas.errors import LogRewound, TargetUnavailable
from schemas.events import EventKind
from schemas.frontier import HEAL, Admitted, Manifest, Trimmed
from schemas.pipeline import Mode, Pipeline, TargetSettings
from schemas.record import encode_control
from schemas.states import TableState
from schemas.table import TableId
from tests.unit.apply.source import BEGINNING, Source, insert, make_table
from transport.events import Teller, told
from transport.log import Block, Partition, Range, Usage
from transport.memory import MemoryLog
from transport.views import Chunks, Frontiers, read_trimmed

A, B = TableId("public", "a"), TableId("public", "b")
EVERYTHING = Limits(most_frontiers=1, look_every=0.0)


class Told:
    """A target that says what the test says."""

    def __init__(self) -> None:
        self.reached: dict[int, Progress] = {}
        self.known: dict[TableId, TableProgress] = {}
        self.loaded: dict[tuple[TableId, int], set[int]] = {}
        self.away = False
        self.durable = 0  # how often what was read was made durable
        self.crashed = False

    def open(self, log: str) -> None:
        if self.away:
            raise TargetUnavailable("it is away")

    def groups(self) -> Mapping[int, Progress]:
        return self.reached

    def tables(self) -> Mapping[TableId, TableProgress]:
        if self.away:
            raise TargetUnavailable("it is away")
        return self.known

    def chunks(self) -> Mapping[tuple[TableId, int], set[int]]:
        return self.loaded

    def make_durable(self) -> None:
        if self.crashed:
            raise TargetUnavailable("the server has crashed")
        self.durable += 1

    def close(self) -> None:
        """Nothing is open."""

    def live(self, offset: int, *tables: TableId) -> None:
        """Say that all are live, and as far as `offset`."""
        self.reached = {0: Progress(offset, 0, 0)}
        self.known = {table: TableProgress(table, 0, TableState.LIVE, generation=1) for table in tables}

    def loads(self, chunks: set[int], generation: int = 1) -> None:
        """Say which chunks of the one table are loaded."""
        self.known = {A: TableProgress(A, 0, TableState.LOADING, generation=generation)}
        self.loaded = {(A, generation): chunks}


class World:
    def __init__(self, *tables: str, mode: Mode = Mode.CHANGES, targets: int = 1) -> None:
        self.source = Source(*(make_table(table) for table in tables), mode=mode)
        self.log = cast(MemoryLog, self.source.log)
        self.targets = {f"t{number}": Told() for number in range(targets)}
        self.pipeline = Pipeline.model_validate(
            {
                "pipeline": "p",
                "mode": mode.value,
                "source": {"url": "postgresql://source/s"},
                "targets": [{"name": name, "url": f"postgresql://target/{name}"} for name in self.targets],
            }
        )
        self.clock = 0.0
        self.stack = ExitStack()
        self.admit(*self.targets)

    def admit(self, *targets: str) -> None:
        """Tell, as the holder does, who the targets are."""
        self.source.control.put(self.source.topics.chunks, encode_control(Admitted(targets)))

    def trimmer(self, limits: Limits = EVERYTHING) -> Trimmer:
        def make(settings: TargetSettings, pipeline: str) -> Target:
            return cast(Target, self.targets[settings.name])

        trimmer = Trimmer(
            self.pipeline, self.log, clock=lambda: self.clock, now=lambda: 7.0, make_target=make, limits=limits
        )
        return self.stack.enter_context(closing(trimmer))

    def run(self, trimmer: Trimmer, steps: int = 60) -> None:
        for _ in range(steps):
            self.clock += 0.1
            trimmer.step()

    def commit(self, table: str, number: int) -> list[int]:
        """Commit so many transactions of two rows, and return the offsets of their frontiers."""
        for _ in range(number):
            self.source.commit(insert(table, str(self.source.xid), "x"), insert(table, str(-self.source.xid), "y"))
        end = self.log.offsets(self.source.topics.frontier).end
        return list(range(end - number, end))

    def start(self, partition: Partition) -> int:
        return self.log.offsets(partition).start

    @property
    def frontiers_begin(self) -> int:
        return self.start(self.source.topics.frontier)

    def rows_begin(self, table: TableId) -> int:
        return self.start(self.source.topics.changes(table))

    @property
    def trimmed(self) -> Trimmed | None:
        return read_trimmed(self.source.reader, self.source.topics)


@pytest.fixture
def world() -> Iterator[World]:
    made = World("a", "b")
    with made.stack, made.source.stack:
        yield made


def test_all_that_every_target_has_goes_but_the_last_frontier(world: World) -> None:
    offsets = world.commit("a", 5)
    world.targets["t0"].live(offsets[3], A, B)
    world.run(world.trimmer())
    assert world.frontiers_begin == offsets[2] and world.rows_begin(A) == 4 and world.rows_begin(B) == 0
    assert world.trimmed == Trimmed(offsets[2], 0, BEGINNING + 20, 1_002_000, 1002, 7_000_000)

    # When all is applied, the last one stays: it says how far capture came.
    world.targets["t0"].live(offsets[-1] + 1, A, B)
    world.run(world.trimmer())
    assert world.frontiers_begin == offsets[-1] and world.rows_begin(A) == 8
    found = Frontiers(world.source.reader, world.source.topics).to_end()
    assert found is not None and found.frontier.position == world.source.position


def test_what_no_frontier_names_goes_with_what_comes_after_it(world: World) -> None:
    world.commit("a", 1)
    world.source.orphan(insert("a", "9", "lost"))
    offsets = world.commit("a", 3)
    world.targets["t0"].live(offsets[-1] + 1, A, B)
    world.run(world.trimmer())
    assert world.rows_begin(A) == 7
    trimmed = world.trimmed
    assert trimmed is not None and trimmed.epoch == world.source.epoch


def test_the_slowest_target_decides() -> None:
    world = World("a", targets=2)
    with world.stack, world.source.stack:
        offsets = world.commit("a", 6)
        world.targets["t0"].live(offsets[5], A)
        world.targets["t1"].live(offsets[2], A)
        world.run(world.trimmer())
        assert world.frontiers_begin == offsets[1]


def test_a_target_that_is_away_holds_everything_until_it_is_back() -> None:
    world = World("a", targets=2)
    with world.stack, world.source.stack:
        offsets = world.commit("a", 6)
        for target in world.targets.values():
            target.live(offsets[5], A)
        world.targets["t1"].away = True
        trimmer = world.trimmer()
        world.run(trimmer)
        assert world.frontiers_begin == 0 and world.trimmed is None
        world.targets["t1"].away = False
        world.run(trimmer)
        assert world.frontiers_begin == offsets[4]


def test_a_target_taken_back_between_two_looks_holds_what_it_needs_again(world: World) -> None:
    offsets = world.commit("a", 6)
    target = world.targets["t0"]
    target.live(offsets[5], A, B)
    trimmer = world.trimmer(replace(EVERYTHING, most_frontiers=5))
    world.run(trimmer)  # all is read, but not worth it yet
    world.commit("a", 5)
    target.live(offsets[1], A, B)
    world.run(trimmer)
    assert world.trimmed is None
    target.live(offsets[5] + 4, A, B)
    world.run(trimmer)
    assert world.frontiers_begin == offsets[5] + 3


def test_little_is_kept_while_there_is_room_for_it(world: World) -> None:
    offsets = world.commit("a", 10)
    world.targets["t0"].live(offsets[-1] + 1, A, B)
    world.run(world.trimmer(Limits(look_every=0.0)))
    assert world.trimmed is None and world.frontiers_begin == 0
    world.run(world.trimmer(Limits(look_every=0.0, most_records=18)))
    assert world.frontiers_begin == offsets[-1]


def test_a_log_with_a_budget_is_trimmed_when_a_part_of_it_is_taken(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    offsets = world.commit("a", 10)
    world.targets["t0"].live(offsets[-1] + 1, A, B)
    trimmer = world.trimmer(Limits(look_every=0.0, most_records=1))
    monkeypatch.setattr(world.log, "usage", lambda: Usage(24, 100))
    world.run(trimmer)
    assert world.trimmed is None
    monkeypatch.setattr(world.log, "usage", lambda: Usage(25, 100))
    world.run(trimmer)
    assert world.frontiers_begin == offsets[-1]


def test_the_load_goes_when_all_tables_are_live() -> None:
    world = World("a", mode=Mode.LOAD_AND_CHANGES)
    with world.stack, world.source.stack:
        world.source.load("a", [("1", "x"), ("2", "y")], chunks=2)
        offsets = world.commit("a", 3)
        target = world.targets["t0"]
        target.live(offsets[-1] + 1, A)
        target.known = {A: replace(target.known[A], state=TableState.LOADING)}
        trimmer = world.trimmer()
        load = world.source.topics.load(A)
        world.run(trimmer)
        assert world.start(load) == 0
        target.live(offsets[-1] + 1, A)
        world.run(trimmer)
        assert world.start(load) == world.log.offsets(load).end == 2


def test_what_is_loaded_after_a_trim_was_announced_stays() -> None:
    """A target that is admitted then is loaded from it."""
    world = World("a", mode=Mode.LOAD_AND_CHANGES)
    with world.stack, world.source.stack:
        offsets = world.commit("a", 3)
        world.source.load("a", [("1", "x")])
        load = world.source.topics.load(A)
        world.targets["t0"].live(offsets[-1] + 1, A)
        trimmer = world.trimmer()
        while world.rows_begin(A) == 0:
            world.run(trimmer, 1)
        assert world.start(load) == 0
        world.source.load("a", [("1", "y")], generation=2)
        world.run(trimmer)
        assert world.log.offsets(load) == Range(1, 2)


@pytest.fixture
def full(monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    """A log under pressure, and a table of four chunks, of which one is not final yet."""
    world = World("a", mode=Mode.LOAD_AND_CHANGES, targets=2)
    with world.stack, world.source.stack:
        world.commit("a", 1)
        snapshot = world.source.snapshot()
        world.source.plan("a", 4)
        for number in range(3):
            world.source.chunk("a", number, [(str(number), "x")], snapshot)
        monkeypatch.setattr(world.log, "usage", lambda: Usage(25, 100))
        for target in world.targets.values():
            target.loads({0, 1, 2})
        yield world


def test_under_pressure_a_chunk_goes_when_all_targets_have_it_and_those_before_it(full: World) -> None:
    load = full.source.topics.load(A)
    full.targets["t0"].loads({0, 2})
    trimmer = full.trimmer()
    full.run(trimmer)
    assert full.start(load) == 1
    full.targets["t0"].loads({0, 1})
    full.run(trimmer)
    assert full.start(load) == 2
    full.targets["t0"].loads({0, 1, 2})
    full.run(trimmer)
    assert full.start(load) == 3 and full.frontiers_begin == 0


def test_while_there_is_room_chunks_stay(full: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(full.log, "usage", lambda: Usage(24, 100))
    full.run(full.trimmer())
    assert full.start(full.source.topics.load(A)) == 0 and full.trimmed is None


def test_rows_behind_the_last_final_chunk_stay_and_orphans_before_it_go(full: World) -> None:
    load = full.source.topics.load(A)
    orphans = Block(2, pack([(None, b"lost"), (None, b"lost")]))
    full.source.loads.append(load, orphans)
    full.source.chunk("a", 3, [("3", "x")], 0)
    full.source.loads.append(load, orphans)  # may become final yet
    full.source.loads.flush()
    for target in full.targets.values():
        target.loads({0, 1, 2, 3})
    full.run(full.trimmer())
    assert full.log.offsets(load) == Range(6, 8)


def leave_behind(world: World) -> None:
    """Write two records of a chunk that never becomes final."""
    world.source.loads.append(world.source.topics.load(A), Block(2, pack([(None, b"lost"), (None, b"lost")])))
    world.source.loads.flush()


def late_chunk(load: Partition) -> Manifest:
    """What names those two records after all."""
    return Manifest("public", "a", 1, 3, 0, load.topic, load.number, start=3, end=5, rows=2, bytes=1)


def almost_full(world: World, monkeypatch: pytest.MonkeyPatch) -> Trimmer:
    monkeypatch.setattr(world.log, "usage", lambda: Usage(75, 100))
    return world.trimmer(replace(EVERYTHING, still=10.0))


def test_what_dead_workers_left_behind_the_last_chunk_goes_when_nobody_writes(
    full: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = full.source.topics.load(A)
    leave_behind(full)
    trimmer = almost_full(full, monkeypatch)
    full.run(trimmer, 90)
    assert full.log.offsets(load) == Range(3, 5)
    leave_behind(full)  # a worker lives, and may be long about its chunk
    full.run(trimmer, 90)
    assert full.log.offsets(load) == Range(3, 7)
    full.run(trimmer, 60)
    assert full.log.offsets(load) == Range(7, 7)
    said = full.log.offsets(full.source.topics.chunks).end
    full.run(trimmer, 200)
    assert full.log.offsets(full.source.topics.chunks).end == said


def test_what_dead_workers_left_goes_though_nothing_was_captured_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World("a", mode=Mode.LOAD_AND_CHANGES)
    with world.stack, world.source.stack:
        leave_behind(world)
        world.run(almost_full(world, monkeypatch), 150)
        assert world.log.offsets(world.source.topics.load(A)) == Range(2, 2)
        assert world.trimmed is None  # a target that comes later finds the load whole


def test_a_chunk_that_some_target_needs_stays_whoever_left_something_behind_it(
    full: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    leave_behind(full)
    full.targets["t1"].loads({0, 1})
    full.run(almost_full(full, monkeypatch), 150)
    assert full.log.offsets(full.source.topics.load(A)) == Range(2, 5)


def test_a_chunk_whose_rows_were_freed_before_it_was_final_is_read_again(
    full: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    load, chunks = full.source.topics.load(A), full.source.topics.chunks
    leave_behind(full)
    full.run(almost_full(full, monkeypatch), 150)
    late = late_chunk(load)
    full.source.control.put(chunks, encode_control(late))
    view = Chunks(full.source.reader, full.source.topics)
    view.refresh()
    assert view.of(A).missing == [3]
    full.source.chunk("a", 3, [("3", "x")], 0)
    view.refresh()
    assert not view.of(A).missing


def test_a_chunk_that_becomes_final_while_it_is_about_to_be_freed_stays(
    full: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The trimmer looks once more when it has told."""
    load = full.source.topics.load(A)
    leave_behind(full)
    trimmer = almost_full(full, monkeypatch)
    full.run(trimmer, 50)
    assert full.log.offsets(load) == Range(3, 5)
    manifest = late_chunk(load)

    kind = type(full.source.control)
    put_all = kind.put_all

    def late(self: Any, partition: Partition, values: Sequence[bytes]) -> None:
        self.put(partition, encode_control(manifest))
        put_all(self, partition, values)

    with monkeypatch.context() as patched:
        patched.setattr(kind, "put_all", late)
        full.run(trimmer, 100)
    view = Chunks(full.source.reader, full.source.topics)
    view.refresh()
    assert not view.of(A).missing and full.log.offsets(load) == Range(3, 5)
    for target in full.targets.values():
        target.loads({0, 1, 2, 3})
    full.run(trimmer, 20)
    assert full.log.offsets(load) == Range(5, 5)


@pytest.mark.parametrize(
    ("changed", "start"),
    [
        ({"state": TableState.WAITING, "generation": -1}, 0),
        ({"generation": 0}, 0),
        ({"state": TableState.FAILED, "stopped_in": "loading"}, 1),
        ({"state": TableState.FAILED, "stopped_in": "waiting", "generation": -1}, 0),
        ({"state": TableState.FAILED, "stopped_in": "catching-up"}, 3),
        ({"state": TableState.INDEXING}, 3),
        ({"state": TableState.LIVE, "generation": 0}, 3),
    ],
)
def test_what_a_target_may_still_load_stays(full: World, changed: dict[str, Any], start: int) -> None:
    target = full.targets["t0"]
    target.loads({0})
    target.known = {A: replace(target.known[A], **changed)}
    full.run(full.trimmer())
    assert full.start(full.source.topics.load(A)) == start


def test_when_the_log_is_almost_full_a_table_that_failed_while_it_was_loaded_holds_nothing(
    full: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    view = Chunks(full.source.reader, full.source.topics)
    view.refresh()
    full.source.chunk("a", 3, [("3", "x")], *view.snapshots)
    full.targets["t0"].live(full.commit("a", 5)[-1] + 1, A)
    failing = full.targets["t1"]
    failing.loads({0})
    failing.known = {A: replace(failing.known[A], state=TableState.FAILED, stopped_in="loading")}
    failing.reached = full.targets["t0"].reached
    full.run(full.trimmer())
    load, frontiers = full.source.topics.load(A), full.source.topics.frontier
    assert full.start(load) == 1 and full.start(frontiers) == 0
    full.run(almost_full(full, monkeypatch), 100)
    assert full.log.offsets(load) == Range(4, 4)
    assert full.start(frontiers) == full.log.offsets(frontiers).end - 1
    (event,) = [event for _, event in told(full.source.reader, full.source.topics, 0)]
    assert (event.kind, event.table, event.target) == (EventKind.WARNING, "public.a", "t1")
    assert "penstock reload" in event.remedy
    (told_too,) = [record for record in caplog.records if record.levelname == "ERROR"]
    assert "public.a on target t1" in told_too.message and "penstock reload" in told_too.message


def test_healing_stays_until_all_have_it(full: World) -> None:
    load = full.source.topics.load(A)
    full.source.chunk("a", 3, [("3", "x")], 0)
    full.source.heal("a", [("1", "x")], [("1", "y")], 0)
    full.targets["t0"].loads({0, 1, 2, 3, HEAL})
    full.targets["t1"].loads({0, 1, 2, 3})
    trimmer = full.trimmer()
    full.run(trimmer)
    assert full.log.offsets(load) == Range(4, 5)
    full.targets["t1"].loads({0, 1, 2, 3, HEAL})
    full.run(trimmer)
    assert full.log.offsets(load) == Range(5, 5)


def test_a_generation_that_was_given_up_makes_room_for_the_next(full: World) -> None:
    """Though not one chunk of it was loaded, and there is none of the next yet, for want of room."""
    for target in full.targets.values():
        target.loads(set())
    trimmer = full.trimmer()
    full.run(trimmer)
    assert full.start(full.source.topics.load(A)) == 0
    full.source.plan("a", 4, generation=2)
    full.run(trimmer)
    assert full.start(full.source.topics.load(A)) == 3


def test_an_outdated_load_waits_for_no_target_that_has_not_begun_it(full: World) -> None:
    full.run(full.trimmer())
    full.source.chunk("a", 3, [("3", "x")], 0)
    target = full.targets["t1"]
    target.known = {A: TableProgress(A, 0)}
    full.targets["t0"].live(1, A)
    full.run(full.trimmer())
    assert full.start(full.source.topics.load(A)) == 3
    told = full.log.offsets(full.source.topics.control).end
    full.source.control.put(full.source.topics.chunks, encode_control(Admitted(tuple(full.targets), told)))
    full.run(full.trimmer())
    assert full.start(full.source.topics.load(A)) == 4


def test_before_the_first_chunk_goes_it_is_said_and_again_after_others_were_admitted(full: World) -> None:
    control = full.source.topics.control
    said = full.log.offsets(control).end
    trimmer = full.trimmer()
    while full.trimmed is None:
        full.run(trimmer, 1)
    assert full.start(full.source.topics.load(A)) == 0
    first = Frontiers(full.source.reader, full.source.topics, 0).poll()[0]
    # Nothing of the frontiers is forgotten.
    assert full.trimmed == Trimmed(first.offset, full.source.epoch, BEGINNING, 0, -1, 7_000_000)
    full.run(trimmer)
    full.run(full.trimmer())
    assert full.log.offsets(control).end == said + 1
    full.source.control.put(full.source.topics.chunks, encode_control(Admitted(tuple(full.targets), said + 1)))
    full.source.plan("a", 1, generation=2)
    full.source.chunk("a", 0, [("0", "x")], 0, generation=2)
    for target in full.targets.values():
        target.loads({0}, generation=2)
    full.run(full.trimmer())
    assert full.log.offsets(control).end == said + 2 and full.start(full.source.topics.load(A)) == 4


def test_what_was_announced_while_a_target_was_added_is_not_carried_out(full: World) -> None:
    trimmer = full.trimmer()
    while full.trimmed is None:
        full.run(trimmer, 1)
    full.admit("t0", "t1", "t2")
    full.run(trimmer)
    assert full.start(full.source.topics.load(A)) == 0


def test_what_targets_said_is_durable_before_anything_goes(full: World) -> None:
    target = full.targets["t1"]
    trimmer = full.trimmer()
    target.crashed = True
    full.run(trimmer)
    assert read_trimmed(full.source.reader, full.source.topics) is None and full.targets["t0"].durable > 0
    target.crashed = False
    full.clock += 10
    while full.trimmed is None:
        full.run(trimmer, 1)
    assert target.durable == 1
    full.run(trimmer)
    assert full.start(full.source.topics.load(A)) == 3 and target.durable == 1


def test_nothing_is_made_durable_in_vain(world: World) -> None:
    offsets = world.commit("a", 5)
    target = world.targets["t0"]
    target.live(offsets[3], A, B)
    world.run(world.trimmer(Limits(look_every=0.0)))
    assert target.durable == 0 and world.trimmed is None
    target.crashed = True
    trimmer = world.trimmer()
    world.run(trimmer)
    assert world.trimmed is None
    target.crashed = False
    world.clock += 10
    world.run(trimmer)
    assert target.durable == 1 and world.frontiers_begin == offsets[2]


def test_killed_anywhere_it_is_carried_on_by_the_next(world: World) -> None:
    """After each number of steps another trimmer takes over; nothing that may go stays in the end."""
    offsets = world.commit("a", 3) + world.commit("b", 3)
    world.targets["t0"].live(offsets[-1] + 1, A, B)
    for steps in range(1, 12):
        world.run(world.trimmer(), steps)
    # The last frontier names the last two rows.
    assert (world.frontiers_begin, world.rows_begin(A), world.rows_begin(B)) == (offsets[-1], 6, 4)


def test_of_two_trimmers_the_one_that_falls_behind_goes_on_where_the_other_is(world: World) -> None:
    offsets = world.commit("a", 3)
    target = world.targets["t0"]
    target.live(offsets[-1] + 1, A, B)
    slow = world.trimmer()
    world.run(slow, 1)
    world.run(world.trimmer())
    offsets = world.commit("b", 3)
    target.live(offsets[-1] + 1, A, B)
    world.run(slow)
    assert world.frontiers_begin == offsets[-1] and world.rows_begin(B) == 4


def test_between_announcing_and_trimming_nobody_reads_what_is_about_to_go(world: World) -> None:
    offsets = world.commit("a", 4)
    world.targets["t0"].live(offsets[-1] + 1, A, B)
    trimmer = world.trimmer()
    while world.trimmed is None:
        world.run(trimmer, 1)
    assert world.frontiers_begin == 0
    view = Frontiers(world.source.reader, world.source.topics)
    assert [valid.offset for valid in view.poll()] == [offsets[-1]]
    world.run(trimmer, 1)
    assert world.rows_begin(A) == 6 and world.frontiers_begin == 0


def test_a_reader_that_comes_too_late_goes_on_where_the_frontiers_begin(world: World) -> None:
    offsets = world.commit("a", 4)
    view = Frontiers(world.source.reader, world.source.topics)
    assert [valid.offset for valid in view.poll(2)] == [offsets[0]]
    world.targets["t0"].live(offsets[-1] + 1, A, B)
    world.run(world.trimmer())
    assert [valid.offset for valid in view.poll()] == [offsets[-1]]
    assert view.trimmed == world.trimmed
    with pytest.raises(LogRewound):  # one that stands at a place of its own needs what is there
        Frontiers(world.source.reader, world.source.topics, offsets[0], 0).poll()


# ---------------------------------------------------------------------------------------------- what holds everything


def answer(**changed: Any) -> Answer:
    table = TableProgress(A, 0, TableState.LIVE, generation=1)
    return Answer("t", "", {A: replace(table, **changed)}, {0: Progress(50, 0, 500)})


@pytest.fixture(scope="module")
def loaded() -> Iterator[Chunks]:
    source = Source(make_table("a"), mode=Mode.LOAD_AND_CHANGES)
    with source.stack:
        source.load("a", [("1", "x")])
        chunks = Chunks(source.reader, source.topics)
        chunks.refresh()
        yield chunks


@pytest.mark.parametrize("state", [TableState.WAITING, TableState.LOADING, TableState.INDEXING, TableState.CATCHING_UP])
def test_a_table_that_is_not_live_yet_holds_everything(state: TableState, loaded: Chunks) -> None:
    with pytest.raises(Held, match=r"public.a on target t"):
        needed_from([answer(state=state)], [A], loaded, Mode.LOAD_AND_CHANGES)


@pytest.mark.parametrize("state", [TableState.FAILED, TableState.PAUSED])
def test_a_table_that_may_go_on_holds_what_follows_where_it_stopped(state: TableState, loaded: Chunks) -> None:
    stopped = answer(state=state, stopped_in=TableState.LIVE, progress=Progress(20, 0, 200))
    assert needed_from([stopped], [A], loaded, Mode.LOAD_AND_CHANGES) == 20
    with pytest.raises(Held):
        needed_from(
            [answer(state=state, stopped_in=TableState.WAITING, progress=NOWHERE)], [A], loaded, Mode.LOAD_AND_CHANGES
        )


@pytest.mark.parametrize("state", [TableState.FAILED, TableState.PAUSED])
def test_a_table_that_stopped_while_a_part_of_it_was_loaded_holds_the_part(state: TableState, loaded: Chunks) -> None:
    stopped = answer(state=state, stopped_in=TableState.LOADING, progress=Progress(20, 0, 200))
    with pytest.raises(Held, match=r"public.a on target t"):
        needed_from([stopped], [A], loaded, Mode.LOAD_AND_CHANGES)


def test_a_table_that_is_skipped_holds_nothing(loaded: Chunks) -> None:
    skipped = answer(state=TableState.SKIPPED, progress=Progress(20, 0, 200))
    assert needed_from([skipped], [A], loaded, Mode.LOAD_AND_CHANGES) == 50


def test_of_what_was_told_to_people_the_latest_stays(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("control.trimmer.MOST_EVENTS", 20)
    teller = Teller(world.log, world.source.topics, "somebody")
    for number in range(30):
        teller.tell(EventKind.NOTICE, str(number))
    teller.flush()
    world.run(world.trimmer())
    assert world.log.offsets(world.source.topics.events) == Range(10, 30)


def test_who_knows_other_targets_than_are_loaded_trims_nothing(world: World) -> None:
    """Of two files the older one may still be at work somewhere when a target is added."""
    offsets = world.commit("a", 4)
    world.targets["t0"].live(offsets[-1] + 1, A, B)
    trimmer = world.trimmer()
    world.admit("t0", "t1")
    world.run(trimmer)
    assert world.trimmed is None
    world.admit("t0")
    world.run(trimmer)
    assert world.frontiers_begin == offsets[-1]


def test_a_target_that_is_admitted_while_the_others_are_asked_keeps_what_it_needs(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is announced is passed over by whoever reads the frontiers, though it be there still."""
    offsets = world.commit("a", 4)
    world.targets["t0"].live(offsets[-1] + 1, A, B)
    monkeypatch.setattr(world.targets["t0"], "make_durable", lambda: world.admit("t0", "t1"))
    trimmer = world.trimmer()
    world.run(trimmer)
    assert world.trimmed is None
    monkeypatch.undo()
    world.admit("t0")
    world.run(trimmer)
    assert world.frontiers_begin == offsets[-1]


def test_a_table_that_is_still_read_at_the_source_holds_everything(loaded: Chunks) -> None:
    assert needed_from([answer()], [A], loaded, Mode.LOAD_AND_CHANGES) == 50
    with pytest.raises(Held, match=r"public.b is being read"):
        needed_from([answer()], [A, B], loaded, Mode.LOAD_AND_CHANGES)
    assert needed_from([answer()], [A, B], loaded, Mode.CHANGES) == 50
