"""The figures of a worker."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field

from schemas.table import TableId


@dataclass(slots=True)
class Stats:
    """What a worker has done since it started, and where it stands; for metrics, never for decisions."""

    batches: int = 0
    records: int = 0  # before folding
    changes: int = 0  # after it
    rows_loaded: int = 0
    chunks_loaded: int = 0
    conflicts: int = 0
    failures: int = 0
    dead_letters: int = 0
    position: int = 0  # of the cohort that is ahead
    commit_time: int = 0
    captured_at: int = 0
    by_table: dict[TableId, int] = field(default_factory=lambda: defaultdict(int))
