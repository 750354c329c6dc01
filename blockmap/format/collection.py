"""Entries of the log of garbage collections, `gc/N`: what is condemned, that it is being deleted, that it is gone.

Each is one line of canonical JSON, sealed. Its keys: `format`, `key` (its own), `n`, `kind`, `nonce`, `host`, `time` (seconds
since 1970, by the writer's clock, for people), and by kind:

    condemn  `keys` of objects that nothing reaches, sorted; `names`: by REPO:TAG the number of the newest entry then
    sweep    `condemned`: the number of the condemnation whose objects are being deleted from now on
    done     `condemned`; `retired`: by version, the highest number of a record that was ever deleted. Such a key is
             not used again, since a collector that slept may delete it late.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from blockmap.errors import FormatError
from blockmap.format import keys, record
from blockmap.format.digest import Digest, from_hex
from blockmap.format.entry import MAX_NUMBER, MAX_TIME

FORMAT = 1
MAX_BYTES = 24 << 20
MAX_KEYS = 100_000
"""Objects that are condemned at once; their keys take some 8 MB."""


class StepKind(Enum):
    CONDEMN = "condemn"
    SWEEP = "sweep"
    DONE = "done"


@dataclass(frozen=True, slots=True)
class CollectionStep:
    """An entry of the log of collections."""

    n: int
    kind: StepKind
    nonce: str
    host: str
    time: int
    keys: tuple[str, ...] = ()
    names: Mapping[str, int] = field(default_factory=dict)
    """By name, REPO:TAG: the number of its newest entry."""
    condemned: int = 0
    retired: Mapping[Digest, int] = field(default_factory=dict)


def encode(step: CollectionStep) -> bytes:
    """Returns the object as stored."""
    value: dict[str, Any] = {
        "format": FORMAT,
        "host": step.host,
        "key": keys.collection(step.n),
        "kind": step.kind.value,
        "n": step.n,
        "nonce": step.nonce,
        "time": step.time,
    }
    if step.kind is StepKind.CONDEMN:
        value |= {"keys": sorted(step.keys), "names": dict(step.names)}
    else:
        value["condemned"] = step.condemned
    if step.kind is StepKind.DONE:
        value["retired"] = {name.hex(): number for name, number in step.retired.items()}
    return record.seal([record.encode(value)])


def decode(data: bytes, n: int) -> CollectionStep:
    """Parses entry `n` of the log. Raises FormatError."""
    lines = record.unseal(data, MAX_BYTES)
    value = record.decode(lines[0])
    try:
        if len(lines) != 1 or value["format"] != FORMAT or value["key"] != keys.collection(n) or value["n"] != n:
            raise FormatError(
                f"the object is not entry {n} of the log of collections in a format known to this release"
            )
        kind = StepKind(value["kind"])
        listed, names, retired = value.get("keys", []), value.get("names", {}), value.get("retired", {})
        condemned, time = value.get("condemned", 0), value["time"]
        texts = [value["nonce"], value["host"], *listed]
        numbers = [condemned, *names.values(), *retired.values()]
        if any(type(text) is not str for text in texts) or any(
            type(number) is not int or not 0 <= number <= MAX_NUMBER for number in numbers
        ):
            raise FormatError("a field of the entry has the wrong type")
        if type(time) is not int or not 0 <= time <= MAX_TIME or (kind is not StepKind.CONDEMN) != (0 < condemned < n):
            raise FormatError("a number of the entry is out of range")
        if len(listed) > MAX_KEYS or listed != sorted(set(listed)):
            raise FormatError("the keys of the entry are not sorted, or too many")
        for key in listed:
            keys.check(key)
        return CollectionStep(
            n, kind, value["nonce"], value["host"], time, tuple(listed), names, condemned,
            {from_hex(name): number for name, number in retired.items()},
        )  # fmt: skip
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise FormatError(f"the entry lacks a field, or one has the wrong type: {error}") from error
