"""Keeps the kernel's nbd devices connected: when a server is killed, restarted or replaced, they get connections to the next.

`Watcher` has nothing to remember: devices are on record in the state folder, and the kernel holds their requests. One that is
killed is followed by the next, which looks after the connections that died meanwhile. Two at once do no harm.
"""

import os
import select
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from blockmap.errors import HostError
from blockmap.host.attachment_table import read_devices
from blockmap.host.devices import netlink
from blockmap.host.devices.kernel import KIND, KernelState, reconnect
from blockmap.host.devices.netlink import DeadLinks, Netlink
from blockmap.host.serve.revival import revive

_STEP_SECONDS = 10.0
"""Limit for each step of a negotiation: a server that hangs is asked again."""
_FIRST_DELAY_SECONDS = 0.02
_MAX_DELAY_SECONDS = 1.0
_LOOK_SECONDS = 0.5
_UNKNOWN_SECONDS = 60.0
"""A device that is not on record may be about to be recorded by an attach that waits for the store."""
_SURE_SECONDS = 0.1
"""The kernel tells of a dead connection before it marks it: where it took no new one, it is asked once more."""


class Watcher:
    """Reconnects the devices of one state folder, of servers on this host and on others.

        watcher = Watcher(state, say)
        threading.Thread(target=watcher.run).start()
        ...
        watcher.stop()

    `run` needs root and a kernel with nbd (`netlink.is_there`), and may run in any thread. `say` gets what it does, in
    sentences, from several threads.
    """

    def __init__(self, state: Path, say: Callable[[str], None]) -> None:
        self._state = state.absolute()
        self._say = say
        self._stopped = threading.Event()
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._lock = threading.Lock()
        """Guards `_work`."""
        self._work: dict[str, dict[int, KernelState]] = {}
        """Devices to connect, by their number, of each server that has a thread for it: one that hangs delays no other."""

    def run(self) -> None:
        """Reconnects devices until `stop`; HostError where the kernel has no nbd, or the record cannot be read."""
        try:
            with Netlink() as kernel:
                links = kernel.dead_links()
            try:
                self._listen(links)
            finally:
                links.close()
        except OSError as error:
            raise HostError(f"the kernel's nbd does not say what becomes of its devices: {error.strerror}") from error
        finally:
            self._stopped.set()

    def stop(self) -> None:
        """Has `run` return."""
        self._stopped.set()
        os.eventfd_write(self._wake, 1)

    def _listen(self, links: DeadLinks) -> None:
        dead: set[int] | None = None  # nobody knows what died before this process listened
        unknown: dict[int, float] = {}
        while not self._stopped.is_set():
            known, now = self._known(), time.monotonic()
            for index in known if dead is None else dead:
                unknown.setdefault(index, now)
            for index in unknown.keys() & known.keys():
                del unknown[index]
                self._want(known[index])
            unknown = {index: since for index, since in unknown.items() if now - since < _UNKNOWN_SECONDS}
            select.select([links.fileno(), self._wake], [], [], _LOOK_SECONDS if unknown else None)
            dead = links.read()

    def _known(self) -> dict[int, KernelState]:
        """Returns the devices on record that are in fact connected."""
        states = [KernelState(**device.state) for _, device in read_devices(self._state) if device.kind == KIND]
        return {state.index: state for state in states if netlink.backend(state.index) == state.identifier}

    def _want(self, state: KernelState) -> None:
        """Has a device connected by the thread of its server."""
        with self._lock:
            if state.server in self._work:
                self._work[state.server][state.index] = state
                return
            self._work[state.server] = {state.index: state}
        threading.Thread(
            target=self._connect_all, args=[state.server], name=f"connect {state.server}", daemon=True
        ).start()

    def _connect_all(self, server: str) -> None:
        """Connects devices of a server until there is none to connect; where that fails, tries again."""
        delay, failed = _FIRST_DELAY_SECONDS, ""
        with Netlink() as kernel:
            while work := self._take(server):
                tried = _Attempt.at(kernel, work)
                if tried.untaken:
                    self._stopped.wait(_SURE_SECONDS)
                    tried = tried.and_then(_Attempt.at(kernel, tried.untaken))
                if tried.connected:
                    self._say(f"{_names(tried.connected)}: connected to {server} again")
                    delay, failed = _FIRST_DELAY_SECONDS, ""
                if not tried.failed:
                    continue
                if tried.error != failed:
                    failed = tried.error
                    self._say(f"{_names(tried.failed)}: reads wait, and it is tried again; {failed}")
                if "/" in server:
                    revive(Path(server), self._say)
                for state in tried.failed:
                    self._want(state)
                self._stopped.wait(delay)
                delay = min(2 * delay, _MAX_DELAY_SECONDS)

    def _take(self, server: str) -> list[KernelState]:
        """Returns the devices to connect; none, and then the thread must end, if there is none."""
        with self._lock:
            work = [] if self._stopped.is_set() else [*self._work[server].values()]
            if work:
                self._work[server] = {}
            else:
                del self._work[server]
            return work


@dataclass(frozen=True, slots=True)
class _Attempt:
    """What became of devices that were to get connections."""

    connected: list[KernelState]
    untaken: list[KernelState]
    """Had no dead connection."""
    failed: list[KernelState]
    error: str
    """The last failure's."""

    @classmethod
    def at(cls, kernel: Netlink, work: Iterable[KernelState]) -> "_Attempt":
        """Tries each of the devices that are still there."""
        connected: list[KernelState] = []
        untaken: list[KernelState] = []
        failed: list[KernelState] = []
        error = ""
        for state in work:
            if netlink.backend(state.index) != state.identifier:
                continue  # detached meanwhile
            try:
                taken = reconnect(kernel, state, _STEP_SECONDS)
            except HostError as failure:
                failed.append(state)
                error = str(failure)
            else:
                (connected if taken else untaken).append(state)
        return cls(connected, untaken, failed, error)

    def and_then(self, later: "_Attempt") -> "_Attempt":
        """Adds what became of the untaken ones when they were tried once more."""
        return _Attempt(
            self.connected + later.connected, later.untaken, self.failed + later.failed, later.error or self.error
        )


def _names(states: Iterable[KernelState]) -> str:
    return ", ".join(f"/dev/nbd{state.index} ({state.export})" for state in states)
