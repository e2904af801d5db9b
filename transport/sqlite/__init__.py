"""The embedded log: SQLite files in one folder, durable at every step, read by any process of this machine.

    <folder>/<pipeline>/catalog.db               topics, segments, where which range is, what is trimmed
    <folder>/<pipeline>/<place>.<number>.db      a segment; the newest of a place is the one that is written
    <folder>/<pipeline>/<place>.bell             overwritten after each commit, so that readers wake
    <folder>/<pipeline>/members/<group>/         a locked file for each worker

A *place* is a file set with one busy writer, because SQLite's lock is no queue and several would starve each other:
`changes` (claims and frontiers with them, so that rows and frontier are one transaction and one fsync), `load-N` for
partition N of every load topic, `chunks`, and `control`. A step is in the newest segment of its place or not at
all, whoever dies; a segment, once sealed, never changes and is dropped whole.
"""

from transport.sqlite.log import BUDGET_BYTES, SEGMENT_BYTES, SqliteLog

__all__ = ["BUDGET_BYTES", "SEGMENT_BYTES", "SqliteLog"]
