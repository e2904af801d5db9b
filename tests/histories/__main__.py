"""Run random histories on real servers: `python -m tests.histories [--histories N] [--seed S] [--steps N]`.

Two local servers are started for it, and a broker with `--kafka`. A history that fails is told with its seed, which
runs it again: the same statements, and the same kills as far as moments can be the same.
"""

from __future__ import annotations

import argparse
import contextlib
import shutil
import sys
import tempfile
import traceback
from pathlib import Path
from typing import NamedTuple

import pytest

from tests import servers
from tests.conftest import fresh_database
from tests.histories.history import History, Length


class Place(NamedTuple):
    """Where histories happen."""

    source: servers.Postgres
    target: servers.Postgres
    log: str  # the `log:` of a pipeline file


def run(seed: int, place: Place, length: Length, *, kept: Path | None) -> bool:
    """Run one history; return whether it ended as it has to. What one that fails leaves is copied to `kept`."""
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        databases = [stack.enter_context(fresh_database(server, f"history {seed}")) for server in place[:2]]
        history = History(seed, folder, databases[0], databases[1], length, place.log)
        stack.callback(history.close)
        try:
            history.run()
        except (Exception, pytest.fail.Exception) as error:
            traceback.print_exc()
            if kept is not None:
                shutil.copytree(folder, kept / str(seed), dirs_exist_ok=True)
                (kept / str(seed) / "statements.sql").write_text(";\n".join(history.application.said))
            print(f"seed {seed} FAILED: {str(error)[:500]}", flush=True)
            return False
    application = history.application
    stopped = f", loaded anew: {history.stopped}" if history.stopped else ""
    print(f"seed {seed} holds: {application.altered} definitions changed{stopped}", flush=True)
    return True


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.histories", description=__doc__)
    parser.add_argument("--histories", type=int, default=20, metavar="N", help="how many (20)")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="of the first, each next one has the next (0)")
    parser.add_argument("--steps", type=int, default=300, metavar="N", help="of the application, in each (300)")
    parser.add_argument("--kafka", action="store_true", help="over a Kafka broker instead of the embedded log")
    parser.add_argument(
        "--pair", type=servers.parse_pairs, default=(servers.DEFAULT,), help="versions of source and target (16-18)"
    )
    parser.add_argument(
        "--keep", type=Path, metavar="FOLDER", help="for statements, state and output of those that fail"
    )
    options = parser.parse_args()
    length = Length(options.steps, kills=max(1, options.steps // 20), commands=options.steps // 40)
    failed = []
    with contextlib.ExitStack() as stack:
        source = stack.enter_context(servers.postgres(options.pair[0].source, servers.SOURCE_VARIABLE))
        target = stack.enter_context(servers.postgres(options.pair[0].target, servers.TARGET_VARIABLE))
        log = f"log: kafka://{stack.enter_context(servers.kafka()).bootstrap}\n" if options.kafka else ""
        for seed in range(options.seed, options.seed + options.histories):
            if not run(seed, Place(source, target, log), length, kept=options.keep):
                failed.append(seed)
    print(f"{options.histories} histories, {len(failed)} failed{f': {failed}' if failed else ''}")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
