"""A session-pooling proxy of our own, for want of PgBouncer: it behaves as that does with `pool_mode=session`.

As PgBouncer 1.23 and newer: a client gets a server connection for as long as it stays; then that is reset by `discard
all` and given to the next one. Settings at the start of a connection are refused, but for those that PgBouncer follows.
A connection for replication is passed through, and never shared.
"""

from __future__ import annotations

import contextlib
import select
import selectors
import socket
import struct
import threading

from tests.fault.listening import Listening

_LENGTH = struct.Struct("!I")
_SSL, _GSS = 80877103, 80877104
_FOLLOWED = {"user", "database", "application_name", "client_encoding", "datestyle", "timezone", "replication"}


class _Server:
    """A connection to the server, that of one client after the other."""

    def __init__(self, address: tuple[str, int], startup: bytes) -> None:
        self.socket = socket.create_connection(address, 5)
        self.socket.settimeout(None)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.sendall(_LENGTH.pack(len(startup) + 4) + startup)
        self.greeting = b""  # what every client is told when it has this connection
        self.status = b""
        try:
            while self.status == b"":
                kind, body = _message(self.socket)
                self.greeting += kind + _LENGTH.pack(len(body) + 4) + body
                if kind == b"E":
                    raise ConnectionRefusedError(self.greeting)
                if kind == b"Z":
                    self.status = body
        except OSError:
            self.socket.close()
            raise

    def reset(self) -> bool:
        """Make it as it was; False if the client left it in a transaction, as PgBouncer closes it then."""
        if self.status != b"I":
            return False
        query = b"discard all\0"
        self.socket.sendall(b"Q" + _LENGTH.pack(len(query) + 4) + query)
        while True:
            kind, body = _message(self.socket)
            if kind == b"E":
                return False
            if kind == b"Z":
                return body == b"I"


class Pooler(Listening):
    """Gives the connections of clients that have gone to others."""

    def __init__(self, url: str) -> None:
        self._pool: dict[bytes, list[_Server]] = {}
        self._lock = threading.Lock()
        self.shared = 0  # how often a connection went to another client
        super().__init__(url)

    def close(self) -> None:
        super().close()
        for pool in self._pool.values():
            for server in pool:
                server.socket.close()

    def serve(self, client: socket.socket) -> None:
        with contextlib.suppress(OSError):
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            startup = self._startup(client)
            given = dict(zip(*[iter(startup[4:].split(b"\0"))] * 2, strict=False))
            unknown = [name for name in given if name and name.decode() not in _FOLLOWED]
            if unknown:
                _refuse(client, f"unsupported startup parameter: {unknown[0].decode()}")
                return
            replicates = b"replication" in given
            key = given[b"user"] + b"\0" + given.get(b"database", b"")
            try:
                server = self._lend(key, startup, fresh=replicates)
            except ConnectionRefusedError as refused:
                client.sendall(refused.args[0])
                return
            again = False
            try:
                client.sendall(server.greeting)
                again = self._carry(client, server) and not replicates and server.reset()
            finally:
                if again:
                    with self._lock:
                        self._pool.setdefault(key, []).append(server)
                else:
                    server.socket.close()

    def _startup(self, client: socket.socket) -> bytes:
        while True:
            (length,) = _LENGTH.unpack(_exactly(client, 4))
            startup = _exactly(client, length - 4)
            if _LENGTH.unpack(startup[:4])[0] not in (_SSL, _GSS):
                return startup
            client.sendall(b"N")

    def _lend(self, key: bytes, startup: bytes, *, fresh: bool) -> _Server:
        with self._lock:
            pool = self._pool.get(key, [])
            while pool and not fresh:
                server = pool.pop()
                if not select.select([server.socket], [], [], 0)[0]:  # else it was ended meanwhile
                    self.shared += 1
                    return server
                server.socket.close()
        return _Server(self.server, startup)

    def _carry(self, client: socket.socket, server: _Server) -> bool:
        """Carry messages on until the client leaves, and return whether it said goodbye."""
        rest = {client: b"", server.socket: b""}
        with selectors.DefaultSelector() as selector:
            for one in rest:
                selector.register(one, selectors.EVENT_READ)
            while not self.ending:
                for key, _ in selector.select(0.2):
                    source = key.fileobj
                    assert isinstance(source, socket.socket)
                    data = source.recv(1 << 18)
                    if not data:
                        return False
                    whole, rest[source] = _whole(rest[source] + data)
                    for kind, message in whole:
                        if source is client and kind == b"X":
                            return True
                        if source is not client and kind == b"Z":
                            server.status = message[5:]
                        (server.socket if source is client else client).sendall(message)
        return False


def _whole(data: bytes) -> tuple[list[tuple[bytes, bytes]], bytes]:
    """Return the whole messages, each with its kind, and what is left of the next one."""
    found, at = [], 0
    while len(data) - at >= 5:
        end = at + 1 + int.from_bytes(data[at + 1 : at + 5], "big")
        if len(data) < end:
            break
        found.append((data[at : at + 1], data[at:end]))
        at = end
    return found, data[at:]


def _message(of: socket.socket) -> tuple[bytes, bytes]:
    kind = _exactly(of, 1)
    (length,) = _LENGTH.unpack(_exactly(of, 4))
    return kind, _exactly(of, length - 4)


def _exactly(of: socket.socket, size: int) -> bytes:
    parts = []
    while size:
        part = of.recv(min(size, 1 << 18))
        if not part:
            raise ConnectionResetError
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def _refuse(client: socket.socket, why: str) -> None:
    fields = b"SFATAL\0VFATAL\0C08P01\0M" + why.encode() + b"\0\0"
    client.sendall(b"E" + _LENGTH.pack(len(fields) + 4) + fields)
