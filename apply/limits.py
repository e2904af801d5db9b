"""How much a worker does at once, and how often it looks."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Limits:
    """How much is done at once, and how often what rarely changes is looked at, in seconds."""

    batch_records: int = 100_000
    batch_frontiers: int = 5_000
    piece_bytes: int = 64 << 20  # of the log; its net changes take as much again, and their form for the target too
    note_every: float = 1.0  # progress that holds no changes
    look_every: float = 0.25  # for what other workers do: loaded chunks, prepared tables
    share_every: float = 0.05
    commands_at_once: int = 1_000
    tell_every: float = 0.5
    move_seconds: float = 0.05  # for tables that move to their next states, before others get their turn
    failed_every: float = 1.0  # whether a failed table was told to go on
    together_seconds: float = 10.0  # that those who are ahead wait for tables that are loaded, and about to join them
    settled_every: float = 5.0  # whether the target still is as it was when the last table became live
