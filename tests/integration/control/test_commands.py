"""Commands on real servers: what `check`, `run`, `status` and `log` tell a person, before, in and after trouble."""

import contextlib
import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import psycopg
import pytest

from control.servers.postgres import PostgresServer
from control.servers.process import free_port

pytestmark = pytest.mark.versions

SECRET = "hunter2secret"
SECONDS = 90


class Penstock:
    """A pipeline file, and commands run on it. Everything that any of them wrote is kept."""

    def __init__(self, folder: Path, source: str, target: str) -> None:
        self.name = f"t_{os.urandom(4).hex()}"
        self.folder, self.source, self.target = folder, source, target
        self.written = ""
        self.write()

    @property
    def file(self) -> Path:
        return self.folder / "pipeline.yaml"

    def write(self, *, source: str = "", target: str = "", more: str = "") -> None:
        self.file.write_text(
            f"pipeline: {self.name}\nsource:\n  url: {source or self.source}\n"
            f'tables: ["shop.*"]\nworkers: {{snapshot: 1, apply: 1}}\n{more}'
            f"targets:\n  - name: copy\n    url: {target or self.target}\n"
        )

    def __call__(self, command: str, *arguments: str, code: int = 0) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "control", command, str(self.file), *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=SECONDS,
            check=False,
        )
        self.written += done.stdout
        assert done.returncode == code, done.stdout
        assert "Traceback" not in done.stdout
        return done.stdout

    @contextlib.contextmanager
    def running(self, command: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
        """Run a command that does not end by itself for the length of the block, and stop it."""
        process = subprocess.Popen(
            [sys.executable, "-m", "control", command, str(self.file), *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        try:
            yield process
        finally:
            process.terminate()
            said, _ = process.communicate(timeout=30)
        assert process.returncode == 0, said

    def findings(self, code: int = 0) -> dict[str, tuple[str, bool]]:
        """What `check --json` finds: the remedy of each problem, and whether it has to be mended."""
        found = [json.loads(line) for line in self("check", "--json", code=code).splitlines()]
        return {f"{f['where']}: {f['problem']}": (f["remedy"], f["blocking"]) for f in found}


@pytest.fixture
def penstock(tmp_path: Path, source_db: str, target_db: str) -> Iterator[Penstock]:
    sql(source_db, "create schema shop")
    sql(source_db, "create table shop.orders (id int primary key, note text)")
    sql(source_db, "insert into shop.orders select g, 'note ' || g from generate_series(1, 500) g")
    made = Penstock(tmp_path, source_db, target_db)
    yield made
    made.write()
    made("drop", "--yes")


def sql(url: str, statement: str) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(statement.encode())


def with_password(url: str, role: str) -> str:
    return url.replace("://postgres@", f"://{role}:{SECRET}@").replace("://postgres:postgres@", f"://{role}:{SECRET}@")


@pytest.fixture
def poor_role(source_db: str) -> Iterator[str]:
    role = f"poor_{os.urandom(4).hex()}"
    sql(source_db, f"create role {role} login password '{SECRET}'")
    yield role
    sql(source_db, f"drop owned by {role}; drop role {role}")


def test_check_is_content_before_a_load_and_after_it(penstock: Penstock) -> None:
    penstock("check")
    penstock("run", "--until-caught-up")
    assert [what for what, (_, blocking) in penstock.findings().items() if blocking] == []
    assert "everything is ready" in penstock("check")


def test_check_tells_of_tables_that_are_newer_than_the_pipeline(penstock: Penstock) -> None:
    newer = "source: shop.newer is newer than the pipeline, and not part of it: it is not copied"
    penstock("run", "--until-caught-up")
    assert newer not in penstock.findings()
    sql(penstock.source, "create table shop.newer (id int primary key)")
    remedy, blocking = penstock.findings()[newer]
    assert "`penstock reconfigure`" in remedy
    assert not blocking
    sql(penstock.source, "create table shop.bare (id int)")
    (target,) = [json.loads(line) for line in penstock("plan", "--json").splitlines()]
    actions = {table["table"]: table["action"] for table in target["tables"]}
    assert "it has no replica identity" in actions.pop("shop.bare")
    assert actions == {
        "shop.newer": "is new, and taken over as soon as the pipeline runs",
        "shop.orders": "goes on: it is loaded, or being loaded",
    }


def test_check_looks_at_the_tables_of_a_running_pipeline_too(penstock: Penstock) -> None:
    penstock("run", "--until-caught-up")
    sql(penstock.target, "alter table shop.orders alter column note type varchar(10)")
    found = penstock.findings(code=4)
    remedy, blocking = found["target copy: shop.orders: column note is character varying(10), at the source text"]
    assert blocking
    sql(penstock.target, remedy)
    sql(penstock.target, "drop table shop.orders")
    assert found.keys() != penstock.findings(code=4).keys()
    assert "target copy: shop.orders was dropped" in penstock.findings(code=4)


def test_a_table_that_fails_is_named_with_its_remedy_and_the_run_ends(penstock: Penstock) -> None:
    penstock("run", "--until-caught-up")
    sql(penstock.target, "alter table shop.orders alter column note type varchar(10)")
    sql(penstock.source, "update shop.orders set note = 'a note that is too long' where id = 7")
    told = penstock("run", "--until-caught-up", code=3)
    shown = penstock("status")
    (row,) = json.loads(penstock("status", "--json"))["targets"][0]["tables"]
    assert row["state"] == "failed"
    for text in (told, shown):
        assert "shop.orders" in text
        assert row["error"] in text
        assert row["remedy"] in text
    assert "shop.orders" in penstock("log", "changes.shop.orders")


def test_a_table_whose_change_can_not_be_carried_stops_alone_and_is_named(penstock: Penstock) -> None:
    """A run that begins afterwards still knows the version that older records were written with."""
    sql(penstock.source, "create table shop.stock (id int primary key, amount int)")
    penstock("run", "--until-caught-up")
    sql(penstock.source, "alter table shop.orders add column more float default random()")
    sql(penstock.source, "update shop.orders set note = 'other' where id = 3; insert into shop.stock values (1, 1)")
    for _ in range(2):
        told = penstock("run", "--until-caught-up", code=3)
        assert "1 table has failed, all others are complete: shop.orders on copy" in told
        assert "column more was added" in told
    rows = json.loads(penstock("status", "--json"))["targets"][0]["tables"]
    assert {row["table"]: (row["state"], row["changes_applied"]) for row in rows} == {
        "shop.orders": ("failed", 0),
        "shop.stock": ("live", 1),
    }


def test_a_role_without_rights_is_led_to_check_which_mends_all(penstock: Penstock, poor_role: str) -> None:
    penstock.write(source=with_password(penstock.source, poor_role))
    told = penstock("run", code=3)
    assert "`penstock check` names every right that is missing, and its grant" in told
    found = {what: remedy for what, (remedy, blocking) in penstock.findings(code=4).items() if blocking}
    assert len(found) == 5
    for remedy in found.values():
        statements = remedy.partition("or as a superuser: ")[2] or remedy.partition("  (")[0].partition(", or ")[0]
        sql(penstock.source, statements)
    penstock("check")
    penstock("run", "--until-caught-up")


def test_services_tell_their_figures(penstock: Penstock) -> None:
    """Each as a command of its own, as in Kubernetes."""
    ports = {"capture": free_port(), "apply": free_port()}
    with contextlib.ExitStack() as stack:
        for command, port in ports.items():
            stack.enter_context(penstock.running(command, "--metrics-port", str(port)))
        stack.enter_context(penstock.running("snapshot"))
        expected = {"capture": ("penstock_frontiers_total", 1.0), "apply": ("penstock_rows_total", 500.0)}
        for command, (name, least) in expected.items():
            deadline = time.monotonic() + SECONDS
            while figures(ports[command]).get(name, 0.0) < least:
                assert time.monotonic() < deadline, figures(ports[command])
                time.sleep(0.05)
        assert figures(ports["apply"])["penstock_chunks_total"] >= 1
        assert figures(ports["capture"])["penstock_ready"] == 1
        assert 0 <= figures(ports["capture"])["penstock_lag_seconds"] < SECONDS


def figures(port: int) -> dict[str, float]:
    """What a service tells, by name; nothing while it does not serve yet."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
            lines = answer.read().decode().splitlines()
    except urllib.error.URLError:
        return {}
    return {line.partition("{")[0]: float(line.split()[-1]) for line in lines if not line.startswith("#")}


def test_passwords_are_never_written(penstock: Penstock, poor_role: str, tmp_path: Path) -> None:
    penstock.write(source=with_password(penstock.source, poor_role), target=with_password(penstock.target, "nobody"))
    commands: list[Callable[[], object]] = [
        lambda: penstock("check", code=4),
        lambda: penstock("run", code=3),
        lambda: penstock("status"),
        lambda: penstock("drop", code=2),
        lambda: penstock("drop", "--yes", code=3),
        lambda: penstock("run", code=3),
    ]
    for command in commands:
        command()
    logs = [path for path in tmp_path.rglob("*") if path.is_file() and path != penstock.file]
    assert any(path.suffix == ".log" for path in logs)
    assert SECRET not in penstock.written
    assert [path for path in logs if SECRET.encode() in path.read_bytes()] == []


def test_passwords_are_in_no_command_line(penstock: Penstock) -> None:
    """A run's processes have no other arguments than those a person gave."""
    role = f"secret_{os.urandom(4).hex()}"
    sql(penstock.source, f"create role {role} superuser login password '{SECRET}'")
    penstock.write(source=with_password(penstock.source, role))
    with penstock.running("run") as run:
        assert run.stdout is not None
        for line in run.stdout:
            if "1 of 1 tables live" in line:
                break
        processes = [psutil.Process(run.pid), *psutil.Process(run.pid).children(recursive=True)]
        lines = []
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):  # who reads the load ends when all is read
                lines.append(" ".join(process.cmdline()))
    sql(penstock.source, f"reassign owned by {role} to postgres; drop owned by {role}; drop role {role}")
    assert len(lines) >= 4
    assert [line for line in lines if SECRET in line] == []


def test_a_source_that_writes_no_logical_log_is_told_with_its_remedy(tmp_path: Path, target_db: str) -> None:
    with PostgresServer(16, conf={"wal_level": "replica", "max_wal_senders": 5}) as server:
        server.create_database("shop")
        sql(server.url("shop"), "create schema shop; create table shop.orders (id int primary key)")
        penstock = Penstock(tmp_path, server.url("shop"), target_db)
        remedy = "alter system set wal_level = logical; then restart the server"
        assert remedy in penstock("run", code=3)
        assert remedy in penstock("check", code=4)
        penstock("drop", "--yes")


def test_plan_tells_what_becomes_of_everything_and_changes_nothing(penstock: Penstock) -> None:
    sql(penstock.source, "create table shop.lines (id int primary key, of int references shop.orders, at timestamptz)")
    sql(penstock.source, "alter table shop.lines add double int generated always as (id * 2) stored")
    sql(penstock.source, "create index on shop.lines (at)")
    sql(penstock.source, "analyze")
    (target,) = [json.loads(line) for line in penstock("plan", "--json").splitlines()]
    lines, orders = target["tables"]
    assert (orders["table"], orders["action"], orders["rows"], orders["group"]) == ("shop.orders", "is made", 500, 0)
    assert orders["bytes"] > 8_000 and lines["group"] == 0
    assert [(column["name"], column["type"], column["how"]) for column in lines["columns"]] == [
        ("id", "integer", ""),
        ("of", "integer", ""),
        ("at", "timestamp with time zone", ""),
        ("double", "integer", "computed by the target"),
    ]
    assert "create index" in lines["then"][0].lower() and "foreign key" in lines["last"][0].lower()
    told = penstock("plan")
    assert "change together, tied by foreign keys: shop.lines, shop.orders" in told
    sql(penstock.target, "create schema shop")
    sql(penstock.target, "create table shop.orders (id bigint primary key)")
    assert "stops: the target has a table of this name" in penstock("plan")
    penstock.write(more="")
    penstock.file.write_text(penstock.file.read_text() + "    prepare: keep\n")
    told = penstock("plan")
    assert "id integer -> bigint" in told and "the target's has no such column" in told
    with psycopg.connect(penstock.target) as target_db:
        found = target_db.execute("select to_regnamespace('penstock') is null, count(*) from shop.orders").fetchone()
    assert found == (True, 0)


OF_C = """
create type shop.odd;
create function shop.odd_in(cstring) returns shop.odd language internal immutable strict as 'int4in';
create function shop.odd_out(shop.odd) returns cstring language internal immutable strict as 'int4out';
create type shop.odd (input = shop.odd_in, output = shop.odd_out, like = int4);
create type shop.pair as (n int, o shop.odd[]);
create table shop.queer (id int primary key, plain text, "Pair" shop.pair)
"""


def test_plan_names_a_type_that_no_target_can_have_and_goes_on_and_so_does_check(penstock: Penstock) -> None:
    sql(penstock.source, OF_C)
    sql(penstock.target, "create schema shop; create table shop.orders (id int)")
    (target,) = [json.loads(line) for line in penstock("plan", "--json").splitlines()]
    actions = {table["table"]: table["action"] for table in target["tables"]}
    what = "shop.queer: column Pair: type shop.odd is written in C and belongs to no extension"
    assert f"shop.queer: {actions['shop.queer']}".startswith(f"shop.queer: stops the pipeline: {what[12:]}")
    assert actions["shop.orders"].startswith("stops: the target has a table of this name")
    found = penstock.findings(code=4)
    assert found[f"source: {what}"][1]
    assert any(problem.startswith("target copy: ") and "shop.orders" in problem for problem in found)  # it is looked at
    assert what in penstock("run", code=3)


def test_plan_tells_of_views_owners_and_grants_where_they_are_wanted(penstock: Penstock) -> None:
    sql(penstock.source, "create view shop.few as select id from shop.orders; grant select on shop.few to pg_monitor")
    sql(penstock.source, "grant insert on shop.orders to pg_monitor")
    made = 'grant INSERT on table "shop"."orders" to "pg_monitor"', 'create view "shop"."few" as SELECT'
    told = penstock("plan")
    assert not any(statement in told for statement in made)
    penstock.file.write_text(f"{penstock.file.read_text()}    views: true\n    owners: true\n    grants: true\n")
    told = penstock("plan")
    assert all(statement in told for statement in made), told
    assert 'at last: alter table "shop"."orders" owner to "postgres"' in told
    assert 'at last, unless it is there: grant SELECT on table "shop"."few" to "pg_monitor"' in told
