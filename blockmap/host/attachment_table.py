"""Records what is attached where: devices and mounts, in SQLite under the state directory.

It cannot be rebuilt, so it is migrated, and never thrown away. Its lock, a file beside it, is held for a few reads and
writes only; it is never held while the lock of a device is waited for, but may be taken while one is held.
"""

import fcntl
import json
import os
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from blockmap.errors import HostError
from blockmap.host.devices.device import Device
from blockmap.local.database import Schema, open_database, open_to_read, transaction
from blockmap.local.paths import own

_FILE = "attachments.db"
_SCHEMA = Schema(
    version=1,
    tables="""
CREATE TABLE devices (
    directory TEXT PRIMARY KEY,        -- the device's folder: what it needs lies here
    socket TEXT NOT NULL,
    export TEXT NOT NULL,              -- by digest
    kind TEXT NOT NULL,
    path TEXT NOT NULL,                -- empty until the device is made
    state TEXT NOT NULL DEFAULT '{}'   -- JSON, the kind's own
);
CREATE TABLE mounts (
    directory TEXT PRIMARY KEY,        -- where it is mounted, or about to be
    device TEXT NOT NULL REFERENCES devices (directory),
    name TEXT NOT NULL                 -- as it was asked for
);
""",
    migrations={
        0: """
ALTER TABLE devices ADD COLUMN state TEXT NOT NULL DEFAULT '{}';
UPDATE devices SET state = json_object('pid', pid, 'started', started, 'mount', mount);
ALTER TABLE devices DROP COLUMN pid;
ALTER TABLE devices DROP COLUMN started;
ALTER TABLE devices DROP COLUMN mount;
"""
    },
)


@dataclass(frozen=True, slots=True)
class Attached:
    """One mount, or a device that was attached as such, for people."""

    directory: str
    """Where it is mounted; the device's own path where it is not."""
    name: str
    export: str
    device: str
    socket: str
    """The NBD socket of the server that shows it, or HOST:PORT."""
    kind: str
    """How the device was made: nbd, which is the kernel's, or nbdfuse."""


class AttachmentTable:
    """Reads and changes the record; used only while its lock is held."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def folders(self) -> list[Path]:
        """Returns the folders of all devices."""
        return self._folders("SELECT directory FROM devices")

    def folders_of(self, socket: str) -> list[Path]:
        """Returns the folders of a server's devices."""
        return self._folders("SELECT directory FROM devices WHERE socket = ?", socket)

    def sockets(self) -> set[str]:
        """Returns the sockets of the servers that devices are attached to."""
        return {socket for (socket,) in self._connection.execute("SELECT DISTINCT socket FROM devices")}

    def folder_showing(self, socket: str, export: str) -> Path | None:
        """Returns the folder of the device that shows, or is about to show, an export."""
        found = self._folders("SELECT directory FROM devices WHERE socket = ? AND export = ?", socket, export)
        return found[0] if found else None

    def folder_at(self, where: str, shown: str | None = None) -> Path | None:
        """Returns the folder of the device that is mounted at a directory: of that which is `shown` there, if it is one of ours,
        else of that which is noted."""
        found = self._folders("SELECT directory FROM devices WHERE path = ?", shown) if shown else []
        found = found or self._folders("SELECT device FROM mounts WHERE directory = ?", where)
        return found[0] if found else None

    def device(self, folder: Path) -> Device | None:
        """Returns the device of a folder; None where it is not on record, or not made."""
        row = self._connection.execute(
            "SELECT kind, path, state FROM devices WHERE directory = ? AND path != ''", (str(folder),)
        ).fetchone()
        return Device(row[0], row[1], json.loads(row[2])) if row else None

    def mounts_of(self, folder: Path) -> list[str]:
        """Returns the directories where a device is noted as mounted."""
        rows = self._connection.execute("SELECT directory FROM mounts WHERE device = ?", (str(folder),))
        return [where for (where,) in rows]

    def attached(self) -> list[Attached]:
        """Returns all that is noted as mounted, by directory."""
        rows = self._connection.execute(
            "SELECT mounts.directory, name, export, path, socket, kind FROM mounts JOIN devices ON device = devices.directory "
            "ORDER BY 1"
        )
        return [Attached(*row) for row in rows]

    def add_device(self, folder: Path, socket: str, export: str, kind: str) -> None:
        """Notes a device that is about to be made."""
        self._connection.execute(
            "INSERT INTO devices (directory, socket, export, kind, path) VALUES (?, ?, ?, ?, '')",
            (str(folder), socket, export, kind),
        )

    def set_made(self, folder: Path, device: Device) -> None:
        """Notes that a device is made."""
        self._connection.execute(
            "UPDATE devices SET kind = ?, path = ?, state = ? WHERE directory = ?",
            (device.kind, device.path, json.dumps(device.state), str(folder)),
        )

    def drop_device(self, folder: Path) -> None:
        """Forgets a device and its mounts."""
        self._connection.execute("DELETE FROM mounts WHERE device = ?", (str(folder),))
        self._connection.execute("DELETE FROM devices WHERE directory = ?", (str(folder),))

    def add_mount(self, where: str, folder: Path, name: str) -> None:
        """Notes that a device is about to be mounted, replacing what was noted for the directory."""
        self._connection.execute("INSERT OR REPLACE INTO mounts VALUES (?, ?, ?)", (where, str(folder), name))

    def drop_mounts(self, directories: Iterable[str]) -> None:
        """Forgets mounts."""
        self._connection.executemany("DELETE FROM mounts WHERE directory = ?", [(where,) for where in directories])

    def _folders(self, query: str, *values: str) -> list[Path]:
        return [Path(folder) for (folder,) in self._connection.execute(query, values)]


def is_recorded(state: Path) -> bool:
    """Returns True if something was attached here before."""
    return (state / _FILE).exists()


def has_devices(state: Path) -> bool:
    """Returns True if a device is on record; HostError."""
    if not is_recorded(state):
        return False
    with changing(state) as table:
        return bool(table.folders())


def sockets_of_devices(state: Path) -> set[str]:
    """Returns the sockets of the servers that devices on record are attached to; HostError."""
    if not is_recorded(state):
        return set()
    with changing(state) as table:
        return table.sockets()


@contextmanager
def changing(state: Path) -> Iterator[AttachmentTable]:
    """Holds the lock of the record; commits all changes made within, or none where something raises. HostError."""
    try:
        own(state).mkdir(mode=0o700, parents=True, exist_ok=True)
        with (
            _locked(state / "lock"),
            closing(open_database(state / _FILE, _SCHEMA)) as connection,
            transaction(connection),
        ):
            yield AttachmentTable(connection)
    except OSError as error:
        raise HostError(f"cannot use {state}: {error.strerror}") from error
    except sqlite3.Error as error:
        raise HostError(
            f"the record of what is attached, {state / _FILE}, is damaged, or of a newer release: {error}"
        ) from error


def read_attached(state: Path) -> list[Attached]:
    """Returns all that is noted as mounted, without the lock, from a file of an older version too; HostError."""
    try:
        with closing(open_to_read(state / _FILE, _SCHEMA)) as connection:
            return AttachmentTable(connection).attached()
    except sqlite3.Error as error:
        raise HostError(f"the record of what is attached, {state / _FILE}, cannot be read: {error}") from error


def read_devices(state: Path) -> list[tuple[Path, Device]]:
    """Returns the folders and devices on record that are made, without the lock; HostError."""
    if not is_recorded(state):
        return []
    try:
        with closing(open_to_read(state / _FILE, _SCHEMA)) as connection:
            table = AttachmentTable(connection)
            return [(folder, device) for folder in table.folders() if (device := table.device(folder)) is not None]
    except sqlite3.Error as error:
        raise HostError(f"the record of what is attached, {state / _FILE}, cannot be read: {error}") from error


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)
