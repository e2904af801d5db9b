"""A table that capture can't carry stops alone, on every target, and comes back by a reload that misses nothing."""

import contextlib
import json
import os
import signal
import threading
from collections.abc import Iterator

import psycopg

from tests.ddl.conftest import Followed
from tests.e2e.conftest import Project
from tests.integration.capture.test_left_out import ODD_TYPE

ODD = [statement.replace("public.", "shop.") for statement in ODD_TYPE]


@contextlib.contextmanager
def busy(followed: Followed) -> Iterator[None]:
    """Change both tables all the time, in transactions that follow each other without a pause."""
    over = threading.Event()

    def work() -> None:
        number = 10_000
        with psycopg.connect(followed.project.source) as source:
            while not over.is_set():
                number += 1
                source.execute("insert into shop.bent (id) values (%s)", [number])
                source.execute("update shop.bent set note = note || 'x' where id = %s", [number - 3])
                source.execute("insert into shop.calm values (%s)", [number])
                source.commit()

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def test_a_table_that_capture_can_not_carry_stops_alone_and_is_loaded_anew(simple: Project) -> None:
    followed = Followed(simple)
    followed.do(
        "create schema shop",
        *ODD,
        "create table shop.bent (id int primary key, note text default 'n')",
        "create table shop.calm (id int primary key)",
        "insert into shop.bent select g, 'n' from generate_series(1, 1000) g",
    )
    followed.start()
    followed.sync()
    followed.do("insert into shop.bent values (2001, 'the last that is carried')")
    followed.do("alter table shop.bent add o shop.odd", "insert into shop.bent values (2002, 'n', 'x')")
    followed.do("insert into shop.calm values (1)")
    followed.sync()
    state, error, remedy = followed.states()["bent"]
    assert state == "failed" and "type shop.odd is written in C" in error
    assert "penstock reload FILE shop.bent" in remedy
    assert followed.states()["calm"] == ("live", "", "")
    with psycopg.connect(simple.target) as target:
        (last,) = target.execute("select max(id) from shop.bent").fetchone() or (0,)
    assert last == 2001
    told = simple.succeed("events", str(simple.file), "shop.bent")
    assert "is left out from here on" in told and "penstock reload FILE shop.bent" in told
    assert "written in C" in simple.succeed("status", str(simple.file))

    pids = json.loads((simple.state / "pids.json").read_text())
    os.kill(pids["capture"], signal.SIGKILL)
    followed.do("insert into shop.bent values (2003, 'n', 'x')", "insert into shop.calm values (2)")
    followed.sync()
    simple.succeed("resume", str(simple.file), "shop.bent")
    followed.sync()
    assert followed.states()["bent"] == (state, error, remedy)

    followed.do("alter table shop.bent drop o")
    assert "shop.bent: is left out: " in simple.succeed("plan", str(simple.file))
    with busy(followed), psycopg.connect(simple.source) as late:
        late.execute("update shop.bent set note = 'late' where id < 100")  # of a transaction that was there before
        simple.succeed("reload", str(simple.file), "shop.bent")
        events = ("events", str(simple.file), "shop.bent")
        simple.wait_until("capture", lambda: "is carried again" in simple.succeed(*events), followed.run)
        late.commit()
        simple.wait_until("another load", lambda: followed.states()["bent"][0] == "live", followed.run)
    followed.sync()
    assert simple.differences() == []
    followed.stop()
