"""Identifiers and literals in SQL: the one place where they are quoted."""

from __future__ import annotations


def quote(*parts: str) -> str:
    """Return an identifier of one or more parts, such as `"schema"."name"`, with every part quoted.

    Always quoted: whether a bare word is a keyword depends on the server's version.
    """
    for part in parts:
        if not part or "\0" in part:
            raise ValueError("an identifier is empty or holds a zero byte")
    return ".".join('"' + part.replace('"', '""') + '"' for part in parts)


def literal(text: str) -> str:
    """Return a string literal that means the same whatever `standard_conforming_strings` says."""
    if "\0" in text:
        raise ValueError("a literal holds a zero byte")
    quoted = "'" + text.replace("'", "''") + "'"
    return " E" + quoted.replace("\\", "\\\\") if "\\" in text else quoted
