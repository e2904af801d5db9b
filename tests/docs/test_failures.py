"""Every failure that the documents tell of is one that a test has brought about."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCUMENT = (ROOT / "docs" / "failures.md").read_text()
ROWS = [line for line in DOCUMENT.splitlines() if line.startswith("| ") and not line.startswith("| what fails")]


@pytest.mark.parametrize("row", ROWS, ids=[row[2:50] for row in ROWS])
def test_a_row_names_tests_that_there_are(row: str) -> None:
    assert row.count(" | ") == 2
    named = [name.split("::") for comment in re.findall(r"<!-- (.*) -->", row) for name in comment.split()]
    assert named
    for file, test in named:
        assert f"def {test}(" in (ROOT / file).read_text()
