"""Rows that a real server refuses: found among many, set aside, waited behind, replayed; or they stop the table."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager

import pytest

from apply import dead_letters
from apply.cohort import Portion
from apply.dead_letters import MOST_REFUSED, Letter
from apply.loop import Apply
from apply.portions import PortionReader, Reading
from apply.postgres.target import PostgresTarget
from apply.replay import changes_of, replay
from apply.target import Change, Redefinition
from codec.rows import decode
from schemas.frontier import lsn_text
from schemas.pipeline import Mode, OnRowError, TablePolicy
from schemas.record import Op
from schemas.states import TableState
from schemas.table import Identity, TableId
from tests.integration.apply.conftest import Applied
from tests.unit.apply.source import Row, Source, Written, delete, insert, make_table, truncate, update

T = TableId("public", "t")
COLUMNS = [("id", "bigint"), ("body", "text"), ("n", "numeric")]
CHECKED = "create table public.t (id bigint primary key, body text, n numeric check (n >= 0))"


def ours(source: Source, applied: Applied, choice: OnRowError = OnRowError.SET_ASIDE, name: str = "copy") -> Apply:
    return applied.worker(source, name=name, policy=TablePolicy(on_row_error=choice))


@contextmanager
def opened(applied: Applied) -> Iterator[PostgresTarget]:
    with closing(applied.target()) as target:
        target.open(applied.sql("select log from penstock.pipelines")[0][0])
        yield target


def letters(applied: Applied) -> list[Letter]:
    with opened(applied) as target:
        return target.letters()


def replayed(
    applied: Applied, source: Source, chosen: Callable[[Letter], bool] = lambda letter: True
) -> tuple[int, int]:
    with opened(applied) as target:
        done = replay(target, T, source.views.by_schema, chosen)
        return done.applied, len(done.refused)


@pytest.fixture
def source() -> Source:
    return Source(make_table("t", COLUMNS))


def test_a_refused_row_is_set_aside_whole_and_all_others_are_written(
    applied: Applied, source: Source, way: str
) -> None:
    applied.sql(CHECKED)
    position = source.commit(*[insert("t", str(at), "x", "-1" if at == 77 else "1") for at in range(200)])
    worker = ours(source, applied)
    applied.catch_up(source, worker)
    assert applied.sql("select count(*), count(*) filter (where id = 77) from public.t") == [(199, 0)]
    [letter] = letters(applied)
    change = decode(source.registered["t"].layout, letter.change)
    assert (change.op, change.after, change.position, change.ordinal) == (Op.INSERT, ("77", "x", "-1"), position, 77)
    assert "t_n_check" in letter.cause and "23514" in letter.cause
    assert applied.sql("select key_text, position, op from penstock.dead_letters") == [('["77"]', position, "insert")]
    assert worker.stats.dead_letters == 1
    assert applied.state("t").state is TableState.LIVE


def test_what_comes_later_under_its_key_waits_behind_it_across_a_restart(
    applied: Applied, source: Source, way: str
) -> None:
    applied.sql(CHECKED)
    source.commit(insert("t", "1", "good", "1"), insert("t", "2", "bad", "-1"))
    applied.catch_up(source, ours(source, applied))
    source.commit(update("t", "2", "better", "2"), update("t", "1", "also", "1"))
    applied.catch_up(source, applied.workers[-1])
    applied.workers.pop().close()
    source.commit(update("t", "3", "moved", "2", before=("2", None, None)), insert("t", "4", "four", "4"))
    source.commit(update("t", "3", "again", "2"), insert("t", "2", "new", "2"))
    worker = ours(source, applied)
    applied.catch_up(source, worker)
    assert [row[:2] for row in applied.rows("t")] == [(1, "also"), (4, "four")]
    assert [bool(letter.cause) for letter in letters(applied)] == [True, False, False, False, False]
    # A mended row needs no lifted constraint: what is left of all its changes is accepted.
    assert replayed(applied, source) == (5, 0)
    source.commit(update("t", "3", "free", "3"))
    applied.catch_up(source, worker)
    assert [row[:2] for row in applied.rows("t")] == [(1, "also"), (2, "new"), (3, "free"), (4, "four")]
    assert worker.stats.conflicts == 1  # it looked again, because the letters had been taken


def test_what_is_refused_again_stays_with_its_new_cause(applied: Applied, source: Source) -> None:
    applied.sql(CHECKED)
    source.commit(insert("t", "1", "a", "-1"), insert("t", "2", "b", "-2"), insert("t", "3", "c", "-3"))
    applied.catch_up(source, ours(source, applied))
    applied.sql("alter table public.t drop constraint t_n_check")
    applied.sql("alter table public.t add constraint other check (body <> 'b')")
    assert replayed(applied, source, lambda letter: b"c" in letter.change) == (1, 0)
    assert replayed(applied, source) == (1, 1)
    [left] = letters(applied)
    assert "other" in left.cause and "t_n_check" not in left.cause
    assert [row[0] for row in applied.rows("t")] == [1, 3]


@pytest.mark.parametrize("identity", [Identity.FULL, Identity.NOTHING])
def test_a_table_without_key_has_whole_rows_for_keys(applied: Applied, identity: Identity, way: str) -> None:
    applied.sql("create table public.t (id bigint, body text check (body <> 'bad'))")
    source = Source(make_table("t", key=(), identity=identity))
    source.commit(insert("t", "1", "bad"), insert("t", "1", "good"), insert("t", "1", "good"))
    worker = ours(source, applied)
    applied.catch_up(source, worker)
    assert applied.rows("t") == [(1, "good"), (1, "good")]
    if identity is Identity.FULL:
        source.commit(update("t", "1", "mended", before=("1", "bad")), delete("t", "1", "good"))
        applied.catch_up(source, worker)
        assert applied.rows("t") == [(1, "good")]
        assert replayed(applied, source) == (2, 0)
        assert applied.rows("t") == [(1, "good"), (1, "mended")]


def test_a_truncated_table_has_no_letters_any_more(applied: Applied, source: Source, way: str) -> None:
    applied.sql(CHECKED)
    source.commit(insert("t", "1", "a", "-1"), insert("t", "2", "b", "2"))
    worker = ours(source, applied)
    applied.catch_up(source, worker)
    source.commit(
        insert("t", "3", "gone", "-3"), truncate("t"), insert("t", "1", "new", "1"), insert("t", "4", "d", "-4")
    )
    applied.catch_up(source, worker)
    assert [row[:2] for row in applied.rows("t")] == [(1, "new")]
    assert applied.sql("select key_text from penstock.dead_letters") == [('["4"]',)]


def test_many_refused_rows_are_found_and_more_than_that_stop_the_table(applied: Applied, source: Source) -> None:
    applied.sql(CHECKED)
    bad = set(random.Random(5).sample(range(20_000), 60))
    source.commit(*[insert("t", str(at), "x", "-1" if at in bad else "1") for at in range(20_000)])
    worker = ours(source, applied)
    applied.catch_up(source, worker)
    assert applied.sql("select count(*) from public.t") == [(19_940,)]
    assert {int(row[0][2:-2]) for row in applied.sql("select key_text from penstock.dead_letters")} == bad
    source.commit(*[update("t", str(at), "x", "-1") for at in range(20_000) if at not in bad])
    applied.catch_up(source, worker)
    state = applied.state("t")
    assert state.state is TableState.FAILED and f"more than {MOST_REFUSED}" in state.error
    assert applied.sql("select count(*) from public.t where n = 1") == [(19_940,)]
    assert len(letters(applied)) == 60


@pytest.mark.parametrize("statement", ["insert", "update", "delete"])
def test_a_table_that_is_to_stop_names_the_row(applied: Applied, source: Source, way: str, statement: str) -> None:
    applied.sql(CHECKED)
    applied.sql(
        "create function public.no() returns trigger language plpgsql as $$"
        " begin if coalesce(new.id, old.id) = 7 and tg_op = upper(current_setting('test.no', true)) then"
        " raise 'a secret: %', old.body; end if; return coalesce(new, old); end $$"
    )
    applied.sql("create trigger no before insert or update or delete on public.t for each row execute function no()")
    applied.sql("alter table public.t enable always trigger no")
    applied.sql(f"alter database {applied.sql('select current_database()')[0][0]} set test.no = '{statement}'")
    worker = ours(source, applied, OnRowError.PAUSE_TABLE)
    rows = [insert("t", str(at), "x", "1") for at in range(100)]
    changes: dict[str, Callable[[int], Written]] = {
        "update": lambda at: update("t", str(at), "y", "1"),
        "delete": lambda at: delete("t", str(at), None, None),
    }
    position = source.commit(*rows)
    if statement in changes:
        applied.catch_up(source, worker)
        position = source.commit(*map(changes[statement], range(100)))
    applied.catch_up(source, worker)
    state = applied.state("t")
    assert state.state is TableState.FAILED
    assert '["7"]' in state.error and lsn_text(position) in state.error and "secret" not in state.error
    assert "P0001" in state.error and "trigger" in state.remedy and "penstock resume" in state.remedy
    assert letters(applied) == []


def test_rows_that_exchange_unique_values_beside_a_refused_one_are_written(
    applied: Applied, source: Source, way: str
) -> None:
    applied.sql("create table public.t (id bigint primary key, body text unique, n numeric check (n >= 0))")
    source.commit(*[insert("t", str(at), str(at), "1") for at in range(100)])
    worker = ours(source, applied)
    applied.catch_up(source, worker)
    pairs = [update("t", str(at), str(at ^ 1), "1") for at in range(100)]
    pairs[50:50] = [insert("t", "100", "100", "-1")]
    source.commit(*pairs)
    applied.catch_up(source, worker)
    assert applied.rows("t") == [(at, str(at ^ 1), 1) for at in range(100)]
    assert [decode(source.registered["t"].layout, letter.change).after for letter in letters(applied)] == [
        ("100", "100", "-1")
    ]


def test_a_row_that_moves_to_another_key_blocks_both(applied: Applied, source: Source, way: str) -> None:
    applied.sql("create table public.t (id bigint primary key, body text, n numeric check (n <> 13))")
    source.commit(*[insert("t", str(at), "x", "1") for at in range(60)])
    worker = ours(source, applied)
    applied.catch_up(source, worker)
    moves = [
        update("t", str(at + 1000), "y", "13" if at == 30 else "2", before=(str(at), None, None)) for at in range(60)
    ]
    source.commit(*moves, insert("t", "30", "second", "3"))
    applied.catch_up(source, worker)
    assert applied.sql("select id, body from public.t where id in (30, 1030)") == [(30, "x")]
    assert applied.sql("select count(*) from public.t where id >= 1000") == [(59,)]
    applied.sql("alter table public.t drop constraint t_n_check")
    assert replayed(applied, source) == (2, 0)
    assert applied.sql("select id, body from public.t where id in (30, 1030) order by 1") == [
        (30, "second"),
        (1030, "y"),
    ]


def test_a_row_too_large_for_an_index_is_set_aside(applied: Applied, source: Source, way: str) -> None:
    applied.sql(CHECKED)
    applied.sql("create index on public.t (body)")
    large = "".join(random.Random(3).choices("abcdefghijklmnopqrstuvwxyz0123456789", k=9000))
    source.commit(insert("t", "1", "small", "1"), insert("t", "2", large, "1"))
    applied.catch_up(source, ours(source, applied))
    assert [row[0] for row in applied.rows("t")] == [1]
    [letter] = letters(applied)
    assert "54000" in letter.cause and large[:20] not in letter.cause


def test_unchanged_values_of_a_row_that_waited_are_those_that_the_target_has(applied: Applied, source: Source) -> None:
    applied.sql(CHECKED)
    source.commit(insert("t", "1", "large", "1"))
    worker = ours(source, applied)
    applied.catch_up(source, worker)
    source.commit(update("t", "1", None, "-1", unchanged=(1,)))
    applied.catch_up(source, worker)
    source.commit(update("t", "1", None, "5", unchanged=(1,)))
    applied.catch_up(source, worker)
    assert applied.rows("t") == [(1, "large", 1)]
    assert replayed(applied, source) == (2, 0)
    assert applied.rows("t") == [(1, "large", 5)]


def test_letters_of_a_table_whose_columns_have_other_names_now_are_replayed(applied: Applied, source: Source) -> None:
    applied.sql(CHECKED)
    source.commit(insert("t", "1", "a", "-1"))
    worker = ours(source, applied)
    applied.catch_up(source, worker)
    source.register(make_table("t", [("id", "bigint"), ("n", "text"), ("body", "numeric")]))
    source.commit(insert("t", "2", "b", "2"), update("t", "1", "c", "-1"))
    applied.catch_up(source, worker)
    assert applied.sql("select id, n, body from public.t") == [(2, "b", 2)]
    assert replayed(applied, source) == (0, 2)
    applied.sql("alter table public.t drop constraint t_n_check")
    assert replayed(applied, source) == (2, 0)
    assert applied.sql("select id, n, body from public.t order by id") == [(1, "c", -1), (2, "b", 2)]


# ---------------------------------------------------------------------------------------------------------- loads


def loading() -> Source:
    return Source(make_table("t", COLUMNS), mode=Mode.LOAD_AND_CHANGES)


def test_a_refused_row_of_a_chunk_is_set_aside_and_the_chunk_counts(applied: Applied) -> None:
    applied.sql(CHECKED)
    source = loading()
    rows: list[Row] = [(str(at), "x", "-1" if at in (5, 2718) else "1") for at in range(4000)]
    source.load("t", rows, chunks=2)
    source.commit(update("t", "5", "waits", "-1"), update("t", "6", "y", "1"))
    worker = ours(source, applied)
    applied.catch_up(source, worker)
    assert applied.sql("select count(*), count(*) filter (where body = 'y') from public.t") == [(3998, 1)]
    keys = applied.sql("select key_text, op, cause <> '' from penstock.dead_letters order by number")
    assert sorted(keys[:2]) == [('["2718"]', "read", True), ('["5"]', "read", True)]
    assert keys[2:] == [('["5"]', "update", False)]
    assert applied.state("t").rows == 4000
    applied.sql("alter table public.t drop constraint t_n_check")
    assert replayed(applied, source) == (3, 0)
    assert applied.sql("select body from public.t where id in (5, 2718) order by id") == [("waits",), ("x",)]


def test_a_chunk_that_is_refused_stops_its_table_and_names_the_row(applied: Applied) -> None:
    applied.sql(CHECKED)
    source = loading()
    source.load("t", [(str(at), "x", "-1" if at == 1500 else "1") for at in range(3000)])
    worker = ours(source, applied, OnRowError.PAUSE_TABLE)
    applied.catch_up(source, worker)
    state = applied.state("t")
    assert state.state is TableState.FAILED and '["1500"]' in state.error and "chunk 0" in state.error
    assert applied.sql("select count(*) from public.t") == [(0,)]


def test_what_is_healed_has_no_older_letter(applied: Applied) -> None:
    applied.sql(CHECKED)
    source = loading()
    first = source.snapshot()
    source.plan("t", 2)
    source.chunk("t", 0, [("1", "old", "-1"), ("2", "old", "-2"), ("3", "old", "-3")], first)
    second = source.snapshot()
    source.chunk("t", 1, [("1", "later", "1")], second)
    last = source.snapshot()
    source.heal("t", [("2", "old", "-2")], [("1", "later", "1"), ("4", "new", "-4")], last)
    worker = ours(source, applied)
    applied.catch_up(source, worker)
    assert [row[:2] for row in applied.rows("t")] == [(1, "later")]
    assert applied.sql("select key_text from penstock.dead_letters order by 1") == [('["3"]',), ('["4"]',)]


def test_a_table_that_is_loaded_anew_has_no_letters(applied: Applied) -> None:
    applied.sql(CHECKED)
    source = loading()
    snapshot = source.snapshot()
    source.plan("t", 2)
    source.chunk("t", 0, [("1", "old", "-1")], snapshot)
    worker = ours(source, applied)
    applied.until(lambda: worker.stats.chunks_loaded == 1, worker)
    source.load("t", [("1", "new", "1")], generation=2)
    applied.catch_up(source, worker)
    assert applied.rows("t") == [(1, "new", 1)] and letters(applied) == []


# ------------------------------------------------------------------------------------------------------ together


def test_a_change_that_arrives_during_a_replay_is_neither_lost_nor_reordered(applied: Applied, source: Source) -> None:
    applied.sql(CHECKED)
    source.commit(insert("t", "1", "a", "-1"))
    worker = ours(source, applied)
    applied.catch_up(source, worker)
    applied.sql("alter table public.t drop constraint t_n_check")
    with opened(applied) as target:
        with target.taken(T) as taken:
            source.commit(update("t", "1", "b", "-2"))
            thread = threading.Thread(target=lambda: applied.catch_up(source, worker))
            thread.start()
            wait_until_blocked(applied)
            assert taken.attempt(changes_of(taken.letters, source.views.by_schema)) is None
            taken.remove(taken.letters)
        thread.join()
    assert applied.rows("t") == [(1, "b", -2)]
    assert letters(applied) == []
    assert worker.stats.conflicts == 1


def test_a_replay_waits_for_whoever_writes_and_finds_what_he_has_set_aside(
    applied: Applied, source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    applied.sql(CHECKED)
    source.commit(insert("t", "1", "a", "-1"))
    worker = ours(source, applied)
    applied.catch_up(source, worker)
    applied.sql("alter table public.t drop constraint t_n_check")
    threads: list[threading.Thread] = []
    done: list[tuple[int, int]] = []
    pieces = PortionReader.pieces

    def meanwhile(self: PortionReader, portion: Portion, reading: Reading) -> Iterator[list[Change] | Redefinition]:
        yield from pieces(self, portion, reading)
        if not threads:
            worker._target._session.flush()  # type: ignore[attr-defined]
            threads.append(threading.Thread(target=lambda: done.append(replayed(applied, source))))
            threads[0].start()
            wait_until_blocked(applied)

    monkeypatch.setattr(PortionReader, "pieces", meanwhile)
    source.commit(update("t", "1", "b", "-2"))
    applied.catch_up(source, worker)
    threads[0].join()
    assert done == [(2, 0)]
    assert applied.rows("t") == [(1, "b", -2)]


def wait_until_blocked(applied: Applied) -> None:
    blocked = "select exists (select from pg_stat_activity where wait_event_type = 'Lock' and datname = %s)"
    [(database,)] = applied.sql("select current_database()")
    deadline = time.monotonic() + 20
    while applied.sql(blocked, database) == [(False,)]:
        assert time.monotonic() < deadline


def test_more_letters_than_a_table_may_have_stop_it_and_are_not_lost(
    applied: Applied, source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dead_letters, "MOST_LETTERS", 3)
    applied.sql(CHECKED)
    source.commit(insert("t", "1", "a", "-1"), insert("t", "2", "b", "2"))
    worker = ours(source, applied)
    applied.catch_up(source, worker)
    for at in range(4):
        source.commit(update("t", "1", str(at), "-1"), update("t", "2", str(at), "2"))
        applied.catch_up(source, worker)
    state = applied.state("t")
    assert state.state is TableState.FAILED and "more than 3 changes" in state.error and "replay" in state.remedy
    assert len(letters(applied)) == 3
    applied.sql("alter table public.t drop constraint t_n_check")
    assert replayed(applied, source) == (3, 0)
    with opened(applied) as target:
        assert target.resume(T)
    applied.until(lambda: applied.rows("t") == [(1, "3", -1), (2, "3", 2)], worker)
