"""A load, the changes beside it and a kill -9 of everything, between different versions of PostgreSQL."""

import pytest

from control.shop import Traffic, fill
from tests.e2e.conftest import Project, one


@pytest.mark.versions(every=True)
def test_a_load_and_changes_between_versions_survive_a_kill(simple: Project) -> None:
    fill(simple.source, 3_000)
    simple.write()
    traffic = Traffic(simple.source, 200)
    loaded = "select coalesce(sum(rows_loaded), 0) from penstock.tables"
    there = "select count(*) from pg_tables where schemaname = 'penstock' and tablename = 'tables'"
    try:
        run = simple.start("run", str(simple.file))
        simple.wait_until("rows", lambda: one(simple.target, there) > 0 and one(simple.target, loaded) > 0, run)
        simple.kill(run)
        simple.succeed("run", str(simple.file), "--until-caught-up")
    finally:
        traffic.stop()
    simple.succeed("run", str(simple.file), "--until-caught-up")
    assert simple.differences() == []
