"""Changes an image's configuration as `docker commit --change` does, by instructions of a Dockerfile."""

import json
import shlex
from collections.abc import Sequence
from typing import Any

from blockmap.errors import UsageError

_LISTS = {"CMD": "Cmd", "ENTRYPOINT": "Entrypoint"}
_TEXTS = {"USER": "User", "WORKDIR": "WorkingDir", "STOPSIGNAL": "StopSignal"}
_SETS = {"EXPOSE": "ExposedPorts", "VOLUME": "Volumes"}
_KNOWN = ", ".join(sorted([*_LISTS, *_TEXTS, *_SETS, "ENV", "LABEL"]))


def parse_changes(instructions: Sequence[str]) -> str:
    """Returns instructions such as `CMD ["redis-server"]` as JSON that `changed_config` takes; UsageError."""
    changes: list[list[Any]] = []
    for text in instructions:
        word, _, rest = text.strip().partition(" ")
        name, rest = word.upper(), rest.strip()
        if not rest and name not in _LISTS:
            raise UsageError(
                f"{text!r} is no change of an image: an instruction and what it sets are expected, of {_KNOWN}"
            )
        if name in _LISTS:
            changes.append([_LISTS[name], _words(text, rest) if rest.startswith("[") else ["/bin/sh", "-c", rest]])
        elif name in _TEXTS:
            changes.append([_TEXTS[name], rest])
        elif name in _SETS:
            changes.append([_SETS[name], _words(text, rest) if rest.startswith("[") else rest.split()])
        elif name in ("ENV", "LABEL"):
            changes.append([{"ENV": "Env", "LABEL": "Labels"}[name], _pairs(text, rest)])
        else:
            raise UsageError(f"{word!r} cannot be changed at a commit: {_KNOWN} can")
    return json.dumps(changes)


def changed_config(config: bytes | None, changes: str) -> bytes | None:
    """Returns an image's configuration with changes, byte for byte as it was without any; None for a disk image's.

    Raises UsageError where there is none to change.
    """
    wanted = json.loads(changes)
    if not wanted:
        return config
    if config is None:
        raise UsageError("a disk image has no configuration to change")
    document = json.loads(config)
    own = document.setdefault("config", {})
    for field, value in wanted:
        if field in _SETS.values():
            own[field] = {**(own.get(field) or {}), **{each: {} for each in value}}
        elif field == "Labels":
            own[field] = {**(own.get(field) or {}), **dict(value)}
        elif field == "Env":
            names = {name for name, _ in value}
            kept = [each for each in own.get(field) or [] if each.partition("=")[0] not in names]
            own[field] = [*kept, *(f"{name}={text}" for name, text in value)]
        else:
            own[field] = value
            if field == "Entrypoint":  # as in docker: what were its arguments belong to another program
                own.setdefault("Cmd", None)
    return json.dumps(document, separators=(",", ":"), ensure_ascii=False).encode()


def _words(text: str, rest: str) -> list[str]:
    try:
        found = json.loads(rest)
    except ValueError:
        found = None
    if not isinstance(found, list) or any(type(each) is not str for each in found):
        raise UsageError(f'{text!r}: a list is written as JSON, as in CMD ["redis-server", "--port", "1"]')
    return found


def _pairs(text: str, rest: str) -> list[tuple[str, str]]:
    """Returns the names and values of `A=1 B="two words"`, or of the older form `A two words`."""
    try:
        words = shlex.split(rest)
    except ValueError as error:
        raise UsageError(f"{text!r}: {error}") from error
    if words and "=" not in words[0]:
        name, _, value = rest.partition(" ")
        if not value:
            raise UsageError(f"{text!r} gives {name} no value: write {name}=VALUE")
        return [(name, value.strip())]
    if any("=" not in word for word in words):
        raise UsageError(f"{text!r} has a part without a value: write NAME=VALUE, with quotes around spaces")
    return [(word.partition("=")[0], word.partition("=")[2]) for word in words]
