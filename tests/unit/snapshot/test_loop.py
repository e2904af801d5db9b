"""The snapshot worker: what it reads in which snapshot, when a chunk becomes final, and how it goes on after a loss."""

from __future__ import annotations

from dataclasses import replace

import pytest

from schemas.errors import PermissionMissing, SnapshotLost, SourceUnavailable, ValueUnsupported
from schemas.frontier import HEAL, Chosen, Command, CommandKind, Freed, Manifest, Name, Plan, SnapshotTaken
from schemas.record import Op, encode_control
from snapshot import delivery, heal, loop, rules
from snapshot.loop import SnapshotWorker
from snapshot.reader import GONE
from tests.unit.snapshot.world import TOPICS, A, B, ScriptedReader, World, closing, fails_once, table


@pytest.fixture
def together() -> bool:
    """Whether small chunks are made durable several at once."""
    return False


@pytest.fixture
def world(together: bool, monkeypatch: pytest.MonkeyPatch) -> World:
    if not together:
        monkeypatch.setattr(delivery, "TOGETHER_BYTES", 0)
    world = World(table(A), table(B))
    world.db.chunks[A] = 4
    world.db.rows[A] = {str(n): f"a{n}" for n in range(12)}
    world.db.rows[B] = {"7": "b7"}
    return world


def plans(world: World) -> list[tuple[str, int, str]]:
    return [(e.table_name, e.generation, e.cause) for e in world.entries() if isinstance(e, Plan)]


def manifests(world: World) -> list[Manifest]:
    return [e for e in world.entries() if isinstance(e, Manifest)]


def lose_snapshots(world: World) -> None:
    """Let the holder die, with what it held."""
    world.holder.close()
    world.holder = world.new_holder()


def cut_at(world: World, call: str) -> None:
    """Run a worker until the source is lost at a call, and make final what it has read."""
    world.db.failing = fails_once(call, SourceUnavailable("cut"))
    with closing(worker := world.worker()), pytest.raises(SourceUnavailable):
        while True:
            worker.step()
            worker._look_at = 0.0


def go_on(world: World, worker: SnapshotWorker) -> None:
    """Let all who load go on until there is nothing more to do."""
    for _ in range(3):
        world.settle(world.holder, worker)
        world.capture()
    world.settle(world.holder, worker)


def test_every_row_is_loaded_once(world: World) -> None:
    world.start()
    world.capture()
    with closing(worker := world.worker()):
        world.settle(worker)
    assert worker.done
    assert world.loaded(A) == world.db.rows[A]
    assert world.loaded(B) == {"7": "b7"}
    assert (worker.rows, worker.chunks_read, worker.chunks_final, worker.pending) == (13, 5, 5, 0)
    assert sum(m.rows for m in manifests(world)) == 13
    assert worker.bytes == sum(m.bytes for m in manifests(world)) > 0
    assert {m.partition for m in manifests(world)} == {0}


def test_a_worker_waits_for_a_log_and_a_setup(world: World) -> None:
    with closing(worker := world.worker()):
        assert not worker.step()
        worker.wait(0)
        world.log.create_topics(TOPICS.fixed())
        assert not worker.step()
        worker.wait(0)
        world.start()
        assert worker.step()


def test_without_a_load_a_worker_has_nothing_to_do() -> None:
    world = World(table(A), mode="changes")
    world.start()
    with closing(worker := world.worker()):
        world.settle(worker)
        assert worker.done


def test_nothing_is_final_before_capture_has_passed_the_snapshots_message_but_reading_goes_on(world: World) -> None:
    """Until then a crash of the source may take commits back that the snapshot has shown."""
    world.start()
    (taken,) = world.chunks().snapshots.values()
    with closing(worker := world.worker()):
        world.settle(worker)
        assert (worker.pending, worker.chunks_read) == (5, 5)
        assert manifests(world) == []
        world.capture(position=taken.position - 1)
        world.settle(worker)
        assert manifests(world) == []
        world.capture(position=taken.position)
        world.settle(worker)
        assert len(manifests(world)) == 5
        assert len(world.reads()) == 5


def test_chunks_become_final_in_the_order_in_which_they_were_written(world: World) -> None:
    """What lies before a final chunk may be forgotten with it."""
    world.start()
    (taken,) = world.chunks().snapshots.values()
    with closing(worker := world.worker()):
        while not worker.chunks_read:
            worker.step()
        with world.log.writer("control") as control:
            control.put(TOPICS.chunks, encode_control(replace(taken, position=0)))  # capture has passed this one
        world.settle(worker)
        assert (worker.pending, worker.chunks_read) == (5, 5)
        world.capture(position=taken.position)
        world.settle(worker)
        final = [manifest for manifest in manifests(world) if manifest.topic == TOPICS.load(A).topic]
        assert len({manifest.snapshot for manifest in final}) == 2
        assert final == sorted(final, key=lambda manifest: manifest.start)


def test_pending_chunks_become_final_while_a_large_one_is_read(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "STEP_BYTES", 1)
    world.start()
    with closing(worker := world.worker()):
        while not (worker.pending and worker.table):
            worker.step()
        world.capture()
        world.later(loop.LOOK_SECONDS)
        worker.step()
        assert worker.chunks_final == 1
        assert worker.table


def test_rows_are_durable_before_their_manifest(world: World) -> None:
    world.start()
    world.capture()
    with closing(worker := world.worker()):
        world.settle(worker)
    for manifest in manifests(world):
        rows = [row for batch in world.batches(manifest) for row in batch]
        assert len(rows) == manifest.rows


def test_an_empty_table_has_a_manifest_too(world: World) -> None:
    world.db.rows[B] = {}
    world.start()
    world.capture()
    with closing(worker := world.worker()):
        world.settle(worker)
    manifest = world.chunks().of(B).manifests[0]
    assert (manifest.rows, manifest.start) == (0, manifest.end)
    assert world.loaded(B) == {}


def test_two_workers_share_the_chunks_and_write_to_partitions_of_their_own(world: World) -> None:
    world.start()
    world.capture()
    with closing(one := world.worker(0), two := world.worker(1)):
        world.settle(one, two)
        assert one.done and two.done
        assert one.chunks_read and two.chunks_read
    assert len(world.reads()) == 5
    assert len(plans(world)) == 2
    assert {m.partition for m in manifests(world)} == {0, 1}
    assert world.loaded(A) == world.db.rows[A]


def test_the_chunks_of_a_worker_that_is_gone_are_read_by_the_others(world: World) -> None:
    world.start()
    one, two = world.worker(0), world.worker(1)
    with closing(one, two):
        world.settle(one)
        world.settle(two)
        two.close()  # what it has read was not final
        world.capture()
        world.settle(one)
        assert one.done
    assert world.loaded(A) == world.db.rows[A]


def test_a_worker_that_joins_takes_over_what_the_first_had_set_out_to_do(world: World) -> None:
    world.start()
    world.capture()
    one = world.worker(0)
    while not one.table:
        one.step()
    two = world.worker(1)
    with closing(one, two):
        world.settle(one, two)
        assert two.chunks_read > 0
    assert len(world.reads()) == len(set(world.reads()))


def test_of_two_workers_that_finish_the_same_chunk_the_first_counts(world: World) -> None:
    world.start()
    one = world.worker(0)
    world.settle(one)
    with closing(one):
        # A zombie: alone it believed that everything was its own; now another does all of it again.
        two = world.worker(1)
        one._views.membership.poll = frozenset  # type: ignore[method-assign, union-attr]
        two_share = frozenset(range(64))
        while two._views is None:
            two.step()
        two._views.membership.poll = lambda: two_share  # type: ignore[method-assign]
        with closing(two):
            world.settle(two)
            world.capture()
            world.settle(one, two)
    assert len(manifests(world)) == 5
    assert world.loaded(A) == world.db.rows[A]


def test_when_the_log_takes_nothing_the_same_chunk_is_read_again(world: World) -> None:
    world.start()
    world.capture()
    left = [1, 1]

    def refuse(partition: object) -> bool:
        if "row of s.a/1" in world.db.log and left:
            left.pop()
            return True
        return False

    world.log.refuse = refuse
    with closing(worker := world.worker()):
        for _ in range(3):
            world.settle(worker)
            assert not worker.step()
            worker.wait(0)
            world.later(loop.AGAIN_SECONDS)
        assert worker.done
    assert not left
    assert world.loaded(A) == world.db.rows[A]
    # The orphans are there, and named by nobody.
    assert world.log.offsets(TOPICS.load(A)).end > sum(m.end - m.start for m in manifests(world) if m.table_name == "a")


@pytest.mark.parametrize("together", [True])
def test_small_chunks_are_made_durable_together(world: World) -> None:
    world.start()
    world.capture()
    with closing(worker := world.worker()):
        while worker.chunks_read < 4:
            worker.step()
        assert worker.pending == 0
        world.settle(worker)
        assert worker.done
    assert world.loaded(A) == world.db.rows[A] and world.loaded(B) == world.db.rows[B]
    spans = sorted((m.start, m.end) for m in manifests(world) if m.table_name == "a")
    assert [start for start, _ in spans[1:]] == [end for _, end in spans[:-1]]
    assert world.log.offsets(TOPICS.load(A)).end == spans[-1][1]


@pytest.mark.parametrize("together", [True])
def test_small_chunks_that_were_not_durable_are_read_again(world: World) -> None:
    world.start()
    world.capture()
    with closing(worker := world.worker()):
        while worker.chunks_read < 3:
            worker.step()
        world.log.refuse = lambda partition: True
        world.settle(worker)
        assert not worker.pending
        world.log.refuse = lambda partition: False
        world.later(loop.AGAIN_SECONDS)
        world.settle(worker)
        assert worker.done
    assert world.loaded(A) == world.db.rows[A] and world.loaded(B) == world.db.rows[B]


def test_what_is_durable_stays_pending_when_the_log_takes_nothing(world: World) -> None:
    world.start()
    with closing(worker := world.worker()):
        world.settle(worker)
        assert worker.pending == 5
        world.capture()
        world.log.refuse = lambda partition: True
        world.settle(worker)
        assert worker.pending == 5
        world.log.refuse = lambda partition: False
        world.later(loop.AGAIN_SECONDS)
        world.settle(worker)
        assert worker.done
    assert len(world.reads()) == 5


def test_chunks_whose_rows_were_freed_while_they_were_pending_are_read_again(world: World) -> None:
    world.start()
    with closing(worker := world.worker()):
        world.settle(worker)
        assert worker.pending == 5
        place = TOPICS.load(A)
        end = world.log.offsets(place).end
        with world.log.writer("control") as control:
            control.put(TOPICS.chunks, encode_control(Freed(*place, end, 0)))
        world.capture()
        world.settle(worker)
        assert worker.done
        final = [manifest for manifest in manifests(world) if manifest.table_name == "a"]
        assert len(final) == 4 and all(manifest.start >= end for manifest in final)
        assert world.loaded(A) == world.db.rows[A]


def test_an_unreachable_source_is_for_the_runner(world: World) -> None:
    world.start()
    world.capture()
    cut_at(world, "row of s.a/2")
    with closing(worker := world.worker()):
        world.settle(worker)
        assert worker.done
    assert world.loaded(A) == world.db.rows[A]


# ---------------------------------------------------------------------------------------------------- lost snapshots


def test_chunks_that_are_final_stay_and_the_rest_is_read_in_the_next_snapshot_and_healed(world: World) -> None:
    world.start()
    world.capture()
    cut_at(world, "read s.a/2")
    assert set(world.chunks().of(A).manifests) == {0, 1}
    lose_snapshots(world)
    # Key 0 was read, 2 was not; 1 moves to where it was read already, 3 to where it is still to be read.
    changes = [
        world.change(A, Op.UPDATE, "0", "changed"),
        world.change(A, Op.DELETE, "2"),
        world.change(A, Op.UPDATE, "100", "moved", old="3"),
        world.change(A, Op.UPDATE, "102", "moved", old="1"),
        world.change(A, Op.INSERT, "20", "new"),
    ]
    with closing(worker := world.worker()):
        world.settle(world.holder, worker)
        world.capture(*changes)
        world.settle(world.holder, worker)
        world.capture()
        world.settle(world.holder, worker)
        assert worker.done and world.holder.done
        assert worker.heals == 1
    chunks = world.chunks().of(A)
    assert len(chunks.snapshots()) == 2 and chunks.healed
    assert chunks.effective_snapshot() == max(world.chunks().snapshots)
    healing = [batch for batch in world.batches(chunks.manifests[HEAL])]
    assert {row[0] for op, row in healing[0]} == {"0", "2", "3", "100", "1", "102", "20"}
    assert {op for op, _ in healing[0]} == {Op.DELETE}
    assert sorted(row for op, row in healing[1]) == sorted(
        (key, world.db.rows[A][key]) for key in ("0", "100", "102", "20")
    )
    rows: dict[str, str] = {}
    for number in (0, 1, 2, 3, HEAL):
        for op, row in [pair for batch in world.batches(chunks.manifests[number]) for pair in batch]:
            if op is Op.DELETE:
                rows.pop(row[0], None)
            else:
                rows[row[0]] = row[1]
    assert rows == world.db.rows[A]
    # B had not been begun: it is in one snapshot, and needs no healing.
    assert not world.chunks().of(B).healed


def test_only_changes_that_some_snapshot_has_not_seen_are_healed(world: World) -> None:
    world.start()
    seen = world.change(A, Op.UPDATE, "4", "seen by the slot's snapshot?")
    world.capture(seen)
    # The first snapshot was taken before: it has not seen it; the second and third have.
    cut_at(world, "read s.a/2")
    lose_snapshots(world)
    with closing(worker := world.worker()):
        world.settle(world.holder, worker)
        world.capture()
        world.settle(world.holder, worker)
        world.capture()
        world.settle(world.holder, worker)
    assert [read for read in world.reads() if read.startswith("keys")] == ["keys of s.a in snapshot-3: 4"]


def test_healing_waits_until_capture_has_passed_the_newest_snapshots_message(world: World) -> None:
    world.start()
    world.capture()
    cut_at(world, "read s.a/2")
    lose_snapshots(world)
    late = world.change(A, Op.UPDATE, "0", "late")
    with closing(worker := world.worker()):
        world.settle(world.holder, worker)
        world.capture()  # makes the chunks of the second snapshot final
        world.settle(world.holder, worker)
        assert world.chunks().of(A).needs_healing()
        assert len(world.chunks().snapshots) == 3
        newest = world.chunks().snapshots[max(world.chunks().snapshots)]
        world.capture(position=newest.position - 1)
        world.settle(world.holder, worker)
        assert not [read for read in world.reads() if read.startswith("keys")]
        world.capture(late, position=newest.position)
        world.settle(world.holder, worker)
        assert worker.done
    assert [read for read in world.reads() if read.startswith("keys")] == [f"keys of s.a in {newest.name}: 0"]


def test_many_keys_are_healed_in_rounds(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heal, "KEYS_AT_ONCE", 3)
    world.start()
    world.capture()
    cut_at(world, "read s.a/2")
    lose_snapshots(world)
    changes = [world.change(A, Op.UPDATE, str(n), "changed") for n in range(8)]
    for change in changes:
        world.capture(change, position=world.db.position + 1)
        world.db.position += 1
    with closing(worker := world.worker()):
        go_on(world, worker)
        assert worker.done
    keys = [read.partition(": ")[2] for read in world.reads() if read.startswith("keys")]
    assert keys == ["0 1 2", "3 4 5", "6 7"]


def test_a_table_with_a_chunk_in_a_dead_snapshot_is_not_healed_in_one_it_was_read_in(world: World) -> None:
    world.start()
    world.capture()
    cut_at(world, "read s.a/2")
    lose_snapshots(world)
    with closing(worker := world.worker()):
        go_on(world, worker)
    chunks = world.chunks().of(A)
    assert chunks.manifests[HEAL].snapshot > max(chunks.snapshots())


def test_a_keyless_table_that_would_need_healing_begins_again(world: World) -> None:
    world.db.tables[A] = table(A, keyed=False)
    world.start()
    world.capture()
    cut_at(world, "read s.a/2")
    lose_snapshots(world)
    with closing(worker := world.worker()):
        go_on(world, worker)
        assert worker.done
        assert worker.restarts == 1
    assert ("a", 1, rules.ALONE) in plans(world)
    chunks = world.chunks().of(A)
    assert chunks.plan is not None and chunks.plan.generation == 1
    assert len(chunks.snapshots()) == 1 and not chunks.healed
    assert world.loaded(A) == world.db.rows[A]


def test_a_keyless_table_all_of_whose_chunks_became_final_in_two_snapshots_begins_again(world: World) -> None:
    """Two workers may each have opened another one."""
    world.db.tables[B] = table(B, keyed=False)
    world.db.chunks[B] = 2
    world.start()
    world.capture()
    cut_at(world, "read s.b/1")
    first = world.chunks().of(B).manifests[0]
    lose_snapshots(world)
    while len(world.chunks().snapshots) == 1:
        world.holder.step()
    second = replace(first, chunk=1, snapshot=max(world.chunks().snapshots))
    with world.log.writer("control") as writer:
        writer.put(TOPICS.chunks, encode_control(second))
    with closing(worker := world.worker()):
        go_on(world, worker)
        assert worker.done
    assert ("b", 1, rules.ALONE) in plans(world)
    assert world.loaded(B) == world.db.rows[B]


def test_a_snapshot_that_can_not_be_opened_is_left_for_the_next(world: World) -> None:
    world.start()
    world.capture()
    (taken,) = world.chunks().snapshots.values()
    world.db.alive.clear()
    with closing(worker := world.worker()):
        world.settle(worker)
        assert not worker.step()
        assert world.db.log.count(f"open {taken.name}") == 1
        world.later(10)
        world.settle(world.holder, worker)
        world.capture()
        world.settle(world.holder, worker)
        assert worker.done
    assert world.loaded(A) == world.db.rows[A]


def test_a_snapshot_that_could_not_be_opened_but_is_held_is_tried_again(world: World) -> None:
    world.start()
    world.capture()
    world.db.failing = fails_once("open", SnapshotLost("a hiccup"))
    with closing(worker := world.worker()):
        world.settle(world.holder, worker)
        assert not worker.done
        assert len(world.chunks().snapshots) == 1
        world.later(loop.ASIDE_SECONDS)
        world.settle(world.holder, worker)
        assert worker.done


def test_a_snapshot_that_lacks_what_the_stream_leaves_out_is_not_read_in(world: World) -> None:
    """As a holder that lost its claim might still publish one, taken before the slot."""
    world.start()
    world.capture()
    old = world.db.snapshot()
    with world.log.writer("control") as writer:
        writer.put(TOPICS.chunks, encode_control(SnapshotTaken(old.name, 90, 101, (95,), 1000, 0, 0)))
    with closing(worker := world.worker()):
        world.settle(worker)
    assert all(read.endswith("snapshot-1") for read in world.reads())


# ------------------------------------------------------------------------------------------------------ moved rows


def test_a_table_that_is_rewritten_while_it_is_read_begins_again_in_a_newer_snapshot(world: World) -> None:
    world.start()
    world.capture()

    def rewrite(call: str) -> None:
        if call == "row of s.a/2" and world.db.node[A] == "1":
            world.db.node[A] = "2"

    world.db.failing = rewrite
    with closing(worker := world.worker()):
        go_on(world, worker)
        assert worker.done and world.holder.done
        assert worker.restarts == 1
    assert [p for p in plans(world) if p[0] == "a"] == [("a", 0, ""), ("a", 1, f"{rules.REWRITTEN} while it was read")]
    chunks = world.chunks().of(A)
    (used,) = chunks.snapshots()
    assert used > chunks.plan_offset
    assert world.loaded(A) == world.db.rows[A]
    assert world.chunks().of(B).plan.generation == 0  # type: ignore[union-attr]


def test_a_table_that_was_rewritten_before_it_was_planned_is_not_read_in_the_old_snapshot(world: World) -> None:
    """Plan and present agree, yet the snapshot would show other rows, or none."""
    world.start()
    world.capture()
    world.db.node[A] = "2"
    with closing(worker := world.worker()):
        go_on(world, worker)
        assert worker.done
    assert not [read for read in world.reads() if read.startswith("read s.a") and read.endswith("snapshot-1")]
    assert [p[:2] for p in plans(world)] == [("a", 0), ("b", 0), ("a", 1)]
    assert world.loaded(A) == world.db.rows[A]


def test_a_table_that_is_rewritten_again_and_again_begins_as_often(world: World) -> None:
    world.start()
    world.capture()
    times = iter(["2", "3", "4"])

    def rewrite(call: str) -> None:
        if call.startswith("read s.a/0"):
            world.db.node[A] = next(times, "4")

    world.db.failing = rewrite
    with closing(worker := world.worker()):
        for _ in range(8):
            world.settle(world.holder, worker)
            world.capture()
        world.settle(world.holder, worker)
        assert worker.done
    assert [p[1] for p in plans(world) if p[0] == "a"] == [0, 1, 2, 3]
    assert world.loaded(A) == world.db.rows[A]


def test_what_is_pending_of_a_generation_that_was_given_up_never_becomes_final(world: World) -> None:
    world.start()
    with closing(worker := world.worker()):
        world.settle(worker)
        assert worker.pending == 5
        with world.log.writer("control") as writer:
            plan = world.chunks().of(A).plan
            assert plan is not None
            again = Plan("s", "a", 1, plan.schema_id, plan.chunks, ("1",), "rewritten elsewhere")
            writer.put(TOPICS.chunks, encode_control(again))
        world.capture()
        world.settle(worker)
        assert {m.generation for m in manifests(world) if m.table_name == "a"} <= {1}


def test_a_table_that_others_have_completed_is_not_given_up(world: World) -> None:
    """A worker that reads what is final already must not begin the table again, whatever it sees."""
    world.start()
    world.capture()
    with closing(late := world.worker(1)):
        while late.table != "s.a":
            late.step()
        with closing(worker := world.worker(0)):
            worker.step()
            assert worker._views is not None
            worker._views.membership.poll = lambda: frozenset(range(64))  # type: ignore[method-assign]
            world.settle(worker)
            assert worker.done
        world.db.node[A] = "2"
        world.settle(late)
        assert late.done
    assert [p for p in plans(world) if p[0] == "a"] == [("a", 0, "")]


def test_a_table_that_was_rewritten_before_it_is_healed_begins_again(world: World) -> None:
    world.start()
    world.capture()
    cut_at(world, "read s.a/2")
    lose_snapshots(world)
    with closing(worker := world.worker()):
        world.settle(world.holder, worker)
        world.capture()
        world.settle(world.holder, worker)
        assert world.chunks().of(A).needs_healing()
        world.db.node[A] = "2"
        for _ in range(4):
            world.capture()
            world.settle(world.holder, worker)
        assert worker.done
    assert world.chunks().of(A).plan.generation >= 1  # type: ignore[union-attr]
    assert world.loaded(A) == world.db.rows[A]


def test_a_table_that_was_truncated_since_it_was_read_is_not_healed_but_begins_again(world: World) -> None:
    world.start()
    world.capture()
    cut_at(world, "read s.a/2")
    lose_snapshots(world)
    with closing(worker := world.worker()):
        world.settle(world.holder, worker)
        world.capture()
        world.settle(world.holder, worker)
        truncated = world.change(A, Op.TRUNCATE, "")
        world.capture(truncated)
        for _ in range(4):
            world.settle(world.holder, worker)
            world.capture()
        world.settle(world.holder, worker)
        assert worker.done
    assert ("a", 1, f"{rules.REWRITTEN}: it was truncated") in plans(world)


def test_a_table_that_was_dropped_is_loaded_empty(world: World) -> None:
    world.start()
    world.capture()
    world.db.node[A] = GONE
    with closing(worker := world.worker()):
        for _ in range(3):
            for held in world.db.seen_node.values():
                if held is not world.db.seen_node["snapshot-1"]:
                    held[A] = GONE
            world.settle(world.holder, worker)
            world.capture()
        world.settle(world.holder, worker)
        assert worker.done
    assert world.loaded(A) == {}
    assert not [read for read in world.reads() if read.startswith("read s.a")]


# ------------------------------------------------------------------------------------------------------ bad tables


def test_a_table_that_can_not_be_read_stops_no_other(world: World) -> None:
    world.start()
    world.capture()
    error = PermissionMissing("no select on s.a")

    def refuse(call: str) -> None:
        if call.startswith("read s.a"):
            raise error

    world.db.failing = refuse
    with closing(worker := world.worker()):
        world.settle(worker)
        world.later(loop.ASIDE_SECONDS)
        with pytest.raises(PermissionMissing):
            world.settle(worker)
    assert world.chunks().of(B).complete()
    assert not world.chunks().of(A).manifests
    assert worker.problems == {"s.a": error}


@pytest.mark.parametrize("mode", ["load", "load-and-changes"])
def test_a_table_with_a_row_that_can_not_be_read_is_given_up_until_it_is_asked_for(mode: str) -> None:
    world = World(table(A), table(B), mode=mode)
    world.db.rows[A], world.db.rows[B] = {"1": "x"}, {"1": "x"}
    world.start()
    world.capture()
    world.db.failing = fails_once("row of s.a", ValueUnsupported("bad", remedy="mend it"))
    with closing(world.holder, worker := world.worker()):
        world.settle(world.holder, worker)
        assert worker.done == world.holder.done == (mode == "load")
        given_up = world.chunks().of(A).given_up
        assert given_up is not None and given_up.cause == "bad" and given_up.remedy.startswith("mend it; then ")
        assert ("penstock reload" in given_up.remedy) == (mode == "load-and-changes")
        assert not world.chunks().of(A).complete() and world.chunks().of(B).complete()
        assert len(world.reads()) == 2 and world.holder.held == ()
        if mode == "load":
            return
        with world.log.writer("control") as writer:
            writer.put(TOPICS.chunks, encode_control(Command(CommandKind.RELOAD, *A, "", "", "me", 0)))
        world.settle(world.holder, worker)
        world.capture()
        world.settle(world.holder, worker)
    assert world.chunks().of(A).complete()
    assert world.loaded(A) == {"1": "x"}


def test_a_table_that_could_not_be_read_is_tried_again_while_others_are_not_complete(world: World) -> None:
    world.start()
    world.db.failing = fails_once("read s.a", PermissionMissing("not yet"))
    with closing(worker := world.worker()):
        world.settle(worker)  # nothing is final yet, so B is not complete
        assert set(worker.problems) == {"s.a"}
        world.later(loop.ASIDE_SECONDS)
        world.settle(worker)
        world.capture()
        world.settle(worker)
        assert worker.done
        assert worker.problems == {}
    assert world.loaded(A) == world.db.rows[A]


def test_a_reader_is_closed_after_every_failure(world: World) -> None:
    made: list[ScriptedReader] = []

    def make() -> ScriptedReader:
        made.append(ScriptedReader(world.db))
        return made[-1]

    world.start()
    world.capture()
    world.db.failing = fails_once("row of s.a/1", PermissionMissing("not yet"))
    worker = SnapshotWorker(world.log, TOPICS, make, 0, clock=world.clock)
    with closing(worker):
        world.settle(worker)
        world.later(loop.ASIDE_SECONDS)
        world.settle(worker)
        assert worker.done
    assert len(made) == 2
    assert all(reader.closed for reader in made)


def test_there_are_only_so_many_workers(world: World) -> None:
    with pytest.raises(ValueError, match="at most 16"):
        world.worker(16)


def test_a_table_that_is_asked_for_before_it_was_ever_planned_is_not_read_again() -> None:
    world = World(table(A), mode="load-and-changes")
    world.db.rows[A] = {"1": "x"}
    world.start()
    with world.log.writer("control") as writer:  # as one that was added while all runs
        writer.put(TOPICS.chunks, encode_control(Command(CommandKind.RELOAD, *A, "", "", "me", 0)))
    with closing(world.holder, worker := world.worker()):
        world.settle(world.holder, worker)
        world.capture()
        world.settle(world.holder, worker)
        assert world.chunks().of(A).complete()
        assert worker.restarts == 0


def test_a_table_is_read_anew_when_somebody_asks_for_it_long_after_the_load() -> None:
    world = World(table(A), table(B), mode="load-and-changes")
    world.db.rows[A] = {"1": "x"}
    world.start()
    world.capture()
    with closing(world.holder, worker := world.worker()):
        world.settle(world.holder, worker)
        assert not worker.done and not world.holder.done
        assert world.holder.held == () and world.chunks().of(A).complete()
        world.db.rows[A] = {"1": "x", "2": "y"}
        before = len(world.reads())
        with world.log.writer("control") as writer:
            asked = writer.put(TOPICS.chunks, encode_control(Command(CommandKind.RELOAD, *A, "", "", "me", 0)))
        world.settle(world.holder, worker)
        world.capture()
        world.settle(world.holder, worker)
        again = world.chunks().of(A)
        assert again.plan is not None and again.plan.generation == 2  # 1 is the command's own
        assert again.complete() and min(again.snapshots()) > asked
        assert world.loaded(A) == {"1": "x", "2": "y"}
        assert {call.split()[1] for call in world.reads()[before:]} == {"s.a/0"}
        assert world.holder.held == ()


@pytest.mark.parametrize("part", [False, True])
def test_a_snapshot_that_was_taken_before_somebody_asked_does_not_count_for_it_though_it_was_told_later(
    part: bool,
) -> None:
    """A holder that stalls in between: of a table that was published meanwhile the stream does not tell the rest."""
    world = World(table(A), table(B), mode="load-and-changes")
    world.db.rows[A] = {"1": "x"}
    world.start()
    world.capture()
    with closing(world.holder, worker := world.worker()):
        world.settle(world.holder, worker)
        schema_id = world.version(A).schema_id
        asked = Command(CommandKind.RELOAD, *A, "t", "1", "me", 0, 1, schema_id) if part else None

        def stalled(call: str) -> None:
            if call == "announce":
                world.db.failing = lambda call: None
                world.db.rows[A] = {"1": "y"}
                added = Chosen((schema_id, world.version(B).schema_id), (Name(*A),), (), "me", 0, 0)
                with world.log.writer("control") as writer:
                    writer.put(TOPICS.chunks, encode_control(asked or added))

        with world.log.writer("control") as writer:
            writer.put(TOPICS.chunks, encode_control(Command(CommandKind.RELOAD, *B, "", "", "me", 0)))
        world.db.failing = stalled
        go_on(world, worker)
        assert world.chunks().of(A).settled()
        (again,) = [call for call in world.reads() if "s.a" in call][1:]
        assert "in snapshot-3" in again


def test_what_was_read_before_somebody_asked_for_a_new_load_does_not_count_for_it() -> None:
    world = World(table(A), mode="load-and-changes")
    world.start()
    with closing(world.holder, worker := world.worker()):
        world.settle(world.holder, worker)
        old = world.chunks()
        plan = old.of(A).plan
        assert plan is not None
        with world.log.writer("control") as writer:
            writer.put(TOPICS.chunks, encode_control(Command(CommandKind.RELOAD, *A, "", "", "me", 0)))
            # Of somebody who has not seen the command: neither a plan in the next generation, nor a chunk, counts.
            writer.put(TOPICS.chunks, encode_control(replace(plan, generation=1)))
        assert world.chunks().of(A).outdated
        world.capture()
        world.settle(world.holder, worker)
        world.capture()
        world.settle(world.holder, worker)
        state = world.chunks().of(A)
        assert state.complete() and state.plan is not None and state.plan.generation == 2


def test_what_is_pending_of_an_earlier_plan_does_not_keep_a_chunk_of_the_next_from_being_read() -> None:
    world = World(table(A), mode="load-and-changes")
    world.start()
    with closing(world.holder, worker := world.worker()):
        world.settle(world.holder, worker)
        with world.log.writer("control") as writer:
            writer.put(TOPICS.chunks, encode_control(Command(CommandKind.RELOAD, *A, "", "", "me", 0)))
        world.settle(world.holder, worker)
        assert worker.pending == 1 and not world.chunks().of(A).outdated  # capture has not passed the first snapshot
        world.capture()
        world.settle(world.holder, worker)
        assert world.chunks().of(A).complete()
