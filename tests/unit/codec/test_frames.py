"""Framed blocks."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from codec import frames
from schemas.errors import DecodeError
from tests.twin import records
from tests.unit.codec.strategies import unhurried

part = st.one_of(st.none(), st.binary(max_size=20))
blocks = st.lists(st.tuples(part, part), max_size=6)


@unhurried
@given(blocks, st.sampled_from([bytes, bytearray, memoryview]))
def test_blocks_hold_what_was_put_in(content: list[frames.Record], form: type) -> None:
    block = frames.pack(iter(content))
    assert block == records.frames(content)
    assert frames.unpack(form(block)) == content
    assert frames.views(block) == content
    assert frames.count(form(block)) == len(content)
    for skip in range(len(content) + 1):
        for take in range(len(content) - skip + 1):
            assert frames.cut(form(block), skip, take) == frames.pack(content[skip : skip + take])
        with pytest.raises(DecodeError):
            frames.cut(block, skip, len(content) - skip + 1)


@unhurried
@given(blocks)
def test_a_block_that_is_cut_off_is_refused(content: list[frames.Record]) -> None:
    block = frames.pack(content)
    ends = {len(frames.cut(block, 0, taken)) for taken in range(len(content) + 1)}
    for size in set(range(len(block))) - ends:
        for read in (frames.unpack, frames.count):
            with pytest.raises(DecodeError):
                read(block[:size])


@unhurried
@given(st.binary(max_size=60))
def test_random_bytes_raise_nothing_but_our_errors(noise: bytes) -> None:
    for read in (frames.unpack, frames.count, frames.schema_ids):
        with contextlib.suppress(DecodeError):
            read(noise)


def test_schema_ids_are_those_of_the_values() -> None:
    block = frames.pack([(None, records.prefix(64) + b"x"), (b"k", None), (None, records.prefix(2**32 - 2))])
    assert frames.schema_ids(block) == {64, 2**32 - 2}
    with pytest.raises(DecodeError):
        frames.schema_ids(frames.pack([(None, b"\1\0\0\0\1")]))


def test_cutting_wants_counts() -> None:
    with pytest.raises(ValueError, match="counts"):
        frames.cut(b"", -1, 1)


@unhurried
@given(st.one_of(st.none(), st.binary(max_size=5)), st.lists(st.binary(max_size=20)))
def test_a_value_that_comes_in_parts_is_framed_as_one(key: bytes | None, parts: list[bytes]) -> None:
    assert frames.pack_parts(key, iter(parts)) == frames.pack([(key, b"".join(parts))])
