"""A server as a child process: its folder, port, readiness and end."""

import contextlib
import fcntl
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar, Self

_CHILD = Path(__file__).with_name("child.py")
_ROOT = Path(__file__).resolve().parents[2]
_POLL_SECONDS = 0.02


class ServerUnavailable(RuntimeError):
    """A server cannot be had on this machine, or did not start; the message says what to do."""


def cache_folder(name: str) -> Path:
    """Return a folder that outlives the process: `.cache/` of a checkout, else the user's own cache."""
    base = _ROOT / ".cache" if (_ROOT / "pyproject.toml").exists() else Path.home() / ".cache" / "penstock"
    folder = base / name
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock file `path` against other processes; a process that dies lets go of it."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def free_port() -> int:
    """Return a port of 127.0.0.1 that nobody listens on, below the kernel's range for clients.

    A port inside that range could become some client's own while a server is down for a restart. On Linux no other
    process is given the port as long as this one lives: who was given it may not listen yet.
    """
    low = 32768
    with contextlib.suppress(OSError):  # not Linux
        low = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    low = max(low, 12000)
    while True:
        port = random.randrange(low - 10000, low)
        with socket.socket() as candidate:
            # As servers do: what is left of closed connections does not stand in the way.
            candidate.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with contextlib.suppress(OSError):
                candidate.bind(("127.0.0.1", port))
                _claim(port)
                return port


def _claim(port: int) -> None:
    """Take a name that one socket of the machine can have, and that the kernel frees at our end; raise `OSError`
    if it is taken."""
    if sys.platform == "linux":
        with socket.socket(socket.AF_UNIX) as claim:
            claim.bind(f"\0penstock-port-{port}")
            claim.detach()  # it stays open


def dying_with_us(command: list[str], number: signal.Signals, user: str | None = None) -> list[str]:
    """Return the command that runs `command`, as `user`, and gets a signal when the thread that starts it ends."""
    launcher = [sys.executable, "-I", "-S", str(_CHILD), str(os.getpid()), str(int(number))]
    return [*launcher, user or "-", *command]


class ServerProcess(ABC):
    """One server with a temporary folder and a port that stay the same over restarts, until `close`.

    Start it from a thread that lives as long as the server: on Linux the server gets `death_signal` when the
    thread that started it ends, so that nothing is left behind by a parent that was killed.
    """

    name: ClassVar[str]
    stop_signal: ClassVar[signal.Signals] = signal.SIGTERM
    death_signal: ClassVar[signal.Signals] = signal.SIGKILL
    start_seconds: ClassVar[float] = 60.0

    def __init__(self, *, port: int | None = None, user: str | None = None) -> None:
        self.port = port or free_port()
        self.user = user
        self.folder = Path(tempfile.mkdtemp(prefix=f"penstock-{self.name}-"))
        if user is not None:
            shutil.chown(self.folder, user)
        self.log = self.folder / "server.log"
        self._process: subprocess.Popen[bytes] | None = None
        self._prepared = False
        self._log_start = 0

    def prepare(self) -> None:
        """Make what the server needs in its folder; called once, before the first start."""
        return

    @abstractmethod
    def command(self) -> list[str]:
        """Return the program with its full path, and its arguments."""

    @abstractmethod
    def ready(self) -> bool:
        """Say whether the server serves; asked again and again while it starts."""

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        """The server's process id; raises `RuntimeError` if it was never started."""
        if self._process is None:
            raise RuntimeError(f"{self.name} was not started")
        return self._process.pid

    def start(self) -> Self:
        """Start the server and return when it serves; raise `ServerUnavailable` if it does not in time."""
        if self.running:
            return self
        if not self._prepared:
            self.prepare()
            self._prepared = True
        self._log_start = self.log.stat().st_size if self.log.exists() else 0
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                dying_with_us(self.command(), self.death_signal, self.user),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.folder,
                start_new_session=True,
            )
        deadline = time.monotonic() + self.start_seconds
        while not self.ready():
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(_POLL_SECONDS)  # a nap that ends at once if the server does
            code = self._process.poll()
            if code is not None or time.monotonic() > deadline:
                why = f"ended with {code}" if code is not None else f"does not answer after {self.start_seconds:.0f} s"
                self.kill()
                raise ServerUnavailable(f"{self.name} {why}:\n{self.output()[-3000:]}")
        return self

    def output(self) -> str:
        """Return what the server has written to its log since it was last started."""
        if not self.log.exists():
            return ""
        with self.log.open("rb") as log:
            log.seek(self._log_start)
            return log.read().decode(errors="replace")

    def stop(self, seconds: float = 30.0) -> None:
        """Stop in order and keep the data; a server that has not ended in time is killed."""
        self._end(self.stop_signal, seconds)

    def kill(self) -> None:
        """Kill -9 the server with all its processes, and return when they are gone; the data stays."""
        if self._process is not None and self._process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def restart(self, *, hard: bool = False) -> Self:
        """Stop (with `hard`, kill -9) and start again with the same port and data."""
        if hard:
            self.kill()
        else:
            self.stop()
        return self.start()

    def close(self) -> None:
        """End the server without care for its data, and remove its folder."""
        self._end(self.death_signal, 10.0)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _end(self, number: signal.Signals, seconds: float) -> None:
        if self._process is None or self._process.poll() is not None:
            return
        self._process.send_signal(number)
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.kill()

    def __enter__(self) -> Self:
        try:
            return self.start()
        except BaseException:
            self.close()
            raise

    def __exit__(self, *exception: object) -> None:
        self.close()
