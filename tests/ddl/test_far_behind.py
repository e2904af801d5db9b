"""Tables are altered again and again while nobody captures: the catalogue of today is not that of the stream."""

import psycopg
import pytest

from tests.ddl.conftest import Followed
from tests.ddl.test_tables import tables
from tests.e2e.conftest import Project
from validation.rows import compare

pytestmark = pytest.mark.versions

MADE = """
create table shop.{t} (id int primary key, note text) partition by range (id);
create table shop.{t}_1 partition of shop.{t} for values from (0) to (1000);
create table shop.{t}_2 partition of shop.{t} for values from (1000) to (2000);
alter table shop.{t}_2 alter column note set storage external;
insert into shop.{t} select g, repeat('n', 3000) from generate_series(500, 1500, 50) g
"""
MORE = (
    "create table shop.{t}_3 partition of shop.{t} for values from (2000) to (3000); insert into shop.{t} values (2001)"
)
CHANGED = "update shop.{t} set id = id + 1 where id = 1500; insert into shop.{t} values (1900, 'later')"
DROPPED = "drop table shop.{t}_2"
DETACHED = "alter table shop.{t} detach partition shop.{t}_2"

STEPS = {
    "dropped": [MORE, CHANGED, DROPPED],
    "left": [MORE, CHANGED, DETACHED],
    "emptied": ["truncate shop.{t}_1", CHANGED, DROPPED],
    "less": [DETACHED, "truncate shop.{t}", "insert into shop.{t} values (1, 'x')"],
    "replaced": [
        CHANGED,
        DROPPED,
        "create table shop.{t}_4 partition of shop.{t} for values from (1500) to (2500)",
        "create table shop.{t}_2 partition of shop.{t} for values from (1000) to (1500)",
        "insert into shop.{t} values (2001, 'x'), (1001, 'y')",
    ],
    "named": [
        CHANGED,
        "alter table shop.{t}_1 rename to {t}_x; alter table shop.{t}_2 rename to {t}_1;"
        " alter table shop.{t}_x rename to {t}_2",
        "insert into shop.{t} values (1, 'x'), (1999, 'y')",
    ],
    "follows": [DROPPED, "alter table shop.{t}_1 rename to {t}_2"],
    "grown": [MORE, CHANGED, DROPPED, "alter table shop.{t}_3 rename to {t}_2; insert into shop.{t} values (2002)"],
    "made_again": [
        CHANGED,
        DETACHED + "; alter table shop.{t}_2 rename to made_before",
        "create table shop.{t}_2 partition of shop.{t} for values from (1000) to (2000)",
        "insert into shop.{t} values (1001, 'x')",
    ],
    "again": [
        CHANGED,
        DETACHED,
        "insert into shop.{t}_2 values (1901, 'not told')",
        "alter table shop.{t} attach partition shop.{t}_2 for values from (1000) to (5000)",
    ],
    "called": [
        "alter table shop.{t}_1 rename to {t}_one; update shop.{t} set note = 'x' where id = 500",
        "truncate shop.{t}_one",
        "insert into shop.{t} values (1, 'x')",
    ],
}


def parts(url: str) -> list[tuple[object, ...]]:
    return [found for found in tables(url, "shop.%") if found[1] is not None]


@pytest.mark.parametrize("told", [True, False], ids=["told", "untold"])
def test_partitions_come_and_go_while_nobody_captures(simple: Project, told: bool) -> None:
    followed = Followed(simple)
    followed.do("create schema shop", *(MADE.format(t=name) for name in STEPS))
    followed.start()
    followed.sync()
    followed.stop()
    if not told:
        with psycopg.connect(simple.source, autocommit=True) as source:
            for (name,) in source.execute("select evtname from pg_event_trigger").fetchall():
                source.execute(f"drop event trigger {name}".encode())
    for name, steps in STEPS.items():
        followed.do(*(step.format(t=name) for step in steps))
    followed.start()
    followed.sync()

    simple.wait_until("a stopped table", lambda: followed.states()["again"][0] == "failed", followed.run)
    assert "shop.again_2 was detached for a while" in followed.states()["again"][1]
    simple.succeed("reload", str(simple.file), "shop.again")
    followed.sync()

    def settled() -> bool:
        return parts(simple.source) == parts(simple.target)

    simple.wait_until("the same partitions", settled, followed.run)
    assert followed.states() == {name: ("live", "", "") for name in STEPS}
    followed.do("insert into shop.again values (4000, 'x')")
    followed.sync()
    found = compare(simple.source, simple.target, [f"shop.{name}" for name in (*STEPS, "left_2")])
    assert [str(difference)[:300] for difference in found] == []
    followed.stop()
