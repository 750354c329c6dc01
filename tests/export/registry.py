"""A registry on loopback that takes images and gives them back (distribution-spec)."""

import hashlib
import http.server
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest


@dataclass
class PushedImages:
    """What was pushed: blobs by digest, manifests by digest and tag with their types."""

    address: str = ""
    blobs: dict[str, bytes] = field(default_factory=dict)
    manifests: dict[str, tuple[str, bytes]] = field(default_factory=dict)


@contextmanager
def pushable(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[PushedImages]:
    """Serves a registry, which skopeo's configuration below `home` allows without TLS."""
    kept, uploads = PushedImages(), dict[str, bytes]()

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self, status: int, data: bytes = b"", **headers: str) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            for name, value in headers.items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data)

        def body(self) -> bytes:
            if self.headers.get("Transfer-Encoding") != "chunked":
                return self.rfile.read(int(self.headers.get("Content-Length") or 0))
            found = b""
            while size := int(self.rfile.readline(), 16):
                found += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return found

        def do_GET(self) -> None:
            name = self.path.rpartition("/")[2]
            if self.path == "/v2/":
                self.answer(200)
            elif "/manifests/" in self.path and name in kept.manifests:
                media, data = kept.manifests[name]
                digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
                self.answer(200, data, Content_Type=media, Docker_Content_Digest=digest)
            elif "/blobs/" in self.path and name in kept.blobs:
                self.answer(200, kept.blobs[name])
            else:
                self.answer(404, b'{"errors":[]}')

        do_HEAD = do_GET

        def do_POST(self) -> None:
            uploads[str(len(uploads))] = self.body()
            self.answer(202, Location=f"{self.path.partition('?')[0]}{len(uploads) - 1}")

        def do_PATCH(self) -> None:
            uploads[self.path.rpartition("/")[2]] += self.body()
            self.answer(202, Location=self.path)

        def do_PUT(self) -> None:
            data = self.body()
            path, _, query = self.path.partition("?")
            if "/manifests/" in path:
                digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
                for name in (digest, path.rpartition("/")[2]):
                    kept.manifests[name] = self.headers["Content-Type"], data
            else:
                data = uploads[path.rpartition("/")[2]] + data
                digest = re.sub("%3A", ":", query.partition("digest=")[2])
                assert digest == f"sha256:{hashlib.sha256(data).hexdigest()}"
                kept.blobs[digest] = data
            self.answer(201, Docker_Content_Digest=digest)

        def log_message(self, format: str, *arguments: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    kept.address = f"127.0.0.1:{server.server_address[1]}"
    own = home / ".config" / "containers"
    own.mkdir(parents=True)
    (own / "registries.conf").write_text(f'[[registry]]\nlocation = "{kept.address}"\ninsecure = true\n')
    (own / "policy.json").write_text('{"default": [{"type": "insecureAcceptAnything"}]}')
    monkeypatch.setenv("HOME", str(home))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield kept
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
