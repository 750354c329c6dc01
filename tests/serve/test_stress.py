"""Everything at once: clients that check every byte, a cache at a tenth, replays, imports, name moves, kills, a removed cache.

BLOCKMAP_STRESS_SECONDS says how long, 600 by default. What is killed is killed in the first half; in the second, memory and
threads of the server must not grow once it has warmed up.
"""

import errno
import os
import random
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import cycle
from pathlib import Path

import pytest

from blockmap.control.messages import Resolve
from blockmap.errors import BlockmapError
from blockmap.format import BLOCK, keys
from blockmap.format.digest import Digest
from blockmap.store.profiles import ProfileLog
from blockmap.store.repository import Repository
from tests.image.builder import bulk
from tests.serve.conftest import Server, bare_server
from tests.serve.nbd import Nbd, RefusedError
from tests.store.made import open_or_create
from tests.volume.bundled import bundled

SECONDS = float(os.environ.get("BLOCKMAP_STRESS_SECONDS", "600"))
CLIENTS = 32
DISK = 48 << 20
WARM_UP_S = min(120.0, SECONDS / 6)
"""Of the half without kills: until then, memory and threads may grow."""
EVERY_S = min(20.0, SECONDS / 12)
"""Between two kills, or other interventions."""


@dataclass
class Counts:
    """What the clients did; each adds to it when a connection ends."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    reads: int = 0
    bytes: int = 0
    connections: int = 0
    broken: int = 0
    """Connections that a kill ended."""
    failures: list[str] = field(default_factory=list)


class Client:
    """Opens exports again and again, and compares what it reads with the disk that was imported."""

    def __init__(self, server: Server, disks: dict[str, bytes], ended: threading.Event, counts: Counts) -> None:
        """`disks` has the bytes of each version by export; of the name, which moves, those of any one of them."""
        self._server, self._disks, self._ended, self._counts = server, disks, ended, counts

    def run(self, seed: int) -> None:
        chance = random.Random(seed)
        while not self._ended.is_set():
            export = chance.choice([*self._disks, "disk:1", "disk:1+other"])
            broken = False
            try:
                with Nbd(self._server.socket, export) as nbd:
                    self._read(nbd, export, chance)
            except (ConnectionError, FileNotFoundError, TimeoutError):
                broken = True
                self._ended.wait(0.2)
            except (RefusedError, OSError, AssertionError) as error:
                if getattr(error, "errno", None) == errno.ESHUTDOWN:  # its supervisor was killed
                    continue
                with self._counts.lock:
                    self._counts.failures.append(f"{export}: {error!r}")
            with self._counts.lock:
                self._counts.connections += 1
                self._counts.broken += broken

    def _read(self, nbd: Nbd, export: str, chance: random.Random) -> None:
        may_be = [self._disks[export]] if export in self._disks else list(self._disks.values())
        for _ in range(chance.randrange(1, 100)):
            if self._ended.is_set():
                return
            at = chance.randrange(DISK) if chance.random() < 0.3 else int(DISK * chance.random() ** 5)
            length = min(chance.choice([1, 511, BLOCK, BLOCK, 4 * BLOCK, 33 * BLOCK, 1 << 20]), DISK - at)
            found = nbd.read(at, length)
            may_be = [disk for disk in may_be if disk[at : at + length] == found]
            assert may_be, f"wrong bytes at {at}, {length} of them"
            with self._counts.lock:
                self._counts.reads += 1
                self._counts.bytes += length


@dataclass(frozen=True)
class Sample:
    seconds: float
    pid: int
    threads: int
    rss: int


def sample(server: Server, began: float) -> Sample | None:
    """Looks at nbdkit's process; None while there is none."""
    with suppress(BlockmapError, OSError):
        pid = server.nbdkit()
        fields = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
        return Sample(time.monotonic() - began, pid, int(fields["Threads"]), int(fields["VmRSS"].split()[0]) << 10)
    return None


@contextmanager
def running(work: Callable[[int], None], count: int, ended: threading.Event) -> Iterator[None]:
    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(count)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        ended.set()
        for thread in threads:
            thread.join()


@pytest.mark.long
def test_every_byte_is_right_whatever_happens(tmp_path: Path, need: Callable[..., None]) -> None:
    need("nbdkit", "qemu-img")
    with bare_server(tmp_path) as server:
        stress(server)


def stress(server: Server) -> None:
    paths = [server.where / f"disk-{each}.raw" for each in "ab"]
    for number, path in enumerate(paths):
        data = bytearray(bulk(1, DISK))  # they share most of it
        data[number << 20 : 12 << 20] = bulk(number + 7, (12 - number) << 20)
        path.write_bytes(data)
    disks: dict[str, bytes] = {}
    arguments = ("--cache-size", str(DISK // 10), "--outage", "wait=30")
    for path in paths:
        server.run("import", path, "disk:1", "--quiet")
    server.start(*arguments)
    for path in paths[::-1]:
        server.run("import", path, "disk:1", "--quiet")
        disks[server.client.ask(Resolve("disk:1")).export] = path.read_bytes()
    add_bundles(server, list(disks))
    ended, counts, chance = threading.Event(), Counts(), random.Random(1)
    samples: list[Sample] = []
    began = time.monotonic()

    def look(_: int) -> None:
        while not ended.wait(min(5.0, SECONDS / 60)):
            samples.extend(filter(None, [sample(server, began)]))

    def kill_nbdkit() -> None:
        with suppress(BlockmapError, ProcessLookupError):
            os.kill(server.nbdkit(), signal.SIGKILL)

    def kill_supervisor() -> None:
        assert server.process is not None
        server.process.kill()
        server.process.wait()
        server.start(*arguments)

    def move_name() -> None:
        server.run("import", chance.choice(paths), "disk:1", "--quiet")

    def import_new() -> None:
        new = server.where / "new.raw"
        new.write_bytes(bulk(chance.randrange(1000, 2000), 4 << 20))
        server.run("import", new, f"new:{chance.randrange(3)}", "--quiet")

    def remove_cache() -> None:
        shutil.rmtree(server.cache, ignore_errors=True)

    harmless = [import_new, remove_cache]
    first, second = cycle([kill_nbdkit, kill_supervisor, *harmless]), cycle(harmless)
    client = Client(server, disks, ended, counts)
    with running(client.run, CLIENTS, ended), running(look, 1, ended):
        while (now := time.monotonic() - began) < SECONDS and not counts.failures:
            next(first if now < SECONDS / 2 else second)()
            time.sleep(EVERY_S / 2)
            move_name()
            time.sleep(EVERY_S / 2)
    assert counts.failures == []
    status = server.client.status()
    print(
        f"{counts.reads:,} reads of {counts.bytes >> 20:,} MiB over {counts.connections:,} connections, of which "
        f"{counts.broken} ended by kills; 0 wrong; {len({each.pid for each in samples})} processes of nbdkit; "
        f"cache {status['cache']}"
    )
    for each in samples:
        print(f"{each.seconds:6.1f} s  process {each.pid}  {each.threads:4} threads  {each.rss >> 20:5} MiB")
    assert status["cache"]["damaged"] == 0
    assert status["cache"]["evicted"] > 0
    assert "Traceback" not in server.said()
    last = [each for each in samples if each.pid == samples[-1].pid]
    flat = [each for each in last if each.seconds > last[0].seconds + WARM_UP_S]
    early, late = flat[: len(flat) // 2], flat[len(flat) // 2 :]
    assert max(each.threads for each in late) <= 1.1 * max(each.threads for each in early) + 10
    assert max(each.rss for each in late) <= 1.1 * max(each.rss for each in early) + (20 << 20)


def add_bundles(server: Server, exports: list[str]) -> None:
    """Gives each version a bundle of the blocks that are read most."""
    store = open_or_create(server.environment["BLOCKMAP_STORE"])[0]
    for export in exports:
        version = Digest(bytes.fromhex(export.rpartition(":")[2]))
        root = Repository(store).version(version).root
        bundled(store, root, range(0, 1500, 2), keys.bundle(version, "default", 1, 1))
        ProfileLog(store).advise("disk", version)
