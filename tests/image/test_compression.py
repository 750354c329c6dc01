"""Blobs as archives: formats, digests, damage, and the thread that decompresses."""

import bz2
import gc
import gzip
import io
import lzma
import os
import subprocess
import threading
import time
import tracemalloc
from collections.abc import Callable, Generator
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any, BinaryIO

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blockmap.errors import BlockmapError, ImageError
from blockmap.image import compression
from blockmap.image.layer import BlobLayer
from blockmap.image.tolerance import UnpackPolicy
from tests.image.layouts import archive, compress_gzip, compress_zstd, file

TEXT = b"".join(b"%d lines of text, " % n for n in range(100_000)) + os.urandom(2_500_000)
SKIPPABLE = b"\x50\x2a\x4d\x18\x04\0\0\0abcd"
FORMATS: dict[str, Callable[[bytes], bytes]] = {
    "plain": bytes,
    "gzip": compress_gzip,
    "zstd": compress_zstd,
    "gzip of many members": lambda data: b"".join(gzip.compress(data[at : at + 777_777], 1) for at in range(0, len(data), 777_777)),
    "zstd of many frames": lambda data: compress_zstd(data[:1000]) + compress_zstd(data[1000:]),
    "zstd with frames of metadata": lambda data: SKIPPABLE + compress_zstd(data) + SKIPPABLE,
    "xz": lambda data: lzma.compress(data, preset=1),
    "xz of many streams with padding": lambda data: lzma.compress(data[:999]) + bytes(8) + lzma.compress(data[999:], preset=1),
    "bzip2": lambda data: bz2.compress(data, 1),
    "bzip2 of many streams": lambda data: bz2.compress(data[:1000]) + bz2.compress(data[1000:]),
    "gzip with padding": lambda data: compress_gzip(data) + bytes(700),
}  # fmt: skip


def ignore(amount: float) -> None:
    pass


def opened(blob: bytes, digest: bytes | None = None, diff_id: bytes | None = None) -> Generator[bytes, None, None]:
    made = compression.archive(lambda: io.BytesIO(blob), "sha256:LAYER", digest, diff_id, ignore, ignore)
    assert isinstance(made, Generator)
    return made


def running() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "decompress"]


@pytest.mark.parametrize("how", FORMATS)
def test_formats(how: str) -> None:
    blob = FORMATS[how](TEXT)
    assert b"".join(opened(blob, sha256(blob).digest(), sha256(TEXT).digest())) == TEXT
    assert not running()


@pytest.mark.parametrize("how", FORMATS)
def test_nothing_at_all(how: str) -> None:
    blob = FORMATS[how](b"")
    assert b"".join(opened(blob, sha256(blob).digest(), sha256(b"").digest())) == b""


def test_progress_adds_up_to_the_stored_bytes() -> None:
    blob, counts, seconds = compress_gzip(TEXT), list[int](), list[float]()
    for _ in compression.archive(lambda: io.BytesIO(blob), "L", None, None, counts.append, seconds.append):
        pass
    assert sum(counts) == len(blob)
    assert len(seconds) == 1


@pytest.mark.parametrize(
    ("how", "damage"),
    [
        ("gzip", lambda blob: blob[:-1]),
        ("gzip", lambda blob: blob[: len(blob) // 2]),
        ("gzip", lambda blob: blob[:5]),
        ("gzip", lambda blob: blob + b"garbage behind the end"),
        ("gzip", lambda blob: blob + b"\1"),
        ("gzip", lambda blob: blob[:40] + bytes(byte ^ 0xFF for byte in blob[40:80]) + blob[80:]),
        ("gzip", lambda blob: blob[:-6] + bytes([blob[-6] ^ 1]) + blob[-5:]),
        ("zstd", lambda blob: blob[:-1]),
        ("zstd", lambda blob: blob[: len(blob) // 2]),
        ("zstd", lambda blob: blob[:5]),
        ("zstd", lambda blob: blob + b"garbage behind the end"),
        ("zstd", lambda blob: blob[:40] + bytes(byte ^ 0xFF for byte in blob[40:80]) + blob[80:]),
        ("xz", lambda blob: blob[:-1]),
        ("xz", lambda blob: blob[: len(blob) // 2]),
        ("xz", lambda blob: blob + b"garbage behind the end"),
        ("xz", lambda blob: blob[:400] + bytes(byte ^ 0xFF for byte in blob[400:440]) + blob[440:]),
        ("bzip2", lambda blob: blob[:-1]),
        ("bzip2", lambda blob: blob + b"garbage behind the end"),
        ("bzip2", lambda blob: blob[:400] + bytes(byte ^ 0xFF for byte in blob[400:440]) + blob[440:]),
        ("plain", lambda blob: blob[:-1]),
        ("plain", lambda blob: blob + b"\0"),
        ("plain", lambda blob: b""),
    ],
)
def test_damage_names_the_layer_and_what_to_do(how: str, damage: Callable[[bytes], bytes]) -> None:
    blob = damage(FORMATS[how](TEXT))
    with pytest.raises(ImageError) as caught:
        list(opened(blob, None, sha256(TEXT).digest()))
    assert "sha256:LAYER" in str(caught.value)
    assert "truncated" in str(caught.value)
    assert "get it again" in str(caught.value)
    assert not running()


def test_both_digests_are_compared() -> None:
    blob, other = compress_gzip(TEXT), sha256(b"other").digest()
    with pytest.raises(ImageError, match=f"its blob has the digest sha256:{sha256(blob).hexdigest()}.*{other.hex()}"):
        list(opened(blob, other, sha256(TEXT).digest()))
    with pytest.raises(
        ImageError, match=f"its archive has the digest sha256:{sha256(TEXT).hexdigest()}.*{other.hex()}"
    ):
        list(opened(blob, sha256(blob).digest(), other))


def test_a_blob_that_cannot_be_opened_or_read(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="L cannot be opened: No such file"):
        list(compression.archive(partial(open, tmp_path / "absent", "rb"), "L", None, None, ignore, ignore))

    class Broken(io.RawIOBase):
        def read(self, size: int = -1) -> bytes:
            raise OSError(5, "Input/output error")

    broken: Any = Broken()
    with pytest.raises(ImageError, match="Input/output error"):
        list(compression.archive(lambda: broken, "L", None, None, ignore, ignore))


def test_windows_are_bounded(need: Callable[..., None]) -> None:
    need("zstd", "xz")
    data = TEXT[:100_000]

    def packed(*command: str) -> bytes:
        return subprocess.run(command, input=data, capture_output=True, check=True).stdout

    for window in (["--long=27"], ["--ultra", "-22"]):
        assert b"".join(opened(packed("zstd", "-qc", *window))) == data
    assert b"".join(opened(packed("xz", "-9c"))) == data
    for wide in (packed("zstd", "-qc", "--long=28"), packed("zstd", "-qc") + packed("zstd", "-qc", "--long=31"),
                 packed("xz", "-c", "--lzma2=preset=1,dict=192MiB")):  # fmt: skip
        with pytest.raises(ImageError, match="window is larger than 128 MiB, which is not supported") as caught:
            list(opened(wide))
        assert "damaged" not in str(caught.value)


@pytest.mark.parametrize(
    ("first", "what"),
    [(b"\x04\x22\x4d\x18", "lz4"), (b"LZIP\1", "lzip"), (b"\x1f\x9d\x90", "compress"), (b"]\0\0\x80\0", "lzma"),
     (b"PK\3\4", "zip")],
)  # fmt: skip
def test_other_formats_are_refused_by_name(first: bytes, what: str) -> None:
    with pytest.raises(
        ImageError, match=rf"LAYER cannot be decompressed: it is compressed with {what}.*gzip, zstd, xz and bzip2 are"
    ):
        list(opened(first + bytes(2000)))


def test_names_that_begin_like_bzip2_are_names() -> None:
    data = archive([file("BZh9/file", b"1")])
    assert b"".join(opened(data)) == data


def test_a_bomb_takes_little_memory() -> None:
    bombs = [pack(bytes(200 << 20)) for pack in (compress_gzip, compress_zstd, FORMATS["xz"], FORMATS["bzip2"])]
    for blob in bombs:
        tracemalloc.start()
        total = sum(map(len, opened(blob)))
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert total == 200 << 20
        assert peak < 24 << 20


# --- the thread


def test_the_thread_ends_when_the_iterator_is_closed() -> None:
    blob = io.BytesIO(compress_gzip(TEXT * 4))
    pieces = compression.archive(lambda: blob, "L", None, None, ignore, ignore)
    next(iter(pieces))
    assert len(running()) == 1
    began = time.monotonic()
    assert isinstance(pieces, Generator)
    pieces.close()
    assert time.monotonic() - began < 2
    assert not running()
    assert blob.closed


def test_the_thread_ends_when_the_iterator_is_forgotten() -> None:
    pieces = opened(compress_gzip(TEXT * 4))
    next(pieces)
    del pieces
    gc.collect()
    assert not running()


def test_no_thread_starts_before_the_first_piece_is_asked_for() -> None:
    pieces = opened(b"x")
    assert not running()
    pieces.close()


def layer(data: bytes) -> BlobLayer:
    blob = compress_gzip(data)
    return BlobLayer(
        "L", lambda: io.BytesIO(blob), len(blob), sha256(blob).digest(), sha256(data).digest(), b"", UnpackPolicy()
    )


def test_the_thread_ends_with_an_error_of_the_parser() -> None:
    hostile = layer(archive([file("../up"), file("big", os.urandom(20 << 20))]))
    with pytest.raises(ImageError, match="climbs out") as caught:
        list(hostile.members(lambda data: None))
    assert not running()  # while the error, with all the frames in its traceback, is still held
    assert caught.value.__traceback__ is not None


def test_the_thread_ends_when_the_members_are_closed() -> None:
    members = layer(archive([file("big", os.urandom(20 << 20))])).members(lambda data: None)
    _, contents = next(members)
    next(contents)
    assert len(running()) == 1
    assert isinstance(members, Generator)
    members.close()
    assert not running()


def test_digests_are_checked_behind_the_archives_end() -> None:
    data = archive([file("a", b"1")])
    for trailing in (b"more", bytes(1 << 20)):
        blob = compress_gzip(data + trailing)
        made = BlobLayer("L", lambda blob=blob: io.BytesIO(blob), 0, None, sha256(data).digest(), b"", UnpackPolicy())  # type: ignore[misc]
        with pytest.raises(ImageError, match="its archive has the digest"):
            list(made.members(lambda data: None))


def test_decompression_overlaps_with_parsing() -> None:
    """While a piece is in the consumer's hands, the thread fills the queue with the next ones."""
    blob = compress_gzip(TEXT * 4)
    read = 0

    def count(size: int) -> None:
        nonlocal read
        read += size

    pieces = compression.archive(lambda: io.BytesIO(blob), "L", None, None, count, ignore)
    next(iter(pieces))
    deadline = time.monotonic() + 10
    while read <= 2 << 20 and time.monotonic() < deadline:  # the first piece takes less than a quarter of that
        time.sleep(0.005)
    assert read > 2 << 20
    assert read < len(blob)  # the queue is bounded
    assert isinstance(pieces, Generator)
    pieces.close()


SMALL = archive([file("a", b"x" * 3000)])


@given(
    st.sampled_from(["gzip", "zstd", "xz", "bzip2", "plain"]),
    st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), min_size=1, max_size=4),
    st.integers(0, 10_000),
)
@settings(max_examples=120, deadline=None)
def test_mutated_blobs(how: str, changes: list[tuple[int, int]], cut: int) -> None:
    whole = FORMATS[how](SMALL)
    blob = bytearray(whole)
    for at, byte in changes:
        blob[at % len(blob)] = byte
    found = bytes(blob[: cut % len(blob) + 1] if cut % 3 == 0 else blob)

    def source() -> BinaryIO:
        return io.BytesIO(found)

    made = BlobLayer("L", source, len(found), sha256(whole).digest(), sha256(SMALL).digest(), b"", UnpackPolicy())
    try:
        list(made.members(lambda data: None))
        assert found == whole
    except BlockmapError:
        assert found != whole
