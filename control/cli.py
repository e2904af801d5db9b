"""The command line. Commands are thin; what is heavy is imported by the command that needs it."""

from __future__ import annotations

import contextlib
import functools
import gc
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ParamSpec

import typer

from control.service import Exit
from schemas.errors import OperatorError, ReplicationError, TransientError

if TYPE_CHECKING:
    from control.letters import Chosen, Letters
    from control.logview import Line
    from schemas.pipeline import Pipeline

P = ParamSpec("P")

_WATCH_SECONDS = 1.0
_EXIT_CODES = """
Exit codes: 0 done, or stopped on request; 1 a crash (see the logs under the state folder); 2 a wrong command line;
3 somebody has to act: the message says what is wrong and what to do; 4 `check` has found something to mend.
"""

app = typer.Typer(
    name="penstock",
    help="Moves PostgreSQL databases and keeps them moving: load, then every change, exactly once.\n\n" + _EXIT_CODES,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode=None,
)

File = Annotated[Path, typer.Argument(metavar="FILE", help="The pipeline file.", show_default=False)]
AsJson = Annotated[bool, typer.Option("--json", help="Write JSON, one object a line, for programs.")]
MetricsPort = Annotated[
    int | None,
    typer.Option("--metrics-port", help="Answer /metrics, /healthz and /readyz on this port.", show_default=False),
]


def _told(command: Callable[P, None]) -> Callable[P, None]:
    """Let a command turn errors that are expected into a message, a remedy and an exit code; anything else keeps its
    traceback."""

    @functools.wraps(command)
    def told(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            command(*args, **kwargs)
        except ReplicationError as error:
            print(f"penstock: {error}", file=sys.stderr)
            if remedy := error.remedy or ("try again" if isinstance(error, TransientError) else ""):
                print(f"  {remedy}", file=sys.stderr)
            code = Exit.OPERATOR if isinstance(error, OperatorError) else Exit.CRASHED
        except KeyboardInterrupt:
            code = Exit.DONE
        except BrokenPipeError:
            # The reader of our output has seen enough, as `head` does; what is still buffered must not fail at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            code = Exit.DONE
        else:
            return
        raise typer.Exit(code)

    return told


def _show_version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        print(f"penstock {version('penstock')}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version, and end.")
    ] = False,
) -> None: ...


@app.command()
@_told
def run(
    file: File,
    until_caught_up: Annotated[
        bool,
        typer.Option(
            "--until-caught-up", help="End with 0 when all that is committed at the source now is in every target."
        ),
    ] = False,
    as_json: AsJson = False,
    metrics_port: Annotated[
        int | None,
        typer.Option("--metrics-port", help="First port for metrics; each service takes the next.", show_default=False),
    ] = None,
) -> None:
    """Run capture, load and apply, and watch over them.

    Each is a process of its own, started again if it dies. Goes on where the run before was, however that ended.
    Ends by itself with `mode: load` and with --until-caught-up; else Ctrl-C or SIGTERM stop it within seconds.

    \b
    Examples:  penstock run pipeline.yaml
               penstock run pipeline.yaml --until-caught-up
    """
    from control.running import run_all

    pipeline = _load(file)
    code = run_all(pipeline, until_caught_up=until_caught_up, as_json=as_json, metrics_port=metrics_port)
    raise typer.Exit(code)


@app.command()
@_told
def capture(file: File, metrics_port: MetricsPort = None) -> None:
    """Capture the source's changes into the log.

    Runs until stopped. The first start prepares the source: publications, slot and snapshot.

    \b
    Example:  penstock capture pipeline.yaml --metrics-port 9187
    """
    from control.running import run_capture

    raise typer.Exit(run_capture(_load(file), metrics_port=metrics_port))


@app.command()
@_told
def snapshot(
    file: File,
    workers: Annotated[int | None, typer.Option(min=1, max=16, help="Processes to start.", show_default=False)] = None,
    worker: Annotated[
        int | None,
        typer.Option(
            min=0, max=15, help="The number of the first one. Several machines need different ones.", show_default=False
        ),
    ] = None,
    metrics_port: MetricsPort = None,
) -> None:
    """Load: read tables into the log, chunk by chunk.

    With `mode: load` it ends when all are read; else it runs until stopped, for tables that are to be loaded anew. Any
    number of these may run, on any machines.

    \b
    Example:  penstock snapshot pipeline.yaml --workers 4
    """
    from control.running import run_snapshot

    raise typer.Exit(run_snapshot(_load(file), workers=workers, first=worker, metrics_port=metrics_port))


@app.command()
@_told
def apply(
    file: File,
    target: Annotated[list[str] | None, typer.Option(help="Only this target (may be repeated).")] = None,
    workers: Annotated[int | None, typer.Option(min=1, max=64, help="Processes a target.", show_default=False)] = None,
    metrics_port: MetricsPort = None,
) -> None:
    """Apply the log to the targets.

    Runs until stopped. Any number of these may run, on any machines: they share the tables.

    \b
    Example:  penstock apply pipeline.yaml --target reports --workers 2
    """
    from control.running import run_apply

    raise typer.Exit(run_apply(_load(file), names=target, workers=workers, metrics_port=metrics_port))


@app.command()
@_told
def check(file: File, as_json: AsJson = False) -> None:
    """Look whether source, log and targets are ready.

    Changes nothing. Each finding comes with its remedy. Exit code 4 if something has to be mended.

    \b
    Example:  penstock check pipeline.yaml
    """
    from control.checks import check_all

    findings = check_all(_load(file))
    for finding in findings:
        if as_json:
            print(json.dumps(finding._asdict()))
        else:
            mark = "error  " if finding.blocking else "warning"
            print(f"{mark} {finding.where}: {finding.problem}")
            if finding.remedy:
                print("        " + finding.remedy.replace("\n", "\n        "))
    blocking = sum(finding.blocking for finding in findings)
    if not as_json:
        warnings = len(findings) - blocking
        known = f"{warnings} warning{'s' if warnings != 1 else ''}"
        if blocking:
            print(f"{blocking} to be mended" + (f", {known}" if warnings else ""))
        else:
            print("everything is ready" + (f", with {known}" if warnings else ""))
    raise typer.Exit(Exit.DIFFERENT if blocking else Exit.DONE)


@app.command()
@_told
def plan(file: File, as_json: AsJson = False) -> None:
    """Tell what is going to happen, and change nothing.

    For each target, in the order in which it is done: every table and column and what becomes of it, every loss, every
    constraint and index, which tables change together, views, owners and grants if they are wanted, and about how long
    the load takes.

    \b
    Example:  penstock plan pipeline.yaml
    """
    from dataclasses import asdict

    from control.planning import lines_of, plan_all

    for target in plan_all(_load(file)):
        if as_json:
            print(json.dumps(asdict(target)))
        else:
            print("\n".join(lines_of(target)))


@app.command()
@_told
def status(
    file: File,
    watch: Annotated[bool, typer.Option("--watch", help="Look again every second, until Ctrl-C.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show where each table of each target stands.

    State, rows loaded of those estimated, changes applied, and the lag and where it sits.

    \b
    Examples:  penstock status pipeline.yaml --watch
               penstock status pipeline.yaml --json
    """
    from control.status import Collector
    from control.watch import display_for, render
    from control.wiring import A_LOOK, opened_log

    pipeline = _load(file)
    with opened_log(pipeline, patience=A_LOOK) as log, contextlib.closing(Collector(pipeline, log)) as collector:
        if not watch:
            found = collector.collect()
            if found.source.wal_budget:  # how fast that fills is seen in a second look
                time.sleep(_WATCH_SECONDS)
                found = collector.collect()
            if as_json:
                print(json.dumps(found.as_json()))
            elif not found.set_up:
                print(f"{pipeline.pipeline}: not set up yet; `penstock run {file}` begins")
            else:
                from rich.console import Console

                Console(width=None if sys.stdout.isatty() else 200).print(render(found))
            return
        display = display_for(sys.stdout.isatty(), as_json, longest=_WATCH_SECONDS)
        with contextlib.closing(display):
            while True:
                display.show(collector.collect())
                time.sleep(_WATCH_SECONDS)


@app.command()
@_told
def events(
    file: File,
    table: Annotated[
        str | None,
        typer.Argument(
            metavar="TABLE", help="Only of this table, or of tables that fit `schema.*`.", show_default=False
        ),
    ] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Wait for more, until Ctrl-C.")] = False,
    since: Annotated[
        str | None,
        typer.Option(
            metavar="DURATION|TIME",
            help="Only of the last 30m, 2h, 1d, or since '2026-07-01 14:30'.",
            show_default=False,
        ),
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the last so many.", show_default=False)] = None,
    as_json: AsJson = False,
) -> None:
    """Show what has happened to tables and services.

    Changes of state, errors with their remedies, commands. The log keeps the last 100,000.

    \b
    Examples:  penstock events pipeline.yaml --since 2h
               penstock events pipeline.yaml --since "2026-07-01 14:30"
               penstock events pipeline.yaml public.orders --follow
    """
    from control.eventview import events_of, moment
    from control.wiring import A_LOOK, opened_log

    pipeline = _load(file)
    try:
        earliest = 0.0 if since is None else moment(since, time.time())
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--since") from None
    with opened_log(pipeline, patience=A_LOOK) as opened:
        line = None
        for line in events_of(opened, pipeline.pipeline, table, earliest, limit, follow=follow):
            print(json.dumps(line.fields) if as_json else line.text, flush=follow)
    if line is None and not as_json:
        print("there are no such events")


Tables = Annotated[list[str], typer.Argument(metavar="TABLE", help="schema.table, with * and ? as wildcards.")]
OnTarget = Annotated[str, typer.Option("--target", metavar="NAME", help="Only on this target.", show_default=False)]
Where = Annotated[
    str | None,
    typer.Option("--where", metavar="CONDITION", help="Only rows that fulfil this, in SQL.", show_default=False),
]
NoWait = Annotated[bool, typer.Option("--no-wait", help="Do not wait until all targets have carried it out.")]

_ANSWERS_SHOWN = 20


@app.command()
@_told
def pause(file: File, tables: Tables, target: OnTarget = "", no_wait: NoWait = False, as_json: AsJson = False) -> None:
    """Stop applying to tables, while all others go on.

    The log keeps what they need, until `penstock resume` lets them go on from there. When three quarters of the log's
    budget are taken it keeps nothing for them any more, and says so; then only `penstock reload` brings them back.

    \b
    Example:  penstock pause pipeline.yaml public.orders --target reports
    """
    _command("pause", file, tables, target, no_wait, as_json)


@app.command()
@_told
def resume(file: File, tables: Tables, target: OnTarget = "", no_wait: NoWait = False, as_json: AsJson = False) -> None:
    """Let paused and failed tables go on where they stopped.

    \b
    Example:  penstock resume pipeline.yaml public.orders
    """
    _command("resume", file, tables, target, no_wait, as_json)


@app.command()
@_told
def reload(
    file: File,
    tables: Tables,
    target: OnTarget = "",
    where: Where = None,
    no_wait: NoWait = False,
    as_json: AsJson = False,
) -> None:
    """Load tables anew, while all others go on.

    Whatever state they are in, also after they have failed, were skipped, or somebody has written to the target. What
    a target has of them stays until the new load begins there. Ends when it is about to begin: see `penstock status`.

    With --where only the rows that fulfil a condition, on the source or the target, are replaced by what the source has
    of them. The table waits for that where it is, and then goes on; it needs a key.

    \b
    Examples:  penstock reload pipeline.yaml public.orders --target reports
               penstock reload pipeline.yaml public.orders --where "id > 1000"
    """
    _command("reload", file, tables, target, no_wait, as_json, where)


@app.command()
@_told
def skip(file: File, tables: Tables, target: OnTarget = "", no_wait: NoWait = False, as_json: AsJson = False) -> None:
    """Leave tables as they are, for good.

    The log keeps nothing for them. Only `penstock reload` brings them back.

    \b
    Example:  penstock skip pipeline.yaml 'public.tmp_*'
    """
    _command("skip", file, tables, target, no_wait, as_json)


def _command(
    kind: str, file: Path, tables: list[str], target: str, no_wait: bool, as_json: bool, where: str | None = None
) -> None:
    from control.commanding import WAIT_SECONDS, command, remark
    from control.renewing import reload_where
    from control.wiring import A_LOOK, opened_log
    from schemas.frontier import CommandKind

    pipeline = _load(file)
    with opened_log(pipeline, patience=A_LOOK) as opened:
        if where is not None:
            answers = reload_where(pipeline, opened, tables, where, target, WAIT_SECONDS, waits=not no_wait)
        else:
            answers = command(pipeline, opened, CommandKind(kind), tables, target, None if no_wait else WAIT_SECONDS)
    if as_json:
        for answer in answers:
            print(json.dumps({**answer._asdict(), "table": str(answer.table), "state": answer.state.value}))
        return
    for answer in answers[:_ANSWERS_SHOWN]:
        done = f"is {answer.state}" if answer.carried_out else f"is asked for, and not carried out yet ({answer.state})"
        print(f"{answer.table} on {answer.target}: {done}{remark(CommandKind(kind), answer)}")
    if len(answers) > _ANSWERS_SHOWN:
        print(f"and {len(answers) - _ANSWERS_SHOWN:,} more")


@app.command()
@_told
def reconfigure(file: File, yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False) -> None:
    """Take over what was added to the file or removed from it.

    Shows the difference first. Tables that were added are published and loaded while the changes of all others flow;
    those that were removed are not applied any more, and keep their rows on the targets. Running services notice by
    themselves.

    \b
    Example:  penstock reconfigure pipeline.yaml
    """
    from control.reconfiguring import Reconfiguration
    from control.wiring import A_LOOK, opened_log

    pipeline = _load(file)
    with (
        opened_log(pipeline, patience=A_LOOK) as opened,
        contextlib.closing(Reconfiguration(pipeline, opened)) as reconfiguration,
    ):
        lines = reconfiguration.difference.lines()
        print("\n".join(lines) or "the pipeline is what the file says")
        if not reconfiguration.difference.now:
            return
        if not yes:
            try:
                agreed = typer.confirm("Take this over?")
            except typer.Abort:
                print("\npenstock: nobody answers, and nothing is changed; --yes does not ask", file=sys.stderr)
                raise typer.Exit(Exit.USAGE) from None
            if not agreed:
                print("nothing is changed")
                return
        reconfiguration.carry_out()
        print("taken over; `penstock status` shows how far it is")


@app.command()
@_told
def log(
    file: File,
    topic: Annotated[
        str | None, typer.Argument(help="A topic, with or without the pipeline's name before it.", show_default=False)
    ] = None,
    start: Annotated[
        int | None, typer.Option("--from", help="The first offset to show; negative: from the end.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Show so many rows at most.", show_default=False)] = None,
    partition: Annotated[int, typer.Option(min=0, help="The partition of the topic.")] = 0,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Wait for more, until Ctrl-C.")] = False,
    as_json: AsJson = False,
) -> None:
    """Make the log readable.

    Without a topic its topics with their offsets, else the records of the topic with their values.

    \b
    Examples:  penstock log pipeline.yaml
               penstock log pipeline.yaml changes.public.orders --from -10 --follow
    """
    from control.logview import records_of, topics_of
    from control.wiring import A_LOOK, opened_log

    pipeline = _load(file)
    with opened_log(pipeline, patience=A_LOOK) as opened:
        lines = (
            topics_of(opened, pipeline.pipeline)
            if topic is None
            else records_of(opened, pipeline.pipeline, topic, partition, start, limit, follow=follow)
        )
        for line in lines:
            print(json.dumps(line.fields) if as_json else line.text, flush=follow)


dead_letters = typer.Typer(
    name="dead-letters",
    help="Rows that a target refused, and what waits behind them.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.add_typer(dead_letters)

OfTables = Annotated[list[str] | None, typer.Argument(metavar="TABLE", help="schema.table, with * and ? as wildcards.")]
OfKey = Annotated[
    str | None,
    typer.Option("--key", help="Only of this key: its text, or a JSON array of several columns'.", show_default=False),
]
OfNumber = Annotated[int, typer.Argument(metavar="NUMBER", help="The letter's number.")]
Numbered = Annotated[int | None, typer.Option("--number", help="Only the letter of this number.", show_default=False)]


@dead_letters.command("list")
@_told
def list_letters(
    file: File, tables: OfTables = None, key: OfKey = None, target: OnTarget = "", as_json: AsJson = False
) -> None:
    """Show what was set aside, in order, with the causes.

    \b
    Example:  penstock dead-letters list pipeline.yaml public.orders
    """
    _show_letters(file, as_json, lambda letters, chosen: letters.lines(chosen), tables, key, None, target)


@dead_letters.command("show")
@_told
def show_letter(file: File, number: OfNumber, target: OnTarget = "", as_json: AsJson = False) -> None:
    """Show one letter whole, with the values of its row.

    \b
    Example:  penstock dead-letters show pipeline.yaml 12
    """
    _show_letters(file, as_json, lambda letters, chosen: letters.lines(chosen, whole=True), None, None, number, target)


@dead_letters.command("replay")
@_told
def replay_letters(
    file: File,
    tables: OfTables = None,
    key: OfKey = None,
    number: Numbered = None,
    target: OnTarget = "",
    as_json: AsJson = False,
) -> None:
    """Apply letters, once their cause is mended.

    All of a key go together, in order, with those of other keys that it had. What is refused again stays, with the new
    cause, and the exit code is then 3. Changes go on meanwhile.

    \b
    Examples:  penstock dead-letters replay pipeline.yaml
               penstock dead-letters replay pipeline.yaml public.orders --key 4711
    """
    refused = _show_letters(file, as_json, lambda letters, chosen: letters.replay(chosen), tables, key, number, target)
    if any(line.fields["refused"] for line in refused):
        raise typer.Exit(Exit.OPERATOR)


@dead_letters.command("edit")
@_told
def edit_letter(
    file: File,
    number: OfNumber,
    values: Annotated[
        list[str] | None, typer.Option("--set", metavar="COLUMN=VALUE", help="Another value, as text.")
    ] = None,
    nulls: Annotated[list[str] | None, typer.Option("--null", metavar="COLUMN", help="No value.")] = None,
    target: OnTarget = "",
    as_json: AsJson = False,
) -> None:
    """Change columns of a letter's row; `replay` then applies it.

    \b
    Example:  penstock dead-letters edit pipeline.yaml 12 --set total=0 --null note
    """
    from control.letters import Chosen

    pairs = [value.partition("=") for value in values or []]
    if not (pairs or nulls) or not all(sign for _, sign, _ in pairs):
        raise typer.BadParameter("give COLUMN=VALUE, or --null COLUMN", param_hint="--set")
    wanted = {**{name: value for name, _, value in pairs}, **dict.fromkeys(nulls or [])}
    with _opened_letters(file) as letters:
        line = letters.edit(Chosen(number=number, target=target), wanted)
    print(json.dumps(line.fields) if as_json else line.text)


@dead_letters.command("discard")
@_told
def discard_letters(
    file: File,
    tables: OfTables = None,
    key: OfKey = None,
    number: Numbered = None,
    target: OnTarget = "",
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    as_json: AsJson = False,
) -> None:
    """Remove letters for good: the target does without these changes.

    For rows that were put right at the target by hand. One that is not there stops its table when it is changed again.

    \b
    Example:  penstock dead-letters discard pipeline.yaml public.orders --key 4711
    """
    if not yes:
        _show_letters(file, False, lambda letters, chosen: letters.lines(chosen), tables, key, number, target)
        _confirm("Discard all of these?", "nothing is discarded")
    _show_letters(file, as_json, lambda letters, chosen: letters.discard(chosen), tables, key, number, target)


@contextlib.contextmanager
def _opened_letters(file: Path) -> Iterator[Letters]:
    from control.letters import Letters
    from control.wiring import A_LOOK, opened_log

    pipeline = _load(file)
    with opened_log(pipeline, patience=A_LOOK) as log, contextlib.closing(Letters(pipeline, log)) as letters:
        yield letters


def _show_letters(
    file: Path,
    as_json: bool,
    ask: Callable[[Letters, Chosen], Iterator[Line]],
    tables: list[str] | None,
    key: str | None,
    number: int | None,
    target: str,
) -> list[Line]:
    from control.letters import Chosen

    shown = []
    with _opened_letters(file) as letters:
        for line in ask(letters, Chosen(tables or (), key, number, target)):
            print(json.dumps(line.fields) if as_json else line.text)
            shown.append(line)
    if not shown and not as_json:
        print("there are no such dead letters")
    return shown


def _confirm(question: str, otherwise: str) -> None:
    """End the command unless somebody agrees."""
    try:
        agreed = typer.confirm(question)
    except typer.Abort:
        print(f"\npenstock: nobody answers, and {otherwise}; --yes does not ask", file=sys.stderr)
        raise typer.Exit(Exit.USAGE) from None
    if not agreed:
        print(otherwise)
        raise typer.Exit(Exit.DONE)


@app.command()
@_told
def drop(
    file: File, yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False, as_json: AsJson = False
) -> None:
    """Remove all that is ours from everywhere.

    Slot, publications, topics, progress in every target, and the state folder. The replicated tables and their rows
    stay. What can't be reached is named, and the exit code is then 3.

    \b
    Example:  penstock drop pipeline.yaml --yes
    """
    from control.dropping import drop_all, plan_text

    pipeline = _load(file)
    if not yes:
        print(plan_text(pipeline))
        _confirm("Remove all of this?", "nothing is removed")
    failed = False
    for done in drop_all(pipeline):
        failed |= bool(done.problem)
        if as_json:
            print(json.dumps(done._asdict()))
        else:
            print(f"{done.what}: {done.problem or done.result}")
    if failed and not as_json:
        print("what is left is removed by another `penstock drop`, when it can be reached")
    raise typer.Exit(Exit.OPERATOR if failed else Exit.DONE)


def _load(file: Path) -> Pipeline:
    from schemas.pipeline import load_pipeline

    pipeline = load_pipeline(file)
    gc.enable()
    return pipeline


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and end the process with its exit code."""
    # What is imported stays. To look through it for garbage, again and again as it grows, is a tenth of a short start.
    gc.disable()
    try:
        app(args=arguments, prog_name="penstock")
    finally:
        gc.enable()


if __name__ == "__main__":
    main()
