"""What grows with size: memory of each service, an idle pipeline's cost, the rate at more rows and more tables."""

from __future__ import annotations

import time

from bench.stage import Service, Stage, cpu_seconds, descendants, peak_memory, until
from bench.workloads import FILL_WIDE, MARK, WIDE
from control.wiring import opened_log
from schemas.pipeline import load_pipeline
from transport.log import Partition
from transport.topics import Topics
from transport.views import Chunks


def largest_process(service: Service) -> int:
    """Return the largest resident memory, in MB, of any process of a running service."""
    peaks = peak_memory([service.process.pid, *descendants(service.process.pid)])
    return max(peaks.values(), default=0) >> 20


def large_transaction(stage: Stage, rows: int) -> tuple[float, int]:
    """Replicate one transaction of `rows` narrow inserts; return the seconds and the largest process in MB."""
    table = "create table large (id bigint primary key, v text)"
    stage.fresh(stage.source, "large", table, MARK, "insert into mark values (2, 0)")
    stage.fresh(stage.target, "large", table, MARK)
    file = stage.pipeline("large", "large", ["large", "mark"], kafka=False)
    with Service("run", file) as service:
        until(lambda: bool(stage.sql(stage.target, "large", "select 1 from mark where id = 2")), 120, 0.05)
        stage.sql(
            stage.source,
            "large",
            f"with r as (insert into large select g, md5(g::text) from generate_series(1, {rows}) g returning 1)"
            " update mark set v = 1 where id = 2 and (select count(*) from r) > 0",
        )
        began = time.perf_counter()
        arrived = "select 1 from mark where id = 2 and v = 1"
        took = until(lambda: bool(stage.sql(stage.target, "large", arrived)), 900, 0.1) - began
        memory = largest_process(service)
    same = "select count(*), sum(id), sum(hashtext(v)::bigint) from large"
    assert stage.sql(stage.source, "large", same) == stage.sql(stage.target, "large", same)
    stage.forget(file)
    return took, memory


def large_value(stage: Stage, megabytes: int, *, kafka: bool) -> int:
    """Replicate a value of that size, by load and by change; return the largest process in MB."""
    table = "create table large (id int primary key, v text)"
    value = f"(select string_agg(md5(g::text), '') from generate_series(1, {megabytes << 15}) g)"
    stage.fresh(stage.source, "value", table, f"insert into large values (1, {value})")
    stage.fresh(stage.target, "value", table)
    file = stage.pipeline("value", "value", ["large"], kafka=kafka)
    with Service("run", file) as service:
        arrived = "select length(v) from large where id = {}"
        until(lambda: bool(stage.sql(stage.target, "value", arrived.format(1))), 300, 0.1)
        stage.sql(stage.source, "value", f"insert into large values (2, {value})")
        until(lambda: bool(stage.sql(stage.target, "value", arrived.format(2))), 300, 0.1)
        memory = largest_process(service)
    same = "select id, md5(v) from large order by id"
    assert stage.sql(stage.source, "value", same) == stage.sql(stage.target, "value", same)
    stage.forget(file)
    return memory


def killed_at_half(stage: Stage, rows: int) -> tuple[float, int]:
    """Load `rows` wide rows, kill -9 everything when half of them are at the target, and run again.

    Return how many chunks' worth is in the log without a manifest that names it, which is what was read twice, and
    how many workers there were that read. At the target whatever chunk a worker was at is rolled back, one each.
    """
    stage.fresh(stage.source, "half", WIDE, FILL_WIDE.format(low=1, high=rows), "vacuum (analyze, freeze) wide")
    stage.fresh(stage.target, "half", WIDE)
    file = stage.pipeline("half", "half", ["wide"], kafka=False)
    loaded = "select coalesce(sum(rows_loaded), 0) from penstock.chunks"
    there = "select count(*) from pg_tables where schemaname = 'penstock' and tablename = 'chunks'"
    with Service("run", file) as service:
        until(lambda: bool(stage.sql(stage.target, "half", there)[0][0]), 60, 0.01)
        until(lambda: stage.sql(stage.target, "half", loaded)[0][0] >= rows / 2, 300, 0.01)
        service.kill()
    with Service("run", file, "--until-caught-up") as service:
        service.wait(300)
    stage.must_equal("half", "half", ["wide"])
    pipeline = load_pipeline(file)
    with opened_log(pipeline) as log, log.reader() as reader:
        topics = Topics(pipeline.pipeline)
        chunks = Chunks(reader, topics)
        chunks.refresh()
        (table,) = chunks.tables.values()
        sizes = [manifest.end - manifest.start for manifest in table.manifests.values()]
        partitions = {(manifest.topic, manifest.partition) for manifest in table.manifests.values()}
        written = sum(log.offsets(Partition(*partition)).end for partition in partitions)
    stage.forget(file)
    return (written - sum(sizes)) / max(sizes), len(partitions)


def many_tables(stage: Stage, database: str, tables: int) -> None:
    """Make that many small tables at the source, and empty ones at the target."""
    make = f"""do $$ begin for n in 1..{tables} loop
        execute format('create table t%s (id int primary key, v bigint)', n);
        if n % 200 = 0 then commit; end if; end loop; end $$"""
    fill = f"""do $$ begin for n in 1..{tables} loop
        execute format('insert into t%s select g, 0 from generate_series(1, 10) g', n);
        if n % 200 = 0 then commit; end if; end loop; end $$"""
    stage.fresh(stage.source, database, make, fill, MARK, "insert into mark values (3, 0)", "analyze")
    stage.fresh(stage.target, database, make, MARK)


def idle(service: Service, seconds: float) -> float:
    """Return what all processes of a service cost together while nothing happens, in percent of one core."""
    processes = [service.process.pid, *descendants(service.process.pid)]
    before = {pid: cpu_seconds([pid]) for pid in processes}
    time.sleep(seconds)
    # One that has ended meanwhile, as the load's workers do, has no figure at the end.
    stayed = {service.process.pid, *descendants(service.process.pid)}
    return 100 * sum(cpu_seconds([pid]) - before[pid] for pid in processes if pid in stayed) / seconds


def rate(stage: Stage, rows: int, tables: int) -> float:
    """Return rows a second of a load of `rows` wide rows in `tables` tables."""
    names = [f"wide_{n}" for n in range(tables)]
    part = rows // tables
    source, target = [], []
    for n, name in enumerate(names):
        target.append(WIDE.replace("create table wide", f"create table {name}"))
        source += [
            target[-1],
            FILL_WIDE.replace("into wide", f"into {name}").format(low=n * part + 1, high=(n + 1) * part),
        ]
    stage.fresh(stage.source, "rate", *source, "analyze")
    stage.fresh(stage.target, "rate", *target)
    file = stage.pipeline("rate", "rate", ["wide_*"], kafka=False, mode="load")
    stage.settle()
    with Service("run", file) as service:
        took = service.wait(900)
    got = sum(int(stage.sql(stage.target, "rate", f"select count(*) from {name}")[0][0]) for name in names)
    assert got == part * tables
    stage.forget(file)
    return got / took
