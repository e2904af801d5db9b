"""Tables are altered at the source while they are followed: each change takes its place among the rows."""

import re

import pytest

from engines.postgres.definitions import EVENTS
from tests.ddl.conftest import Followed
from tests.e2e.conftest import Project
from validation.rows import compare

pytestmark = pytest.mark.versions

# What a table is at first, always with a key `id` and a text `note`; then what is done to it, step by step.
CARRIED = {
    "add": ["alter table {t} add column more text", "insert into {t} (id, note, more) values (9001, 'x', 'y')"],
    "add_default": ["alter table {t} add column more int default 7", "update {t} set note = 'z' where id < 5"],
    "add_alone": ["alter table {t} add column more timestamptz not null default '2020-01-01'"],
    "add_in_midst": [
        "begin; insert into {t} (id) values (9001); alter table {t} add column more int;"
        " update {t} set more = id where id > 995; insert into {t} (id, more) values (9002, 1); commit"
    ],
    "drop": ["alter table {t} drop column amount", "insert into {t} (id, note) values (9001, 'x')"],
    "drop_alone": ["alter table {t} drop column amount"],
    "rename": ["alter table {t} rename column note to remark", "update {t} set remark = 'r' where id = 3"],
    "rename_alone": ["alter table {t} rename column note to remark"],
    "swap": [
        "alter table {t} rename column note to between",
        "alter table {t} rename column wide to note",
        "alter table {t} rename column between to wide",
        "update {t} set wide = 'w' where id < 3",
    ],
    "drop_and_add": [
        "alter table {t} drop column note",
        "alter table {t} add column note text default 'new'",
        "update {t} set note = 'changed' where id < 3",
    ],
    "wider": ["alter table {t} alter column narrow type varchar(50)", "update {t} set narrow = repeat('x', 40)"],
    "bigint": ["alter table {t} alter column amount type bigint", "update {t} set amount = 1e12::int8 where id = 1"],
    "nulls": ["alter table {t} alter column note set default 'd', alter column amount drop not null"],
    "not_null": [
        "alter table {t} add column more int",
        "update {t} set more = 1",
        "alter table {t} alter column more set not null",
    ],
    "key": [
        "alter table {t} drop constraint {t}_pkey, add primary key (id, amount)",
        "update {t} set amount = amount + 1000 where id < 10",
        "delete from {t} where id = 20",
    ],
    # From 18 on no row can be updated whose identity has a generated column, as that is not published.
    "full": [
        "alter table {t} drop column half",
        "alter table {t} replica identity full",
        "update {t} set note = 'f' where id < 10",
    ],
    "label": ["alter type mood add value 'fine' before 'sad'", "update {t} set feels = 'fine' where id < 10"],
    "type": [
        "create type colour as enum ('red')",
        "alter table {t} add column c colour default 'red'",
        "insert into {t} (id) values (9001)",
    ],
    "domain": [
        "create domain few as int check (value < 10)",
        "alter table {t} add column d few",
        "insert into {t} (id, d) values (9001, 9)",
    ],
    "generated": [
        "alter table {t} add column twice int generated always as (amount * 2) stored",
        "insert into {t} (id) values (9001)",
    ],
    "expression": [
        "alter table {t} alter column half drop expression; alter table {t} rename half to piece",
        "update {t} set piece = 7 where id < 5",
    ],
    "many": [
        "alter table {t} add column a int",
        "update {t} set a = 1 where id = 1",
        "alter table {t} rename a to b",
        "update {t} set b = 2 where id = 2",
        "alter table {t} add column a text",
        "update {t} set a = 'a' where id = 3",
        "alter table {t} drop column b",
        "update {t} set a = 'b' where id = 4",
    ],
    "unlike": [
        "alter table {t} drop column wide, add column first text, alter column note type varchar",
        "truncate {t}",
        "insert into {t} (id, first) values (1, 'f')",
    ],
}

# What can be carried only if the event trigger says what columns are called, and how values became others.
TOLD = {"bigint", "domain", "many", "unlike"}

STOPPED = {
    "hidden": (
        [
            "create function doubled() returns void language plpgsql as"
            " $$ begin alter table {t} alter column amount type bigint using amount * 2; end $$",
            "select doubled()",
        ],
        "is not told",
    ),
    "computed": (["alter table {t} alter column amount type bigint using amount * 2"], "is not told"),
    "computed_alike": (["alter table {t} alter column amount type int using amount * 2"], "is not told"),
    "clustered": (
        [
            "begin; alter table {t} add column c int default 7; alter table {t} alter c drop default;"
            " cluster {t} using {t}_pkey; commit"
        ],
        "is not known",
    ),
    "random": (["alter table {t} add column r float default random()"], "is not known"),
    "serial": (["alter table {t} add column s serial"], "is not known"),
}

TABLE = """
create table shop.{t} (
    id int primary key, note text, amount int not null default 5, wide text, narrow varchar(5), feels shop.mood,
    half int generated always as (id / 2) stored
)
"""


@pytest.mark.parametrize("told", [True, False])
def test_changes_of_tables_are_carried_in_order_with_their_rows(simple: Project, told: bool) -> None:
    followed = Followed(simple)
    followed.do("create schema shop", "create type shop.mood as enum ('happy', 'sad')")
    for name in [*CARRIED, *STOPPED, "calm"]:
        columns = "id, note, amount, wide, narrow, feels"
        rows = "g, 'n' || g, g, repeat('wide', 3000), 'abc', 'sad'"
        followed.do(
            TABLE.format(t=name),
            f"insert into shop.{name} ({columns}) select {rows} from generate_series(1, 1000) g",
        )
    followed.start()
    followed.sync()
    if not told:
        followed.do(*(f"drop event trigger penstock_{simple.name}_{event}" for event in EVENTS))
        followed.stop()
        followed.start()
        followed.sync()
    steps = {name: list(steps) for name, steps in CARRIED.items()} | {n: list(s) for n, (s, _) in STOPPED.items()}
    while any(steps.values()):
        for name, left in steps.items():
            if left:
                statement = left.pop(0).replace("{t}_pkey", f"{name}_pkey").replace("{t}", f"shop.{name}")
                followed.do("set search_path to shop", f"set search_path to shop; {statement}")
    followed.do("insert into shop.calm (id) values (9001)")
    followed.sync()

    def settled() -> bool:
        states = followed.states()
        return all(states[name][0] == "failed" for name in STOPPED) and all(
            states[name][0] == "failed"
            or followed.columns(f"shop.{name}") == followed.columns(f"shop.{name}", "target")
            for name in CARRIED
        )

    simple.wait_until("the same columns", settled, followed.run)
    followed.sync()
    states = followed.states()
    stopped = {name for name in CARRIED if states[name] != ("live", "", "")}
    assert not stopped if told else stopped <= TOLD, {name: states[name] for name in stopped}
    causes = {name: cause for name, (_, cause) in STOPPED.items()} | dict.fromkeys(stopped, "")
    for name, cause in causes.items():
        assert re.search(cause or "told|is not known", states[name][1]) and "penstock reload" in states[name][2]
    wanted = [f"shop.{name}" for name in {*CARRIED, "calm"} - stopped]
    assert [str(found)[:300] for found in compare(simple.source, simple.target, wanted)] == []
    simple.succeed("reload", str(simple.file), *(f"shop.{name}" for name in causes))
    followed.sync()
    differences = [str(found)[:300] for found in simple.differences()]
    assert differences == [], followed.states()
    followed.stop()
