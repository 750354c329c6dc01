"""Blobs of layers: those that a program of this host makes again, those that were kept, and what is said of the others."""

import gzip
import io
import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from blockmap.format import keys, recipe
from blockmap.image import kept_blobs
from blockmap.image.gzip_tools import GzipTool, ToolFinder, compress, split_header
from blockmap.store import blobs
from blockmap.store.names import NameLog, NameTarget
from blockmap.store.opening import open_writer
from blockmap.upkeep.collect import Collector
from tests.export.exported import blob, export_image, manifest_of
from tests.image.builder import bulk, import_image
from tests.image.layouts import archive, compress_zstd, file, layout, symlink

TEXT = b"".join(b"line %d of many, and of no interest to anybody but a compressor\n" % n for n in range(40_000))
SMALL = archive([file("small", b"hello")])
LARGE = archive([file("text", TEXT), file("noise", bulk(1, 400_000)), *(symlink(f"s{n}", "text") for n in range(1000))])


def piped(*command: str) -> Callable[[bytes], bytes]:
    return lambda data: subprocess.run(command, input=data, check=True, capture_output=True).stdout


def same(store: Path, source: Path, out: Path, name: str = "i:1") -> list[str]:
    """Asserts that an image exports as it was in a layout; returns why its blobs are others."""
    done = export_image(store, name, f"oci:{out}")
    assert done.config == done.was_config
    whys = [each.why_other for each in done.layers]
    if not any(whys):
        assert manifest_of(out) == manifest_of(source)
        for each in json.loads(manifest_of(out)[1])["layers"]:
            assert blob(out, each["digest"]) == blob(source, each["digest"])
    return whys


@pytest.mark.parametrize(
    ("tool", "packed"),
    [
        ("gzip", piped("gzip", "-n")),
        ("gzip", piped("gzip", "-9")),
        ("pigz", piped("pigz", "-n")),
        ("pigz", piped("pigz", "-9")),
        ("tar", lambda data: gzip.compress(data, 6, mtime=0)),
        ("tar", lambda data: gzip.compress(data, 1)),
        ("tar", None),
    ],
    ids=["gzip", "gzip -9", "pigz", "pigz -9", "python -6", "python -1", "plain"],
)
def test_what_programs_compressed(
    tool: str, packed: Callable[[bytes], bytes] | None, tmp_path: Path, need: Callable[..., None]
) -> None:
    need(tool)
    source = layout(tmp_path / "i", [SMALL, LARGE], packed)
    import_image(tmp_path / "store", f"oci:{source}", "i:1", tmp_path)
    assert same(tmp_path / "store", source, tmp_path / "out") == ["", ""]


@pytest.mark.parametrize("level", [None, 9])
def test_what_skopeo_compressed(level: int | None, tmp_path: Path, need: Callable[..., None]) -> None:
    need("skopeo")
    plain, source = layout(tmp_path / "plain", [SMALL, LARGE], None), tmp_path / "i"
    options = ["--dest-compress-format", "gzip", *(["--dest-compress-level", str(level)] if level else [])]
    subprocess.run(["skopeo", "copy", "-q", *options, f"oci:{plain}:1", f"oci:{source}:1"], check=True)
    import_image(tmp_path / "store", f"oci:{source}", "i:1", tmp_path)
    assert same(tmp_path / "store", source, tmp_path / "out") == ["", ""]


def unknown(data: bytes) -> bytes:
    """Compresses as no program does."""
    half = len(data) // 2
    return gzip.compress(data[:half], 6, mtime=0) + gzip.compress(data[half:], 6, mtime=0)


@pytest.mark.parametrize(
    ("packed", "why"),
    [
        (unknown, "what compressed it is not known: only `import --keep-blobs`"),
        (compress_zstd, "what compressed it is not known"),
    ],
)
def test_what_no_program_makes_is_told_and_can_be_kept(
    packed: Callable[[bytes], bytes], why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (blobs, kept_blobs):
        monkeypatch.setattr(module, "PART_BYTES", 100_000)
    source, store = layout(tmp_path / "i", [SMALL, LARGE], packed), tmp_path / "store"
    import_image(store, f"oci:{source}", "i:1", tmp_path)
    first, second = same(store, source, tmp_path / "out")
    assert why in first
    assert why in second
    assert export_image(store, "i:1", f"oci:{tmp_path / 'again'}").manifest == bytes.fromhex(
        manifest_of(tmp_path / "out")[0].removeprefix("sha256:")
    )
    summary = import_image(store, f"oci:{source}", "i:1", tmp_path, keeps_blobs=True)
    sizes = [each["size"] for each in json.loads(manifest_of(source)[1])["layers"]]
    assert summary.kept_bytes == sum(sizes)
    assert import_image(store, f"oci:{source}", "i:1", tmp_path, keeps_blobs=True).kept_bytes == 0
    assert same(store, source, tmp_path / "kept") == ["", ""]

    parts = sorted((store / "blobs").rglob("0*"), key=lambda path: path.stat().st_size)
    assert len(parts) == sum(size // 100_000 + 1 for size in sizes)
    parts[-1].chmod(0o644)
    parts[-1].write_bytes(bytes(100_000))
    sound = {path: path.stat().st_ino for path in parts[:-1]}
    assert any(
        "it was kept, but what the store has of it is damaged" in each for each in same(store, source, tmp_path / "bad")
    )
    assert import_image(store, f"oci:{source}", "i:1", tmp_path, keeps_blobs=True).kept_bytes == 100_000
    assert {path: path.stat().st_ino for path in sound} == sound
    assert same(store, source, tmp_path / "mended") == ["", ""]


def test_a_program_that_is_not_here_or_is_another_now(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, need: Callable[..., None]
) -> None:
    need("gzip")
    source, store = layout(tmp_path / "i", [LARGE], piped("gzip", "-n")), tmp_path / "store"
    import_image(store, f"oci:{source}", "i:1", tmp_path)
    ((path),) = (store / "recipes").rglob("0*1")
    found = recipe.decode(path.read_bytes())
    assert (found.tool, found.level, found.size) == ("gzip", 6, json.loads(manifest_of(source)[1])["layers"][0]["size"])

    with monkeypatch.context() as patch:
        patch.setenv("PATH", str(tmp_path))
        assert same(store, source, tmp_path / "without") == [
            "it was compressed by gzip -6, which this host does not have: install gzip"
        ]
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "gzip").write_text("#!/bin/sh\nexec /usr/bin/env -i PATH=/usr/bin:/bin gzip -n -1 -c\n")
    (tmp_path / "bin" / "gzip").chmod(0o755)
    with monkeypatch.context() as patch:
        patch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
        (why,) = same(store, source, tmp_path / "other")
        assert why == "gzip -6 on this host makes another blob than what compressed it then"
        (tmp_path / "bin" / "gzip").write_text("#!/bin/sh\necho no gzip today >&2\nexit 1\n")
        with pytest.raises(Exception, match="gzip failed: no gzip today"):
            same(store, source, tmp_path / "fails")
    path.unlink()
    (why,) = same(store, source, tmp_path / "unnoted")
    assert why == "nothing is noted of what compressed it: import the image again, which finds out"
    import_image(store, f"oci:{source}", "i:1", tmp_path)
    assert same(store, source, tmp_path / "out") == [""]


def test_blobs_that_a_layout_has_already_are_not_made_again(tmp_path: Path) -> None:
    source, store = layout(tmp_path / "i", [SMALL, LARGE]), tmp_path / "store"
    import_image(store, f"oci:{source}", "i:1", tmp_path)
    assert same(store, source, tmp_path / "out") == ["", ""]
    made = {
        path: path.stat().st_ino
        for path in (tmp_path / "out" / "blobs" / "sha256").iterdir()
        if path.stat().st_size > 5000
    }
    (damaged,) = (path for path in made if path.stat().st_size > 100_000)
    damaged.write_bytes(damaged.read_bytes()[:-1])
    assert same(store, source, tmp_path / "out") == ["", ""]
    assert [path for path, inode in made.items() if path.stat().st_ino != inode] == [damaged]


def test_what_blobs_are_made_of_goes_with_the_last_image_that_has_them(tmp_path: Path) -> None:
    store = tmp_path / "store"
    own = archive([file("own", bulk(3, 5000))])
    for name, layers in (("a:1", [SMALL]), ("b:1", [SMALL, own])):
        import_image(store, f"oci:{layout(tmp_path / name, layers)}", name, tmp_path, keeps_blobs=True)
    opened, _ = open_writer(str(store))
    assert len(opened.list("recipes/")) == len(opened.list("blobs/")) == 2
    NameLog(opened).remove(NameTarget("b", "1"), "")
    collector = Collector(opened, -1, -1, lambda config: ())
    plan = collector.plan(collector.state())
    (gone,) = {blob for blob in opened.list("blobs/") if blob in plan.garbage}
    assert keys.recipe(bytes.fromhex(gone.split("/")[1]), 1) in plan.garbage
    assert len([key for key in plan.garbage if key.startswith(("blobs/", "recipes/"))]) == 2


@pytest.mark.parametrize(
    ("stream", "header"),
    [
        (b"\x1f\x8b\x08\x08" + bytes(6) + b"name\0rest", 15),
        (b"\x1f\x8b\x08\x1e" + bytes(6) + b"\x03\0abcname\0note\0crREST", 27),
        (b"\x1f\x8b\x08\x08" + bytes(6) + b"no end", 0),
        (b"\x1f\x8b\x08\xe0" + bytes(60), 0),
        (b"\x1f\x8b\x08", 0),
        (b"BZh9" + bytes(60), 0),
    ],
)
def test_headers_of_gzip(stream: bytes, header: int) -> None:
    assert split_header(stream) == stream[:header]


def test_the_tool_of_the_last_blob_is_tried_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[GzipTool] = []
    finder = ToolFinder(tmp_path)
    makes = finder._makes

    def note(tool: GzipTool, archive: bytes, body: bytes, is_whole: bool) -> bool:
        tried.append(tool)
        return makes(tool, archive, body, is_whole)

    monkeypatch.setattr(finder, "_makes", note)
    packed = gzip.compress(LARGE, 1, mtime=0)
    for _ in range(2):
        tool, header = finder.find(io.BytesIO(packed))
        assert tool == GzipTool("zlib", 1)
    assert [each.level for each in tried if each.name == "zlib"] == [6, 9, 1, 1]
    assert b"".join(compress(GzipTool("zlib", 1), header, iter([LARGE[:1], LARGE[1:]]), tmp_path)) == packed
