"""Dead letters by hand, while everything runs: seen, replayed, edited, discarded."""

import json
from typing import Any

import psycopg

from tests.e2e.conftest import Project, one

TABLE = "select count(*) from pg_tables where schemaname = 'shop'"
LETTERS = "select count(*) from penstock.dead_letters"


def sql(url: str, statement: str) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(statement.encode())


def listed(project: Project, *arguments: str) -> list[dict[str, Any]]:
    said = project.succeed("dead-letters", "list", str(project.file), "--json", *arguments)
    return [json.loads(line) for line in said.splitlines()]


def there(project: Project, condition: str) -> None:
    query = f"select count(*) from shop.orders where {condition}"
    project.wait_until(condition, lambda: one(project.target, query) == 1, project.running[0])


def test_refused_rows_are_seen_replayed_edited_and_discarded(simple: Project) -> None:
    project, file = simple, str(simple.file)
    sql(project.source, "create schema shop")
    sql(project.source, "create table shop.orders (id int primary key, total int, note text)")
    sql(project.source, "insert into shop.orders values (1, 1, 'one')")
    project.write()
    project.file.write_text(f"{project.file.read_text()}rules: [{{tables: [shop.o*], on-row-error: set-aside}}]\n")
    run = project.start("run", file)
    project.wait_until("a table", lambda: one(project.target, TABLE) == 1, run)
    there(project, "id = 1")
    sql(project.target, "alter table shop.orders add constraint positive check (total >= 0)")
    sql(project.source, "insert into shop.orders values (2, -2, 'bad'), (3, 3, 'three')")
    sql(project.source, "update shop.orders set note = 'still bad' where id = 2")
    sql(project.source, "update shop.orders set note = 'seen' where id = 3")
    there(project, "note = 'seen'")

    first, second = listed(project)
    assert (first["key"], first["op"], second["op"], second["target"]) == ('["2"]', "insert", "update", "copy")
    assert "positive" in first["cause"]
    assert listed(project, "--key", "3") == [] and len(listed(project, "shop.*", "--key", "2")) == 2
    number = str(first["number"])
    shown = project.succeed("dead-letters", "show", file, number)
    assert '"total": "-2"' in shown and "positive" in shown
    status = json.loads(project.succeed("status", file, "--json"))
    assert status["targets"][0]["tables"][0]["dead_letters"] == 2
    assert "2 dead letters" in project.succeed("status", file)

    again = project.run("dead-letters", "replay", file)
    assert again.returncode == 3 and "0 applied, 2 refused again" in again.stdout and "positive" in again.stdout
    refused = project.run("dead-letters", "edit", file, number, "--set", "total=much")
    assert refused.returncode == 3 and "does not fit" in refused.stdout
    for letter in listed(project):
        project.succeed("dead-letters", "edit", file, str(letter["number"]), "--set", "total=7", "--null", "note")
    assert "2 applied, 0 refused again" in project.succeed("dead-letters", "replay", file, "shop.orders", "--key", "2")
    assert one(project.target, "select total from shop.orders where id = 2 and note is null") == 7
    sql(project.source, "update shop.orders set total = 8 where id = 2")
    there(project, "total = 8")

    sql(project.source, "insert into shop.orders values (4, -4, 'gone')")
    sql(project.source, "delete from shop.orders where id = 4")
    sql(project.source, "update shop.orders set note = 'later' where id = 3")
    there(project, "note = 'later'")
    assert len(listed(project)) == 2
    assert "2 discarded" in project.succeed("dead-letters", "discard", file, "--yes")
    assert "no such dead letters" in project.succeed("dead-letters", "list", file)
    told = project.succeed("events", file, "shop.orders")
    assert "was set aside" in told and "replayed by" in told and "edited by" in told and "discarded by" in told
    assert project.differences() == []

    sql(project.source, "insert into shop.orders values (5, -5, 'gone with the table')")
    project.wait_until("a letter", lambda: one(project.target, LETTERS) == 1, run)
    sql(project.source, "alter table shop.orders rename to sales")
    project.wait_until("the other name", lambda: len(listed(project, "shop.sales")) == 1, run)
    assert len(listed(project, "shop.orders")) == 1
    sql(project.source, "drop table shop.sales")
    project.wait_until("no letter", lambda: one(project.target, LETTERS) == 0, run)
    assert one(project.target, TABLE) == 0
    dropped = "1 dead letter is gone: the table was dropped at the source"
    project.wait_until("that it is told", lambda: dropped in project.succeed("events", file, "shop.orders"), run)
