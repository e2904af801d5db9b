"""Write the bookkeeping tables' statements: `python -m conversion`. A test keeps the files equal to the tables."""

from __future__ import annotations

from conversion.bookkeeping import create_statements
from conversion.stored import SEPARATOR, path_of

PRODUCTS = ("postgresql", "mysql")


def text(product: str) -> str:
    """Return what the file of a product holds."""
    return SEPARATOR.join(statement.strip() for statement in create_statements(product)) + ";\n"


if __name__ == "__main__":
    for name in PRODUCTS:
        path_of(name).write_text(text(name), encoding="utf-8")
