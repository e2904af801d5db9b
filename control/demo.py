"""`make demo`: a whole pipeline between two servers of its own, with traffic, kills, and proof at the end.

Everything lives in a temporary folder and ends with this program, however it ends.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from control.servers.kafka import KafkaServer
from control.servers.postgres import PostgresServer
from control.servers.process import ServerUnavailable, dying_with_us
from control.shop import Traffic, fill

_DEADLINE = 300.0
_TRAFFIC_SECONDS = 4.0
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


class _Story:
    """What is told on the way, each line with the seconds since the beginning."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._bold = ("\x1b[1m", "\x1b[0m") if sys.stdout.isatty() else ("", "")

    def seconds(self) -> float:
        return time.monotonic() - self._began

    def tell(self, text: str) -> None:
        bold, plain = self._bold
        print(f"{bold}{self.seconds():4.0f} s  {text}{plain}", flush=True)


def _demo(stack: contextlib.ExitStack, log: str, rows: int, rate: float) -> int:
    story = _Story()
    story.tell("Two PostgreSQL servers are started: 16 as the source, 18 as the target.")
    # The wheel's defaults are those of a laptop of 2005: a checkpoint each gigabyte would be all that is seen.
    conf = {"max_wal_size": "8GB", "shared_buffers": "256MB"}
    source = stack.enter_context(PostgresServer(16, durable=True, conf=conf))
    target = stack.enter_context(PostgresServer(18, durable=True, conf=conf))
    address = ""
    if log == "kafka":
        story.tell("A Kafka broker is started.")
        address = f"log: kafka://{stack.enter_context(KafkaServer()).bootstrap}\n"
    for server in (source, target):
        server.create_database("shop")

    story.tell(f"The source is filled with a shop of about {rows:,} rows.")
    fill(source.url("shop"), rows)

    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="penstock-demo-")))
    file = folder / "pipeline.yaml"
    file.write_text(
        f"pipeline: shop\n"
        f"source:\n  url: {source.url('shop')}\n"
        f'tables: ["shop.*"]\n{address}'
        f"targets:\n  - name: copy\n    url: {target.url('shop')}\n"
    )
    story.tell(f"The pipeline file {file}:\n")
    print("".join(f"        {line}\n" for line in file.read_text().splitlines()), flush=True)

    traffic = Traffic(source.url("shop"), rate)
    stack.callback(traffic.close)
    story.tell(f"Traffic begins, up to {rate:,.0f} transactions a second, and `penstock run pipeline.yaml`.\n")
    # Should this program be killed, the run gets a SIGTERM from the kernel.
    run = subprocess.Popen(dying_with_us([sys.executable, "-m", "control", "run", str(file)], signal.SIGTERM))
    stack.callback(_end_run, run)
    killed = _attend(file, run, traffic)

    print(flush=True)
    story.tell(f"The traffic has stopped after {traffic.transactions:,} transactions, and the target has caught up.")
    story.tell("Every table is compared, row by row.\n")
    equal = _compare(source.url("shop"), target.url("shop"))
    print(flush=True)
    story.tell("`penstock drop pipeline.yaml` removes what is ours.\n")
    dropped = subprocess.run([sys.executable, "-m", "control", "drop", "--yes", str(file)], check=False)
    print(flush=True)
    if not equal or dropped.returncode:
        story.tell("THE DEMO HAS FAILED.")
        return 1
    story.tell(f"All tables are equal, after kill -9 of {', '.join(killed[:-1])} and {killed[-1]}.")
    return 0


# --------------------------------------------------------------------------------------------- watching the run


def _attend(file: Path, run: subprocess.Popen[bytes], traffic: Traffic) -> list[str]:
    """Kill workers twice, end the traffic, wait until the target has caught up, and stop the run; return whom we
    killed."""
    from control.status import Collector, caught_up
    from control.watch import note_goal
    from control.wiring import opened_log
    from schemas.errors import TransientError
    from schemas.pipeline import load_pipeline
    from schemas.states import TableState

    pipeline = load_pipeline(file)
    with opened_log(pipeline) as log, contextlib.closing(Collector(pipeline, log)) as collector:

        def wait_for(what: str, reached: Callable[[], bool]) -> None:
            deadline = time.monotonic() + _DEADLINE
            while True:
                # What passes, such as a topic that was just made and has no leader yet, is for the next look.
                with contextlib.suppress(TransientError):
                    if collector.ready() and reached():
                        return
                code = run.poll()
                if code == 0:
                    # It ends so only if it is told to: by Ctrl-C, which reaches all processes of a terminal, and which
                    # a callback may have kept from us.
                    raise KeyboardInterrupt
                if code is not None:
                    raise ServerUnavailable(f"`penstock run` ended with {code}")
                if time.monotonic() > deadline:
                    raise ServerUnavailable(f"{what}: not after {_DEADLINE:.0f} s")
                time.sleep(0.05)

        def read(share: float) -> bool:
            rows = [row for target in collector.collect(ask_source=False).targets for row in target.tables]
            estimated = sum(row.rows_estimated for row in rows)
            return bool(rows) and sum(row.rows_read for row in rows) >= share * estimated

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

        wait_for("the services", lambda: bool(_running(pipeline.state)))
        wait_for("a third of the load", lambda: read(0.33))
        killed = _kill(pipeline.state, "snapshot-0", "apply-copy-0")
        wait_for("the load", done(None))
        time.sleep(_TRAFFIC_SECONDS)
        killed += _kill(pipeline.state, "capture", "apply-copy-0")
        time.sleep(_TRAFFIC_SECONDS)
        traffic.stop()
        wait_for("catching up", done(note_goal(pipeline)))
    run.send_signal(signal.SIGTERM)
    if run.wait(30) != 0:
        raise ServerUnavailable(f"`penstock run` ended with {run.returncode}")
    return killed


def _running(state: Path) -> dict[str, int]:
    """Return the process ids of the run's services; nothing before it has started all, or when it has ended."""
    try:
        running: dict[str, int] = json.loads((state / "pids.json").read_text())
    except FileNotFoundError:
        return {}
    return running


def _kill(state: Path, *names: str) -> list[str]:
    """Kill -9 services of the run and return whom; its supervisor tells of it, and starts them again."""
    running = _running(state)
    if not running:
        # The run ends at Ctrl-C, and may have heard of it before us.
        raise KeyboardInterrupt
    killed = []
    for name in names:
        with contextlib.suppress(KeyError, ProcessLookupError):  # a snapshot worker may be done already
            os.kill(running[name], signal.SIGKILL)
            killed.append(name)
    return killed


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

    compared = compare_counted(source, target, ["shop.*"])
    for table, rows in compared.rows.items():
        differing = sum(1 for difference in compared.differences if difference.table == table)
        found = "equal" if not differing else f"{differing} DIFFERENCES"
        print(f"        {table!s:<24} {rows:>10,} rows  {found}")
    for difference in compared.differences:
        print(f"        {difference}")
    return not compared.differences


if __name__ == "__main__":
    sys.exit(main())
