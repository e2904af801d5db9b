"""Rows that differ between two databases are found, and told with their keys."""

import psycopg

from validation.rows import compare


def test_rows_that_differ_are_told_one_by_one(source_db: str, target_db: str) -> None:
    for url, values in ((source_db, "(1, 'a'), (2, 'b'), (3, 'c')"), (target_db, "(1, 'a'), (2, 'x'), (4, 'd')")):
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute('create table t (id int primary key, "50 %" text)')
            connection.execute(f"insert into t values {values}".encode())
    found = sorted(
        (difference.key, difference.source, difference.target)
        for difference in compare(source_db, target_db, ["public.t"])
    )
    assert found == [(("2",), ("2", "b"), ("2", "x")), (("3",), ("3", "c"), None), (("4",), None, ("4", "d"))]
