"""Who works in a group on one machine: a locked file for each member, which the kernel frees when it dies."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
import weakref
from pathlib import Path

from transport.log import WORK_PARTITIONS

_LOOK_EVERY = 0.2

_open: weakref.WeakSet[FileMembership] = weakref.WeakSet()


class FileMembership:
    """A share in the work partitions, by rank among the members that live.

    Every member finds the same list by itself, so nobody has to lead; for the fifth of a second between two looks
    lists may differ. A member that was killed is missed at the next look.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._next_look = 0.0
        self._share: frozenset[int] = frozenset()
        self._file = -1
        self._join()
        _open.add(self)

    def poll(self) -> frozenset[int]:
        """Look at most every fifth of a second."""
        now = time.monotonic()
        if now >= self._next_look:
            self._next_look = now + _LOOK_EVERY
            members = self._members()
            if self._name not in members:  # the folder was tidied up by hand
                os.close(self._file)
                self._join()
                members = self._members()
            rank = members.index(self._name) if self._name in members else 0
            self._share = frozenset(range(rank, WORK_PARTITIONS, max(len(members), 1)))
        return self._share

    def close(self) -> None:
        if self._file >= 0:
            with contextlib.suppress(FileNotFoundError):
                (self._folder / self._name).unlink()
            os.close(self._file)
            self._file = -1

    def _join(self) -> None:
        while True:
            # Names sort by the time of joining, so that a newcomer changes the others' ranks least.
            self._name = f"{time.time_ns():020}-{os.getpid()}-{os.urandom(4).hex()}"
            path = self._folder / self._name
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            fcntl.flock(self._file, fcntl.LOCK_EX)
            # Between making and locking the file another member may have taken it for a dead one's.
            if os.fstat(self._file).st_nlink:
                return
            os.close(self._file)

    def _members(self) -> list[str]:
        living = []
        for name in sorted(os.listdir(self._folder)):
            if name == self._name or self._lives(self._folder / name):
                living.append(name)
        return living

    @staticmethod
    def _lives(path: Path) -> bool:
        try:
            file = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        try:
            # Shared, so that two members that look at once do not take each other for the owner.
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            with contextlib.suppress(FileNotFoundError):
                path.unlink()
            return False
        except BlockingIOError:
            return True
        finally:
            os.close(file)

    def _forget(self) -> None:
        """In a child process: a lock belongs to all who hold its descriptor, and must end with the parent."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


def _forget_all() -> None:
    for membership in list(_open):
        membership._forget()


os.register_at_fork(after_in_child=_forget_all)
