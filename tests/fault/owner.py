"""An apply worker that takes every group and every chunk for its own, until SIGTERM; prints its conflicts at the end.

A process, as real workers are: their drivers wait for the server without letting other threads run.
"""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from apply.loop import Apply
from apply.target import find_target
from control.logs import ServiceLog
from control.service import StopSignal, serve, signals
from control.wiring import opened_log
from schemas.pipeline import load_pipeline
from transport.log import WORK_PARTITIONS, Log


class _Greedy:
    """A log whose members each have all of the work."""

    def __init__(self, log: Log) -> None:
        self._log = log

    def __getattr__(self, name: str) -> Any:
        return getattr(self._log, name)

    def membership(self, group: str) -> AbstractContextManager[_Greedy]:
        return contextlib.nullcontext(self)

    def poll(self) -> frozenset[int]:
        return frozenset(range(WORK_PARTITIONS))


def main(file: str) -> int:
    pipeline, stop = load_pipeline(Path(file)), StopSignal()
    settings = pipeline.targets[0]
    conflicts = 0

    @contextlib.contextmanager
    def make() -> Iterator[Apply]:
        nonlocal conflicts
        with opened_log(pipeline) as log:
            target = find_target(settings, pipeline.pipeline)
            loop = Apply(pipeline.pipeline, _Greedy(log), target, name=settings.name)
            with contextlib.closing(loop):
                try:
                    yield loop
                finally:
                    conflicts += loop.stats.conflicts

    with signals(stop):
        code = serve(make, stop=stop, log=ServiceLog(logging.getLogger("owner")))
    print(f"conflicts: {conflicts}")
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
