"""A wire to a PostgreSQL server that is cut at the worst moment: when a commit was carried out, and nobody knows."""

from __future__ import annotations

import contextlib
import selectors
import socket
import threading
from collections.abc import Iterator

# CommandComplete, with its length and its tag; and the simple Query that asks for it.
_ANSWER = b"C\x00\x00\x00\x0bCOMMIT\x00"
_QUESTION = b"Q\x00\x00\x00\x0bcommit\x00"


class Proxy:
    """Forwards connections to a server, and cuts one when `armed` and a commit goes by.

    `answers`: the server has committed, and the client never hears of it; else the question is cut off, and the
    server rolls back. Which of the two it was the client can't tell.
    """

    def __init__(self, host: str, port: int, *, answers: bool) -> None:
        self._server, self._answers = (host, port), answers
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._ending = False
        self._armed = 0
        self.cuts = 0
        self._threads: list[threading.Thread] = []
        self._acceptor = threading.Thread(target=self._accept, name="proxy", daemon=True)
        self._acceptor.start()

    def arm(self) -> None:
        """Cut at the next commit."""
        self._armed += 1

    def close(self) -> None:
        self._ending = True
        with contextlib.suppress(OSError):
            socket.create_connection(("127.0.0.1", self.port), 1).close()  # wakes who waits in accept
        self._acceptor.join()
        self._listener.close()
        for thread in self._threads:
            thread.join()

    def _accept(self) -> None:
        while True:
            client, _ = self._listener.accept()
            if self._ending:
                client.close()
                return
            thread = threading.Thread(target=self._serve, args=(client,), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _serve(self, client: socket.socket) -> None:
        with client:
            try:
                server = socket.create_connection(self._server, 5)
            except OSError:
                return
            with server, contextlib.suppress(OSError):
                for one in (client, server):
                    one.settimeout(None)
                    one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self._forward(client, server)

    def _forward(self, client: socket.socket, server: socket.socket) -> None:
        before = {client: b"", server: b""}
        with selectors.DefaultSelector() as selector:
            selector.register(client, selectors.EVENT_READ, server)
            selector.register(server, selectors.EVENT_READ, client)
            while not self._ending:
                for source, data in _arrived(selector):
                    if not data:
                        return
                    watched = server if self._answers else client
                    sign = _ANSWER if self._answers else _QUESTION
                    if source is watched and self._armed > self.cuts:
                        # A sign may come in two pieces; of the first the other side can make nothing.
                        if sign in before[source] + data:
                            self.cuts += 1
                            return
                        before[source] = data[-len(sign) :]
                    (client if source is server else server).sendall(data)


def _arrived(selector: selectors.BaseSelector) -> Iterator[tuple[socket.socket, bytes]]:
    for key, _ in selector.select(0.2):
        assert isinstance(key.fileobj, socket.socket)
        yield key.fileobj, key.fileobj.recv(1 << 18)
