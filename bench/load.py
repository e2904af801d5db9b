"""Full load of one table into an empty one that has its primary key: everybody does the same work."""

from __future__ import annotations

import shlex
import subprocess
import time
from collections.abc import Callable

from bench.stage import Service, Stage
from bench.workloads import FILL_WIDE, WIDE

LIMIT_TEXT = "psql COPY to psql COPY, text"
LIMIT_BINARY = "psql COPY to psql COPY, binary"
EMBEDDED = "penstock, embedded log"
KAFKA = "penstock, Kafka"


def prepare(stage: Stage, rows: int) -> None:
    """Fill the source."""
    stage.fresh(stage.source, "load", WIDE, FILL_WIDE.format(low=1, high=rows), "vacuum (analyze, freeze) wide")


def peers(stage: Stage, *, kafka: bool) -> dict[str, Callable[[], float]]:
    """Return what is measured: each makes a fresh target, loads it and returns the seconds that took."""

    def around(load: Callable[[], float]) -> Callable[[], float]:
        def measured() -> float:
            stage.fresh(stage.target, "load", WIDE)
            stage.settle()
            took = load()
            stage.must_equal("load", "load", ["wide"])
            return took

        return measured

    def pipe(form: str) -> Callable[[], float]:
        def side(server: object, direction: str) -> str:
            psql = stage.target.tool("psql")
            url = stage.source.url("load") if server is stage.source else stage.target.url("load")
            return shlex.join([psql, "-X", "-q", url, "-c", f"copy wide {direction} (format {form})"])

        def load() -> float:
            began = time.perf_counter()
            command = f"set -o pipefail; {side(stage.source, 'to stdout')} | {side(stage.target, 'from stdin')}"
            subprocess.run(["bash", "-c", command], check=True)
            return time.perf_counter() - began

        return load

    def penstock(over_kafka: bool) -> Callable[[], float]:
        def load() -> float:
            file = stage.pipeline("load", "load", ["wide"], kafka=over_kafka, mode="load")
            with Service("run", file) as service:
                took = service.wait(300)
            stage.forget(file)
            return took

        return load

    found = {
        LIMIT_TEXT: around(pipe("text")),
        LIMIT_BINARY: around(pipe("binary")),
        EMBEDDED: around(penstock(False)),
    }
    if kafka:
        found[KAFKA] = around(penstock(True))
    return found
