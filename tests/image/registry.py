"""Debian's registry (distribution) on loopback, which logs each request."""

import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.store.servers import running
from tests.waiting import free_ports, listens

_REQUEST = re.compile(r'"(GET|HEAD|PUT|POST|PATCH) (/v2/\S*) HTTP')


@dataclass
class LocalRegistry:
    """A registry without TLS, as docker takes it on loopback."""

    address: str
    log: Path

    def put(self, source: Path, name: str, tag: str = "1") -> str:
        """Pushes the image of an OCI layout; returns what `import` takes for it."""
        reference = f"docker://{self.address}/{name}"
        command = [
            "skopeo",
            "--insecure-policy",
            "copy",
            "--quiet",
            "--preserve-digests",
            "--dest-tls-verify=false",
            "--all",
        ]
        subprocess.run([*command, f"oci:{source}:{tag}", reference], check=True)
        return reference

    def requests(self) -> list[str]:
        """Returns the requests so far, such as `GET /v2/`; one is logged a moment after it was answered."""
        return [" ".join(found) for found in _REQUEST.findall(self.log.read_text())]


@contextmanager
def local_registry(where: Path) -> Iterator[LocalRegistry]:
    """Serves a registry whose images lie below `where`."""
    where.mkdir()
    (port,) = free_ports(1)
    settings, log = where / "config.yml", where / "log"
    settings.write_text(
        f"version: 0.1\nstorage:\n  filesystem:\n    rootdirectory: {where / 'images'}\nhttp:\n  addr: 127.0.0.1:{port}\n"
    )
    with running(["docker-registry", "serve", str(settings)], log, lambda: listens(port)):
        yield LocalRegistry(f"127.0.0.1:{port}", log)
