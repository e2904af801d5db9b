"""Run histories: `python -m tests.simulation [--histories N] [--seed S] [--jobs J] [--break MISTAKE]`.

A history that fails is told with the command that replays it, shrunk to fewer turns and faults, and kept in `kept/`,
from where the tests run it from then on.
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
from pathlib import Path
from typing import NamedTuple

from tests.simulation.mistakes import MISTAKES
from tests.simulation.world import History, World

KEPT = Path(__file__).parent / "kept"
SHARE = 50  # histories that one process runs before it says so


class Failure(NamedTuple):
    """A history that did not hold, and how."""

    history: History
    message: str
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
        message = f"{type(error).__name__}: {error}" if str(error) else traceback.format_exc()
        return Failure(history, message, world.faults.happened, min(world.turn, world.turns))
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


def _some(first: int, number: int, mistake: str | None) -> list[Failure]:
    logging.disable(logging.CRITICAL)
    if mistake is not None and not _made:
        MISTAKES[mistake]()
        _made.append(mistake)
    return [failure for seed in range(first, first + number) if (failure := run(History(seed))) is not None]


_made: list[str] = []


def _all(first: int, number: int, mistake: str | None, jobs: int) -> Iterator[list[Failure]]:
    shares = [(seed, min(SHARE, first + number - seed), mistake) for seed in range(first, first + number, SHARE)]
    if jobs == 1:
        yield from (_some(*share) for share in shares)
        return
    with ProcessPoolExecutor(jobs) as pool:
        for found in pool.map(_some, *zip(*shares, strict=True)):
            yield found
            if found and mistake is not None:
                pool.shutdown(cancel_futures=True)
                return


def main() -> int:
    """Return 1 if a history failed; with a mistake made on purpose, if none did."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--histories", type=int, default=1000, metavar="N", help="how many")
    parser.add_argument(
        "--seed", type=int, default=0, metavar="S", help="of the first; each next one has the next seed"
    )
    parser.add_argument("--jobs", type=int, default=1, metavar="J", help="processes")
    parser.add_argument("--break", dest="mistake", choices=sorted(MISTAKES), help="make a mistake on purpose")
    parser.add_argument("--trace", action="store_true", help="tell every call outwards")
    parser.add_argument("--replay", type=Path, metavar="FILE", help="run one kept history")
    parser.add_argument(
        "--shrink", type=float, default=20.0, metavar="SECONDS", help="how long to shrink; 0: not at all"
    )
    arguments = parser.parse_args()
    logging.disable(logging.CRITICAL)
    if arguments.trace or arguments.replay:
        if arguments.mistake:
            MISTAKES[arguments.mistake]()
        history = kept(arguments.replay) if arguments.replay else History(arguments.seed)
        failure = run(history, trace=arguments.trace)
        print(f"fails: {failure.message}" if failure else "holds")
        return int(failure is not None)

    began, failures, done = time.monotonic(), 0, 0
    for found in _all(arguments.seed, arguments.histories, arguments.mistake, arguments.jobs):
        done += SHARE
        for failure in found:
            failures += 1
            seed = failure.history.seed
            print(f"seed {seed}: {failure.message[:1500]}")
            suffix = f" --break {arguments.mistake}" if arguments.mistake else ""
            print(f"  replay: python -m tests.simulation --seed {seed} --trace{suffix}", flush=True)
        if found and arguments.mistake:
            break
        if found and arguments.shrink and failures == len(found):
            smallest = shrink(found[0], arguments.shrink)
            print(f"  shrunk to {smallest.turns} turns and {len(smallest.happened)} faults: {smallest.message[:600]}")
            for _, what in smallest.happened:
                print(f"    {what}")
            print(f"  kept: python -m tests.simulation --replay {os.path.relpath(keep(smallest))} --trace", flush=True)
    seconds = time.monotonic() - began
    if arguments.mistake:
        print(f"{arguments.mistake}: {'found' if failures else 'NOT FOUND'} within {done} histories, {seconds:.1f} s")
        return int(not failures)
    rate = arguments.histories / seconds
    print(f"{arguments.histories} histories, {failures} failed, {rate:.0f} a second")
    return int(failures > 0)


if __name__ == "__main__":
    if sys.flags.hash_randomization:
        # The order of sets of names is part of a history.
        os.execve(
            sys.executable,
            [sys.executable, "-m", "tests.simulation", *sys.argv[1:]],
            {**os.environ, "PYTHONHASHSEED": "0"},
        )
    sys.exit(main())
