"""Several targets: a target that is down holds up nobody, and one that is added later is loaded while others go on."""

import re

import psycopg
import pytest

from control.shop import fill
from tests import servers
from tests.conftest import fresh_database
from tests.e2e.conftest import Project, one, traffic


def test_a_target_that_is_added_later_catches_up(
    project: Project, target_server: servers.Postgres, request: pytest.FixtureRequest
) -> None:
    fill(project.source, 3_000)
    project.write()
    project.succeed("run", str(project.file), "--until-caught-up")
    with fresh_database(target_server, request.node.name) as late:
        project.write(more_targets=f"  - name: late\n    url: {late}\n    tables: ['shop.cust*', 'shop.orders']\n")
        with traffic(project.source, 300):
            project.succeed("run", str(project.file), "--until-caught-up")
        project.succeed("run", str(project.file), "--until-caught-up")
        assert project.differences() == []
        assert one(late, "select count(*) from shop.orders") == one(project.source, "select count(*) from shop.orders")
        assert one(late, "select count(*) from pg_tables where schemaname = 'shop' and tablename = 'visits'") == 0
        project.succeed("drop", "--yes", str(project.file))


def test_a_target_that_is_down_holds_up_nobody(simple: Project) -> None:
    fill(simple.source, 3_000)
    nobody = re.sub(r":\d+/.*", ":1/none", simple.target)
    simple.write(more_targets=f"  - name: down\n    url: {nobody}\n")
    run = simple.start("run", str(simple.file))
    live = f"select count(*) from penstock.tables where pipeline = '{simple.name}' and state = 'live'"

    def all_live() -> bool:
        try:
            return one(simple.target, live) == 6
        except psycopg.errors.UndefinedTable:
            return False

    simple.wait_until("six live tables", all_live, run)
    run.terminate()
    output, _ = run.communicate(timeout=30)
    assert run.returncode == 0, output + simple.logs()
    simple.write()
