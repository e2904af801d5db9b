"""Run random histories on real servers: `python -m tests.histories [--histories N] [--seed S] [--steps N]`.

Two local servers are started for it. A history that fails is told with its seed, which runs it again: the same
statements, and the same kills as far as moments can be the same.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import tempfile
import traceback
from pathlib import Path

import pytest

from tests import servers
from tests.conftest import fresh_database
from tests.histories.history import History, Length


def run(seed: int, source: servers.Postgres, target: servers.Postgres, length: Length, *, told: bool) -> bool:
    """Run one history; return whether it ended as it has to."""
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        databases = [stack.enter_context(fresh_database(server, f"history {seed}")) for server in (source, target)]
        history = History(seed, folder, databases[0], databases[1], length)
        stack.callback(history.close)
        try:
            history.run()
        except (Exception, pytest.fail.Exception) as error:
            if told:
                print("\n".join(history.application.said))
            traceback.print_exc()
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
    parser.add_argument("--statements", action="store_true", help="tell all statements of one that fails")
    options = parser.parse_args()
    length = Length(options.steps, kills=max(1, options.steps // 20))
    with (
        servers.postgres(servers.DEFAULT.source, servers.SOURCE_VARIABLE) as source,
        servers.postgres(servers.DEFAULT.target, servers.TARGET_VARIABLE) as target,
    ):
        seeds = range(options.seed, options.seed + options.histories)
        failed = [seed for seed in seeds if not run(seed, source, target, length, told=options.statements)]
    print(f"{options.histories} histories, {len(failed)} failed{f': {failed}' if failed else ''}")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
