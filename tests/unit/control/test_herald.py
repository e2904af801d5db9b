"""Events are written when the log takes them, and nobody waits for that."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from control import herald
from control.herald import Herald
from control.wiring import opened_log
from schemas.events import EventKind
from schemas.pipeline import Pipeline
from transport.events import told
from transport.topics import Topics

TOPICS = Topics("shop")


@pytest.fixture
def pipeline(tmp_path: Path) -> Pipeline:
    target = {"name": "copy", "url": "postgresql://u@h/d"}
    given = {"pipeline": "shop", "source": {"url": "postgresql://u@h/d"}, "targets": [target], "state": tmp_path}
    return Pipeline.model_validate(given)


def texts(pipeline: Pipeline) -> list[tuple[int, str, str, str, str]]:
    with opened_log(pipeline) as log, log.reader() as reader:
        events = [event for _, event in told(reader, TOPICS, 0)]
    return [(event.at, event.kind, event.service, event.text, event.remedy) for event in events]


def test_what_is_told_is_there_when_the_herald_is_closed(pipeline: Pipeline) -> None:
    with opened_log(pipeline) as log:
        log.create_topics(TOPICS.fixed())
    with contextlib.closing(Herald(pipeline, "capture", now=lambda: 1.5)) as one:
        one.tell(EventKind.WARNING, "gone", "start it")
        one.tell(EventKind.ERROR, "lost", "load again")
    assert texts(pipeline) == [
        (1_500_000, "warning", "capture", "gone", "start it"),
        (1_500_000, "error", "capture", "lost", "load again"),
    ]


def test_what_the_log_does_not_take_waits_for_it(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(herald, "AGAIN_SECONDS", 0.05)
    tried = []
    write: Callable[[Herald], None] = Herald._write

    def counted(self: Herald) -> None:
        tried.append(self)
        write(self)

    monkeypatch.setattr(Herald, "_write", counted)
    with contextlib.closing(Herald(pipeline, "capture")) as one:
        one.tell(EventKind.WARNING, "gone", "")
        deadline = time.monotonic() + 10
        while len(tried) < 2:  # there is no log yet
            assert time.monotonic() < deadline
        with opened_log(pipeline) as log:
            log.create_topics(TOPICS.fixed())
        while not texts(pipeline):
            assert time.monotonic() < deadline
    assert len(texts(pipeline)) == 1


def test_without_anything_to_tell_there_is_no_thread(pipeline: Pipeline) -> None:
    one = Herald(pipeline, "capture")
    one.close()
    assert one._thread is None
    assert not list(pipeline.state.iterdir())
