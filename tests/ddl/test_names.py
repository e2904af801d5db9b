"""Names go from one table to another while targets do not stand at one moment."""

from itertools import permutations

import psycopg
import pytest

from tests.ddl.conftest import Followed
from tests.e2e.conftest import Project

pytestmark = pytest.mark.versions

TABLE = "create table shop.{t} (id int primary key, note text default '{t}'); insert into shop.{t} (id) values (1)"
TABLES = "select relname from pg_class where relnamespace = 'shop'::regnamespace and relkind = 'r' order by relname"


def exchange(one: str, other: str, number: int) -> list[str]:
    """Exchange two names, and give each table a row under its new one."""
    return [
        f"alter table shop.{one} rename to between; alter table shop.{other} rename to {one};"
        f" alter table shop.between rename to {other}",
        *(f"insert into shop.{name} values ({number}, 'exchanged')" for name in (one, other)),
    ]


def tables_of(url: str) -> list[tuple[str]]:
    with psycopg.connect(url) as connection:
        return connection.execute(TABLES).fetchall()


def all_is_there(followed: Followed) -> None:
    """Require that each table is live, under its name, with the source's rows."""
    project = followed.project
    followed.sync()
    assert {name: error for name, (_, error, _) in followed.states().items() if error} == {}
    assert tables_of(project.target) == tables_of(project.source)
    assert project.differences() == []


def test_names_that_were_exchanged_twice_before_anybody_followed(simple: Project) -> None:
    followed = Followed(simple)
    trios = [[f"{name}{number}" for name in order] for number, order in enumerate(permutations("abc"))]
    followed.do("create schema shop", *(TABLE.format(t=name) for trio in trios for name in trio))
    followed.start()
    followed.sync()
    followed.stop()
    for first, second, third in trios:
        followed.do(*exchange(first, second, 2), *exchange(second, third, 3))
    followed.start()
    all_is_there(followed)
    followed.stop()


def test_a_table_that_is_late_takes_names_that_others_have_by_now(simple: Project) -> None:
    followed = Followed(simple)
    followed.do("create schema shop", *(TABLE.format(t=name) for name in "abc"))
    followed.start()
    followed.sync()
    simple.succeed("pause", str(simple.file), "shop.a")
    followed.do(*exchange("a", "b", 2), *exchange("b", "c", 3))
    followed.sync()
    simple.succeed("resume", str(simple.file), "shop.a")
    all_is_there(followed)
    followed.stop()


def test_a_table_that_is_made_gets_a_name_that_a_late_one_still_has(simple: Project) -> None:
    followed = Followed(simple)
    followed.do("create schema shop", *(TABLE.format(t=name) for name in "ab"))
    followed.start()
    followed.sync()
    followed.do("alter table shop.a rename to c", "insert into shop.c values (2, 'c')")
    followed.sync()
    simple.succeed("pause", str(simple.file), "shop.a")
    followed.do("alter table shop.c rename to d", "insert into shop.d values (3, 'd')", TABLE.format(t="c"))
    simple.wait_until("the new table", lambda: "c" in followed.states(), followed.run)
    followed.sync()
    simple.succeed("resume", str(simple.file), "shop.a")
    all_is_there(followed)
    followed.stop()
