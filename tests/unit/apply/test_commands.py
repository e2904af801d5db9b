"""What commands make of a table, and that it is told."""

from __future__ import annotations

from dataclasses import replace

import pytest

from apply.commands import is_due, obeyed
from apply.target import NOWHERE, Progress, TableProgress
from apply.telling import StateTeller
from schemas.events import Event, EventKind
from schemas.frontier import Command, CommandKind
from schemas.states import STOPPED, TableState
from schemas.table import TableId
from transport.events import Teller, told
from transport.memory import MemoryLog
from transport.topics import Topics
from transport.views import Issued

A = TableId("public", "a")
PLACE = Progress(50, 3, 500)
LIVE = TableProgress(A, 0, TableState.LIVE, generation=2, progress=Progress(20, 3, 200), snapshot=1, rows=7)
FAILED = replace(LIVE, state=TableState.FAILED, stopped_in="live", error="E: x", remedy="mend it", progress=PLACE)


def issued(kind: CommandKind, offset: int = 9, target: str = "") -> Issued:
    generation = 5 if kind is CommandKind.RELOAD else -1
    return Issued(offset, Command(kind, *A, target, "", "somebody", 0), generation)


@pytest.mark.parametrize("state", sorted(set(TableState) - STOPPED))
def test_a_table_is_paused_at_its_place_and_goes_on_there(state: TableState) -> None:
    paused = obeyed(issued(CommandKind.PAUSE), replace(LIVE, state=state), PLACE)
    assert (paused.state, paused.stopped_in, paused.progress, paused.command) == ("paused", state, PLACE, 9)
    goes_on = obeyed(issued(CommandKind.RESUME, 10), paused, NOWHERE)
    wanted = TableState.CATCHING_UP if state is TableState.LIVE else state
    assert goes_on == replace(LIVE, state=wanted, progress=PLACE, command=10)


def test_a_failed_table_can_be_paused_with_its_error_and_resumed_without_it() -> None:
    paused = obeyed(issued(CommandKind.PAUSE), FAILED, PLACE)
    assert paused == replace(FAILED, state=TableState.PAUSED, command=9)
    for stopped in (FAILED, paused):
        goes_on = obeyed(issued(CommandKind.RESUME, 10), stopped, PLACE)
        assert (goes_on.state, goes_on.error, goes_on.remedy, goes_on.stopped_in) == ("catching-up", "", "", "")


def test_what_a_live_table_lacks_is_tried_again_when_it_is_resumed() -> None:
    lacking = replace(LIVE, tied=True, error="no such role", remedy="create it")
    assert obeyed(issued(CommandKind.RESUME), lacking, PLACE) == replace(LIVE, tied=False, command=9)


def test_what_has_nothing_to_do_is_carried_out_all_the_same() -> None:
    assert obeyed(issued(CommandKind.RESUME), LIVE, PLACE) == replace(LIVE, command=9)
    skipped = obeyed(issued(CommandKind.SKIP), FAILED, PLACE)
    assert (skipped.state, skipped.error, skipped.stopped_in) == ("skipped", "", "live")
    for kind in (CommandKind.PAUSE, CommandKind.RESUME, CommandKind.SKIP):
        assert obeyed(issued(kind, 10), skipped, PLACE) == replace(skipped, command=10)


@pytest.mark.parametrize("state", ["live", "failed", "paused", "skipped", "catching-up", "loading"])
def test_whatever_was_begun_is_loaded_anew_in_a_generation_that_no_plan_has(state: str) -> None:
    stopped_in = "live" if state in {"failed", "paused", "skipped"} else ""
    before = replace(FAILED, state=TableState(state), stopped_in=stopped_in)
    after = obeyed(issued(CommandKind.RELOAD), before, PLACE)
    assert (after.state, after.generation, after.progress, after.snapshot) == ("loading", 5, NOWHERE, -1)
    assert (after.error, after.stopped_in, after.rows, after.command) == ("", "", 0, 9)


@pytest.mark.parametrize("state", ["waiting", "failed", "paused", "skipped", "dropped"])
def test_what_is_not_there_on_the_target_is_made_first(state: str) -> None:
    before = TableProgress(A, 0, TableState(state), stopped_in="" if state in {"waiting", "dropped"} else "waiting")
    after = obeyed(issued(CommandKind.RELOAD), before, NOWHERE)
    assert (after.state, after.generation, after.stopped_in) == ("waiting", -1, "")


@pytest.mark.parametrize("stopped", [FAILED, replace(FAILED, state=TableState.PAUSED, stopped_in="catching-up")])
def test_a_part_is_loaded_only_where_the_table_stopped_when_it_was_asked_for(stopped: TableProgress) -> None:
    asked = Command(CommandKind.RELOAD, *A, "copy", "id > 1", "somebody", 0, PLACE.offset, stopped.schema_id)
    loading = obeyed(Issued(9, asked, 5), stopped, NOWHERE)
    assert (loading.state, loading.generation, loading.progress, loading.error) == ("loading", 5, PLACE, "")
    others = [
        replace(stopped, progress=Progress(51, 3, 501)),
        replace(stopped, schema_id=66),
        replace(stopped, stopped_in="loading"),
        replace(stopped, state=TableState.SKIPPED),
        replace(LIVE, progress=PLACE),
    ]
    for other in others:
        assert obeyed(Issued(9, asked, 5), other, NOWHERE) == replace(other, command=9)


def test_a_command_is_due_once_and_for_its_target() -> None:
    assert is_due(issued(CommandKind.SKIP), LIVE, "t")
    assert is_due(issued(CommandKind.SKIP, target="t"), LIVE, "t")
    assert not is_due(issued(CommandKind.SKIP, target="other"), LIVE, "t")
    assert not is_due(issued(CommandKind.SKIP), replace(LIVE, command=9), "t")


class World:
    def __init__(self) -> None:
        self.topics, self.log = Topics("p"), MemoryLog("p")
        self.log.create_topics(self.topics.fixed())
        self.teller = Teller(self.log, self.topics, "apply-t", lambda: 7.0)

    def states(self) -> StateTeller:
        with self.log.reader() as reader:
            return StateTeller(self.teller, self.log, reader, self.topics, "t")

    def events(self) -> list[Event]:
        self.teller.flush()
        with self.log.reader() as reader:
            return [event for _, event in told(reader, self.topics, 0)]


def recall(states: StateTeller, *tables: TableProgress) -> None:
    while states.recall(lambda: tables):
        pass


def test_what_a_slow_worker_told_late_is_put_right() -> None:
    world = World()
    states = world.states()
    recall(states)
    states.note(LIVE)
    recall(states, LIVE)
    late = Teller(world.log, world.topics, "apply-t")
    late.tell(EventKind.STATE, "is loading", table=A, target="t", state="loading")
    late.flush()
    recall(states, LIVE)
    recall(states, LIVE)
    assert [event.state for event in world.events()] == ["live", "loading", "live"]


def test_every_change_of_state_is_told_once() -> None:
    world = World()
    states = world.states()
    states.note(replace(LIVE, state=TableState.LOADING))
    states.note(LIVE)
    assert world.events() == []  # nobody knows yet whether it is news
    recall(states)
    states.note(LIVE)
    states.note(FAILED)
    assert [(event.kind, event.state, event.text, event.remedy) for event in world.events()] == [
        (EventKind.STATE, "loading", "is loading", ""),
        (EventKind.STATE, "live", "is live", ""),
        (EventKind.ERROR, "failed", "has failed: E: x", "mend it"),
    ]


def test_what_a_worker_that_died_did_not_tell_its_successor_tells() -> None:
    world = World()
    states = world.states()
    recall(states)
    states.note(replace(LIVE, state=TableState.LOADING))
    world.events()
    states.note(LIVE)
    world.teller = Teller(world.log, world.topics, "apply-t")  # the first one died with what it had not written
    after = world.states()
    after.note(LIVE)
    recall(after)
    assert [event.state for event in world.events()] == ["loading", "live"]


def test_when_older_events_are_forgotten_the_rest_is_read() -> None:
    world = World()
    for number in range(3):
        world.teller.tell(EventKind.STATE, "is live", table=TableId("public", str(number)), target="t", state="live")
    world.teller.flush()
    world.log.trim(world.topics.events, 2)
    states = world.states()
    recall(states)
    states.note(replace(LIVE, table=TableId("public", "2")))
    states.note(replace(LIVE, table=TableId("public", "0")))
    world.teller.flush()
    with world.log.reader() as reader:
        assert [event.table for _, event in told(reader, world.topics, 2)] == ["public.2", "public.0"]
