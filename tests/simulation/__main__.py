"""Run histories: `python -m tests.simulation [--histories N] [--seed S] [--jobs J] [--break MISTAKE]`.

A history that fails is told with the command that replays it; the first one is shrunk to fewer turns and faults, and
kept in `kept/`, from where the tests run it from then on. With a mistake made on purpose it is the other way round:
one of the histories must fail.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import time
import traceback
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from schemas import record
from schemas.errors import ReplicationError
from tests.simulation.mistakes import MISTAKES
from tests.simulation.world import History, Violated, World

KEPT = Path(__file__).parent / "kept"
SHARE = 25  # histories that one process runs before it says so
PROGRESS_SECONDS = 10.0


class Failure(NamedTuple):
    """A history that did not hold, and how."""

    history: History
    message: str
    found: bool  # by what the world or the loops look after; otherwise something just broke
    happened: list[tuple[int, str]]
    turns: int


def run(history: History, *, trace: bool = False) -> Failure | None:
    """Run one history; return how it failed, None if it held."""
    world = World(history, print if trace else None)
    try:
        world.run()
    except Exception as error:
        if trace:
            traceback.print_exc()
        found = isinstance(error, Violated | ReplicationError)
        message = f"{type(error).__name__}: {error}" if found else traceback.format_exc()
        return Failure(history, message, found, world.faults.happened, min(world.turn, world.turns))
    return None


def shrink(failure: Failure, seconds: float) -> Failure:
    """Leave out turns and faults as long as the history still fails."""
    deadline = time.monotonic() + seconds

    def fails(turns: int, only: frozenset[int]) -> Failure | None:
        return run(History(failure.history.seed, turns, only)) if time.monotonic() < deadline else None

    smallest = fails(failure.turns, frozenset(number for number, _ in failure.happened))
    if smallest is None:
        return failure
    again = True
    while again:
        again = False
        assert smallest.history.only is not None
        for number in sorted(smallest.history.only):
            assert smallest.history.only is not None
            if less := fails(smallest.turns, smallest.history.only - {number}):
                smallest, again = less, True
        assert smallest.history.only is not None
        for turns in (smallest.turns // 2, smallest.turns * 3 // 4, smallest.turns - 10, smallest.turns - 1):
            if turns < smallest.turns and (less := fails(turns, smallest.history.only)):
                smallest, again = less, True
                break
    return smallest


def keep(failure: Failure) -> Path:
    """Write a failing history where the tests find it."""
    history = failure.history
    path = KEPT / f"{history.seed}.json"
    only = None if history.only is None else sorted(history.only)
    found = failure.message.splitlines()[-1][:300]
    path.write_text(json.dumps({"seed": history.seed, "turns": history.turns, "only": only, "found": found}) + "\n")
    return path


def kept(path: Path) -> History:
    """Read a history that was kept."""
    data = json.loads(path.read_text())
    return History(data["seed"], data["turns"], None if data["only"] is None else frozenset(data["only"]))


def _prepare(mistake: str | None) -> None:
    """Make this process ready to run histories."""
    logging.disable(logging.CRITICAL)
    _decode_once()
    if mistake is not None:
        MISTAKES[mistake]()


def _decode_once() -> None:
    """Let all processes of a history share what they decode: they read the same records, again and again."""
    real = record.decode_control
    shared = lru_cache(10_000)(real)
    for module in list(sys.modules.values()):
        if getattr(module, "decode_control", None) is real:
            vars(module)["decode_control"] = shared


def _some(first: int, number: int) -> tuple[int, list[Failure]]:
    failures = [failure for seed in range(first, first + number) if (failure := run(History(seed))) is not None]
    return number, failures


def _all(first: int, number: int, mistake: str | None, jobs: int) -> Iterator[tuple[int, list[Failure]]]:
    """Run histories, share by share; yield how many each one ran, and which of them failed."""
    shares = [(seed, min(SHARE, first + number - seed)) for seed in range(first, first + number, SHARE)]
    if jobs == 1:
        yield from (_some(*share) for share in shares)
        return
    pool = ProcessPoolExecutor(jobs, initializer=_prepare, initargs=(mistake,))
    try:
        yield from pool.map(_some, *zip(*shares, strict=True))
    finally:
        pool.shutdown(cancel_futures=True)


def _tell(failure: Failure, mistake: str | None) -> None:
    seed, suffix = failure.history.seed, f" --break {mistake}" if mistake else ""
    print(f"seed {seed}: {failure.message[-1500:]}")
    print(f"  replay: python -m tests.simulation --replay {seed} --trace{suffix}", flush=True)


def _shrink_and_keep(failure: Failure, seconds: float) -> None:
    smallest = shrink(failure, seconds)
    print(f"  shrunk to {smallest.turns} turns and {len(smallest.happened)} faults: {smallest.message[-600:]}")
    for _, what in smallest.happened:
        print(f"    {what}")
    print(f"  kept: python -m tests.simulation --replay {os.path.relpath(keep(smallest))} --trace", flush=True)


def search(first: int, number: int, jobs: int, seconds: float) -> int:
    """Run histories to the end and tell of those that fail; return 1 if there are any."""
    began = told = time.monotonic()
    done = 0
    seeds: list[int] = []
    for ran, failures in _all(first, number, None, jobs):
        done += ran
        for failure in failures:
            _tell(failure, None)
            if seconds and not seeds:
                _shrink_and_keep(failure, seconds)
            seeds.append(failure.history.seed)
        now = time.monotonic()
        if now - told > PROGRESS_SECONDS:
            told = now
            print(f"{done} of {number} histories, {len(seeds)} failed, {done / (now - began):.0f} a second", flush=True)
    print(f"{done} histories, {len(seeds)} failed, {done / (time.monotonic() - began):.0f} a second")
    if seeds:
        print(f"failing seeds: {', '.join(map(str, seeds))}")
    return int(bool(seeds))


def find(mistake: str, first: int, number: int, jobs: int, seconds: float) -> int:
    """Run histories with a mistake until one fails; return 1 if none does, or if it is the mistake that is broken."""
    done = 0
    for ran, failures in _all(first, number, mistake, jobs):
        done += ran
        if failures:
            _tell(failures[0], mistake)
            if seconds:
                _shrink_and_keep(failures[0], seconds)
            print(f"{mistake}: found by seed {failures[0].history.seed}, within {done} histories")
            return int(not failures[0].found)
    print(f"{mistake}: NOT FOUND within {done} histories")
    return 1


def replay(what: str, *, trace: bool) -> int:
    """Run one history again, by its seed or from its file; return 1 if it fails."""
    failure = run(History(int(what)) if what.isdigit() else kept(Path(what)), trace=trace)
    print(f"fails: {failure.message}" if failure else "holds")
    return int(failure is not None)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--histories", type=int, default=1000, metavar="N", help="how many (1000)")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="of the first, each next one has the next (0)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), metavar="J", help="processes (one for each core)")
    parser.add_argument("--break", dest="mistake", choices=sorted(MISTAKES), help="make a mistake on purpose")
    parser.add_argument("--replay", metavar="SEED|FILE", help="run one history, by its seed or as it was kept")
    parser.add_argument("--trace", action="store_true", help="tell every call outwards of the one that is replayed")
    parser.add_argument(
        "--shrink", type=float, metavar="SECONDS", help="how long to shrink; 0: not at all, nor keep (20; mistakes: 0)"
    )
    arguments = parser.parse_args()
    _prepare(arguments.mistake)
    if arguments.replay:
        return replay(arguments.replay, trace=arguments.trace)
    some = arguments.seed, arguments.histories, arguments.jobs
    if arguments.mistake:
        return find(arguments.mistake, *some, arguments.shrink or 0.0)
    return search(*some, 20.0 if arguments.shrink is None else arguments.shrink)


if __name__ == "__main__":
    if sys.flags.hash_randomization:
        # The order of sets of names is part of a history.
        again = [sys.executable, "-m", "tests.simulation", *sys.argv[1:]]
        os.execve(sys.executable, again, {**os.environ, "PYTHONHASHSEED": "0"})
    sys.exit(main())
