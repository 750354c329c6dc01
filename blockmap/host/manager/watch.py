"""What is watched on behalf of devices, in a process of its own, which the process that attaches starts again if it dies."""

import threading
from collections.abc import Callable
from pathlib import Path

from blockmap.errors import HostError
from blockmap.host.attachment_table import read_devices
from blockmap.host.devices import netlink
from blockmap.host.devices.kernel import KIND
from blockmap.host.devices.pool import Pool
from blockmap.host.devices.watch import Watcher
from blockmap.host.manager.revival import Revival

_AHEAD = 2
"""Devices that are connected ahead, of each kind that is in use: two starts in a row need not wait for the kernel."""


def watch(state: Path, asked: int, say: Callable[[str], None]) -> None:
    """Watches until the pipe `asked` is closed at its other end; what comes from there means that devices have changed."""
    kernel = _KernelDevices(state, say)
    Revival(state, say).watch(asked, kernel.changed)
    kernel.end()


class _KernelDevices:
    """The kernel's devices, which are connected again when a server dies, and ahead of those who attach; none without nbd."""

    def __init__(self, state: Path, say: Callable[[str], None]) -> None:
        self._state = state
        self._say = say
        self._pool = Pool(state / "pool")
        self._watcher: Watcher | None = None

    def changed(self) -> None:
        """Begins, once the kernel has nbd, whose module the first attach loads; and fills the pool as devices are used."""
        if not netlink.is_there():
            return
        if self._watcher is None:
            self._watcher = Watcher(self._state, self._say)
            threading.Thread(target=self._run, args=(self._watcher,), name="links", daemon=True).start()
        try:
            flags = self._flags()
            if flags:
                self._pool.fill(dict.fromkeys(flags, _AHEAD))
        except HostError as error:
            self._say(f"no device is connected ahead: {error}")

    def end(self) -> None:
        """Takes the pool apart where no device is left."""
        try:
            if netlink.is_there() and not self._flags():
                self._pool.drain()
        except HostError as error:
            self._say(str(error))

    def _flags(self) -> set[int]:
        """Returns the transmission flags of the devices on record."""
        return {int(device.state["flags"]) for _, device in read_devices(self._state) if device.kind == KIND}

    def _run(self, watcher: Watcher) -> None:
        try:
            watcher.run()
        except HostError as error:
            self._say(str(error))
