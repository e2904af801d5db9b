"""Whole tables, and partitions of them, are renamed, moved, dropped and emptied while they are followed."""

import psycopg
import pytest

from tests.ddl.conftest import Followed
from tests.e2e.conftest import Project, one
from validation.rows import compare

pytestmark = pytest.mark.versions

PLAIN = "create table shop.{t} (id int primary key, note text)"
PARTITIONED = """
create table shop.{t} (id int primary key, note text) partition by range (id);
create table shop.{t}_1 partition of shop.{t} for values from (0) to (1000);
create table shop.{t}_2 partition of shop.{t} for values from (1000) to (2000)
"""
ROWS = "insert into shop.{t} select g, 'n' || g from generate_series(500, 1500) g"

STEPS = {
    "renamed": ["alter table shop.renamed rename to called", "update shop.called set note = 'x' where id < 600"],
    "moved": ["alter table shop.moved set schema back", "update back.moved set note = 'x' where id < 600"],
    "swapped": [
        "alter table shop.swapped rename to between; alter table shop.other rename to swapped;"
        " alter table shop.between rename to other; update shop.other set note = 'was swapped' where id = 600",
    ],
    "quiet": ["alter table shop.quiet rename to still"],
    "dropped": ["update shop.dropped set note = 'last'", "drop table shop.dropped"],
    "emptied": ["truncate shop.emptied restart identity cascade", "insert into shop.emptied values (1, 'x')"],
    "grown": [
        "update shop.grown set note = 'before' where id % 100 = 0",
        "create table shop.grown_3 partition of shop.grown for values from (2000) to (3000)",
        "insert into shop.grown values (2001, 'x'), (1, 'y')",
        "create table shop.grown_4 (id int primary key, note text);"
        " alter table shop.grown attach partition shop.grown_4 for values from (3000) to (4000)",
        "insert into shop.grown values (3001, 'x')",
    ],
    "shrunk": [
        "update shop.shrunk set note = 'x'",
        "drop table shop.shrunk_2",
        "insert into shop.shrunk values (1, 'y')",
    ],
    "left": ["alter table shop.left detach partition shop.left_2", "insert into shop.left values (1, 'y')"],
    "part": ["update shop.part set note = 'x'", "truncate shop.part_1", "insert into shop.part values (1, 'y')"],
    "pieces": ["alter table shop.pieces_1 rename to piece", "update shop.pieces set note = 'x'"],
    "wider": [
        "alter table shop.wider add column more text default 'm'",
        "update shop.wider set more = 'x' where id = 600",
    ],
    "full": [
        "create table shop.full_3 (id int primary key, note text); insert into shop.full_3 values (2001, 'before');"
        " alter table shop.full attach partition shop.full_3 for values from (2000) to (3000)",
    ],
}
OF_PARTITIONS = {"grown", "shrunk", "left", "part", "pieces", "wider", "full"}


def test_tables_and_partitions_come_and_go(simple: Project) -> None:
    followed = Followed(simple)
    followed.do("create schema shop", "create schema back")
    for name in [*STEPS, "other"]:
        followed.do((PARTITIONED if name in OF_PARTITIONS else PLAIN).format(t=name), ROWS.format(t=name))
    followed.start()
    followed.sync()
    for steps in STEPS.values():
        followed.do(*steps)
    followed.sync()

    def settled() -> bool:
        states = followed.states()
        return (states["dropped"][0], states["full"][0]) == ("dropped", "failed") and all(
            tables(simple.source, like) == tables(simple.target, like)
            for like in ("shop.swapped", "shop.still", "shop.grown%", "shop.shrunk%", "shop.left%", "shop.wider%")
        )

    simple.wait_until("the same tables", settled, followed.run)
    followed.sync()
    states = followed.states()
    others = {name: states[name] for name in states if name not in {"dropped", "full"}}
    assert others == {name: ("live", "", "") for name in others}
    assert "shop.full_3 was attached with rows in it" in states["full"][1]
    assert "penstock reload FILE shop.full" in states["full"][2]
    there = ["shop.called", "back.moved", "shop.swapped", "shop.other", "shop.still", "shop.emptied", "shop.grown"]
    there += ["shop.shrunk", "shop.left", "shop.part", "shop.pieces", "shop.wider"]
    assert [str(found)[:300] for found in compare(simple.source, simple.target, there)] == []
    assert one(simple.target, "select count(*) from pg_class where relname in ('renamed', 'dropped', 'quiet')") == 0
    assert one(simple.target, "select count(*) from shop.left_2") == 501
    assert "shop.renamed (now shop.called)" in simple.succeed("status", str(simple.file))
    assert "shop.renamed on copy: is live" in simple.succeed("events", str(simple.file), "shop.called")
    assert "shop.renamed on copy: is paused" in simple.succeed("pause", str(simple.file), "shop.called")
    followed.stop()


def tables(url: str, like: str) -> list[tuple[object, ...]]:
    """Return the tables of such a name, and what they are a part of."""
    with psycopg.connect(url, autocommit=True) as connection:
        query = """
            select c.relname, (select i.inhparent::regclass::text from pg_inherits i where i.inhrelid = c.oid)
            from pg_class c join pg_namespace n on n.oid = c.relnamespace
            where n.nspname || '.' || c.relname like %s and c.relkind in ('r', 'p') order by 1
        """
        return list(connection.execute(query, [like]))
