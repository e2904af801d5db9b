"""The trimmer over the logs that are used: what it trims, and that the next one carries on what it left undone."""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import cast

import pytest

from apply.target import Progress, TableProgress, Target
from codec.frames import pack
from control.trimmer import Limits, Trimmer
from schemas.errors import LogUnavailable
from schemas.frontier import Admitted
from schemas.pipeline import Mode, Pipeline
from schemas.record import encode_control
from schemas.states import TableState
from schemas.table import TableId
from tests.unit.apply.source import Source, insert, make_table
from transport import open_log
from transport.log import Block, Log, Range
from transport.sqlite import SqliteLog
from transport.views import Frontiers

PIPELINE = Pipeline.model_validate(
    {
        "pipeline": "p",
        "source": {"url": "postgresql://source/s"},
        "targets": [{"name": "t", "url": "postgresql://target/t"}],
    }
)
TABLES = [TableId("public", "a"), TableId("public", "b")]


class Live:
    """A target that has applied everything before an offset."""

    def __init__(self, offset: int) -> None:
        self._offset = offset

    def open(self, log: str) -> None:
        """There is nothing to connect to."""

    def groups(self) -> dict[int, Progress]:
        return {0: Progress(self._offset, 0, 0)}

    def tables(self) -> dict[TableId, TableProgress]:
        return {table: TableProgress(table, 0, TableState.LIVE) for table in TABLES}

    def make_durable(self) -> None:
        """It forgets nothing."""

    def close(self) -> None:
        """Nothing is open."""


@pytest.fixture(params=["sqlite", pytest.param("kafka", marks=pytest.mark.slow)])
def log(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Log]:
    url = f"kafka://{request.getfixturevalue('kafka_broker').bootstrap}" if request.param == "kafka" else None
    with closing(open_log(url, "p", tmp_path)) as log:
        yield log
        log.delete_topics([topic.name for topic in log.topics("p.")])


def test_killed_after_any_step_it_is_carried_on_by_the_next(log: Log) -> None:
    source = Source(*(make_table(table.name) for table in TABLES), log=log)
    with source.stack:
        source.control.put(source.topics.chunks, encode_control(Admitted(("t",))))
        for number in range(3):
            source.commit(insert("a", str(number), "x"))
            source.commit(insert("b", str(number), "x"), insert("b", str(-number - 1), "y"))
        start, end = log.offsets(source.topics.frontier)
        assert start == 0
        target, limits = cast(Target, Live(end)), Limits(most_frontiers=1, look_every=0.0)
        for steps in range(1, 12):
            with closing(Trimmer(PIPELINE, log, make_target=lambda *_: target, limits=limits)) as trimmer:
                for _ in range(steps):
                    trimmer.step()
        assert log.offsets(source.topics.frontier) == Range(end - 1, end)
        assert log.offsets(source.topics.changes(TABLES[0])).start == 3
        assert log.offsets(source.topics.changes(TABLES[1])).start == 4
        last = Frontiers(source.reader, source.topics).to_end()
        assert last is not None and last.frontier.position == source.position


class Empty(Live):
    """A target that has nothing yet."""

    def __init__(self) -> None:
        super().__init__(0)

    def groups(self) -> dict[int, Progress]:
        return {}

    def tables(self) -> dict[TableId, TableProgress]:
        return {}

    def chunks(self) -> dict[tuple[TableId, int], set[int]]:
        return {}


def test_a_log_that_dead_workers_have_filled_takes_rows_again(tmp_path: Path) -> None:
    with closing(SqliteLog(tmp_path, "p", budget_bytes=8 << 20, wait_s=0.1)) as log:
        source = Source(*(make_table(table.name) for table in TABLES), log=log, mode=Mode.LOAD_AND_CHANGES)
        with source.stack:
            source.control.put(source.topics.chunks, encode_control(Admitted(("t",))))
            load, rows = source.topics.load(TABLES[0]), Block(1, pack([(None, bytes(1 << 20))]))
            with log.writer("load-0") as dead, pytest.raises(LogUnavailable):
                while True:
                    dead.append(load, rows)
                    dead.flush()
            clock, target = iter(range(0, 1_000, 10)), cast(Target, Empty())
            with closing(
                Trimmer(PIPELINE, log, make_target=lambda *_: target, clock=lambda: float(next(clock)))
            ) as trimmer:
                for _ in range(20):
                    trimmer.step()
            assert log.offsets(load).start == log.offsets(load).end > 0
            with log.writer("load-0") as next_one:
                next_one.append(load, rows)
                next_one.flush()
            assert log.usage().used < 8 << 20
