"""Wake readers in other processes: a writer rings after its commit, readers wait without looking again and again."""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import sys
import time
from pathlib import Path

_LOOK_AGAIN = 0.2  # a ring can get lost only with the bell file itself; this bounds what that costs
_POLL = 0.003  # where the kernel cannot tell

_IN_MODIFY = 0x2


class Bell:
    """The writer's side: a file of one byte that is overwritten."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)

    def ring(self) -> None:
        """Wake whoever waits. Call it after the commit, or they look too early."""
        os.pwrite(self._file, b"\0", 0)

    def close(self) -> None:
        os.close(self._file)


class Listener:
    """The reader's side, for any number of bells.

    A ring between `watch` and `wait` is not lost. So: watch, then look at what one waits for, then wait, then look
    again, always: a wait may end without reason.
    """

    def __init__(self) -> None:
        self._watched: set[Path] = set()
        self._inotify = _inotify()
        self._poll = select.poll() if self._inotify is not None else None
        if self._poll is not None and self._inotify is not None:
            self._poll.register(self._inotify, select.POLLIN)

    def watch(self, path: Path) -> None:
        if path in self._watched:
            return
        with contextlib.suppress(FileNotFoundError):  # no folder yet; looked at again with the next call
            os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644))
            if self._inotify is None or _libc().inotify_add_watch(self._inotify, os.fsencode(path), _IN_MODIFY) >= 0:
                self._watched.add(path)

    def wait(self, timeout: float) -> None:
        """Return after a ring, or some time before or at `timeout`."""
        if self._poll is None or self._inotify is None or not self._watched:
            time.sleep(min(timeout, _POLL))
        elif self._poll.poll(min(timeout, _LOOK_AGAIN) * 1000):
            with contextlib.suppress(BlockingIOError):
                os.read(self._inotify, 65536)

    def close(self) -> None:
        if self._inotify is not None:
            os.close(self._inotify)
            self._inotify = None


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _inotify() -> int | None:
    """A descriptor of the kernel's file events; None where there are none, or no more to be had."""
    if not sys.platform.startswith("linux"):
        return None
    descriptor = int(_libc().inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC))
    return descriptor if descriptor >= 0 else None
