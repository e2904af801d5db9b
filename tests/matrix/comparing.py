"""What arrived: both sides by the database's own equality, and by text."""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

import psycopg

from engines.postgres.connect import connect
from engines.postgres.types import text_of
from tests.matrix.source import ALL_STEPS, SPAN, Step, Subject, element


class Unequal(NamedTuple):
    """One row that is not alike, or one that only one side has."""

    subject: Subject
    kind: str
    step: Step
    what: str


def unequal(source: str, target: str, subjects: list[Subject]) -> list[Unequal]:
    """Return every difference between the tables of the subjects, by the step whose rows they are in."""
    with (
        connect(source, role="reader", application="matrix") as ours,
        connect(target, role="reader", application="matrix") as theirs,
    ):
        return [
            found for subject in subjects for kind in subject.kinds for found in _table(ours, theirs, subject, kind)
        ]


def _table(ours: psycopg.Connection, theirs: psycopg.Connection, subject: Subject, kind: str) -> list[Unequal]:
    columns = ["v", "long", "s", *(["a"] if kind == "array" else [])]
    texts = ", ".join(text_of(column) for column in columns)
    query = f"select n, {texts} from {subject.table(kind)}"
    here, there = (Counter(side.execute(query.encode()).fetchall()) for side in (ours, theirs))
    found = [_difference(subject, kind, row, "only at the source") for row in (here - there).elements()]
    found += [_difference(subject, kind, row, "only at the target") for row in (there - here).elements()]
    if not found and subject.case.equality and kind != "bare":
        found += _by_equality(theirs, subject, kind, [(row[0], row[1]) for row in here])
    return found


def _by_equality(
    theirs: psycopg.Connection, subject: Subject, kind: str, rows: list[tuple[int, str | None]]
) -> list[Unequal]:
    case = subject.case
    given = "{" + case.delimiter.join(element(text) for _, text in rows) + "}"
    # A cast from text may be a function of its own; an array is read by the type itself.
    query = (
        f"with given(numbers, vs) as materialized (select %s::int[], %s::{case.bare}[])"
        f" select n, format('%%s', v) from given, unnest(numbers) with ordinality as of(n, place)"
        f" join {subject.table(kind)} using (n)"
        f" where (v is distinct from null) <> (vs[place] is distinct from null) or not v {case.equality} vs[place]"
    )
    with theirs.transaction():
        if case.extension:
            theirs.execute("set local search_path = pg_catalog, public")  # where its operators are
        different = theirs.execute(query.encode(), [[n for n, _ in rows], given]).fetchall()
    return [_difference(subject, kind, row, "unequal to the target") for row in different]


def _difference(subject: Subject, kind: str, row: tuple[object, ...], where: str) -> Unequal:
    number = row[0]
    assert isinstance(number, int)
    step = next(step for step in ALL_STEPS if step.first <= number < step.first + SPAN)
    return Unequal(subject, kind, step, f"{where}: {tuple(str(value)[:60] for value in row)}")
