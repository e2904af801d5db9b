"""`python -m bench`: measure Penstock beside PostgreSQL's own tools and write `docs/performance.md`."""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path

from bench import changes, latency, letters, load, scale, tables
from bench.report import Report
from bench.stage import Service, Stage, stage
from bench.workloads import MARK, NARROW, SMALL, WIDE

GROUPS = ("load", "changes", "letters", "latency", "scale", "tables")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--only", action="append", choices=GROUPS, help="a group; may be given several times")
    parser.add_argument("--rows", type=int, default=1_000_000, help="rows of the wide table")
    parser.add_argument("--transactions", type=int, default=100_000, help="small transactions of a backlog")
    parser.add_argument("--bulk", type=int, default=300_000, help="rows of a bulk backlog")
    parser.add_argument("--large", type=int, default=10_000_000, help="rows of the large transaction")
    parser.add_argument("--tables", type=int, default=10_000, help="tables of a very large pipeline")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--no-kafka", action="store_true")
    parser.add_argument("--output", type=Path, default=Path("docs/performance.md"))
    options = parser.parse_args()
    groups = options.only or GROUPS
    report, kafka = Report(), not options.no_kafka
    with stage() as made:
        servers = [made.sql(s, "postgres", "show server_version")[0][0] for s in (made.source, made.target)]
        named = [f"PostgreSQL {servers[0]} (source)", f"{servers[1]} (target)"]
        if kafka:
            named.append("one Apache Kafka broker (`flush.messages=1`)")
        for group in GROUPS:
            if group in groups:
                print(f"{group}:", flush=True)
                try:
                    _MEASURE[group](made, report, options, kafka)
                finally:  # what was measured before somebody stopped it is kept
                    report.write(options.output, named, shlex.join(["python -m bench", *sys.argv[1:]]).replace("'", ""))
    print(f"written: {options.output}")
    return 0


def _load(made: Stage, report: Report, options: argparse.Namespace, kafka: bool) -> None:
    load.prepare(made, options.rows)
    peers = load.peers(made, kafka=kafka)
    for _ in range(options.repeats):
        for name, measured in peers.items():
            report.sample(f"load: {name}", measured())
    work = f"full load, {options.rows:,} wide rows"
    for ours, text, binary in ((load.EMBEDDED, 1.0, 0.5), (load.KAFKA, 0.8, 0.4)):
        for limit, bar in ((load.LIMIT_TEXT, text), (load.LIMIT_BINARY, binary)):
            report.ratio(f"{work}, {ours}", f"load: {ours}", f"load: {limit}", bar, count=options.rows)


def _changes(made: Stage, report: Report, options: argparse.Namespace, kafka: bool) -> None:
    counts: dict[str, int] = {}

    def sample(kind: str, peer: str, count: int, seconds: float) -> None:
        counts[kind] = count
        report.sample(f"{kind}: {peer}", seconds)

    changes.measure(made, sample, vars(options), kafka=kafka)
    for kind, capture_bar in (("small", 1.5), ("bulk", 1.2)):
        work = f"{counts[kind]:,} changes, {'small transactions' if kind == 'small' else 'bulk inserts'}"
        for ours, theirs, bar in (
            (changes.CAPTURE, changes.DRAIN, capture_bar),
            (changes.BOTH, changes.NATIVE, 1.5),
            (changes.APPLY, changes.NATIVE, 2.0),
            (changes.BOTH_KAFKA, changes.NATIVE, 1.2),
        ):
            report.ratio(f"{work}: {ours}", f"{kind}: {ours}", f"{kind}: {theirs}", bar, count=counts[kind])


def _letters(made: Stage, report: Report, options: argparse.Namespace, kafka: bool) -> None:
    def name(kind: str, refused: bool) -> str:
        return f"letters: a batch of {letters.BATCH:,} {kind}, {'one row' if refused else 'none'} refused"

    letters.measure(made, lambda kind, refused, took: report.sample(name(kind, refused), took), options.repeats)
    for kind in letters.KINDS:
        clean, refused = report.median(name(kind, False)), report.median(name(kind, True))
        work = f"a batch of {letters.BATCH:,} {kind}, one row refused, beside one without"
        report.add(work, f"{refused / clean:.2f} times ({refused:.2f} s)", "3", refused <= 3 * clean)


def _latency(made: Stage, report: Report, options: argparse.Namespace, kafka: bool) -> None:
    rows, seconds = 100_000, 20.0
    fill = [
        *(WIDE, NARROW, MARK),
        f"insert into wide (id, b) select g, 0 from generate_series(1, {rows}) g",
        f"insert into narrow (aid, bid, abalance) select g, 0, 0 from generate_series(1, {rows}) g",
        "insert into mark values (1, 0), (2, 0), (3, 0)",
    ]
    made.fresh(made.source, "latency", *fill, "vacuum analyze")
    cases = [("embedded log", False, 10, 30)] + ([("Kafka", True, 15, 40)] if kafka else [])
    for name, over_kafka, p50, p99 in cases:
        made.fresh(made.target, "latency", WIDE, NARROW, MARK)
        file = made.pipeline("latency", "latency", ["wide", "narrow", "mark"], kafka=over_kafka)
        with Service("run", file):
            latency.settled(made, "latency")
            traffic = latency.pgbench(made, SMALL.format(keys=rows), "latency", 1000, seconds)
            _percentiles(
                report,
                f"commit → visible, 2,000 changes/s, {name}",
                latency.watch(made, "latency", "latency", traffic, seconds),
                p50,
                p99,
            )
        made.forget(file)
    for name, over_kafka, p50, p99 in [("embedded log", False, 15, 60)] + ([("Kafka", True, 20, 80)] if kafka else []):
        _many_tables(made, report, name, over_kafka, p50, p99)


def _many_tables(made: Stage, report: Report, name: str, over_kafka: bool, p50: float, p99: float) -> None:
    tables, seconds = 2000, 20.0
    scale.many_tables(made, "many", tables)
    file = made.pipeline("many", "many", ["t*", "mark"], kafka=over_kafka)
    with Service("run", file) as service:
        latency.settled(made, "many")
        memory = scale.largest_process(service)
        report.add(f"memory of the largest process, {tables:,} tables, {name}", f"{memory} MB", "512 MB", memory <= 512)
        cost = scale.idle(service, 20)
        work = f"idle pipeline of {tables:,} tables, {name}, all processes"
        report.add(work, f"{cost:.1f} % of a core", "3 %", cost <= 3)
        script = (
            "\\set t random(1, 200)\n\\set id random(1, 10)\nbegin;\nupdate t:t set v = v + 1 where id = :id;\n"
            "update t:t set v = v + 1 where id = :id;\nend;\n"
        )
        traffic = latency.pgbench(made, script, "many", 1000, seconds)
        found = latency.watch(made, "many", "many", traffic, seconds)
        _percentiles(report, f"commit → visible, {tables:,} tables, 200 of them touched, {name}", found, p50, p99)
    made.forget(file)


def _percentiles(report: Report, work: str, found: latency.Latency, p50: float, p99: float) -> None:
    report.add(
        work,
        f"p50 {found.p50:.1f} ms, p99 {found.p99:.1f} ms, worst {found.worst:.0f} ms",
        f"p50 {p50:g} ms, p99 {p99:g} ms",
        found.p50 <= p50 and found.p99 <= p99,
    )


def _scale(made: Stage, report: Report, options: argparse.Namespace, kafka: bool) -> None:
    took, memory = scale.large_transaction(made, options.large)
    report.add(
        f"memory of the largest process, one transaction of {options.large:,} rows",
        f"{memory} MB ({options.large / took / 1000:.0f} k rows/s)",
        "512 MB",
        memory <= 512,
    )
    for over_kafka in (False, True)[: 1 + kafka]:
        memory = scale.large_value(made, 256, kafka=over_kafka)
        work = f"memory of the largest process, a value of 256 MB, {'Kafka' if over_kafka else 'embedded log'}"
        report.add(work, f"{memory} MB", "1,536 MB", memory <= 1536)
    redone, workers = scale.killed_at_half(made, options.rows)
    report.add(
        "kill -9 of everything at half of the load: chunks that were read twice",
        f"{redone:.2f} ({workers} workers)",
        "1 a worker",
        redone <= workers,
    )
    one = {rows: scale.rate(made, rows, 1) for rows in (options.rows, 5 * options.rows, 20 * options.rows)}
    for rows, rate in list(one.items())[1:]:
        work = f"rows/s, {rows:,} rows beside {options.rows:,}"
        _rate(report, work, rate, one[options.rows])
    # A table costs the same however few rows it has: the more rows, the less that shows.
    for rows, parts in [(5 * options.rows, parts) for parts in (10, 100, 200, 1000)] + [(options.rows, 1000)]:
        work = f"rows/s, {rows:,} rows in {parts:,} tables beside one"
        _rate(report, work, scale.rate(made, rows, parts), one[rows])


def _tables(made: Stage, report: Report, options: argparse.Namespace, kafka: bool) -> None:
    logs = [("embedded log", False, 3), ("Kafka", True, 10)][: 1 + kafka]
    for name, over_kafka, bar in logs:
        took, groups = tables.takeover(made, kafka=over_kafka)
        work = f"kill -9 of one of {tables.WORKERS} apply workers: {groups} groups are followed again, {name}"
        report.add(work, f"{took:.1f} s", f"{bar} s", took <= bar)
    many = tables.start(made, options.tables)
    work = f"{options.tables:,} tables, embedded log"
    report.add(f"{work}: first start, until all are loaded and live", str(many.first), "60 s", many.first.seconds <= 60)
    report.add(f"{work}: start again, until a change arrives", str(many.again), "60 s", many.again.seconds <= 60)
    report.add(f"{work}: memory of the largest process", f"{many.memory} MB", "512 MB", many.memory <= 512)
    report.add(f"{work}: idle, all processes", f"{many.idle:.1f} % of a core", "5 %", many.idle <= 5)


def _rate(report: Report, work: str, rate: float, base: float) -> None:
    report.add(work, f"{rate / base:.2f} ({rate / 1000:.0f} k/s)", "0.85", rate / base >= 0.85)


_MEASURE = {
    "load": _load,
    "changes": _changes,
    "letters": _letters,
    "latency": _latency,
    "scale": _scale,
    "tables": _tables,
}

if __name__ == "__main__":
    sys.exit(main())
