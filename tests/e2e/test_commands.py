"""Commands for single tables while everything runs, and the events that tell of it."""

import json

import psycopg
import pytest

from control.shop import fill
from tests.e2e.conftest import SECONDS, Project, one

NOTED = "select count(*) from shop.{table} where {column} = 'noted'"


@pytest.fixture
def running(project: Project) -> Project:
    fill(project.source, 2_000)
    with psycopg.connect(project.source, autocommit=True) as source:
        source.execute("create table shop.notes (id int primary key, text text)")
        source.execute("create table shop.other (id int primary key, text text)")
    project.write()
    run = project.start("run", str(project.file))
    live = f"select count(*) from penstock.tables where pipeline = '{project.name}' and state = 'live'"

    def all_live() -> bool:
        try:
            return one(project.target, live) == 8
        except psycopg.errors.UndefinedTable:
            return False

    project.wait_until("eight live tables", all_live, run)
    return project


def insert(project: Project, number: int) -> None:
    with psycopg.connect(project.source, autocommit=True) as source:
        for table in ("notes", "other"):
            source.execute(f"insert into shop.{table} values (%s, 'noted')".encode(), [number])


def wait_for(project: Project, table: str, number: int) -> None:
    project.wait_until(
        f"row {number} of {table}",
        lambda: one(project.target, f"select count(*) from shop.{table} where id = {number}") == 1,
        project.running[0],
    )


def test_a_table_is_paused_resumed_and_skipped_while_the_others_go_on(running: Project) -> None:
    file = str(running.file)
    assert "shop.notes on copy: is paused" in running.succeed("pause", file, "shop.notes", "--target", "copy")
    insert(running, 1)
    wait_for(running, "other", 1)
    assert one(running.target, "select count(*) from shop.notes") == 0
    (status,) = [row for row in tables(running) if row["table"] == "shop.notes"]
    assert status["state"] == "paused"

    assert "shop.notes on copy: is" in running.succeed("resume", file, "shop.not*")
    wait_for(running, "notes", 1)

    assert "shop.notes on copy: is skipped" in running.succeed("skip", file, "shop.notes")
    insert(running, 2)
    wait_for(running, "other", 2)
    assert one(running.target, "select count(*) from shop.notes") == 1
    assert "no table of the pipeline fits 'shop.nothing'" in running.run("pause", file, "shop.nothing").stdout

    told = [json.loads(line) for line in running.succeed("events", file, "shop.notes", "--json").splitlines()]
    assert [event["state"] for event in told if event["kind"] == "state"][-4:] == [
        "paused",
        "catching-up",
        "live",
        "skipped",
    ]
    commands = [event["text"].split()[0] for event in told if event["kind"] == "command"]
    assert commands == ["pause", "resume", "skip"]
    assert running.succeed("events", file, "shop.notes", "--limit", "1").endswith("is skipped\n")


def test_a_table_is_loaded_anew_long_after_the_load_while_the_others_go_on(running: Project) -> None:
    file = str(running.file)
    insert(running, 1)
    wait_for(running, "notes", 1)
    with psycopg.connect(running.target, autocommit=True) as target:
        target.execute("update shop.notes set text = 'broken'")
        target.execute("set session_replication_role = replica")
        target.execute("delete from shop.customers")
    assert "shop.notes on copy: is loading" in running.succeed("reload", file, "shop.notes")
    running.succeed("skip", file, "shop.customers")
    insert(running, 2)
    running.succeed("reload", file, "shop.customers", "shop.other", "--target", "copy")
    insert(running, 3)
    for table in ("notes", "other"):
        wait_for(running, table, 3)
    running.wait_until("equality", lambda: running.differences() == [], running.running[0])
    told = [json.loads(line) for line in running.succeed("events", file, "shop.notes", "--json").splitlines()]
    assert [event["state"] for event in told if event["state"]][-4:] == ["loading", "indexing", "catching-up", "live"]
    assert "is read again from the beginning: somebody has asked for it" in [event["text"] for event in told]


def test_tables_are_added_and_removed_while_changes_flow(running: Project) -> None:
    file = str(running.file)
    assert "the pipeline is what the file says" in running.succeed("reconfigure", file)
    with psycopg.connect(running.source) as writing, psycopg.connect(running.source, autocommit=True) as source:
        source.execute("create type shop.mood as enum ('good', 'bad')")
        source.execute("create table shop.late (id int primary key, mood shop.mood)")
        source.execute("insert into shop.late select n, 'good' from generate_series(1, 1000) n")
        shown = running.run("reconfigure", file)
        assert (shown.returncode, "+ shop.late: is published" in shown.stdout) == (2, True), shown.stdout
        writing.execute("insert into shop.late values (2000, 'bad')")
        taking = running.start("reconfigure", file, "--yes")
        source.execute("update shop.late set mood = 'bad' where id = 7")
        writing.commit()
        output, _ = taking.communicate(timeout=SECONDS)
        assert taking.returncode == 0, output
        source.execute("insert into shop.late values (2001, 'bad')")
    live = f"select count(*) from penstock.tables where pipeline = '{running.name}' and state = 'live'"
    running.wait_until("nine live tables", lambda: one(running.target, live) == 9, running.running[0])
    insert(running, 1)
    running.wait_until("equality", lambda: running.differences() == [], running.running[0])

    running.write(tables='shop.*", "!shop.late')
    assert "- shop.late: is not applied any more" in running.succeed("reconfigure", file, "--yes")
    running.wait_until("that it has left", lambda: one(running.target, live) == 8, running.running[0])
    with psycopg.connect(running.source, autocommit=True) as source:
        source.execute("delete from shop.late")
    insert(running, 2)
    wait_for(running, "other", 2)
    assert one(running.target, "select count(*) from shop.late") == 1002
    assert "shop.late" not in [row["table"] for row in tables(running)]


def test_who_asks_for_what_nobody_carries_out_is_told_so(running: Project) -> None:
    run = running.running[0]
    run.terminate()
    run.communicate(timeout=30)
    asked = running.succeed("pause", str(running.file), "shop.notes", "--no-wait")
    assert "shop.notes on copy: is asked for, and not carried out yet (live)" in asked
    insert(running, 1)
    running.succeed("run", str(running.file), "--until-caught-up")
    assert one(running.target, "select count(*) from shop.notes") == 0
    assert one(running.target, "select count(*) from shop.other") == 1


def tables(project: Project) -> list[dict[str, object]]:
    (target,) = json.loads(project.succeed("status", str(project.file), "--json"))["targets"]
    found: list[dict[str, object]] = target["tables"]
    return found
