"""Mistakes in the pipeline file end every command with file, line and remedy, before anything is touched."""

from pathlib import Path

import pytest

from control.shop import fill
from tests.e2e.conftest import Project, one


@pytest.mark.parametrize("command", ["run", "capture", "snapshot", "apply", "check", "status", "log", "drop"])
def test_every_command_tells_file_and_line(simple: Project, command: str) -> None:
    simple.file.write_text("pipeline: p\nsource:\n  urls: postgresql://a/b\n")
    done = simple.run(command, str(simple.file))
    assert done.returncode == 3
    assert f"{simple.file}:3: unknown key 'urls'" in done.stdout
    assert "Traceback" not in done.stdout
    simple.file.unlink()


def test_a_pattern_that_matches_nothing_is_told_before_anything_is_touched(simple: Project) -> None:
    fill(simple.source, 1_000)
    simple.write(tables="shoop.*")
    done = simple.run("run", str(simple.file))
    assert done.returncode == 3
    assert f"{simple.file}:4: no table fits 'shoop.*'" in done.stdout
    assert "Traceback" not in done.stdout
    assert one(simple.source, "select count(*) from pg_publication") == 0
    assert one(simple.target, "select count(*) from pg_namespace where nspname in ('penstock', 'shop')") == 0


def test_a_source_that_does_not_answer_is_no_traceback(simple: Project, tmp_path: Path) -> None:
    fill(simple.source, 1_000)
    simple.write()
    simple.file.write_text(simple.file.read_text().replace(simple.source, "postgresql://postgres@127.0.0.1:1/none"))
    done = simple.run("check", str(simple.file))
    assert done.returncode == 4
    assert "Traceback" not in done.stdout
    assert "source" in done.stdout
    simple.write()


def test_a_table_that_is_in_the_way_is_told_with_its_remedy(simple: Project) -> None:
    fill(simple.source, 1_000)
    fill(simple.target, 1_000)
    simple.write()
    done = simple.run("run", str(simple.file), "--until-caught-up")
    assert done.returncode == 3
    assert "prepare: keep, truncate or drop-and-create" in done.stdout
    assert "Traceback" not in done.stdout
