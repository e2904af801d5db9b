"""What is fuzzed: each decoder, called with any bytes, and what must hold of whatever it accepts.

A decoder may refuse bytes by the errors that its interface names. Anything else it raises, a crash, or a reading that
does not come back the same is a defect. The first byte of an input chooses among `LAYOUTS` where one is needed.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from codec import frames, rows
from codec.copy import HEADER, TRAILER, CopyDecoder, load_rows
from codec.layout import Layout
from codec.net import Net
from codec.pgoutput import RELATION, TRUNCATE, ChangeDecoder
from schemas.errors import ConfigInvalid, DecodeError, GapDetected, OrderViolated, ValueUnsupported
from schemas.pipeline import load_pipeline
from schemas.record import decode_control, encode_control
from schemas.types import Kind

LAYOUTS = (
    Layout(64, list(Kind), [0]),
    Layout(64, [Kind.INT32, Kind.TEXT], [0]),
    Layout(64, [Kind.TEXT, Kind.BYTES, Kind.INT16], [2, 0]),
    Layout(64, [Kind.NUMERIC, Kind.TIMESTAMPTZ, Kind.DATE], [0]),
    Layout(64, [Kind.INT32, Kind.TEXT], []),
    Layout(64, [kind for kind in Kind if kind is not Kind.OTHER], [1]),
    Layout(64, [Kind.FLOAT32, Kind.FLOAT64, Kind.TIME, Kind.UUID, Kind.JSONB, Kind.BOOL], []),
    Layout(64, [], []),
)
VALUE, KEY = b"\0\0\0\0\x40", b"\0\0\0\0\x41"  # how records and keys of schema 64 begin

refused = contextlib.suppress(DecodeError, ValueUnsupported)


def chosen(data: bytes) -> tuple[Layout, bytes]:
    """Return the layout that the first byte names, and the other bytes."""
    return LAYOUTS[data[0] % len(LAYOUTS) if data else 0], data[1:]


def stream(data: bytes) -> None:
    """Messages of the replication stream, each behind its length of two bytes; relation n is read by layout n."""
    decoder = ChangeDecoder(7, 1000)
    for message in messages(data):
        with refused:
            event = decoder.feed(message)
            if event == RELATION:
                oid = decoder.relation.oid
                if oid % 16 < len(LAYOUTS):
                    decoder.bind(oid, LAYOUTS[oid % 16], oid % 16)
                else:
                    decoder.ignore(oid)
            elif event == TRUNCATE:
                for oid in decoder.truncated[1]:
                    decoder.append_truncate(oid, False)
    for slot, (count, block, _) in decoder.take().items():
        records = frames.unpack(block)
        assert len(records) == count
        for key, value in records:
            assert value is not None
            rows.decode(LAYOUTS[slot], value)
            if key is not None:
                rows.decode_key(LAYOUTS[slot], key)


def messages(data: bytes) -> Iterator[bytes]:
    while data:
        size = int.from_bytes(data[:2], "big")
        yield data[2 : 2 + size]
        data = data[2 + size :]


def copy_text(data: bytes) -> None:
    layout, data = chosen(data)
    _copy(layout, data, binary=False)


def copy_binary(data: bytes) -> None:
    layout, data = chosen(data)
    _copy(layout, HEADER + data, binary=True)


def _copy(layout: Layout, data: bytes, *, binary: bool) -> None:
    decoder = CopyDecoder(layout, binary=binary)
    with refused:
        decoder.feed(data)
    count, batch = decoder.pending_rows, decoder.take()
    assert len(rows.decode_batch(layout, batch)) == count
    for form in (False, True):
        # What was read can be written in either form, and reads the same again. Not the same as at first: 007 is read
        # too, though no server writes it.
        again = CopyDecoder(layout, binary=form and layout.binary)
        packed = load_rows(layout, batch, binary=form)
        again.feed(HEADER + packed + TRAILER if again.binary else packed)
        assert load_rows(layout, again.take(), binary=form) == packed


def row(data: bytes) -> None:
    layout, data = chosen(data)
    with refused:
        rows.head(VALUE + data)
    with refused:
        rows.decode_key(layout, KEY + data)
    with refused:
        _, value = rows.encode(layout, rows.decode(layout, VALUE + data))
        # Not the same bytes as before: some values have several texts that are read, and one that is written.
        assert rows.encode(layout, rows.decode(layout, value))[1] == value


def batch(data: bytes) -> None:
    layout, data = chosen(data)
    for form in (False, True):
        with refused:
            load_rows(layout, VALUE + data, binary=form)
        net = Net(layout, binary=form)
        with refused, contextlib.suppress(OrderViolated):
            net.add_batch(VALUE + data)
            _results(net)
    with refused:
        rows.decode_batch(layout, VALUE + data)


def net(data: bytes) -> None:
    """A framed block."""
    layout, data = chosen(data)
    found = []
    for form in (False, True):
        net = Net(layout, binary=form)
        with refused, contextlib.suppress(OrderViolated, GapDetected):
            net.add(data, visibility=(3, 9, (4, 6)), epoch=7 if data[:1] == b"\0" else None)
            found.append(_results(net))
    # A key or value that can't be written in one form may be in the other: only what both take is compared.
    assert len({tuple(counts) for counts in found}) <= 1


def _results(net: Net) -> list[int]:
    if net.ordered:
        return [len(net.changes())] if not net.insert_only else [net.rows()[0]]
    counts = [net.rows()[0], net.deletes()[0], sum(count for _, count, _ in net.partials())]
    assert sum(counts) <= net.touched()[0] or net.truncated
    return counts


def framed(data: bytes) -> None:
    with refused:
        records = frames.unpack(data)
        assert frames.pack(records) == data
        assert frames.count(data) == len(records)
        assert (
            frames.unpack(frames.cut(data, len(records) // 2, len(records) - len(records) // 2))
            == (records[len(records) // 2 :])
        )
    with refused:
        frames.schema_ids(data)
    with refused:
        frames.cut(data, 1, 1)


def control(data: bytes) -> None:
    with refused:
        record = decode_control(b"\0\0\0\0" + data)
        assert decode_control(encode_control(record)) == record


def pipeline(data: bytes) -> None:
    with tempfile.NamedTemporaryFile(suffix=".yaml") as file:
        file.write(data)
        file.flush()
        with contextlib.suppress(ConfigInvalid):
            load_pipeline(Path(file.name), {"SET": "x"})


TARGETS: Mapping[str, Callable[[bytes], None]] = {
    target.__name__: target for target in (stream, copy_text, copy_binary, row, batch, net, framed, control, pipeline)
}
