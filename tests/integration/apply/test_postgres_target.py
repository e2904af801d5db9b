"""What a PostgreSQL target promises beside the writing of rows: tables, progress, owners, broken connections."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import psycopg
import pytest
from pydantic import SecretStr

from apply.cohort import Portion
from apply.groups import group_of
from apply.limits import Limits
from apply.loader import Loader
from apply.loop import Apply
from apply.portions import PortionReader, Reading
from apply.postgres.control import forget_pipeline
from apply.postgres.session import Session
from apply.postgres.target import PostgresTarget
from apply.target import Change, Redefinition
from schemas.errors import ConfigInvalid, LogRewound, TargetUnavailable
from schemas.frontier import Admitted, Trimmed
from schemas.pipeline import Mode, OnRowError, Prepare, TablePolicy, TargetSettings
from schemas.record import encode_control
from schemas.states import TableState
from schemas.table import ColumnDetails, Constraint, Definition, Objects, SetupObjects, Table, TableId
from schemas.table import Sequence as SequenceObject
from tests.integration.apply.conftest import Applied
from tests.unit.apply.source import Row, Source, Written, delete, insert, make_table, settle, truncate, update
from transport.log import Partition, Range
from transport.views import Frontiers

pytestmark = pytest.mark.versions

T = TableId("public", "t")
KEY = Constraint(name="t_pkey", definition="PRIMARY KEY (id)", columns=("id",))
COLUMNS = (
    ColumnDetails(name="id", source_type="bigint", nullable=False),
    ColumnDetails(name="body", source_type="text"),
)
INDEX = Constraint(name="t_body", definition="CREATE INDEX t_body ON public.t USING btree (body)", columns=("body",))
UNIQUE = Constraint(name="t_unique", definition="UNIQUE (body)", columns=("body",))
WHOLE = Definition(columns=COLUMNS, primary_key=KEY, uniques=(UNIQUE,), indexes=(INDEX,))


def loading(*definitions: tuple[str, Definition]) -> Source:
    tables = [make_table(name, definition=definition) for name, definition in definitions or [("t", WHOLE)]]
    return Source(*tables, mode=Mode.LOAD_AND_CHANGES)


def rows(first: int, last: int) -> list[Row]:
    return [(str(at), f"row {at}") for at in range(first, last)]


def test_what_was_read_is_on_the_disk_when_it_was_made_durable(applied: Applied) -> None:
    target = applied.target()
    target.open("log")
    applied.sql("create table public.noise (body text)")
    applied.sql("set synchronous_commit = off")  # as progress and chunks are written
    unflushed = False
    for _ in range(20):  # the server's own writer may come first
        applied.sql("insert into public.noise values ('x')")
        [(end, flushed)] = applied.sql("select pg_current_wal_insert_lsn(), pg_current_wal_flush_lsn()")
        target.make_durable()
        assert applied.sql("select pg_current_wal_flush_lsn() >= %s", end) == [(True,)]
        unflushed |= applied.sql("select %s::pg_lsn < %s::pg_lsn", flushed, end) == [(True,)]
    target.close()
    assert unflushed


def test_who_asks_again_for_tables_reads_what_was_written_since_whoever_wrote_it(applied: Applied) -> None:
    source = loading(*((name, Definition()) for name in "abc"))
    worker = applied.worker(source)
    applied.until(lambda: len(worker.tables) == 3, worker)
    target = applied.target()
    target.open(applied.sql("select log from penstock.pipelines")[0][0])
    before = target.tables()
    write = "update penstock.tables set error = 'e' where table_name = %s"
    with psycopg.connect(applied.url) as other:
        other.execute(write.encode(), ["b"])  # it began before the next look, and ends behind it
        applied.sql(write, "c")
        then = target.tables()
        assert {table.name: progress.error for table, progress in then.items()} == {"a": "", "b": "", "c": "e"}
        assert then[TableId("public", "a")] is before[TableId("public", "a")]
    assert {table.name: progress.error for table, progress in target.tables().items()} == {"a": "", "b": "e", "c": "e"}
    applied.sql("delete from penstock.tables where table_name = 'a'")
    assert {table.name for table in target.tables()} == {"b", "c"}
    target.close()


# ------------------------------------------------------------------------------------------------------- prepare


def test_a_table_is_made_with_all_that_belongs_to_it(applied: Applied) -> None:
    source = loading()
    source.load("t", rows(0, 2500), chunks=3)
    source.commit(update("t", "7", "new"))
    worker = applied.worker(source, Prepare.CREATE)
    applied.catch_up(source, worker)
    assert applied.sql("select count(*), count(*) filter (where body = 'new') from public.t") == [(2500, 1)]
    names = applied.sql(
        "select indexrelid::regclass::text from pg_index where indrelid = 'public.t'::regclass order by 1"
    )
    assert names == [("t_body",), ("t_pkey",), ("t_unique",)]
    state = applied.state("t")
    assert (state.rows, state.made, state.tied, state.error) == (2500, True, True, "")


def test_a_table_that_is_there_already_is_not_touched(applied: Applied) -> None:
    applied.sql("create table public.t (id bigint primary key, body text)")
    applied.sql("insert into public.t values (1, 'mine')")
    source = loading()
    source.load("t", rows(0, 2))
    applied.catch_up(source, applied.worker(source, Prepare.CREATE))
    state = applied.state("t")
    assert state.state is TableState.FAILED and "already" in state.error and "prepare" in state.remedy
    assert applied.rows("t") == [(1, "mine")]


@pytest.mark.parametrize("prepare", [Prepare.TRUNCATE, Prepare.DROP_AND_CREATE])
def test_what_was_there_goes_if_that_is_wanted(applied: Applied, prepare: Prepare) -> None:
    applied.sql("create table public.t (id bigint primary key, body text)")
    applied.sql("create table public.u (id bigint primary key references public.t, body text)")
    applied.sql("insert into public.t values (1, 'old')")
    applied.sql("insert into public.u values (1, 'old')")
    keys = (Constraint(name="u_id_fkey", definition="FOREIGN KEY (id) REFERENCES public.t(id)", references=T),)
    child = Definition(columns=COLUMNS, primary_key=KEY.model_copy(update={"name": "u_pkey"}), foreign_keys=keys)
    source = loading(("t", WHOLE), ("u", child))
    source.load("t", rows(5, 7))
    source.load("u", rows(5, 6))
    applied.catch_up(source, applied.worker(source, prepare))
    assert [row[0] for row in applied.rows("t") + applied.rows("u")] == [5, 6, 5]
    made = prepare is Prepare.DROP_AND_CREATE
    assert applied.state("t").made is made
    assert applied.sql("select convalidated from pg_constraint where conname = 'u_id_fkey'") == [(True,)]


def test_rows_are_added_to_a_table_that_is_kept(applied: Applied) -> None:
    applied.sql("create table public.t (id bigint primary key, more text, body text)")
    applied.sql("insert into public.t values (100, 'm', 'mine')")
    source = loading()
    source.load("t", rows(0, 2))
    applied.catch_up(source, applied.worker(source, Prepare.KEEP))
    assert applied.rows("t") == [(0, None, "row 0"), (1, None, "row 1"), (100, "m", "mine")]


def test_small_chunks_are_loaded_in_one_transaction(applied: Applied) -> None:
    source = loading(("t", WHOLE), ("u", WHOLE))
    for name in ("t", "u"):
        applied.sql(f"create table public.{name} (id bigint primary key, body text)")
        source.load(name, rows(0, 4), chunks=2)
    applied.catch_up(source, applied.worker(source, Prepare.KEEP))
    written = (
        "select xmin::text, count(*) from (select xmin from public.t union all select xmin from public.u) r group by 1"
    )
    assert [count for _, count in applied.sql(written)] == [8]
    assert applied.sql("select count(*) from penstock.chunks") == [(4,)]


def test_a_refused_row_keeps_no_chunk_of_other_tables_out(applied: Applied) -> None:
    source = loading(("t", WHOLE), ("u", WHOLE), ("v", WHOLE))
    for name in ("t", "u", "v"):
        applied.sql(f"create table public.{name} (id bigint primary key, body text)")
        source.load(name, rows(0, 4), chunks=2)
    applied.sql("alter table public.u add check (id <> 3)")
    applied.catch_up(source, applied.worker(source, Prepare.KEEP))
    assert [applied.state(name).state.value for name in ("t", "u", "v")] == ["live", "failed", "live"]
    assert "u_id_check" in applied.state("u").error
    assert [len(applied.rows(name)) for name in ("t", "u", "v")] == [4, 2, 4]


@pytest.mark.parametrize(
    ("statement", "why"),
    [
        ("create table public.t (id bigint primary key)", "column body is missing"),
        ("create table public.t (id integer primary key, body text)", "column id is integer"),
        ("create table public.t (id bigint primary key, body varchar(3))", "column body is character varying(3)"),
        ("create table public.t (id bigint primary key, body text, more text not null)", "column more is not null"),
        (
            "create table public.t (id bigint primary key, body text generated always as ('x') stored)",
            "column body is generated",
        ),
        ("create view public.t as select 1::bigint as id, ''::text as body", "no table"),
        ("select 1", "no table public.t"),
    ],
)
def test_a_table_that_does_not_fit_is_refused(applied: Applied, statement: str, why: str) -> None:
    applied.sql(statement)
    source = loading()
    source.load("t", rows(0, 2))
    applied.catch_up(source, applied.worker(source, Prepare.KEEP))
    state = applied.state("t")
    assert state.state is TableState.FAILED and why in state.error and state.remedy


@pytest.mark.parametrize("change", [delete("t", "1", None), update("t", "1", "x")], ids=["delete", "update"])
def test_a_table_that_somebody_else_writes_to_stops_and_says_so(applied: Applied, change: Written) -> None:
    source = loading()
    source.load("t", rows(0, 3))
    worker = applied.worker(source, Prepare.CREATE)
    applied.catch_up(source, worker)
    applied.sql("delete from public.t where id = 1")
    source.commit(change)
    applied.catch_up(source, worker)
    state = applied.state("t")
    assert state.state is TableState.FAILED and "1 rows are missing" in state.error
    assert state.remedy == "find out who else writes to it, then load the table anew: `penstock reload FILE public.t`"


def test_foreign_keys_are_made_when_all_that_they_tie_is_live(applied: Applied) -> None:
    keys = (Constraint(name="u_id_fkey", definition="FOREIGN KEY (id) REFERENCES public.t(id)", references=T),)
    child = Definition(columns=COLUMNS, primary_key=KEY.model_copy(update={"name": "u_pkey"}), foreign_keys=keys)
    source = loading(("t", WHOLE), ("u", child))
    source.load("u", rows(0, 5))
    worker = applied.worker(source, Prepare.CREATE)
    applied.until(
        lambda: bool(worker.tables) and worker.tables[TableId("public", "u")].state is TableState.LIVE, worker
    )
    assert applied.sql("select from pg_constraint where contype = 'f'") == []
    source.load("t", rows(0, 9))
    applied.catch_up(source, worker)
    assert applied.sql("select conname, convalidated from pg_constraint where contype = 'f'") == [("u_id_fkey", True)]


def test_a_foreign_key_that_does_not_hold_is_told_and_stops_nothing(applied: Applied) -> None:
    keys = (Constraint(name="u_id_fkey", definition="FOREIGN KEY (id) REFERENCES public.t(id)", references=T),)
    child = Definition(columns=COLUMNS, primary_key=KEY.model_copy(update={"name": "u_pkey"}), foreign_keys=keys)
    source = loading(("t", WHOLE), ("u", child))
    source.load("u", rows(0, 5))
    source.load("t", rows(0, 2))
    worker = applied.worker(source, Prepare.CREATE)
    applied.catch_up(source, worker)
    state = applied.state("u")
    assert state.state is TableState.LIVE and "u_id_fkey" in state.error
    source.commit(insert("t", "9", "x"))
    applied.catch_up(source, worker)
    assert applied.sql("select count(*) from public.t") == [(3,)]


def test_sequences_go_on_behind_what_was_loaded(applied: Applied) -> None:
    sequence = TableId("public", "t_id_seq")
    column = ColumnDetails(name="id", source_type="bigint", nullable=False, identity="always", sequence=sequence)
    definition = WHOLE.model_copy(update={"columns": (column, COLUMNS[1])})
    source = Source(make_table("t", definition=definition), mode=Mode.LOAD, set_up=False)
    source.set_up(Objects(sequences=(SequenceObject(id=sequence, definition="as bigint start with 1"),)))
    source.load("t", rows(1, 50))
    applied.catch_up(source, applied.worker(source, Prepare.CREATE))
    assert applied.sql("insert into public.t (body) values ('next') returning id") == [(50,)]


def test_a_target_gets_what_its_own_tables_rest_on_and_more_when_it_takes_more(applied: Applied) -> None:
    def schemas() -> list[tuple[object, ...]]:
        return applied.sql("select nspname from pg_namespace where nspname in ('of t', 'of u') order by 1")

    source = Source(make_table("t"), make_table("u"), set_up=False)
    of_choices = ((("public.t",), Objects(schemas=("of t",))),)
    source.set_up(SetupObjects(schemas=("of t", "of u"), of_choices=of_choices))
    worker = applied.worker(source, Prepare.CREATE, tables=("public.t",))
    applied.catch_up(source, worker)
    assert schemas() == [("of t",)]
    worker.close()
    applied.catch_up(source, applied.worker(source, Prepare.CREATE, tables=("public.t", "public.u")))
    assert schemas() == [("of t",), ("of u",)]
    assert applied.state("u").state is TableState.LIVE


# ---------------------------------------------------------------------------------------------------------- load


def test_a_row_that_was_read_in_two_snapshots_is_healed(applied: Applied) -> None:
    source = loading()
    source.commit(insert("t", "1", "a"), insert("t", "2", "b"))
    worker = applied.worker(source, Prepare.CREATE)
    old = source.snapshot()
    source.plan("t", chunks=2)
    source.chunk("t", 0, [("1", "a"), ("2", "b")], old)
    source.commit(update("t", "1", "a2"), delete("t", "2", None), insert("t", "3", "c"))
    new = source.snapshot()
    source.chunk("t", 1, [("1", "a2"), ("3", "c")], new)
    newest = source.snapshot()
    source.commit(update("t", "3", "c2"))
    settle(worker)
    assert applied.sql("select count(*) from penstock.chunks") == [(2,)]
    assert applied.state("t").state is TableState.LOADING
    source.heal("t", [("1", None), ("2", None), ("3", None)], [("1", "a2"), ("3", "c")], newest)
    applied.catch_up(source, worker)
    assert applied.rows("t") == [(1, "a2"), (3, "c2")]


def test_a_chunk_that_is_not_looked_at_yet_lets_no_worker_turn_in_circles(applied: Applied) -> None:
    source = loading()
    old = source.snapshot()
    source.plan("t", chunks=2)
    worker = applied.worker(source, Prepare.CREATE, Limits(share_every=0.5))
    source.chunk("t", 0, rows(0, 10), old)
    applied.until(lambda: worker.stats.chunks_loaded == 1, worker)
    source.chunk("t", 1, rows(10, 20), old)
    waits = 0
    while worker.stats.chunks_loaded == 1:
        if not worker.step():
            worker.wait(1.0)
            waits += 1
    assert waits < 20


def test_a_new_generation_begins_again(applied: Applied) -> None:
    source = loading()
    old = source.snapshot()
    source.plan("t", chunks=2)
    source.chunk("t", 0, rows(0, 10), old)
    worker = applied.worker(source, Prepare.CREATE)
    settle(worker)
    assert applied.sql("select count(*) from public.t") == [(10,)]
    source.plan("t", generation=2)
    source.chunk("t", 0, rows(5, 7), source.snapshot(), generation=2)
    applied.catch_up(source, worker)
    assert [row[0] for row in applied.rows("t")] == [5, 6]
    assert applied.sql("select generation, chunk, rows_loaded from penstock.chunks") == [(2, 0, 2)]


def test_a_live_table_is_not_loaded_again_for_a_target_that_was_added(applied: Applied) -> None:
    source = loading()
    source.load("t", rows(0, 5))
    worker = applied.worker(source, Prepare.CREATE)
    source.commit(insert("t", "5", "five"))
    applied.catch_up(source, worker)
    trim(source, "copy", "late")
    source.commit(truncate("t"), insert("t", "1", "one"))
    source.plan("t", generation=2)
    source.chunk("t", 0, [("1", "not for us")], source.snapshot(), generation=2)
    source.commit(insert("t", "2", "two"))
    applied.catch_up(source, worker)
    assert applied.state("t").generation == 1
    assert applied.rows("t") == [(1, "one"), (2, "two")]


def test_a_target_that_was_added_when_the_log_was_trimmed_waits_for_a_load_of_its_own(applied: Applied) -> None:
    source = loading()
    source.load("t", rows(0, 5))
    for at in range(5, 9):
        source.commit(insert("t", str(at), f"row {at}"))
    trim(source, "copy")
    worker = applied.worker(source, Prepare.CREATE, name="late")
    settle(worker)
    assert applied.state("t").state is TableState.LOADING and applied.state("t").generation == -1
    trim(source, "copy", "late")
    settle(worker)
    assert applied.state("t").generation == -1  # what is there of the old load is not for it
    source.load("t", rows(0, 9), generation=2)
    source.commit(insert("t", "9", "row 9"))
    applied.catch_up(source, worker)
    assert applied.rows("t") == rows_there(0, 10)


def test_a_load_that_the_log_can_not_be_replayed_on_is_refused(applied: Applied) -> None:
    """Who is late to trim, by an older file, may take away what the new load needs."""
    source = loading()
    old = source.snapshot()
    source.commit(insert("t", "5", "row 5"))
    source.commit(insert("t", "6", "row 6"))
    trim(source)
    source.plan("t")
    source.chunk("t", 0, rows(0, 5), old)
    worker = applied.worker(source, Prepare.CREATE)
    settle(worker, until=lambda: T in worker.tables and worker.tables[T].state is TableState.FAILED, steps=100_000)
    assert "trimmed" in applied.state("t").error


def trim(source: Source, *targets: str, frontiers: bool = True) -> None:
    """Trim all that is there but the last frontier, then admit targets; `frontiers` go last, or not yet."""
    last = Frontiers(source.reader, source.topics).to_end()
    assert last is not None
    trimmed = Trimmed(last.offset, last.frontier.epoch, last.frontier.after, 0, last.frontier.max_xid - 1, 0)
    source.control.put(source.topics.control, encode_control(trimmed))
    source.log.trim(source.topics.changes(T), source.log.offsets(source.topics.changes(T)).end - 1)
    source.log.trim(source.topics.load(T), source.log.offsets(source.topics.load(T)).end)
    if frontiers:
        source.log.trim(source.topics.frontier, last.offset)
    if targets:
        renewed = trimmed.offset if len(targets) > 1 else 0
        admitted = Admitted(targets, renewed, trimmed.max_xid if renewed else -1)
        source.control.put(source.topics.chunks, encode_control(admitted))


def test_a_group_behind_a_trim_that_is_announced_says_what_to_do(applied: Applied) -> None:
    source = loading()
    source.load("t", rows(0, 3))
    worker = applied.worker(source, Prepare.CREATE)
    source.commit(insert("t", "3", "row 3"))
    applied.catch_up(source, worker)
    worker.close()
    for at in range(4, 7):
        source.commit(insert("t", str(at), f"row {at}"))
    trim(source, frontiers=False)
    with pytest.raises(LogRewound, match="was trimmed up to") as refused:
        settle(applied.worker(source, Prepare.CREATE))
    assert "drop its schema penstock" in refused.value.remedy


def rows_there(start: int, end: int) -> list[tuple[object, ...]]:
    return [(at, f"row {at}") for at in range(start, end)]


def test_a_failed_table_may_be_resumed_or_loaded_again(applied: Applied) -> None:
    source = loading()
    source.load("t", rows(0, 3))
    worker = applied.worker(source, Prepare.CREATE)
    applied.catch_up(source, worker)
    source.commit(insert("t", "0", "twice"), insert("t", "9", "nine"))
    applied.catch_up(source, worker)
    assert applied.state("t").state is TableState.FAILED
    applied.sql("delete from public.t where id = 0")
    target = applied.target()
    target.open(source.log.identity())
    assert target.resume(T) and not target.resume(T)
    target.close()
    applied.until(lambda: worker.tables[T].state is TableState.LIVE, worker)
    assert applied.rows("t") == [(0, "twice"), (1, "row 1"), (2, "row 2"), (9, "nine")]


@pytest.mark.parametrize("stopped_in", [TableState.LOADING, TableState.LIVE])
def test_a_failed_table_that_the_log_kept_nothing_for_fails_again_and_stops_no_other(
    applied: Applied, stopped_in: TableState
) -> None:
    check = "check (body <> 'row 1')" if stopped_in is TableState.LOADING else ""
    applied.sql(f"create table public.t (id bigint primary key, body text {check})")
    applied.sql("create table public.other (id bigint primary key, body text)")
    source = Source(make_table("t"), make_table("other"), mode=Mode.LOAD_AND_CHANGES)
    source.load("other", rows(0, 3))
    source.load("t", rows(0, 3), chunks=3)
    worker = applied.worker(source)
    if stopped_in is TableState.LIVE:
        applied.catch_up(source, worker)
    source.commit(insert("t", "0", "twice"), insert("other", "3", "row 3"))
    applied.until(lambda: T in worker.tables and worker.tables[T].state is TableState.FAILED, worker)
    assert applied.state("t").stopped_in == stopped_in
    source.commit(insert("t", "9", "nine"), insert("other", "4", "row 4"))
    applied.catch_up(source, worker)
    worker.close()  # it notes how far its groups are
    trim(source)
    target = applied.target()
    target.open(source.log.identity())
    assert target.resume(T)
    target.close()
    worker = applied.worker(source)
    applied.until(lambda: "forgotten" in applied.state("t").error, worker)
    assert "penstock reload" in applied.state("t").remedy
    source.commit(insert("other", "5", "row 5"))
    applied.until(lambda: applied.rows("other") == rows_there(0, 6), worker)


@pytest.mark.parametrize("forgotten", ["nothing", "all", "all but the frontiers"])
def test_a_table_that_was_left_out_for_a_while_goes_on_where_it_was(applied: Applied, forgotten: str) -> None:
    """Its group has gone on without it."""
    other = next(name for name in map("u{}".format, range(999)) if group_of([TableId("public", name)]) == group_of([T]))
    for table in ("t", other):
        applied.sql(f"create table public.{table} (id bigint primary key, body text)")
    source = Source(make_table("t"), make_table(other))
    worker = applied.worker(source)
    source.commit(insert("t", "0", "row 0"))
    applied.catch_up(source, worker)
    worker.close()
    worker = applied.worker(source, tables=(f"public.{other}",))
    source.commit(insert("t", "1", "row 1"), insert(other, "0", "row 0"))
    source.commit(insert("t", "2", "row 2"), insert(other, "1", "row 1"))
    applied.until(lambda: applied.rows(other) == rows_there(0, 2), worker)
    assert applied.rows("t") == rows_there(0, 1)
    worker.close()  # it notes how far its groups are
    if forgotten != "nothing":
        trim(source, frontiers=forgotten == "all")
    worker = applied.worker(source)
    source.commit(insert("t", "3", "row 3"))
    if forgotten != "nothing":
        applied.until(lambda: "forgotten" in applied.state("t").error, worker)
    else:
        applied.until(lambda: applied.rows("t") == rows_there(0, 4), worker)
        applied.until(lambda: applied.state("t").state is TableState.LIVE, worker)


# --------------------------------------------------------------------------------------------------------- owners


def test_of_two_owners_one_sees_that_the_other_went_on(applied: Applied) -> None:
    applied.sql("create table public.t (id bigint primary key, body text)")
    source = Source(make_table("t"))
    # Of different membership groups, each believes that everything is its own.
    first, second = applied.worker(source, name="copy"), applied.worker(source, name="zombie")
    for worker in (first, second):
        applied.catch_up(source, worker)
    for at in range(20):
        source.commit(insert("t", str(at), "x"))
        (first if at % 2 else second).step()
        (second if at % 2 else first).step()
    applied.catch_up(source, first, second)
    assert applied.sql("select count(*) from public.t") == [(20,)]
    assert first.stats.conflicts + second.stats.conflicts > 0
    assert first.stats.failures + second.stats.failures == 0


def test_two_owners_in_the_midst_of_one_transaction(applied: Applied, monkeypatch: pytest.MonkeyPatch) -> None:
    applied.sql("create table public.t (id bigint primary key, body text)")
    source = Source(make_table("t"))
    first, second = applied.worker(source, name="copy"), applied.worker(source, name="zombie")
    for worker in (first, second):
        applied.catch_up(source, worker)
    source.commit(*[insert("t", str(at), "x") for at in range(100)])
    taken: list[bool] = []
    pieces = PortionReader.pieces

    def meanwhile(self: PortionReader, portion: Portion, reading: Reading) -> Iterator[list[Change] | Redefinition]:
        if not taken:
            taken.append(True)
            applied.catch_up(source, first)
        yield from pieces(self, portion, reading)

    monkeypatch.setattr(PortionReader, "pieces", meanwhile)
    applied.catch_up(source, second)
    assert applied.sql("select count(*) from public.t") == [(100,)]
    assert second.stats.conflicts == 1


def many(names: list[str]) -> Source:
    """A source of tables that nothing ties together."""
    source = loading(
        *[
            (
                name,
                Definition(
                    columns=COLUMNS,
                    primary_key=Constraint(name=f"{name}_pkey", definition="PRIMARY KEY (id)", columns=("id",)),
                ),
            )
            for name in names
        ]
    )
    for name in names:
        source.load(name, rows(0, 60), chunks=4)
    return source


def test_workers_share_the_chunks_and_the_groups(applied: Applied) -> None:
    names = [f"t{at}" for at in range(12)]
    source = many(names)
    first, second = applied.worker(source, Prepare.CREATE), applied.worker(source, Prepare.CREATE)
    for _ in range(3):
        first.step(), second.step()
    source.commit(*[update(name, "1", "new") for name in names])
    applied.catch_up(source, first, second)
    for name in names:
        assert applied.sql(f"select count(*), max(body) filter (where id = 1) from public.{name}") == [(60, "new")]
    assert first.stats.chunks_loaded and second.stats.chunks_loaded
    assert first.stats.chunks_loaded + second.stats.chunks_loaded == 48
    assert first.owned | second.owned == frozenset(range(64)) and not first.owned & second.owned


def test_who_does_not_follow_only_loads_and_leaves_all_tables_at_one_moment(applied: Applied) -> None:
    names = [f"t{number}" for number in range(6)]
    source = many(names)
    follower, helper = applied.worker(source, Prepare.CREATE), applied.worker(source, Prepare.CREATE, follows=False)
    applied.catch_up(source, follower, helper)
    assert follower.stats.chunks_loaded and helper.stats.chunks_loaded
    assert follower.stats.chunks_loaded + helper.stats.chunks_loaded == 24
    assert not helper.owned and len({follower.tables[TableId("public", name)].group for name in names}) > 1

    begun = applied.sql("select count(*) from public.t0")[0][0]
    seen = []
    counts = " + ".join(f"(select count(*) from public.{name})" for name in names)
    for number in range(20):
        source.commit(*[insert(name, str(1000 + number), "x") for name in names])
        follower.step(), helper.step()
        seen.append(applied.sql(f"select {counts}")[0][0] - begun * len(names))
    applied.catch_up(source, follower, helper)
    assert all(count % len(names) == 0 for count in seen)
    assert helper.stats.batches == 0


def state_of(worker: Apply, table: str) -> TableState | None:
    progress = worker.tables.get(TableId("public", table))
    return progress.state if progress else None


@pytest.mark.parametrize("reached", [TableState.LOADING, TableState.INDEXING])
def test_who_is_ahead_waits_for_a_table_that_is_loaded_and_only_has_to_come_there(
    applied: Applied, reached: TableState
) -> None:
    for name in ("small", "large"):
        applied.sql(f"create table public.{name} (id bigint primary key, body text)")
    source = loading(("small", Definition()), ("large", Definition()))
    source.load("small", rows(0, 10))
    worker = applied.worker(source)
    applied.until(lambda: state_of(worker, "small") is TableState.LIVE, worker)
    source.load("large", rows(0, 10))
    applied.until(lambda: worker.stats.chunks_loaded == 2 and state_of(worker, "large") is reached, worker)
    worker.close()

    changes = [update(name, "1", "new") for name in ("small", "large")]
    source.commit(*changes)
    again = applied.worker(source)
    of_each = "select body = 'new' from public.{} where id = 1"
    seen = []

    def both() -> bool:
        seen.append(tuple(applied.sql(of_each.format(name)) for name in ("small", "large")))
        return state_of(again, "large") is TableState.LIVE

    applied.until(both, again)
    applied.catch_up(source, again)
    assert ([(True,)], [(False,)]) not in seen
    assert [applied.sql(of_each.format(name)) for name in ("small", "large")] == [[(True,)]] * 2


def test_who_is_ahead_does_not_wait_for_ever(applied: Applied) -> None:
    index = Constraint(
        name="slow", definition="CREATE INDEX slow ON public.large USING btree (body)", columns=("body",)
    )
    source = loading(("small", Definition(columns=COLUMNS)), ("large", Definition(columns=COLUMNS, indexes=(index,))))
    source.load("small", rows(0, 10))
    worker = applied.worker(source, Prepare.CREATE, Limits(together_seconds=0.3))
    applied.until(lambda: state_of(worker, "small") is TableState.LIVE, worker)
    source.load("large", rows(0, 10))
    applied.until(lambda: worker.stats.chunks_loaded == 2, worker)
    with psycopg.connect(applied.url) as other:
        other.execute("lock table public.large in row exclusive mode")  # keeps the index from being made
        source.commit(update("small", "1", "new"))
        applied.until(lambda: applied.sql("select body from public.small where id = 1") == [("new",)], worker)
        assert state_of(worker, "large") is TableState.INDEXING
    applied.catch_up(source, worker)


# ------------------------------------------------------------------------------------------------- broken connections


def cut(applied: Applied) -> None:
    applied.sql(
        "select pg_terminate_backend(pid, 10000) from pg_stat_activity where application_name like 'penstock%%'"
    )


@pytest.mark.parametrize("committed", [False, True])
def test_a_connection_that_is_cut_at_the_commit(
    applied: Applied, monkeypatch: pytest.MonkeyPatch, committed: bool
) -> None:
    applied.sql("create table public.t (id bigint primary key, body text)")
    source = Source(make_table("t"))
    worker = applied.worker(source)
    applied.catch_up(source, worker)
    source.commit(insert("t", "1", "a"))
    run = Session.run

    def broken(session: Session, sql: str, label: object = None) -> int:
        if sql != "commit":
            return run(session, sql, label)
        if committed:
            run(session, sql, label)
        cut(applied)
        return run(session, "select 1")

    monkeypatch.setattr(Session, "run", broken)
    with pytest.raises(TargetUnavailable):
        for _ in range(10):
            worker.step()
    monkeypatch.undo()
    worker.close()
    assert applied.rows("t") == ([(1, "a")] if committed else [])
    again = applied.worker(source)
    source.commit(insert("t", "2", "b"))
    applied.catch_up(source, again)
    assert applied.rows("t") == [(1, "a"), (2, "b")]


def test_a_connection_that_is_cut_in_the_midst_of_a_chunk(applied: Applied, monkeypatch: pytest.MonkeyPatch) -> None:
    source = loading()
    source.load("t", rows(0, 5000), chunks=2)
    worker = applied.worker(source, Prepare.CREATE)
    batches = Loader._batches

    def broken(self: Loader, partition: Partition, span: Range) -> Iterator[bytes]:
        for at, batch in enumerate(batches(self, partition, span)):
            if at == 1:
                cut(applied)
            yield batch

    with monkeypatch.context() as patch, pytest.raises(TargetUnavailable):
        patch.setattr(Loader, "_batches", broken)
        settle(worker)
    worker.close()
    applied.catch_up(source, applied.worker(source, Prepare.CREATE))
    assert applied.sql("select count(*) from public.t") == [(5000,)]


def test_a_transaction_larger_than_memory_lands_as_one(applied: Applied) -> None:
    applied.sql("create table public.t (id bigint primary key, body text)")
    applied.sql("create table public.u (id bigint primary key, body text)")
    source = Source(make_table("t"), make_table("u"))
    worker = applied.worker(source, limits=Limits(piece_bytes=1))
    source.commit(insert("t", "0", "first"))
    applied.catch_up(source, worker)
    big = "x" * 100_000
    changes = [change for at in range(1, 60) for change in (insert("t", str(at), big), insert("u", str(at), big))]
    changes += [update("t", str(at), None, unchanged=(1,)) for at in range(1, 60)]
    changes += [update("t", str(at + 1000), None, before=(str(at), None), unchanged=(1,)) for at in range(1, 60)]
    changes += [delete("u", str(at), None) for at in range(1, 60, 2)]
    source.commit(*changes)
    before = worker.stats.batches
    applied.catch_up(source, worker)
    assert worker.stats.batches == before + 1
    assert applied.sql("select count(*), min(id), max(id), sum(length(body)) from public.t") == [
        (60, 0, 1059, 59 * 100_000 + 5)
    ]
    assert applied.sql("select count(*) from public.u") == [(29,)]


# ------------------------------------------------------------------------------------------------------- the rest


def test_a_target_remembers_which_log_it_was_written_from(applied: Applied) -> None:
    applied.sql("create table public.t (id bigint primary key, body text)")
    source = Source(make_table("t"))
    applied.catch_up(source, applied.worker(source))
    other = applied.worker(Source(make_table("t")))
    with pytest.raises(LogRewound, match="another log"):
        settle(other)


def test_nothing_is_left_of_a_pipeline_that_is_forgotten(applied: Applied) -> None:
    applied.sql("create table public.t (id bigint primary key, body text)")
    source = Source(make_table("t"))
    applied.catch_up(source, applied.worker(source))
    settings = applied.target()._settings
    assert forget_pipeline(settings, "p") and not forget_pipeline(settings, "p")
    assert applied.sql("select to_regnamespace('penstock')") == [(None,)]


def test_an_idle_pipeline_writes_seldom_but_its_lag_is_seen(applied: Applied) -> None:
    applied.sql("create table public.t (id bigint primary key, body text)")
    source = Source(make_table("t"))
    now = [0.0]
    worker = Apply("p", source.log, applied.target(), name="copy", clock=lambda: now[0])
    applied.workers.append(worker)
    for _ in range(100):
        worker.step()
        now[0] += 0.1
    source.seal()
    settle(worker)
    written = applied.sql("select xmin::text from penstock.progress")
    source.seal()
    settle(worker)
    assert worker.stats.captured_at == source.time and worker.stats.position == source.position
    assert applied.sql("select xmin::text from penstock.progress") == written
    now[0] += 2
    settle(worker)
    assert applied.sql("select position from penstock.progress") == [(source.position,)]
    written = applied.sql("select xmin::text from penstock.progress")
    now[0] += 2
    settle(worker)
    assert applied.sql("select xmin::text from penstock.progress") == written


@pytest.fixture
def restricted(applied: Applied) -> Iterator[Applied]:
    """The same database as a role that may not switch triggers and foreign keys off."""
    applied.sql("drop role if exists penstock_restricted")
    applied.sql("create role penstock_restricted login")
    applied.sql(f'grant create, temporary on database "{applied.connection.info.dbname}" to penstock_restricted')
    applied.sql("grant all on schema public to penstock_restricted")
    own = Applied(applied.url.replace("://postgres@", "://penstock_restricted@"))
    yield own
    own.close()


def test_without_the_role_parents_come_before_their_children(restricted: Applied) -> None:
    restricted.sql("create table public.t (id bigint primary key, body text)")
    restricted.sql("create table public.u (id bigint primary key, t bigint references public.t)")
    source = Source(make_table("u", [("id", "bigint"), ("t", "bigint")]), make_table("t"))
    worker = restricted.worker(source)
    source.commit(insert("t", "1", "a"), insert("t", "2", "b"), insert("u", "1", "1"))
    restricted.catch_up(source, worker)
    source.commit(
        insert("t", "3", "c"),
        insert("u", "3", "3"),
        delete("u", "1", None),
        delete("t", "1", None),
        update("t", "2", "x"),
    )
    restricted.catch_up(source, worker)
    assert (restricted.rows("t"), restricted.rows("u")) == ([(2, "x"), (3, "c")], [(3, 3)])


@pytest.mark.parametrize("harm", ["trigger", "cascade"])
def test_without_the_role_what_would_act_twice_is_refused(restricted: Applied, harm: str) -> None:
    restricted.sql("create table public.t (id bigint primary key, body text)")
    if harm == "trigger":
        restricted.sql(
            "create trigger same before update on public.t for each row execute function"
            " pg_catalog.suppress_redundant_updates_trigger()"
        )
    else:
        restricted.sql("create table public.u (t bigint references public.t on delete cascade)")
    source = Source(make_table("t"))
    worker = restricted.worker(source)
    source.commit(insert("t", "1", "a"))
    restricted.catch_up(source, worker)
    state = restricted.state("t")
    assert state.state is TableState.FAILED and "second time" in state.error and "grant set" in state.remedy


def test_a_role_that_a_superuser_has_made_a_replica_is_one(applied: Applied, restricted: Applied) -> None:
    database = applied.connection.info.dbname
    applied.sql(
        f'alter role penstock_restricted in database "{database}" set session_replication_role = replica;'
        " create table public.t (id bigint primary key, body text);"
        " grant all on public.t to penstock_restricted;"
        " create trigger same before update on public.t for each row execute function"
        " pg_catalog.suppress_redundant_updates_trigger()"
    )
    source = Source(make_table("t"))
    worker = restricted.worker(source)
    source.commit(insert("t", "1", "a"))
    restricted.catch_up(source, worker)
    assert restricted.rows("t") == [(1, "a")]


def test_a_kind_of_target_that_does_not_exist_is_named(applied: Applied) -> None:
    from apply.target import find_target

    settings = TargetSettings(name="copy", url=SecretStr("postgresql://there/shop"))
    object.__setattr__(settings, "url", SecretStr("oracle://there/shop"))
    with pytest.raises(ConfigInvalid, match="oracle"):
        find_target(settings, "p")
    found = find_target(TargetSettings(name="copy", url=SecretStr(applied.url)), "p")
    assert isinstance(found, PostgresTarget)


def test_a_worker_that_is_stopped_notes_what_it_has_counted(applied: Applied) -> None:
    applied.sql("create table public.t (id bigint primary key, body text)")
    source = Source(make_table("t"))
    worker = applied.worker(source)
    applied.catch_up(source, worker)
    source.commit(insert("t", "1", "a"))
    applied.catch_up(source, worker)
    worker.close()
    assert applied.state("t").changes == 1


def test_whoever_waits_for_the_target_leaves_other_threads_alone(applied: Applied) -> None:
    """A lock at the target must not keep us from hearing a signal, or from saying that we are well."""
    applied.sql("create table public.t (id bigint primary key, body text)")
    source = Source(make_table("t"))
    worker = applied.worker(source)
    applied.catch_up(source, worker)
    with psycopg.connect(applied.url) as other:
        # If this thread never came to its turn again, the server would free the lock.
        other.execute("set idle_in_transaction_session_timeout = '30s'")
        other.commit()
        other.execute("lock table public.t")
        source.commit(insert("t", "1", "a"))
        began = time.monotonic()
        applying = threading.Thread(target=lambda: applied.catch_up(source, worker))
        applying.start()
        waits = "select count(*) from pg_locks where not granted and relation = 'public.t'::regclass"
        while not applied.sql(waits)[0][0]:
            assert time.monotonic() - began < 25
        other.rollback()
        applying.join()
    assert applied.rows("t") == [(1, "a")]


def test_the_target_may_be_read_while_it_is_written(applied: Applied) -> None:
    applied.sql("create table public.t (id bigint primary key, body text)")
    source = Source(make_table("t"))
    worker = applied.worker(source)
    applied.catch_up(source, worker)
    with psycopg.connect(applied.url) as other:
        other.execute("select count(*) from public.t")
        source.commit(insert("t", "1", "a"))
        applied.catch_up(source, worker)
    assert applied.rows("t") == [(1, "a")]


@pytest.mark.parametrize("kept", [False, True])
def test_without_the_role_a_row_that_is_refused_at_the_commit_is_found_too(restricted: Applied, kept: bool) -> None:
    restricted.sql("create table public.t (id bigint primary key, body text unique deferrable initially deferred)")
    restricted.sql("insert into public.t values (100, 'taken')")
    source = Source(make_table("t"))
    worker = restricted.worker(source, policy=TablePolicy(on_row_error=OnRowError.SET_ASIDE) if kept else None)
    source.commit(*[insert("t", str(at), "taken" if at == 3 else str(at)) for at in range(9)])
    restricted.catch_up(source, worker)
    state = restricted.state("t")
    if kept:
        assert state.state is TableState.LIVE
        assert restricted.sql("select key_text from penstock.dead_letters") == [('["3"]',)]
        assert restricted.sql("select count(*) from public.t") == [(9,)]
    else:
        assert state.state is TableState.FAILED and '["3"]' in state.error and "23505" in state.error


def test_without_the_role_a_child_whose_parent_is_missing_stops_alone(restricted: Applied) -> None:
    restricted.sql("create table public.p (id bigint primary key)")
    restricted.sql(
        "create table public.t (id bigint primary key, p bigint references public.p deferrable initially deferred)"
    )
    restricted.sql("create table public.u (id bigint primary key, body text)")
    source = Source(make_table("t", [("id", "bigint"), ("p", "bigint")]), make_table("u"))
    worker = restricted.worker(source)
    source.commit(insert("t", "1", "7"), insert("u", "1", "a"))
    restricted.catch_up(source, worker)
    state = restricted.state("t")
    assert state.state is TableState.FAILED and "t_p_fkey" in state.error
    assert restricted.rows("u") == [(1, "a")]


@pytest.mark.parametrize("known_before", [False, True])
def test_a_table_goes_on_by_itself_when_the_source_has_let_go_of_what_refuses_its_rows(
    applied: Applied, known_before: bool
) -> None:
    def version(*, nullable: bool) -> Table:
        columns = (
            ColumnDetails(name="id", source_type="bigint", nullable=False, number=1),
            ColumnDetails(name="body", source_type="text", nullable=nullable, number=2),
        )
        key = Constraint(name="t_pkey", definition="PRIMARY KEY (id)", columns=("id",))
        return make_table("t", definition=Definition(columns=columns, primary_key=key))

    source = Source(version(nullable=False))
    worker = applied.worker(source, Prepare.CREATE)
    source.commit(insert("t", "1", "one"))
    applied.catch_up(source, worker)
    written = source.registered["t"]
    if known_before:
        source.register(version(nullable=True))
    source.registered["t"] = written  # what comes now is of the version before
    source.commit(insert("t", "2", None))
    applied.until(lambda: worker.stats.failures == 1, worker)
    if not known_before:
        applied.catch_up(source, worker)
        state = applied.state("t")
        assert state.state is TableState.FAILED and "23502" in state.error and "penstock resume" in state.remedy
        source.register(version(nullable=True))
    applied.until(lambda: applied.rows("t") == [(1, "one"), (2, None)], worker)
    applied.catch_up(source, worker)
    assert applied.state("t").state is TableState.LIVE
    # What refuses rows all the same is not the source's, and is tried once for each version.
    applied.sql("alter table public.t add check (id < 3)")
    source.registered["t"] = written
    source.commit(insert("t", "3", "three"))
    applied.until(lambda: worker.stats.failures > 1, worker)
    applied.catch_up(source, worker)
    assert worker.stats.failures == 2 and applied.state("t").state is TableState.FAILED


def test_a_table_whose_name_another_one_has_got_is_altered_where_it_waits(applied: Applied) -> None:
    def version(name: str, called: str, *columns: str) -> Table:
        kept = [("id", "bigint"), *((column, "text") for column in columns)]
        numbered = tuple(ColumnDetails(name=c, source_type=type, number=at) for at, (c, type) in enumerate(kept, 1))
        renamed = TableId("public", called) if called != name else None
        made = make_table(name, kept, definition=Definition(columns=numbered))
        return made.model_copy(update={"renamed": renamed})

    for name in ("a", "b"):
        applied.sql(f"create table public.{name} (id bigint primary key, body text, check (id < 5))")
    source = Source(version("a", "a", "body"), version("b", "b", "body"))
    worker = applied.worker(source)
    source.commit(insert("a", "9", "too large"))
    applied.catch_up(source, worker)
    assert applied.state("a").state is TableState.FAILED
    source.register(version("b", "a", "body"))
    source.commit(insert("b", "1", "b"))
    applied.catch_up(source, worker)
    assert applied.rows("a") == [(1, "b")]
    source.register(version("a", "a", "body", "more"))
    source.commit(insert("a", "1", "a", "more"))
    source.register(version("a", "b", "body", "more"))
    source.commit(insert("a", "2", "a", "more"))
    (waits,) = applied.sql("select relname from pg_class where relname like 'penstock aside %' and relkind = 'r'")
    applied.sql(f'alter table public."{waits[0]}" drop constraint a_id_check')
    target = applied.target()
    target.open(source.log.identity())
    assert target.resume(TableId("public", "a"))
    target.close()
    applied.until(lambda: applied.state("a").state is TableState.LIVE, worker)
    applied.catch_up(source, worker)
    assert applied.rows("a") == [(1, "b")]
    assert applied.rows("b") == [(1, "a", "more"), (2, "a", "more"), (9, "too large", None)]
