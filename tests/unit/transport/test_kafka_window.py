"""What a Kafka reader keeps of a partition, against the plain list of its records."""

from hypothesis import given
from hypothesis import strategies as st

from transport.kafka.feed import Window

steps = st.lists(st.tuples(st.sampled_from([1, 1, 1, 2, 5]), st.integers(0, 300)), max_size=30)


def filled(steps: list[tuple[int, int]]) -> tuple[Window, dict[int, bytes]]:
    """A window whose records are at distances, holes between those larger than one."""
    window, plain, offset = Window(10, 10, 0.0), {}, 9
    for distance, size in steps:
        offset += distance
        plain[offset] = bytes(size)
        assert window.add(offset, None, plain[offset]) == size + 100
    return window, plain


@given(steps, st.integers(10, 60), st.integers(1, 40), st.integers(0, 2000))
def test_what_is_taken_is_whole_in_order_and_within_its_room(
    steps: list[tuple[int, int]], start: int, length: int, room: int
) -> None:
    window, plain = filled(steps)
    pairs, size = window.take(start, start + length, room)
    there = []
    for offset in range(start, start + length):
        if offset not in plain:
            break
        there.append(plain[offset])
    assert [value for _, value in pairs] == there[: len(pairs)]
    assert size == sum(len(value) + 100 for value in there[: len(pairs)])
    if there:
        assert len(pairs) == 1 or size <= room
        assert len(pairs) == len(there) or size + len(there[len(pairs)]) + 100 > room
    else:
        assert pairs == []


@given(steps, st.integers(5, 60))
def test_what_is_forgotten_is_what_was_before(steps: list[tuple[int, int]], below: int) -> None:
    window, plain = filled(steps)
    before = window.size
    assert before == sum(len(value) + 100 for value in plain.values())
    assert window.forget(below) == before - window.size
    assert window.low == max(10, below)
    assert [(r.offset, r.value) for r in window.records(0, 100)] == [(o, v) for o, v in plain.items() if o >= below]
    assert window.holds(below) == any(offset >= below for offset in plain)
