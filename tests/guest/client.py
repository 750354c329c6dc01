"""What runs in the guest to attach by netlink: python client.py COMMAND ARGUMENT...

    attach SERVER EXPORT DIRECTORY [write]      detach DIRECTORY
    watch                                       looks after devices until it is killed
    read DEVICE ROUNDS                          reads a device past the page cache, that often; every time the same must come
    write DIRECTORY COUNT                       writes that many files, each synced before it says so
    cycles SERVER EXPORT COUNT                  attaches, mounts, reads and detaches
    many SERVER EXPORT COUNT                    attaches devices at once, and reads them all
    times SERVER EXPORT COUNT                   medians of CONNECT, of RECONFIGURE from the pool, and of attaching by both
    left                                        prints what is left of devices

The state folder is /tmp/state. The last line of a command that succeeds is "done COMMAND".
"""

import contextlib
import hashlib
import mmap
import os
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path

from blockmap.host.attachments import Attachments
from blockmap.host.devices import mounts
from blockmap.host.devices.kernel import KERNEL_FLAGS, KernelNbd
from blockmap.host.devices.kinds import HostDevices
from blockmap.host.devices.negotiation import negotiate
from blockmap.host.devices.netlink import Netlink
from blockmap.host.devices.pool import Pool
from blockmap.host.devices.queue import disconnect, set_queue, wait_up
from blockmap.host.devices.watch import Watcher
from blockmap.host.remote import RemoteServer, resolve_remote

STATE = Path("/tmp/state")
MOUNT = Path("/tmp/mount")
STEP = 128 << 10


def say(text: str) -> None:
    print(text, flush=True)


def attachments() -> Attachments:
    return Attachments(STATE, HostDevices(STATE), say)


def attach(server: str, export: str, directory: str, mode: str = "") -> None:
    Path(directory).mkdir(exist_ok=True)
    export, _ = resolve_remote(RemoteServer(server), export)
    attachments().attach(RemoteServer(server), export, export, Path(directory), writable=mode == "write")
    (found,) = [each for each in attachments().list() if each.directory == directory]
    say(f"{directory} is {found.device}")


def detach(directory: str) -> None:
    attachments().detach(Path(directory))


def watch() -> None:
    Watcher(STATE, say).run()


def read(device: str, rounds: str) -> None:
    first, slowest = "", 0.0
    for number in range(int(rounds)):
        fd = os.open(device, os.O_RDONLY | os.O_DIRECT)
        digest, at = hashlib.sha256(), 0
        with mmap.mmap(-1, STEP) as page:
            while True:
                began = time.monotonic()
                count = os.preadv(fd, [page], at)
                slowest = max(slowest, time.monotonic() - began)
                if count == 0:
                    break
                digest.update(page[:count])
                at += count
        os.close(fd)
        if first and digest.hexdigest() != first:
            raise SystemExit(f"round {number} of {device} has other bytes")
        first = digest.hexdigest()
        say(f"round {number}")
    say(f"{device} {first}, slowest read {slowest:.1f} s")


def write(directory: str, count: str) -> None:
    for number in range(int(count)):
        with open(f"{directory}/file{number}", "wb") as file:
            file.write(b"%d\n" % number * 5000)
            file.flush()
            os.fsync(file.fileno())
        say(f"round {number}")


def cycles(server: str, export: str, count: str) -> None:
    seen = set()
    for _ in range(int(count)):
        attachments().attach(RemoteServer(server), export, export, MOUNT)
        seen.add(hashlib.sha256((MOUNT / "own").read_bytes()).hexdigest())
        attachments().detach(MOUNT)
    say(f"{count} cycles, {len(seen)} content")


def many(server: str, export: str, count: str) -> None:
    kernel = KernelNbd(Pool(STATE / "pool"))
    devices = [kernel.attach(server, export, STATE / f"many{number}") for number in range(int(count))]
    seen = set()
    for device in devices:
        with open(device.path, "rb") as file:
            seen.add(hashlib.sha256(file.read()).hexdigest())
    for device in devices:
        kernel.detach(device)
    say(f"{len({device.path for device in devices})} devices, {len(seen)} content")


def times(server: str, export: str, count: str) -> None:
    found: dict[str, list[float]] = defaultdict(list)

    @contextlib.contextmanager
    def timed(what: str) -> Iterator[None]:
        began = time.monotonic()
        yield
        found[what].append((time.monotonic() - began) * 1000)

    pool = Pool(STATE / "pool")
    kernel = KernelNbd(pool)
    for number in range(int(count)):
        with contextlib.ExitStack() as stack:
            netlink = stack.enter_context(Netlink())
            for connections in (1, 2, 4):
                offered = [negotiate(server, export, 60) for _ in range(connections)]
                size, flags = offered[0][1].size, offered[0][1].flags & KERNEL_FLAGS
                with timed(f"CONNECT of {connections}"):
                    index = netlink.connect(
                        [each for each, _ in offered],
                        size=size,
                        block_size=4096,
                        flags=flags,
                        dead_seconds=60,
                        identifier="times",
                    )
                for each, _ in offered:
                    each.close()
                with timed("queue settings"):
                    set_queue(index)
                path = f"/dev/nbd{index}"
                with timed(f"first read of {connections}"):
                    wait_up(path, size)
                with timed(f"sequential read of {connections}"), open(path, "rb") as file:
                    while file.read(1 << 20):
                        pass
                with timed(f"DISCONNECT of {connections}"):
                    disconnect(index, "times")
            with timed("filling the pool"):
                pool.fill({flags: 1})
            (STATE / "bound").mkdir(exist_ok=True)
            pooled = pool.take(flags, STATE / "bound")
            assert pooled is not None
            bound, offer = negotiate(server, export, 60)
            with timed("RECONFIGURE"):
                netlink.reconfigure(pooled.index, pooled.identifier, [bound], size=offer.size)
            bound.close()
            with timed("first read of the pool's"):
                wait_up(f"/dev/nbd{pooled.index}", offer.size)
            disconnect(pooled.index, pooled.identifier)
        for what, wanted in (("new", 0), ("pooled", 1)):
            pool.fill({flags: wanted})
            with timed(f"attach {what}"):
                device = kernel.attach(server, export, STATE / f"{what}{number}")
            with timed(f"mount {what}"):
                mounts.mount(device.path, MOUNT, "ext4", mounts.READ_ONLY, "noload")
            mounts.unmount(MOUNT)
            kernel.detach(device)
    for what, all_of in found.items():
        say(
            f"{what:32} median {statistics.median(all_of):7.1f} ms of {len(all_of)}, {min(all_of):.1f} to {max(all_of):.1f}"
        )


def left() -> None:
    with Netlink() as kernel:
        connected = kernel.connected()
    say(f"connected {sorted(connected)}, folders {sorted(each.name for each in (STATE / 'devices').glob('*'))}")


def main(command: str, *arguments: str) -> None:
    STATE.mkdir(exist_ok=True)
    MOUNT.mkdir(exist_ok=True)
    each: Callable[..., None]
    for each in (attach, detach, watch, read, write, cycles, many, times, left):
        if each.__name__ == command:
            each(*arguments)
    say(f"done {command}")


if __name__ == "__main__":
    main(*sys.argv[1:])
