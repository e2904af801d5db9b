"""Settings of databases and roles, and their encodings, change nothing."""

from __future__ import annotations

from pathlib import Path

import psycopg
import pytest

from tests import servers
from tests.conftest import fresh_database
from tests.e2e.conftest import Project, one, project_of

SETTINGS = {
    "datestyle": "'German, DMY'",
    "intervalstyle": "sql_standard",
    "bytea_output": "escape",
    "extra_float_digits": "-15",
    "lc_monetary": "'C.UTF-8'",
    "search_path": "nowhere",
    "timezone": "'Asia/Kathmandu'",
    "standard_conforming_strings": "off",
    "backslash_quote": "on",
    "default_transaction_isolation": "serializable",
    "statement_timeout": "'20s'",
    "array_nulls": "off",
    "xmloption": "document",
    "default_toast_compression": "pglz",
    "quote_all_identifiers": "on",
}

TABLES = """
create schema shop;
create type shop."Größe" as (d date, i interval, b bytea);
create table shop."Bücher" (
    id int primary key, "Titel" text, d date, t timestamp, tz timestamptz, i interval, b bytea, f float8, r real,
    m money, n numeric, a timestamptz[], g shop."Größe", s int[] default array[1, null],
    made text generated always as (upper("Titel")) stored
);
create table shop.keyless (tz timestamptz, f float8, i interval, b bytea);
alter table shop.keyless replica identity full
"""

ROWS = """
insert into shop."Bücher" select
    n, 'Ärger «' || n || '» ÿ\\ ''x''', date '2024-03-04' + n, timestamp '2024-03-04 05:06:07.89' + n * interval '1 h',
    timestamptz '2024-03-04 05:06:07.89+01' + n * interval '1 h', interval '1 year -2 mons 3 days -04:05:06.789' * n,
    '\\x00ff5c27'::bytea, 0.1::float8 + n / 3.0, 1 / 3.0::real, n * 1.01::numeric::money, n / 7.0,
    array[timestamptz '2024-03-04 05:06:07+01', null],
    row(date '2024-03-04', interval '-1 mon +1 day', '\\x5c00'::bytea)::shop."Größe"
    from generate_series({first}, {last}) n;
insert into shop.keyless select tz, f, i, b from shop."Bücher" where id between {first} and {last}
"""

CHANGES = """
update shop."Bücher" set f = f + 0.1, i = -i, "Titel" = "Titel" || ' ¿' where id % 3 = 0;
update shop."Bücher" set id = -id where id % 7 = 0;
delete from shop."Bücher" where id % 5 = 0;
update shop.keyless set f = f * 1.1, tz = tz + interval '1 us' where f > 5;
delete from shop.keyless where f < 3
"""


THERE = "select count(*) from pg_tables where schemaname = 'penstock' and tablename = 'tables'"
LIVE = "select count(*) from penstock.tables where state = 'live'"


def _obstruct(url: str) -> None:
    """Give the database, and the role in it, settings that change what text means."""
    with psycopg.connect(url, autocommit=True) as connection:
        name = connection.info.dbname
        known = {name for (name,) in connection.execute("select name from pg_settings")}
        for place, (setting, value) in enumerate(SETTINGS.items()):
            if setting in known:
                whose = f"database {name}" if place % 2 else f"role current_user in database {name}"
                connection.execute(f"alter {whose} set {setting} = {value}".encode())


def _run(url: str, statements: str) -> None:
    with psycopg.connect(url, autocommit=True, options="-c standard_conforming_strings=on") as connection:
        connection.execute(statements.encode(connection.info.encoding))


@pytest.mark.parametrize(
    ("source_encoding", "target_encoding"), [("LATIN1", "LATIN1"), ("SQL_ASCII", "SQL_ASCII"), ("LATIN1", "UTF8")]
)
def test_settings_and_encodings_change_nothing(
    tmp_path: Path,
    source_server: servers.Postgres,
    target_server: servers.Postgres,
    source_encoding: str,
    target_encoding: str,
) -> None:
    with (
        fresh_database(source_server, "source", source_encoding) as source,
        fresh_database(target_server, "target", target_encoding) as target,
    ):
        _obstruct(source)
        _obstruct(target)
        utf8 = f"{source}?client_encoding=utf8"
        _run(utf8, TABLES)
        _run(utf8, ROWS.format(first=1, last=100))
        for project in project_of(tmp_path, source, target, ""):
            project.write()
            project.succeed("run", str(project.file), "--until-caught-up")
            assert project.differences() == []
            _run(utf8, ROWS.format(first=101, last=110))  # a few changes, then many
            project.succeed("run", str(project.file), "--until-caught-up")
            _run(utf8, ROWS.format(first=201, last=300) + ";" + CHANGES)
            project.succeed("run", str(project.file), "--until-caught-up")
            assert project.differences() == []


def test_bytes_of_no_encoding_are_refused_by_table_and_column_and_others_go_on(
    tmp_path: Path, source_server: servers.Postgres, target_server: servers.Postgres
) -> None:
    with (
        fresh_database(source_server, "source", "SQL_ASCII") as source,
        fresh_database(target_server, "target", "SQL_ASCII") as target,
    ):
        for table in ("loaded", "streamed", "calm"):
            _run(source, f"create schema if not exists shop; create table shop.{table} (id int primary key, said text)")
            _run(source, rf"insert into shop.{table} values (1, e'h\303\244')")
        _run(source, r"insert into shop.loaded values (2, e'h\344')")
        for project in project_of(tmp_path, source, target, ""):
            project.write()
            run = project.start("run", str(project.file))

            def told(words: str, project: Project = project) -> bool:
                return words in project.run("events", str(project.file)).stdout

            project.wait_until("a load that was refused", lambda: told("column said: text that is not UTF-8"), run)
            project.wait_until("the other two", lambda: one(target, THERE) == 1 and one(target, LIVE) == 2, run)
            _run(source, r"insert into shop.streamed values (2, e'h\344'); insert into shop.calm values (2, 'x')")
            project.wait_until(
                "a change that was refused", lambda: told("streamed: column said: text that is not"), run
            )
            project.wait_until("the last one", lambda: one(target, "select count(*) from shop.calm") == 2, run)
            same = "select said from shop.streamed where id = 1"
            assert one(target, f"select count(*) from ({same}) s where said = e'h\\303\\244'") == 1
            assert one(target, "select count(*) from shop.streamed") == 1
            assert one(target, "select count(*) from shop.loaded") == 0

            project.kill(run)
            ended = project.run("run", str(project.file), "--until-caught-up")
            assert ended.returncode == 3 and "2 tables have failed, all others are complete" in ended.stdout
            assert "penstock reload FILE shop.loaded" in ended.stdout
            for table in ("loaded", "streamed"):
                _run(source, f"update shop.{table} set said = 'x' where id = 2")
            run = project.start("run", str(project.file))
            project.succeed("reload", str(project.file), "shop.loaded", "shop.streamed")
            project.wait_until("all three", lambda: one(target, LIVE) == 3, run)
