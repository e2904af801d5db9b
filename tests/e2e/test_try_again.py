"""A table that has failed tries again with the next run: what it lacked may be there."""

import psycopg

from control.shop import fill
from tests.e2e.conftest import Project


def test_what_has_failed_tries_again_with_the_next_run(simple: Project) -> None:
    fill(simple.source, 2_000)
    simple.write()
    with psycopg.connect(simple.target, autocommit=True) as target:
        target.execute("create schema shop")
        target.execute("create table shop.customers (other int)")
        first = simple.run("run", str(simple.file), "--until-caught-up")
        assert first.returncode == 3
        assert "customers on copy: PrerequisiteMissing: the target has a table shop.customers already" in first.stdout
        target.execute("drop table shop.customers")
    again = simple.succeed("run", str(simple.file), "--until-caught-up")
    assert "copy: 1 table that had failed: trying again" in again
    assert simple.differences() == []
