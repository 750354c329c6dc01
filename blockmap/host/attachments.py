"""What is attached where, in SQLite under the state directory, so that any later command can take it apart.

A device belongs to a version of one server, and serves all directories where that version is mounted. The whole of an
attach or detach holds one lock, so two commands never see each other's halves; whatever a killed command left is found by
the next.
"""

import contextlib
import fcntl
import os
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from dataclasses import astuple, dataclass
from pathlib import Path

from blockmap.errors import HostError, UsageError
from blockmap.host import tools
from blockmap.host.device import Attacher, Device

_SCHEMA = """
CREATE TABLE IF NOT EXISTS devices (
    directory TEXT PRIMARY KEY,   -- what the device needs lies here
    socket TEXT NOT NULL,
    export TEXT NOT NULL,         -- by digest
    kind TEXT NOT NULL, path TEXT NOT NULL, pid INTEGER NOT NULL, started INTEGER NOT NULL, mount TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS mounts (
    directory TEXT PRIMARY KEY,   -- where it is mounted
    device TEXT NOT NULL REFERENCES devices (directory),
    name TEXT NOT NULL            -- as it was asked for
);
"""


@dataclass(frozen=True, slots=True)
class Attached:
    """One mount, for people."""

    directory: str
    name: str
    export: str
    device: str


_Listed = list[Attached]


class Attachments:
    """Attaches and detaches, on behalf of this host's root."""

    def __init__(self, state: Path, attacher: Attacher) -> None:
        self._state = state
        self._attacher = attacher

    def attach(self, nbd_socket: Path, export: str, name: str, directory: Path) -> None:
        """Mounts `export` (by digest) read-only at a directory; shares the device that shows it already. HostError."""
        tools.need_root("attach")
        where = directory.absolute()
        if not where.is_dir():
            raise UsageError(f"{directory} is no directory: make it first, with mkdir")
        with self._locked() as database:
            self._clean(database)
            if os.path.ismount(where):
                raise UsageError(
                    f"something is mounted at {directory} already: detach it first, or choose another directory"
                )
            key, device, made = self._device(database, str(nbd_socket.absolute()), export)
            try:
                tools.run("mount", "-t", "ext4", "-o", "ro,noload,nodev", device.path, str(where))
                database.execute("INSERT INTO mounts VALUES (?, ?, ?)", (str(where), key, name))
            except BaseException:
                if os.path.ismount(where):
                    tools.run("umount", str(where))
                if made:
                    self._drop(database, key, device)
                raise

    def detach(self, directory: Path) -> None:
        """Unmounts a directory, and takes its device apart when it was the last; UsageError, HostError."""
        tools.need_root("detach")
        where = str(directory.absolute())
        with self._locked() as database:
            row = database.execute("SELECT device FROM mounts WHERE directory = ?", (where,)).fetchone()
            if row is None:
                self._clean(database)
                listed = ", ".join(each.directory for each in self._list(database)) or "nothing is attached"
                raise UsageError(f"nothing of blockmap is attached at {directory} (attached: {listed})")
            if os.path.ismount(where):
                tools.run("umount", where)
            database.execute("DELETE FROM mounts WHERE directory = ?", (where,))
            self._clean(database)

    def list(self) -> _Listed:
        with self._locked() as database:
            return self._list(database)

    def _list(self, database: sqlite3.Connection) -> _Listed:
        rows = database.execute(
            "SELECT mounts.directory, name, export, path FROM mounts JOIN devices ON device = devices.directory ORDER BY 1"
        )
        return [Attached(*row) for row in rows]

    def _device(self, database: sqlite3.Connection, nbd_socket: str, export: str) -> tuple[str, Device, bool]:
        """The device that shows an export: its key, and whether it is new."""
        row = database.execute(
            "SELECT directory, kind, path, pid, started, mount FROM devices WHERE socket = ? AND export = ?",
            (nbd_socket, export),
        ).fetchone()
        if row is not None:
            return row[0], Device(*row[1:]), False
        devices = self._state / "devices"
        devices.mkdir(parents=True, exist_ok=True)
        key = tempfile.mkdtemp(dir=devices)
        try:
            device = self._attacher.attach(Path(nbd_socket), export, Path(key))
        except BaseException:
            shutil.rmtree(key, ignore_errors=True)
            raise
        database.execute(
            "INSERT INTO devices VALUES (?, ?, ?, ?, ?, ?, ?, ?)", (key, nbd_socket, export, *astuple(device))
        )
        database.commit()
        return key, device, True

    def _clean(self, database: sqlite3.Connection) -> None:
        """Takes apart what nobody uses, and what cannot answer any more."""
        for (directory,) in database.execute("SELECT directory FROM mounts").fetchall():
            if not os.path.ismount(directory):
                database.execute("DELETE FROM mounts WHERE directory = ?", (directory,))
        rows = database.execute("SELECT directory, kind, path, pid, started, mount FROM devices").fetchall()
        for key, *fields in rows:
            device = Device(*fields)
            used = database.execute("SELECT directory FROM mounts WHERE device = ?", (key,)).fetchall()
            if used and self._attacher.alive(device):
                continue
            for (directory,) in used:
                tools.run("umount", "-l", directory)
                database.execute("DELETE FROM mounts WHERE directory = ?", (directory,))
            self._drop(database, key, device)
        known = {key for key, *_ in database.execute("SELECT directory FROM devices")}
        for left in (self._state / "devices").glob("*"):
            if str(left) not in known:
                self._attacher.detach(Device("", "", 0, 0, str(left / "fuse")))
                shutil.rmtree(left, ignore_errors=True)
        database.commit()

    def _drop(self, database: sqlite3.Connection, key: str, device: Device) -> None:
        self._attacher.detach(device)
        database.execute("DELETE FROM devices WHERE directory = ?", (key,))
        database.commit()
        shutil.rmtree(key, ignore_errors=True)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[sqlite3.Connection]:
        try:
            self._state.mkdir(parents=True, exist_ok=True)
            lock = os.open(self._state / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise HostError(f"cannot use {self._state}: {error.strerror}") from error
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            database = sqlite3.connect(self._state / "attachments.db")
            try:
                database.executescript(_SCHEMA)
                yield database
                database.commit()
            except sqlite3.Error as error:
                raise HostError(
                    f"the record of what is attached, {self._state}/attachments.db, is damaged: {error}"
                ) from error
            finally:
                database.close()
        finally:
            os.close(lock)
