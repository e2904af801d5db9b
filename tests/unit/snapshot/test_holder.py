"""The holder: what it writes when, and which snapshots it takes and keeps."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from schemas.errors import ConfigInvalid, LogRewound, SchemaUnsupported, SourceUnavailable, TransientError
from schemas.frontier import Manifest, SnapshotTaken, Visibility
from schemas.pipeline import Mode, TargetSettings
from schemas.record import Op, encode_control, value_schema_id
from schemas.table import Column, SetupObjects
from schemas.types import Kind
from snapshot import delivery
from snapshot import holder as module
from snapshot.holder import Holder
from snapshot.loop import SnapshotWorker
from tests.unit.snapshot.world import TOPICS, A, B, World, closing, fails_once, table
from transport.log import Topic


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.setattr(delivery, "TOGETHER_BYTES", 0)  # what is read is durable
    world = World(table(A), table(B))
    world.db.chunks[A] = 2
    world.db.rows[A] = {str(n): f"a{n}" for n in range(4)}
    return world


CHOICES = {"all": [], "one": ["s.b"], "another": ["s.a"], "the-same": ["s.a"]}


def test_the_first_start_registers_tables_makes_topics_and_publishes_the_slots_snapshot(world: World) -> None:
    setup = world.start()
    assert setup == world.setup()
    assert setup.tables == (value_schema_id(0), value_schema_id(1))
    assert (setup.position, setup.slot, setup.mode) == (world.db.slot, "slot", "load")
    assert setup.visibility == Visibility(100, 100, ())
    assert SetupObjects.model_validate_json(setup.objects).schemas == ("s",)
    assert {t for t in world.log.topics("p.") if t.name[2:].startswith(("changes", "load"))} == {
        Topic("p.changes.s.a", 1),
        Topic("p.changes.s.b", 1),
        Topic("p.load.s.a", 16),
        Topic("p.load.s.b", 16),
    }
    (taken,) = world.entries()
    assert isinstance(taken, SnapshotTaken)
    assert taken.visibility == setup.visibility
    assert taken.position == world.db.position > setup.position
    assert world.db.alive == {taken.name}


def test_what_the_tables_of_a_target_rest_on_is_kept_by_its_choice(world: World) -> None:
    targets = [{"name": name, "url": "postgresql://target/db", "tables": tables} for name, tables in CHOICES.items()]
    made = [TargetSettings.model_validate(target) for target in targets]
    world.pipeline = world.pipeline.model_copy(update={"targets": tuple(made)})
    world.holder = world.new_holder()
    objects = SetupObjects.model_validate_json(world.start().objects)
    assert [choice for choice, _ in objects.of_choices] == [("s.a",), ("s.b",)]
    assert objects.of_choice(("s.a",)).schemas == ("s",) and objects.of_choice(("x.*",)) is objects


def test_a_snapshot_is_published_only_behind_its_message(world: World) -> None:
    world.db.failing = fails_once("announce", SourceUnavailable("gone"))
    with pytest.raises(SourceUnavailable):
        world.start()
    assert world.entries() == []
    assert world.db.alive == set()


@pytest.mark.parametrize("call", ["catalogue", "prepare", "announce", "ping"])
def test_a_holder_that_died_before_the_setup_was_written_begins_again(world: World, call: str) -> None:
    world.db.failing = fails_once(call, SourceUnavailable("gone"))
    with pytest.raises(SourceUnavailable):
        world.start()
    assert world.setup() is None
    world.holder.close()
    world.holder = world.new_holder()
    setup = world.start()
    assert setup.position == world.db.slot
    assert len(world.db.alive) == 1
    assert world.holder.held == (max(world.chunks().snapshots),)


def test_the_setup_is_not_written_when_the_claim_was_lost_on_the_way(world: World) -> None:
    world.db.failing = fails_once("ping", SourceUnavailable("another may be the holder now"))
    with pytest.raises(SourceUnavailable):
        world.start()
    assert world.setup() is None


def test_who_stalls_before_writing_the_setup_does_not_replace_that_of_the_next_holder(world: World) -> None:
    """Found by the simulation: the first one's slot was dropped, and its position is not where the stream begins."""
    second = world.new_holder()

    def loses_claim_after(call: str) -> None:
        if call == "ping":
            world.db.failing = lambda call: None
            world.db.claimed = None
            while second.setup is None:
                assert second.step()
            world.db.claimed = None

    world.db.failing = loses_claim_after
    with pytest.raises(TransientError):
        world.start()
    assert second.setup is not None
    world.holder.close()
    assert world.setup() == second.setup
    assert second.setup.position == world.db.slot
    assert world.db.alive == {world.chunks().snapshots[number].name for number in second.held}


def test_a_source_that_was_prepared_with_another_log_is_left_alone(world: World) -> None:
    """Its slot is that of a pipeline that may be running with another state folder."""
    world.db.slot = 1
    with pytest.raises(LogRewound, match="begun with another log") as caught:
        world.start()
    assert "penstock drop" in caught.value.remedy
    world.holder.close()
    world.holder = world.new_holder()
    with pytest.raises(LogRewound):
        world.start()
    assert world.db.slot == 1 and not world.db.slots_made


@pytest.mark.parametrize("altered", ["another column", "dropped", "missed"])
def test_a_table_that_is_altered_while_the_slot_is_made_lets_the_holder_begin_again(world: World, altered: str) -> None:
    """What the rows that are there got in a new column would be in neither load nor stream."""

    def alter(call: str) -> None:
        if call == "prepare" and world.db.slots_made == 0 and A in world.db.tables:
            before = world.db.tables.pop(A)
            if altered == "another column":
                more = Column(name="more", kind=Kind.TEXT, source_type="text", number=3)
                world.db.tables[A] = before.model_copy(update={"columns": (*before.columns, more)})
            if altered == "missed":
                raise SchemaUnsupported("source: relation s.a does not exist")

    world.db.failing = alter
    with pytest.raises(TransientError, match=r"s\.a was altered"):
        world.start()
    assert world.setup() is None
    assert world.db.alive == set()
    world.holder.close()
    world.holder = world.new_holder()
    assert len(world.start().tables) == len(world.db.tables)


def test_without_a_load_there_is_a_setup_and_no_snapshot() -> None:
    world = World(table(A), mode="changes")
    setup = world.start()
    assert setup.visibility == Visibility(100, 100, ())
    world.settle(world.holder)
    assert world.holder.done
    assert not world.chunks().snapshots
    assert world.db.alive == set()


def test_a_pipeline_without_tables_is_a_mistake() -> None:
    with pytest.raises(ConfigInvalid, match="no table fits"):
        World().start()


def test_a_second_holder_waits_for_the_first(world: World) -> None:
    world.start()
    second = world.new_holder()
    assert not second.step()
    second.wait(0)
    world.holder.close()
    world.settle(second)
    assert second.setup == world.setup()
    assert world.db.slots_made == 1


def test_many_tables_share_topics_where_topics_cost(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SHARE_ABOVE", 1)
    world.log.shared_topics = 3
    setup = world.start()
    assert setup.shared_topics == 3
    assert world.version(A).changes == TOPICS.changes(A, 3)
    assert Topic(TOPICS.load(A, 3).topic, 16) in world.log.topics("p.load.")


def test_a_lost_snapshot_is_replaced(world: World) -> None:
    world.start()
    world.settle(world.holder)
    world.db.alive.clear()
    world.later(module.PING_SECONDS)
    world.settle(world.holder)
    assert world.db.alive == {"snapshot-2"}
    assert [entry.name for entry in world.chunks().snapshots.values()] == ["snapshot-1", "snapshot-2"]


def test_losing_the_claim_ends_the_holder(world: World) -> None:
    world.start()
    world.settle(world.holder)
    world.db.failing = fails_once("ping", SourceUnavailable("cut"))
    world.later(module.PING_SECONDS)
    with pytest.raises(SourceUnavailable):
        world.holder.step()


def test_tables_that_the_file_no_longer_chooses_are_named(world: World, caplog: pytest.LogCaptureFixture) -> None:
    world.start()
    world.holder.close()
    world.pipeline = world.pipeline.model_copy(update={"tables": ("*.*", "!s.a")})
    world.holder = world.new_holder()
    assert not caplog.messages
    world.start()
    (told,) = caplog.messages
    assert "no longer chooses them: s.a;" in told


def test_a_pipeline_keeps_the_mode_that_it_was_begun_with(world: World) -> None:
    """With another one there would be nobody who reads the load, or who follows the changes."""
    world.start()
    world.holder.close()
    world.pipeline = world.pipeline.model_copy(update={"mode": Mode.CHANGES})
    world.holder = world.new_holder()
    with pytest.raises(ConfigInvalid, match="was begun with mode: load") as caught:
        world.start()
    assert "mode: load" in caught.value.remedy and "penstock drop" in caught.value.remedy


def test_a_restarted_holder_takes_a_new_snapshot_while_the_load_is_unfinished(world: World) -> None:
    world.start()
    world.holder.close()
    world.holder = world.new_holder()
    world.settle(world.holder)
    assert world.db.alive == {"snapshot-2"}
    assert world.db.slots_made == 1


def test_the_holder_ends_when_every_table_is_complete_and_takes_nothing_when_started_again(world: World) -> None:
    world.start()
    world.capture()
    with closing(worker := world.worker()):
        world.settle(world.holder, worker)
        assert worker.done
    assert world.holder.done
    assert world.db.alive == set()
    world.holder.close()
    world.holder = world.new_holder()
    world.settle(world.holder)
    assert world.holder.done
    assert "take" not in world.db.log


def test_a_snapshot_that_does_not_see_all_that_the_slots_own_saw_is_taken_again(world: World) -> None:
    """A commit is decoded, and may be left out of the stream, before ordinary snapshots see it."""
    world.start()
    world.holder.close()
    world.db.running.add(99)
    world.holder = world.new_holder()
    world.settle(world.holder)
    assert len(world.chunks().snapshots) == 1
    assert world.db.alive == set()
    world.later()
    world.settle(world.holder)
    assert world.holder.snapshots_refused == 2
    world.db.running.clear()
    world.later()
    world.settle(world.holder)
    assert len(world.chunks().snapshots) == 2
    assert world.holder.held == (max(world.chunks().snapshots),)


def half_loaded(world: World) -> None:
    """Make one of the two chunks of A final, in the first snapshot."""
    world.start()
    world.capture()
    read = world.db.failing

    def refuse_the_other(call: str) -> None:
        if call.startswith("read s.a/1"):
            raise SourceUnavailable("cut")

    world.db.failing = refuse_the_other
    with closing(worker := world.worker()):
        for _ in range(20):
            try:
                if not worker.step():
                    break
            except SourceUnavailable:
                break
    world.db.failing = read
    assert set(world.chunks().of(A).manifests) == {0}


def test_a_snapshot_must_see_what_the_snapshots_in_use_saw(world: World) -> None:
    world.db.next_xid = 120
    half_loaded(world)
    world.holder.close()
    # As after a crash of the source: ids that the first snapshot saw are running again.
    world.db.running.add(119)
    world.holder = world.new_holder()
    world.settle(world.holder)
    assert len(world.chunks().snapshots) == 1
    world.db.running.clear()
    world.later()
    world.settle(world.holder)
    assert len(world.chunks().snapshots) == 2


def test_a_table_that_is_to_be_healed_gets_a_newer_snapshot(world: World) -> None:
    half_loaded(world)
    world.holder.close()
    world.holder = world.new_holder()
    world.settle(world.holder)
    second = world.holder.held
    manifest = world.chunks().of(A).manifests[0]
    other = Manifest("s", "a", 0, 1, second[0], manifest.topic, 0, 0, 0, 0, 0)
    with world.log.writer("control") as writer:
        writer.put(TOPICS.chunks, encode_control(other))
    assert world.chunks().of(A).needs_healing()
    world.settle(world.holder)
    assert len(world.holder.held) == 2
    assert world.holder.held[0] == second[0]
    # and no third one, as long as this one serves
    world.later(module.PING_SECONDS)
    world.settle(world.holder)
    assert len(world.chunks().snapshots) == 3


def test_an_old_snapshot_is_let_go_when_no_table_depends_on_it(world: World) -> None:
    test_a_table_that_is_to_be_healed_gets_a_newer_snapshot(world)
    newest = world.holder.held[-1]
    world.later(module.RETIRE_SECONDS + module.PING_SECONDS)
    world.settle(world.holder)
    assert world.holder.held == (newest,)


def test_whatever_call_fails_the_next_holder_goes_on(world: World) -> None:
    """Kill the holder at every call it makes to the source, one after the other."""
    for nth in range(1, 40):
        calls = [0]

        def fail(call: str, calls: list[int] = calls, nth: int = nth) -> None:
            calls[0] += 1
            if calls[0] == nth:
                raise SourceUnavailable(f"at {call}")

        world = World(table(A), table(B))
        world.db.rows[A] = {str(n): f"a{n}" for n in range(4)}
        world.db.chunks[A] = 2
        world.db.failing = fail
        makes: dict[str, Callable[[], Holder | SnapshotWorker]] = {"holder": world.new_holder, "worker": world.worker}
        live = {name: make() for name, make in makes.items()}
        for _ in range(100):
            for name, machine in live.items():
                try:
                    machine.step()
                except SourceUnavailable:
                    machine.close()
                    live[name] = makes[name]()
            if world.setup() is not None:
                world.capture()
            world.later(0.5)
        assert all(machine.done for machine in live.values()), f"call {nth}"
        assert world.loaded(A) == world.db.rows[A], f"call {nth}"
        for machine in live.values():
            machine.close()


def test_changes_before_the_slot_are_never_wanted(world: World) -> None:
    world.change(A, Op.UPDATE, "1", "x")
    setup = world.start()
    assert setup.visibility.sees(100)


def test_a_closed_holder_may_be_closed_again(world: World) -> None:
    with closing(holder := world.holder):
        world.start()
    holder.close()
    assert world.db.alive == set()
