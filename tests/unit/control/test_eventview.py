"""Since when events are asked for."""

import time

import pytest

from control.eventview import moment

NOW = 1_800_000_000.0


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("2m", 120), ("2min", 120), ("1h", 3600), ("1.5 d", 129_600), ("500ms", 0.5)]
)
def test_a_duration_ends_now(text: str, seconds: float) -> None:
    assert moment(text, NOW) == NOW - seconds


@pytest.mark.parametrize(
    ("text", "at"),
    [
        ("2026-07-01T14:30:00Z", 1_782_916_200),
        ("2026-07-01 14:30+02:00", 1_782_909_000),
        ("2026-07-01 14:30", time.mktime((2026, 7, 1, 14, 30, 0, 0, 0, -1))),
        ("2026-07-01", time.mktime((2026, 7, 1, 0, 0, 0, 0, 0, -1))),
    ],
)
def test_a_time_is_of_the_zone_that_it_names_else_of_the_clock_here(text: str, at: float) -> None:
    assert moment(text, NOW) == at


@pytest.mark.parametrize("text", ["2", "2 weeks", "yesterday", "2026-13-01", ""])
def test_anything_else_is_refused_with_examples(text: str) -> None:
    with pytest.raises(ValueError, match=r"90s.*2026-07-01 14:30"):
        moment(text, NOW)
