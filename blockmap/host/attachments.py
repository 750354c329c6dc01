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
from collections.abc import Callable, Iterator
from dataclasses import astuple, dataclass
from pathlib import Path
from urllib.parse import quote

from blockmap.control.client import Client
from blockmap.errors import HostError, UsageError
from blockmap.host import mounting, tools
from blockmap.host.devices import mounts
from blockmap.host.devices.device import Attacher, Device
from blockmap.host.warm import warming

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

    def __init__(self, state: Path, attacher: Attacher, say: Callable[[str], None]) -> None:
        self._state = state.absolute()
        self._attacher = attacher
        self._say = say

    def attach(self, client: Client, export: str, name: str, directory: Path, *, exact: bool = False) -> None:
        """Mounts `export` (by digest) read-only at a directory; shares the device that shows it already.

        With `exact`, the device is new, and the kernel reads nothing ahead. HostError, UsageError.
        """
        tools.need_root("attach")
        where = str(directory.resolve())
        if not os.path.isdir(where):
            if os.path.exists(where):
                raise UsageError(f"{directory} is no directory: name one")
            raise UsageError(f"there is no directory {directory}: make it first, with mkdir")
        with self._locked() as database:
            self._clean(database)
            if mounts.source(where) is not None:
                raise UsageError(
                    f"something is mounted at {directory} already: detach it first, or choose another directory"
                )
            key, device, made = self._device(database, client, export, exact)
            try:
                # Noted before it is there: a mount that nobody knows of would keep its device for ever.
                database.execute("INSERT OR REPLACE INTO mounts VALUES (?, ?, ?)", (where, key, name))
                database.commit()
                if made:
                    mounting.mount(client, export, device, Path(key), where, exact=exact)
                else:
                    mounting.mount_device(device.path, where)
            except BaseException:
                if mounts.source(where) == device.path:
                    tools.run("umount", where)
                database.execute("DELETE FROM mounts WHERE directory = ?", (where,))
                database.commit()
                if made:
                    self._drop(database, key, device)
                raise

    def detach(self, directory: Path) -> None:
        """Unmounts a directory, and takes its device apart when it was the last; UsageError, HostError."""
        tools.need_root("detach")
        where = str(directory.resolve())
        with self._locked() as database:
            row = database.execute(
                "SELECT path, device FROM mounts JOIN devices ON device = devices.directory WHERE mounts.directory = ?",
                (where,),
            ).fetchone()
            if row is None or mounts.source(where) != row[0]:
                self._clean(database)
                listed = ", ".join(each.directory for each in _list(database)) or "nothing is attached"
                raise UsageError(f"nothing of blockmap is attached at {directory} (attached: {listed})")
            warming.end(Path(row[1]), row[0])
            tools.run("umount", where)
            database.execute("DELETE FROM mounts WHERE directory = ?", (where,))
            database.commit()
            self._clean(database)

    def list(self) -> _Listed:
        """What is attached now; HostError where the record cannot be read."""
        path = self._state / "attachments.db"
        if not path.exists():
            return []
        try:
            # Without the lock: who only looks does not wait for an attach that waits for a store.
            with contextlib.closing(
                sqlite3.connect(f"file:{quote(str(path.absolute()))}?mode=ro", uri=True)
            ) as database:
                return [each for each in _list(database) if mounts.source(each.directory) == each.device]
        except sqlite3.Error as error:
            raise HostError(f"the record of what is attached, {path}, cannot be read: {error}") from error

    def _device(
        self, database: sqlite3.Connection, client: Client, export: str, exact: bool
    ) -> tuple[str, Device, bool]:
        """The device that shows an export: its key, and whether it is new; then the record of it is not committed yet."""
        nbd_socket = str(client.nbd_socket.absolute())
        row = database.execute(
            "SELECT directory, kind, path, pid, started, mount FROM devices WHERE socket = ? AND export = ?",
            (nbd_socket, export),
        ).fetchone()
        if row is not None:
            if exact:
                raise UsageError(
                    f"{export} is attached, and what is in memory already would not be seen: detach it first "
                    "(`blockmap status` says where it is)"
                )
            return row[0], Device(*row[1:]), False
        mounting.expect(client, export, exact=exact)
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
        return key, device, True

    def _clean(self, database: sqlite3.Connection) -> None:
        """Takes apart what nobody uses, and what cannot answer any more."""
        rows = database.execute("SELECT directory, kind, path, pid, started, mount FROM devices").fetchall()
        for key, *fields in rows:
            device = Device(*fields)
            noted = [row[0] for row in database.execute("SELECT directory FROM mounts WHERE device = ?", (key,))]
            used = [directory for directory in noted if mounts.source(directory) == device.path]
            if used and self._attacher.alive(device):
                gone = set(noted) - set(used)
            else:
                for directory in used:
                    tools.run("umount", "-l", directory)
                    self._say(
                        f"{directory} is unmounted: the server behind it has gone, and reads failed; attach it again"
                    )
                self._drop(database, key, device)
                gone = set(noted)
            database.executemany("DELETE FROM mounts WHERE directory = ?", [(directory,) for directory in gone])
            database.commit()
        known = {key for (key,) in database.execute("SELECT directory FROM devices")}
        for left in (self._state / "devices").glob("*"):
            if str(left) not in known:
                warming.end(left, "")
                self._attacher.detach(Device("", "", 0, 0, str(left / "fuse")))
                shutil.rmtree(left, ignore_errors=True)

    def _drop(self, database: sqlite3.Connection, key: str, device: Device) -> None:
        warming.end(Path(key), device.path)
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
            path = self._state / "attachments.db"
            try:
                with contextlib.closing(sqlite3.connect(path)) as database:
                    database.executescript(_SCHEMA)
                    yield database
            except sqlite3.Error as error:
                raise HostError(f"the record of what is attached, {path}, is damaged: {error}") from error
        finally:
            os.close(lock)


def _list(database: sqlite3.Connection) -> _Listed:
    rows = database.execute(
        "SELECT mounts.directory, name, export, path FROM mounts JOIN devices ON device = devices.directory ORDER BY 1"
    )
    return [Attached(*row) for row in rows]
