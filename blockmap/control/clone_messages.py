"""The messages about clones: how they are made, captured, published, forked and removed."""

from collections.abc import Sequence
from dataclasses import dataclass

from blockmap.control.operation import AboutExport, Answer, EmptyAnswer, Operation
from blockmap.errors import UsageError


@dataclass(frozen=True)
class CloneAnswer(Answer):
    note: str
    """What people should know; empty where there is nothing to say."""


@dataclass(frozen=True)
class MakeClone(AboutExport[CloneAnswer]):
    """Makes a writable clone of an image."""

    op, answer = "clone", CloneAnswer
    name: str = ""
    size: int | None = None
    """Bytes; None for the image's."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if type(self.name) is not str or type(self.size) not in (int, type(None)):
            raise UsageError(f"name is a name, and size a number or null, not {self.name!r} and {self.size!r}")


class RemoveClone(AboutExport[CloneAnswer]):
    """Removes a clone, by its export name."""

    op, answer = "rm", CloneAnswer


class PrepareCapture(AboutExport[EmptyAnswer]):
    """Does beforehand what a capture of a clone would do while its writers wait."""

    op, answer = "prepare_capture", EmptyAnswer


@dataclass(frozen=True)
class CaptureAnswer(Answer):
    capture: int
    """Its number; 0 where nothing was captured."""


@dataclass(frozen=True)
class Capture(AboutExport[CaptureAnswer]):
    """Captures a clone as it is at this moment, for it to become a version that `name` stands for."""

    op, answer = "capture", CaptureAnswer
    name: str = ""
    message: str = ""
    author: str = ""
    changes: str = "[]"
    """Changes of the image's configuration, as JSON."""
    force: bool = False
    after: int | None = None
    """The number of the entry that the name must have when it is moved; None for what the clone was made of."""
    skip_unchanged: bool = False
    """True to capture nothing where nothing was written since the last capture."""

    def __post_init__(self) -> None:
        super().__post_init__()
        texts, flags = (self.name, self.message, self.author, self.changes), (self.force, self.skip_unchanged)
        if any(type(each) is not str for each in texts) or any(type(each) is not bool for each in flags):
            raise UsageError(
                "name, message, author and changes are texts, and force and skip_unchanged are true or false"
            )
        if self.after is not None and (type(self.after) is not int or self.after < 0):
            raise UsageError(f"after is the number of an entry or null, not {self.after!r}")


@dataclass(frozen=True)
class Fork(AboutExport[EmptyAnswer]):
    """Makes clones of a clone as it is at this moment, all or none."""

    op, answer = "fork", EmptyAnswer
    names: Sequence[str] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.names, list | tuple) or any(type(each) is not str for each in self.names):
            raise UsageError(f"names is a list of names, not {self.names!r}")


@dataclass(frozen=True)
class RewindAnswer(Answer):
    export: str
    """The version's export name by digest."""


@dataclass(frozen=True)
class Rewind(AboutExport[RewindAnswer]):
    """Puts a clone on a version, and forgets what was written to it."""

    op, answer = "rewind", RewindAnswer
    name: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        if type(self.name) is not str:
            raise UsageError(f"name is a name, not {self.name!r}")


@dataclass(frozen=True)
class PublishedAnswer(Answer):
    export: str
    """The version's export name by digest; empty where it is not published yet."""
    entry: int
    """The number of the name's entry."""
    failure: str
    """Why it is not published yet, where an attempt has failed."""


@dataclass(frozen=True)
class AwaitPublished(Operation[PublishedAnswer]):
    """Asks what a capture has become, and waits for that for some seconds."""

    op, answer = "published", PublishedAnswer
    capture: int = 0
    seconds: float = 0.0

    def __post_init__(self) -> None:
        if type(self.capture) is not int or type(self.seconds) not in (int, float) or not 0 <= self.seconds <= 60:
            raise UsageError("capture is a number, and seconds are from 0 to 60")


@dataclass(frozen=True)
class SettledAnswer(Answer):
    captures: list[int]


@dataclass(frozen=True)
class SettleCaptures(AboutExport[SettledAnswer]):
    """Decides what becomes of captures of a clone: all are dropped, or the first that waits is published after all."""

    op, answer = "settle", SettledAnswer
    drop: bool = False
    name: str | None = None
    """Another name to publish it under."""
    force: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if type(self.drop) is not bool or type(self.force) is not bool or type(self.name) not in (str, type(None)):
            raise UsageError("drop and force are true or false, and name is a name or null")
