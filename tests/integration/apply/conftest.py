"""A log in memory, a target on a real server, and the worker between them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
from pydantic import SecretStr

from apply.limits import Limits
from apply.loop import Apply
from apply.postgres import letters, merge, target
from apply.postgres.target import PostgresTarget
from apply.target import TableProgress
from schemas.pipeline import Prepare, TablePolicy, TargetSettings
from schemas.states import TableState
from schemas.table import TableId
from tests.unit.apply.source import Source


class Applied:
    """A target's database, and workers that apply a source to it."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.connection = psycopg.connect(url, autocommit=True)
        self.workers: list[Apply] = []

    def sql(self, statement: str, *values: Any) -> list[tuple[Any, ...]]:
        cursor = self.connection.execute(statement, values or None)
        return cursor.fetchall() if cursor.description else []

    def target(self, prepare: Prepare = Prepare.KEEP) -> PostgresTarget:
        return PostgresTarget(TargetSettings(name="copy", url=SecretStr(self.url), prepare=prepare), "p")

    def worker(
        self,
        source: Source,
        prepare: Prepare = Prepare.KEEP,
        limits: Limits | None = None,
        name: str = "copy",
        *,
        follows: bool = True,
        tables: tuple[str, ...] = (),
        policy: TablePolicy | None = None,
    ) -> Apply:
        worker = Apply(
            "p",
            source.log,
            self.target(prepare),
            name=name,
            limits=limits,
            follows=follows,
            tables=tables,
            policy=lambda table: policy or TablePolicy(),
        )
        self.workers.append(worker)
        return worker

    def until(self, holds: Callable[[], bool], *workers: Apply, seconds: float = 30.0) -> None:
        """Run workers until something holds."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if holds():
                return
            if not any([worker.step() for worker in workers]):
                workers[0].wait(0.01)
        raise AssertionError(f"it did not come to that: {[worker.tables for worker in workers]}")

    def catch_up(self, source: Source, *workers: Apply) -> None:
        """Run workers until all that was committed is applied, and every table is live or has failed."""

        def done() -> bool:
            tables = [table for worker in workers for table in worker.tables.values() if table.group in worker.owned]
            return (
                bool(tables)
                and all(
                    table.state is TableState.FAILED or (table.state is TableState.LIVE and table.tied)
                    for table in tables
                )
                and all(worker.stats.position >= source.position for worker in workers if worker.owned)
            )

        self.until(done, *workers)

    def rows(self, table: str) -> list[tuple[Any, ...]]:
        return self.sql(f"select * from public.{table} order by 1, 2")

    def state(self, table: str) -> TableProgress:
        target = self.target()
        target.open(self.sql("select log from penstock.pipelines")[0][0])
        try:
            return target.tables()[TableId("public", table)]
        finally:
            target.close()

    def close(self) -> None:
        for worker in self.workers:
            worker.close()
        self.connection.close()


@pytest.fixture
def applied(target_db: str) -> Iterator[Applied]:
    database = Applied(target_db)
    yield database
    database.close()


@pytest.fixture(params=["one by one", "text stage", "binary stage"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """However many changes there are, write them in each of the ways that there are."""
    if request.param != "one by one":
        monkeypatch.setattr(merge, "DIRECT", 0)
    if request.param == "binary stage":
        for module in (target, letters):
            monkeypatch.setattr(module, "DIRECT", 0)
    return str(request.param)
