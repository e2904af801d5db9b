"""A load, the changes beside it and a kill -9 of everything, between different versions of PostgreSQL."""

import pytest

from control.shop import fill
from tests.e2e.conftest import Project, one, traffic


@pytest.mark.versions(every=True)
def test_a_load_and_changes_between_versions_survive_a_kill(simple: Project) -> None:
    fill(simple.source, 3_000)
    simple.write()
    loaded = "select coalesce(sum(rows_loaded), 0) from penstock.tables"
    there = "select count(*) from pg_tables where schemaname = 'penstock' and tablename = 'tables'"
    with traffic(simple.source, 200):
        run = simple.start("run", str(simple.file))
        simple.wait_until("rows", lambda: one(simple.target, there) > 0 and one(simple.target, loaded) > 0, run)
        simple.kill(run)
        simple.succeed("run", str(simple.file), "--until-caught-up")
    simple.succeed("run", str(simple.file), "--until-caught-up")
    assert simple.differences() == []
