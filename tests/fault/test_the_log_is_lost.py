"""The embedded log on a disk that is full, and a log that is damaged, taken back to an earlier state, or gone."""

from __future__ import annotations

import resource
import shutil
import signal
from pathlib import Path

import pytest

from control.wiring import opened_log
from schemas.errors import LOAD_AGAIN
from tests import servers
from tests.fault.conftest import MakeWorld
from tests.fault.world import Run, World


@pytest.fixture
def world(make_world: MakeWorld, source_db: str, target_db: str) -> World:
    return make_world(source_db, target_db, "", 300)


def _stop(run: Run) -> None:
    run.process.send_signal(signal.SIGTERM)
    assert run.process.wait(30) == 0


def _refused(world: World, *words: str) -> None:
    """Start, and expect the run to end at once with an error for people."""
    run = world.start()
    assert run.process.wait(30) == 3, world.told()
    told = run.output.read_text()
    assert all(word in told for word in (*words, LOAD_AGAIN)), told


def test_a_full_disk_is_waited_for(world: World) -> None:
    """The limit of the size of a file is a disk's end for whoever has it; it can be moved from outside."""
    world.begin_traffic(rate=100)
    run = world.start()
    world.wait("live tables", world.all_live, run)
    pid = run.pids()["capture"]
    no_limit = resource.prlimit(pid, resource.RLIMIT_FSIZE)
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (4096, no_limit[1]))
    world.wait("a word of the disk", lambda: "free room on the disk" in run.output.read_text(), run)
    assert run.pids()["capture"] == pid
    assert world.retries("capture") < 40
    world.more_commits(50)
    resource.prlimit(pid, resource.RLIMIT_FSIZE, no_limit)
    world.finish(run)


def test_a_log_that_is_not_what_it_was_is_refused(world: World, tmp_path: Path) -> None:
    traffic = world.begin_traffic(rate=100)
    run = world.start()
    world.wait("live tables", world.all_live, run)
    _stop(run)
    log, earlier, whole = world.state / "log", tmp_path / "earlier", tmp_path / "whole"
    shutil.copytree(log, earlier)
    run = world.start()
    world.more_commits(50)
    world.catch_up(run)
    traffic.stop()
    world.traffic = None
    _stop(run)
    shutil.copytree(log, whole)

    _replace(log, earlier)
    _refused(world, "it is not the log that was written, or has lost its end")
    shutil.rmtree(log)
    _refused(world, "the source is set up for a pipeline", "this log is new")
    _replace(log, whole)
    (changes,) = [path for path in log.rglob("changes.*.db")]
    changes.write_bytes(b"\0" * changes.stat().st_size)
    _refused(world, "a file of the log is damaged")

    # Nobody has done anything about it: with the right log it goes on.
    _replace(log, whole)
    world.finish(None)


def test_topics_that_are_gone_are_missed(
    make_world: MakeWorld, source_db: str, target_db: str, kafka_broker: servers.Kafka
) -> None:
    world = make_world(source_db, target_db, f"log: kafka://{kafka_broker.bootstrap}\n", 100)
    world.begin_traffic(rate=100)
    run = world.start()
    world.wait("live tables", world.all_live, run)
    world.more_commits(20)
    _stop(run)
    with opened_log(world.pipeline) as log:
        log.delete_topics([f"{world.name}.frontier"])
        _refused(world, "")
        log.delete_topics([topic.name for topic in log.topics(f"{world.name}.")])
        _refused(world, "this log is new")


def _replace(folder: Path, copy: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(copy, folder)
