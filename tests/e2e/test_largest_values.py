"""Values so large that a log keeps each in many pieces: here of 64 MB, in `make bench` of 256."""

import psycopg
import pytest

from tests.e2e.conftest import Project

VALUE = "repeat((select string_agg(md5((g + {seed})::text), '') from generate_series(1, 32768) g), 64)"
SAME = b"select id, n, length(v), md5(v) from shop.large order by id"


@pytest.mark.slow
def test_large_values_are_loaded_and_followed(project: Project) -> None:
    with psycopg.connect(project.source, autocommit=True) as source:
        source.execute(b"create schema shop")
        source.execute(b"create table shop.large (id int primary key, n int, v text)")
        source.execute(b"alter table shop.large alter v set storage external")
        first, second = (VALUE.format(seed=seed) for seed in (0, 7))
        source.execute(f"insert into shop.large values (1, 0, {first}), (2, 0, 'small')".encode())
        project.write()
        project.succeed("run", str(project.file), "--until-caught-up")
        source.execute(f"insert into shop.large values (3, 0, {second})".encode())
        source.execute(b"update shop.large set n = 1")
        project.succeed("run", str(project.file), "--until-caught-up")
        with psycopg.connect(project.target) as target:
            assert target.execute(SAME).fetchall() == source.execute(SAME).fetchall()
