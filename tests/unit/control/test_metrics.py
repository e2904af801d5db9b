"""Health, readiness and metrics of a service, asked over HTTP as Kubernetes and Prometheus do."""

import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import get_args

import pytest

from control.metrics import Health, MetricName, MetricsServer, RunnerMetric
from control.service import Backoff, Loop, StopSignal, serve
from schemas.errors import SourceUnavailable
from tests.unit.control.test_service import Log


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@contextmanager
def serving(health: Health) -> Iterator[MetricsServer]:
    server = MetricsServer(health, service="capture", pipeline="shop", host="127.0.0.1", port=0)
    try:
        yield server
    finally:
        server.close()


def ask(server: MetricsServer, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{server.port}{path}", timeout=10) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def test_a_service_is_ready_while_its_loop_runs() -> None:
    health = Health()
    with serving(health) as server:
        assert ask(server, "/readyz") == (503, "not ready\n")
        health.ready = True
        assert ask(server, "/readyz") == (200, "ready\n")


def test_a_service_whose_step_hangs_is_not_healthy() -> None:
    clock = Clock()
    health = Health(clock)
    with serving(health) as server:
        assert ask(server, "/healthz") == (200, "ok\n")
        clock.now = 301.0
        assert ask(server, "/healthz") == (503, "stalled\n")
        health.beat()
        assert ask(server, "/healthz") == (200, "ok\n")


def test_metrics_have_the_names_of_the_list_and_their_labels() -> None:
    health = Health()
    health.source = lambda: {"rows": 7, "lag_seconds": 0.5, "of_its_own": 1}
    health.steps, health.ready, health.retries = 3, True, {"SourceUnavailable": 2}
    with serving(health) as server:
        status, text = ask(server, "/metrics")
    labels = 'pipeline="shop",service="capture"'
    assert status == 200
    shown = [line for line in text.splitlines() if not line.startswith("#")]
    assert shown == [
        f"penstock_rows_total{{{labels}}} 7.0",
        f"penstock_lag_seconds{{{labels}}} 0.5",
        f"penstock_steps_total{{{labels}}} 3.0",
        f'penstock_retries_total{{error="SourceUnavailable",{labels}}} 2.0',
        f"penstock_ready{{{labels}}} 1.0",
    ]
    names = {line.partition("{")[0].removeprefix("penstock_").removesuffix("_total") for line in shown}
    assert names - set(get_args(MetricName)) == set(get_args(RunnerMetric))
    assert "# TYPE penstock_rows_total counter" in text
    assert "# TYPE penstock_lag_seconds gauge" in text


def test_another_path_names_those_there_are() -> None:
    with serving(Health()) as server:
        assert ask(server, "/") == (404, "/metrics, /healthz, /readyz\n")


class Failing:
    """A loop that fails once it has told that it runs."""

    def __init__(self, health: Health, seen: list[bool]) -> None:
        self._health, self._seen = health, seen

    def step(self) -> bool:
        self._seen.append(self._health.ready)
        raise SourceUnavailable("gone")

    def wait(self, timeout: float) -> None:
        raise AssertionError("never asked")


def test_a_service_that_backs_off_is_not_ready() -> None:
    health, stop, seen = Health(), StopSignal(), list[bool]()

    @contextmanager
    def make() -> Iterator[Loop]:
        yield Failing(health, seen)

    runner = threading.Thread(
        target=serve,
        args=(make,),
        kwargs={"stop": stop, "log": Log(), "health": health, "backoff": Backoff(60.0, 60.0)},
    )
    runner.start()
    try:
        with serving(health) as server:
            deadline = 1000
            while not health.retries and deadline:
                deadline -= 1
                runner.join(0.01)
            assert ask(server, "/readyz") == (503, "not ready\n")
            assert ask(server, "/healthz") == (200, "ok\n")
    finally:
        stop.request()
        runner.join(10)
    assert seen == [True]
    assert health.retries == {"SourceUnavailable": 1}


def test_a_port_that_is_taken_is_told() -> None:
    with serving(Health()) as server, pytest.raises(OSError, match="in use"):
        MetricsServer(Health(), service="a", pipeline="p", host="127.0.0.1", port=server.port)
