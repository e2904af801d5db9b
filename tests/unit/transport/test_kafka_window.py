"""What a Kafka reader keeps of a partition, against the plain list of its records."""

from hypothesis import given
from hypothesis import strategies as st

from codec.frames import unpack
from tests.unit.codec.strategies import unhurried
from transport.kafka.feed import BLOCK_BYTES, Window

steps = st.lists(st.tuples(st.sampled_from([1, 1, 1, 2, 5]), st.lists(st.integers(0, 300), min_size=1)), max_size=12)


def filled(steps: list[tuple[int, list[int]]]) -> tuple[Window, dict[int, bytes]]:
    """A window that got some records at a time, with holes between where the distance is larger than one."""
    window, offset = Window(10, 10, 0.0), 9
    plain: dict[int, bytes] = {}
    for distance, sizes in steps:
        start = offset + distance
        values = [bytes(size) for size in sizes]
        assert window.add(start, [(None, value) for value in values]) == sum(sizes) + 8 * len(sizes)
        plain.update(enumerate(values, start))
        offset = start + len(sizes) - 1
        assert window.at == offset + 1
    return window, plain


@unhurried
@given(steps, st.integers(10, 60), st.integers(1, 40))
def test_what_is_taken_piece_by_piece_is_all_there_is_up_to_the_first_hole(
    steps: list[tuple[int, list[int]]], start: int, length: int
) -> None:
    window, plain = filled(steps)
    there = []
    for offset in range(start, start + length):
        if offset not in plain:
            break
        there.append(plain[offset])
    taken: list[bytes | None] = []
    while found := window.take(start + len(taken), start + length) if len(taken) < length else None:
        values = [value for _, value in unpack(found.data)]
        assert 0 < len(values) == found.end - found.start
        taken += values
    assert taken == there


@unhurried
@given(steps, st.integers(5, 60), st.integers(1, 20))
def test_what_is_forgotten_is_what_was_before(steps: list[tuple[int, list[int]]], below: int, limit: int) -> None:
    window, plain = filled(steps)
    before = window.size
    assert before == sum(len(value) + 8 for value in plain.values())
    assert window.forget(below) == before - window.size
    assert window.low == max(10, below)
    kept = [(offset, value) for offset, value in plain.items() if offset >= below]
    assert [(r.offset, r.value) for r in window.records(below, limit)] == kept[:limit]
    assert window.holds(below) == bool(kept)


def test_what_is_kept_in_one_piece_is_no_larger_than_a_block_or_one_record() -> None:
    window, sizes = Window(0, 0, 0.0), [BLOCK_BYTES // 3] * 7 + [3 * BLOCK_BYTES, 1]
    window.add(0, [(b"", bytes(size)) for size in sizes])
    counts, at = [], 0
    while found := window.take(at, len(sizes)):
        counts.append(found.end - found.start)
        at = found.end
    assert counts == [3, 3, 1, 1, 1]
    assert [len(record.value or b"") for record in window.records(0, 100)] == sizes


def test_large_records_are_forgotten_when_they_are_wholly_passed() -> None:
    window = Window(0, 0, 0.0)
    window.add(0, [(None, bytes(BLOCK_BYTES))] * 3)
    assert window.forget(2) == 2 * (BLOCK_BYTES + 8)
    assert window.take(1, 3) is None
