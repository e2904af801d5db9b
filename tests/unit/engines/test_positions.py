"""Positions and status messages of the stream."""

from __future__ import annotations

import struct

from engines.postgres.replication import lsn, lsn_text, standby_status


def test_positions_are_read_and_written_as_postgresql_does() -> None:
    assert lsn("16/B374D848") == 0x16B374D848
    assert lsn_text(0x16B374D848) == "16/B374D848"
    assert lsn_text(lsn("FFFFFFFF/FFFFFFFF")) == "FFFFFFFF/FFFFFFFF"
    assert lsn("0/0") == 0


def test_a_status_confirms_written_flushed_and_applied_alike() -> None:
    message = standby_status(7, reply=True, at=946_684_801.5)
    assert struct.unpack("!cQQQqB", message) == (b"r", 7, 7, 7, 1_500_000, 1)
    assert len(message) == 34
