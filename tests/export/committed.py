"""Versions committed from clones whose file systems the kernel mounted and changed."""

import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from blockmap.commit.publisher import Publisher
from blockmap.commit.task import PublishTask
from blockmap.format import BLOCK
from blockmap.format.chunker import SPAN
from blockmap.format.refs import parse_reference
from blockmap.store.opening import open_writer
from blockmap.store.repository import Repository
from blockmap.store.resolver import find_version
from blockmap.store.volume_reader import stored_reader
from blockmap.store.walk import leaves
from blockmap.volume.clone_table import CaptureDraft, CloneTable
from blockmap.volume.overlay import Kind
from blockmap.volume.scratch import ScratchFile, layer_file
from tests.image.mounted import mounted


def write_volume(store: Path, name: str, raw: Path) -> None:
    """Writes an image's volume to a sparse file."""
    repository = Repository(open_writer(str(store))[0])
    root = find_version(repository, parse_reference(name)).version.root
    read = stored_reader(repository, root)
    with open(raw, "wb") as out:
        out.truncate(root.size * BLOCK)
        for span, leaf in leaves(root, repository.packs.nodes):
            for extent in leaf.extents(span * SPAN):
                out.seek(extent.start * BLOCK)
                out.write(read(extent.start * BLOCK, extent.length * BLOCK))


def _differing(before: Path, after: Path) -> Iterator[tuple[int, int]]:
    """Yields where two files differ, in whole blocks; what is a hole in the second is one in the first."""
    with open(before, "rb") as old, open(after, "rb") as new:
        size, at = after.stat().st_size, 0
        while at < size:
            try:
                at = os.lseek(new.fileno(), at, os.SEEK_DATA)
            except OSError:
                return
            end = os.lseek(new.fileno(), at, os.SEEK_HOLE)
            for start in range(at, end, BLOCK):
                if os.pread(old.fileno(), BLOCK, start) != os.pread(new.fileno(), BLOCK, start):
                    yield start, start + BLOCK
            at = end


@contextmanager
def volume_of(store: Path, name: str, work: Path) -> Iterator[Path]:
    """Gives the mount point of an image's volume."""
    raw = work / "volume.raw"
    write_volume(store, name, raw)
    with mounted(raw, work / "mounted") as top:
        yield top
    raw.unlink()


def commit_changes(
    store: Path, name: str, target: str, work: Path, change: Callable[[Path], None], changes: str = "[]"
) -> None:
    """Commits as `target` what `change` makes of the file system of an image, as a clone on a host would."""
    before, after, state = work / "before.raw", work / "after.raw", work / "state"
    write_volume(store, name, before)
    subprocess.run(["cp", "--sparse=always", before, after], check=True)
    with mounted(after, work / "changing", "rw") as top:
        change(top)
    opened, form = open_writer(str(store))
    base = find_version(Repository(opened), parse_reference(name))
    size = base.version.root.size * BLOCK
    table = CloneTable(state)
    (state / "layers").mkdir(exist_ok=True)
    clone = table.create(f"c{target.replace(':', '-')}", "uuid", name, base.pinned, "", size)
    number, extents = table.layers(clone)[0]
    scratch = ScratchFile(layer_file(state, number))
    for start, end in _differing(before, after):
        with open(after, "rb") as file:
            file.seek(start)
            scratch.write(file.read(end - start), start)
        extents.put(start, end, Kind.DATA)
    scratch.close()
    table.keep(clone.id, number, list(extents), [], 0)
    repo, tag = target.split(":")
    draft = CaptureDraft(repo, tag, False, "why", "who", changes, f"nonce of {target}")
    captured = table.push(table.add_layer(), clone.id, number, [], [], 0, draft)
    with closing(Publisher(opened, form, state, lambda said: None)) as publisher:
        publisher.publish(PublishTask(captured))
    table.close()
    before.unlink()
    after.unlink()
