"""Which snapshot may serve what, and who does which work."""

from __future__ import annotations

import pytest

from schemas.frontier import HEAL, Chunk, Manifest, Plan, Setup, SnapshotTaken
from schemas.table import TableId
from snapshot import rules
from transport.views import TableChunks

T = TableId("s", "t")
SETUP = Setup("1", "slot", (), 0, 100, 100, (), "", "load-and-changes", 0)


def taken(xmax: int, *xip: int) -> SnapshotTaken:
    return SnapshotTaken("n", min(xip, default=xmax), xmax, xip, 0, 0, 0)


def state(*used: int, missing: int = 0, generation: int = 0, cause: str = "", plan_offset: int = 0) -> TableChunks:
    """A table whose chunks were read in these snapshots, one each, and some of which are missing."""
    found = TableChunks()
    chunks = tuple(Chunk(n, "s", "t", "", "", 0) for n in range(len(used) + missing))
    found.plan = Plan("s", "t", generation, 64, chunks, (), cause)
    found.plan_offset = plan_offset
    for n, snapshot in enumerate(used):
        found.manifests[n] = Manifest("s", "t", generation, n, snapshot, "", 0, 0, 0, 0, 0)
    return found


@pytest.mark.parametrize("workers", [2, 3, 4, 5, 8])
@pytest.mark.parametrize("share", ["dealt", "in ranges"])
def test_the_chunks_of_a_table_are_spread_over_the_workers(workers: int, share: str) -> None:
    for name in ("t", "orders", "a much longer name", "ü"):
        counts = [0] * workers
        for chunk in range(3 * workers):
            work = rules.work_of_chunk(TableId("public", name), chunk)
            counts[work % workers if share == "dealt" else work * workers // 64] += 1
        assert max(counts) <= 3 + 2, f"{name}: {counts}"


def test_a_table_stays_in_the_snapshot_it_was_read_in_as_long_as_that_lives() -> None:
    snapshots = {0: taken(100), 5: taken(120)}
    assert rules.for_chunk(state(0, missing=1), snapshots, SETUP, lambda n: True) == 0
    assert rules.for_chunk(state(0, missing=1), snapshots, SETUP, lambda n: n == 5) == 5
    assert rules.for_chunk(state(missing=1), snapshots, SETUP, lambda n: True) == 5
    assert rules.for_chunk(state(missing=1), snapshots, SETUP, lambda n: False) is None


def test_a_snapshot_that_lacks_what_the_stream_leaves_out_serves_nothing() -> None:
    """The slot's own snapshot may see a commit that no ordinary one sees yet, and which is not in the stream."""
    snapshots = {0: taken(105, 99)}
    assert rules.for_chunk(state(missing=1), snapshots, SETUP, lambda n: True) is None
    assert rules.wants_newer(state(missing=1), True, snapshots, SETUP, lambda n: True)


def test_a_table_is_healed_in_a_snapshot_newer_than_all_it_was_read_in() -> None:
    snapshots = {0: taken(100), 5: taken(120), 9: taken(130)}
    both = state(0, 5)
    assert both.needs_healing()
    assert rules.for_healing(both, snapshots, SETUP, lambda n: True) == 9
    assert rules.for_healing(both, snapshots, SETUP, lambda n: n != 9) is None
    assert rules.wants_newer(both, True, snapshots, SETUP, lambda n: n != 9)
    assert not rules.wants_newer(both, True, snapshots, SETUP, lambda n: True)


def test_a_table_is_healed_only_in_a_snapshot_that_sees_all_it_was_read_with() -> None:
    """Transaction 110 was seen by the second; not to see it in the last would take it back."""
    snapshots = {0: taken(100), 5: taken(120), 9: taken(130, 110)}
    assert rules.for_healing(state(0, 5), snapshots, SETUP, lambda n: True) is None


def test_a_keyless_table_needs_no_snapshot_to_be_healed_in() -> None:
    assert not rules.wants_newer(state(0, 5), False, {0: taken(100), 5: taken(120)}, SETUP, lambda n: True)


def test_a_healed_table_needs_nothing() -> None:
    healed = state(0, 5)
    healed.manifests[HEAL] = Manifest("s", "t", 0, HEAL, 9, "", 0, 0, 0, 0, 0)
    assert not rules.wants_newer(healed, True, {}, SETUP, lambda n: False)


def test_a_rewritten_table_needs_a_snapshot_taken_after_it_was_planned_again() -> None:
    snapshots = {0: taken(100), 8: taken(130)}
    again = state(missing=1, generation=1, cause=f"{rules.REWRITTEN} since", plan_offset=5)
    assert rules.wants_newer(again, True, snapshots, SETUP, lambda n: n == 0)
    assert not rules.wants_newer(again, True, snapshots, SETUP, lambda n: True)
    alone = state(missing=1, generation=1, cause=rules.ALONE, plan_offset=5)
    assert not rules.wants_newer(alone, False, snapshots, SETUP, lambda n: n == 0)


def test_a_table_that_nobody_planned_needs_any_snapshot() -> None:
    assert rules.wants_newer(TableChunks(), True, {0: taken(100)}, SETUP, lambda n: False)
    assert not rules.wants_newer(TableChunks(), True, {0: taken(100)}, SETUP, lambda n: True)
