"""Catching up with a held-back backlog: capture alone, apply alone, and both, beside PostgreSQL's own replication."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable

import psycopg

from bench.stage import BenchFailed, Service, Stage, until
from bench.workloads import FILL_NARROW, FILL_WIDE, MARK, NARROW, SMALL, WIDE

TABLES = ["wide", "narrow", "mark"]
END = """
select least(
  (select b from wide where id = 1), (select bid from narrow where aid = 1), (select v from mark where id = 2)
)
"""
"""The latest backlog of which every table has the end: each of them may be another worker's."""

DRAIN = "pg_recvlogical to null"
NATIVE = "native logical replication"
CAPTURE = "penstock capture, embedded log"
APPLY = "penstock apply, log filled, embedded log"
BOTH = "penstock run, embedded log"
BOTH_KAFKA = "penstock run, Kafka"


class Backlog:
    """A source database, and one backlog after the other."""

    def __init__(self, stage: Stage, rows: int, transactions: int, bulk: int) -> None:
        self._stage, self._rows, self._transactions, self._bulk = stage, rows, transactions, bulk
        self._number, self._high = 0, 100_000_000
        self._script = stage.folder / "small.sql"
        self._script.write_text(SMALL.format(keys=min(rows, 100_000)))
        stage.fresh(
            stage.source,
            "changes",
            WIDE,
            NARROW,
            MARK,
            FILL_WIDE.format(low=1, high=rows),
            FILL_NARROW.format(low=1, high=rows),
            "insert into mark values (1, 0), (2, 0), (3, 0)",
            "vacuum (analyze, freeze)",
        )

    @property
    def number(self) -> int:
        """What `mark` says at the end of the latest backlog."""
        return self._number

    def produce(self, kind: str) -> tuple[int, int]:
        """Make a backlog, and return its changes and the position of its end."""
        stage = self._stage
        self._number += 1
        if kind == "small":
            changes = 2 * self._transactions
            subprocess.run(
                [
                    *[stage.target.tool("pgbench"), "-n", "-c", "4", "-j", "2", "-t", str(self._transactions // 4)],
                    *["-f", str(self._script), stage.source.url("changes")],
                ],
                check=True,
                capture_output=True,
                env={**os.environ, "PGOPTIONS": "-c synchronous_commit=off"},
            )
        else:
            changes, part = self._bulk, self._bulk // 3
            for _ in range(3):
                low, self._high = self._high + 1, self._high + part
                stage.sql(stage.source, "changes", FILL_WIDE.format(low=low, high=self._high))
        end = stage.sql(
            stage.source,
            "changes",
            f"update wide set b = {self._number} where id = 1",
            f"update narrow set bid = {self._number} where aid = 1",
            f"update mark set v = {self._number} where id = 2",
            "select (pg_current_wal_flush_lsn() - '0/0')::bigint",
        )
        return changes, int(end[0][0])

    def empty_target(self, name: str) -> None:
        """Make a target database with empty tables."""
        self._stage.fresh(self._stage.target, name, WIDE, NARROW, MARK)

    def caught_up(self, name: str, seconds: float = 300) -> float:
        """Wait until the end of the backlog is visible at a target, and return the moment."""
        with psycopg.connect(self._stage.target.url(name), autocommit=True) as connection:

            def seen() -> bool:
                row = connection.execute(END).fetchone()
                return row is not None and row[0] >= self._number

            return until(seen, seconds)


class Native:
    """PostgreSQL's own subscription, held back between backlogs."""

    def __init__(self, stage: Stage, backlog: Backlog) -> None:
        self._stage, self._backlog = stage, backlog
        backlog.empty_target("native")
        stage.sql(stage.source, "changes", "create publication native for table wide, narrow, mark")
        stage.sql(
            stage.target,
            "native",
            f"create subscription native connection '{stage.source.url('changes')}' publication native",
        )
        ready = "select count(*) from pg_subscription_rel where srsubstate = 'r'"
        until(lambda: stage.sql(stage.target, "native", ready)[0][0] == len(TABLES), 300, 0.1)
        self.hold()

    def hold(self) -> None:
        self._stage.sql(self._stage.target, "native", "alter subscription native disable")
        idle = "select 1 from pg_replication_slots where slot_name = 'native' and not active"
        until(lambda: bool(self._stage.sql(self._stage.source, "changes", idle)), 60, 0.05)

    def catch_up(self) -> float:
        began = time.perf_counter()
        self._stage.sql(self._stage.target, "native", "alter subscription native enable")
        took = self._backlog.caught_up("native") - began
        self.hold()
        self._stage.must_equal("changes", "native", TABLES)
        return took

    def close(self) -> None:
        self._stage.sql(self._stage.target, "native", "drop subscription native")
        self._stage.sql(self._stage.source, "changes", "drop publication native")


class Drain:
    """`pg_recvlogical`, which throws everything away: what the source itself can send."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        stage.sql(
            stage.source,
            "changes",
            "create publication drain for table wide, narrow, mark",
            "select pg_create_logical_replication_slot('drain', 'pgoutput')",
        )

    def catch_up(self, end: int) -> float:
        began = time.perf_counter()
        subprocess.run(
            [
                *[
                    self._stage.target.tool("pg_recvlogical"),
                    "-d",
                    self._stage.source.url("changes"),
                    "--slot",
                    "drain",
                ],
                *["--start", "-f", "/dev/null", "-o", "proto_version=1", "-o", "publication_names=drain"],
                *["-E", f"{end >> 32:X}/{end & 0xFFFFFFFF:X}", "--no-loop"],
            ],
            check=True,
            capture_output=True,
            timeout=300,
        )
        return time.perf_counter() - began

    def close(self) -> None:
        self._stage.sql(
            self._stage.source, "changes", "select pg_drop_replication_slot('drain')", "drop publication drain"
        )


class Penstock:
    """One pipeline that has loaded, and is stopped between backlogs."""

    def __init__(self, stage: Stage, backlog: Backlog, name: str, *, kafka: bool) -> None:
        self._stage, self._backlog, self.name = stage, backlog, name
        backlog.empty_target(name)
        self._file = stage.pipeline("changes", name, TABLES, kafka=kafka)
        with Service("run", self._file, "--until-caught-up") as service:
            service.wait(300)

    def run(self) -> float:
        """Return the seconds from a start of everything until the backlog's end is visible."""
        with Service("run", self._file) as service:
            took = self._backlog.caught_up(self.name) - service.started
        self._stage.must_equal("changes", self.name, TABLES)
        return took

    def capture(self, end: int) -> float:
        """Return the seconds from a start of capture alone until the slot has passed the backlog's end."""
        slot = f"penstock_{self._file.parent.name}"
        query = f"select confirmed_flush_lsn - '0/0' >= {end} from pg_replication_slots where slot_name = '{slot}'"
        with (
            Service("capture", self._file) as service,
            psycopg.connect(self._stage.source.url("changes"), autocommit=True) as connection,
        ):

            def passed() -> bool:
                row = connection.execute(query.encode()).fetchone()
                if row is None:
                    raise BenchFailed(f"there is no slot {slot}\n{service.tail()}")
                return bool(row[0])

            return until(passed, 300) - service.started

    def apply(self) -> float:
        """Return the seconds from a start of apply alone until the backlog's end is visible."""
        with Service("apply", self._file) as service:
            took = self._backlog.caught_up(self.name) - service.started
        self._stage.must_equal("changes", self.name, TABLES)
        return took

    def close(self) -> None:
        self._stage.forget(self._file)


def measure(
    stage: Stage, sample: Callable[[str, str, int, float], None], options: dict[str, int], *, kafka: bool
) -> None:
    """Give every peer every backlog, interleaved, and report `(kind, peer, changes, seconds)` of each to `sample`."""
    backlog = Backlog(stage, options["rows"], options["transactions"], options["bulk"])
    native, drain = Native(stage, backlog), Drain(stage)
    staged = Penstock(stage, backlog, "staged", kafka=False)
    whole = Penstock(stage, backlog, "whole", kafka=False)
    over_kafka = Penstock(stage, backlog, "kafka", kafka=True) if kafka else None
    for _ in range(options["repeats"]):
        for kind in ("small", "bulk"):
            changes, end = backlog.produce(kind)
            peers: list[tuple[str, Callable[[], float]]] = [
                (DRAIN, lambda end=end: drain.catch_up(end)),  # type: ignore[misc]
                (NATIVE, native.catch_up),
                (CAPTURE, lambda end=end: staged.capture(end)),  # type: ignore[misc]
                (APPLY, staged.apply),
                (BOTH, whole.run),
            ]
            if over_kafka is not None:
                peers.append((BOTH_KAFKA, over_kafka.run))
            for peer, catch_up in peers:
                stage.settle()
                sample(kind, peer, changes, catch_up())
    for ended in (native, drain, staged, whole, over_kafka):
        if ended is not None:
            ended.close()
