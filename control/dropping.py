"""Removing what is ours: `penstock drop`, and the end of a load."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterator
from typing import NamedTuple

from control.wiring import opened_log
from schemas.errors import OperatorError, ReplicationError
from schemas.pipeline import Pipeline, TargetSettings
from transport.topics import Topics

_READER_SECONDS = 5.0


class Done(NamedTuple):
    """One thing that was removed, or why it was not."""

    what: str
    result: str
    problem: str = ""


def slot_name(pipeline: Pipeline) -> str:
    """Return the name of the pipeline's slot, which is that of its first publication too."""
    return f"penstock_{pipeline.pipeline}"


def plan_text(pipeline: Pipeline) -> str:
    """Return what `drop_all` will remove, in words."""
    targets = ", ".join(target.name for target in pipeline.targets)
    where = f"topics {pipeline.pipeline}.* in {pipeline.log.url}" if pipeline.log.url else "the log"
    return (
        f"slot and publications {slot_name(pipeline)} of the source;\n"
        f"progress and dead letters of this pipeline in {targets};\n"
        f"{where}, and the state folder {pipeline.state}.\n"
        "The tables in the targets stay, with their rows."
    )


def drop_source(pipeline: Pipeline) -> str:
    """Drop slot and publications; nothing happens if they are gone."""
    from engines.postgres.connect import connect
    from engines.postgres.definitions import drop_trigger
    from engines.postgres.errors import translated
    from engines.postgres.replication import drop_publications, drop_slot

    name = slot_name(pipeline)
    with translated("source", "dropping slot and publications"):
        url = pipeline.source.url.get_secret_value()
        with contextlib.closing(connect(url, role="control", application="penstock drop")) as connection:
            drop_slot(connection, name)
            drop_publications(connection, name)
            drop_trigger(connection, name)
    return "removed"


def drop_all(pipeline: Pipeline) -> Iterator[Done]:
    """Remove everything, one thing after the other; what fails is told, and the rest goes on.

    The source first: a slot that stays behind keeps its server from ever removing old log. Raises `OperatorError`
    if the pipeline runs.
    """
    from control.supervisor import only_one

    with only_one(pipeline.state, seconds=0.5):
        if reader := _reader(pipeline):
            raise OperatorError(
                f"the pipeline runs, with another state folder or on another machine: its change stream is read by"
                f" {reader}",
                remedy="stop it first",
            )
        yield _try(f"source: slot and publications {slot_name(pipeline)}", lambda: drop_source(pipeline))
        for target in pipeline.targets:
            yield _try(f"target {target.name}: progress", _forget(pipeline, target))
        yield _try(f"log: topics {pipeline.pipeline}.*", lambda: _drop_log(pipeline))
        yield _try(f"state folder {pipeline.state}", lambda: _drop_state(pipeline))


def _reader(pipeline: Pipeline) -> str:
    """Return who captures, empty if nobody does; one that was just killed has a few seconds to go."""
    from engines.postgres.connect import connect
    from engines.postgres.errors import translated
    from engines.postgres.replication import slot_reader

    url = pipeline.source.url.get_secret_value()
    with (
        contextlib.suppress(ReplicationError),  # told when the slot is to be dropped
        translated("source", "looking whether the pipeline runs"),
        contextlib.closing(connect(url, role="control", application="penstock drop")) as connection,
    ):
        return slot_reader(connection, slot_name(pipeline), _READER_SECONDS)
    return ""


def _try(what: str, remove: Callable[[], str]) -> Done:
    try:
        return Done(what, remove())
    except ReplicationError as error:
        return Done(what, "", f"{error}" + (f" ({error.remedy})" if error.remedy else ""))
    except OSError as error:
        return Done(what, "", str(error))


def _forget(pipeline: Pipeline, settings: TargetSettings) -> Callable[[], str]:
    def forget() -> str:
        from apply.postgres.control import forget_pipeline

        forget_pipeline(settings, pipeline.pipeline)
        return "removed"

    return forget


def _drop_log(pipeline: Pipeline) -> str:
    with opened_log(pipeline) as log:
        names = [topic.name for topic in log.topics(Topics(pipeline.pipeline).prefix)]
        log.delete_topics(names)
        return f"{len(names)} removed"


def _drop_state(pipeline: Pipeline) -> str:
    """Remove only what is ours: `state:` may name a folder that holds other things too, or another pipeline's."""
    state = pipeline.state
    if not state.exists():
        return "there is none"
    for name in ("logs", f"log/{pipeline.pipeline}"):
        if (state / name).exists():
            shutil.rmtree(state / name)
    for pattern in ("*pids.json", "done.json", "run.lock", "worker-*.lock"):
        for path in state.glob(pattern):
            path.unlink(missing_ok=True)
    for folder in (state / "log", state):
        with contextlib.suppress(OSError):  # not empty: somebody else's
            folder.rmdir()
    return "removed" if not state.exists() else "emptied of what is ours"
