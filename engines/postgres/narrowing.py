"""Whether a column of the target takes every value of the source's as it is.

PostgreSQL itself would round, cut or pad some in silence: `copy` into a narrower numeric or timestamp does.
"""

from __future__ import annotations

from schemas.table import Column
from schemas.types import Kind

CHARACTER, NAME, JSON = 1042, 19, 114
FIRST_OF_USERS = 16_384  # oids below mean the same on every server
UNLIMITED = -1
HEADER = 4  # what type modifiers with a length begin to count at
FULL_PRECISION = 6


def narrower(source: Column, target: Column) -> str:
    """Return why values could suffer or be refused, to be put behind the column's name; empty if none can."""
    if source.source_type == target.source_type:
        return ""
    differs = f"is {target.source_type}, at the source {source.source_type}"
    if source.kind is not target.kind:
        # Also a wider one: rows travel in the binary form of the source's type.
        return differs
    if source.kind is Kind.OTHER:
        return differs
    fits = {
        Kind.TEXT: _text_fits,
        Kind.NUMERIC: _numeric_fits,
        Kind.TIME: _precision_fits,
        Kind.TIMESTAMP: _precision_fits,
        Kind.TIMESTAMPTZ: _precision_fits,
    }.get(source.kind)
    return "" if fits is None or fits(source, target) else differs


def _text_fits(source: Column, target: Column) -> bool:
    if target.type_oid == source.type_oid < FIRST_OF_USERS and target.type_oid != CHARACTER:
        return target.type_modifier == UNLIMITED or UNLIMITED < source.type_modifier <= target.type_modifier
    if target.type_oid in {CHARACTER, NAME, JSON} or target.source_type not in {"text", "character varying"}:
        # Blanks are padded, names are cut, JSON and labels are checked; `varchar(n)` takes what is as long at most.
        return (
            target.source_type.startswith("character varying(")
            and source.type_oid == CHARACTER
            and source.type_modifier <= target.type_modifier
        )
    return True


def _numeric_fits(source: Column, target: Column) -> bool:
    if target.type_modifier == UNLIMITED:
        return True
    if source.type_modifier == UNLIMITED:
        return False
    precision, scale = _digits(source.type_modifier)
    target_precision, target_scale = _digits(target.type_modifier)
    return target_scale >= scale and target_precision - target_scale >= precision - scale


def _digits(modifier: int) -> tuple[int, int]:
    """Return precision and scale, which may be negative and is kept in 11 bits."""
    bits = modifier - HEADER
    return bits >> 16 & 0xFFFF, ((bits & 0x7FF) ^ 1024) - 1024


def _precision_fits(source: Column, target: Column) -> bool:
    have = FULL_PRECISION if source.type_modifier == UNLIMITED else source.type_modifier
    room = FULL_PRECISION if target.type_modifier == UNLIMITED else target.type_modifier
    return room >= have
