"""Records starts of an image and builds its profile, before anything is measured.

The recorded starts differ from those that are measured: they have another host name, and, where the program takes them,
another port and another query. All but the first find the cache warm: a start that does not wait takes other ways.
"""

import json
import subprocess
import tempfile
from contextlib import ExitStack
from pathlib import Path

from blockmap.bench.coldstart.blockmap_server import BLOCKMAP, served
from blockmap.bench.coldstart.engine import Store
from blockmap.bench.coldstart.overlay import overlay
from blockmap.bench.coldstart.processes import mounted
from blockmap.control.client import Client
from blockmap.control.messages import Ready, Resolve
from blockmap.errors import HostError
from blockmap.host import mounting
from blockmap.host.devices import mounts
from blockmap.host.devices.nbdfuse import NbdFuse

_STARTS = 2
_NAME = "elsewhere"
_OTHERWISE = {
    "redis": 'startup = ["redis-server", "/etc/redis/redis.conf", "--port", "7001"]\n'
    'ready = { output = "Ready to accept connections", tcp = 7001 }\n',
    "postgres": 'env = { PGPORT = "7002" }\n'
    'ready = { output = "database system is ready to accept connections", tcp = 7002 }\n',
    "python-flask": 'startup = ["/opt/venv/bin/gunicorn", "--bind=127.0.0.1:7003", "app:app"]\n'
    'ready = { http = 7003, path = "/?recorded=yes", body = "hello from Flask" }\n',
    "node-express": 'ready = { http = 3000, path = "/?recorded=yes", body = "hello from Express" }\n',
}


def record(image: str, store: Store, run_startup: Path, timeout_s: float, folder: Path) -> None:
    """Starts an image a few times, each as on a new host, and builds its profile from that; HostError."""
    recipes = folder / "recipes.toml"
    other = _OTHERWISE.get(image.partition(":")[0], "")
    recipes.write_text(f'[{_NAME}]\ncategory = "other"\nfrom = {json.dumps(image)}\n{other}')
    command = [str(run_startup), "--recipes", str(recipes), "--timeout", str(timeout_s), _NAME]
    work = Path(tempfile.mkdtemp(prefix="record-", dir=folder))
    with served(store, work / "cache", work) as socket:
        traces = [_start(image, store, Client(socket), command, work / str(number)) for number in range(_STARTS)]
    build = [*BLOCKMAP, "profile", "build", "--store", store.url, image, *traces]
    _run(build, f"the profile of {image} could not be built", store)


def _start(image: str, store: Store, client: Client, command: list[str], work: Path) -> str:
    """Starts the image with the kernel's read-ahead at 0, and returns the trace."""
    work.mkdir()
    with ExitStack() as stack:
        export = client.ask(Resolve(image)).export
        mounting.expect(client, export, exact=True, start=False)
        attacher = NbdFuse()
        device = attacher.attach(str(client.nbd_socket.absolute()), export, work / "device")
        stack.callback(attacher.detach, device)
        where = work / "image"
        where.mkdir()
        mounting.mount(attacher, client, export, device, work / "device", str(where), exact=True)
        stack.callback(mounts.unmount, where)
        scratch = stack.enter_context(mounted(work / "scratch", "-t", "tmpfs", "blockmap-bench"))
        root = stack.enter_context(overlay(where, scratch))
        _run([*command, str(root)], f"{image} did not start to be recorded", store)
        trace = client.ask(Ready(export)).trace
        if trace is None:
            raise HostError(f"the start of {image} was not recorded: see {work.parent}/blockmap.log")
        return str(trace)


def _run(command: list[str], failed: str, store: Store) -> None:
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, env=store.environment
    )
    if done.returncode:
        raise HostError(f"{failed}: {done.stderr.strip()}")
