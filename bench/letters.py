"""What one refused row costs: a batch of 50,000 changes with one that the target refuses, beside one without."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from apply.loop import Apply
from apply.target import find_target
from bench.stage import BenchFailed, Service, Stage, until
from bench.workloads import FILL_WIDE, WIDE
from control.wiring import opened_log
from schemas.pipeline import load_pipeline

BATCH = 50_000
KINDS = ("inserts", "updates")

_REFUSED = "alter table wide add constraint refused check (opt is distinct from 'refused')"
_PASSED = "select bool_and(confirmed_flush_lsn - '0/0' >= {end}) from pg_replication_slots"


def measure(stage: Stage, sample: Callable[[str, bool, float], None], repeats: int) -> None:
    """Report `(kind, whether a row was refused, seconds)` of every batch to `sample`.

    Only the worker's steps are measured, from a full log to the commit; the refused row is the last, so nothing is
    found early.
    """
    rows = 2 * BATCH * repeats
    stage.fresh(stage.source, "letters", WIDE, FILL_WIDE.format(low=1, high=rows), "vacuum (analyze, freeze)")
    stage.fresh(stage.target, "letters", WIDE, _REFUSED)
    file = stage.pipeline("letters", "letters", ["wide"], kafka=False, target="    on-row-error: set-aside\n")
    with Service("run", file, "--until-caught-up") as service:
        service.wait(300)
    pipeline = load_pipeline(file)
    target, name = find_target(pipeline.target("copy"), pipeline.pipeline), pipeline.pipeline
    with opened_log(pipeline) as log:
        worker = Apply(name, log, target, name="copy", policy=pipeline.policies("copy"))
        with closing(worker):
            low = 0
            for _ in range(repeats):
                for refused in (False, True):
                    low += BATCH
                    for kind in KINDS:
                        end = _transaction(stage, file, kind, rows, low, refused=refused)
                        sample(kind, refused, _apply(worker, end))
            found = stage.sql(stage.target, "letters", "select count(*) from penstock.dead_letters")
            if found != [(len(KINDS) * repeats,)]:
                raise BenchFailed(f"{found} dead letters instead of {len(KINDS) * repeats}")
    stage.forget(file)


def _transaction(stage: Stage, file: Path, kind: str, rows: int, low: int, *, refused: bool) -> int:
    """Commit one batch at the source, let it come into the log, and return its end."""
    last = low + rows if kind == "inserts" else low
    opt = f"case when id = {last} then 'refused' else opt end" if refused else "opt"
    if kind == "inserts":
        columns = f"id, a, b, amount, name, descr, ts, flag, doc, d, u, f, {opt}"
        fill = FILL_WIDE.format(low=last - BATCH + 1, high=last).split("insert into wide")[1]
        names = "id, a, b, amount, name, descr, ts, flag, doc, d, u, f, opt"
        change = f"insert into wide select {columns} from ({fill}) as made ({names})"
    else:
        change = f"update wide set amount = amount + 1, opt = {opt} where id > {low - BATCH} and id <= {low}"
    [(end,)] = stage.sql(stage.source, "letters", change, "select (pg_current_wal_flush_lsn() - '0/0')::bigint")
    with Service("capture", file):
        until(lambda: stage.sql(stage.source, "letters", _PASSED.format(end=end)) == [(True,)], 120)
    stage.settle()
    return int(end)


def _apply(worker: Apply, end: int) -> float:
    while not worker.started or not worker.tables or worker.stats.position == 0:
        worker.step()
    began = time.perf_counter()
    while worker.stats.position < end:
        worker.step()
    return time.perf_counter() - began
