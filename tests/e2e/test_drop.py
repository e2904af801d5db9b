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


def test_a_pipeline_that_runs_with_another_state_folder_is_not_dropped(simple: Project) -> None:
    fill(simple.source, 2_000)
    simple.write()
    run = simple.start("run", str(simple.file))
    streaming = f"select count(*) from pg_replication_slots where slot_name = 'penstock_{simple.name}' and active"
    simple.wait_until("a stream", lambda: one(simple.source, streaming) == 1, run)
    elsewhere = simple.folder / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "pipeline.yaml").write_text(simple.file.read_text())
    refused = simple.run("drop", "--yes", str(elsewhere / "pipeline.yaml"))
    assert refused.returncode == 3
    assert "the pipeline runs, with another state folder" in refused.stdout and "stop it first" in refused.stdout
    assert one(simple.source, streaming) == 1
    simple.kill(run)
