"""What stands between a client and a PostgreSQL server: it listens beside the server of a URL."""

from __future__ import annotations

import contextlib
import socket
import threading
from abc import ABC, abstractmethod
from urllib.parse import urlsplit


class Listening(ABC):
    """Gives each connection to a thread of its own, which `serve`s it; `url` leads through here to the server."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self.server = parts.hostname or "127.0.0.1", parts.port or 5432
        self._listener = socket.create_server(("127.0.0.1", 0))
        port = self._listener.getsockname()[1]
        self.url = parts._replace(netloc=f"{parts.netloc.rpartition('@')[0]}@127.0.0.1:{port}").geturl()
        self.ending = False
        self._threads: list[threading.Thread] = []
        self._acceptor = threading.Thread(target=self._accept, name=type(self).__name__, daemon=True)
        self._acceptor.start()

    @abstractmethod
    def serve(self, client: socket.socket) -> None:
        """Serve a connection until it ends, or `ending` is set; the socket is closed behind it."""

    def close(self) -> None:
        self.ending = True
        with contextlib.suppress(OSError):
            socket.create_connection(self._listener.getsockname(), 1).close()  # wakes who waits in accept
        self._acceptor.join()
        self._listener.close()
        for thread in self._threads:
            thread.join()

    def _accept(self) -> None:
        while True:
            client, _ = self._listener.accept()
            if self.ending:
                client.close()
                return
            thread = threading.Thread(target=self._serve, args=(client,), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _serve(self, client: socket.socket) -> None:
        with client:
            self.serve(client)
