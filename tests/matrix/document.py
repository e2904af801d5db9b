"""`docs/type-matrix.md`: what was measured, as a table. A server that lacks a type leaves that type's line as it is."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from tests.matrix.cases import CASES, Case
from tests.matrix.comparing import Unequal
from tests.matrix.source import ALL_STEPS, LOAD, OPERATIONS, Step, Subject

PATH = Path(__file__).parents[2] / "docs" / "type-matrix.md"

HEAD = """\
# Types

Every type of PostgreSQL, and how its values arrive; written by `python -m tests.matrix`, and compared by a test. Each
is tried with values at its edges ([cases.py](../tests/matrix/cases.py)), in four tables: as a column beside a long
text; with arrays of it (two-dimensional, with nulls, with lower bounds, long ones); in the key, where it can be one;
and in a table without key that has every row twice. Both sides are compared by text, and by the type's own equality.

Tried between all pairs of unlike versions from PostgreSQL 14 to 18 (`make matrix`), a type where both have it.

*small*: a transaction of few changes, which go to the target as statements of their own. *large*: one of many, which
go through a stage. *unchanged*: an update of other columns, with long values that the stream leaves out. *=*: equal.

PostGIS, which the tests' own servers do not have, was tried between databases of PostgreSQL 15 with PostGIS 3.3; with
URLs of servers that have it, `python -m tests.matrix` tries it again.

Text that is not UTF-8, which only databases in SQL_ASCII have, is not carried, not even to another such database: the
log has nothing but UTF-8. It stops its table alone, and is named ([failures.md](failures.md)).
"""

COLUMNS = ["type", "values", LOAD, *(f"{operation}<br>small, large" for operation in OPERATIONS), "as key", "needs"]


def lines(subjects: Iterable[Subject], unequal: Iterable[Unequal]) -> dict[str, str]:
    """Return a line for each of the cases that were tried."""
    wrong = {(found.subject.case.name, found.step) for found in unequal}
    return {subject.case.name: _line(subject.case, wrong) for subject in subjects}


def _line(case: Case, wrong: set[tuple[str, Step]]) -> str:
    def cell(operation: str) -> str:
        steps = [step for step in ALL_STEPS if step.operation == operation]
        return " ".join("**≠**" if (case.name, step) in wrong else "=" for step in steps)

    name = case.type.replace("|", "\\|")
    needs = [f"PostgreSQL {case.since}"] if case.since > 12 else []
    needs += [f"extension {case.extension}"] if case.extension else []
    needs += [case.needs] if case.needs else []
    cells = [f"`{name}`", str(len(case.values)), cell(LOAD), *map(cell, OPERATIONS)]
    return f"| {' | '.join([*cells, 'yes' if case.key else '–', ', '.join(needs)])} |"


def text(measured: Mapping[str, str], before: str) -> str:
    """Return the document, with the lines of `before` where nothing was measured."""
    old = before.splitlines()
    rows = []
    for case in CASES:
        untried = _line(case, set())
        start, end = untried.split(" | ")[0], untried.split(" | ")[-1]
        found = [row for row in old if row.startswith(f"{start} | ") and row.endswith(f" | {end}")]
        rows.append(measured.get(case.name) or (found[0] if found else untried.replace(" = ", " ? ")))
    return "\n".join([HEAD, f"| {' | '.join(COLUMNS)} |", "|" + "---|" * len(COLUMNS), *rows]) + "\n"
