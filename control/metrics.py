"""Metrics and health of one service over HTTP; the names are a closed list."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Literal, get_args

MetricName = Literal[
    # Counter: rows that left the source, as changes (capture) or by a load (snapshot).
    "rows",
    # Counter: bytes of records written to, or read from, the log.
    "bytes",
    # Counter: frontiers that capture sealed, or apply applied.
    "frontiers",
    # Counter: whole transactions of the source captured.
    "transactions",
    # Counter: chunks read (snapshot) or loaded (apply).
    "chunks",
    # Counter: transactions committed on the target.
    "commits",
    # Gauge: seconds between now and the commit, at the source, of the last thing that this service finished.
    "lag_seconds",
    # Gauge: bytes of the source's log between its end and where this service stands.
    "lag_bytes",
    # Counter: tables that this service has stopped with an error.
    "tables_failed",
    # Gauge: bytes of its log that the source keeps for the pipeline, and how many it may.
    "wal_retained_bytes",
    "wal_budget_bytes",
    # Gauge: seconds until it keeps as many as it may, at the rate of the last minute; none while it does not grow.
    "wal_full_seconds",
    # Counter: changes that went to the dead letters, refused or because they wait behind one that was.
    "dead_letters",
]
GAUGES = frozenset({"lag_seconds", "lag_bytes", "wal_retained_bytes", "wal_budget_bytes", "wal_full_seconds"})
RunnerMetric = Literal[
    # Counter: pieces of work done.
    "steps",
    # Counter: errors after which the service began anew, by class.
    "retries",
    # Gauge: 1 while the service works or waits for work, 0 while it is backing off.
    "ready",
]

_STALLED_SECONDS = 300.0
"""A step is bounded work; one that takes longer hangs, and a liveness probe may end the process."""


class Health:
    """What the runner tells about its loop, read by the HTTP threads."""

    def __init__(
        self, now: Callable[[], float] = time.monotonic, tell: Callable[[float], None] = lambda begun: None
    ) -> None:
        self._now, self._tell = now, tell
        self.ready = False
        self.steps = 0
        self.retries: dict[str, int] = {}
        self.source: Callable[[], Mapping[str, float]] | None = None  # of the loop that runs now
        self.begun = now()  # the latest step

    def beat(self) -> None:
        """A step begins."""
        self.begun = self._now()
        self._tell(self.begun)

    def alive(self) -> bool:
        return self._now() - self.begun < _STALLED_SECONDS

    def measures(self) -> dict[str, float]:
        """Return the loop's own figures, only those with names of the list."""
        given = self.source() if self.source else {}
        return {name: given[name] for name in get_args(MetricName) if name in given}


class MetricsServer:
    """Answers `/healthz`, `/readyz` and `/metrics` from threads of its own."""

    def __init__(self, health: Health, *, service: str, pipeline: str, host: str, port: int) -> None:
        from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

        from prometheus_client import CollectorRegistry
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        labels, values = ["pipeline", "service"], [pipeline, service]
        registry = CollectorRegistry()

        class _Collector:
            def collect(self) -> Iterator[CounterMetricFamily | GaugeMetricFamily]:
                for name, value in health.measures().items():
                    family = GaugeMetricFamily if name in GAUGES else CounterMetricFamily
                    metric = family(f"penstock_{name}", f"{name} of this service", labels=labels)
                    metric.add_metric(values, value)
                    yield metric
                steps = CounterMetricFamily("penstock_steps", "pieces of work done", labels=labels)
                steps.add_metric(values, health.steps)
                yield steps
                retries = CounterMetricFamily("penstock_retries", "new beginnings", labels=[*labels, "error"])
                for error, number in list(health.retries.items()):
                    retries.add_metric([*values, error], number)
                yield retries
                ready = GaugeMetricFamily("penstock_ready", "1 unless backing off", labels=labels)
                ready.add_metric(values, float(health.ready))
                yield ready

        registry.register(_Collector())

        class _Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                if self.path == "/metrics":
                    from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

                    self._answer(200, generate_latest(registry), CONTENT_TYPE_LATEST)
                elif self.path == "/healthz":
                    self._answer(200 if health.alive() else 503, b"ok\n" if health.alive() else b"stalled\n")
                elif self.path == "/readyz":
                    self._answer(200 if health.ready else 503, b"ready\n" if health.ready else b"not ready\n")
                else:
                    self._answer(404, b"/metrics, /healthz, /readyz\n")

            def _answer(self, status: int, body: bytes, kind: str = "text/plain; charset=utf-8") -> None:
                self.send_response(status)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:
                """Probes come every few seconds: nothing of them belongs into the log."""

        self._server = ThreadingHTTPServer((host, port), _Handler)
        self._server.daemon_threads = True
        self.port: int = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, name="metrics", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
