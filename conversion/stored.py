"""Statements that were made beforehand, because what makes them takes long to import."""

from __future__ import annotations

from pathlib import Path

SEPARATOR = ";\n\n"


def path_of(product: str) -> Path:
    """Return the file that holds what makes the bookkeeping tables on a product."""
    return Path(__file__).parent / f"bookkeeping.{product}.sql"


def bookkeeping_statements(product: str) -> list[str]:
    """Return what makes the schema `penstock` and its tables, as far as they are not there."""
    return path_of(product).read_text(encoding="utf-8").removesuffix(";\n").split(SEPARATOR)
