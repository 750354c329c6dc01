"""Devices of the kernel's own nbd, made over netlink; no process stands behind one.

When its connections die, requests wait in the kernel until `reconnect` has given it new ones (`watch` does): a server can be
killed, restarted or replaced under a mounted file system. The kernel keeps an identifier of each device, here the version's
digest and the device's folder, and takes new connections only from whoever names it.
"""

import errno
import os
import re
import socket
import threading
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from blockmap.errors import HostError
from blockmap.host.devices import netlink
from blockmap.host.devices.device import Device
from blockmap.host.devices.negotiation import MULTI_CONN, READ_ONLY, Offer, negotiate
from blockmap.host.devices.netlink import Netlink
from blockmap.host.devices.pool import Pool, taken
from blockmap.host.devices.queue import BLOCK_BYTES, DEAD_SECONDS, disconnect, set_queue, wait_up

KIND = "nbd"
CONNECTIONS = 1
"""Connections of a device. In an emulated guest, CONNECT takes 19 ms with one, 62 with two and 69 with four, and reads are no
faster with more: the kernel has all requests under way on one."""
KERNEL_FLAGS = 0x1 | READ_ONLY | 0x4 | 0x8 | 0x20 | MULTI_CONN
"""Transmission flags that the kernels of Debian 12 and 13 look at: HAS_FLAGS, READ_ONLY, FLUSH, FUA, TRIM, CAN_MULTI_CONN."""
_SMALL_BLOCK_BYTES = 512
_SLOW_SECONDS = 2.0
"""A first read that takes longer waits for the store, or its server has died."""
_NEGOTIATE_SECONDS = 60.0
"""A version that the host has never seen is opened with its head from the store."""


@dataclass(frozen=True, slots=True)
class KernelState:
    """What a device's state holds."""

    index: int
    identifier: str
    server: str
    """The path of its NBD socket, or HOST:PORT."""
    export: str
    size: int
    flags: int
    connections: int


class KernelNbd:
    """Attaches through the kernel's nbd, by a device of the pool where there is one."""

    kind = KIND

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    def attach(self, server: str, export: str, directory: Path, *, writable: bool = False) -> Device:
        directory.mkdir(parents=True, exist_ok=True)
        with ExitStack() as stack:
            sockets, offer = _open(stack, server, export, CONNECTIONS)
            size = offer.size // BLOCK_BYTES * BLOCK_BYTES
            flags = _device_flags(offer, server, export, writable=writable)
            try:
                with Netlink() as kernel:
                    pooled = self._pool.take(flags, directory)
                    if pooled is None:
                        identifier = f"{_digest(export)} {directory}"
                        index = kernel.connect(
                            sockets,
                            size=size,
                            block_size=BLOCK_BYTES,
                            flags=flags,
                            dead_seconds=DEAD_SECONDS,
                            identifier=identifier,
                        )
                        set_queue(index)
                    else:
                        index, identifier = pooled.index, pooled.identifier
                        kernel.reconfigure(index, identifier, sockets, size=size)
            except OSError as error:
                self.clear(directory)
                raise HostError(f"the kernel makes no nbd device of {export}: {error.strerror}") from error
        state = KernelState(index, identifier, server, export, offer.size, flags, len(sockets))
        device = Device(KIND, f"/dev/nbd{index}", asdict(state))
        try:
            _come_up(state)
        except BaseException:
            self.detach(device)
            raise
        return device

    def detach(self, device: Device) -> None:
        state = KernelState(**device.state)
        disconnect(state.index, state.identifier)

    def clear(self, directory: Path) -> None:
        pooled = taken(directory)
        for index, identifier in netlink.backends().items():
            if identifier.endswith(f" {directory}") or (pooled is not None and identifier == pooled.identifier):
                disconnect(index, identifier)

    def is_alive(self, device: Device) -> bool:
        # Not by a read: while the server is away, reads wait for the next.
        state = KernelState(**device.state)
        return netlink.backend(state.index) == state.identifier

    def is_open(self, device: Device) -> bool:
        if not self.is_alive(device):
            return False
        try:
            os.close(os.open(device.path, os.O_RDONLY | os.O_EXCL | os.O_CLOEXEC))
        except OSError as error:
            return error.errno == errno.EBUSY
        return False

    def use_small_sectors(self, device: Device) -> bool:
        state = KernelState(**device.state)
        try:
            with Netlink() as kernel:
                kernel.reconfigure(state.index, state.identifier, block_size=_SMALL_BLOCK_BYTES)
        except OSError as error:
            raise HostError(f"the sectors of {device.path} cannot be changed: {error.strerror}") from error
        return True


def reconnect(kernel: Netlink, state: KernelState, seconds: float) -> int:
    """Negotiates again with the server of a device, and gives the device new connections for its dead ones.

    Returns how many it took: none where all live. No step takes longer than `seconds`. HostError.
    """
    inodes = set()
    with ExitStack() as stack:
        sockets, offer = _open(stack, state.server, state.export, state.connections, seconds)
        _check_same(state, offer)
        try:
            kernel.reconfigure(state.index, state.identifier, sockets)
        except OSError as error:
            raise HostError(f"/dev/nbd{state.index} takes no new connection: {error.strerror}") from error
        inodes = {os.fstat(each.fileno()).st_ino for each in sockets}
    return len(inodes & _kept_sockets())


def _come_up(state: KernelState) -> None:
    """Waits until a new device answers; HostError.

    Nobody else connects it again meanwhile where its server dies: it is not on record yet.
    """
    failed: list[HostError] = []

    def wait() -> None:
        try:
            wait_up(f"/dev/nbd{state.index}", state.size // BLOCK_BYTES * BLOCK_BYTES)
        except HostError as error:
            failed.append(error)

    waiting = threading.Thread(target=wait, daemon=True)
    waiting.start()
    waiting.join(_SLOW_SECONDS)
    while waiting.is_alive():
        with suppress(HostError, OSError), Netlink() as kernel:
            reconnect(kernel, state, _SLOW_SECONDS)
        waiting.join(_SLOW_SECONDS)
    if failed:
        raise failed[0]


def _digest(export: str) -> str:
    """Returns the digest in an export's name, without a label; the name itself where there is none, as for a clone."""
    found = re.search(r"@(sha256:[0-9a-f]+)", export)
    return found[1] if found else export


def _device_flags(offer: Offer, server: str, export: str, *, writable: bool) -> int:
    """Returns the flags of a device of an export; HostError where it cannot be written to although it should."""
    if writable and offer.flags & READ_ONLY:
        raise HostError(f"the server at {server} lets nobody write to {export}")
    return (offer.flags & KERNEL_FLAGS) | (0 if writable else READ_ONLY)


def _open(
    stack: ExitStack, server: str, export: str, connections: int, seconds: float = _NEGOTIATE_SECONDS
) -> tuple[list[socket.socket], Offer]:
    """Opens connections to an export, as many as were asked for where the server has several see each other's writes."""
    connection, offer = negotiate(server, export, seconds)
    sockets = [stack.enter_context(connection)]
    while len(sockets) < connections and offer.flags & MULTI_CONN:
        sockets.append(stack.enter_context(negotiate(server, export, seconds)[0]))
    return sockets, offer


def _check_same(state: KernelState, offer: Offer) -> None:
    """Raises HostError where the server shows something else than the device was made of."""
    if offer.size != state.size or (offer.flags & KERNEL_FLAGS) | (state.flags & READ_ONLY) != state.flags:
        raise HostError(
            f"the server at {state.server} shows another {state.export} than before: {offer.size} bytes, not {state.size}; "
            "detach it, and attach it anew"
        )


def _kept_sockets() -> set[int]:
    """Returns the inodes of all sockets that somebody holds: the kernel, if this process has closed one."""
    found = set()
    for name, column in (("unix", 6), ("tcp", 9), ("tcp6", 9)):
        with suppress(OSError):
            lines = Path("/proc/net", name).read_text(errors="replace").splitlines()[1:]
            found |= {int(fields[column]) for line in lines if len(fields := line.split(None, column + 1)) > column}
    return found
