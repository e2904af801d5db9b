import pytest

from capture.partitions import grown, overlap, renamed_leaf
from schemas.table import Definition, Leaf, Partitioned, Table, TableId


@pytest.mark.parametrize(
    ("one", "other", "both"),
    [
        ("FOR VALUES FROM (0) TO (100)", "FOR VALUES FROM (100) TO (200)", False),
        ("FOR VALUES FROM (0) TO (100)", "FOR VALUES FROM (99) TO (200)", True),
        ("FOR VALUES FROM ('900') TO ('1000')", "FOR VALUES FROM ('1000') TO ('1100')", False),
        ("FOR VALUES FROM ('-5') TO (5)", "FOR VALUES FROM (MINVALUE) TO ('-4')", True),
        ("FOR VALUES FROM ('-5') TO (5)", "FOR VALUES FROM (MINVALUE) TO ('-5')", False),
        ("FOR VALUES FROM (5) TO (MAXVALUE)", "FOR VALUES FROM (4) TO (6)", True),
        ("FOR VALUES FROM ('2024-01-01') TO ('2024-02-01')", "FOR VALUES FROM ('2024-02-01') TO ('2025-01-01')", False),
        ("FOR VALUES FROM (1, 'a (') TO (1, 'it''s, ')", "FOR VALUES FROM (1, 'b') TO (1, 'c')", True),
        ("FOR VALUES FROM (1, MINVALUE) TO (1, 'b')", "FOR VALUES FROM (1, 'b') TO (1, MAXVALUE)", False),
        ("FOR VALUES FROM (1, MINVALUE, MINVALUE) TO (1, 'b', 1)", "FOR VALUES FROM (0, 'x', 1) TO (2, 'x', 1)", True),
        ("FOR VALUES IN ('a', NULL)", "FOR VALUES IN ('b', NULL)", True),
        ("FOR VALUES IN ('a', 'b''(,')", "FOR VALUES IN ('c', 'b')", False),
        ("FOR VALUES WITH (modulus 2, remainder 1)", "FOR VALUES WITH (modulus 4, remainder 3)", True),
        ("FOR VALUES WITH (modulus 2, remainder 0)", "FOR VALUES WITH (modulus 4, remainder 3)", False),
        ("DEFAULT", "FOR VALUES IN ('a')", False),
        ("DEFAULT", "DEFAULT", True),
    ],
)
def test_bounds_overlap_if_they_have_values_in_common(one: str, other: str, both: bool) -> None:
    assert overlap(one, other) is overlap(other, one) is both


def table(*parts: tuple[int, str, str, int], name: str = "t") -> Table:
    """Return a table with partitions by number, name, parent and where they begin; each holds a hundred numbers."""
    partitions = tuple(
        Partitioned(
            id=TableId("s", part),
            parent=TableId("s", parent),
            bound=f"FOR VALUES FROM ({low}) TO ({low + 100})",
            oid=oid,
            partition_key="range (id)" if part.startswith("sub") else "",
        )
        for oid, part, parent, low in parts
    )
    leaves = tuple(Leaf(id=p.id, oid=p.oid) for p in partitions if not p.partition_key)
    return Table(id=TableId("s", name), columns=(), leaves=leaves, definition=Definition(partitions=partitions), oid=1)


def names(table: Table) -> tuple[list[str], list[str]]:
    return [p.id.name for p in table.definition.partitions], [leaf.id.name for leaf in table.leaves]


def test_what_is_gone_from_the_catalogue_stays_unless_it_is_in_the_way_of_what_has_come() -> None:
    last = table((2, "a", "t", 0), (3, "b", "t", 100), (4, "c", "t", 200))
    fresh = table((5, "d", "t", 200), (6, "e", "t", 300))
    assert names(grown(last, fresh, 6, TableId("s", "e"))) == (["a", "b", "c", "e"],) * 2
    assert names(grown(last, fresh, 5, TableId("s", "d"))) == (["a", "b", "d"],) * 2
    # The stream knows what it was called then; the name of one that has gone may be taken again.
    assert names(grown(last, fresh, 6, TableId("s", "a"))) == (["b", "c", "a"],) * 2
    # What is there still is there under any name.
    moved = table((2, "other", "t", 0), (3, "b", "t", 100), (4, "c", "t", 200), (6, "e", "t", 300))
    assert names(grown(last, moved, 6, TableId("s", "e"))) == (["a", "b", "c", "e"],) * 2


def test_a_leaf_comes_with_what_it_is_a_part_of_and_what_goes_takes_its_own_along() -> None:
    last = table((2, "a", "t", 0), (3, "sub", "t", 100), (4, "x", "sub", 100), name="old")
    fresh = table((2, "a", "u", 0), (5, "sub_2", "u", 100), (6, "y", "sub_2", 100), (7, "new", "sub_2", 150))
    after = grown(last, fresh, 6, TableId("s", "y"))
    assert names(after) == (["a", "sub_2", "y"], ["a", "y"])
    assert [p.parent.name for p in after.definition.partitions] == ["t", "u", "sub_2"]


def test_a_name_that_a_partition_gets_is_not_another_one_s_any_more() -> None:
    last = table((2, "a", "t", 0), (3, "b", "t", 100))
    assert names(renamed_leaf(last, last, 2, TableId("s", "c"))) == (["c", "b"],) * 2
    exchanged = table((2, "b", "t", 0), (3, "a", "t", 100))
    assert names(renamed_leaf(last, exchanged, 2, TableId("s", "b"))) == (["b", "a"],) * 2
    assert names(renamed_leaf(last, table((2, "b", "t", 0)), 2, TableId("s", "b"))) == (["b"],) * 2
