"""The budget of the source's log: when people are told, what is predicted, and when the slot is let go."""

from __future__ import annotations

import pytest

from control.retention import REMIND_SECONDS, Retention
from control.trend import Trend
from engines.postgres.retention import Retained
from schemas.errors import PositionLost
from schemas.events import EventKind
from schemas.pipeline import AtBudget

GB = 10**9


class FakeSlot:
    def __init__(self) -> None:
        self.found: Retained | None = Retained(0, 0)
        self.open: list[str] = []
        self.let_go = ""
        self.looks = 0

    def retained(self) -> Retained | None:
        self.looks += 1
        return self.found

    def holders(self) -> list[str]:
        return self.open

    def release(self, why: str) -> PositionLost:
        self.let_go, self.found = why, None
        return PositionLost(f"let go: {why}", remedy="load again")

    def released(self) -> PositionLost | None:
        return PositionLost(f"let go: {self.let_go}", remedy="load again") if self.let_go else None

    def close(self) -> None:
        self.found = None


class World:
    def __init__(self, policy: AtBudget = AtBudget.WARN) -> None:
        self.slot, self.now = FakeSlot(), 1000.0
        self.told: list[tuple[EventKind, str]] = []
        self.loop = Retention(
            self.slot,
            10 * GB,
            policy,
            lambda kind, text, remedy: self.told.append((kind, text)),
            clock=lambda: self.now,
            sleep=self.sleep,
        )

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def look(self, size: float, behind: float | None = None) -> None:
        """Let the loop look, at least a second after the last time."""
        self.slot.found = Retained(int(size * GB), int((size if behind is None else behind) * GB))
        self.now += 1
        while not self.loop.step():
            self.loop.wait(60)

    def kinds(self) -> list[EventKind]:
        return [kind for kind, _ in self.told]


def test_people_are_told_before_it_is_full_and_when_it_is_well_again(caplog: pytest.LogCaptureFixture) -> None:
    world = World()
    for _ in range(5):
        world.look(2.0)
    assert world.told == [] and "wal_full_seconds" not in world.loop.metrics()
    world.look(7.6)
    assert world.kinds() == [EventKind.WARNING]
    assert "keeps 7.6 GB of its log for us, wal-budget is 10.0 GB, full in about " in world.told[0][1]
    assert "capture has not taken the last 7.6 GB" in world.told[0][1]
    assert world.loop.metrics()["wal_retained_bytes"] == 7_600_000_000
    world.look(7.7)
    assert len(world.told) == 1
    world.look(11)
    assert world.kinds() == [EventKind.WARNING] * 2 and world.slot.let_go == ""
    for size in (9.9, 10.1, 9.9, 10.1):
        world.look(size)
    assert len(world.told) == 2
    world.look(0.1)
    assert world.kinds()[-1] is EventKind.NOTICE
    assert len(caplog.records) == 3


def test_what_will_soon_be_full_is_told_while_there_is_still_much_room() -> None:
    world = World()
    world.look(2.6)
    assert world.told == []
    world.look(2.7)
    ((kind, text),) = world.told
    assert kind is EventKind.WARNING and "full in about " in text
    assert world.loop.metrics()["wal_full_seconds"] == pytest.approx(73, rel=0.4)
    slow = World()
    for _ in range(20):
        slow.look(2.6)
    slow.look(2.6 + 1e-9)
    assert slow.told == []


def test_whoever_holds_it_is_named() -> None:
    world = World()
    world.slot.open = ["process 7 (user app), in a transaction since yesterday"]
    world.look(8, behind=0.1)
    assert "process 7 (user app), in a transaction since yesterday" in world.told[0][1]


def test_people_are_reminded_while_it_is_full(caplog: pytest.LogCaptureFixture) -> None:
    world = World()
    began = world.now
    while world.now < began + 3 * REMIND_SECONDS:
        world.look(12)
    assert 3 <= len(caplog.records) <= 4
    assert len(world.told) == 1  # events are for what changes


def test_it_is_looked_at_more_often_as_it_fills_and_seldom_when_nothing_happens() -> None:
    world = World()
    for _ in range(10):
        world.look(1.0)
    began, looks = world.now, world.slot.looks
    while world.now < began + 100:
        world.loop.wait(60)
        world.loop.step()
    assert world.slot.looks - looks <= 101
    # A tenth of what is left, at 500 MB a second: the budget is met within one look.
    for size in range(10):
        world.look(1 + size)
    assert world.loop._look_at - world.now <= 0.5


def test_at_the_limit_the_slot_is_let_go_if_that_is_the_policy() -> None:
    world = World(AtBudget.RELEASE)
    world.look(9.9)
    assert world.slot.let_go == ""
    with pytest.raises(PositionLost, match=r"kept 10\.1 GB of its log for it, wal-budget is 10\.0 GB") as caught:
        world.look(10.1)
    assert caught.value.remedy
    assert world.kinds() == [EventKind.WARNING]  # what stops a service is told by who runs it
    world.now += 10
    with pytest.raises(PositionLost):
        world.loop.step()


def test_a_slot_that_is_not_there_yet_is_waited_for() -> None:
    world = World(AtBudget.RELEASE)
    world.slot.found = None
    assert world.loop.step()
    assert not world.loop.step()
    assert world.loop.metrics() == {"wal_retained_bytes": 0, "wal_budget_bytes": 10 * GB}


def test_a_trend_needs_two_looks_and_forgets_the_older_ones() -> None:
    trend = Trend()
    trend.add(0, 0)
    assert trend.seconds_to(100) is None
    trend.add(10, 50)
    assert trend.seconds_to(100) == 10
    for at in range(20, 200, 10):
        trend.add(at, 60)
    assert trend.seconds_to(100) is None
    trend.add(201, 100)
    assert trend.seconds_to(100) == 0
