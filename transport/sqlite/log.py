"""The embedded log as services see it."""

from __future__ import annotations

import os
import shutil
import threading
import uuid
from contextlib import closing
from pathlib import Path
from urllib.parse import quote

from schemas.errors import LogRewound, PrerequisiteMissing
from transport.log import Partition, Range, Topic, Usage
from transport.sqlite.catalog import CATALOG, Catalog
from transport.sqlite.connection import connect, fetch_one, make_file, run, transaction, translated
from transport.sqlite.disk import file_bytes, network_problem, network_system, segment_path, unlink
from transport.sqlite.membership import FileMembership
from transport.sqlite.reader import SqliteReader
from transport.sqlite.writer import SqliteWriter
from transport.topics import Topics

SEGMENT_BYTES = 256 << 20
BUDGET_BYTES = 20 * 1000**3

_forked: list[object] = []  # connections of a parent process, which a child must neither use nor close


class SqliteLog:
    """A log in a folder of a local disk, for the services of one machine.

    Every `seal` and `put`, and `flush` at its end, is on the disk before it is seen. `budget_bytes` bounds what
    changes and loads may take: at it `append` waits up to `wait_s` for a trim, then raises `LogUnavailable`; control
    records and chunks are exempt, so that whatever frees room can always be told. `wait_s` also bounds how long a
    commit waits for another process. Safe to carry across a fork, and for threads.
    """

    shared_topics: int | None = None

    def __init__(
        self,
        folder: Path,
        pipeline: str,
        *,
        budget_bytes: int = BUDGET_BYTES,
        wait_s: float = 60.0,
        segment_bytes: int = SEGMENT_BYTES,
    ) -> None:
        self._root = folder / pipeline
        self._pipeline, self._names = pipeline, Topics(pipeline)
        # The segments that are written can't be dropped, and there are several: a small budget needs small ones.
        self._segment_bytes = max(min(segment_bytes, budget_bytes // 32), 1 << 20)
        self._budget, self._wait_s = budget_bytes, wait_s
        self._local = threading.local()

    def create_topics(self, topics: list[Topic]) -> None:
        """Make the folder and the catalogue too. Raises `PrerequisiteMissing` on a network file system."""
        self._root.mkdir(parents=True, exist_ok=True)
        if remote := network_system(self._root):
            problem, remedy = network_problem(self._root, remote)
            raise PrerequisiteMissing(problem, remedy=remedy)
        with translated("make topics"):
            path = self._root / "catalog.db"
            if not path.exists():
                make_file(path, CATALOG)
            catalog = self._here().catalog
            with catalog.change() as connection:
                for topic in topics:
                    if fetch_one(connection, "select 1 from topic where name = ?", topic.name):
                        continue
                    (first,) = fetch_one(connection, "select next from allotted")
                    run(connection, "update allotted set next = next + ?", topic.partitions)
                    row = (topic.name, first, topic.partitions, uuid.uuid4().hex)
                    run(connection, "insert into topic values (?, ?, ?, ?)", *row)

    def delete_topics(self, names: list[str]) -> None:
        """The room they take is free when the segments that hold them are dropped."""
        if not self._exists():
            return
        with translated("delete topics"), self._here().catalog.change() as connection:
            for name in names:
                if found := fetch_one(connection, "select first, partitions from topic where name = ?", name):
                    ids = (found[0], found[0] + found[1])
                    run(connection, "delete from extent where partition >= ? and partition < ?", *ids)
                    run(connection, "delete from trimmed where partition >= ? and partition < ?", *ids)
                    run(connection, "delete from topic where name = ?", name)
        self._drop()

    def topics(self, prefix: str) -> list[Topic]:
        if not self._exists():
            return []
        with translated("list topics"):
            rows = self._here().catalog.look().topics
            return [Topic(n, t.partitions) for n, t in sorted(rows.items()) if n.startswith(prefix)]

    def offsets(self, partition: Partition) -> Range:
        with translated("look at offsets"):
            return self._here().offsets(partition)

    def trim(self, partition: Partition, offset: int) -> None:
        """Segments that hold nothing more that anybody may ask for are unlinked at once."""
        with translated("trim"):
            here = self._here()
            start, end = here.offsets(partition)
            offset = min(offset, end)
            if offset <= start:
                return
            topic = here.catalog.topic(partition)
            with here.catalog.change() as connection:
                row = (topic.first + partition.number, offset)
                run(
                    connection,
                    "insert into trimmed values (?, ?) on conflict do update set start = excluded.start",
                    *row,
                )
                run(connection, "delete from extent where partition = ? and finish <= ?", *row)
        self._drop()

    def identity(self) -> str:
        with translated("look at the log's identity"):
            topic = self._here().catalog.look().topics.get(self._names.frontier.topic) if self._exists() else None
        if topic is None:
            raise LogRewound(f"there is no log of pipeline {self._pipeline} in {self._root}")
        return topic.identity

    def usage(self) -> Usage:
        if not self._exists():
            return Usage(0, self._budget)
        with translated("look at the log's size"):
            return Usage(self._here().catalog.used(), self._budget)

    def writer(self, purpose: str) -> closing[SqliteWriter]:
        return closing(SqliteWriter(self._catalog(), self._names, self._budget, self._wait_s, self._segment_bytes))

    def reader(self) -> closing[SqliteReader]:
        return closing(SqliteReader(self._catalog(), self._names, self._wait_s))

    def membership(self, group: str) -> closing[FileMembership]:
        return closing(FileMembership(self._root / "members" / quote(group, safe="")))

    def problems(self) -> list[tuple[str, str]]:
        there = self._root
        while not there.exists():
            there = there.parent
        found = []
        if remote := network_system(there):
            found.append(network_problem(self._root, remote))
        free, lacking = shutil.disk_usage(there).free, self._budget - self.usage().used
        if free < lacking:
            found.append(
                (
                    f"the log in {self._root} may take {lacking / 1e9:.1f} GB more, but its disk has"
                    f" {free / 1e9:.1f} GB left",
                    "free room on that disk, put the log on another, or lower its budget",
                )
            )
        return found

    def close(self) -> None:
        here: SqliteReader | None = getattr(self._local, "here", None)
        if here is not None and self._local.process == os.getpid():
            here.close()
        self._local = threading.local()

    def _exists(self) -> bool:
        return (self._root / "catalog.db").exists()

    def _catalog(self) -> Catalog:
        if not self._exists():
            raise LogRewound(f"there is no log of pipeline {self._pipeline} in {self._root}")
        return Catalog(self._root, self._wait_s)

    def _here(self) -> SqliteReader:
        """What this thread of this process looks with; a connection must not be used across a fork."""
        here: SqliteReader | None = getattr(self._local, "here", None)
        if here is not None and self._local.process != os.getpid():
            _forked.append(here)
            here = None
        if here is not None and not here.catalog.is_there():  # the log was removed, and perhaps made again
            here.close()
            here = None
        if here is None:
            here = self._local.here = SqliteReader(self._catalog(), self._names, self._wait_s)
            self._local.process = os.getpid()
        return here

    def _drop(self) -> None:
        """Seal segments whose records are all trimmed, and unlink the sealed ones that no extent leads to."""
        with translated("drop segments"):
            here = self._here()
            for place, segments in here.catalog.look().segments.items():
                path = segment_path(self._root, place, segments[-1][0])
                if file_bytes(path) >= self._segment_bytes // 4 and here.all_trimmed(place):
                    self._seal_segment(here.catalog, place, segments[-1][0])
            if not here.catalog.dead():
                return
            with here.catalog.change() as connection:
                dead = here.catalog.dead()
                for place, number in dead:
                    run(connection, "delete from segment where place = ? and number = ?", place, number)
            for place, number in dead:
                unlink(segment_path(self._root, place, number))

    def _seal_segment(self, catalog: Catalog, place: str, number: int) -> None:
        """Make the writer go on in another, as it would itself: after a load nobody may ever write there again."""
        connection = connect(segment_path(self._root, place, number), self._wait_s)
        try:
            with transaction(connection):
                run(connection, "update state set sealed = 1")
        finally:
            connection.close()
        catalog.advance(place, number, self._wait_s)
