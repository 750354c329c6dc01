"""The messages of the control socket: each operation is a request class, with the class of its answer.

Both ends send one JSON object per line. A request has `v` (1), `op` and the fields of its class. An answer has `v` and `ok`;
with `ok` true the fields of the answer's class, else `error`, a text for people, and `kind`, the class of the error.

Only classes with fields of their own are decorated: each decoration is 0.4 ms that `attach` and `run` wait for.
"""

import json
from collections.abc import Sequence
from dataclasses import astuple, dataclass, fields
from typing import Any, ClassVar, Generic, Self, TypedDict, TypeVar

from blockmap import errors
from blockmap.errors import BlockmapError, HostError, UsageError
from blockmap.store.observed import Call

VERSION = 1

ERRORS: dict[str, type[BlockmapError]] = {
    each.__name__: each
    for each in (
        errors.UsageError, errors.NotFound, errors.AlreadyExists, errors.NameMoved, errors.FormatError, errors.Corrupt,
        errors.Untrusted, errors.StoreError, errors.NotAStore, errors.StoreTooNew, errors.StoreRefused, errors.CannotList,
        errors.StoreReadOnly, errors.StoreUnavailable, errors.ImageError, errors.HostError, errors.DiskFull, errors.Collected,
    )
}  # fmt: skip
"""The errors that cross the socket, by `kind`; any other arrives as HostError."""


@dataclass(frozen=True)
class Answer:
    """The fields of an answer, as JSON has them."""

    def to_wire(self) -> dict[str, Any]:
        return dict(vars(self))

    @classmethod
    def from_wire(cls, wire: dict[str, Any]) -> Self:
        """Raises KeyError, TypeError or ValueError where a field is missing or makes no sense."""
        return cls(**{each.name: wire[each.name] for each in fields(cls)})


AnswerT = TypeVar("AnswerT", bound=Answer)


@dataclass(frozen=True)
class Operation(Generic[AnswerT]):
    """One question; raises UsageError where a field has a wrong type."""

    op: ClassVar[str]
    answer: ClassVar[type[Answer]]
    is_use: ClassVar[bool] = True
    """True if whoever asks uses the server, False for one who only watches it."""

    def to_wire(self) -> dict[str, Any]:
        return {"op": self.op, **vars(self)}


@dataclass(frozen=True)
class _AboutExport(Operation[AnswerT]):
    export: str = ""

    def __post_init__(self) -> None:
        if type(self.export) is not str:
            raise UsageError(f"export is a name, not {self.export!r}")


class ExportStatus(TypedDict):
    """An export that is open under one outage policy."""

    export: str
    connections: int
    size: int
    """Bytes."""
    waiting: int
    """Reads under way that the hit path did not answer."""


class ServerStatus(TypedDict):
    """What a server is and counts; the keys of each part are given by the code that counts."""

    pid: int
    started: float
    """Unix time."""
    seconds: float
    """Time since then."""
    control_requests: int
    """Requests of those who use the server: whoever resolves a name is about to open it."""
    store: str
    trust: list[str]
    """Ids of the keys of which one must have signed what is opened; empty where nothing need be signed."""
    store_connected: bool
    """True if connections to the store are open, and for a store on this host."""
    exports: list[ExportStatus]
    opens: int
    """Opens of exports by clients."""
    unconfirmed_opens: int
    """Opens by what the store said last, while it did not answer."""
    reads: list[dict[str, Any]]
    hydrations: list[dict[str, Any]]
    remote: dict[str, Any]
    fetch: dict[str, Any]
    cache: dict[str, Any]
    traces: dict[str, int]
    learn: dict[str, int]


@dataclass(frozen=True)
class StatusAnswer(Answer):
    status: ServerStatus
    """A plain dict, whose keys are the answer's: there are many, and more with each release."""

    def to_wire(self) -> dict[str, Any]:
        return {**self.status}

    @classmethod
    def from_wire(cls, wire: dict[str, Any]) -> Self:
        return cls(wire)  # type: ignore[arg-type]


class Status(Operation[StatusAnswer]):
    """Asks what the server is and counts."""

    op, answer, is_use = "status", StatusAnswer, False


@dataclass(frozen=True)
class CallsAnswer(Answer):
    first: int
    """Number of the first of `calls`; more than was asked for where calls are forgotten."""
    calls: list[Call]
    """Calls in the order in which they ended; on the wire each is [op, key, start_s, seconds, bytes, error]."""

    def to_wire(self) -> dict[str, Any]:
        return {"first": self.first, "calls": [astuple(call) for call in self.calls]}

    @classmethod
    def from_wire(cls, wire: dict[str, Any]) -> Self:
        return cls(wire["first"], [Call(*call) for call in wire["calls"]])


@dataclass(frozen=True)
class Calls(Operation[CallsAnswer]):
    """Asks for the calls of the store from number `since` on, as many as are given at once."""

    op, answer, is_use = "calls", CallsAnswer, False
    since: int = 0

    def __post_init__(self) -> None:
        if type(self.since) is not int or self.since < 0:
            raise UsageError(f"since is the number of a call, not {self.since!r}")


@dataclass(frozen=True)
class TracesAnswer(Answer):
    traces: list[dict[str, Any]]
    """Each with path, export, label, started, reads, state, new, declared, exact, ready_ms and profile."""


class Traces(Operation[TracesAnswer]):
    """Asks for the traces that run, and the latest."""

    op, answer, is_use = "traces", TracesAnswer, False


@dataclass(frozen=True)
class NamesAnswer(Answer):
    names: Sequence[Sequence[str]]
    """Export and description."""


class Names(Operation[NamesAnswer]):
    """Asks for the catalogue of the store."""

    op, answer = "names", NamesAnswer


@dataclass(frozen=True)
class ResolveAnswer(Answer):
    export: str
    writable: bool
    """True for a clone."""


class Resolve(_AboutExport[ResolveAnswer]):
    """Asks for the name by digest of the version that an export stands for now, with its label; that of a clone is its own."""

    op, answer = "resolve", ResolveAnswer


@dataclass(frozen=True)
class ConfigAnswer(Answer):
    config: str


class Config(_AboutExport[ConfigAnswer]):
    """Asks for the OCI image configuration of an export, as text."""

    op, answer = "config", ConfigAnswer


class EmptyAnswer(Answer):
    """Says that what was asked for is done, or has begun."""


@dataclass(frozen=True)
class CloneAnswer(Answer):
    note: str
    """What people should know; empty where there is nothing to say."""


@dataclass(frozen=True)
class MakeClone(_AboutExport[CloneAnswer]):
    """Makes a writable clone of an image."""

    op, answer = "clone", CloneAnswer
    name: str = ""
    size: int | None = None
    """Bytes; None for the image's."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if type(self.name) is not str or type(self.size) not in (int, type(None)):
            raise UsageError(f"name is a name, and size a number or null, not {self.name!r} and {self.size!r}")


class RemoveClone(_AboutExport[CloneAnswer]):
    """Removes a clone, by its export name."""

    op, answer = "rm", CloneAnswer


class PrepareCapture(_AboutExport[EmptyAnswer]):
    """Does beforehand what a capture of a clone would do while its writers wait."""

    op, answer = "prepare_capture", EmptyAnswer


@dataclass(frozen=True)
class CaptureAnswer(Answer):
    capture: int


@dataclass(frozen=True)
class Capture(_AboutExport[CaptureAnswer]):
    """Captures a clone as it is at this moment, for it to become a version that `name` stands for."""

    op, answer = "capture", CaptureAnswer
    name: str = ""
    message: str = ""
    author: str = ""
    changes: str = "[]"
    """Changes of the image's configuration, as JSON."""
    force: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        texts = (self.name, self.message, self.author, self.changes)
        if any(type(each) is not str for each in texts) or type(self.force) is not bool:
            raise UsageError("name, message, author and changes are texts, and force is true or false")


@dataclass(frozen=True)
class Fork(_AboutExport[EmptyAnswer]):
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
class Rewind(_AboutExport[RewindAnswer]):
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
class SettleCaptures(_AboutExport[SettledAnswer]):
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


@dataclass(frozen=True)
class Hydrate(_AboutExport[EmptyAnswer]):
    """Begins to bring all of an export into the cache, or has its next start bring nothing that was not asked for."""

    op, answer = "hydrate", EmptyAnswer
    wanted: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if type(self.wanted) is not bool:
            raise UsageError(f"wanted is true or false, not {self.wanted!r}")


@dataclass(frozen=True)
class ReadingsAnswer(Answer):
    profile: int
    """Number of the profile that is replayed; 0 for none, or for one of this host alone."""
    readings: Sequence[Sequence[object]]
    """What starts read, in order: [first block, blocks, path or null, first block in it]."""
    soon: int
    """The number of these blocks that come to the server within a moment."""


class Readings(_AboutExport[ReadingsAnswer]):
    """Asks what starts of an export read, for the kernel to be warmed with."""

    op, answer = "readings", ReadingsAnswer


@dataclass(frozen=True)
class FollowsAnswer(Answer):
    follows: bool


class Follows(_AboutExport[FollowsAnswer]):
    """Asks whether a start of an export (by digest) is traced that reads what its profile says, so that nothing is to be read
    ahead."""

    op, answer, is_use = "follows", FollowsAnswer, False


@dataclass(frozen=True)
class Expect(_AboutExport[EmptyAnswer]):
    """Says that a device new to the host is about to be made, for the next trace of the export and its label."""

    op, answer = "expect", EmptyAnswer
    new: bool = False
    """Always true, so that a request without it is refused."""
    exact: bool = False
    """True if the kernel reads nothing ahead."""
    start: bool = False
    """True if a program starts from the device, so that there is something to learn for all hosts."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.new is not True or type(self.exact) is not bool or type(self.start) is not bool:
            raise UsageError(
                f"new is true, exact and start are true or false, not {self.new!r}, {self.exact!r} and {self.start!r}"
            )


@dataclass(frozen=True)
class ReadyAnswer(Answer):
    trace: str | None
    """The file of the trace that ended so; None where there is none."""


@dataclass(frozen=True)
class Ready(_AboutExport[ReadyAnswer]):
    """Says that the program of an export can be used, or has failed, which ends its trace."""

    op, answer = "ready", ReadyAnswer
    failed: bool = False
    """True if the program failed or was not ready in time, so that nothing is to be learnt from its trace."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if type(self.failed) is not bool:
            raise UsageError(f"failed is true or false, not {self.failed!r}")


OPERATIONS: dict[str, type[Operation[Any]]] = {
    each.op: each
    for each in (
        Status,
        Calls,
        Traces,
        Names,
        Resolve,
        Config,
        MakeClone,
        Fork,
        PrepareCapture,
        Rewind,
        Capture,
        AwaitPublished,
        SettleCaptures,
        RemoveClone,
        Hydrate,
        Readings,
        Follows,
        Expect,
        Ready,
    )
}


def encode_request(request: Operation[Any]) -> bytes:
    return _line(request.to_wire())


def decode_request(line: bytes) -> Operation[Any]:
    """Returns the request that a line holds; UsageError. Fields that its class does not have are ignored."""
    try:
        wire = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"the request is not JSON: {error}") from error
    if not isinstance(wire, dict) or wire.get("v") != VERSION:
        raise UsageError(f"a request is a JSON object with v: {VERSION}, on one line")
    op = wire.get("op")
    kind = OPERATIONS.get(op) if isinstance(op, str) else None
    if kind is None:
        raise UsageError(f"{op!r} is not an operation of this server: {', '.join(OPERATIONS)} are")
    return kind(**{each.name: wire[each.name] for each in fields(kind) if each.name in wire})


def encode_answer(answer: Answer) -> bytes:
    return _line({"ok": True, **answer.to_wire()})


def encode_error(error: BlockmapError) -> bytes:
    kind = type(error).__name__
    return _line({"ok": False, "kind": kind if kind in ERRORS else HostError.__name__, "error": str(error)})


def decode_answer(request: Operation[AnswerT], line: bytes) -> AnswerT:
    """Returns the answer to a request, or raises the error that it holds; ValueError, KeyError, TypeError where the line is
    no answer."""
    wire = json.loads(line)
    if not wire.get("ok"):
        raise ERRORS.get(str(wire.get("kind")), HostError)(wire.get("error"))
    answer: Any = request.answer.from_wire(wire)
    return answer  # type: ignore[no-any-return]


def _line(wire: dict[str, Any]) -> bytes:
    return json.dumps({"v": VERSION, **wire}).encode() + b"\n"
