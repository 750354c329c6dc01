"""Runs the far side: one nginx that serves stores, disk images and images as a registry does, and logs every request.

Its files are in memory, so that neither its disk nor the page cache, which is emptied before each start, has a part in
what is measured.
"""

import contextlib
import os
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from blockmap.bench.coldstart.engine import BUCKET, seaweedfs
from blockmap.bench.coldstart.origin_log import LOG_FORMAT, LoggedRequest, parse
from blockmap.bench.coldstart.processes import answers, free_ports, mounted, running, wait_ready
from blockmap.errors import HostError
from blockmap.host import tools

_SETTLE_SECONDS = 60.0
_OWN_CONNECTION = "Active connections: 1 "

_NGINX = """
daemon off; worker_processes 2; user root; pid {work}/nginx.pid; error_log {work}/nginx.err warn;
events {{ worker_connections 1024; }}
http {{
  log_format requests '{format}';
  access_log {log} requests;
  default_type application/octet-stream;
  sendfile on; tcp_nodelay on; keepalive_requests 1000000; client_max_body_size 0;
  client_body_temp_path {work}/body; proxy_temp_path {work}/proxy; fastcgi_temp_path {work}/fastcgi;
  uwsgi_temp_path {work}/uwsgi; scgi_temp_path {work}/scgi;
  server {{
    listen 127.0.0.1:{port};
    location / {{ root {files}; autoindex on; }}
    location = /connections {{ stub_status; access_log off; }}
    proxy_http_version 1.1; proxy_set_header Connection ""; proxy_set_header Host $http_host;
    proxy_buffering off; proxy_request_buffering off;
    location = /v2/ {{ return 200; }}
    location ~ ^/v2/.+/manifests/ {{ root {files}; default_type application/vnd.oci.image.manifest.v1+json; }}
    {more}
  }}
}}
"""


class Origin:
    """A running far side; `files` is what it serves, below `port`."""

    def __init__(self, port: int, files: Path, log: Path) -> None:
        self.port = port
        self.files = files
        self._log = log

    def mark(self) -> int:
        """Returns where the log ends now."""
        return os.path.getsize(self._log)

    def requests_since(self, mark: int) -> list[LoggedRequest]:
        """Returns the requests since; to be called when the clients have gone. HostError where they do not go."""
        end = time.monotonic() + _SETTLE_SECONDS
        # A request is logged when it ends, at the latest when its connection does.
        while not self._connections().startswith(_OWN_CONNECTION):
            if time.monotonic() > end:
                raise HostError(f"connections to the web server on port {self.port} stay open: {self._connections()}")
            time.sleep(0.01)
        with open(self._log, errors="replace") as log:
            log.seek(mark)
            return parse(log)

    def _connections(self) -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/connections", timeout=10) as answer:
            return str(answer.read().decode())


@contextlib.contextmanager
def serving(work: Path, engine: str) -> Iterator[Origin]:
    """Starts the far side with blockmap's store in an engine, all files in a file system in memory."""
    (port,) = free_ports(1)
    log = work / "access.log"
    with contextlib.ExitStack() as stack:
        files = stack.enter_context(
            mounted(work / "origin", "-t", "tmpfs", "-o", "mode=755,size=80%", "blockmap-bench")
        )
        more = ""
        if engine == "s3":
            s3 = stack.enter_context(seaweedfs(work, files))
            more = f"location /{BUCKET} {{ proxy_pass http://127.0.0.1:{s3}; }}"
        values = {
            "work": work, "files": files, "log": log, "format": LOG_FORMAT, "port": port, "more": more,
        }  # fmt: skip
        (work / "nginx.conf").write_text(_NGINX.format(**values))
        said = work / "nginx.log"
        process = stack.enter_context(running([tools.find("nginx"), "-c", str(work / "nginx.conf")], said))
        wait_ready(process, said, lambda: answers(port))
        yield Origin(port, files, log)
