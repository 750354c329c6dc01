"""The messages about devices, which the process that attaches answers: `blockmap devices`."""

from collections.abc import Sequence
from dataclasses import dataclass

from blockmap.control.operation import Answer, Operation
from blockmap.errors import UsageError


@dataclass(frozen=True)
class AttachedAnswer(Answer):
    export: str
    """An image by its digest, or a clone."""
    device: str
    kind: str
    """How the device was made: nbd, which is the kernel's, or nbdfuse."""
    writable: bool
    notes: Sequence[str]
    """What people should know that has happened meanwhile."""


@dataclass(frozen=True)
class AttachDevice(Operation[AttachedAnswer]):
    """Mounts an export of a server at a directory, as whoever asks sees it, or makes a device of it alone.

    Whoever hangs up before the answer has it undone.
    """

    op, answer = "attach", AttachedAnswer
    socket: str = ""
    """The server's NBD socket, or HOST:PORT of one on another host."""
    store: str = ""
    """What the server must serve; empty for anything."""
    name: str = ""
    """What is mounted, as it was asked for."""
    directory: str = ""
    """An absolute path without links; empty for a device that is not mounted."""
    export: str = ""
    """What the name stands for, where that is known already; `writable` and `start` go with it."""
    exact: bool = False
    writable: bool = False
    start: bool = False
    fixed: bool = True
    """False where the name has to be one that moves."""
    hydrate: bool | None = None
    """True to bring the rest as well, False to bring nothing but what is read, or known to be."""

    def __post_init__(self) -> None:
        texts = (self.socket, self.store, self.name, self.directory, self.export)
        flags = (self.exact, self.writable, self.start, self.fixed)
        if any(type(each) is not str for each in texts) or any(type(each) is not bool for each in flags):
            raise UsageError(
                "socket, store, name, directory and export are texts; exact, writable, start and fixed are true or false"
            )
        if type(self.hydrate) not in (bool, type(None)):
            raise UsageError(f"hydrate is true, false or null, not {self.hydrate!r}")


@dataclass(frozen=True)
class DetachedAnswer(Answer):
    notes: Sequence[str]


@dataclass(frozen=True)
class DetachDevice(Operation[DetachedAnswer]):
    """Unmounts what is attached at a directory, or takes apart what is attached as a device."""

    op, answer = "detach", DetachedAnswer
    directory: str = ""
    """An absolute path without links."""

    def __post_init__(self) -> None:
        if type(self.directory) is not str:
            raise UsageError(f"directory is a path, not {self.directory!r}")


@dataclass(frozen=True)
class DirectoriesAnswer(Answer):
    directories: Sequence[str]


class AttachedDirectories(Operation[DirectoriesAnswer]):
    """Asks where something is attached."""

    op, answer, is_use = "attached", DirectoriesAnswer, False
