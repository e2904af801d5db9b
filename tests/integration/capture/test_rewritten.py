"""Commands that rewrite the rows of a table: those that compute values anew are told, and no others."""

from __future__ import annotations

import pytest

from capture import definitions
from capture.postgres import PostgresSource
from engines.postgres.definitions import drop_trigger, make_trigger
from tests.integration.capture.conftest import World, until

pytestmark = pytest.mark.versions

TABLE = "create table public.{t} (id int primary key, amount int, price numeric(10, 2), note text)"
NARROW = "create table public.{t} (id int primary key, amount int, price numeric(10, 2))"
NARROW_TABLES = {"narrow", "narrow_kept", "narrow_grown"}  # without anything for large values
COMPUTE = "alter table public.{t} alter column amount type int using amount * 2"

# What is done to a table, in transactions of their own, before anybody looks; then what the values become by it.
COMPUTED = {
    "plain": [COMPUTE],
    "narrow": [COMPUTE],
    "with_rows": [COMPUTE, "insert into public.{t} values (9001, 5, 1, 'x')"],
    "part": [COMPUTE],
    "narrow_grown": [f"{COMPUTE}, add column note text"],
    "with_more": [f"{COMPUTE}, alter column note type varchar"],
    "and_other": [COMPUTE, "alter table public.{t} add column more int", "insert into public.{t} values (9001)"],
    "and_vacuum": [COMPUTE, "vacuum full public.{t}"],
    "and_rewritten": [COMPUTE, "alter table public.{t} add column more int generated always as (id) stored"],
    "in_midst": ["begin; insert into public.{t} values (9001); " + COMPUTE + "; update public.{t} set amount = 1; end"],
    "function": [
        "create function public.doubled() returns void language plpgsql as $$ begin " + COMPUTE + "; end $$",
        "select public.doubled()",
    ],
}
KEPT = {
    "vacuum": ["vacuum full public.{t}"],
    "cluster": ["cluster public.{t} using {t}_pkey"],
    "statistics": ["alter table public.{t} alter column amount set statistics 500"],
    "statistics_vacuum": ["alter table public.{t} alter column amount set statistics 500", "vacuum full public.{t}"],
    "vacuum_statistics": ["vacuum full public.{t}", "alter table public.{t} alter column amount set statistics 500"],
    "narrow_kept": ["alter table public.{t} alter column amount set statistics 500", "vacuum full public.{t}"],
    "default": ["alter table public.{t} alter column amount set default 7", "vacuum full public.{t}"],
    "added": ["alter table public.{t} add column more int default 7"],
    "generated": ["alter table public.{t} add column more int generated always as (amount * 2) stored"],
    "granted": ["grant select (amount) on public.{t} to public", "cluster public.{t} using {t}_pkey"],
    "same_type": ["alter table public.{t} alter column amount type int"],
    "index": ["create index on public.{t} using hash (amount)", "vacuum full public.{t}"],
}


@pytest.mark.parametrize("told", [True, False], ids=["told", "seen"])
def test_rows_that_are_computed_anew_are_told_and_no_others(
    world: World, monkeypatch: pytest.MonkeyPatch, told: bool
) -> None:
    tables = COMPUTED | KEPT
    for name in tables:
        columns = (NARROW if name in NARROW_TABLES else TABLE).format(t=name)
        if name == "part":
            world.run(f"{columns} partition by range (id)")
            world.run("create table public.part_1 partition of public.part for values from (0) to (10000)")
        else:
            world.run(columns)
        world.run(f"insert into public.{name} select g, g, g from generate_series(1, 100) g")
    world.run("create table public.calm (id int primary key)")
    setup = world.prepare()
    if told:
        assert make_trigger(world.db, setup.slot)
    try:
        monkeypatch.setattr(definitions, "LOOK_SECONDS", 3600.0)
        capture = world.capture()
        source = capture._source
        assert isinstance(source, PostgresSource)
        world.catch_up(capture)
        for name, statements in tables.items():
            for statement in statements:
                world.run(statement.replace("{t}", name))
            world.catch_up(capture)
        if told:  # in its place among the rows
            captured = [(item.table, item.change.op.name) for item in world.captured()]
            assert [op for table, op in captured if table == "public.with_rows"] == ["DEFINE", "INSERT"]
            in_midst = [op for table, op in captured if table == "public.in_midst"]
            assert in_midst == ["INSERT", "DEFINE", *["UPDATE"] * 101]
        world.run("alter table public.calm add column last int")
        source._definitions.look_soon()
        until(capture, lambda: len(world.versions("public.calm")) > 1)
        world.catch_up(capture)
        found = {name: refused(world, name) for name in tables}
        assert {name for name, cause in found.items() if cause} == COMPUTED.keys()
        assert all("is not told" in cause for cause in found.values() if cause)
        # That all of it is known now.
        world.run("alter table public.calm add column again int")
        versions = {name: len(world.versions(f"public.{name}")) for name in tables}
        source._definitions.look_soon()
        until(capture, lambda: len(world.versions("public.calm")) > 2)
        world.catch_up(capture)
        assert {name: len(world.versions(f"public.{name}")) for name in tables} == versions
    finally:
        drop_trigger(world.db, setup.slot)


def refused(world: World, table: str) -> str:
    """Return why rows that were there can't be brought to some version of a table; empty if they can."""
    since = (version.since for version in world.versions(f"public.{table}"))
    return next((found.refused for found in since if found is not None and found.refused), "")
