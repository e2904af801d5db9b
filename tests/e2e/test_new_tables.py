"""Tables that are made while a pipeline runs come over by themselves, whoever is killed; what can't come is told."""

import contextlib
import json
import os
import signal
from collections.abc import Callable

import psycopg
import pytest

from control.registrar import SETTLE_SECONDS, Registrar
from control.wiring import opened_log
from schemas.pipeline import load_pipeline
from tests.e2e.conftest import Project, one

LIVE = "select count(*) from penstock.tables where state = 'live'"
PUBLISHED = "select count(*) from pg_publication_tables where schemaname || '.' || tablename = '{}'"


def begin(project: Project, *names: str, tables: str = 'shop.*", "app_*.*', more: str = "") -> None:
    """Run a pipeline with two tables, or more: a pattern that none fits would be refused."""
    with psycopg.connect(project.source, autocommit=True) as source:
        for schema in ("shop", "app_first"):
            source.execute(f"create schema {schema}".encode())
            source.execute(f"create table {schema}.first (id int primary key)".encode())
        for name in names:
            source.execute(f"create table shop.{name} (id int primary key)".encode())
    project.write(tables=tables)
    project.file.write_text(project.file.read_text() + more)
    run = project.start("run", str(project.file))
    project.wait_until("live tables", lambda: live(project) == 2 + len(names), run)


def live(project: Project) -> int:
    try:
        return one(project.target, LIVE)
    except psycopg.errors.UndefinedTable:
        return 0


def events(project: Project, table: str) -> list[tuple[str, str]]:
    """Return what was told of a table by the registrar: text and remedy."""
    lines = project.succeed("events", str(project.file), table, "--json").splitlines()
    return [(e["text"], e["remedy"]) for e in map(json.loads, lines) if e["service"] == "registrar"]


def kill(project: Project, service: str) -> int:
    """Kill a service, and return its process, which will be another one."""
    pid: int = json.loads((project.state / "pids.json").read_text())[service]
    os.kill(pid, signal.SIGKILL)
    return pid


def restarted(project: Project, service: str, before: int) -> Callable[[], bool]:
    return lambda: json.loads((project.state / "pids.json").read_text()).get(service, before) not in {0, before}


@pytest.mark.timeout(300)
def test_tables_that_are_made_come_over_by_themselves(project: Project) -> None:
    begin(project)
    run = project.running[0]
    with psycopg.connect(project.source, autocommit=True) as source, psycopg.connect(project.source) as writing:
        trigger = source.execute("select evtname from pg_event_trigger where evtname ~ %s", [project.name]).fetchall()
        for (name,) in trigger:
            source.execute(f'drop event trigger "{name}"'.encode())
        source.execute("create table shop.late (id int primary key, note text)")
        writing.execute("insert into shop.late select n, 'before' from generate_series(1, 1000) n")
        project.wait_until("publishing", lambda: one(project.source, PUBLISHED.format("shop.late")) == 1, run)
        source.execute("insert into shop.late values (2000, 'meanwhile')")
        pid = kill(project, "registrar")
        project.wait_until("another registrar", restarted(project, "registrar", pid), run)
        with source.transaction():
            source.execute("create schema app_one")
            source.execute("create type app_one.mood as enum ('good', 'bad')")
            source.execute("create table app_one.moods (id int primary key, mood app_one.mood)")
            source.execute("insert into app_one.moods values (1, 'good')")
        source.execute("create table shop.copied as select n as id, 'c' as note from generate_series(1, 100) n")
        source.execute("select id + 1 as id into shop.selected from shop.copied")
        source.execute("create table shop.parts (id int primary key) partition by range (id)")
        source.execute("create table shop.parts_1 partition of shop.parts for values from (0) to (100)")
        source.execute("create table public.elsewhere (id int primary key, note text)")
        source.execute("insert into public.elsewhere values (1, 'moved')")
        source.execute("alter table public.elsewhere set schema shop")
        source.execute("create temporary table passing (id int primary key)")
        for table in ("copied", "selected"):  # without key nobody takes them
            source.execute(f"alter table shop.{table} add primary key (id)".encode())
        writing.commit()
        pid = kill(project, "registrar")
        source.execute("update shop.late set note = 'changed' where id % 7 = 0")
        source.execute("insert into shop.parts select n from generate_series(1, 99) n")
    project.wait_until("eight live tables", lambda: live(project) == 8, run)
    with psycopg.connect(project.source, autocommit=True) as source:
        for table in ("shop.late", "shop.copied", "shop.elsewhere"):
            source.execute(f"update {table} set note = note || ' and followed' where id % 3 = 1".encode())
    project.wait_until("equality", lambda: project.differences() == [], run)
    assert one(project.target, "select count(*) from app_one.moods where mood = 'good'") == 1
    assert [text.split(":")[0] for text, _ in events(project, "shop.late")] == ["was made at the source"]
    assert one(project.source, "select count(*) from pg_publication_tables where tablename = 'parts'") == 0


def test_a_table_that_was_taken_over_may_become_a_partition(simple: Project) -> None:
    """What was written to it in between is the other one's: nobody can tell where its rows begin to be."""
    with psycopg.connect(simple.source, autocommit=True) as source:
        source.execute("create schema shop")
        source.execute("create table shop.parts (id int primary key) partition by range (id)")
        source.execute("create table shop.parts_1 partition of shop.parts for values from (0) to (100)")
        simple.write()
        run = simple.start("run", str(simple.file))
        simple.wait_until("a live table", lambda: live(simple) == 1, run)
        source.execute("create table shop.parts_2 (id int primary key)")
        simple.wait_until("two live tables", lambda: live(simple) == 2, run)
        source.execute("insert into shop.parts_2 values (101)")
        source.execute("delete from shop.parts_2")
        source.execute("alter table shop.parts attach partition shop.parts_2 for values from (100) to (200)")
        source.execute("insert into shop.parts values (1), (102)")
        failed = (
            "select count(*) from penstock.tables where state = 'failed' and error like '%shop.parts_2 was copied%'"
        )
        simple.wait_until("the end of both", lambda: one(simple.target, failed) == 1 and live(simple) == 0, run)
        simple.succeed("reload", str(simple.file), "shop.parts")
        source.execute("insert into shop.parts values (2), (103)")
    simple.wait_until("equality", lambda: live(simple) == 1 and simple.differences() == [], run)


def test_what_a_file_or_a_table_does_not_allow_is_told_once(simple: Project) -> None:
    begin(
        simple,
        "ignored_first",
        "paused_first",
        more="rules:\n"
        '  - {tables: ["shop.ignored_*"], ddl: ignore}\n'
        '  - {tables: ["shop.paused_*"], ddl: pause-table}\n',
    )
    run = simple.running[0]
    file = str(simple.file)
    with psycopg.connect(simple.source, autocommit=True) as source:
        for text in (
            "create table shop.ignored_one (id int primary key)",
            "create table shop.paused_one (id int primary key)",
            "create table shop.keyless as select 1 as id",
            "create unlogged table shop.unlogged (id int primary key)",
            "create table shop.out (id int primary key)",
        ):
            source.execute(text.encode())
        simple.wait_until("a fifth live table", lambda: live(simple) == 5, run)
        source.execute("alter table shop.keyless add primary key (id)")
        source.execute("alter table shop.unlogged set logged")
        simple.wait_until("seven live tables", lambda: live(simple) == 7, run)
        # What a person took out stays out, also what gets its name, and what his file does not have any more.
        original = simple.file.read_text()
        simple.file.write_text(original.replace('"app_*.*"', '"!shop.out", "!shop.no_*", "!shop.*_one"'))
        assert "- shop.out: is not applied any more" in simple.succeed("reconfigure", file, "--yes")
        simple.wait_until("that it has left", lambda: live(simple) == 5, run)
        published = "select count(*) from pg_publication_tables where schemaname = 'shop' and tablename = 'out'"
        assert one(simple.source, published) == 0
        source.execute("drop table shop.out")
        source.execute("create table shop.out (id int primary key)")
        source.execute("create table shop.no_more (id int primary key)")
        source.execute("create table shop.yes (id int primary key)")
        simple.wait_until("a sixth live table", lambda: live(simple) == 6, run)
        # Put back, it is loaded anew, and capture does not mind.
        simple.file.write_text(original)
        assert "+ shop.paused_one: is published" in simple.succeed("reconfigure", file, "--yes")
        simple.wait_until("all live tables", lambda: live(simple) == 11, run)
    pid = kill(simple, "capture")
    simple.wait_until("another capture", restarted(simple, "capture", pid), run)
    pid = kill(simple, "registrar")
    simple.wait_until("another registrar", restarted(simple, "registrar", pid), run)
    with psycopg.connect(simple.source, autocommit=True) as source:
        source.execute("insert into shop.out values (1)")
    simple.wait_until("equality", lambda: simple.differences() == [], run)
    told = {table: events(simple, f"shop.{table}") for table in ("ignored_one", "paused_one", "keyless", "unlogged")}
    assert {table: len(found) for table, found in told.items()} == {
        "ignored_one": 1,
        "paused_one": 1,
        "keyless": 2,
        "unlogged": 2,
    }
    assert "as `ddl: ignore` says" in told["ignored_one"][0][0]
    assert "penstock reconfigure" in told["paused_one"][0][1]
    assert "no replica identity" in told["keyless"][0][0]
    assert "set logged" in told["unlogged"][0][1]


def test_a_table_that_is_dropped_and_made_again_comes_over(simple: Project) -> None:
    begin(simple, "again", "kept", more='rules:\n  - {tables: ["shop.kept"], ddl: pause-table}\n')
    run, file = simple.running[0], str(simple.file)
    with psycopg.connect(simple.source, autocommit=True) as source, psycopg.connect(simple.source) as writing:
        writing.execute("insert into shop.first values (1)")  # what is published is awaited for as long as that runs
        for name in ("again", "kept"):
            source.execute(f"insert into shop.{name} values (1), (2)".encode())
            source.execute(f"drop table shop.{name}".encode())
            source.execute(f"create table shop.{name} (id int primary key, note text)".encode())
            source.execute(f"insert into shop.{name} values (2, 'again')".encode())
        simple.wait_until("publishing", lambda: one(simple.source, PUBLISHED.format("shop.again")) == 1, run)
        kill(simple, "registrar")
        writing.commit()
        there = "select count(*) from information_schema.columns where table_name = 'again' and column_name = 'note'"
        simple.wait_until("it", lambda: one(simple.target, there) == 1 and live(simple) == 3, run)
        source.execute("update shop.again set note = 'followed'")
        # Where the policy leaves it to people, they are told, and have a way.
        simple.wait_until("a word", lambda: bool(events(simple, "shop.kept")), run)
        assert "penstock reconfigure" in events(simple, "shop.kept")[0][1]
        refused = simple.run("reload", file, "shop.kept")
        assert refused.returncode == 3
        assert "shop.kept: dropped at the source" in refused.stdout and "penstock reconfigure" in refused.stdout
        assert "+ shop.kept: is published" in simple.succeed("reconfigure", file, "--yes")
        simple.wait_until("all live tables", lambda: live(simple) == 4, run)
        source.execute("update shop.kept set note = 'followed'")
    simple.wait_until("equality", lambda: simple.differences() == [], run)


def test_a_table_that_is_made_to_be_a_partition_is_left_alone(simple: Project) -> None:
    """The registrar has seen it before it is attached; a table beside it is taken over when both are old enough."""
    with psycopg.connect(simple.source, autocommit=True) as source:
        source.execute("create schema shop")
        source.execute("create table shop.parts (id int primary key) partition by range (id)")
        simple.write()
        simple.succeed("run", str(simple.file), "--until-caught-up")
        now, pipeline = 0.0, load_pipeline(simple.file)
        with (
            opened_log(pipeline) as log,
            contextlib.closing(Registrar(pipeline, log, clock=lambda: now)) as registrar,
        ):
            assert registrar.step()  # finds the setup
            source.execute("create table shop.parts_1 (like shop.parts including all)")
            source.execute("create table shop.other (id int primary key)")
            assert registrar.step()
            now += 0.9 * SETTLE_SECONDS
            assert registrar.step()
            source.execute("alter table shop.parts attach partition shop.parts_1 for values from (0) to (100)")
            now += 0.9 * SETTLE_SECONDS
            assert registrar.step()
        source.execute("insert into shop.parts values (1)")
    assert [text.split(":")[0] for text, _ in events(simple, "shop.other")] == ["was made at the source"]
    assert events(simple, "shop.parts_1") == []
    simple.succeed("run", str(simple.file), "--until-caught-up")
    assert one(simple.target, "select count(*) from shop.parts") == 1
