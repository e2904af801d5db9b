"""Changes that hang together, and the search for those that are refused."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence

import pytest

from apply.dead_letters import MOST_REFUSED, PARTS, Bundle, Keyed, Refusal, Tray, Waiting, bundles, sift
from apply.target import TableRefused
from codec.layout import Layout
from schemas.errors import ConstraintViolated
from schemas.table import TableId
from schemas.types import Kind


def change(key: int, origin: int | None = None) -> Keyed:
    return str(key).encode(), None if origin is None else str(origin).encode(), b""


class Table:
    """Takes rows by their keys, and counts how many it was given."""

    def __init__(self, refuses: Callable[[set[int]], bool], *, collides: bool = False) -> None:
        self._refuses, self._collides = refuses, collides
        self.rows: set[int] = set()
        self.given = 0

    def attempt(self, some: Sequence[Bundle]) -> Refusal | None:
        keys = {int(key) for bundle in some for key, _, _ in bundle}
        self.given += len(keys)
        if self._refuses(self.rows | keys):
            return Refusal(ConstraintViolated("no"), self._collides)
        self.rows |= keys
        return None


def refused(table: Table, changes: Sequence[Keyed]) -> list[int]:
    return [int(bundle[0][0]) for bundle, _ in sift(bundles(changes), table.attempt, refused_together=False)]


def test_changes_that_share_a_key_old_or_new_hang_together() -> None:
    made = [change(1), change(2), change(3, 1), change(4), change(2), change(5, 4), change(4, 3)]
    assert bundles(made) == [[made[0], made[2], made[3], made[5], made[6]], [made[1], made[4]]]
    assert bundles([]) == []


def test_bundles_are_those_of_a_plain_search() -> None:
    for seed in range(200):
        rng = random.Random(seed)
        made = [
            change(rng.randrange(12), rng.choice([None, None, rng.randrange(12)])) for _ in range(rng.randrange(15))
        ]
        groups: list[set[bytes]] = []
        for key, origin, _ in made:
            touched = {key, *([origin] if origin is not None else [])}
            joined = [group for group in groups if group & touched]
            groups = [group for group in groups if not group & touched] + [touched.union(*joined)]
        found = bundles(made)
        assert Counter(entry for bundle in found for entry in bundle) == Counter(made)
        for bundle in found:
            [group] = [group for group in groups if bundle[0][0] in group]
            assert bundle == [entry for entry in made if entry[0] in group]


def test_one_row_of_fifty_thousand_is_found_with_little_more_than_one_batch() -> None:
    table = Table(lambda keys: 31_415 in keys)
    assert refused(table, [change(at) for at in range(50_000)]) == [31_415]
    assert len(table.rows) == 49_999
    assert table.given < 50_000 + 50_000 * (1 + 2 / PARTS)


def test_all_refused_rows_are_found_wherever_they_stand() -> None:
    bad = set(random.Random(1).sample(range(3000), 70))
    table = Table(lambda keys: bool(keys & bad))
    assert refused(table, [change(at) for at in range(3000)]) == sorted(bad)
    assert table.rows == set(range(3000)) - bad


def test_rows_that_are_accepted_only_together_are_not_refused() -> None:
    table = Table(lambda keys: 5 in keys or len(keys & {2, 700}) == 1, collides=True)
    assert refused(table, [change(at) for at in range(1000) if at != 5]) == []
    assert len(table.rows) == 999


def test_more_refused_rows_than_a_batch_may_have_are_not_searched_for() -> None:
    table = Table(bool, collides=True)
    tray = Tray(TableId("public", "t"), Waiting(), keeps=True, sifts=True, where="chunk 0")
    layout = Layout(101, [Kind.INT64], [])
    head = b"\0\0\0\0\x65" + bytes(9)
    made = [(str(at).encode(), None, head) for at in range(20_000)]
    with pytest.raises(TableRefused, match=f"more than {MOST_REFUSED} rows"):
        tray.sift(layout, made, table.attempt, refused_together=True)
    assert table.given < 20_000 * 6
