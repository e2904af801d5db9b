"""A few random histories, always the same ones; `python -m tests.histories` runs as many others as asked for."""

from pathlib import Path

import pytest

from tests.histories.history import History


@pytest.mark.parametrize("seed", [1, 2])
def test_the_target_is_the_source_whatever_was_done_to_rows_and_tables(
    seed: int, tmp_path: Path, source_db: str, target_db: str
) -> None:
    history = History(seed, tmp_path, source_db, target_db)
    try:
        history.run()
    finally:
        print("\n".join(history.application.said))
        history.close()
