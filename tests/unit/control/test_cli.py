"""The command line without a server: help, exit codes, and mistakes told with their remedy."""

import io
import tomllib
from pathlib import Path

import pytest

from control.cli import main

COMMANDS = [
    "run",
    "capture",
    "snapshot",
    "apply",
    "check",
    "plan",
    "status",
    "events",
    "pause",
    "resume",
    "reload",
    "skip",
    "reconfigure",
    "log",
    "drop",
]
LETTERS = [f"dead-letters {command}" for command in ("list", "show", "replay", "edit", "discard")]
ARGUMENTS = {command: ["public.a"] for command in ("pause", "resume", "reload", "skip")}
FILE = "pipeline: p\nsource:\n  url: {url}\ntargets:\n  - name: t\n    url: postgresql://postgres@127.0.0.1:1/t\n{more}"
URL = "postgresql://u:hunter2secret@127.0.0.1:1/s"


def penstock(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(list(arguments))
    return int(ended.value.code or 0)


def write(folder: Path, url: str = URL, more: str = "") -> str:
    file = folder / "pipeline.yaml"
    file.write_text(FILE.format(url=url, more=more))
    return str(file)


def test_help_names_every_command_in_a_whole_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert penstock("--help") == 0
    shown = capsys.readouterr().out
    lines = {line.split()[0]: line for line in shown.partition("Commands:")[2].splitlines() if line.strip()}
    assert list(lines) == [*COMMANDS, "dead-letters"]
    assert [line for line in lines.values() if not line.endswith(".") or line.endswith("...")] == []
    assert "Exit codes" in shown


def test_the_version_is_that_of_the_package(capsys: pytest.CaptureFixture[str]) -> None:
    project = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text())["project"]
    assert penstock("--version") == 0
    assert capsys.readouterr().out == f"penstock {project['version']}\n"


@pytest.mark.parametrize("command", [*COMMANDS, *LETTERS])
def test_each_command_has_help_with_an_example(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert penstock(*command.split(), "-h") == 0
    assert f"penstock {command} pipeline.yaml" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments",
    [
        ["frobnicate"],
        ["run"],
        ["capture", "x.yaml", "--metrics-port", "many"],
        ["snapshot", "x.yaml", "--workers", "0"],
    ],
)
def test_a_wrong_command_line_is_exit_code_2(arguments: list[str]) -> None:
    assert penstock(*arguments) == 2


@pytest.mark.parametrize("command", COMMANDS)
def test_a_file_that_is_not_there_is_exit_code_3(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert penstock(command, "/nowhere/pipeline.yaml", *ARGUMENTS.get(command, [])) == 3
    assert "/nowhere/pipeline.yaml can't be read" in capsys.readouterr().err


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(
    ("url", "more", "line", "what", "remedy"),
    [
        (URL, "modus: load\n", 7, "unknown key 'modus'", "known here: "),
        (URL, "log: {budget: 20}\n", 7, "log.budget", "mend the line"),
        ("mysql://u@h/d", "", 3, "source.url", "mend the line"),
        ("postgresql://u:${PENSTOCK_TEST_NOT_SET}@h/d", "", 3, "is not set", "export PENSTOCK_TEST_NOT_SET=…"),
    ],
)
def test_a_mistake_in_the_file_is_told_with_line_and_remedy(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    command: str,
    url: str,
    more: str,
    line: int,
    what: str,
    remedy: str,
) -> None:
    file = write(tmp_path, url, more)
    assert penstock(command, file, *ARGUMENTS.get(command, [])) == 3
    told = capsys.readouterr().err
    assert told.startswith(f"penstock: {file}:{line}: ")
    assert what in told
    assert remedy in told
    assert "hunter2secret" not in told
    assert list(tmp_path.iterdir()) == [Path(file)]


def test_check_tells_of_servers_that_do_not_answer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert penstock("check", write(tmp_path)) == 4
    shown = capsys.readouterr().out
    assert shown.count("Connection refused\n        start the server, or correct its host and port in the URL") == 2
    assert "hunter2secret" not in shown


def test_a_kafka_that_does_not_answer_has_to_be_mended(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("control.checks.A_LOOK", 0.5)
    assert penstock("check", write(tmp_path, more="log: kafka://127.0.0.1:1\n")) == 4
    shown = capsys.readouterr().out
    assert "error   log: " in shown
    assert "start Kafka, or correct its address and credentials" in shown


def test_drop_removes_nothing_when_nobody_answers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO())
    (tmp_path / ".penstock").mkdir()
    assert penstock("drop", write(tmp_path)) == 2
    told = capsys.readouterr()
    assert "slot and publications penstock_p of the source" in told.out
    assert "nothing is removed" in told.err
    assert (tmp_path / ".penstock").exists()


def test_status_and_log_of_a_pipeline_that_never_ran(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write(tmp_path)
    assert penstock("status", file) == 0
    assert "not set up yet; `penstock run " in capsys.readouterr().out
    for topic in ((), ("frontier",)):
        assert penstock("log", file, *topic) == 3
        assert "has no log yet" in capsys.readouterr().err


def test_an_unknown_target_is_told_with_those_there_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert penstock("apply", write(tmp_path), "--target", "copy") == 3
    told = capsys.readouterr().err
    assert "there is no target 'copy'" in told
    assert "one of t" in told
