"""A relay in front of a server, which loses answers when it is told to."""

import contextlib
import select
import socket
import struct
import threading
from collections.abc import Iterator

_RESET = struct.pack("ii", 1, 0)


class Relay:
    """Passes bytes on between clients and a server on loopback."""

    def __init__(self, port: int) -> None:
        self._upstream = port
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listening.getsockname()[1])
        self.lose = 0
        """So many answers to PUT requests are lost: the server has done what was asked, the client sees a reset."""
        self.lost = 0
        self.break_off = 0
        """So many answers to GET requests for listings end after their first bytes."""
        self._pairs: list[tuple[socket.socket, threading.Thread]] = []

    def run(self) -> None:
        while True:
            try:
                client, _ = self._listening.accept()
            except OSError:
                return
            server = socket.create_connection(("127.0.0.1", self._upstream))
            thread = threading.Thread(target=_pass_on, args=(self, client, server), daemon=True)
            thread.start()
            self._pairs.append((server, thread))

    def close(self) -> None:
        self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        for server, thread in self._pairs:
            with contextlib.suppress(OSError):
                server.shutdown(socket.SHUT_RDWR)
            thread.join()


def _pass_on(relay: Relay, client: socket.socket, server: socket.socket) -> None:
    """Both directions in one thread: a socket that another thread waits for is not reset by closing it."""
    put = listing = False
    with client, server, contextlib.suppress(OSError):
        while True:
            ready, _, _ = select.select([client, server], [], [])
            if client in ready:
                data = client.recv(1 << 16)
                if data.split(b" ", 1)[0] in (b"GET", b"HEAD", b"POST", b"PUT"):
                    put = data.startswith(b"PUT ")
                    listing = data.startswith(b"GET ") and b"list-type=" in data.split(b"\r", 1)[0]
                if not data:
                    return
                server.sendall(data)
            if server in ready:
                data = server.recv(1 << 16)
                if not data:
                    return
                if put and relay.lose:
                    relay.lose -= 1
                    relay.lost += 1
                    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
                    return
                if listing and relay.break_off and b"<Key>" in data:
                    relay.break_off -= 1
                    client.sendall(data[: data.index(b"<Key>")])
                    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
                    return
                client.sendall(data)


@contextlib.contextmanager
def relaying(port: int) -> Iterator[Relay]:
    relay = Relay(port)
    thread = threading.Thread(target=relay.run, daemon=True)
    thread.start()
    try:
        yield relay
    finally:
        relay.close()
        thread.join()
