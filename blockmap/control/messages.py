"""The messages about a server as a whole, and about starts from an export."""

from collections.abc import Sequence
from dataclasses import astuple, dataclass
from typing import Any, Self, TypedDict

from blockmap.control.operation import AboutExport, Answer, EmptyAnswer, Operation
from blockmap.errors import UsageError
from blockmap.store.call import Call


class ExportStatus(TypedDict):
    """An export that is open under one outage policy."""

    export: str
    connections: int
    size: int
    """Bytes."""
    waiting: int
    """Reads under way that the hit path did not answer."""


class SupervisorStatus(TypedDict):
    """The process that keeps a server running; its end is the server's."""

    pid: int
    idle_seconds: float | None
    """Seconds after its last use at which it ends by itself; None where it does not."""
    log: str | None
    """The file that it logs to; None where that is no file."""


class ServerStatus(TypedDict):
    """What a server is and counts; the keys of each part are given by the code that counts."""

    pid: int
    """nbdkit's, which is started again when it ends."""
    version: str
    """The release, as `blockmap.__version__`."""
    supervisor: SupervisorStatus
    started: float
    """Unix time."""
    seconds: float
    """Time since then."""
    control_requests: int
    """Requests of those who use the server: whoever resolves a name is about to open it."""
    store: str
    trust: list[str]
    """Ids of the keys of which one must have signed what is opened; empty where nothing need be signed."""
    outage_seconds: float
    """The longest that a read waits for a store that is away."""
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

    op, answer, is_use, group_may = "status", StatusAnswer, False, True


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

    op, answer, is_use, group_may = "calls", CallsAnswer, False, True
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

    op, answer, is_use, group_may = "traces", TracesAnswer, False, True


@dataclass(frozen=True)
class NamesAnswer(Answer):
    names: Sequence[Sequence[str]]
    """Export and description."""


class Names(Operation[NamesAnswer]):
    """Asks for the catalogue of the store."""

    op, answer, group_may = "names", NamesAnswer, True


@dataclass(frozen=True)
class ImagesAnswer(Answer):
    images: list[dict[str, Any]]
    """The fields of `blockmap.api.images.NamedImage`."""


@dataclass(frozen=True)
class Images(Operation[ImagesAnswer]):
    """Asks for the images of the store, on behalf of who cannot read the store."""

    op, answer, is_use, group_may = "images", ImagesAnswer, False, True
    data: bool = False
    """True to be told how much data each has, which reads its tree."""

    def __post_init__(self) -> None:
        if type(self.data) is not bool:
            raise UsageError(f"data is true or false, not {self.data!r}")


@dataclass(frozen=True)
class ResolveAnswer(Answer):
    export: str
    writable: bool
    """True for a clone."""


class Resolve(AboutExport[ResolveAnswer]):
    """Asks for the name by digest of the version that an export stands for now, with its label; that of a clone is its own."""

    op, answer = "resolve", ResolveAnswer


@dataclass(frozen=True)
class StandsAnswer(Answer):
    exports: Sequence[str | None]
    """In the order of the names; None where one stands for nothing, or cannot be opened here."""
    times: Sequence[int]
    """The Unix times at which the names were moved there; 0 where a name cannot move, or stands for nothing."""


@dataclass(frozen=True)
class Stands(Operation[StandsAnswer]):
    """Asks for the names by digest of the versions that names stand for now, and opens nothing; a clone's is that of the image
    that it was made of."""

    op, answer, is_use, group_may = "stands", StandsAnswer, False, True
    names: Sequence[str] = ()

    def __post_init__(self) -> None:
        if not isinstance(self.names, list | tuple) or any(type(each) is not str for each in self.names):
            raise UsageError(f"names is a list of names, not {self.names!r}")


@dataclass(frozen=True)
class ConfigAnswer(Answer):
    config: str


class Config(AboutExport[ConfigAnswer]):
    """Asks for the OCI image configuration of an export, as text."""

    op, answer = "config", ConfigAnswer


@dataclass(frozen=True)
class Hydrate(AboutExport[EmptyAnswer]):
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


class Readings(AboutExport[ReadingsAnswer]):
    """Asks what starts of an export read, for the kernel to be warmed with."""

    op, answer = "readings", ReadingsAnswer


@dataclass(frozen=True)
class FollowsAnswer(Answer):
    follows: bool


class Follows(AboutExport[FollowsAnswer]):
    """Asks whether a start of an export (by digest) is traced that reads what its profile says, so that nothing is to be read
    ahead."""

    op, answer, is_use = "follows", FollowsAnswer, False


@dataclass(frozen=True)
class Expect(AboutExport[EmptyAnswer]):
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
class Ready(AboutExport[ReadyAnswer]):
    """Says that the program of an export can be used, or has failed, which ends its trace."""

    op, answer = "ready", ReadyAnswer
    failed: bool = False
    """True if the program failed or was not ready in time, so that nothing is to be learnt from its trace."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if type(self.failed) is not bool:
            raise UsageError(f"failed is true or false, not {self.failed!r}")
