"""A registry of the store, as people start it."""

import json
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.waiting import free_ports, listens, until


@dataclass
class RunningRegistry:
    address: str
    log: Path

    def get(self, path: str, method: str = "GET", **headers: str) -> tuple[int, Any, bytes]:
        """Asks for a path below /v2/; returns status, headers and body."""
        request = urllib.request.Request(f"http://{self.address}/v2/{path}", headers=headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.status, answer.headers, answer.read()
        except urllib.error.HTTPError as error:
            return error.code, error.headers, error.read()

    def error(self, path: str) -> tuple[int, str, str]:
        """Returns status, code and message of an error."""
        status, _, body = self.get(path)
        (found,) = json.loads(body)["errors"]
        return status, found["code"], found["message"]

    def copy(self, name: str, to: Path) -> bytes:
        """Pulls an image with skopeo, which verifies every blob; returns its manifest."""
        command = ["skopeo", "copy", "-q", "--src-tls-verify=false", f"docker://{self.address}/{name}", f"dir:{to}"]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
        assert done.returncode == 0, done.stderr + self.log.read_text()
        return (to / "manifest.json").read_bytes()


@contextmanager
def registry(where: Path, store: Path, *arguments: str) -> Iterator[RunningRegistry]:
    """Runs `blockmap registry`."""
    (port,) = free_ports(1)
    found = RunningRegistry(f"127.0.0.1:{port}", where / "registry.log")
    command = [sys.executable, "-m", "blockmap.cli.main", "registry", "--listen", found.address]
    with open(found.log, "wb") as log:
        process = subprocess.Popen(
            [*command, "--store", str(store), "--cache", str(where / "cache"), *arguments], stdout=log, stderr=log
        )
    try:
        until(lambda: listens(port) or process.poll() is not None)
        assert process.poll() is None, found.log.read_text()
        yield found
    finally:
        process.terminate()
        process.wait(30)
