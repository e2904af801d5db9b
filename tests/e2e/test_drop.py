"""`penstock drop` leaves nothing of ours anywhere, and the tables with their rows."""

import psycopg

from control.shop import fill
from tests.e2e.conftest import Project, one


def test_nothing_is_left(project: Project) -> None:
    fill(project.source, 2_000)
    project.write()
    project.succeed("run", str(project.file), "--until-caught-up")
    asked = project.start("drop", str(project.file))
    assert asked.poll() is None
    project.kill(asked)

    project.succeed("drop", "--yes", str(project.file))
    assert not project.state.exists()
    slots = f"select count(*) from pg_replication_slots where slot_name = 'penstock_{project.name}'"
    assert one(project.source, slots) == 0
    assert one(project.source, "select count(*) from pg_publication") == 0
    for url in (project.source, project.target):
        assert one(url, "select count(*) from pg_namespace where nspname = 'penstock'") == 0
    assert project.differences() == []
    project.succeed("drop", "--yes", str(project.file))  # of nothing, nothing


def test_after_a_drop_everything_begins_anew(simple: Project) -> None:
    fill(simple.source, 2_000)
    simple.write()
    simple.succeed("run", str(simple.file), "--until-caught-up")
    simple.succeed("drop", "--yes", str(simple.file))
    with psycopg.connect(simple.target, autocommit=True) as connection:
        connection.execute("drop schema shop cascade")
    simple.succeed("run", str(simple.file), "--until-caught-up")
    assert simple.differences() == []
