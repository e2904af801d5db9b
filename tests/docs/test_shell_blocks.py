"""What the documents tell people to type is typed here, against servers of its own."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

ROOT = Path(__file__).parents[2]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
SECONDS = 60

ENDLESS = re.compile(r"penstock (run (?!.*--until-caught-up)|capture |apply |.*--watch|.*--follow)")


def blocks(language: str) -> list[tuple[str, str]]:
    """Return the fenced blocks of a language, each with the name of its document."""
    fence = re.compile(rf"^```{language}\n(.*?)^```", re.MULTILINE | re.DOTALL)
    return [(document.name, block) for document in DOCUMENTS for block in fence.findall(document.read_text())]


def lines(block: str) -> list[str]:
    without_comments = [re.sub(r"\s+# .*|^# .*", "", line) for line in block.splitlines()]
    return [line for line in without_comments if line.strip()]


COMMANDS = [(name, line) for name, block in blocks("sh") for line in lines(block)]


class Shell:
    """A person at a terminal, in a folder with the pipeline file of the README."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        programs = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        passwords = dict.fromkeys(["SOURCE_PASSWORD", "TARGET_PASSWORD", "REPORTS_PASSWORD"], "s3cret")
        self.environment = {**os.environ, **passwords, "PATH": programs}

    def type(self, command: str) -> str:
        """Run a command to its end, and one without an end until it says something; Ctrl-C follows."""
        process = subprocess.Popen(
            ["bash", "-c", f"exec {command}"],
            cwd=self.folder,
            env=self.environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        said = ""
        try:
            if ENDLESS.search(command):
                assert process.stdout is not None
                said = process.stdout.readline()
                process.send_signal(signal.SIGINT)
            said += process.communicate("y\n", timeout=SECONDS)[0]
        finally:
            process.kill()
            process.wait()
        assert process.returncode == 0, f"{command}: {process.returncode}\n{said}"
        return said


@pytest.fixture
def shell(tmp_path: Path, source_db: str, target_db: str) -> Iterator[Shell]:
    """Databases and roles as the README asks for them, under names of this test's own."""
    name = os.urandom(4).hex()
    role, owner, warehouse = f"penstock_{name}", f"owner_{name}", f"dwh_{name}"
    source, target = (str(conninfo_to_dict(url)["dbname"]) for url in (source_db, target_db))
    names = {"shop_owner": owner, "role penstock": f"role {role}", "to penstock": f"to {role}", "'…'": "'s3cret'"}

    def obey(url: str, side: str, database: str) -> None:
        for _, block in blocks("sql"):
            if block.startswith(f"-- {side}\n"):
                text = block
                for old, new in {**names, "database shop": f'database "{database}"'}.items():
                    text = text.replace(old, new)
                execute(url, text)

    execute(source_db, f"create role {owner}")
    for table in ("customers", "orders", "orders_archive", "tmp_import"):
        execute(source_db, f"create table public.{table} (id int primary key, note text)")
        execute(source_db, f"insert into public.{table} select g, 'note ' || g from generate_series(1, 20) g")
        execute(source_db, f"alter table public.{table} owner to {owner}")
    obey(source_db, "source", source)
    obey(target_db, "target", target)
    execute(target_db, f"create database {warehouse} owner {role}")

    (_, file), *others = blocks("yaml")
    assert others == []
    places = {
        "pipeline: shop": f"pipeline: docs_{name}",
        "//penstock:": f"//{role}:",
        "@db/shop": place(source_db, source),
        "@other/shop": place(target_db, target),
        "@reports/dwh": place(target_db, warehouse),
    }
    for old, new in places.items():
        assert old in file
        file = file.replace(old, new)
    (tmp_path / "pipeline.yaml").write_text(file)
    yield Shell(tmp_path)
    execute(target_db, f"drop database {warehouse} with (force)")
    for url, roles in ((source_db, [role, owner]), (target_db, [role])):
        for each in roles:
            execute(url, f"drop owned by {each} cascade; drop role {each}")


def place(url: str, database: str) -> str:
    parts = conninfo_to_dict(url)
    return f"@{parts['host']}:{parts['port']}/{database}"


def execute(url: str, statements: str) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(statements.encode())


def test_every_command_does_what_it_says(shell: Shell) -> None:
    """One after the other, as they stand; `make` has a test of its own."""
    said = {line: shell.type(line) for _, line in COMMANDS if line.startswith("penstock ")}
    told = "\n".join(said.values())
    assert len(said) >= 7
    assert "everything is ready" in told
    assert "3 tables, 60 rows loaded" in told
    assert "2 tables, 40 rows loaded" in told
    assert "tmp_import" not in told
    assert not (shell.folder / ".penstock").exists()


def test_every_make_command_has_a_target() -> None:
    typed = {name for _, line in COMMANDS for name in re.findall(r"\bmake (\w+)", line)}
    typed |= {name for document in DOCUMENTS for name in re.findall(r"`make (\w+)", document.read_text())}
    assert {"demo", "test", "build"} <= typed
    for name in sorted(typed):
        done = subprocess.run(["make", "-n", name], cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


def test_nothing_else_is_typed() -> None:
    """A line that neither of the other tests runs would be one that nobody has tried."""
    assert [(name, line) for name, line in COMMANDS if not re.match(r"penstock |make \w+", line)] == []


def test_every_command_that_is_named_exists() -> None:
    from control.cli import app

    known = {command.callback.__name__ for command in app.registered_commands if command.callback is not None}
    known |= {str(group.typer_instance.info.name) for group in app.registered_groups if group.typer_instance}
    named = {name for document in DOCUMENTS for name in re.findall(r"`penstock ([a-z][a-z-]*)", document.read_text())}
    assert named
    assert named <= known
