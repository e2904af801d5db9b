"""Starts the services of a pipeline as processes, watches over them and stops them.

The supervisor itself is one thread, and touches neither log nor databases, so that it may fork at any time. What it
needs to know of a service comes as an exit code, and as one line through a pipe if there is more to say.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import gc
import json
import mmap
import os
import select
import signal
import struct
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum, auto
from pathlib import Path
from typing import IO, NamedTuple

from control.service import Backoff, Exit, StopSignal, signals
from schemas.errors import LogUnavailable, OperatorError, PermissionMissing, PositionLost, SchemaUnsupported

_PR_SET_PDEATHSIG = 1
_STOP_SECONDS = 15.0
"""After that a service that was asked to stop is killed: everything is made so that this loses nothing."""

_OBJECTS_BETWEEN_COLLECTIONS = 10_000

_CRASHES_IN_A_ROW = 8
_LONG_SECONDS = 10.0
"""A run that is to end by itself does not go on for ever with a service that never lives for long: with thousands of
tables the way to where it crashes may take longer than what else counts as healthy."""

_STALLED_SECONDS = 60.0
"""A step of a service is a small piece of work: of one that takes so long people are told, and again each time that it
has taken twice as long. It may be right, as a statement that waits for somebody's lock is, but nobody would know."""

_LOOK_SECONDS = 5.0
_MOMENT = struct.Struct("d")

_prctl = getattr(ctypes.CDLL(None), "prctl", None)


class Vital(Enum):
    """What it means for the pipeline that a service has stopped for good."""

    ESSENTIAL = auto()  # nothing can go on: stop everything
    FEEDING = auto()  # nothing new comes: what there is is worked off first, if it is right
    LAST = auto()  # it runs only then, and ends when that is done
    USEFUL = auto()  # the others go on without it
    JUDGE = auto()  # it decides: when it ends with 0, all is done


@dataclass(frozen=True, slots=True)
class Service:
    """One process to be kept alive. `run` is called in it, and returns its exit code or raises `OperatorError`.

    `preload` is called in the supervisor before each start: what is imported there, all later ones share, while those
    that were started before work already.
    """

    name: str
    run: Callable[[], int]
    vital: Vital = Vital.ESSENTIAL
    preload: Callable[[], None] = lambda: None


class Refusal(NamedTuple):
    """Why a service stopped for good."""

    service: str
    message: str
    remedy: str
    kind: str = ""  # of error


_FED_RIGHT = frozenset({PositionLost.__name__, PermissionMissing.__name__, SchemaUnsupported.__name__})
"""After these errors what is there is as good as before: only what would have come next is missing."""


@dataclass(slots=True)
class _Child:
    service: Service
    backoff: Backoff = field(default_factory=Backoff)
    pid: int = 0  # 0: not running
    began: float = 0.0
    due: float | None = 0.0  # when to start it (again); None: never
    pipe: int = -1
    crashes: int = 0  # in a row
    stalled: float = _STALLED_SECONDS  # for how long a step may go on until people are told next


class Supervisor:
    """Keeps services running until it is asked to stop, the judge is content, or something essential gave up.

    `bounded` says that the run is to end by itself: then a service that stops for good, or crashes again and again,
    ends it, because what it is to reach can't be reached any more.
    """

    def __init__(
        self,
        services: list[Service],
        *,
        bounded: bool,
        pids: Path | None = None,
        say: Callable[[str], None] = lambda text: print(text, file=sys.stderr, flush=True),
        stop: StopSignal | None = None,
    ) -> None:
        self._children = [_Child(service, due=None if service.vital is Vital.LAST else 0.0) for service in services]
        self._bounded, self._pids, self._say = bounded, pids, say
        self._stop = stop or StopSignal()
        # When each service began its latest step, written by it: a pipe would fill while nobody reads.
        self._beats = mmap.mmap(-1, _MOMENT.size * max(1, len(services)))
        self._wake_reader, self._wake_writer = os.pipe()
        for end in (self._wake_reader, self._wake_writer):
            os.set_blocking(end, False)
        self.refusals: list[Refusal] = []
        self.complete = False
        self._starved = False  # what feeds the others has stopped for good

    def run(self) -> Exit:
        """Run until the end and return the exit code; nothing of ours runs any more then."""
        before = signal.set_wakeup_fd(self._wake_writer, warn_on_full_buffer=False)
        chld = signal.signal(signal.SIGCHLD, lambda number, frame: None)
        try:
            with signals(self._stop):
                result = self._run()
                self._end_all()
        finally:
            self._end_all()
            signal.signal(signal.SIGCHLD, chld)
            signal.set_wakeup_fd(before)
            os.close(self._wake_reader)
            os.close(self._wake_writer)
            if self._pids is not None:
                self._pids.unlink(missing_ok=True)
        return result

    def _run(self) -> Exit:
        changed = False
        while not self._stop:
            now = time.monotonic()
            for child in self._children:
                if child.pid == 0 and child.due is not None and child.due <= now:
                    self._start(child)
                    changed = True
            if changed:
                self._write_pids()
                changed = False
            dues = [c.due for c in self._children if c.pid == 0 and c.due is not None]
            self._sleep(min(_LOOK_SECONDS, max(0.0, min(dues) - time.monotonic())) if dues else _LOOK_SECONDS)
            self._tell_stalled()
            for child, status in self._reap():
                changed = True
                result = self._ended(child, status)
                if result is not None:
                    return result
            if not any(c.pid or c.due is not None for c in self._children):
                return Exit.OPERATOR if self.refusals else Exit.DONE
        return Exit.OPERATOR if self._starved else Exit.DONE

    def _tell_stalled(self) -> None:
        """Tell of services whose step goes on and on: each waits for an answer, from whomever."""
        now = time.monotonic()
        for number, child in enumerate(self._children):
            (began,) = _MOMENT.unpack_from(self._beats, number * _MOMENT.size)
            if not child.pid or not began or now - began < _STALLED_SECONDS:
                child.stalled = _STALLED_SECONDS
            elif now - began >= child.stalled:
                child.stalled = 2 * (now - began)
                self._say(
                    f"penstock: {child.service.name} has been in one step for {now - began:.0f} s: it waits for a"
                    " database, the log or the network\n  in pg_stat_activity of source and target, our sessions"
                    " (application_name penstock …) show what they wait for; a lock most often"
                )

    def _sleep(self, seconds: float | None) -> None:
        with contextlib.suppress(InterruptedError):
            select.select([self._wake_reader], [], [], seconds)
        with contextlib.suppress(BlockingIOError):
            os.read(self._wake_reader, 4096)

    # ------------------------------------------------------------------------------------------------- children

    def _start(self, child: _Child) -> None:
        gc.disable()  # what is imported stays
        child.service.preload()
        gc.freeze()  # what is here now is shared by all children; a collection would touch, and so copy, each page
        gc.enable()
        reader, writer = os.pipe()
        sys.stdout.flush()
        sys.stderr.flush()
        supervisor, number = os.getpid(), self._children.index(child)
        _MOMENT.pack_into(self._beats, number * _MOMENT.size, 0.0)
        # A signal between the fork and the child's own handlers would be taken for one to the supervisor.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
        pid = os.fork()
        if pid == 0:
            os.close(reader)
            _BEAT.to = lambda at: _MOMENT.pack_into(self._beats, number * _MOMENT.size, at)
            _become(child.service, supervisor, writer, [c.pipe for c in self._children if c.pipe >= 0])
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM, signal.SIGINT})
        os.close(writer)
        child.pid, child.began, child.due, child.pipe = pid, time.monotonic(), None, reader

    def _reap(self) -> Iterator[tuple[_Child, int]]:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            for child in self._children:
                if child.pid == pid:
                    child.pid = 0
                    yield child, os.waitstatus_to_exitcode(status)

    def _ended(self, child: _Child, code: int) -> Exit | None:
        """Decide what follows from the end of a service; return an exit code if it is the end of all."""
        told = _read_all(child.pipe)
        child.pipe = -1
        service = child.service
        ran = time.monotonic() - child.began
        if self._stop:
            return None
        if code == Exit.DONE:
            if service.vital is Vital.JUDGE:
                self.complete = True
                return Exit.DONE
            return Exit.OPERATOR if service.vital is Vital.LAST else None
        if code == Exit.OPERATOR:
            words = json.loads(told) if told else {}
            refusal = Refusal(
                service.name, words.get("message", "stopped"), words.get("remedy", ""), words.get("kind", "")
            )
            self.refusals.append(refusal)
            if service.vital is Vital.FEEDING and self._work_off(refusal):
                return None
            if service.vital is not Vital.USEFUL or self._bounded:
                return Exit.OPERATOR
            self._say(refusal_text(refusal) + "\n  the other services go on")
            return None
        why = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
        pause = child.backoff.next(ran)
        child.crashes = 1 if ran >= _LONG_SECONDS else child.crashes + 1
        if self._bounded and child.crashes >= _CRASHES_IN_A_ROW:
            message = f"{why} {child.crashes} times in a row"
            self.refusals.append(Refusal(service.name, message, "see its log under logs/ of the state folder"))
            return Exit.CRASHED
        # The first time it is back at once: most often somebody stopped it from outside.
        child.due = time.monotonic() + (0.0 if child.backoff.failures == 1 else pause)
        self._say(f"penstock: {service.name} {why}; it is started again")
        return None

    def _work_off(self, refusal: Refusal) -> bool:
        """Let the others finish what they have been fed with, if that is right; return whether they do."""
        last = [child for child in self._children if child.service.vital is Vital.LAST]
        if refusal.kind not in _FED_RIGHT or not last:
            return False
        if not self._starved:
            self._starved = True
            for child in last:
                child.due = 0.0
            self._say(refusal_text(refusal) + "\n  the others go on until the targets have all that is in the log")
        return True

    def _end_all(self) -> None:
        """Ask every child to stop, wait, and kill those that don't."""
        deadline = time.monotonic() + _STOP_SECONDS
        for child in self._children:
            if child.pid:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(child.pid, signal.SIGTERM)
        while any(child.pid for child in self._children):
            for child, _ in self._reap():
                _read_all(child.pipe)
                child.pipe = -1
            left = deadline - time.monotonic()
            if left <= 0:
                for child in self._children:
                    if child.pid:
                        with contextlib.suppress(ProcessLookupError):
                            os.kill(child.pid, signal.SIGKILL)
                deadline = time.monotonic() + _STOP_SECONDS
            if any(child.pid for child in self._children):
                self._sleep(max(0.0, left))

    def _write_pids(self) -> None:
        if self._pids is None:
            return
        running = {child.service.name: child.pid for child in self._children if child.pid}
        try:
            write_json(self._pids, {"supervisor": os.getpid(), **running})
        except OSError as error:  # the disk is full, or the folder is gone: the services say so if it stops them
            self._say(f"penstock: {self._pids} can't be written: {error.strerror}")


def _become(service: Service, supervisor: int, report: int, foreign: list[int]) -> None:
    """Be the service in a process that was just forked, and end with its exit code. Does not return."""
    code: int = Exit.CRASHED
    try:
        if _prctl is not None:
            # The kernel ends us with the supervisor; elsewhere than on Linux a loop notices it by `getppid`.
            _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
            if os.getppid() != supervisor:
                os._exit(Exit.CRASHED)
        for pipe in foreign:
            os.close(pipe)
        # What a service makes stays, as the tables it knows, or ends by itself: it is seldom worth looking for garbage.
        gc.set_threshold(_OBJECTS_BETWEEN_COLLECTIONS)
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        stop = current_stop()
        stop.renew()
        with signals(stop, keyboard=False):
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM, signal.SIGINT})
            try:
                code = service.run()
            except OperatorError as error:
                words = {"kind": type(error).__name__, "message": str(error), "remedy": error.remedy}
                os.write(report, json.dumps(words).encode()[:60_000])
                code = Exit.OPERATOR
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


_STOP = StopSignal()


class _Beat:
    """Where the service that this process is notes its steps; nowhere without a supervisor."""

    def __init__(self) -> None:
        self.to: Callable[[float], None] = lambda at: None


_BEAT = _Beat()


def current_beat() -> Callable[[float], None]:
    """What is to be called by this process's service when a step begins, with the time of `time.monotonic`."""
    return _BEAT.to


def current_stop() -> StopSignal:
    """The stop signal of the service that this process is."""
    return _STOP


def refusal_text(refusal: Refusal) -> str:
    """How a service that stopped for good is shown."""
    text = f"penstock: {refusal.service}: {refusal.message}"
    return f"{text}\n  {refusal.remedy}" if refusal.remedy else text


def _read_all(pipe: int) -> bytes:
    """Read what a child that has ended left in its pipe, and close it."""
    if pipe < 0:
        return b""
    parts = []
    os.set_blocking(pipe, False)  # a grandchild could still hold the other end
    with contextlib.suppress(BlockingIOError):
        while part := os.read(pipe, 65536):
            parts.append(part)
    os.close(pipe)
    return b"".join(parts)


def write_json(path: Path, content: Mapping[str, object]) -> None:
    """Replace a file at once, so that a reader never sees half of it."""
    fresh = path.with_name(f"{path.name}.{os.getpid()}")
    fresh.write_text(json.dumps(content, indent=1) + "\n")
    fresh.replace(path)


@contextlib.contextmanager
def only_one(state: Path, seconds: float = 5.0) -> Iterator[None]:
    """Hold the state folder against a second supervisor; the kernel lets go of it with the last of our processes.

    Waits a moment, because the children of a supervisor that was killed end shortly after it.
    """
    deadline = time.monotonic() + seconds
    while (file := _locked(state)) is None:
        if time.monotonic() > deadline:
            raise OperatorError(
                f"another `penstock run` works with {state}",
                remedy="stop it first, or give this pipeline a state folder of its own (`state:`)",
            )
        time.sleep(0.02)
    with file:
        yield


def _locked(state: Path) -> IO[str] | None:
    """Return the lock file of a state folder, locked; None if somebody else holds it, or has just removed it."""
    try:
        state.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as stack:
            file = stack.enter_context((state / "run.lock").open("w"))
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(file.fileno()).st_ino != (state / "run.lock").stat().st_ino:
                return None
            stack.pop_all()
            return file
    except (BlockingIOError, FileNotFoundError):
        return None
    except OSError as error:
        raise LogUnavailable(f"{state} can't be locked: {error}") from error
