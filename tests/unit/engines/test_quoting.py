"""Quoting."""

from __future__ import annotations

import pytest

from engines.postgres.quoting import literal, quote


def test_every_part_of_an_identifier_is_quoted() -> None:
    assert quote("shop", 'a "b".c') == '"shop"."a ""b"".c"'


@pytest.mark.parametrize("part", ["", "a\0b"])
def test_what_cannot_be_an_identifier_is_refused(part: str) -> None:
    with pytest.raises(ValueError, match="identifier"):
        quote("shop", part)


def test_literals_do_not_depend_on_settings() -> None:
    assert literal("it's") == "'it''s'"
    assert literal("a\\b'") == " E'a\\\\b'''"
    with pytest.raises(ValueError, match="zero byte"):
        literal("\0")
