"""A shop for the demo and the tests: a schema with a bit of everything, and an application that writes to it."""

from __future__ import annotations

import contextlib
import multiprocessing
import random
import signal
import time
from collections.abc import Iterator
from importlib.resources import files
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from multiprocessing.sharedctypes import Synchronized
    from multiprocessing.synchronize import Event

    import psycopg


def fill(url: str, rows: int) -> None:
    """Make the schema `shop` with about so many rows."""
    with _connected(url) as connection:
        for statement in _statements(rows):
            connection.execute(statement)


def _statements(rows: int) -> Iterator[bytes]:
    text = files("control").joinpath("shop.sql").read_text().replace("{rows}", str(rows))
    code = "\n".join(line for line in text.splitlines() if not line.startswith("--"))
    for statement in code.split(";\n"):
        if statement.strip():
            yield statement.encode()


class Traffic:
    """A process that writes to a shop: short transactions of every kind, `rate` of them a second, until stopped."""

    def __init__(self, url: str, rate: float, seed: int = 1) -> None:
        context = multiprocessing.get_context("spawn")
        self._stop = context.Event()
        self._committed = context.Value("q", 0)
        arguments = (url, rate, seed, self._stop, self._committed)
        self._process = context.Process(target=_write, args=arguments, daemon=True)
        self._process.start()

    @property
    def transactions(self) -> int:
        """How many were committed."""
        return int(self._committed.value)

    def stop(self) -> None:
        """Let the last transaction end. Raises `RuntimeError` if the application has failed."""
        self._stop.set()
        self._process.join()
        if self._process.exitcode:
            raise RuntimeError(f"the traffic ended with {self._process.exitcode}")

    def close(self) -> None:
        """End it, whatever it does; does nothing to one that was stopped."""
        if self._process.is_alive():
            self._process.kill()
        self._process.join()


def _write(url: str, rate: float, seed: int, stop: Event, committed: Synchronized[int]) -> None:
    """Be the shop's application: short transactions of every kind, `rate` of them a second, until told to stop."""
    import psycopg

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    chance = random.Random(seed)
    with _connected(url) as connection:
        connection.execute("set search_path = shop")
        (last_order,) = connection.execute("select max(id) from orders").fetchone() or (0,)
        (customers,) = connection.execute("select count(*) from customers").fetchone() or (0,)
        (products,) = connection.execute("select count(*) from products").fetchone() or (0,)
        began, number = time.monotonic(), 0
        while not stop.is_set():
            number += 1
            late = began + number / rate - time.monotonic()
            if late > 0:
                stop.wait(late)
            what = _ACTIONS[chance.choices(range(len(_ACTIONS)), _WEIGHTS)[0]]
            values = {
                "new": last_order + number,
                "order": chance.randrange(1, last_order + number),
                "customer": chance.randrange(1, customers + 1),
                "sku": f"SKU-{chance.randrange(1, products + 1)}",
                "other": f"SKU-{chance.randrange(1, products + 1)}",
                "n": number,
            }
            try:
                with connection.transaction():
                    for statement in what:
                        connection.execute(statement.encode(), values)
                committed.value += 1
            except psycopg.errors.IntegrityError:
                pass  # a product that was renamed, an order that is gone: as in any shop


_BUY = [
    "insert into orders values (%(new)s, now(), %(customer)s, 'new', null, 10)",
    "insert into order_items select %(new)s, now(), n, sku, n, price from products, generate_series(1, 3) n"
    " where sku = %(sku)s",
    "update stock set amount = amount - 1 where sku = %(sku)s",
]
_ACTIONS: list[list[str]] = [
    _BUY,
    ["update orders set status = 'paid', total = total + 1 where id = %(order)s"],
    ["update orders set note = repeat('long ' || md5(%(n)s::text), 200) where id = %(order)s"],
    ["delete from order_items where order_id = %(order)s and line = 2"],
    ["delete from orders where id = %(order)s"],
    # A key change that cascades into two other tables.
    ["update products set sku = sku || '-' || %(n)s::text where sku = %(sku)s"],
    # What is unique moves on, and comes back to somebody else.
    [
        "update customers set email = 'free-' || id::text || '-' || %(n)s::text where id = %(customer)s",
        "update customers set email = 'taken-' || %(n)s::text where id = 1 + %(customer)s / 2",
        "update customers set tags = tags || '{moved}'::text[], address = address || '{\"zip\": 0}'"
        " where id = %(customer)s",
    ],
    # An order that moves to another partition.
    ["update orders set created = created + interval '400 days' where id = %(order)s"],
    ["insert into visits values (now(), gen_random_uuid(), '/sale/' || %(n)s::text, '1 second', '::1')"],
    ["update visits set page = '/seen' where session = md5((%(order)s / 10)::text)::uuid"],
    ["delete from visits where session = md5((%(order)s / 9)::text)::uuid"],
]
_WEIGHTS = [30, 20, 4, 6, 3, 2, 6, 3, 20, 1, 1]


@contextlib.contextmanager
def _connected(url: str) -> Iterator[psycopg.Connection]:
    import psycopg

    with contextlib.closing(psycopg.connect(url, autocommit=True)) as connection:
        yield connection
