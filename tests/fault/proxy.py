"""Wires to a PostgreSQL server that behave as networks do: they cut, stall, delay, and lose an answer."""

from __future__ import annotations

import contextlib
import selectors
import socket
import threading
import time
from collections.abc import Iterator

from tests.fault.listening import Listening

# CommandComplete, with its length and its tag; and the simple Query that asks for it.
_ANSWER = b"C\x00\x00\x00\x0bCOMMIT\x00"
_QUESTION = b"Q\x00\x00\x00\x0bcommit\x00"


class Wire(Listening):
    """Forwards connections to the server of a URL. What is done to it is done to all that are open."""

    def __init__(self, url: str) -> None:
        self._flows = threading.Event()
        self._flows.set()
        self._generation = 0
        self.delay = 0.0  # seconds, of every piece in either direction
        super().__init__(url)

    def stall(self) -> None:
        """Carry nothing any more, and leave all connections open: what is sent goes nowhere, and nobody is told."""
        self._flows.clear()

    def flow(self) -> None:
        """Carry what waits, and go on."""
        self._flows.set()

    def cut(self) -> None:
        """Cut every connection that is open."""
        self._generation += 1

    def close(self) -> None:
        self._flows.set()
        super().close()

    def passes(self, data: bytes, before: bytes, from_server: bool) -> bool:
        """Whether a piece is carried on; else the connection is cut. `before` is the end of what came before it."""
        return True

    def serve(self, client: socket.socket) -> None:
        try:
            server = socket.create_connection(self.server, 5)
        except OSError:
            return
        with server, contextlib.suppress(OSError):
            for one in (client, server):
                one.settimeout(None)
                one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._forward(client, server)

    def _forward(self, client: socket.socket, server: socket.socket) -> None:
        generation = self._generation
        before = {client: b"", server: b""}
        with selectors.DefaultSelector() as selector:
            selector.register(client, selectors.EVENT_READ, server)
            selector.register(server, selectors.EVENT_READ, client)
            while not self.ending and generation == self._generation:
                if not self._flows.wait(0.1):
                    continue
                for source, data in _arrived(selector):
                    if not data or not self.passes(data, before[source], source is server):
                        return
                    before[source] = data[-64:]
                    time.sleep(self.delay)
                    (client if source is server else server).sendall(data)


class Proxy(Wire):
    """A wire that is cut at the worst moment: when `armed` and a commit goes by.

    `answers`: the server has committed, and the client never hears of it; else the question is cut off, and the
    server rolls back. Which of the two it was the client can't tell.
    """

    def __init__(self, url: str, *, answers: bool) -> None:
        self._answers = answers
        self._armed = 0
        self.cuts = 0
        super().__init__(url)

    def arm(self) -> None:
        """Cut at the next commit."""
        self._armed += 1

    def passes(self, data: bytes, before: bytes, from_server: bool) -> bool:
        sign = _ANSWER if self._answers else _QUESTION
        if from_server is not self._answers or self._armed <= self.cuts:
            return True
        # A sign may come in two pieces; of the first the other side can make nothing.
        if sign not in before + data:
            return True
        self.cuts += 1
        return False


def _arrived(selector: selectors.BaseSelector) -> Iterator[tuple[socket.socket, bytes]]:
    for key, _ in selector.select(0.2):
        assert isinstance(key.fileobj, socket.socket)
        yield key.fileobj, key.fileobj.recv(1 << 18)
