"""Checkpoints off the hot path."""

from __future__ import annotations

import contextlib
import queue
import sqlite3
import threading
from pathlib import Path

from transport.sqlite.connection import connect, fetch, fetch_one

_CHECKPOINT_BYTES = 4 << 20  # of WAL, and the helper thread copies it into the file
_REST_BYTES = 1 << 20  # of it that the writer copies itself when the helper is done
_WAL_BYTES = 64 << 20  # and all of it, if the helper does not keep up


class Checkpointer:
    """Copies the WAL into the file in a thread with a connection of its own, off the hot path.

    The WAL begins again only when a commit finds all of it copied, which beside a busy writer never happens by
    itself. So the writer copies what has come since the helper began, if that is little, and from 64 MB on in any
    case: a commit into a file that need not grow takes a fraction of the time, and a WAL must not grow for ever.
    """

    def __init__(self, wait_s: float) -> None:
        self._wait_s = wait_s
        self._written = self._asked = self._try_again = 0
        self._seen = (0, 0)  # how long the WAL was, and after how many bytes written
        self._jobs: queue.SimpleQueue[tuple[Path, int, sqlite3.Connection | None] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._copying = threading.Lock()

    def wrote(self, size: int) -> None:
        self._written += size

    def committed(self, connection: sqlite3.Connection, path: Path) -> None:
        if self._written - self._asked >= _CHECKPOINT_BYTES:
            self._asked = self._written
            self._ask(path, None)
        length, at = self._seen
        rest = self._written - at
        begins_again = length > 0 and rest <= _REST_BYTES
        if (begins_again or length + rest >= _WAL_BYTES) and self._written >= self._try_again:
            # Waits for the helper, and for readers a little: one that is stopped must not stop the writer too.
            with self._copying:
                fetch(connection, "pragma busy_timeout = 1000")
                (busy, _, _) = fetch_one(connection, "pragma wal_checkpoint(restart)")
                fetch(connection, f"pragma busy_timeout = {int(self._wait_s * 1000)}")
            if busy:
                self._try_again = self._written + _WAL_BYTES // 4
            else:
                self._seen, self._asked = (0, self._written), self._written

    def finish(self, path: Path, connection: sqlite3.Connection) -> None:
        """A segment is sealed: copy what is left and close it."""
        self._ask(path, connection)
        self._seen, self._asked = (0, self._written), self._written

    def close(self) -> None:
        if self._thread is not None:
            self._jobs.put(None)
            self._thread.join()

    def _ask(self, path: Path, connection: sqlite3.Connection | None) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="log checkpoints", daemon=True)
            self._thread.start()
        self._jobs.put((path, self._written, connection))

    def _work(self) -> None:
        mine: sqlite3.Connection | None = None
        current: Path | None = None
        while job := self._jobs.get():
            path, written, finished = job
            # A failure here loses nothing, as the WAL is durable; one that lasts is met by the writer.
            with contextlib.suppress(sqlite3.Error):
                if finished is not None:
                    fetch(finished, "pragma wal_checkpoint(truncate)")
                    finished.close()
                    continue
                if mine is None or current != path:
                    if mine is not None:
                        mine.close()
                    mine, current = None, path
                    mine = connect(path, self._wait_s)
                with self._copying:
                    busy, frames, _ = fetch_one(mine, "pragma wal_checkpoint(passive)")
                    if not busy:
                        self._seen = (frames * 4120, written)
        if mine is not None:
            mine.close()
