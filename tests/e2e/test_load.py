"""`mode: load` ends by itself with 0, leaves nothing at the source, and a second run has nothing to do."""

from control.shop import fill
from tests.e2e.conftest import Project, one, traffic

OURS = "select count(*) from pg_replication_slots where slot_name = 'penstock_{name}'"
PUBLISHED = "select count(*) from pg_publication where pubname like 'penstock%'"


def test_a_load_ends_and_is_done_for_good(project: Project) -> None:
    fill(project.source, 5_000)
    project.write(mode="load")
    output = project.succeed("run", str(project.file))
    assert "complete after" in output
    assert project.differences() == []
    assert one(project.source, OURS.format(name=project.name)) == 0
    assert one(project.source, PUBLISHED) == 0

    assert "nothing to do" in project.succeed("run", str(project.file))


def test_a_load_under_traffic_is_a_state_that_the_source_was_in(simple: Project) -> None:
    """Foreign keys hold, and so does what each transaction keeps true: every order has been given its lines."""
    fill(simple.source, 5_000)
    simple.write(mode="load")
    with traffic(simple.source, 500):
        simple.succeed("run", str(simple.file))
    orphans = (
        "select count(*) from shop.order_items i left join shop.orders o on o.id = i.order_id"
        " and o.created = i.order_created where o.id is null"
    )
    assert one(simple.target, orphans) == 0


def test_a_target_can_not_be_added_to_a_load_that_is_done(simple: Project) -> None:
    fill(simple.source, 2_000)
    simple.write(mode="load")
    simple.succeed("run", str(simple.file))
    simple.write(mode="load", more_targets=f"  - name: late\n    url: {simple.target}\n")
    done = simple.run("run", str(simple.file))
    assert done.returncode == 3
    assert "late can't be added" in done.stdout
    assert "pipeline.yaml:7" in done.stdout


def test_a_pipeline_that_follows_changes_is_not_ended_by_another_mode_in_its_file(simple: Project) -> None:
    fill(simple.source, 2_000)
    simple.write()
    simple.succeed("run", str(simple.file), "--until-caught-up")
    for mode in ("load", "changes"):
        simple.write(mode=mode)
        done = simple.run("run", str(simple.file))
        assert done.returncode == 3
        assert "was begun with mode: load-and-changes" in done.stdout
    assert one(simple.source, OURS.format(name=simple.name)) == 1
