"""A control socket in front of a server's own: answers what a test tells it to, and passes everything else on."""

import contextlib
import json
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from blockmap.control.encoding import VERSION
from blockmap.local.paths import control_socket

Answer = Callable[[dict[str, Any]], dict[str, Any]]


class StandIn:
    """Listens beside `socket`, which leads to the server's NBD socket; `asked` has the requests that it answered itself."""

    def __init__(self, folder: Path, real: Path, answers: dict[str, Answer]) -> None:
        folder.mkdir()
        self.socket = folder / "nbd.sock"
        self.socket.symlink_to(real)
        self.asked: list[dict[str, Any]] = []
        self._real = control_socket(real)
        self._answers = answers
        self._listening = socket.socket(socket.AF_UNIX)
        self._listening.bind(str(control_socket(self.socket)))
        self._listening.listen()
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._listening.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listening.close()

    def ops(self) -> list[str]:
        return [request["op"] for request in self.asked]

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listening.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client, client.makefile("rb") as lines:
            line = lines.readline()
            if not line:
                return
            request = json.loads(line)
            answer = self._answers.get(request["op"])
            if answer is None:
                with socket.socket(socket.AF_UNIX) as server, server.makefile("rb") as said:
                    server.connect(str(self._real))
                    server.sendall(line)
                    client.sendall(said.readline())
                return
            self.asked.append(request)
            line = json.dumps({"ok": True, "v": VERSION, **answer(request)}).encode() + b"\n"
            with contextlib.suppress(BrokenPipeError):  # a command that was ended does not wait for it
                client.sendall(line)
