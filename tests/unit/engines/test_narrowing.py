"""Which columns of a target take every value of the source's."""

from __future__ import annotations

import pytest

from engines.postgres.narrowing import narrower
from schemas.table import Column
from schemas.types import Kind

OIDS = {"text": 25, "character varying": 1043, "character": 1042, "name": 19, "json": 114, "numeric": 1700}


def column(written: str, kind: Kind) -> Column:
    """Make a column as the catalogue would tell of it."""
    base, _, rest = written.partition("(")
    modifier = -1
    if rest:
        numbers = [int(number) for number in rest.partition(")")[0].split(",")]
        if kind is Kind.NUMERIC:
            modifier = (numbers[0] << 16 | (numbers[1] & 0x7FF if len(numbers) > 1 else 0)) + 4
        else:
            modifier = numbers[0] + (4 if kind is Kind.TEXT else 0)
    return Column(name="c", kind=kind, source_type=written, type_oid=OIDS.get(base, 99_999), type_modifier=modifier)


@pytest.mark.parametrize(
    ("kind", "source", "target"),
    [
        (Kind.TEXT, "character varying(10)", "character varying(20)"),
        (Kind.TEXT, "character varying(10)", "text"),
        (Kind.TEXT, "text", "character varying"),
        (Kind.TEXT, "character(5)", "character varying(5)"),
        (Kind.TEXT, "shop.status", "text"),
        (Kind.TEXT, "json", "text"),
        (Kind.NUMERIC, "numeric(10,2)", "numeric"),
        (Kind.NUMERIC, "numeric(10,2)", "numeric(12,4)"),
        (Kind.NUMERIC, "numeric(3,-2)", "numeric(5,0)"),
        (Kind.TIMESTAMP, "timestamp(3) without time zone", "timestamp without time zone"),
        (Kind.TIMESTAMPTZ, "timestamp with time zone", "timestamp(6) with time zone"),
        (Kind.INT32, "integer", "shop.positive"),
        (Kind.OTHER, "inet[]", "inet[]"),
    ],
)
def test_wide_enough(kind: Kind, source: str, target: str) -> None:
    assert narrower(column(source, kind), column(target, kind)) == ""


@pytest.mark.parametrize(
    ("kind", "source", "target"),
    [
        (Kind.TEXT, "character varying(20)", "character varying(10)"),
        (Kind.TEXT, "text", "character varying(10)"),
        (Kind.TEXT, "character varying", "character varying(10)"),
        (Kind.TEXT, "character varying(5)", "character(5)"),
        (Kind.TEXT, "character(5)", "character(9)"),
        (Kind.TEXT, "text", "shop.status"),
        (Kind.TEXT, "text", "json"),
        (Kind.TEXT, "text", "name"),
        (Kind.NUMERIC, "numeric", "numeric(12,4)"),
        (Kind.NUMERIC, "numeric(10,2)", "numeric(12,1)"),
        (Kind.NUMERIC, "numeric(10,2)", "numeric(10,4)"),
        (Kind.NUMERIC, "numeric(3,0)", "numeric(3,-2)"),
        (Kind.TIMESTAMP, "timestamp without time zone", "timestamp(3) without time zone"),
        (Kind.OTHER, "bit varying(8)", "bit varying(4)"),
    ],
)
def test_too_narrow(kind: Kind, source: str, target: str) -> None:
    assert narrower(column(source, kind), column(target, kind)) == f"is {target}, at the source {source}"


def test_another_kind_does_not_fit_even_if_it_is_wider() -> None:
    assert narrower(column("integer", Kind.INT32), column("bigint", Kind.INT64))
