"""How PostgreSQL's types are carried.

A kind other than `OTHER` promises two things of the type: its binary send form is the one that the transcoder
knows for the kind, and its output text, which pgoutput sends, means the same value. `TEXT` further promises that
the binary form is the text itself.
"""

from __future__ import annotations

from schemas.types import Kind

BUILT_IN: dict[int, Kind] = {
    16: Kind.BOOL,
    17: Kind.BYTES,
    19: Kind.TEXT,  # name
    20: Kind.INT64,
    21: Kind.INT16,
    23: Kind.INT32,
    25: Kind.TEXT,
    114: Kind.TEXT,  # json: kept as written
    700: Kind.FLOAT32,
    701: Kind.FLOAT64,
    1042: Kind.TEXT,  # character(n): sent with its blanks, which a cast to text would strip
    1043: Kind.TEXT,  # character varying
    1082: Kind.DATE,
    1083: Kind.TIME,
    1114: Kind.TIMESTAMP,
    1184: Kind.TIMESTAMPTZ,
    1700: Kind.NUMERIC,
    2950: Kind.UUID,
    3802: Kind.JSONB,
}
"""Kinds by oid, which is the same on every server. Not here on purpose:

* `"char"` (18) is one byte that need not be UTF-8, and its text escapes it;
* `xml` (142) is sent in binary with a declaration of its encoding;
* `money` depends on the locale; `oid`, `interval`, `timetz`, `inet` and the like are written as text.
"""

ENUM, DOMAIN = "e", "d"


def kind_of(oid: int, typtype: str) -> Kind:
    """Return the kind of a type by oid and `pg_type.typtype`; of a domain hand in the type it rests on at last."""
    if typtype == ENUM:
        return Kind.TEXT  # sent as its label
    return BUILT_IN.get(oid, Kind.OTHER)


def text_of(expression: str) -> str:
    """Return SQL for the text that the type's output function writes, which is what pgoutput sends; null stays null.

    A plain cast is not the same for every type: `inet` gains `/32`, and a cast may be a user's own function.
    """
    # "is not null" would be false for a composite value with a null in it.
    return f"case when {expression} is distinct from null then pg_catalog.format('%s', {expression}) end"


def exact_text_of(expression: str) -> str:
    """Return SQL for that text which is equal to another only if both are the same letter by letter.

    Values that are equal to their type may be different ones: 1.0 and 1.00, -0 and 0, and texts under a collation
    that takes A for a.
    """
    return f'{text_of(expression)} collate "C"'
