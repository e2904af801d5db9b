"""The project's own files agree with each other."""

import re
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import refuse_skip

ROOT = Path(__file__).parents[2]

# Put together here, so that this file does not hold them itself.
FORBIDDEN = [
    "/".join(["", "work", ""]),
    *(".".join(parts) for parts in (["pypi", "org"], ["pythonhosted", "org"], ["maven", "org"])),
    *(".".join(parts) for parts in (["repo", "maven", "apache"], ["registry", "npmjs"], ["proxy", "golang"])),
]


def project() -> dict[str, Any]:
    table: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())
    return table


def requirements() -> dict[str, str]:
    """Return each dependency of any kind, by its name."""
    table = project()["project"]
    lists = [table["dependencies"], *table["optional-dependencies"].values()]
    found = [re.fullmatch(r"([\w-]+)(?:\[[\w,]+\])?(.*)", line) for lines in lists for line in lines]
    return {match[1]: match[2] for match in found if match is not None}


def tracked_text() -> dict[str, str]:
    """Return the text of every file that git knows, by its path."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True)
    texts = {}
    for path in listed.stdout.split("\0"):
        file = ROOT / path
        if path and file.is_file():
            data = file.read_bytes()
            if b"\0" not in data:
                texts[path] = data.decode()
    return texts


def test_every_dependency_is_explained_in_contributing() -> None:
    rows = re.findall(r"^\| ([^|]+) \|", (ROOT / "CONTRIBUTING.md").read_text(), re.MULTILINE)
    explained = {name for row in rows for name in row.split(", ")}
    assert set(requirements()) - explained == set()


def test_every_dependency_is_locked() -> None:
    locked = {
        line.split("==")[0].lower().replace("_", "-") for line in (ROOT / "requirements.lock").read_text().splitlines()
    }
    assert {name.lower() for name in requirements()} - locked == set()


def test_every_dependency_of_the_product_has_a_lower_bound() -> None:
    unbound = [name for name in project()["project"]["dependencies"] if ">=" not in name]
    assert unbound == []


def test_the_layers_name_every_package_that_is_installed() -> None:
    tools = project()["tool"]
    installed = {pattern.rstrip("*") for pattern in tools["setuptools"]["packages"]["find"]["include"]}
    layers = tools["importlinter"]["contracts"][0]["layers"]
    assert set(tools["importlinter"]["root_packages"]) == installed
    assert {name for layer in layers for name in layer.split(" | ")} == installed


def test_no_file_names_one_machine_or_one_registry() -> None:
    found = [(path, word) for path, text in tracked_text().items() for word in FORBIDDEN if word in text]
    assert found == []


def test_every_make_target_says_what_it_does() -> None:
    help_text = subprocess.run(["make", "-s", "help"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    phony = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert phony is not None
    assert set(re.findall(r"^  make (\w+)", help_text, re.MULTILINE)) == set(phony[1].split())


@pytest.mark.parametrize(("variable", "outcome"), [("true", "failed"), ("", "skipped")])
def test_a_skipped_test_fails_in_continuous_integration(
    monkeypatch: pytest.MonkeyPatch, variable: str, outcome: str
) -> None:
    monkeypatch.setenv("CI", variable)
    place = ("tests/unit/test_any.py", 1, "Skipped: no server")
    report = pytest.TestReport("any", place, {}, "skipped", place, "call")
    refuse_skip(report)
    assert report.outcome == outcome
    assert "no server" in str(report.longrepr)


def test_an_expected_failure_stays_one_in_continuous_integration(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CI", "true")
    report = pytest.TestReport("any", ("any", 1, "any"), {}, "skipped", None, "call")
    report.wasxfail = "known"
    refuse_skip(report)
    assert report.outcome == "skipped"
