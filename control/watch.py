"""The watching process of `penstock run`: shows how far everything is, and says when a bounded run is over."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from control.amounts import bytes_text, duration_text
from control.messages import Messages
from control.service import StopSignal
from control.status import Collector, PipelineStatus, SourceStatus, TableStatus, TargetStatus, caught_up
from control.wiring import opened_log
from schemas.errors import OperatorError, ReplicationError, TransientError
from schemas.pipeline import Mode, Pipeline, TargetSettings
from schemas.states import STOPPED, TableState
from schemas.table import TableId
from snapshot import rules

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

_QUICKEST, _SLOWEST = 0.02, 0.5
_SHARE = 20
"""Looking may take one part in so many of the time: thousands of tables are looked at less often."""

_RAREST_LINES = 30.0
_NEWS_SECONDS = 5.0
_TABLES_SHOWN = 25
_TROUBLES_SHOWN = 5


class Display(Protocol):
    """How the state of things is shown."""

    every: float  # seconds

    def show(self, status: PipelineStatus) -> None: ...
    def say(self, line: str) -> None: ...
    def close(self) -> None: ...


class Pace:
    """How long to wait between two looks for the end of a run."""

    def __init__(self) -> None:
        self._before = 0.0

    def after(self, seconds: float) -> float:
        """Return the pause after a look that took so long. A single slow one is no measure: the first connects."""
        pause = min(max(_QUICKEST, _SHARE * min(seconds, self._before)), _SLOWEST)
        self._before = seconds
        return pause


def watch(
    pipeline: Pipeline,
    *,
    stop: StopSignal,
    display: Display,
    messages: Messages,
    bounded: bool,
    until_caught_up: bool,
    now: Callable[[], float] = time.monotonic,
) -> int:
    """Show the pipeline until `stop`; return 0 when a bounded run has come to its end.

    Raises `OperatorError` at the end of a bounded run if tables have failed.
    """
    began = now()
    goal: int | None = None
    awaited: set[TableId] | None = None  # tables that are new at the source; None: nobody has looked
    follows = until_caught_up and pipeline.mode is Mode.LOAD_AND_CHANGES
    quick = bounded
    pace = Pace()
    complained, failing_since = False, 0.0
    shown = began if isinstance(display, PlainDisplay) else -1e9  # what has just begun is worth no line
    with (
        contextlib.closing(display),
        opened_log(pipeline) as log,
        contextlib.closing(Collector(pipeline, log)) as collector,
    ):
        for line in try_again(pipeline.targets, pipeline.pipeline):
            display.say(line)
        while not stop:
            for line in messages.take():
                display.say(line)
            started = now()
            try:
                if until_caught_up and goal is None:
                    goal = note_goal(pipeline)
                over = quick and collector.ready() and _over(collector, goal, pipeline.mode)
                if over and follows and (awaited is None or awaited):
                    # Looked for when all others are done, and again until all are the pipeline's: then it is asked
                    # once more whether these, too, are done.
                    from control.registrar import coming

                    new = coming(pipeline, log)
                    if awaited is None and new:
                        display.say(
                            f"waiting for tables that are new at the source: {', '.join(map(str, sorted(new)))}"
                        )
                    awaited = new if awaited is None else awaited & new
                elif over:
                    status = collector.collect(ask_source=False)
                    display.show(status)
                    for line in messages.take():
                        display.say(line)
                    _judge(status)
                    display.say(summary(status, now() - began))
                    return 0
                if started - shown >= display.every:
                    shown = started
                    display.show(collector.collect())
                complained, failing_since = False, 0.0
            except TransientError as error:
                # The services have their own retries and tell of them; looking again is all there is to do here.
                # A short trouble is no news, and of a longer one the services tell as well.
                failing_since = failing_since or started
                if not complained and started - failing_since > _NEWS_SECONDS:
                    display.say(f"watch: {error}")
                    complained = True
                stop.wait(_QUICKEST if started - failing_since < _NEWS_SECONDS else _SLOWEST)
                continue
            stop.wait(pace.after(now() - started) if quick else min(display.every, _SLOWEST))
        for line in messages.take():
            display.say(line)
    return 0


def try_again(targets: Sequence[TargetSettings], pipeline: str) -> Iterator[str]:
    """Let the tables that have failed before try again, since what they lacked may be there now; yield what to say."""
    from apply.postgres.control import resume_failed

    for target in targets:
        with contextlib.suppress(ReplicationError):  # who writes to the target says so
            if number := resume_failed(target, pipeline):
                yield f"{target.name}: {number} table{'s' * (number > 1)} that had failed: trying again"


def _over(collector: Collector, goal: int | None, mode: Mode) -> bool:
    assert collector.setup is not None
    rules.require_mode(collector.setup, mode)
    return all(not error and caught_up(tables, groups, goal) for _, error, tables, groups in collector.progress())


def _judge(status: PipelineStatus) -> None:
    failed = [(t.name, row) for t in status.targets for row in t.tables if row.state == TableState.FAILED]
    if failed:
        lines = [f"{row.table} on {target}: {row.error}" for target, row in failed[:_TROUBLES_SHOWN]]
        lines += [f"and {len(failed) - len(lines)} more"] if len(failed) > len(lines) else []
        remedies = sorted({row.remedy for _, row in failed if row.remedy})
        raise OperatorError(
            f"{len(failed)} table{'s have' if len(failed) > 1 else ' has'} failed, all others are complete: "
            + "; ".join(lines),
            remedy="; ".join(remedies) or "see `penstock status`",
        )


def note_goal(pipeline: Pipeline) -> int:
    """Mark the end of the source's log as it is now, and return the position: capture reaches it, however idle the
    source is from here on."""
    from engines.postgres.connect import connect
    from engines.postgres.errors import translated
    from engines.postgres.replication import emit_message

    with (
        translated("source", "noting where it stands"),
        contextlib.closing(
            connect(pipeline.source.url.get_secret_value(), role="control", application="penstock run")
        ) as connection,
    ):
        return emit_message(connection, "penstock", "until")


# ----------------------------------------------------------------------------------------------------- showing


def summary(status: PipelineStatus, seconds: float) -> str:
    """One line at the end of a bounded run."""
    parts = []
    for target in status.targets:
        loaded = sum(row.rows_loaded for row in target.tables)
        changes = sum(row.changes_applied for row in target.tables)
        text = f"{target.name}: {len(target.tables)} tables, {loaded:,} rows loaded"
        parts.append(text + (f", {changes:,} changes applied" if changes else ""))
    return f"complete after {seconds:.1f} s ({'; '.join(parts)})"


def line_of(target: TargetStatus, rate: float) -> str:
    """One line about a target."""
    if target.error:
        return f"{target.name}: {target.error}"
    states = [row.state for row in target.tables]
    live, failed = states.count(TableState.LIVE), states.count(TableState.FAILED)
    loaded = sum(row.rows_loaded for row in target.tables)
    estimated = sum(row.rows_estimated for row in target.tables)
    changes = sum(row.changes_applied for row in target.tables)
    parts = [f"{live} of {len(states)} tables live"]
    if failed:
        parts.append(f"{failed} FAILED")
    parts += [f"{states.count(state)} {state}" for state in (TableState.PAUSED, TableState.SKIPPED) if state in states]
    if any(row.state != TableState.LIVE and row.state not in STOPPED for row in target.tables):
        parts.append(f"{loaded:,} of {max(estimated, loaded):,} rows loaded" + (f" ({rate:,.0f}/s)" if rate else ""))
    parts.append(f"{changes:,} changes applied")
    parts.append(lag_text(target.lag.seconds, target.lag.bytes, target.lag.where))
    return f"{target.name}: " + ", ".join(parts)


def _in_trouble(target: TargetStatus) -> list[TableStatus]:
    """Return the first of the tables that have failed, or lack something though they go on: first those that have."""
    found = [row for row in target.tables if row.error]
    return sorted(found, key=lambda row: row.state != TableState.FAILED)[:_TROUBLES_SHOWN]


def trouble_text(row: TableStatus) -> str:
    """What is wrong with a table, and what to do, in a line each."""
    how = "has failed:" if row.state == TableState.FAILED else f"is {row.state}, but"
    return f"{row.table} {how} {row.error}" + (f"\n  {row.remedy}" if row.remedy else "")


def lag_text(seconds: float, size: int, where: str) -> str:
    """A lag in words."""
    if not where:
        return "up to date"
    return f"{seconds:.1f} s and {bytes_text(size)} behind ({where})"


class _Rates:
    """Rows a second of each table of each target, over the last seconds."""

    def __init__(self) -> None:
        self._before: dict[tuple[str, str], list[tuple[float, int]]] = {}

    def of(self, target: str, table: str, at: float, rows: int) -> float:
        points = self._before.setdefault((target, table), [])
        points.append((at, rows))
        while len(points) > 2 and points[0][0] < at - 3:
            points.pop(0)
        (first_at, first), (last_at, last) = points[0], points[-1]
        return (last - first) / (last_at - first_at) if last_at > first_at else 0.0


class PlainDisplay:
    """Lines for files and pipes, of what is new: after a second, and then less and less often."""

    def __init__(self, longest: float) -> None:
        self.every, self._longest = 1.0, longest
        self._rates = _Rates()
        self._shown: dict[str, str] = {}

    def show(self, status: PipelineStatus) -> None:
        self.every = min(self.every * 1.5, self._longest)
        if not status.set_up:
            self._print(status.pipeline, f"{status.pipeline}: not set up yet")
        for target in status.targets:
            loaded = sum(row.rows_loaded for row in target.tables)
            self._print(target.name, line_of(target, self._rates.of(target.name, "", status.at, loaded)))
            for row in _in_trouble(target):
                self._print(f"{target.name} {row.table}", f"{target.name}: {trouble_text(row)}")

    def _print(self, of: str, line: str) -> None:
        if self._shown.get(of) != line:
            self._shown[of] = line
            print(line, flush=True)

    def say(self, line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    def close(self) -> None:
        """Nothing to give back."""


class JsonDisplay:
    """A status object a line, for programs."""

    every = 1.0

    def show(self, status: PipelineStatus) -> None:
        print(json.dumps(status.as_json()), flush=True)

    def say(self, line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    def close(self) -> None:
        """Nothing to give back."""


class LiveDisplay:
    """A table that is drawn over itself, for terminals."""

    every = 0.25

    def __init__(self, console: Console | None = None) -> None:
        from rich.console import Console
        from rich.live import Live

        self._console = console or Console()
        self._rates = _Rates()
        self._live = Live(console=self._console, auto_refresh=False, transient=False)
        self._started = False

    def show(self, status: PipelineStatus) -> None:
        if not self._started:
            self._live.start()
            self._started = True
        self._live.update(render(status, self._rates), refresh=True)

    def say(self, line: str) -> None:
        self._console.print(line, markup=False, highlight=False)

    def close(self) -> None:
        if self._started:
            self._live.stop()


_STYLES = {TableState.LIVE.value: "green", TableState.FAILED.value: "red", TableState.SKIPPED.value: "dim"}


def render(status: PipelineStatus, rates: _Rates | None = None) -> RenderableType:
    """The state of a pipeline as a table of rich."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    rates = rates or _Rates()
    parts: list[Any] = []
    if not status.set_up:
        return Text(f"{status.pipeline}: being set up …")
    for target in status.targets:
        if target.error:
            parts.append(Text(f"{target.name}: {target.error}", style="red"))
        grid = Table(title=None, box=None, pad_edge=False, header_style="bold")
        for heading, justify in (
            (target.name, "left"),
            ("state", "left"),
            ("loaded", "right"),
            ("of about", "right"),
            ("rows/s", "right"),
            ("changes", "right"),
            ("lag", "left"),
        ):
            grid.add_column(heading, justify=justify, no_wrap=True)  # type: ignore[arg-type]
        ordered = sorted(target.tables, key=lambda row: (row.state == TableState.LIVE, row.table))
        for row in ordered[:_TABLES_SHOWN]:
            rate = rates.of(target.name, row.table, status.at, row.rows_loaded + row.changes_applied)
            style = _STYLES.get(row.state, "yellow")
            grid.add_row(
                Text(f"{row.table} (now {row.renamed})" if row.renamed else row.table),  # its brackets are no markup
                Text(row.state, style=style),
                f"{row.rows_loaded:,}",
                f"{row.rows_estimated:,}",
                f"{rate:,.0f}" if rate >= 1 else "",
                f"{row.changes_applied:,}",
                lag_text(row.lag.seconds, row.lag.bytes, row.lag.where) if row.state not in STOPPED else "",
            )
            if row.dead_letters:
                letters = f"{row.dead_letters:,} dead letter{'s' * (row.dead_letters != 1)}"
                grid.add_row(Text(f"  {letters}: `penstock dead-letters list`", style="yellow"))
        if len(ordered) > _TABLES_SHOWN:
            grid.add_row(f"… and {len(ordered) - _TABLES_SHOWN} more")
        parts.append(grid)
        parts += [Text(trouble_text(row), style="red") for row in _in_trouble(target)]
    source = status.source
    if source.error:
        parts.append(Text(source.error, style="red"))
    budget = f" of {bytes_text(status.log_budget)}" if status.log_budget else ""
    parts.append(
        Text(
            f"source keeps {bytes_text(source.retained_bytes)}{_wal_budget(source)} for us,"
            f" log {bytes_text(status.log_bytes)}{budget}",
            style="dim",
        )
    )
    return Group(*parts)


def _wal_budget(source: SourceStatus) -> str:
    if not source.wal_budget:
        return ""
    full = "" if source.wal_full_seconds is None else f", full in about {duration_text(source.wal_full_seconds)}"
    return f" (of {bytes_text(source.wal_budget)}{full})"


def display_for(terminal: bool, as_json: bool, longest: float = _RAREST_LINES) -> Display:
    """Return the display that suits where the output goes."""
    if as_json:
        return JsonDisplay()
    return LiveDisplay() if terminal else PlainDisplay(longest)
