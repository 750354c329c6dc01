"""What the server answers to each operation of the control socket."""

import os
from collections.abc import Callable
from typing import Any

from blockmap.control.dispatch import Dispatcher
from blockmap.control.messages import (
    Calls,
    CallsAnswer,
    Config,
    ConfigAnswer,
    EmptyAnswer,
    Expect,
    Hydrate,
    Names,
    NamesAnswer,
    Readings,
    ReadingsAnswer,
    Ready,
    ReadyAnswer,
    Resolve,
    ResolveAnswer,
    Status,
    StatusAnswer,
    Traces,
    TracesAnswer,
)
from blockmap.format.reading_list import ReadItem
from blockmap.format.refs import DEFAULT_LABEL
from blockmap.learn.local_files import LocalProfiles
from blockmap.learn.port_profile import read_items
from blockmap.server.server import Server
from blockmap.trace.manager import TraceManager

_CALLS_AT_ONCE = 2048
"""Some 300 kB: it is made in one go, in which no read gets on."""


def dispatcher(
    server: Server, traces: TraceManager, local: LocalProfiles, status: Callable[[], dict[str, Any]]
) -> Dispatcher:
    """Returns a dispatcher that answers for one server; `status` gives all but what the dispatcher itself counts."""
    made = Dispatcher()

    def start_of(request: Readings | Expect | Ready) -> tuple[str, str]:
        """The export by digest, and the label."""
        pinned, _, label = server.resolve(request.export).partition("+")
        return pinned, label or DEFAULT_LABEL

    def local_readings(request: Readings) -> list[ReadItem]:
        """What a profile says that only this host has, of the very version."""
        pinned, label = start_of(request)
        repo, _, digest = pinned.partition("@sha256:")
        own = local.get(repo, label)
        return read_items(own.items) if own is not None and own.version.hex() == digest else []

    def readings(request: Readings) -> ReadingsAnswer:
        number, found, soon = server.readings(request.export)
        items = found if number else local_readings(request)
        rows = [(each.start, each.blocks, each.path and os.fsdecode(each.path), each.at) for each in items]
        return ReadingsAnswer(number, rows, soon)

    def hydrate(request: Hydrate) -> EmptyAnswer:
        server.hydrate(request.export)
        return EmptyAnswer()

    def expect(request: Expect) -> EmptyAnswer:
        traces.expect(*start_of(request), request.exact)
        return EmptyAnswer()

    def ready(request: Ready) -> ReadyAnswer:
        trace = traces.ready(*start_of(request))
        return ReadyAnswer(None if trace is None else str(trace))

    def config(request: Config) -> ConfigAnswer:
        return ConfigAnswer(server.config(request.export).decode("utf-8", "replace"))

    made.register(Status, lambda _: StatusAnswer({"control_requests": made.uses, **status()}))  # type: ignore[typeddict-item]
    made.register(Calls, lambda request: CallsAnswer(*server.calls.since(request.since, _CALLS_AT_ONCE)))
    made.register(Traces, lambda _: TracesAnswer(traces.traces()))
    made.register(Names, lambda _: NamesAnswer(server.names()))
    made.register(Resolve, lambda request: ResolveAnswer(server.resolve(request.export)))
    made.register(Config, config)
    made.register(Hydrate, hydrate)
    made.register(Readings, readings)
    made.register(Expect, expect)
    made.register(Ready, ready)
    return made
