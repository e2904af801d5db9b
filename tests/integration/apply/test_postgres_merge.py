"""Net changes on a real server, each case in every way in which it can be written."""

from __future__ import annotations

import pytest

from schemas.states import TableState
from schemas.table import Column, Identity
from schemas.types import Kind
from tests.integration.apply.conftest import Applied
from tests.unit.apply.source import Source, Written, delete, insert, make_table, truncate, update

pytestmark = [pytest.mark.usefixtures("way"), pytest.mark.versions]

ROWS = [insert("t", "1", "a"), insert("t", "2", "b"), insert("t", "3", "c")]


def apply(applied: Applied, source: Source, *changes: Written) -> None:
    """Put rows there in a batch of their own, then apply changes in one."""
    worker = applied.worker(source)
    source.commit(*ROWS)
    applied.catch_up(source, worker)
    source.commit(*changes)
    applied.catch_up(source, worker)


def plain(applied: Applied, constraints: str = "primary key (id)") -> Source:
    applied.sql(f"create table public.t (id bigint not null, body text, {constraints})")
    return Source(make_table("t"))


def test_rows_are_inserted_updated_and_deleted(applied: Applied) -> None:
    apply(
        applied,
        plain(applied),
        update("t", "1", "a2"),
        delete("t", "2", None),
        insert("t", "4", "d"),
        update("t", "4", None),
    )
    assert applied.rows("t") == [(1, "a2"), (3, "c"), (4, None)]


def test_a_row_that_is_deleted_and_inserted_again_is_there(applied: Applied) -> None:
    apply(applied, plain(applied), delete("t", "1", None), insert("t", "1", "again"))
    assert applied.rows("t") == [(1, "again"), (2, "b"), (3, "c")]


def test_a_row_that_is_inserted_and_deleted_is_not_there(applied: Applied) -> None:
    apply(applied, plain(applied), insert("t", "9", "x"), delete("t", "9", None))
    assert applied.rows("t") == [(1, "a"), (2, "b"), (3, "c")]


def test_two_rows_may_swap_their_keys(applied: Applied) -> None:
    apply(
        applied,
        plain(applied),
        update("t", "99", "a", before=("1", None)),
        update("t", "1", "b", before=("2", None)),
        update("t", "2", "a", before=("99", None)),
    )
    assert applied.rows("t") == [(1, "b"), (2, "a"), (3, "c")]


def test_an_unchanged_value_is_kept(applied: Applied) -> None:
    applied.sql("create table public.t (id bigint primary key, body text, big text)")
    table = make_table("t", [("id", "bigint"), ("body", "text"), ("big", "text")])
    source, worker = (found := Source(table)), applied.worker(found)
    source.commit(insert("t", "1", "a", "BIG"), insert("t", "2", "b", "HUGE"))
    applied.catch_up(source, worker)
    source.commit(update("t", "1", "a2", None, unchanged=(2,)), update("t", "2", None, "b", unchanged=(1,)))
    applied.catch_up(source, worker)
    assert applied.rows("t") == [(1, "a2", "BIG"), (2, "b", "b")]


def test_a_row_takes_its_unchanged_value_to_its_new_key(applied: Applied) -> None:
    source = plain(applied)
    apply(applied, source, update("t", "8", None, before=("1", None), unchanged=(1,)))
    assert applied.rows("t") == [(2, "b"), (3, "c"), (8, "a")]


def test_two_rows_swap_keys_and_keep_their_unchanged_values(applied: Applied) -> None:
    apply(
        applied,
        plain(applied),
        update("t", "99", None, before=("1", None), unchanged=(1,)),
        update("t", "1", None, before=("2", None), unchanged=(1,)),
        update("t", "2", None, before=("99", None), unchanged=(1,)),
    )
    assert applied.rows("t") == [(1, "b"), (2, "a"), (3, "c")]


def test_a_key_may_change_to_an_equal_one(applied: Applied) -> None:
    applied.sql("create table public.t (id numeric primary key, body text)")
    source = Source(make_table("t", [("id", "numeric"), ("body", "text")]))
    worker = applied.worker(source)
    source.commit(insert("t", "1.0", "a"), insert("t", "2.0", "b"))
    applied.catch_up(source, worker)
    source.commit(
        update("t", "1.00", "a2", before=("1.0", None)), update("t", "2.00", None, before=("2.0", None), unchanged=(1,))
    )
    applied.catch_up(source, worker)
    assert applied.sql("select id::text, body from public.t order by 1") == [("1.00", "a2"), ("2.00", "b")]


def test_two_rows_may_swap_unique_values(applied: Applied) -> None:
    apply(applied, plain(applied, "primary key (id), unique (body)"), update("t", "1", "b"), update("t", "2", "a"))
    assert applied.rows("t") == [(1, "b"), (2, "a"), (3, "c")]


def test_rows_that_swap_unique_values_keep_what_is_unchanged(applied: Applied) -> None:
    applied.sql("create table public.t (id bigint primary key, body text unique, big text)")
    source = Source(make_table("t", [("id", "bigint"), ("body", "text"), ("big", "text")]))
    worker = applied.worker(source)
    source.commit(insert("t", "1", "a", "A"), insert("t", "2", "b", "B"))
    applied.catch_up(source, worker)
    source.commit(
        update("t", "1", "b", None, unchanged=(2,)),
        update("t", "2", "a", None, unchanged=(2,)),
        insert("t", "3", "c", "C"),
    )
    applied.catch_up(source, worker)
    assert applied.rows("t") == [(1, "b", "A"), (2, "a", "B"), (3, "c", "C")]


def test_values_that_exclude_each_other_may_be_swapped(applied: Applied) -> None:
    source = plain(applied, "primary key (id), exclude using btree (body with =)")
    apply(applied, source, update("t", "1", "b"), update("t", "2", "a"))
    assert applied.rows("t") == [(1, "b"), (2, "a"), (3, "c")]


def test_a_unique_value_goes_to_a_new_row(applied: Applied) -> None:
    source = plain(applied, "primary key (id), unique (body)")
    apply(applied, source, insert("t", "7", "new"), update("t", "1", "z"), insert("t", "0", "a"))
    assert applied.rows("t") == [(0, "a"), (1, "z"), (2, "b"), (3, "c"), (7, "new")]


def test_identity_columns_take_the_sources_values(applied: Applied) -> None:
    applied.sql("create table public.t (id bigint generated always as identity primary key, body text)")
    apply(
        applied,
        Source(make_table("t")),
        insert("t", "4", "d"),
        update("t", "1", "a2"),
        update("t", "6", "b", before=("2", None)),
    )
    assert applied.rows("t") == [(1, "a2"), (3, "c"), (4, "d"), (6, "b")]


def test_an_identity_column_beside_the_key_takes_the_sources_values(applied: Applied) -> None:
    applied.sql("create table public.t (id bigint primary key, n bigint generated always as identity)")
    source = Source(make_table("t", [("id", "bigint"), ("n", "bigint")]))
    worker = applied.worker(source)
    source.commit(insert("t", "1", "10"), insert("t", "2", "20"))
    applied.catch_up(source, worker)
    source.commit(update("t", "1", "11"), delete("t", "2", None), insert("t", "2", "21"))
    applied.catch_up(source, worker)
    assert applied.rows("t") == [(1, 11), (2, 21)]


def test_generated_columns_are_computed(applied: Applied) -> None:
    applied.sql(
        "create table public.t (id bigint primary key, body text, loud text generated always as (upper(body)) stored)"
    )
    apply(applied, Source(make_table("t")), update("t", "1", "x"), insert("t", "4", "d"))
    assert applied.rows("t") == [(1, "x", "X"), (2, "b", "B"), (3, "c", "C"), (4, "d", "D")]


def test_triggers_and_foreign_keys_do_not_act_again(applied: Applied) -> None:
    source = plain(applied)
    applied.sql("create table public.child (id bigint primary key, t bigint references public.t on delete cascade)")
    applied.sql("create table public.seen (what text)")
    applied.sql(
        "create function public.note() returns trigger language plpgsql as $$"
        " begin insert into public.seen values (tg_op); return new; end $$"
    )
    applied.sql(
        "create trigger note after insert or update or delete on public.t for each row execute function public.note()"
    )
    source = Source(make_table("t"), make_table("child", [("id", "bigint"), ("t", "bigint")]))
    worker = applied.worker(source)
    source.commit(insert("child", "1", "1"), *ROWS)
    applied.catch_up(source, worker)
    source.commit(delete("t", "1", None), update("t", "2", "x"), insert("t", "1", "again"))
    applied.catch_up(source, worker)
    assert applied.rows("t") == [(1, "again"), (2, "x"), (3, "c")]
    assert applied.sql("select * from public.child") == [(1, 1)]
    assert applied.sql("select * from public.seen") == []


def test_a_table_of_nothing_but_its_key_works(applied: Applied) -> None:
    applied.sql("create table public.t (id bigint primary key)")
    source = Source(make_table("t", [("id", "bigint")]))
    worker = applied.worker(source)
    source.commit(insert("t", "1"), insert("t", "2"))
    applied.catch_up(source, worker)
    source.commit(update("t", "3", before=("1",)), delete("t", "2"), insert("t", "2"))
    applied.catch_up(source, worker)
    assert applied.sql("select * from public.t order by 1") == [(2,), (3,)]


def test_truncate_comes_before_what_follows_it(applied: Applied) -> None:
    apply(applied, plain(applied), insert("t", "4", "d"), truncate("t"), insert("t", "1", "new"))
    assert applied.rows("t") == [(1, "new")]


def test_tables_that_refer_to_each_other_are_truncated_together(applied: Applied) -> None:
    applied.sql("create table public.t (id bigint primary key, body text)")
    applied.sql("create table public.child (id bigint primary key, t bigint references public.t)")
    source = Source(make_table("t"), make_table("child", [("id", "bigint"), ("t", "bigint")]))
    worker = applied.worker(source)
    source.commit(*ROWS, insert("child", "1", "1"))
    applied.catch_up(source, worker)
    source.commit(truncate("t"), truncate("child"), insert("t", "5", "e"))
    applied.catch_up(source, worker)
    assert (applied.rows("t"), applied.sql("select * from public.child")) == ([(5, "e")], [])


def test_a_table_that_others_refer_to_is_truncated_alone(applied: Applied) -> None:
    source = plain(applied)
    applied.sql("create table public.other (t bigint references public.t)")
    apply(applied, source, truncate("t"))
    assert applied.rows("t") == []


@pytest.mark.parametrize("partitioned", [False, True])
def test_without_a_key_each_change_meets_one_row(applied: Applied, partitioned: bool) -> None:
    applied.sql(f"create table public.t (id bigint, body text) {'partition by list (id)' if partitioned else ''}")
    if partitioned:
        applied.sql("create table public.t1 partition of public.t for values in (1)")
        applied.sql("create table public.t2 partition of public.t default")
    source = Source(make_table("t", key=(), identity=Identity.FULL))
    worker = applied.worker(source)
    source.commit(*[insert("t", "1", "a")] * 3, *[insert("t", None, None)] * 2, insert("t", "2", "a"))
    applied.catch_up(source, worker)
    source.commit(
        delete("t", "1", "a"),
        update("t", "1", "b", before=("1", "a")),
        update("t", "2", "a", before=(None, None)),
        delete("t", "2", "a"),
    )
    applied.catch_up(source, worker)
    assert applied.rows("t") == [(1, "a"), (1, "b"), (2, "a"), (None, None)]


def test_without_a_key_values_without_equality_are_compared_as_text(applied: Applied) -> None:
    applied.sql("create table public.t (n numeric, j json)")
    json = Column(name="j", kind=Kind.TEXT, source_type="json", type_oid=114, number=2)
    source = Source(make_table("t", [("n", "numeric"), json], key=(), identity=Identity.FULL))
    worker = applied.worker(source)
    source.commit(insert("t", "1.0", '{"a": 1}'), insert("t", "1.00", '{"a": 1}'), insert("t", "1.00", '{"a":1}'))
    applied.catch_up(source, worker)
    source.commit(delete("t", "1.00", '{"a": 1}'))
    applied.catch_up(source, worker)
    assert applied.sql("select n::text, j::text from public.t order by 1") == [("1.0", '{"a": 1}'), ("1.00", '{"a":1}')]


@pytest.mark.parametrize(
    "change",
    [
        update("t", "9", "x"),
        delete("t", "9", None),
        update("t", "9", None, unchanged=(1,)),
        update("t", "8", None, before=("9", None), unchanged=(1,)),
        update("t", "8", "x", before=("9", None)),
        insert("t", "1", "there already"),
    ],
)
def test_a_change_that_does_not_fit_stops_its_table_alone(applied: Applied, change: Written) -> None:
    applied.sql("create table public.other (id bigint primary key, body text)")
    plain(applied)
    source = Source(make_table("t"), make_table("other"))
    apply(applied, source, insert("other", "1", "x"), change, update("t", "1", "not applied"))
    assert applied.rows("t") == [(1, "a"), (2, "b"), (3, "c")]
    assert applied.rows("other") == [(1, "x")]
    failed = applied.state("t")
    assert failed.state is TableState.FAILED and "t" in failed.error
    assert applied.state("other").state is TableState.LIVE


def test_values_come_through_as_they_are(applied: Applied) -> None:
    odd = "tab\t newline\n back\\slash \\N \r \x01 'quote' \"double\" é 漢 \U0001f600"
    apply(applied, plain(applied), update("t", "1", odd), insert("t", "4", ""), update("t", "2", "\\N"))
    assert applied.rows("t") == [(1, odd), (2, "\\N"), (3, "c"), (4, "")]


def test_the_columns_order_on_the_target_does_not_matter(applied: Applied) -> None:
    applied.sql("create table public.t (more integer default 7, body text, id bigint primary key)")
    apply(applied, Source(make_table("t")), update("t", "1", "a2"), insert("t", "4", "d"))
    assert applied.sql("select id, body, more from public.t order by 1") == [
        (1, "a2", 7),
        (2, "b", 7),
        (3, "c", 7),
        (4, "d", 7),
    ]
