"""What services write: lines of JSON in a file, warnings for people, secrets in neither."""

import contextlib
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from control import logs
from control.logs import LogFile, Redactor, configure


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    """Logging is the process's own; other tests must not meet what these set up."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.fixture
def file(tmp_path: Path) -> Iterator[LogFile]:
    with contextlib.closing(LogFile(tmp_path / "deep" / "x.log")) as made:
        yield made


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "deep" / "x.log"


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_each_line_is_an_object_and_only_trouble_is_shown_to_people(file: LogFile, path: Path) -> None:
    shown: list[str] = []
    log = configure("capture", file=file, console=shown.append)
    log.info("sealed", offset=7)
    log.warning("will try again", error="gone", remedy="start it", kind="SourceUnavailable", seconds=2)
    logging.getLogger("some.library").debug("detail")
    logging.getLogger("some.library").warning("slow: %s", 7)
    log.error("stopped", error="bad", told=True)
    written = lines(path)
    assert [line["event"] for line in written] == ["sealed", "will try again", "slow: 7", "stopped"]
    assert {line["service"] for line in written} == {"capture"}
    assert written[0]["offset"] == 7
    assert [line["level"] for line in written] == ["info", "warning", "warning", "error"]
    assert [line.get("logger") for line in written] == [None, None, "some.library", None]
    assert "told" not in written[3]
    assert shown == ["capture: will try again: gone (seconds 2) → start it", "capture: slow: 7"]


def test_a_traceback_stays_in_the_file(file: LogFile, path: Path) -> None:
    shown: list[str] = []
    log = configure("apply", file=file, console=shown.append)
    try:
        raise RuntimeError("a bug")
    except RuntimeError:
        log.error("crashed", error="RuntimeError: a bug", exc_info=True)
    assert "Traceback" in lines(path)[0]["exception"]
    assert shown == ["apply: crashed: RuntimeError: a bug"]


def test_secrets_are_taken_out_everywhere(file: LogFile, path: Path) -> None:
    shown: list[str] = []
    redact = Redactor(["hunter2secret", ""])
    log = configure("apply", file=file, console=shown.append, redact=redact)
    log.warning("refused", error='password "hunter2secret" at postgresql://u:another@h/d', url="kafka://a:b@c")
    text = path.read_text() + "".join(shown)
    assert "hunter2secret" not in text
    assert "another" not in text
    assert "postgresql://u:***@h/d" in text


def test_a_file_that_is_full_is_moved_aside(file: LogFile, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "_KEPT_BYTES", 100)
    for number in range(4):
        file.write(f"{number} " + "x" * 60)
    assert path.with_name("x.log.1").read_text()[0] == "0"
    assert path.read_text()[0] == "2"


def test_a_log_file_on_a_full_disk_stops_nobody_and_is_told_once(path: Path) -> None:
    shown: list[str] = []
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to("/dev/full")
    full = LogFile(path)
    log = configure("apply", file=full, console=shown.append)
    for _ in range(3):
        log.info("sealed")
    log.warning("will try again")
    full.close()
    assert shown == ["apply: its log file can't be written: No space left on device", "apply: will try again"]
