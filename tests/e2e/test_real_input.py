"""Databases as others have them: pgbench under its own load, and a schema with every type that the server has."""

from __future__ import annotations

import subprocess

import psycopg

from control.servers.postgres import install
from tests.e2e.conftest import Project, one
from validation.rows import compare

# Two values of each; columns of these types, and arrays of them, are made in one table each.
VALUES: dict[str, list[str | None]] = {
    "aclitem": ["=r/postgres", "postgres=arw/postgres"],
    "bit": ["1", "0"],
    "bool": ["t", "f"],
    "box": ["(1,2),(-3,4.5)", "(0,0),(0,0)"],
    "bpchar": ["ab  ", ""],
    "bytea": [r"\x00ff5c27", r"\x"],
    "char": ["x", ""],
    "cid": ["4294967295", "0"],
    "cidr": ["10.0.0.0/8", "::/0"],
    "circle": ["<(1,2),3>", "<(0,0),1e-300>"],
    "date": ["infinity", "4713-01-01 BC"],
    "datemultirange": ["{[2024-01-01,2024-02-01),[2025-01-01,)}", "{}"],
    "daterange": ["[2024-01-01,)", "empty"],
    "float4": ["NaN", "3.4028235e38"],
    "float8": ["-0", "5e-324"],
    "inet": ["192.168.0.1", "fe80::1/64"],
    "int2": ["-32768", "32767"],
    "int2vector": ["1 2 3", ""],
    "int4": ["-2147483648", "2147483647"],
    "int4multirange": ["{[1,5),[7,9)}", "{}"],
    "int4range": ["[1,5)", "empty"],
    "int8": ["-9223372036854775808", "9223372036854775807"],
    "int8multirange": ["{(,5)}", "{}"],
    "int8range": ["(,)", "[3,4)"],
    "interval": ["1 year -2 mons 3 days -04:05:06.789", "00:00:00.000001"],
    "json": ['{"a" :  1, "a": 2}', '"\\u00fc\\\\"'],
    "jsonb": ['{"a": 1.50, "b": [null, "ü"]}', "[]"],
    "jsonpath": ['$."a"[*]?(@ > 1)', "$"],
    "line": ["{1,-1,0}", "{0,1,2.5}"],
    "lseg": ["[(1,2),(3,4)]", "[(0,0),(0,0)]"],
    "macaddr": ["08:00:2b:01:02:03", "ff:ff:ff:ff:ff:ff"],
    "macaddr8": ["08:00:2b:01:02:03:04:05", "00:00:00:00:00:00:00:00"],
    "money": ["12.34", "-0.01"],
    "name": ["it's", ""],
    "numeric": ["NaN", "-123456789012345678901234567890.12345678900"],
    "nummultirange": ["{[1.5,2.50)}", "{}"],
    "numrange": ["[1.10,2.0)", "(,)"],
    "oid": ["4294967295", "0"],
    "oidvector": ["1 4294967295", ""],
    "path": ["[(1,2),(3,4)]", "((0,0),(1,1),(1,0))"],
    "pg_lsn": ["16/B374D848", "FFFFFFFF/FFFFFFFF"],
    "pg_snapshot": ["10:20:10,14,15", "1:1:"],
    "point": ["(1.5,-2)", "(NaN,Infinity)"],
    "polygon": ["((0,0),(1,1),(1,0))", "((0,0))"],
    "refcursor": ["a cursor", ""],
    "regclass": ["pg_class", "-"],
    "regcollation": ['"C"', "-"],
    "regconfig": ["english", "simple"],
    "regdictionary": ["simple", "simple"],
    "regnamespace": ["pg_catalog", "-"],
    "regoper": ["^@", "0"],
    "regoperator": ["+(integer,integer)", "0"],
    "regproc": ["now", "-"],
    "regprocedure": ["abs(integer)", "-"],
    "regrole": ["pg_monitor", "-"],
    "regtype": ["integer", "timestamp with time zone"],
    "text": ["tab\t newline\n backslash\\ quote' ü 𝄞", ""],
    "tid": ["(0,1)", "(4294967295,65535)"],
    "time": ["24:00:00", "00:00:00.000001"],
    "timestamp": ["infinity", "4713-01-01 00:00:00 BC"],
    "timestamptz": ["-infinity", "2024-02-29 12:34:56.789012+05:30"],
    "timetz": ["24:00:00-15:59", "12:34:56.7+05:30"],
    "tsmultirange": ["{[2024-01-01 01:02:03.4,2024-01-02)}", "{}"],
    "tsquery": ["'it''s' & !b:*A | c <-> d", ""],
    "tsrange": ["[2024-01-01 01:02:03.4,)", "empty"],
    "tstzmultirange": ["{[2024-01-01 01:02:03.4+00,2024-01-02 00:00:00+00)}", "{}"],
    "tstzrange": ["[2024-01-01 01:02:03.4+00,)", "empty"],
    "tsvector": ["'it''s':1A,3 word:2", ""],
    "txid_snapshot": ["10:20:10,14,15", "1:1:"],
    "uuid": ["00000000-0000-0000-0000-000000000001", "ffffffff-ffff-ffff-ffff-ffffffffffff"],
    "varbit": ["10110", ""],
    "varchar": ["v", ""],
    "xid": ["4294967295", "3"],
    "xid8": ["18446744073709551615", "3"],
    "xml": [None, None],  # a server may have been built without it
}

# What statistics and indexes keep in the catalogue: nobody can write a value of these.
INTERNAL = {"gtsvector", "pg_brin_bloom_summary", "pg_brin_minmax_multi_summary", "pg_dependencies", "pg_mcv_list"}
INTERNAL |= {"pg_ndistinct", "pg_node_tree"}

EVERY_TYPE = """
select typname from pg_type
where typnamespace = 'pg_catalog'::regnamespace and typtype in ('b', 'r', 'm') and typcategory != 'A'
order by typname collate "C"
"""

TIED = """
create table shop.kinds (id int primary key, name text unique);
create table shop.parts (
    kind int not null references shop.kinds on update cascade, made date, number int, primary key (kind, made, number)
) partition by list (kind);
create table shop.parts_1 partition of shop.parts for values in (1) partition by range (made);
create table shop.parts_1_old partition of shop.parts_1 for values from (minvalue) to ('2024-01-01');
create table shop.parts_1_new partition of shop.parts_1 default;
create table shop.parts_2 partition of shop.parts default;
create table shop.uses (
    id bigint generated always as identity primary key,
    kind int, made date, number int, parent bigint references shop.uses,
    foreign key (kind, made, number) references shop.parts on update cascade on delete cascade
);
create table shop.animals (id int primary key, name text);
create table shop.birds (wings int, primary key (id)) inherits (shop.animals);
insert into shop.kinds values (1, 'one'), (2, 'two'), (3, 'three');
insert into shop.parts select 1 + n % 3, date '2023-12-01' + n % 60, n from generate_series(1, 300) n;
insert into shop.uses (kind, made, number, parent)
    select kind, made, number, case when number > 1 then 1 end from shop.parts order by number;
insert into shop.animals values (1, 'cow');
insert into shop.birds values (1, 'wren', 2), (2, 'owl', 2)
"""

TIED_CHANGES = """
update shop.parts set made = made + 40 where number % 7 = 0;
update shop.parts set kind = 3 - kind where kind < 3 and number % 5 = 0;
update shop.kinds set id = id + 10 where id = 3;
update shop.kinds set name = null where id = 1; update shop.kinds set name = 'one' where id = 2; update shop.kinds
    set name = 'two' where id = 1;
delete from shop.parts where number % 11 = 0;
insert into shop.parts select 1, '2020-01-01', n from generate_series(1000, 1100) n;
insert into shop.uses (kind, made, number) select 1, '2020-01-01', n from generate_series(1000, 1050) n;
update shop.animals set name = upper(name);
delete from only shop.animals;
insert into shop.birds values (3, 'kiwi', 0)
"""


def _tables_of_every_type(url: str) -> list[str]:
    """Make one table with a column of each type, and one with arrays; return what columns they have."""
    with psycopg.connect(url, autocommit=True) as connection:
        types = [name for (name,) in connection.execute(EVERY_TYPE)]
        assert set(types) - INTERNAL <= VALUES.keys(), "the server has a type that this test does not know"
        types = [name for name in types if name not in INTERNAL]
        scalars = ", ".join(f'"{name}" pg_catalog."{name}"' for name in types)
        arrays = ", ".join(f'"{name}" pg_catalog."{name}"[]' for name in types)
        connection.execute("create schema shop")
        connection.execute(f"create table shop.scalars (id int primary key, {scalars})".encode())
        connection.execute(f"create table shop.arrays (id int primary key, {arrays})".encode())
        connection.execute(f"create table shop.keyless (id int, {scalars})".encode())
        connection.execute("alter table shop.keyless replica identity full")
    return types


def _write_every_type(url: str, types: list[str], first: int) -> None:
    """Insert rows with the first values, the second ones, and nulls; then exchange them in some of the rows."""
    rows: list[list[str | None]] = [[VALUES[name][0] for name in types], [VALUES[name][1] for name in types]]
    rows.append([None for _ in types])
    names = ", ".join(f'"{name}"' for name in types)
    given = ", ".join(f'%s::pg_catalog."{name}"' for name in types)
    listed = ", ".join(f'array[%s, null]::pg_catalog."{name}"[]' for name in types)
    swapped = ", ".join(f'"{name}" = o."{name}"' for name in types)
    with psycopg.connect(url) as connection:
        for number, row in enumerate(rows * 2, first):
            for table, form in (("scalars", given), ("keyless", given), ("arrays", listed)):
                connection.execute(
                    f"insert into shop.{table} (id, {names}) values ({number}, {form})".encode(), row, prepare=False
                )
        connection.commit()
        for table in ("scalars", "keyless", "arrays"):
            for into, other in ((first, first + 1), (first + 1, first + 2), (first + 2, first)):
                connection.execute(
                    f"update shop.{table} t set {swapped} from shop.{table} o"
                    f" where t.id = {into} and o.id = {other}".encode()
                )
            connection.execute(f"update shop.{table} set id = -id where id = {first + 3}".encode())
            connection.execute(f"delete from shop.{table} where id = {first + 4}".encode())


def test_every_type_in_tables_that_are_tied_partitioned_and_inherited(project: Project) -> None:
    types = _tables_of_every_type(project.source)
    with psycopg.connect(project.source, autocommit=True) as connection:
        for statement in TIED.split(";\n"):
            connection.execute(statement.encode())
    _write_every_type(project.source, types, 1)
    project.write()
    project.succeed("run", str(project.file), "--until-caught-up")
    assert project.differences() == []

    _write_every_type(project.source, types, 101)
    with psycopg.connect(project.source, autocommit=True) as connection:
        for statement in TIED_CHANGES.split(";\n"):
            connection.execute(statement.encode())
    project.succeed("run", str(project.file), "--until-caught-up")
    assert project.differences() == []
    assert one(project.target, "select count(*) from shop.birds") == 3


def test_pgbench_under_its_own_load(project: Project) -> None:
    """Four tables, one without key, loaded and followed while four clients of pgbench write to them."""
    pgbench = [str(install(16) / "bin" / "pgbench"), project.source]
    subprocess.run([*pgbench, "-i", "-q", "-s", "2", "--foreign-keys"], check=True, capture_output=True, timeout=60)
    project.write(tables="public.pgbench_*")
    load = subprocess.Popen(
        [*pgbench, "-n", "-c", "4", "-t", "1000"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        project.succeed("run", str(project.file), "--until-caught-up")
        assert load.wait(60) == 0
    finally:
        load.kill()
        load.wait()
    project.succeed("run", str(project.file), "--until-caught-up")
    assert [str(difference) for difference in compare(project.source, project.target, ["public.*"])] == []
    assert one(project.target, "select count(*) from pgbench_history") == 4000
