"""By which names people speak of tables."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from control.naming import Names
from schemas.frontier import TableRegistered
from schemas.record import encode_control
from schemas.table import TableId
from tests.unit.apply.source import make_table
from transport.memory import MemoryLog
from transport.topics import Topics
from transport.views import Tables

LISTED = ["public.a", "public.b", "public.[ab]", "public.*"]


@pytest.fixture
def names() -> Iterator[Names]:
    """Of tables of which `a` is called `b` by now, and `b` is called `c`."""
    log, topics = MemoryLog("p"), Topics("p")
    log.create_topics(topics.fixed())
    now = {"public.a": "b", "public.b": "c"}
    with log.writer("control") as writer, log.reader() as reader:
        for listed in LISTED:
            table = make_table(listed.partition(".")[2], [("id", "bigint")])
            if listed in now:
                table = table.model_copy(update={"renamed": TableId("public", now[listed])})
            entry = TableRegistered(table.model_dump_json(), "t", 0)
            writer.put(topics.tables, encode_control(entry), listed.encode())
        found = Names(Tables(reader, topics))
        found.refresh()
        yield found


@pytest.mark.parametrize(
    ("pattern", "meant"),
    [
        ("public.a", ["public.a"]),
        ("public.b", ["public.b"]),
        ("public.c", ["public.b"]),
        ("public.[ab]", ["public.[ab]"]),
        ("public.*", ["public.*"]),
        ("public.?", ["public.a", "public.b", "public.*"]),
        ("public.[c]", ["public.b"]),
        ("other.*", []),
    ],
)
def test_what_is_listed_so_to_the_letter_is_meant_alone(names: Names, pattern: str, meant: list[str]) -> None:
    assert [listed for listed in LISTED if names.fit(listed, pattern)] == meant
