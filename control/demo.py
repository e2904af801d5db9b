"""`make demo`: a whole pipeline between two servers of its own, with traffic, kills, and proof at the end.

Everything lives in a temporary folder and ends with this program, however it ends.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

from control.servers.kafka import KafkaServer
from control.servers.postgres import PostgresServer
from control.servers.process import ServerUnavailable

if TYPE_CHECKING:
    from multiprocessing.synchronize import Event

    import psycopg

_DEADLINE = 300.0
_TRAFFIC_SECONDS = 6.0
"""How long the traffic goes on after the load, and again after the second kill."""


def main(arguments: list[str] | None = None) -> int:
    """Run the demo and return its exit code: 0 only if every table is equal in the end."""
    parser = argparse.ArgumentParser(prog="python -m control.demo", description=__doc__)
    parser.add_argument("--log", choices=["sqlite", "kafka"], default="sqlite", help="where the log is")
    parser.add_argument("--rows", type=int, default=1_000_000, help="about how many rows the source begins with")
    parser.add_argument("--rate", type=float, default=300.0, help="transactions a second of the traffic")
    options = parser.parse_args(arguments)
    # A demo that is told to stop takes its servers and services along.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(1))
    try:
        with contextlib.ExitStack() as stack:
            return _demo(stack, options.log, max(options.rows, 1000), options.rate)
    except ServerUnavailable as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def _demo(stack: contextlib.ExitStack, log: str, rows: int, rate: float) -> int:
    began = time.monotonic()
    _say("Two PostgreSQL servers are started: 16 as the source, 18 as the target.")
    # The wheel's defaults are those of a laptop of 2005: a checkpoint each gigabyte would be all that is seen.
    conf = {"max_wal_size": "8GB", "shared_buffers": "256MB"}
    source = stack.enter_context(PostgresServer(16, durable=True, conf=conf))
    target = stack.enter_context(PostgresServer(18, durable=True, conf=conf))
    address = ""
    if log == "kafka":
        _say("A Kafka broker is started.")
        address = f"log: kafka://{stack.enter_context(KafkaServer()).bootstrap}\n"
    for server in (source, target):
        server.create_database("shop")

    _say(f"The source is filled with a shop of about {rows:,} rows.")
    with _connected(source.url("shop")) as connection:
        for statement in _statements(rows):
            connection.execute(statement)

    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="penstock-demo-")))
    file = folder / "pipeline.yaml"
    file.write_text(
        f"pipeline: shop\n"
        f"source:\n  url: {source.url('shop')}\n"
        f'tables: ["shop.*"]\n{address}'
        f"targets:\n  - name: copy\n    url: {target.url('shop')}\n"
    )
    _say(f"The pipeline file {file}:\n")
    print("".join(f"    {line}\n" for line in file.read_text().splitlines()), flush=True)

    stop, process = _traffic(source.url("shop"), rate)
    stack.callback(_end, process)
    _say(f"Traffic begins: {rate:,.0f} transactions a second. `penstock run` carries the shop over.\n")
    run = subprocess.Popen([sys.executable, "-m", "control", "run", str(file)])
    stack.callback(_end_run, run)
    _attend(file, run, stop, process)

    print(flush=True)
    _say("The traffic has stopped and the target has caught up. Both sides are compared, row by row.")
    equal = _compare(source.url("shop"), target.url("shop"))
    print(flush=True)
    done = subprocess.run([sys.executable, "-m", "control", "drop", "--yes", str(file)], check=False)
    if not equal or done.returncode:
        _say("THE DEMO HAS FAILED.")
        return 1
    _say(f"All tables are equal; two kill -9 on the way; {time.monotonic() - began:.0f} s in all.")
    return 0


def _statements(rows: int) -> Iterator[bytes]:
    text = files("control").joinpath("demo.sql").read_text().replace("{rows}", str(rows))
    code = "\n".join(line for line in text.splitlines() if not line.startswith("--"))
    for statement in code.split(";\n"):
        if statement.strip():
            yield statement.encode()


# -------------------------------------------------------------------------------------------------- the traffic


def _traffic(url: str, rate: float) -> tuple[Event, multiprocessing.Process]:
    """Start a process that writes to the source, and return what ends it."""
    context = multiprocessing.get_context("spawn")
    stop = context.Event()
    process = context.Process(target=_write, args=(url, rate, stop), daemon=True)
    process.start()
    return stop, process  # type: ignore[return-value]


def _write(url: str, rate: float, stop: Event) -> None:
    """Be the shop's application: short transactions of every kind, `rate` of them a second, until told to stop."""
    import psycopg

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    chance = random.Random(1)
    with _connected(url) as connection:
        connection.execute("set search_path = shop")
        (last_order,) = connection.execute("select max(id) from orders").fetchone() or (0,)
        (customers,) = connection.execute("select count(*) from customers").fetchone() or (0,)
        (products,) = connection.execute("select count(*) from products").fetchone() or (0,)
        began, number = time.monotonic(), 0
        while not stop.is_set():
            number += 1
            late = began + number / rate - time.monotonic()
            if late > 0:
                stop.wait(late)
            what = _ACTIONS[chance.choices(range(len(_ACTIONS)), _WEIGHTS)[0]]
            values = {
                "new": last_order + number,
                "order": chance.randrange(1, last_order + number),
                "customer": chance.randrange(1, customers + 1),
                "sku": f"SKU-{chance.randrange(1, products + 1)}",
                "other": f"SKU-{chance.randrange(1, products + 1)}",
                "n": number,
            }
            try:
                with connection.transaction():
                    for statement in what:
                        connection.execute(statement.encode(), values)
            except psycopg.errors.IntegrityError:
                pass  # a product that was renamed, an order that is gone: as in any shop


_BUY = [
    "insert into orders values (%(new)s, now(), %(customer)s, 'new', null, 10)",
    "insert into order_items select %(new)s, now(), n, sku, n, price from products, generate_series(1, 3) n"
    " where sku = %(sku)s",
    "update stock set amount = amount - 1 where sku = %(sku)s",
]
_ACTIONS: list[list[str]] = [
    _BUY,
    ["update orders set status = 'paid', total = total + 1 where id = %(order)s"],
    ["update orders set note = repeat('long ' || md5(%(n)s::text), 200) where id = %(order)s"],
    ["delete from order_items where order_id = %(order)s and line = 2"],
    ["delete from orders where id = %(order)s"],
    # A key change that cascades into two other tables.
    ["update products set sku = sku || '-' || %(n)s::text where sku = %(sku)s"],
    # What is unique moves on, and comes back to somebody else.
    [
        "update customers set email = 'free-' || id::text || '-' || %(n)s::text where id = %(customer)s",
        "update customers set email = 'taken-' || %(n)s::text where id = 1 + %(customer)s / 2",
        "update customers set tags = tags || '{moved}'::text[], address = address || '{\"zip\": 0}' where id = %(customer)s",
    ],
    # An order that moves to another partition.
    ["update orders set created = created + interval '400 days' where id = %(order)s"],
    ["insert into visits values (now(), gen_random_uuid(), '/sale/' || %(n)s::text, '1 second', '::1')"],
    ["update visits set page = '/seen' where session = md5((%(order)s / 10)::text)::uuid"],
    ["delete from visits where session = md5((%(order)s / 9)::text)::uuid"],
]
_WEIGHTS = [30, 20, 4, 6, 3, 2, 6, 3, 20, 1, 1]


# --------------------------------------------------------------------------------------------- watching the run


def _attend(file: Path, run: subprocess.Popen[bytes], stop: Event, traffic: multiprocessing.Process) -> None:
    """Kill workers twice, end the traffic, wait until the target has caught up, and stop the run."""
    from control.status import Collector, caught_up
    from control.watch import note_goal
    from control.wiring import opened_log
    from schemas.pipeline import load_pipeline
    from schemas.states import TableState

    pipeline = load_pipeline(file)
    with opened_log(pipeline) as log, Collector(pipeline, log) as collector:

        def wait_for(what: str, reached: Callable[[], bool]) -> None:
            deadline = time.monotonic() + _DEADLINE
            while not (collector.ready() and reached()):
                if run.poll() is not None:
                    raise ServerUnavailable(f"`penstock run` ended with {run.returncode}")
                if time.monotonic() > deadline:
                    raise ServerUnavailable(f"{what}: not after {_DEADLINE:.0f} s")
                time.sleep(0.05)

        def loaded(share: float) -> bool:
            rows = [row for target in collector.collect(ask_source=False).targets for row in target.tables]
            estimated = sum(row.rows_estimated for row in rows)
            return bool(rows) and sum(row.rows_loaded for row in rows) >= share * estimated

        def done(goal: int | None) -> Callable[[], bool]:
            def reached() -> bool:
                assert collector.setup is not None
                found = collector.progress()
                for _, _, tables, _ in found:
                    for table in tables.values():
                        if table.state is TableState.FAILED:
                            raise ServerUnavailable(f"{table.table} has failed: {table.error}")
                return all(not error and caught_up(tables, groups, goal) for _, error, tables, groups in found)

            return reached

        wait_for("a third of the load", lambda: loaded(0.33))
        _kill(pipeline.state, "snapshot-0", "apply-copy-0")
        wait_for("the load", done(None))
        time.sleep(_TRAFFIC_SECONDS)
        _kill(pipeline.state, "capture", "apply-copy-0")
        time.sleep(_TRAFFIC_SECONDS)
        stop.set()
        traffic.join()
        wait_for("catching up", done(note_goal(pipeline)))
    run.send_signal(signal.SIGTERM)
    if run.wait(30) != 0:
        raise ServerUnavailable(f"`penstock run` ended with {run.returncode}")


def _kill(state: Path, *names: str) -> None:
    """Kill -9 services of the run; its supervisor tells of it, and starts them again."""
    running = json.loads((state / "pids.json").read_text())
    for name in names:
        if name in running:  # a snapshot worker may be done already
            with contextlib.suppress(ProcessLookupError):
                os.kill(running[name], signal.SIGKILL)


def _end(process: multiprocessing.Process) -> None:
    process.kill()
    process.join()


def _end_run(run: subprocess.Popen[bytes]) -> None:
    if run.poll() is None:
        run.terminate()
        try:
            run.wait(20)
        except subprocess.TimeoutExpired:
            run.kill()
            run.wait()


def _compare(source: str, target: str) -> bool:
    from validation.rows import compare_counted

    began = time.monotonic()
    compared = compare_counted(source, target, ["shop.*"])
    for table, rows in compared.rows.items():
        differing = sum(1 for difference in compared.differences if difference.table == table)
        print(f"    {table!s:<24} {rows:>10,} rows  {'equal' if not differing else f'{differing} DIFFERENCES'}")
    for difference in compared.differences:
        print(f"    {difference}")
    _say(f"compared {sum(compared.rows.values()):,} rows in {time.monotonic() - began:.1f} s")
    return not compared.differences


@contextlib.contextmanager
def _connected(url: str) -> Iterator[psycopg.Connection]:
    import psycopg

    with contextlib.closing(psycopg.connect(url, autocommit=True)) as connection:
        yield connection


def _say(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    sys.exit(main())
