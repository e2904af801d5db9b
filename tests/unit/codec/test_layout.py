"""Layouts."""

import pickle

import pytest

from codec.layout import Layout
from schemas.types import Kind
from tests.twin.records import Shape


def test_a_layout_is_made_of_a_table() -> None:
    layout = Layout.of(Shape(0, (Kind.TEXT, Kind.INT32), (1,)).table(), 64)
    assert (layout.schema_id, layout.kinds, layout.key, layout.binary) == (64, (Kind.TEXT, Kind.INT32), (1,), True)
    assert not Layout(64, [Kind.OTHER], []).binary


def test_layouts_compare_by_content_and_can_be_pickled() -> None:
    layout = Layout(64, [Kind.TEXT, Kind.INT32], [1])
    assert layout == Layout(64, (Kind.TEXT, Kind.INT32), (1,)) == pickle.loads(pickle.dumps(layout))
    assert layout != Layout(66, [Kind.TEXT, Kind.INT32], [1])
    assert len({layout, Layout(64, (Kind.TEXT, Kind.INT32), (1,))}) == 1


@pytest.mark.parametrize(
    ("schema_id", "kinds", "key"),
    [
        (64, [0], []),
        (64, [17], []),
        (64, [1], [1]),
        (64, [1], [-1]),
        (64, [1], [0, 0]),
        (-1, [1], []),
        (2**32, [1], []),
    ],
)
def test_a_layout_that_makes_no_sense_is_refused(schema_id: int, kinds: list[int], key: list[int]) -> None:
    with pytest.raises(ValueError):
        Layout(schema_id, kinds, key)
