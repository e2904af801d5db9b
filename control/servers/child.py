"""Become another program that has an ordinary user and that ends when its parent does.

Run as `python child.py PARENT_PID SIGNAL USER PROGRAM ARGUMENTS...`, where USER is `-` for no change. It is a
program of its own because Python may not safely run code between fork and exec in a process that has threads.
"""

import ctypes
import os
import pwd
import sys

_PR_SET_PDEATHSIG = 1


def become(parent: int, death_signal: int, user: str, command: list[str]) -> None:
    """Replace this process by `command`, after the user and the death signal are set.

    The order matters: a change of user clears the death signal, so the user comes first.
    """
    if user != "-":
        entry = pwd.getpwnam(user)
        os.setgroups([])
        os.setgid(entry.pw_gid)
        os.setuid(entry.pw_uid)
    prctl = getattr(ctypes.CDLL(None), "prctl", None)
    if prctl is not None:  # Linux only; elsewhere the server outlives a parent that is killed
        prctl(_PR_SET_PDEATHSIG, death_signal, 0, 0, 0)
        if os.getppid() != parent:  # the parent ended before the signal was asked for
            sys.exit("the parent is gone")
    os.execv(command[0], command)


if __name__ == "__main__":
    become(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4:])
