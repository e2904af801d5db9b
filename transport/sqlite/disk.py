"""The files of the log on their disk, and whether that is one on which SQLite's log works."""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path

_NETWORK_SYSTEMS = re.compile(
    r"9p|afs|beegfs|ceph|cifs|davfs|fuse\.(ceph|glusterfs|rclone|s3fs|sshfs)|glusterfs|gpfs|lustre|nfs\d?|ocfs2"
    r"|orangefs|smb3|smbfs"
)


def segment_path(root: Path, place: str, number: int) -> Path:
    return root / f"{place}.{number:06}.db"


def inode_of(path: Path) -> int:
    """Tell whether a path is still the same file; 0 if there is none."""
    try:
        return os.stat(path).st_ino
    except FileNotFoundError:
        return 0


def file_bytes(path: Path) -> int:
    total = 0
    for suffix in ("", "-wal"):
        with contextlib.suppress(FileNotFoundError):
            total += os.stat(f"{path}{suffix}").st_size
    return total


def lengthen(path: Path, size: int) -> None:
    """Fill a file up with zeros: to sync what is written over them is one write, not one of the file system's too."""
    with path.open("ab") as file:
        file.write(bytes(max(0, size - file.tell())))
        file.flush()
        os.fsync(file.fileno())


def unlink(path: Path) -> None:
    for suffix in ("", "-wal", "-shm"):
        Path(f"{path}{suffix}").unlink(missing_ok=True)


def network_system(path: Path) -> str | None:
    """The type of the file system, if it is one over a network; None where that cannot be told."""
    try:
        lines = Path("/proc/self/mountinfo").read_text().splitlines()
    except OSError:
        return None
    there = str(path.resolve())
    best, found = "", None
    for line in lines:
        before, _, after = line.partition(" - ")
        mount = re.sub(r"\\(\d{3})", lambda octal: chr(int(octal[1], 8)), before.split()[4])  # a space is \040
        if len(mount) >= len(best) and (there == mount or there.startswith(mount.rstrip("/") + "/")):
            best, found = mount, after.split()[0]
    return found if found and _NETWORK_SYSTEMS.fullmatch(found) else None


def network_problem(path: Path, system: str) -> tuple[str, str]:
    return f"{path} is on a network file system ({system}), where SQLite's log does not work", "use a local disk"
