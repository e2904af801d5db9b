"""Conditions that people write: what is one, and what it finds."""

from __future__ import annotations

import contextlib

import pytest

from engines.postgres import catalogue
from engines.postgres.asking import ask, run
from engines.postgres.conditions import keys_where, require_condition
from engines.postgres.connect import connect
from schemas.errors import ConfigInvalid
from schemas.table import TableId

TABLE = TableId("public", "T able")

WRONG = [
    "",
    "id > 1; delete from pg_class",
    "id > 1); select (true",
    "true) union select from pg_class where (true",
    "true) limit (1",
    "id > 1) --",
    "id > 1 /*",
    "count(*) > 1",
    "nothing > 1",
    "id",
    "id > '\0'",
]


def test_only_a_condition_is_taken_for_one(source_db: str) -> None:
    with contextlib.closing(connect(source_db, role="reader", application="t")) as connection:
        run(connection, 'create table public."T able" (id int primary key, at timestamptz, "50 %" text)')
        for right in ("id > 1 -- and more", "\"50 %\" like '%;%' or at is null", "id in (select 1)", "true) or (false"):
            require_condition(connection, TABLE, right, "source")
        for wrong in WRONG:
            with pytest.raises(ConfigInvalid) as raised:
                require_condition(connection, TABLE, wrong, "source")
            assert "WHERE" in raised.value.remedy, wrong


def test_keys_come_in_an_order_that_all_servers_share(source_db: str) -> None:
    with contextlib.closing(connect(source_db, role="reader", application="t")) as connection:
        run(connection, 'create table public."T able" (a text, b numeric, c bytea, d bool, primary key (d, c, b, a))')
        run(
            connection,
            """insert into public."T able"
               values ('b''', 1.0, '\\x00', true), ('B', 1.00, '\\x', false), ('ä', 2, '', true)""",
        )
        (table,) = catalogue.tables(connection, TABLE.__eq__)
        found = list(keys_where(connection, table, "b < 2 or a = 'ä'"))
        assert [exact for exact, _ in found] == sorted((exact for exact, _ in found), key=str.encode)
        assert {key for _, key in found} == {
            ("b'", "1.0", "\\x00", "t"),
            ("B", "1.00", "\\x", "f"),
            ("ä", "2", "\\x", "t"),
        }
        assert len({exact for exact, _ in found}) == 3
        assert ask(connection, 'select count(*) from public."T able"') == [(3,)]
