"""How all processes of a run share one terminal."""

from __future__ import annotations

import contextlib
import os
import select


class Messages:
    """Lines from all processes of a run to the one that writes on the terminal.

    Made before anything is forked. Each line is one write, which is whole up to 4 kB; when nobody reads for long,
    lines are lost rather than a service held up: they all stand in the services' own logs as well.
    """

    def __init__(self) -> None:
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._reader, False)
        os.set_blocking(self._writer, False)
        self._rest = b""

    def put(self, line: str) -> None:
        data = line.encode(errors="replace")[: select.PIPE_BUF - 1].replace(b"\n", b"\v") + b"\n"
        with contextlib.suppress(BlockingIOError, BrokenPipeError):
            os.write(self._writer, data)

    def take(self) -> list[str]:
        with contextlib.suppress(BlockingIOError):
            while part := os.read(self._reader, 65536):
                self._rest += part
        *lines, self._rest = self._rest.split(b"\n")
        return [line.replace(b"\v", b"\n").decode(errors="replace") for line in lines]
