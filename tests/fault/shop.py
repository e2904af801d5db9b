"""A small schema with everything that is hard to replicate, and an application that survives any loss of its server."""

from __future__ import annotations

import contextlib
import random
import threading
import time
from collections.abc import Callable

import psycopg

TABLES = ["app.*"]
TOTAL = 100_000
"""What the accounts hold together: transfers leave it alone, so a target that shows another sum was never a state."""

SCHEMA = """
create schema app;
set search_path = app;

create table customers (
    id bigint primary key, email text not null unique, bio text, seen int not null default 0
);
alter table customers alter column bio set storage external;

create table orders (
    id bigint primary key, customer bigint not null references customers, total numeric(12, 2) not null, note text
);

create table items (
    order_id bigint not null references orders on delete cascade on update cascade,
    line int not null, quantity int not null,
    primary key (order_id, line)
);

-- A chunk for each partition, and rows that move from one to another.
create table ledger (region int not null, id bigint not null, body text, n int not null, primary key (region, id))
    partition by list (region);
alter table ledger alter column body set storage external;

create table events (at timestamptz not null, what text, n int);
alter table events replica identity full;

create table accounts (id int primary key, balance bigint not null);
"""

PARTITION = "create table ledger_{0} partition of ledger for values in ({0})"

FILL = """
insert into customers select g, 'c' || g || '@example.com', repeat(md5(g::text), 90), 0
  from generate_series(1, {rows} / 5) g;
insert into orders select g, 1 + g % ({rows} / 5), g / 7.0, md5(g::text) from generate_series(1, {rows}) g;
insert into items select g, line, g % 9 from generate_series(1, {rows}) g, generate_series(1, 2) line;
insert into ledger select g % 12, g, case when g % 4 = 0 then repeat(md5(g::text), 80) else md5(g::text) end, 0
  from generate_series(1, {rows}) g;
insert into events select timestamptz '2025-01-01' + g % 50 * interval '1 hour', 'event ' || g % 30, g % 7
  from generate_series(1, {rows} / 2) g;
insert into accounts select g, {total} / 100 from generate_series(1, 100) g;
analyze;
"""


def fill(url: str, rows: int = 3_000) -> None:
    """Make the schema `app`, with about six times so many rows."""
    statements = SCHEMA + ";".join(PARTITION.format(region) for region in range(12)) + ";"
    statements += FILL.format(rows=rows, total=TOTAL)
    with contextlib.closing(psycopg.connect(url, autocommit=True)) as connection:
        connection.execute(statements.encode())


class Traffic(threading.Thread):
    """An application: short transactions of every kind, some of them rolled back, `rate` a second until stopped.

    Whatever ends its connection, it comes back and goes on; it keeps nothing in mind that a lost commit makes wrong.
    """

    def __init__(self, url: str, *, rate: float = 250.0, seed: int = 1, rows: int = 3_000) -> None:
        super().__init__(name="traffic", daemon=True)
        self._url, self._pause, self._rows = url, 1.0 / rate, rows
        self._chance = random.Random(seed)
        self._ending = threading.Event()
        self._error: BaseException | None = None
        self._fresh = 10_000_000
        self.commits = 0
        self.reconnects = -1
        self.longest = 0.0  # seconds that a transaction took
        self.start()

    def stop(self) -> None:
        """Let the last transaction end; raise what the application did not expect."""
        self._ending.set()
        self.join(30)
        assert not self.is_alive(), "the source holds the traffic up"
        if self._error is not None:
            raise self._error

    def run(self) -> None:
        try:
            while not self._ending.is_set():
                try:
                    with contextlib.closing(psycopg.connect(self._url, autocommit=True)) as connection:
                        connection.prepare_threshold = None
                        connection.execute("set search_path = app")
                        self.reconnects += 1
                        self._work(connection)
                except (psycopg.OperationalError, psycopg.errors.IdleInTransactionSessionTimeout):
                    self._ending.wait(0.02)  # no server to connect to yet
        except BaseException as error:
            self._error = error

    def _work(self, connection: psycopg.Connection) -> None:
        while not self._ending.is_set():
            began = time.monotonic()
            try:
                self._transact(connection)
                self.commits += 1
            except psycopg.IntegrityError:
                pass  # an order without customer, a key that is taken: as in any application
            self.longest = max(self.longest, time.monotonic() - began)
            self._ending.wait(self._pause)

    def _transact(self, connection: psycopg.Connection) -> None:
        chance = self._chance
        self._fresh += 1
        some: Callable[[], int] = lambda: chance.randrange(1, self._rows + 1)  # noqa: E731
        values = {
            "new": self._fresh,
            "order": chance.choice([some(), self._fresh - chance.randrange(1, 400)]),
            "customer": chance.randrange(1, self._rows // 5 + 1),
            "row": some(),
            "region": chance.randrange(12),
            "from": chance.randrange(1, 101),
            "to": chance.randrange(1, 101),
            "n": chance.randrange(1, 50),
        }
        what = chance.choices(_ACTIONS, _WEIGHTS)[0]
        with connection.transaction(force_rollback=chance.random() < 0.1):
            for statement in what:
                connection.execute(statement.encode(), values)


_ACTIONS = [
    [
        "insert into orders values (%(new)s, %(customer)s, %(n)s, null)",
        "insert into items select %(new)s, line, %(n)s from generate_series(1, 3) line",
    ],
    ["update orders set total = total + 1, note = note || 'x' where id = %(order)s"],
    # A key change that cascades, and a delete that does.
    ["update orders set id = %(new)s where id = %(order)s"],
    ["delete from orders where id = %(order)s"],
    # What is stored out of line stays as it is, and is not sent; then it is changed.
    ["update customers set seen = seen + 1 where id = %(customer)s"],
    ["update customers set bio = repeat(md5(%(new)s::text), 100) where id = %(customer)s"],
    # A unique value that moves from one row to another.
    [
        "update customers set email = 'free' || id || '@example.com' where id = %(customer)s",
        "update customers set email = 'c' || %(customer)s || '@example.com' where id = 1 + %(customer)s / 2",
    ],
    ["update ledger set n = n + 1 where region = %(region)s and id %% 60 = %(n)s"],
    ["update ledger set region = (region + %(n)s) %% 12 where id = %(row)s"],
    ["update ledger set id = %(new)s where id = %(row)s"],
    ["delete from ledger where region = %(region)s and id = %(row)s"],
    ["insert into ledger values (%(region)s, %(new)s, repeat(md5(%(new)s::text), %(n)s * 3), 0)"],
    ["insert into events values (now(), 'event ' || %(n)s, %(n)s), (timestamptz '2025-01-01', 'twin', 1)"],
    ["update events set n = n + 1 where what = 'event ' || %(n)s and n = 3"],
    ["delete from events where ctid in (select ctid from events where n = %(n)s limit 2)"],
    [
        "update accounts set balance = balance - %(n)s where id = %(from)s",
        "update accounts set balance = balance + %(n)s where id = %(to)s",
    ],
]
_WEIGHTS = [20, 10, 3, 3, 8, 2, 3, 4, 4, 2, 3, 6, 8, 1, 2, 20]
