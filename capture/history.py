"""Whether a source still has the history that was captured, or went back and took another way.

A source goes back when an older copy of it is brought back, a snapshot of its machine, or when it fails over to a
standby that lacked the end. As long as its log is shorter than what was captured, that shows by itself. Once it has
written on, the same positions hold other transactions, and the server would stream what follows them without a word.
"""

from __future__ import annotations

import contextlib
import select
import struct
import time
from collections.abc import Callable, Sequence

import psycopg

from engines.postgres import replication
from engines.postgres.connect import replication as connect_for_replication
from schemas.errors import LOAD_AGAIN, PositionLost, SourceUnavailable
from schemas.frontier import Commit

ASK_SECONDS = 0.01, 1.0
"""How soon, and how seldom at most, the server is asked how far it is."""

_BEGIN = struct.Struct("!qq")  # where the commit is, and when, in microseconds since 2000
_KEEPALIVE = struct.Struct("!q")
_HEAD = 25  # bytes of an XLogData message before pgoutput's own


def require_same(
    url: str,
    slot: str,
    publications: Sequence[str],
    *,
    confirmed: Callable[[], int],
    after: int,
    last: Commit,
    silence: float,
    clock: Callable[[], float] = time.monotonic,
) -> None:
    """Raise `PositionLost` unless the source has, up to `after`, the transactions that were captured.

    What was confirmed to the slot was confirmed to this very history. The rest is streamed once more, from the `last`
    transaction on: that must come as it was, and no other up to `after`. It is seldom much: what was captured and not
    confirmed when capture died, or what a source that crashed has forgotten of the confirmations.
    Nothing is confirmed by this. Raises `SourceUnavailable` when the server says nothing for `silence` seconds, and
    the driver's errors.

    `confirmed` asks the slot. What it says may grow until the slot is ours, for as long as a capture that was
    superseded still confirms, and the server streams nothing from before: then it is asked again.
    """
    already = confirmed()
    if already >= after:
        return
    begin = max(last.position, already)
    stream = connect_for_replication(url, application=f"penstock {slot} history")
    with contextlib.ExitStack() as stack:
        stack.callback(stream.finish)
        messages = stream.server_version >= 140_000
        replication.start_streaming(stream, slot, publications, begin, messages=messages)
        already = confirmed()
        if already >= after:
            return
        awaited = last if last.position >= already else None
        arrival = select.poll()
        arrival.register(stream.socket, select.POLLIN)
        heard = ask_at = clock()
        pause, latest = ASK_SECONDS
        while True:
            now = clock()
            if now >= ask_at:  # also while a large transaction comes: else we would be taken for dead
                ask_at, pause = now + pause, min(2 * pause, latest)
                stream.put_copy_data(replication.standby_status(0, reply=True))
                stream.flush()
            size, data = stream.get_copy_data(1)
            if size < 0:
                result = stream.get_result()
                if result is not None:
                    raise psycopg.errors.error_from_result(result)
                raise SourceUnavailable("source: the server ended the stream")
            if size == 0:
                if now - heard > silence:
                    raise SourceUnavailable(f"source: nothing was heard of the server for {silence:.0f} s")
                arrival.poll(max(0.0, ask_at - now) * 1000)
                stream.consume_input()
                continue
            heard = now
            reached = -1
            if data[0] == ord("k"):
                (reached,) = _KEEPALIVE.unpack_from(data, 1)
            elif data[_HEAD] == ord("B"):
                reached, at = _BEGIN.unpack_from(data, _HEAD + 1)
                if awaited is not None and awaited == Commit(reached, at + replication.POSTGRES_EPOCH * 1_000_000):
                    awaited = None
                    continue
                if awaited is not None or reached < after:
                    raise _other(reached, after)
            if reached >= after:
                if awaited is not None:
                    raise _other(awaited.position, after)
                return


def _other(at: int, after: int) -> PositionLost:
    return PositionLost(
        f"the source's history is another than the one that was captured up to {replication.lsn_text(after)}: they"
        f" differ at {replication.lsn_text(at)}. It was taken back to an earlier state, or failed over to a standby"
        " that lacked what was captured last, and has gone on from there; the targets have what it lost",
        remedy=LOAD_AGAIN,
    )
