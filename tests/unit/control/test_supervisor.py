"""The supervisor, with real processes: restarts, stops, who may end what."""

import itertools
import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from control.service import Backoff, Exit, StopSignal
from control.supervisor import Service, Supervisor, Vital, current_beat, current_stop, only_one
from schemas.errors import LogRewound, OperatorError, PositionLost


def until_stopped() -> int:
    stop = current_stop()
    while not stop:
        stop.wait(10)
    return 0


def wait_for(path: Path) -> int:
    while not path.exists():
        time.sleep(0.001)
    return 0


def counted(path: Path, then: Callable[[int], int]) -> Callable[[], int]:
    """A service that counts its starts in a file."""

    def run() -> int:
        with path.open("a") as file:
            file.write(f"{os.getpid()}\n")
        return then(len(path.read_text().splitlines()))

    return run


def supervise(
    *services: Service, bounded: bool = False, pids: Path | None = None
) -> tuple[Exit, Supervisor, list[str]]:
    said: list[str] = []
    supervisor = Supervisor(list(services), bounded=bounded, pids=pids, say=said.append)
    return supervisor.run(), supervisor, said


def test_when_all_services_are_done_so_is_the_supervisor() -> None:
    code, supervisor, _ = supervise(Service("a", lambda: 0), Service("b", lambda: 0))
    assert code is Exit.DONE
    assert not supervisor.complete


def test_a_service_that_crashed_is_started_again(tmp_path: Path) -> None:
    starts = tmp_path / "starts"
    code, _, said = supervise(Service("a", counted(starts, lambda n: 1 if n < 3 else 0)))
    assert code is Exit.DONE
    assert len(set(starts.read_text().splitlines())) == 3
    assert "started again" in said[0]


def test_a_step_that_goes_on_and_on_is_told_but_not_again_and_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("control.supervisor._LOOK_SECONDS", 0.01)
    told, later = tmp_path / "told", tmp_path / "later"
    said: list[str] = []

    def say(text: str) -> None:
        said.append(text)
        told.touch()

    def one_long_step() -> int:
        current_beat()(time.monotonic() - 100.0)
        return wait_for(later)

    def many_steps() -> int:
        looks = 30
        while looks:
            current_beat()(time.monotonic())
            time.sleep(0.01)
            looks -= told.exists()
        later.touch()
        return 0

    services = Service("slow", one_long_step), Service("quick", many_steps), Service("without", lambda: wait_for(later))
    assert Supervisor(list(services), bounded=False, say=say).run() is Exit.DONE
    [line] = said
    assert "slow has been in one step for 1" in line and "pg_stat_activity" in line


def test_restarts_come_later_and_later(tmp_path: Path) -> None:
    """Only how long it takes at least is certain on a busy machine."""
    starts = tmp_path / "starts"

    def run() -> int:
        with starts.open("a") as file:
            file.write(f"{time.monotonic()}\n")
        return 1 if len(starts.read_text().splitlines()) < 6 else 0

    code, _, said = supervise(Service("a", run))
    assert code is Exit.DONE
    at = [float(line) for line in starts.read_text().splitlines()]
    pauses = [later - earlier for earlier, later in itertools.pairwise(at)]
    least = [0.0, 0.03, 0.06, 0.12, 0.24]  # three quarters of 40 ms, and twice as long each time
    assert [pause >= bound for pause, bound in zip(pauses, least, strict=True)] == [True] * 5
    assert said == ["penstock: a ended with code 1; it is started again"] * 5


def test_a_service_that_was_killed_is_started_again(tmp_path: Path) -> None:
    def die_once(n: int) -> int:
        if n == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return 0

    code, _, said = supervise(Service("a", counted(tmp_path / "starts", die_once)))
    assert code is Exit.DONE
    assert "SIGKILL" in said[0]


def test_the_judge_ends_it_all(tmp_path: Path) -> None:
    ended = tmp_path / "ended"

    def long() -> int:
        until_stopped()
        ended.write_text("yes")
        return 0

    def judge() -> int:
        return 0

    code, supervisor, _ = supervise(Service("a", long), Service("watch", judge, Vital.JUDGE), bounded=True)
    assert code is Exit.DONE
    assert supervisor.complete
    assert ended.read_text() == "yes"


def refuse() -> int:
    raise PositionLost("the slot is gone", remedy="drop it")


def test_an_essential_service_that_gives_up_ends_it_all() -> None:
    code, supervisor, _ = supervise(Service("capture", refuse), Service("apply", until_stopped))
    assert code is Exit.OPERATOR
    assert [(r.service, r.message, r.remedy) for r in supervisor.refusals] == [
        ("capture", "the slot is gone", "drop it")
    ]


def test_the_others_go_on_without_a_useful_one(tmp_path: Path) -> None:
    """The supervisor is still there to start the second service again after the first gave up."""
    gone = tmp_path / "gone"

    def refuse_and_say() -> int:
        gone.touch()
        return refuse()

    def wait_for_it(n: int) -> int:
        wait_for(gone)
        return 1 if n < 3 else 0

    code, _, said = supervise(
        Service("apply", refuse_and_say, Vital.USEFUL), Service("other", counted(tmp_path / "n", wait_for_it))
    )
    assert code is Exit.OPERATOR
    assert any("the others go on" in line or "the other services go on" in line for line in said)


def refuse_the_log() -> int:
    raise LogRewound("it is another log")


@pytest.mark.parametrize("bounded", [False, True])
def test_what_is_there_is_worked_off_when_what_feeds_the_others_has_stopped(tmp_path: Path, bounded: bool) -> None:
    drained, ended = tmp_path / "drained", tmp_path / "ended"

    def work() -> int:
        until_stopped()
        ended.write_text(str(drained.exists()))
        return 0

    def last() -> int:
        drained.touch()
        return 0

    code, supervisor, said = supervise(
        Service("capture", refuse, Vital.FEEDING),
        Service("apply", work),
        Service("drain", last, Vital.LAST),
        bounded=bounded,
    )
    assert code is Exit.OPERATOR and ended.read_text() == "True"
    assert [(r.service, r.kind) for r in supervisor.refusals] == [("capture", "PositionLost")]
    assert said == [
        "penstock: capture: the slot is gone\n  drop it\n  the others go on until the targets have all that"
        " is in the log"
    ]


def test_a_stop_while_what_is_there_is_worked_off_is_no_good_end(tmp_path: Path) -> None:
    def stop() -> int:
        os.kill(os.getppid(), signal.SIGTERM)
        return until_stopped()

    code, _, _ = supervise(Service("capture", refuse, Vital.FEEDING), Service("drain", stop, Vital.LAST))
    assert code is Exit.OPERATOR


def test_nothing_is_worked_off_that_may_be_wrong(tmp_path: Path) -> None:
    drained = tmp_path / "drained"

    def last() -> int:
        drained.touch()
        return 0

    code, _, _ = supervise(Service("capture", refuse_the_log, Vital.FEEDING), Service("drain", last, Vital.LAST))
    assert code is Exit.OPERATOR and not drained.exists()


def test_in_a_bounded_run_nothing_goes_on_without_a_service() -> None:
    code, _, _ = supervise(Service("apply", refuse, Vital.USEFUL), Service("capture", until_stopped), bounded=True)
    assert code is Exit.OPERATOR


def test_a_service_that_never_lives_ends_a_bounded_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("control.supervisor._CRASHES_IN_A_ROW", 3)
    code, supervisor, _ = supervise(Service("a", lambda: 1), Service("b", until_stopped), bounded=True)
    assert code is Exit.CRASHED
    assert "3 times in a row" in supervisor.refusals[0].message


def test_what_works_for_a_moment_before_each_crash_ends_a_bounded_run_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is started again at once each time, as after a long life."""
    monkeypatch.setattr("control.supervisor._CRASHES_IN_A_ROW", 3)
    supervisor = Supervisor([Service("a", lambda: 1)], bounded=True, say=lambda line: None)
    supervisor._children[0].backoff = Backoff(healthy_after=0.0)
    assert supervisor.run() is Exit.CRASHED
    assert "3 times in a row" in supervisor.refusals[0].message


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_everything(tmp_path: Path, number: signal.Signals) -> None:
    pids = tmp_path / "pids.json"

    def tell() -> int:
        wait_for(pids)
        os.kill(os.getppid(), number)
        return until_stopped()

    code, _, _ = supervise(Service("a", tell), Service("b", until_stopped), pids=pids)
    assert code is Exit.DONE
    assert not pids.exists()


def test_running_processes_stand_in_a_file(tmp_path: Path) -> None:
    pids, seen = tmp_path / "pids.json", tmp_path / "seen"

    def read() -> int:
        wait_for(pids)
        seen.write_text(pids.read_text())
        return 0

    supervise(Service("a", read), pids=pids)
    found = json.loads(seen.read_text())
    assert found["supervisor"] == os.getpid()
    assert set(found) == {"supervisor", "a"}


def test_a_process_that_is_gone_stands_in_the_file_no_longer(tmp_path: Path) -> None:
    """Its number may be another program's by now, and whoever reads the file may want to kill it."""
    pids = tmp_path / "pids.json"

    def wait_for_the_other() -> int:
        deadline = time.monotonic() + 30
        while not pids.exists() or "short" in json.loads(pids.read_text()):
            if time.monotonic() > deadline:
                return 1
            time.sleep(0.001)
        return 0

    services = [Service("short", lambda: 0), Service("long", wait_for_the_other, Vital.JUDGE)]
    code, supervisor, _ = supervise(*services, bounded=True, pids=pids)
    assert code is Exit.DONE
    assert supervisor.complete


def test_a_service_that_ignores_the_stop_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("control.supervisor._STOP_SECONDS", 0.2)
    stop = StopSignal()

    def deaf() -> int:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        os.kill(os.getppid(), signal.SIGTERM)
        while True:
            time.sleep(10)

    began = time.monotonic()
    assert Supervisor([Service("a", deaf)], bounded=False, stop=stop).run() is Exit.DONE
    assert time.monotonic() - began < 10


def test_only_one_supervisor_works_with_a_state_folder(tmp_path: Path) -> None:
    with only_one(tmp_path), pytest.raises(OperatorError, match="another"), only_one(tmp_path, seconds=0):
        pass
    with only_one(tmp_path, seconds=0):
        pass


def test_a_lock_that_drop_removes_is_not_waited_for_in_vain(tmp_path: Path) -> None:
    """Who opened the file before it was removed must not believe that it holds the folder."""
    with only_one(tmp_path):
        (tmp_path / "run.lock").unlink()
        with only_one(tmp_path, seconds=0), pytest.raises(OperatorError), only_one(tmp_path, seconds=0):
            pass


def test_a_folder_that_can_not_be_written_ends_nothing(tmp_path: Path) -> None:
    """The disk may be full, or somebody has removed the state folder."""
    starts = tmp_path / "starts"
    service = Service("a", counted(starts, lambda n: 1 if n < 2 else 0))
    code, _, said = supervise(service, pids=tmp_path / "gone" / "pids.json")
    assert code is Exit.DONE and len(starts.read_text().splitlines()) == 2
    assert any("can't be written: No such file" in line for line in said)
