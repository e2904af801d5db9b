"""`penstock run --until-caught-up`: ends by itself, and each further run goes on where the one before ended."""

import psycopg

from control.shop import fill
from tests.e2e.conftest import Project, traffic


def test_each_run_brings_the_target_to_where_the_source_was_when_it_began(project: Project) -> None:
    fill(project.source, 3_000)
    project.write()
    assert "complete after" in project.succeed("run", str(project.file), "--until-caught-up")
    assert project.differences() == []

    with traffic(project.source, 1_000):
        project.succeed("run", str(project.file), "--until-caught-up")
    project.succeed("run", str(project.file), "--until-caught-up")
    assert project.differences() == []


def test_a_run_ends_when_the_tables_are_there_too_that_were_made_before_it(simple: Project) -> None:
    fill(simple.source, 100)
    simple.write()
    simple.succeed("run", str(simple.file), "--until-caught-up")
    with psycopg.connect(simple.source, autocommit=True) as connection:
        connection.execute("create table shop.later (id int primary key); insert into shop.later values (1)")
        connection.execute("create table shop.keyless (id int)")  # is left, and nobody waits for it
    said = simple.succeed("run", str(simple.file), "--until-caught-up")
    assert "waiting for tables that are new at the source: shop.later" in said.splitlines()
    with psycopg.connect(simple.target, autocommit=True) as connection:
        assert connection.execute("select id from shop.later").fetchall() == [(1,)]
    assert "waiting" not in simple.succeed("run", str(simple.file), "--until-caught-up")


def test_what_is_made_on_the_target_works_there(simple: Project) -> None:
    """Keys, foreign keys, defaults, sequences' values, checks and comments have come along."""
    fill(simple.source, 2_000)
    simple.write()
    simple.succeed("run", str(simple.file), "--until-caught-up")
    simple.succeed("drop", "--yes", str(simple.file))
    with psycopg.connect(simple.target, autocommit=True) as connection:
        connection.execute(
            "insert into shop.customers (email, name, address) values ('new@example.com', 'New', '{}') returning id"
        )
        for wrong, error in (
            ("insert into shop.customers (email, name, address) values ('new@example.com', 'New', '{}')", "Unique"),
            ("insert into shop.orders values (-1, now(), -1)", "ForeignKey"),
            ("update shop.products set price = -1", "Check"),
        ):
            try:
                connection.execute(wrong.encode())
            except psycopg.errors.IntegrityError as refused:
                assert error in type(refused).__name__
            else:
                raise AssertionError(f"the target took {wrong}")
        (comment,) = connection.execute("select obj_description('shop.customers'::regclass)").fetchone() or ("",)
        assert comment == "Whoever has bought, or might"
