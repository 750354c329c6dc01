"""The form of messages on the wire, which both ends share.

Each is one JSON object on a line. A request has `v` (1), `op` and the fields of its class. An answer has `v` and `ok`; with
`ok` true the fields of the answer's class, else `error`, a text for people, and `kind`, the class of the error.
"""

import json
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from blockmap import errors
from blockmap.control.operation import Answer, AnswerT, Operation
from blockmap.errors import BlockmapError, HostError, UsageError

VERSION = 1

ERRORS: dict[str, type[BlockmapError]] = {
    each.__name__: each
    for each in (
        errors.UsageError, errors.NotFound, errors.AlreadyExists, errors.NameMoved, errors.FormatError, errors.Corrupt,
        errors.Untrusted, errors.StoreError, errors.NotAStore, errors.StoreTooNew, errors.StoreRefused, errors.CannotList,
        errors.StoreReadOnly, errors.StoreUnavailable, errors.ImageError, errors.HostError, errors.NoServer, errors.DiskFull,
        errors.Collected,
    )
}  # fmt: skip
"""The errors that cross the socket, by `kind`; any other arrives as HostError."""


def encode_request(request: Operation[Any]) -> bytes:
    return _line(request.to_wire())


def decode_request(line: bytes, kinds: Mapping[str, type[Operation[Any]]]) -> Operation[Any]:
    """Returns the request that a line holds, of one of the `kinds` by their ops; UsageError. Fields that its class does not
    have are ignored."""
    try:
        wire = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"the request is not JSON: {error}") from error
    if not isinstance(wire, dict) or wire.get("v") != VERSION:
        raise UsageError(f"a request is a JSON object with v: {VERSION}, on one line")
    op = wire.get("op")
    kind = kinds.get(op) if isinstance(op, str) else None
    if kind is None:
        raise UsageError(f"{op!r} is not an operation of this server: {', '.join(kinds)} are")
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
