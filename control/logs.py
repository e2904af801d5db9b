"""Structured logs: JSON lines in a file of each service, warnings for people on the console, secrets in neither."""

from __future__ import annotations

import json
import logging
import os
import re
import time
from collections.abc import Callable, Iterable, Mapping, MutableMapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import structlog

Console = Callable[[str], None]

_LEVELS = {"debug": 10, "info": 20, "warning": 30, "error": 40, "critical": 50, "exception": 40}
_KEPT_BYTES = 16 << 20
_PASSWORD = re.compile(r"(\w+://[^\s:/@]*):[^\s@]*@")
_SHORTEST_SECRET = 4  # replacing every "a" because that is somebody's password would hide nothing and garble all


class Redactor:
    """Takes secrets out of text."""

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        self._secrets = sorted((s for s in secrets if len(s) >= _SHORTEST_SECRET), key=len, reverse=True)

    def __call__(self, text: str) -> str:
        for secret in self._secrets:
            text = text.replace(secret, "***")
        return _PASSWORD.sub(r"\1:***@", text)


class LogFile:
    """A file of lines that is moved aside (to `.1`) when it is full; one process writes it."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        self._file = path.open("ab", buffering=0)

    def write(self, line: str) -> None:
        if self._file.tell() > _KEPT_BYTES:
            self._file.close()
            self._path.replace(self._path.with_suffix(self._path.suffix + ".1"))
            self._file = self._path.open("ab", buffering=0)
        self._file.write(line.encode(errors="replace") + b"\n")

    def close(self) -> None:
        self._file.close()


def configure(
    service: str,
    *,
    file: LogFile | None,
    console: Console,
    level: str = "info",
    redact: Redactor | None = None,
) -> structlog.stdlib.BoundLogger:
    """Set up this process's logs and return its logger. What libraries say by `logging` goes the same way."""
    import structlog  # not at the start of the program: it is slow to come, and the first service does not wait for it

    clean = redact or Redactor()
    least = _LEVELS[level]
    pid = os.getpid()

    def put(number: int, event: MutableMapping[str, Any]) -> None:
        told = event.pop("told", False)  # to people, by somebody else
        if file is not None and number >= least:
            head = {"time": _now(), "service": service, "pid": pid}
            file.write(clean(json.dumps({**head, **event}, default=str, ensure_ascii=False)))
        if number >= _LEVELS["warning"] and not told:
            console(clean(_for_people(service, event)))

    def deliver(_: object, method: str, event: MutableMapping[str, Any]) -> str:
        put(_LEVELS.get(method, 20), {"level": method, **event})
        raise structlog.DropEvent

    structlog.configure(
        processors=[structlog.processors.format_exc_info, deliver],
        wrapper_class=structlog.make_filtering_bound_logger(min(least, _LEVELS["warning"])),
        logger_factory=structlog.ReturnLoggerFactory(),
        cache_logger_on_first_use=True,
    )

    class _Bridge(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            event: dict[str, Any] = {
                "level": record.levelname.lower(),
                "event": record.getMessage(),
                "logger": record.name,
            }
            if record.exc_info:
                event["exception"] = logging.Formatter().formatException(record.exc_info)
            put(record.levelno, event)

    logging.basicConfig(handlers=[_Bridge()], level=least, force=True)
    logger: structlog.stdlib.BoundLogger = structlog.get_logger()
    return logger


def _now() -> str:
    now = time.time()
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now)) + f".{int(now % 1 * 1e6):06d}Z"


def _for_people(service: str, event: Mapping[str, Any]) -> str:
    """One line; a traceback stays in the file."""
    rest = {k: v for k, v in event.items() if k not in {"event", "level", "exception", "error", "remedy", "logger"}}
    text = f"{service}: {event.get('event', '')}"
    if event.get("error"):
        text += f": {event['error']}"
    if rest:
        text += " (" + ", ".join(f"{k} {v}" for k, v in rest.items()) + ")"
    if event.get("remedy"):
        text += f" → {event['remedy']}"
    return " ".join(text.split())
