"""One pipeline for the whole matrix: it loads, and follows one step after the other."""

from __future__ import annotations

import contextlib
import subprocess

import psycopg

from tests.e2e.conftest import Project
from tests.matrix import source
from tests.matrix.comparing import Unequal, unequal
from tests.matrix.source import Subject

ERRORS = "select table_name || ': ' || error from penstock.tables where error <> '' order by 1"
STATES = "select count(*) from penstock.tables where state <> 'live'"


def measure(project: Project) -> tuple[list[Subject], list[Unequal]]:
    """Return what was tried between two empty databases, and every difference. Fails if a table does."""
    subjects = source.make(project.source, source.available([project.source, project.target]))
    project.file.write_text(
        f"pipeline: {project.name}\nsource:\n  url: {project.source}\ntables: ['m.*']\n{project.log}"
        f"targets:\n  - name: copy\n    url: {project.target}\n"
    )
    running = project.start("run", str(project.file))
    project.wait_until("all tables are live", lambda: _all_live(project), running)
    for number, step in enumerate(source.STEPS):
        source.change(project.source, subjects, step)
        _follow(project, number, running)
    found = unequal(project.source, project.target, subjects)
    _require_no_errors(project)
    assert _ask(project.target, STATES) == 0
    return subjects, found


def _all_live(project: Project) -> bool:
    with contextlib.suppress(psycopg.errors.UndefinedTable):
        _require_no_errors(project)
        return _ask(project.target, "select count(*) from penstock.tables") > 0 and _ask(project.target, STATES) == 0
    return False


def _require_no_errors(project: Project) -> None:
    with psycopg.connect(project.target) as connection:
        errors = connection.execute(ERRORS).fetchall()
    assert errors == [], errors


def _follow(project: Project, number: int, running: subprocess.Popen[str]) -> None:
    """Wait for a mark that was made behind a step: one worker follows all tables, in the order of the commits."""
    with psycopg.connect(project.source, autocommit=True) as connection:
        connection.execute("insert into m.marks values (%s)", [number])
    marked = f"select count(*) from m.marks where number = {number}"
    project.wait_until(f"step {number} arrives", lambda: _ask(project.target, marked) == 1, running)


def _ask(url: str, query: str) -> int:
    with psycopg.connect(url, autocommit=True) as connection:
        row = connection.execute(query.encode()).fetchone()
    assert row is not None
    return int(row[0])
