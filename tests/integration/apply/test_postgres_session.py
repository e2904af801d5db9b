"""The connection that a target is written through: what is queued, and what becomes of it."""

from psycopg import pq

from apply.postgres.session import Session
from schemas.errors import WriteConflict


def test_what_a_check_refuses_is_rolled_back_with_all_that_was_queued(target_db: str) -> None:
    def refuse(_: pq.abc.PGresult) -> None:
        raise WriteConflict("another worker was here")

    session = Session(target_db, "test")
    try:
        session.run("create table public.moved (n int)")
        session.queue("begin")
        session.queue("insert into public.moved values (1)", check=refuse)
        session.rollback()
        session.queue("begin")
        session.queue("insert into public.moved values (2)")
        session.flush()
        session.run("commit")
        found = session.query("select n from public.moved")
        assert [found.get_value(row, 0) for row in range(found.ntuples)] == [b"2"]
    finally:
        session.close()
