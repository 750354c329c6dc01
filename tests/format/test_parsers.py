"""Every parser, fed with arbitrary bytes: it returns a value or raises FormatError, in memory bounded by its input.

Sealed or named objects are sealed and named again after they were changed, or no change would get past the first check.
"""

import dataclasses
import gc
import struct
import time
import tracemalloc
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import numpy as np
import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from blockmap.errors import FormatError
from blockmap.format import (
    bundle,
    catalogue,
    codec,
    entry,
    filemap,
    keys,
    layer,
    node,
    oci,
    pack,
    pack_log,
    profile,
    record,
    trace,
    version,
)
from blockmap.format.digest import ABSENT, Digest, DigestKind, digest
from blockmap.format.extent import Extent
from blockmap.format.node import Inner
from blockmap.format.placement import Placement
from blockmap.format.reading_list import ReadItem
from blockmap.format.tree import Root
from blockmap.store.packs import Packs, Sealer, body_stream, compress, expand, expand_stream
from tests.format.trees import CHUNKS, PLACES
from tests.image.builder import bulk

NAME = Digest(bytes(range(32)))
KEY = keys.entry("redis", "7", 1)
PLACE = Placement(NAME, 1, 80, 100, 4000)


@dataclass(frozen=True)
class Parser:
    parse: Callable[[bytes], Any]
    valid: bytes
    repair: Callable[[bytes], bytes] = bytes
    """Corrects the seal of changed bytes."""


def sealed_text(data: bytes) -> bytes:
    return data[:-65] + sha256(data[:-65]).hexdigest().encode() + b"\n"


def sealed(data: bytes) -> bytes:
    return data[:-32] + sha256(data[:-32]).digest()


def node_name(frame: bytes) -> Digest:
    """Returns the name that a frame would have if its counts were true."""
    if len(frame) < 16:
        return NAME
    level, count = frame[6], int.from_bytes(frame[8:12], "little")
    end = 16 + 33 * count
    if level == 0 and count <= 4096:
        index = struct.unpack_from(f"<{count}H", frame.ljust(16 + 7 * count, b"\0"), 16 + 4 * count)
        end = 16 + 7 * count + 33 * (1 + max(index, default=0))
    return digest(DigestKind.NODE, count, frame[16:end], level)


def parse_node(frame: bytes) -> None:
    found = node.decode(frame, NAME, node_name(frame))
    found.check()
    assert found.digest == node_name(frame)


def parse_pack(data: bytes) -> None:
    length = 32 + 60 * int.from_bytes(data[8:12], "little")
    head = pack.parse_head(data, Digest(sha256(data[:length]).digest()))
    assert head.length == length <= len(data)
    assert all(head.length <= place.offset <= head.end - place.stored for _, place in head.entries)


def parse_version(data: bytes) -> None:
    line = data.split(b"\n")[0]
    name = digest(DigestKind.VERSION, len(line), line)
    found = version.decode(data, name)
    again = version.decode(version.encode(found), found.name)
    assert again == found


def parse_entry(data: bytes) -> None:
    found = entry.decode(data, KEY)
    assert entry.decode(entry.encode(found), KEY) == found


def parse_filemap(data: bytes) -> None:
    for file in filemap.decode(data, NAME, expand):
        assert len(file.path) + 12 * len(file.runs) <= 1 << 20


def parse_layer(data: bytes) -> None:
    found = layer.decode(data, NAME)
    assert len(found.headers(expand_stream, 1 << 20)) == found.raw


def parse_placement(data: bytes) -> None:
    value = record.decode(data)
    version.decode_placement(value)


def parse_profile(data: bytes) -> None:
    found = profile.decode(data, "redis", "default", 1, expand)
    assert profile.decode(profile.encode(found, compress), "redis", "default", 1, expand) == found


def parse_bundle(data: bytes) -> None:
    head = Packs.open_bundle(data)
    assert head.end >= head.length == len(data)


EXTENTS = [Extent(0, 5, *CHUNKS[8], 0), Extent(5, 2, *CHUNKS[9], 1), Extent(9, 5, *CHUNKS[8], 5)]
LEAF = node.leaf(EXTENTS, 0, PLACES)
assert LEAF is not None
INNER = Inner(1, [0, 9], [CHUNKS[0][0], CHUNKS[1][0]], [PLACE, PLACES[CHUNKS[1][0]]])
VERSION = version.Version(
    Root(NAME, 5000, PLACE), Root(ABSENT, 5000), version.WriterLayout(1, 32), b"{}", None, (NAME,), "me", "text", "now"
)
ENTRY = entry.Entry(
    KEY, 1, NAME, 1, PLACE, version.NodeRun(NAME, 80, 5000), bytes(NAME), None, "00", 17, "host", "message"
)
FRAMES = [pack.PackedFrame(Digest(bytes([at]) * 32), at % 2, bytes(10 + at), 100 + at) for at in range(3)]
FILES = [filemap.File(b"a", 5000, [(7, 2)]), filemap.File(b"b" * 50, 0, []), filemap.File(b"c", 1, [(9, 1), (30, 3)])]
LAYER = layer.LayerRecord(NAME, NAME, 1, 6000, zstandard.ZstdCompressor().compress(b"header" * 1000))
ITEMS = [profile.ProfileItem(at, 2, CHUNKS[at][0], 1, b"bin/sh", at, at, 1) for at in range(3)]
PROFILE = profile.Profile("redis", "default", 1, NAME, NAME, 1, ITEMS, "host", 17, "00")
READINGS = [ReadItem(at, 2, b"bin/sh", at) for at in range(3)]
BUNDLE, _ = bundle.encode(
    [(NAME, b"frame")], [(NAME, 0b101, bytes(4 * 4096))], READINGS, 1 << 30, bytes(16), Sealer().seal, compress
)
TRACE = (
    trace.encode_head(trace.TraceHead("redis", "default", NAME, NAME, 1 << 30, 17))
    + np.array([(1, 4096, 0)], trace.READ).tobytes()
)

DAMAGE = pack_log.encode_damaged(NAME, [CHUNKS[0][0], CHUNKS[1][0]], "00")
MOVED = pack_log.encode_moved(NAME, {CHUNKS[0][0]: PLACE, CHUNKS[1][0]: PLACES[CHUNKS[1][0]]}, "00")

PARSERS = {
    "leaf": Parser(parse_node, node.encode(LEAF)),
    "inner node": Parser(parse_node, node.encode(INNER)),
    "pack": Parser(parse_pack, b"".join(pack.seal(pack.PackKind.CHUNKS, FRAMES, bytes(16)).parts)),
    "version": Parser(parse_version, version.encode(VERSION), sealed_text),
    "entry": Parser(parse_entry, entry.encode(ENTRY), sealed_text),
    "oci": Parser(oci.decode, oci.encode(oci.DocumentRecord(NAME, 1, b"{}")), sealed_text),
    "damage": Parser(lambda data: pack_log.decode_damaged(data, NAME), DAMAGE, sealed_text),
    "moved": Parser(lambda data: pack_log.decode_moved(data, NAME), MOVED, sealed_text),
    "record": Parser(record.unseal, record.seal([b"{}", b"[]"]), sealed_text),
    "line": Parser(record.decode, record.encode({"a": [1, None, {"b": "é"}]})),
    "placement": Parser(parse_placement, record.encode(version.encode_placement(PLACE) or {})),
    "catalogue": Parser(catalogue.decode, catalogue.encode({("redis", "7"): 1, ("redis", "8"): 12}), sealed_text),
    "file map": Parser(parse_filemap, filemap.encode(NAME, FILES, body_stream), sealed),
    "layer": Parser(parse_layer, layer.encode(LAYER), sealed),
    "profile": Parser(parse_profile, profile.encode(PROFILE, compress), sealed),
    "bundle": Parser(parse_bundle, BUNDLE[0], sealed),
    "trace": Parser(trace.decode, TRACE),
    "zstd": Parser(lambda data: codec.decode(codec.ZSTD, data, 9000), codec.Encoder().compress(b"012345678" * 1000)),
}
every_parser = pytest.mark.parametrize("kind", PARSERS)
quiet = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])


def survives(parse: Callable[[bytes], Any], data: bytes) -> bool:
    """Parses within bounds; returns True if there was a value."""
    tracemalloc.start()
    try:
        parse(data)
    except FormatError:
        return False
    else:
        return True
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < (2 << 20) + 64 * len(data), f"{peak} bytes of memory for {len(data)} of input"


@st.composite
def changed(draw: st.DrawFn, data: bytes) -> bytes:
    """Draws `data` with some bytes overwritten, cut out, doubled or inserted."""
    numbers = st.sampled_from([0, 1, 0x7F, 0x80, 0xFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, (1 << 64) - 1])
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(data)))
        upto = min(at + draw(st.sampled_from([1, 2, 4, 8, 32, 100])), len(data))
        new = draw(
            st.binary(min_size=upto - at, max_size=upto - at)
            | numbers.map(lambda number, size=upto - at: number.to_bytes(8, "little")[:size])
            | st.sampled_from([b"", data[at:upto] * 2, data[:at]])
            | st.sampled_from([b"\n", b"null", b'""', b"[]", b"{}", b"-1", b"9" * 30, b'"a"', b"true", b"1.5", b"\0"])
        )
        data = data[:at] + new + data[upto:]
    return data


@every_parser
def test_what_is_valid_is_let_through(kind: str) -> None:
    parser = PARSERS[kind]
    assert parser.repair(parser.valid) == parser.valid
    assert survives(parser.parse, parser.valid)


@every_parser
@quiet
@given(st.data())
def test_anything_is_a_value_or_a_format_error(kind: str, data: st.DataObject) -> None:
    parser = PARSERS[kind]
    head = parser.valid[: data.draw(st.sampled_from([0, 4, 16, 44, 84]))]
    content = head + data.draw(st.binary(max_size=300))
    survives(parser.parse, content)
    survives(parser.parse, parser.repair(content))


@every_parser
@settings(quiet, max_examples=200)
@given(st.data())
def test_what_was_changed_is_a_value_or_a_format_error(kind: str, data: st.DataObject) -> None:
    parser = PARSERS[kind]
    content = data.draw(changed(parser.valid))
    survives(parser.parse, content)
    survives(parser.parse, parser.repair(content))


@every_parser
def test_every_length_and_every_flipped_byte(kind: str) -> None:
    parser = PARSERS[kind]
    for at in range(len(parser.valid)):
        flipped = bytearray(parser.valid)
        flipped[at] ^= 0xFF
        for content in (parser.valid[:at], bytes(flipped)):
            survives(parser.parse, content)
            survives(parser.parse, parser.repair(content))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-1, 1 << 65) | st.text(st.characters(codec="ascii"), max_size=5) |
    st.just("ab" * 32),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("ab", max_size=2), inner, max_size=3),
    max_leaves=5,
)  # fmt: skip
VALUES = {
    "version": record.decode(version.encode(VERSION).split(b"\n")[0]),
    "entry": record.decode(entry.encode(ENTRY).split(b"\n")[0]),
    "damage": record.decode(DAMAGE.split(b"\n")[0]),
    "moved": record.decode(MOVED.split(b"\n")[0]),
    "oci": record.decode(oci.encode(oci.DocumentRecord(NAME, 1, b"{}")).split(b"\n")[0]),
    "placement": version.encode_placement(PLACE) or {},
}


@pytest.mark.parametrize("kind", VALUES)
@settings(quiet, max_examples=200)
@given(st.data())
def test_fields_of_any_type_are_values_or_format_errors(kind: str, data: st.DataObject) -> None:
    value = dict(VALUES[kind])
    for _ in range(data.draw(st.integers(1, 2))):
        key = data.draw(st.sampled_from(sorted(value)))
        inner = value[key]
        if isinstance(inner, dict) and inner and data.draw(st.booleans()):
            value[key] = {**inner, data.draw(st.sampled_from(sorted(inner))): data.draw(JSON)}
        else:
            value[key] = data.draw(JSON)
    line = record.encode(value)
    if kind == "placement":
        survives(parse_placement, line)
        return
    lines = [line]
    if kind == "version":
        places = {"root": data.draw(st.just(VALUES["placement"]) | JSON), "extra": data.draw(JSON)}
        lines.append(record.encode(places if data.draw(st.booleans()) else {}))
    survives(PARSERS[kind].parse, record.seal(lines))


def zstd_claiming(content: int, claim: int) -> bytes:
    """Returns a frame of `content` zeros that claims to hold `claim` bytes."""
    frame = zstandard.ZstdCompressor(level=3).compress(bytes(content))
    assert frame[4] >> 6 == 2, "the field has four bytes"
    at = 5 if frame[4] >> 5 & 1 else 6
    return frame[:at] + claim.to_bytes(4, "little") + frame[at + 4 :]


@pytest.mark.parametrize("claim", [0, 10, 6000, 1 << 20])
def test_bombs(claim: int) -> None:
    """A frame of 2 KiB holds 64 MiB, and frame and record claim other sizes."""
    frame = zstd_claiming(1 << 26, claim)
    head = struct.pack("<4sB3s32sI", b"bmfm", 1, bytes(3), NAME, claim) + frame + bytes(32)
    assert not survives(parse_filemap, sealed(head)) or claim == 0
    assert not survives(parse_layer, layer.encode(LAYER._replace(raw=claim, packed=frame)))
    assert not survives(lambda data: codec.decode(codec.ZSTD, data, 9000), frame)
    honest = zstandard.ZstdCompressor(level=3).compress(bytes(1 << 26))
    assert not survives(parse_layer, layer.encode(LAYER._replace(raw=claim, packed=honest)))
    assert not survives(parse_filemap, sealed(head.replace(frame, honest)))


MEGABYTE = 1 << 20


def names(count: int) -> list[Digest]:
    return [Digest(at.to_bytes(32, "little")) for at in range(count)]


def long_profile() -> bytes:
    items = [
        profile.ProfileItem(at, 2, CHUNKS[at % 3][0], 1, b"usr/lib/file-%d" % at, at, at, 1)
        for at in range(MEGABYTE // 90)
    ]
    return profile.encode(dataclasses.replace(PROFILE, items=items), compress)


def long_bundle() -> bytes:
    items = [ReadItem(at, 2, b"file-%d" % (at % 1000), at) for at in range(MEGABYTE // 20)]
    return bundle.encode([(NAME, b"frame")], [], items, 1 << 30, bytes(16), Sealer().seal, compress)[0][0]


def long_filemap() -> bytes:
    files = [filemap.File(b"usr/lib/file-%06d" % at, 5000, [(7 + at, 2)]) for at in range(MEGABYTE // 40)]
    return filemap.encode(NAME, files, body_stream)


def long_pack() -> bytes:
    frames = [pack.PackedFrame(name, 0, b"x", 1) for name in names(MEGABYTE // 60)]
    return bytes(pack.seal(pack.PackKind.CHUNKS, frames, bytes(16)).parts[0])


def long_trace() -> bytes:
    reads = np.zeros(MEGABYTE // trace.READ.itemsize, trace.READ)
    reads["length"] = 4096
    return TRACE[: trace.HEAD_BYTES] + reads.tobytes()


LONG: dict[str, Callable[[], bytes]] = {
    "profile": long_profile,
    "bundle": long_bundle,
    "file map": long_filemap,
    "pack": long_pack,
    "trace": long_trace,
    "version": lambda: version.encode(dataclasses.replace(VERSION, config=b"{" + b"a" * MEGABYTE + b"}")),
    "entry": lambda: entry.encode(dataclasses.replace(ENTRY, message="m" * (MEGABYTE - 2000))),
    "oci": lambda: oci.encode(oci.DocumentRecord(NAME, 1, b"d" * MEGABYTE)),
    "damage": lambda: pack_log.encode_damaged(NAME, names(MEGABYTE // 67), "00"),
    "moved": lambda: pack_log.encode_moved(NAME, dict.fromkeys(names(MEGABYTE // 200), PLACE), "00"),
    "record": lambda: record.seal([b"[]"] * (MEGABYTE // 3)),
    "catalogue": lambda: catalogue.encode({(f"team/app-{at}", "v1"): 1 for at in range(MEGABYTE // 24)}),
    "layer": lambda: layer.encode(LAYER._replace(raw=MEGABYTE, packed=compress(bulk(1, MEGABYTE)))),
}
"""An input of 1 MB of each kind whose size somebody else chooses, what is in it counted before compression."""


@pytest.mark.long  # what 100 ms are depends on the machine
@pytest.mark.parametrize("kind", LONG)
def test_a_megabyte_takes_less_than_100_ms_and_100_mb(kind: str) -> None:
    before = gc.get_threshold()
    gc.freeze()
    gc.set_threshold(100_000)  # as in a server
    try:
        takes_little(kind)
    finally:
        gc.set_threshold(*before)
        gc.unfreeze()


def takes_little(kind: str) -> None:
    parser, content = PARSERS[kind], LONG[kind]()
    at = len(content) // 2
    for each in (content, parser.repair(content[:at] + b"\xff" + content[at + 1 :]), parser.repair(content[:at])):
        took = []
        for _ in range(3):
            began = time.thread_time()
            with suppress(FormatError):
                parser.parse(each)
            took.append(time.thread_time() - began)
        tracemalloc.start()
        with suppress(FormatError):
            parser.parse(each)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert min(took) < 0.1
        assert peak < 100 << 20
