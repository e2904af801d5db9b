"""Structured logs: JSON lines in a file of each service, warnings for people on the console, secrets in neither."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from pythonjsonlogger.json import JsonFormatter

Console = Callable[[str], None]

_OURS = "penstock"
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


class ServiceLog:
    """What a service tells: an event, and what belongs to it by name. With `told` people hear of it from another."""

    def __init__(self, logger: logging.Logger) -> None:
        self._logger = logger

    def info(self, event: str, **fields: Any) -> None:
        self._logger.info({"event": event, **fields})

    def warning(self, event: str, **fields: Any) -> None:
        self._logger.warning({"event": event, **fields})

    def error(self, event: str, *, exc_info: bool = False, **fields: Any) -> None:
        self._logger.error({"event": event, **fields}, exc_info=exc_info)


class _Lines(JsonFormatter):
    """Writes a record as a line of JSON."""

    converter = staticmethod(time.gmtime)
    default_time_format, default_msec_format = "%Y-%m-%dT%H:%M:%S", "%s.%03dZ"

    def __init__(self, service: str) -> None:
        super().__init__(
            "%(asctime)s %(levelname)s %(process)d %(message)s",
            rename_fields={
                "asctime": "time",
                "levelname": "level",
                "process": "pid",
                "message": "event",
                "exc_info": "exception",
            },
            static_fields={"service": service},
            json_default=str,
            json_ensure_ascii=False,
        )

    def process_log_record(self, log_data: dict[str, Any]) -> dict[str, Any]:
        log_data["level"] = log_data["level"].lower()
        log_data.pop("told", None)
        return log_data


def configure(
    service: str,
    *,
    file: LogFile | None,
    console: Console,
    level: str = "info",
    redact: Redactor | None = None,
) -> ServiceLog:
    """Set up this process's logs and return its logger. What libraries say by `logging` goes the same way."""
    clean, lines = redact or Redactor(), _Lines(service)
    least = logging.getLevelNamesMapping()[level.upper()]

    class _Deliver(logging.Handler):
        written = True

        def emit(self, record: logging.LogRecord) -> None:
            fields = record.msg if isinstance(record.msg, dict) else {"event": record.getMessage()}
            if record.name != _OURS:
                record.logger = record.name
            if file is not None and record.levelno >= least:
                # A full disk is no reason to stop a service: what it works on may be elsewhere.
                try:
                    file.write(clean(lines.format(record)))
                    self.written = True
                except OSError as error:
                    if self.written:
                        console(f"{service}: its log file can't be written: {error.strerror}")
                    self.written = False
            if record.levelno >= logging.WARNING and not fields.get("told"):
                console(clean(_for_people(service, fields)))

    logging.basicConfig(handlers=[_Deliver()], level=min(least, logging.WARNING), force=True)
    return ServiceLog(logging.getLogger(_OURS))


def _for_people(service: str, event: Mapping[str, Any]) -> str:
    """One line; a traceback, and what class an error is of, stay in the file."""
    rest = {k: v for k, v in event.items() if k not in {"event", "error", "kind", "remedy", "told"}}
    text = f"{service}: {event.get('event', '')}"
    if event.get("error"):
        text += f": {event['error']}"
    if rest:
        text += " (" + ", ".join(f"{k} {v}" for k, v in rest.items()) + ")"
    if event.get("remedy"):
        text += f" → {event['remedy']}"
    return " ".join(text.split())
