"""A web server over objects in memory which breaks HTTP, or dawdles, as it is told to."""

import gzip
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote

from blockmap.errors import NotFound
from blockmap.store.memory import MemoryStore

_PAUSE_S = 0.2


class Misbehaving(ThreadingHTTPServer):
    """Serves `objects`; `fault` is what is wrong with answers whose keys begin with `prefix`."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, objects: MemoryStore) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.objects = objects
        self.fault = ""
        self.prefix = ""
        self.requests: list[str] = []
        self.ended = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, *_: object) -> None:
        """A client that goes away in the midst of an answer is what tests are about."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Misbehaving

    def log_message(self, *_: object) -> None:
        """Tests look at `requests`."""

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        key = unquote(self.path.lstrip("/"))
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        self.server.requests.append(f"{self.command} {key}")
        fault = self.server.fault if key.startswith(self.server.prefix) else ""
        try:
            data = self.server.objects.get(key)
        except NotFound:
            self._answer(404, b"")
            return
        if fault == "stall":
            self.server.ended.wait(60)
        if asked is None:
            self._whole(fault, data)
        else:
            self._range(fault, data, int(asked[1]), min(int(asked[2]) + 1, len(data)))

    def _whole(self, fault: str, data: bytes) -> None:
        if fault == "compressed":
            self._answer(200, gzip.compress(data), {"Content-Encoding": "gzip"}, fault)
        else:
            self._answer(200, data, {}, fault)

    def _range(self, fault: str, data: bytes, start: int, end: int) -> None:
        body = data[start:end]
        told = f"bytes {start}-{end - 1}/{len(data)}"
        if fault == "416" or start >= len(data):
            self._answer(416, b"", {"Content-Range": f"bytes */{len(data)}"})
        elif fault == "whole":
            self._answer(200, data)
        elif fault == "no range":
            self._answer(206, body)
        elif fault == "strange range":
            self._answer(206, body, {"Content-Range": "some"})
        elif fault == "other range":
            self._answer(206, body, {"Content-Range": f"bytes {start + 1}-{end}/{len(data)}"})
        elif fault == "half":
            half = body[: len(body) // 2]
            self._answer(206, half, {"Content-Range": f"bytes {start}-{start + len(half) - 1}/{len(data)}"})
        elif fault == "short":
            self._answer(206, body[:-1], {"Content-Range": told})
        elif fault == "long":
            self._answer(206, body + b"x", {"Content-Range": told})
        elif fault == "compressed":
            self._answer(206, gzip.compress(body), {"Content-Range": told, "Content-Encoding": "gzip"})
        elif fault == "other bytes":
            self._answer(206, bytes(len(body)), {"Content-Range": told})
        else:
            self._answer(206, body, {"Content-Range": told}, fault)

    def _answer(self, status: int, body: bytes, headers: dict[str, str] | None = None, fault: str = "") -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        if fault == "chunked":
            self.send_header("Transfer-Encoding", "chunked")
        else:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "HEAD":
            return
        if fault == "chunked":
            self.wfile.write(b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body))
        elif fault == "broken off":
            self.wfile.write(body[: len(body) // 2])
            self.close_connection = True
        elif fault == "stalled half":
            self.wfile.write(body[: len(body) // 2])
            self.server.ended.wait(60)
        elif fault == "crawl":
            for at in range(0, len(body), 40):
                self.wfile.write(body[at : at + 40])
                if self.server.ended.is_set():
                    self.close_connection = True
                    return
                time.sleep(_PAUSE_S)
        else:
            self.wfile.write(body)


@contextmanager
def misbehaving(objects: MemoryStore) -> Iterator[Misbehaving]:
    """A server that runs until the block ends."""
    server = Misbehaving(objects)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.ended.set()
        server.shutdown()
        thread.join()
        server.server_close()
