"""Attaches exports at directories of this host, and takes them apart again, with a record for any later command.

A device belongs to a version of one server, and serves all directories where that version is mounted. Whoever makes, mounts
or takes apart a device holds its lock, and nobody waits for a server with another lock held: who attaches, detaches or lists
one device waits for no other. Order of locks: that of a device, then that of the record, under which the lock of another
device is only tried. A killed command's leftovers are on record, or in a folder that nobody locks: the next attach
of the same export, any detach, or the next start of the server takes it apart.
"""

import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path

from blockmap.control.client import Client
from blockmap.errors import HostError, UsageError
from blockmap.host import followers, mounting, tools
from blockmap.host.attachment_table import Attached, AttachmentTable, changing, is_recorded, read_attached
from blockmap.host.devices import lock, mounts
from blockmap.host.devices.device import Attacher, Device, is_up
from blockmap.host.devices.lock import DeviceLock
from blockmap.host.devices.namespace import OWN, MountNamespace
from blockmap.host.remote import Server
from blockmap.host.warm import warming

_ASIDE = "aside"
"""In the device's folder: where a version is mounted that is about to take the place of another."""
_CLOSE_SECONDS = 2.0
"""How long a device may stay in use when it was unmounted: a container that starts has all mounts of the host for a moment."""
_POLL_SECONDS = 0.01
_Listed = list[Attached]
_Folders = list[Path]


class _Reserved(Exception):
    """Another command is at work on the device that is noted at a directory; its folder is the argument."""


class Attachments:
    """Attaches and detaches, on behalf of this host's root."""

    def __init__(
        self, state: Path, attacher: Attacher, say: Callable[[str], None], namespace: MountNamespace = OWN
    ) -> None:
        """`namespace` is where directories are, and where devices are mounted."""
        self._state = state.absolute()
        self._attacher = attacher
        self._say = say
        self._namespace = namespace

    def attach(
        self,
        client: Server,
        export: str,
        name: str,
        directory: Path,
        *,
        exact: bool = False,
        writable: bool = False,
        start: bool = False,
    ) -> str:
        """Mounts `export`, by digest or a clone, at a directory; shares the device that shows it already, and returns its path.

        It is mounted read-only unless `writable`. With `exact`, the device is new, and the kernel reads nothing ahead. With
        `start`, a program is about to start there, so that there is something to learn for all hosts. HostError, UsageError.
        """
        tools.need_root("attach")
        where = self._resolved(directory)
        if not os.path.isdir(reached := self._namespace.path(where)):
            if os.path.exists(reached):
                raise UsageError(f"{directory} is no directory: name one")
            raise UsageError(f"there is no directory {directory}: make it first, with mkdir")
        held, device = self._claim(client.address, export, where, name, exact)
        with held:
            try:
                if device is not None:
                    mounting.mount_device(self._attacher, device, where, writable=writable, namespace=self._namespace)
                    return device.path
                mounting.expect(client, export, exact=exact, start=start)
                device = self._attacher.attach(client.address, export, held.folder, writable=writable)
                with self._table() as table:
                    table.set_made(held.folder, device)
                mounting.mount(
                    self._attacher, client, export, device, held.folder, where,
                    exact=exact, writable=writable, namespace=self._namespace,
                )  # fmt: skip
                return device.path
            except BaseException as error:
                if device is not None and self._namespace.source(where) == device.path:
                    self._namespace.take_off(where)
                self._settle(held.folder)
                if isinstance(error, mounting.NoFileSystem):
                    raise HostError(
                        f"{name} has no ext4 file system in it (it was imported from a disk image): use it with an NBD client"
                    ) from error
                raise

    def attach_device(self, client: Server, export: str, name: str, *, writable: bool = False) -> str:
        """Makes a device of `export`, by digest or a clone, or finds the one that shows it; returns its path.

        It stays until it is detached by that path. HostError, UsageError.
        """
        tools.need_root("attach")
        held, device = self._claim(client.address, export, None, name, False)
        with held:
            try:
                if device is None:
                    mounting.expect(client, export, exact=False, start=False)
                    device = self._attacher.attach(client.address, export, held.folder, writable=writable)
                    with self._table() as table:
                        table.set_made(held.folder, device)
                with self._table() as table:
                    table.add_mount(device.path, held.folder, name)
                return device.path
            except BaseException:
                self._settle(held.folder)
                raise

    def replace(self, client: Client, export: str, name: str, where: str) -> None:
        """Mounts another version, by digest, where one is mounted read-only; HostError, UsageError.

        Files that are open there stay as they are. Their device is taken apart by `tidy` or any detach, once the last is closed.
        """
        held, device = self._claim(client.address, export, None, name, False)
        with held:
            try:
                if device is None:
                    mounting.expect(client, export, exact=False, start=False)
                    device = self._attacher.attach(client.address, export, held.folder)
                    with self._table() as table:
                        table.set_made(held.folder, device)
                # Aside, so that all that mounting reads has come before anybody has to do without the old one.
                aside = held.folder / _ASIDE
                aside.mkdir(exist_ok=True)
                mounting.mount_device(self._attacher, device, str(aside))
                with self._table() as table:
                    before = table.folder_at(where)
                    shown = None if before is None else table.device(before)
                    if shown is None or mounts.source(where) != shown.path:
                        raise UsageError(f"{where} was detached meanwhile")
                    mounts.put_over(aside, where)
                    table.add_mount(where, held.folder, name)
                mounts.unmount(aside)
            except BaseException:
                self._settle(held.folder)
                raise

    @property
    def kind(self) -> str:
        """Returns how this host makes devices: nbd, which is the kernel's, or nbdfuse."""
        return self._attacher.kind

    def tidy(self) -> bool:
        """Takes apart what nobody uses any more; logs what fails. Returns True if something is left, as a file of it is open."""
        unused = self._unused()
        self._take_apart(unused)
        return bool(unused and self._unused())

    def detach(self, directory: Path) -> None:
        """Unmounts a directory, and takes its device apart when it was the last; or a device that was attached as such.

        UsageError, HostError.
        """
        tools.need_root("detach")
        where = self._resolved(directory)
        if is_recorded(self._state):
            followers.end(self._state, where)
        shown = self._namespace.source(where)
        held = self._lock(lambda table: table.folder_at(where, shown))
        found = held is not None and self._unmount(held, where)
        self.tidy()
        if held is not None and found:
            self._await_closed(held.folder)
        if not found:
            listed = ", ".join(each.directory for each in self.list())
            raise UsageError(
                f"nothing is attached at {where}, " + (f"but at {listed}" if listed else "nor anywhere else")
            )

    def list(self) -> _Listed:
        """Returns what is attached now, and waits for nobody; HostError where the record cannot be read."""
        if not is_recorded(self._state):
            return []
        there = self._namespace.sources()
        return [each for each in read_attached(self._state) if _is_used(each.directory, each.device, there)]

    def at(self, where: str) -> Attached | None:
        """Returns what is attached at a directory now; HostError."""
        return next((each for each in self.list() if each.directory == where), None)

    @contextmanager
    def held_place(self, export: str) -> Iterator[str | None]:
        """Yields a directory where an export is mounted, None where it is not; nobody else detaches or freezes it meanwhile."""
        where = next((each.directory for each in self.list() if each.export.partition("+")[0] == export), None)
        held = None if where is None else self._lock(lambda table: table.folder_at(where))
        if held is None:
            yield None
            return
        with held:
            yield None if where is None or self.at(where) is None else where  # it may have been detached meanwhile

    def clean(self, nbd_socket: Path) -> None:
        """Takes apart what a server that has gone left at its socket, and what nobody uses; called by the next server.

        Does nothing without root; logs what fails.
        """
        if os.geteuid() != 0 or not is_recorded(self._state):
            return
        try:
            with self._table() as table:
                left = table.folders_of(str(nbd_socket))
            self._take_apart(left, probe=True)
            self.tidy()
        except HostError as error:
            self._say(str(error))

    def _claim(
        self, nbd_socket: str, export: str, where: str | None, name: str, exact: bool
    ) -> tuple[DeviceLock, Device | None]:
        """Locks the device that shows an export, and notes that it is about to be mounted at a directory, if one is given.

        Returns no device where it is still to be made.
        """
        while True:
            try:
                with self._table() as table:
                    if table.folder_showing(nbd_socket, export) is None:
                        if where is not None:
                            self._check_free(table, where, None)
                        held = lock.create(self._state / "devices")
                        table.add_device(held.folder, nbd_socket, export, self._attacher.kind)
                        if where is not None:
                            table.add_mount(where, held.folder, name)
                        return held, None
                found = self._lock(lambda table: table.folder_showing(nbd_socket, export))
                if found is None:
                    continue
                with ExitStack() as stack:
                    stack.enter_context(found)
                    # Before the directory is looked at: this unmounts what is there of a server that has gone.
                    device = self._settle(found.folder, probe=True)
                    if device is None:
                        continue
                    if exact:
                        raise UsageError(
                            f"{export} is attached, and what is in memory already would not be seen: detach it first "
                            "(`blockmap status` says where it is)"
                        )
                    if where is not None:
                        with self._table() as table:
                            self._check_free(table, where, found.folder)
                            table.add_mount(where, found.folder, name)
                    stack.pop_all()
                    return found, device
            except _Reserved as reserved:
                other = lock.wait(reserved.args[0])
                if other is not None:
                    other.close()

    def _unmount(self, held: DeviceLock, where: str) -> bool:
        """Unmounts a device that is locked, and lets go of it; returns False where it is not mounted there."""
        with held:
            with self._table() as table:
                device = table.device(held.folder)
                noted = table.mounts_of(held.folder)
            if device is None or not _is_used(where, device.path, self._namespace.sources()):
                return False
            if where == device.path:
                if noted == [where] and self._attacher.is_open(device):
                    raise HostError(f"{where} is in use: unmount what is mounted from it first")
                with self._table() as table:
                    table.drop_mounts([where])
            else:
                warming.end(held.folder, device.path)
                self._namespace.take_off(where)
            self._settle(held.folder, probe=True)
            return True

    def _unused(self) -> _Folders:
        """Returns the folders of devices that are mounted nowhere, and of those that are not on record."""
        there = self._namespace.sources()
        with self._table() as table:
            folders = {*table.folders(), *(self._state / "devices").glob("*")}
            return [folder for folder in folders if not _used(table.device(folder), table.mounts_of(folder), there)]

    def _await_closed(self, folder: Path) -> None:
        """Takes apart a device that was unmounted, also where something had it a moment longer."""
        end = time.monotonic() + _CLOSE_SECONDS
        while folder in self._unused() and time.monotonic() < end:
            time.sleep(_POLL_SECONDS)
            self._take_apart([folder])

    def _take_apart(self, folders: Iterable[Path], *, probe: bool = False) -> None:
        """Settles those devices that no other command is at work on; logs what fails."""
        for folder in folders:
            with self._table():
                held = lock.attempt(folder)
            if held is None:
                continue
            with held:
                try:
                    self._settle(folder, probe=probe)
                except HostError as error:
                    self._say(f"what was attached in {folder} cannot be taken apart: {error}")

    def _settle(self, folder: Path, *, probe: bool = False) -> Device | None:
        """Takes apart a device that nobody uses, or, with `probe`, one that does not answer any more; its lock is held.

        Returns the device where it stays.
        """
        with self._table() as table:
            device, noted = table.device(folder), table.mounts_of(folder)
        used = _used(device, noted, self._namespace.sources())
        mounts.unmount(folder / _ASIDE)  # of a `replace` that was killed
        in_use = device is not None and (used or self._attacher.is_open(device))
        if device is not None and in_use and (not probe or self._attacher.is_alive(device)):
            with self._table() as table:
                table.drop_mounts(set(noted) - set(used))
            return device
        for directory in used:
            if device is not None and directory == device.path:
                self._say(f"{directory} is detached: the server behind it has gone, and reads failed; attach it again")
                continue
            self._namespace.take_off(directory, lazily=True)
            self._say(f"{directory} is unmounted: the server behind it has gone, and reads failed; attach it again")
        warming.end(folder, device.path if device is not None else "")
        if device is not None:
            self._attacher.detach(device)
        else:
            self._attacher.clear(folder)
        with self._table() as table:
            table.drop_device(folder)
        shutil.rmtree(folder, ignore_errors=True)
        return None

    def _lock(self, find: Callable[[AttachmentTable], Path | None]) -> DeviceLock | None:
        """Waits for the lock of the device that `find` finds; returns None where there is none."""
        while True:
            with self._table() as table:
                folder = find(table)
                if folder is None:
                    return None
                held = lock.attempt(folder)
            held = held or lock.wait(folder)
            if held is not None:
                return held

    def _check_free(self, table: AttachmentTable, where: str, own: Path | None) -> None:
        """Raises UsageError where something is mounted, _Reserved where another command may be about to mount.

        `own` is the device that the caller has locked.
        """
        if self._namespace.source(where) is not None:
            raise UsageError(f"something is mounted at {where} already: detach it first, or choose another directory")
        noted = table.folder_at(where)
        if noted is None or noted == own:
            return
        held = lock.attempt(noted)
        if held is None:
            raise _Reserved(noted)
        held.close()

    def _resolved(self, directory: Path) -> str:
        """Returns the directory in its namespace; one that another process named has no link in it."""
        return str(directory.resolve() if self._namespace is OWN else directory)

    def _table(self) -> AbstractContextManager[AttachmentTable]:
        return changing(self._state)


def _used(device: Device | None, noted: Iterable[str], there: dict[str, str]) -> list[str]:
    """Returns the directories noted for a device where it is in fact mounted, and its own path if it was attached as a device."""
    return [] if device is None else [directory for directory in noted if _is_used(directory, device.path, there)]


def _is_used(noted: str, device: str, there: dict[str, str]) -> bool:
    """Returns True if a device is mounted where that is noted, or is up where it is noted as attached as such."""
    return is_up(device) if noted == device else there.get(noted) == device
