"""`status`, `log` and `check` show what there is, for people and for programs."""

import json

from control.shop import fill
from tests.e2e.conftest import Project


def test_status_and_log_of_a_pipeline(project: Project) -> None:
    project.write()
    assert "not set up yet" in project.succeed("status", str(project.file))
    fill(project.source, 2_000)
    project.succeed("run", str(project.file), "--until-caught-up")

    status = json.loads(project.succeed("status", str(project.file), "--json"))
    (target,) = status["targets"]
    assert target["name"] == "copy"
    tables = {row["table"]: row for row in target["tables"]}
    assert set(tables) == {f"shop.{n}" for n in ("customers", "order_items", "orders", "products", "stock", "visits")}
    assert {row["state"] for row in tables.values()} == {"live"}
    assert tables["shop.customers"]["rows_loaded"] == tables["shop.customers"]["rows_estimated"] == 200
    assert status["source"]["slot"] == "reserved"
    assert "shop.customers" in project.succeed("status", str(project.file))

    topics = [json.loads(line) for line in project.succeed("log", str(project.file), "--json").splitlines()]
    names = {topic["topic"] for topic in topics}
    assert {f"{project.name}.frontier", f"{project.name}.load.shop.customers"} <= names

    rows = [
        json.loads(line)
        for number in (0, 1)
        for line in project.succeed(
            "log", str(project.file), "load.shop.customers", "--partition", str(number), "--json"
        ).splitlines()
    ]
    assert sorted(int(row["after"]["id"]) for row in rows) == list(range(1, 201))
    control = project.succeed("log", str(project.file), "control")
    assert "Setup: system " in control and f"slot penstock_{project.name}" in control
    last = json.loads(project.succeed("log", str(project.file), "frontier", "--from", "-1", "--json"))
    assert last["kind"] == "Frontier"

    missing = project.run("log", str(project.file), "changes.shop.costumers")
    assert missing.returncode == 3
    assert "perhaps" in missing.stdout


def test_check_tells_what_is_to_be_mended_and_changes_nothing(simple: Project) -> None:
    fill(simple.source, 1_000)
    simple.write()
    simple.succeed("check", str(simple.file))
    simple.write(tables="shoop.*")
    done = simple.run("check", str(simple.file))
    assert done.returncode in {3, 4}
    assert "Traceback" not in done.stdout
