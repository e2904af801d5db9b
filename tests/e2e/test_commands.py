"""Commands for single tables while everything runs, and the events that tell of it."""

import json
import threading

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
    assert "is skipped, and stays so: only `penstock reload`" in running.succeed("resume", file, "shop.notes")
    assert "no table of the pipeline fits 'shop.nothing'" in running.run("pause", file, "shop.nothing").stdout

    told = [json.loads(line) for line in running.succeed("events", file, "shop.notes", "--json").splitlines()]
    assert [event["state"] for event in told if event["kind"] == "state"][-4:] == [
        "paused",
        "catching-up",
        "live",
        "skipped",
    ]
    commands = [event["text"].split()[0] for event in told if event["kind"] == "command"]
    assert commands == ["pause", "resume", "skip", "resume"]
    assert running.succeed("events", file, "shop.nothing") == "there are no such events\n"
    assert "is skipped\n" in running.succeed("events", file, "shop.notes", "--limit", "2")


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


@pytest.mark.timeout(300)
def test_a_part_of_a_table_is_loaded_anew_while_changes_flow_and_everything_is_killed(running: Project) -> None:
    file, stop = str(running.file), threading.Event()
    with psycopg.connect(running.source, autocommit=True) as source:
        source.execute(
            "create table shop.parts (area text, id int, at timestamptz default now(), code int unique, state text,"
            " large text, primary key (area, id))"
        )
        source.execute("alter table shop.parts alter large set storage external")
        source.execute(
            "insert into shop.parts select 'a,' || chr(39), n, now(), n, case when n % 3 = 0 then 'open' end,"
            " repeat('x', case when n < 50 then 5000 else 1 end) from generate_series(1, 3000) n"
        )
    live = "select count(*) from penstock.tables where table_name = 'parts' and state = 'live'"
    running.wait_until("a live table", lambda: one(running.target, live) == 1, running.running[0])
    with psycopg.connect(running.target, autocommit=True) as target:
        target.execute("set session_replication_role = replica")
        target.execute("delete from shop.parts where state = 'open' and id < 300")
        target.execute("update shop.parts set large = 'broken', code = -id where state = 'open' and id > 2500")
        target.execute("update shop.parts set state = 'open' where id in (1000, 1001)")
        target.execute("insert into shop.parts values ('b', 1, now(), 90000, 'open', 'only there')")

    asked = running.run("reload", file, "shop.parts", "--where", "true) union select 1 where (true")
    assert (asked.returncode, "behind WHERE" in asked.stdout) == (3, True), asked.stdout
    changes = threading.Thread(target=change, args=(running.source, stop))
    changes.start()
    try:
        running.succeed("reload", file, "shop.parts", "--where", "state = 'open' -- all of them")
        running.kill(running.running[0])
        run = running.start("run", file)
        running.wait_until("a live table", lambda: one(running.target, live) == 1, run)
    finally:
        stop.set()
        changes.join()
    running.wait_until("equality", lambda: running.differences() == [], run)

    # What was told just before the kill may be told again; what was not told yet is not, but for where it led to.
    def last_told() -> object:
        told = [json.loads(line) for line in running.succeed("events", file, "shop.parts", "--json").splitlines()]
        return [event["state"] for event in told if event["state"]][-1]

    running.wait_until("that it is told", lambda: last_told() == "live", run)


def change(url: str, stop: threading.Event) -> None:
    """Let rows begin and cease to be open, exchange unique values, get other keys, come and go."""
    with psycopg.connect(url, autocommit=True) as source:
        n = 0
        while not stop.is_set():
            n += 1
            for statement in (
                f"update shop.parts set state = case when state is null then 'open' end where id % 97 = {n % 97}",
                f"delete from shop.parts where id = {n % 3000 + 1}",
                f"insert into shop.parts values ('c', {n}, now(), {100_000 + n}, 'open', 'new')",
                f"update shop.parts set id = id + 10000 where id = {n * 7 % 3000}",
            ):
                source.execute(statement.encode())
            with source.transaction():
                (one_id, one_code), (other_id, other_code) = source.execute(
                    "select id, code from shop.parts where code > 0 and area <> 'c' order by random() limit 2"
                ).fetchall()
                for id_, code in ((one_id, -1), (other_id, one_code), (one_id, other_code)):
                    source.execute("update shop.parts set code = %s where id = %s and area <> 'c'", (code, id_))


def test_tables_are_added_and_removed_while_changes_flow(running: Project) -> None:
    file = str(running.file)
    assert "the pipeline is what the file says" in running.succeed("reconfigure", file)
    running.write(tables='shop.*", "!shop.late')
    assert "tables that are made later have to fit: shop.* !shop.late" in running.succeed("reconfigure", file, "--yes")
    with psycopg.connect(running.source) as writing, psycopg.connect(running.source, autocommit=True) as source:
        source.execute("create type shop.mood as enum ('good', 'bad')")
        source.execute("create table shop.late (id int primary key, mood shop.mood)")
        source.execute("insert into shop.late select n, 'good' from generate_series(1, 1000) n")
        running.write()
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
