"""How the state of a pipeline is shown: a table in a terminal, lines of what is new elsewhere."""

import io
import json
from dataclasses import replace

import pytest
from rich.console import Console

from control.amounts import bytes_text, duration_text
from control.status import Lag, PipelineStatus, SourceStatus, TableStatus, TargetStatus
from control.watch import JsonDisplay, LiveDisplay, Pace, PlainDisplay, display_for, render, summary

LOADING = TableStatus("shop.orders", "loading", 2_000, 1_500, 1_000, 0, Lag(12.5, 3_400_000, "log"))
LIVE = TableStatus("shop.stock", "live", 40, 40, 40, 7, Lag())
FAILED = TableStatus("shop.visits", "failed", 90, 0, 0, 0, Lag(1.0, 9, "target"), "no such column", "alter the table")


def status(*tables: TableStatus, at: float = 0.0, error: str = "") -> PipelineStatus:
    target = TargetStatus("copy", 0, tables[0].lag, tables, error)
    return PipelineStatus("shop", at, True, SourceStatus(retained_bytes=2_000), 5_000, 20 * 10**9, (target,))


def drawn(found: PipelineStatus) -> list[str]:
    console = Console(file=io.StringIO(), width=120)
    console.print(render(found))
    assert isinstance(console.file, io.StringIO)
    return [line.rstrip() for line in console.file.getvalue().splitlines()]


def test_the_table_has_rows_of_estimated_changes_and_lag() -> None:
    heading, orders, stock, source = drawn(status(LOADING, LIVE))
    assert heading.split() == ["copy", "state", "loaded", "of", "about", "rows/s", "changes", "lag"]
    assert orders.split("  ")[-1] == "12.5 s and 3.4 MB behind (log)"
    assert orders.split()[:4] == ["shop.orders", "loading", "1,000", "2,000"]
    assert stock.split() == ["shop.stock", "live", "40", "40", "7", "up", "to", "date"]
    assert source == "source keeps 2.0 kB for us, log 5.0 kB of 20.0 GB"


def test_the_budget_of_the_sources_log_is_shown_with_what_is_left() -> None:
    source = SourceStatus(retained_bytes=38 * 10**9, wal_budget=50 * 10**9, wal_full_seconds=7_300.0)
    shown = drawn(replace(status(LIVE), source=source))[-1]
    assert shown.startswith("source keeps 38.0 GB (of 50.0 GB, full in about 2 h) for us")
    shown = drawn(replace(status(LIVE), source=replace(source, wal_full_seconds=None)))[-1]
    assert shown.startswith("source keeps 38.0 GB (of 50.0 GB) for us")


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.2, "0 s"), (119, "119 s"), (150, "2 min"), (7_300, "2 h"), (400_000, "5 d")]
)
def test_durations_are_said_as_people_say_them(seconds: float, text: str) -> None:
    assert duration_text(seconds) == text


def test_a_failed_table_is_told_below_with_its_remedy() -> None:
    shown = drawn(status(FAILED, LIVE))
    assert shown[3:5] == ["shop.visits has failed: no such column", "  alter the table"]


def test_what_a_live_table_lacks_is_told_too(capsys: pytest.CaptureFixture[str]) -> None:
    untied = replace(LIVE, error="no such role", remedy="create it")
    assert drawn(status(untied, FAILED))[3:7] == [
        "shop.visits has failed: no such column",
        "  alter the table",
        "shop.stock is live, but no such role",
        "  create it",
    ]
    PlainDisplay(30.0).show(status(untied))
    assert "copy: shop.stock is live, but no such role\n  create it" in capsys.readouterr().out


def test_names_are_shown_with_all_their_signs() -> None:
    shown = drawn(status(replace(LIVE, table="shop.[bold]x", renamed="shop.[/]", dead_letters=1)))
    assert shown[1].startswith("shop.[bold]x (now shop.[/])")
    assert shown[2].strip() == "1 dead letter: `penstock dead-letters list`"


def test_of_thousands_of_tables_those_that_need_a_look_are_shown() -> None:
    tables = [replace(LIVE, table=f"shop.t{n:04}") for n in range(2_000)]
    shown = drawn(status(*tables, LOADING))
    assert len(shown) < 40
    assert shown[1].startswith("shop.orders")
    assert "… and 1976 more" in shown


def test_a_terminal_shows_rates_between_two_looks() -> None:
    console = Console(file=io.StringIO(), width=120, force_terminal=True)
    display = LiveDisplay(console)
    display.show(status(LOADING, at=0.0))
    display.show(status(replace(LOADING, rows_loaded=2_000), at=2.0))
    display.close()
    assert isinstance(console.file, io.StringIO)
    assert " 500 " in console.file.getvalue()


def test_lines_tell_what_is_new_and_nothing_twice(capsys: pytest.CaptureFixture[str]) -> None:
    display = PlainDisplay(30.0)
    display.show(status(LOADING, at=0.0))
    display.show(status(replace(LOADING, rows_loaded=1_600), FAILED, at=2.0))
    display.show(status(replace(LOADING, rows_loaded=1_600), FAILED, at=2.0))
    lines = capsys.readouterr().out.splitlines()
    lag = "12.5 s and 3.4 MB behind (log)"
    assert lines == [
        f"copy: 0 of 1 tables live, 1,000 of 2,000 rows loaded, 0 changes applied, {lag}",
        f"copy: 0 of 2 tables live, 1 FAILED, 1,600 of 2,090 rows loaded (300/s), 0 changes applied, {lag}",
        "copy: shop.visits has failed: no such column",
        "  alter the table",
    ]


def test_of_many_failures_the_first_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    tables = [replace(FAILED, table=f"shop.t{n:04}") for n in range(1_000)]
    PlainDisplay(5.0).show(status(*tables))
    told = capsys.readouterr().out
    assert "1000 FAILED" in told
    assert told.count("has failed") == 5


def test_lines_come_less_and_less_often(capsys: pytest.CaptureFixture[str]) -> None:
    display = PlainDisplay(5.0)
    pauses = []
    for _ in range(6):
        pauses.append(display.every)
        display.show(status(LIVE))
    assert pauses[0] == 1.0
    assert pauses == sorted(pauses)
    assert pauses[-1] == 5.0
    assert len(capsys.readouterr().out.splitlines()) == 1


def test_looks_that_take_long_come_seldom_but_a_single_one_changes_nothing() -> None:
    pace = Pace()
    pauses = [pace.after(seconds) for seconds in (0.05, 0.0005, 0.01, 0.02, 0.2, 0.3)]
    assert pauses == pytest.approx([0.02, 0.02, 0.02, 0.2, 0.4, 0.5])


def test_a_target_that_does_not_answer_is_told_instead_of_its_tables(capsys: pytest.CaptureFixture[str]) -> None:
    PlainDisplay(5.0).show(status(LIVE, error="target: connection refused"))
    assert capsys.readouterr().out == "copy: target: connection refused\n"


def test_json_is_an_object_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    JsonDisplay().show(status(LIVE))
    shown = json.loads(capsys.readouterr().out)
    assert shown["targets"][0]["tables"][0]["table"] == "shop.stock"
    assert shown["targets"][0]["lag"] == {"seconds": 0.0, "bytes": 0, "where": ""}


def test_the_display_suits_where_the_output_goes() -> None:
    assert isinstance(display_for(True, False), LiveDisplay)
    assert isinstance(display_for(False, False), PlainDisplay)
    assert isinstance(display_for(True, True), JsonDisplay)


def test_the_last_line_sums_up() -> None:
    assert summary(status(LIVE, LOADING), 3.21) == (
        "complete after 3.2 s (copy: 2 tables, 1,040 rows loaded, 7 changes applied)"
    )


@pytest.mark.parametrize(
    ("size", "text"), [(0, "0 B"), (999, "999 B"), (1_000, "1.0 kB"), (3_400_000, "3.4 MB"), (2 * 10**12, "2.0 TB")]
)
def test_sizes_have_the_largest_unit(size: int, text: str) -> None:
    assert bytes_text(size) == text
