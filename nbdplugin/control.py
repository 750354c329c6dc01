"""Answers the operations of the control socket."""

import os
import secrets
from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from blockmap.control import clone_messages, messages
from blockmap.control.dispatch import Dispatcher
from blockmap.control.operation import EmptyAnswer
from blockmap.format.reading_list import ReadItem
from blockmap.format.refs import DEFAULT_LABEL, parse_name
from blockmap.learn.local_files import LocalProfiles
from blockmap.learn.port_profile import read_items
from blockmap.server.server import Server
from blockmap.store.names import NameTarget
from blockmap.trace.manager import TraceManager
from blockmap.volume.clone_table import CaptureDraft

if TYPE_CHECKING:
    from blockmap.api.images import NamedImage

_CALLS_AT_ONCE = 2048
"""Calls in one answer, some 300 kB: reads make no progress while it is encoded."""
_MOST_READINGS = 65_536
"""Ranges in one answer, which take 0.1 s to encode; a profile of a start has some thousands."""


def dispatcher(
    server: Server,
    traces: TraceManager,
    local: LocalProfiles,
    status: Callable[[], dict[str, Any]],
    images: "Callable[[bool], list[NamedImage]]",
    group: int | None = None,
) -> Dispatcher:
    """Returns a dispatcher that answers for one server, also members of `group` what they may ask.

    `status` returns all but the dispatcher's own counts; `images` lists the store, with how much data each has if that is True.
    """
    made = Dispatcher(group)

    def start_of(request: messages.Readings | messages.Expect | messages.Ready) -> tuple[str, str]:
        """Returns the export by digest, and the label."""
        pinned, _, label = server.version(request.export).partition("+")
        return pinned, label or DEFAULT_LABEL

    def local_readings(request: messages.Readings) -> list[ReadItem]:
        """Returns the reading list of a profile of this host alone, if it is of the same version."""
        pinned, label = start_of(request)
        repo, _, digest = pinned.partition("@sha256:")
        own = local.get(repo, label)
        return read_items(own.items) if own is not None and own.version.hex() == digest else []

    def readings(request: messages.Readings) -> messages.ReadingsAnswer:
        number, found, soon = server.readings(request.export)
        items = found if number else local_readings(request)
        rows = [
            (each.start, each.blocks, each.path and os.fsdecode(each.path), each.at) for each in items[:_MOST_READINGS]
        ]
        return messages.ReadingsAnswer(number, rows, soon)

    def hydrate(request: messages.Hydrate) -> EmptyAnswer:
        server.hydrate(request.export, request.wanted)
        return EmptyAnswer()

    def follows(request: messages.Follows) -> messages.FollowsAnswer:
        # Without a look at the name, which may have the bundle replayed again: this is asked several times a second.
        pinned, _, label = request.export.partition("+")
        return messages.FollowsAnswer(traces.follows_profile(pinned, label or DEFAULT_LABEL))

    def expect(request: messages.Expect) -> EmptyAnswer:
        if server.is_untouched(request.export):
            traces.expect(*start_of(request), exact=request.exact, start=request.start)
        return EmptyAnswer()

    def ready(request: messages.Ready) -> messages.ReadyAnswer:
        trace = traces.ready(*start_of(request), failed=request.failed)
        return messages.ReadyAnswer(None if trace is None else str(trace))

    def config(request: messages.Config) -> messages.ConfigAnswer:
        return messages.ConfigAnswer(server.config(request.export).decode("utf-8", "replace"))

    def resolve(request: messages.Resolve) -> messages.ResolveAnswer:
        return messages.ResolveAnswer(server.resolve(request.export), server.is_writable(request.export))

    def stands(request: messages.Stands) -> messages.StandsAnswer:
        found = server.stands(request.names)
        exports = [None if each is None else each.export for each in found]
        return messages.StandsAnswer(exports, [0 if each is None else each.time for each in found])

    def clone(request: clone_messages.MakeClone) -> clone_messages.CloneAnswer:
        return clone_messages.CloneAnswer(server.clone(request.export, request.name, request.size))

    def prepare_capture(request: clone_messages.PrepareCapture) -> EmptyAnswer:
        server.prepare_capture(request.export)
        return EmptyAnswer()

    def capture(request: clone_messages.Capture) -> clone_messages.CaptureAnswer:
        repo, tag = parse_name(request.name)
        draft = CaptureDraft(
            repo, tag, request.force, request.message, request.author, request.changes, secrets.token_hex(16), request.after
        )  # fmt: skip
        return clone_messages.CaptureAnswer(server.capture(request.export, draft, request.skip_unchanged))

    def fork(request: clone_messages.Fork) -> EmptyAnswer:
        server.fork(request.export, request.names)
        return EmptyAnswer()

    def rewind(request: clone_messages.Rewind) -> clone_messages.RewindAnswer:
        return clone_messages.RewindAnswer(server.rewind(request.export, request.name))

    def published(request: clone_messages.AwaitPublished) -> clone_messages.PublishedAnswer:
        found = server.published(request.capture, request.seconds)
        if isinstance(found, str):
            return clone_messages.PublishedAnswer("", 0, found)
        return clone_messages.PublishedAnswer(found.export, found.entry, "")

    def settle(request: clone_messages.SettleCaptures) -> clone_messages.SettledAnswer:
        target = None if request.name is None else NameTarget(*parse_name(request.name))
        return clone_messages.SettledAnswer(server.settle_captures(request.export, request.drop, target, request.force))

    made.register(messages.Status, lambda _: messages.StatusAnswer({"control_requests": made.uses, **status()}))  # type: ignore[typeddict-item]
    made.register(
        messages.Calls, lambda request: messages.CallsAnswer(*server.calls.since(request.since, _CALLS_AT_ONCE))
    )
    made.register(messages.Traces, lambda _: messages.TracesAnswer(traces.traces()))
    made.register(messages.Names, lambda _: messages.NamesAnswer(server.names()))
    made.register(
        messages.Images, lambda request: messages.ImagesAnswer([asdict(each) for each in images(request.data)])
    )
    made.register(messages.Resolve, resolve)
    made.register(messages.Stands, stands)
    made.register(messages.Config, config)
    made.register(clone_messages.MakeClone, clone)
    made.register(
        clone_messages.RemoveClone, lambda request: clone_messages.CloneAnswer(server.remove_clone(request.export))
    )
    made.register(clone_messages.Fork, fork)
    made.register(clone_messages.Rewind, rewind)
    made.register(clone_messages.PrepareCapture, prepare_capture)
    made.register(clone_messages.Capture, capture)
    made.register(clone_messages.AwaitPublished, published)
    made.register(clone_messages.SettleCaptures, settle)
    made.register(messages.Hydrate, hydrate)
    made.register(messages.Readings, readings)
    made.register(messages.Follows, follows)
    made.register(messages.Expect, expect)
    made.register(messages.Ready, ready)
    return made
