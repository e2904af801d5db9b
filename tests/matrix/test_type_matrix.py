"""Every type × {load, insert, update, key change, unchanged, delete} × {small, large}."""

from __future__ import annotations

import pytest

from tests import servers
from tests.e2e.conftest import Project, simple
from tests.matrix import document
from tests.matrix.run import measure

__all__ = ["simple"]

COMPLETE = {14, 15, 17}
"""Versions whose servers here have ICU, XML and the extensions of PostgreSQL itself."""


@pytest.mark.slow
@pytest.mark.timeout(240)
@pytest.mark.versions(where=lambda versions: not set(versions) <= COMPLETE)
def test_every_type_arrives_equal_as_the_document_says(simple: Project, versions: servers.Versions) -> None:
    _measure(simple)


@pytest.mark.slow
@pytest.mark.timeout(240)
@pytest.mark.versions(where=lambda versions: set(versions) <= COMPLETE)
def test_every_type_of_complete_servers_arrives_equal(simple: Project, versions: servers.Versions) -> None:
    _measure(simple)


def _measure(project: Project) -> None:
    subjects, unequal = measure(project)
    assert [f"{found.subject.case.type}, {found.kind}, {found.step}: {found.what}" for found in unequal] == []
    before = document.PATH.read_text()
    measured = document.lines(subjects, unequal)
    assert document.text(measured, before) == before, "write it anew: python -m tests.matrix"
