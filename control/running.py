"""What `penstock run`, `capture`, `snapshot` and `apply` start: which services, in which processes."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import socket
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

from control import wiring
from control.draining import drain
from control.herald import Herald
from control.logs import LogFile, Redactor, configure
from control.messages import Messages
from control.metrics import Health, MetricsServer
from control.service import Exit, StopSignal, serve
from control.supervisor import (
    Service,
    Supervisor,
    Vital,
    current_beat,
    current_stop,
    only_one,
    refusal_text,
    write_json,
)
from schemas import config
from schemas.errors import OperatorError
from schemas.pipeline import Mode, Pipeline

MOST_BY_DEFAULT = 4
"""Workers of a kind that are started when the file does not say: databases are shared with others."""

PIDS = "pids.json"
DONE = "done.json"


class _Metrics(NamedTuple):
    host: str
    port: int


def run_all(pipeline: Pipeline, *, until_caught_up: bool, as_json: bool, metrics_port: int | None) -> int:
    """Run every service of the pipeline and return the exit code."""
    if _is_done(pipeline):
        print(f"{pipeline.pipeline}: the load is complete already; nothing to do")
        return Exit.DONE
    ends = until_caught_up or pipeline.mode is Mode.LOAD
    messages = Messages()
    ports = _ports(metrics_port)
    services = [
        _service(pipeline, "holder", wiring.holder, messages.put, next(ports)),
        _service(pipeline, "capture", wiring.capture, messages.put, next(ports), Vital.FEEDING),
    ]
    for target in pipeline.targets:
        for n in range(_workers(pipeline.workers.apply)):
            # Unless more are asked for, one alone follows the changes: then all tables are as of one moment.
            follows = n == 0 or pipeline.workers.apply is not None
            make = partial(_apply_worker, name=target.name, follows=follows)
            name = f"apply-{target.name}-{n}"
            services.append(_service(pipeline, name, make, messages.put, next(ports), Vital.USEFUL))
    # After those that follow the changes: there is nothing to be read before the holder has set the source up.
    if pipeline.mode is not Mode.CHANGES:
        for n in range(_workers(pipeline.workers.snapshot)):
            make = partial(_snapshot_worker, number=n)
            services.append(_service(pipeline, f"snapshot-{n}", make, messages.put, next(ports), Vital.USEFUL))
    services.append(_service(pipeline, "trimmer", wiring.trimmer, messages.put, next(ports), Vital.USEFUL))
    if pipeline.source.wal_budget is not None:
        services.append(_service(pipeline, "retention", wiring.retention, messages.put, next(ports), Vital.FEEDING))
    if pipeline.mode is Mode.LOAD_AND_CHANGES:
        services.append(_service(pipeline, "registrar", wiring.registrar, messages.put, next(ports), Vital.USEFUL))
    services.append(Service("drain", partial(drain, pipeline, messages.put), Vital.LAST))
    with only_one(pipeline.state):

        def look() -> int:
            from control.watch import display_for, watch

            return watch(
                pipeline,
                stop=current_stop(),
                display=display_for(sys.stdout.isatty(), as_json),
                messages=messages,
                bounded=ends,
                until_caught_up=until_caught_up,
            )

        supervisor = Supervisor(
            [
                *services,
                Service(
                    "watch", look, Vital.JUDGE if ends else Vital.USEFUL, lambda: wiring.preload("watch", pipeline)
                ),
            ],
            bounded=ends,
            pids=pipeline.state / PIDS,
            say=messages.put,
        )
        code = supervisor.run()
        for line in messages.take():
            print(line, file=sys.stderr)
        _tell_refusals(supervisor)
        if supervisor.complete and pipeline.mode is Mode.LOAD:
            finish_load(pipeline)
    return code


def run_capture(pipeline: Pipeline, *, metrics_port: int | None) -> int:
    """Run capture, and beside it the holder, which a kill of capture leaves alone, the trimmer and the registrar."""
    ports = _ports(metrics_port)
    port = next(ports)
    services = [
        _service(pipeline, "capture", wiring.capture, _to_stderr, port),
        _service(pipeline, "holder", wiring.holder, _to_stderr, next(ports)),
        _service(pipeline, "trimmer", wiring.trimmer, _to_stderr, next(ports), Vital.USEFUL),
    ]
    if pipeline.source.wal_budget is not None:
        services.append(_service(pipeline, "retention", wiring.retention, _to_stderr, next(ports)))
    if pipeline.mode is Mode.LOAD_AND_CHANGES:
        services.append(_service(pipeline, "registrar", wiring.registrar, _to_stderr, next(ports), Vital.USEFUL))
    return _supervise(services, pipeline.state / "capture-pids.json")


def run_snapshot(pipeline: Pipeline, *, workers: int | None, first: int | None, metrics_port: int | None) -> int:
    """Run snapshot workers until everything is read."""
    number = workers or 1
    ports = _ports(metrics_port)
    with contextlib.ExitStack() as stack:
        if first is None:
            first = _ordinal()
        numbers = (
            [stack.enter_context(_free_number(pipeline.state)) for _ in range(number)]
            if first is None
            else list(range(first, first + number))
        )
        services = [
            _service(pipeline, f"snapshot-{n}", partial(_snapshot_worker, number=n), _to_stderr, next(ports))
            for n in numbers
        ]
        return _supervise(services, None)


def run_apply(pipeline: Pipeline, *, names: list[str] | None, workers: int | None, metrics_port: int | None) -> int:
    """Run apply workers until stopped; of one target a stop for good leaves the others running."""
    targets = [pipeline.target(name) for name in names] if names else list(pipeline.targets)
    ports = _ports(metrics_port)
    services = [
        _service(
            pipeline,
            f"apply-{target.name}-{n}-{os.getpid()}",
            partial(_apply_worker, name=target.name, follows=True),
            _to_stderr,
            next(ports),
            Vital.USEFUL,
        )
        for target in targets
        for n in range(workers or 1)
    ]
    from control.watch import try_again

    for line in try_again(targets, pipeline.pipeline):
        _to_stderr(line)
    return _supervise(services, None)


def _supervise(services: list[Service], pids: Path | None) -> int:
    if pids is not None:
        pids.parent.mkdir(parents=True, exist_ok=True)
    supervisor = Supervisor(services, bounded=False, pids=pids, say=_to_stderr)
    code = supervisor.run()
    _tell_refusals(supervisor)
    return code


def _tell_refusals(supervisor: Supervisor) -> None:
    told = set()
    for refusal in supervisor.refusals:
        # Workers of one kind most often stop for one reason.
        if (refusal.message, refusal.remedy) not in told:
            told.add((refusal.message, refusal.remedy))
            print(refusal_text(refusal), file=sys.stderr)


def _snapshot_worker(pipeline: Pipeline, stop: StopSignal, *, number: int) -> wiring.Make:
    return wiring.snapshot(pipeline, stop, number)


def _apply_worker(pipeline: Pipeline, stop: StopSignal, *, name: str, follows: bool) -> wiring.Make:
    return wiring.apply(pipeline, stop, name, follows=follows)


def _service(
    pipeline: Pipeline,
    name: str,
    make: Callable[[Pipeline, StopSignal], wiring.Make],
    console: Callable[[str], None],
    metrics: _Metrics | None,
    vital: Vital = Vital.ESSENTIAL,
) -> Service:
    def run() -> int:
        stop = current_stop()
        settings = config.settings()
        file = LogFile(pipeline.state / "logs" / f"{name}.log")
        redact = Redactor(secrets_of(pipeline))
        log = configure(name, file=file, console=console, level=settings.log_level, redact=redact)
        health = Health(tell=current_beat())
        herald = Herald(pipeline, name)
        server = None
        if metrics is not None:
            server = MetricsServer(
                health, service=name, pipeline=pipeline.pipeline, host=metrics.host, port=metrics.port
            )
        log.info("started")
        try:
            return serve(make(pipeline, stop), stop=stop, log=log, health=health, tell=herald.tell)
        finally:
            herald.close()
            if server is not None:
                server.close()
            file.close()

    kind = name.partition("-")[0]
    return Service(name, run, vital, lambda: wiring.preload(kind, pipeline))


def _to_stderr(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _workers(asked: int | None) -> int:
    return asked or max(1, min(MOST_BY_DEFAULT, len(os.sched_getaffinity(0)) if sys.platform == "linux" else 2))


def _ports(first: int | None) -> Iterator[_Metrics | None]:
    settings = config.settings()
    port = first if first is not None else settings.metrics_port
    while True:
        yield None if port is None else _Metrics(settings.metrics_host, port)
        port = None if port is None else port + 1


def secrets_of(pipeline: Pipeline) -> list[str]:
    """Return what must not be printed: passwords of URLs, settings of the log."""
    urls = [pipeline.source.url, *(target.url for target in pipeline.targets)]
    passwords = [re.search(r"://[^/@]*?:([^@]*)@", url.get_secret_value()) for url in urls]
    return [match[1] for match in passwords if match] + [
        value for name, value in pipeline.log.plain_settings().items() if "password" in name or "secret" in name
    ]


# --------------------------------------------------------------------------------------------- numbers of workers


def _ordinal() -> int | None:
    """The number that a stateful set of Kubernetes gives a pod, at the end of its host name."""
    match = re.fullmatch(r".*-(\d{1,2})", socket.gethostname()) if os.path.exists("/var/run/secrets") else None
    return int(match[1]) if match and int(match[1]) < 16 else None


@contextlib.contextmanager
def _free_number(state: Path) -> Iterator[int]:
    """Lend a worker number that no other worker of this machine has; the kernel takes it back from the dead."""
    state.mkdir(parents=True, exist_ok=True)
    for number in range(16):
        with (state / f"worker-{number}.lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            yield number
            return
    raise OperatorError("16 snapshot workers run on this machine already", remedy="more do not make it faster")


# ------------------------------------------------------------------------------------------------ the end of a load


def finish_load(pipeline: Pipeline) -> None:
    """Drop what a finished load no longer needs at the source, and remember that it is finished."""
    from control.dropping import drop_source

    drop_source(pipeline)
    write_json(
        pipeline.state / DONE, {"pipeline": pipeline.pipeline, "targets": [target.name for target in pipeline.targets]}
    )


def _is_done(pipeline: Pipeline) -> bool:
    """Whether a load has ended here before. Raises `OperatorError` if it was another one's than the file asks for."""
    import json

    if pipeline.mode is not Mode.LOAD:
        return False
    try:
        found = json.loads((pipeline.state / DONE).read_text())
    except FileNotFoundError:
        return False
    new = {target.name for target in pipeline.targets} - set(found["targets"])
    if new:
        raise OperatorError(
            f"{pipeline.where('targets')}the load of this pipeline is complete, and its slot is dropped:"
            f" {', '.join(sorted(new))} can't be added",
            remedy="load the new targets by a pipeline of their own, or `penstock drop` this one and run it again",
        )
    return True
