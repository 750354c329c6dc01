"""The way that people and units take: `blockmap attach`, on a host that has a server and what attaches devices running."""

import os
import subprocess
import time
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from blockmap.bench.coldstart.blockmap_server import BLOCKMAP, served
from blockmap.bench.coldstart.images import ImageForm
from blockmap.bench.coldstart.processes import running, wait_ready
from blockmap.control.client import Client
from blockmap.control.store_log import read_calls
from blockmap.errors import HostError
from blockmap.host.manager.place import answers
from blockmap.store.call import Call

if TYPE_CHECKING:
    from blockmap.bench.coldstart.ways import BenchSite

_END_SECONDS = 10.0


class ByCommand:
    """`blockmap attach`, from its exec on; with a profile."""

    name = "blockmap attach, profile"
    remote = True
    forms: Collection[ImageForm] = (ImageForm.PROFILE,)

    def __init__(self, programs: Sequence[Sequence[str]]) -> None:
        self.programs: Sequence[Sequence[str]] = (*programs, (*BLOCKMAP, "attach", "--help"))

    def before(self, place: "BenchSite") -> None:
        place.stack.enter_context(served(place.store, place.folder / "cache", place.folder, warm=True))
        state, log = place.folder / "state", place.folder / "devices.log"
        environment = self._environment(place)
        process = place.stack.enter_context(running([*BLOCKMAP, "devices"], log, environment))
        wait_ready(process, log, lambda: answers(state))

    def root(self, place: "BenchSite") -> Path:
        where = place.folder / "image"
        where.mkdir()
        self._do(place, "attach", place.image.name, str(where), "--socket", str(place.folder / "blockmap.sock"))
        place.stack.callback(self._detach, place, where)
        return where

    def calls(self, place: "BenchSite") -> list[Call]:
        return read_calls(Client(place.folder / "blockmap.sock"), 0)[0]

    def _detach(self, place: "BenchSite", where: Path) -> None:
        """Detaches; a program that was killed may use its files for a moment longer."""
        end = time.monotonic() + _END_SECONDS
        while True:
            try:
                return self._do(place, "detach", str(where))
            except HostError:
                if time.monotonic() > end:
                    raise
            time.sleep(0.02)

    def _do(self, place: "BenchSite", *arguments: str) -> None:
        done = subprocess.run(
            [*BLOCKMAP, *arguments], env=self._environment(place), capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise HostError(f"blockmap {' '.join(arguments)} failed: {done.stderr.strip()}")

    @staticmethod
    def _environment(place: "BenchSite") -> dict[str, str]:
        return {**os.environ, **(place.store.environment or {}), "BLOCKMAP_STATE": str(place.folder / "state")}
