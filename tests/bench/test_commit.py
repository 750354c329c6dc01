"""What the benchmark of commits is made of: its image is sound, and syncs are told apart."""

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

from blockmap.bench.commit.session import TimedCommit, split_syncs
from blockmap.bench.commit.volume import FILE, make_volume
from blockmap.format import BLOCK
from blockmap.format.chunker import SPAN
from blockmap.format.refs import parse_reference
from blockmap.store.names import NameTarget
from blockmap.store.opening import create_store
from blockmap.store.repository import Repository
from blockmap.store.resolver import find_version
from blockmap.store.volume_reader import stored_reader
from blockmap.store.walk import leaves

FILE_BYTES = 80 << 20


def test_the_image_has_a_sound_file_system_whose_file_is_all_chunks(tmp_path: Path, need: Callable[..., None]) -> None:
    need("mkfs.ext4", "debugfs", "e2fsck")
    store, _ = create_store(str(tmp_path / "store"))
    make_volume(store, NameTarget("bench", "1"), FILE_BYTES, tmp_path)
    repository = Repository(store)
    root = find_version(repository, parse_reference("bench:1")).root
    read = stored_reader(repository, root)
    raw = tmp_path / "raw"
    covered = 0
    with open(raw, "wb") as file:
        os.truncate(raw, root.size * BLOCK)
        for span, leaf in leaves(root, repository.packs.nodes):
            for extent in leaf.extents(span * SPAN):
                covered += extent.length
                os.pwrite(file.fileno(), read(extent.start * BLOCK, extent.length * BLOCK), extent.start * BLOCK)
    assert covered * BLOCK > FILE_BYTES
    checked = subprocess.run(["e2fsck", "-fn", raw], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout
    said = subprocess.run(["debugfs", "-R", f"stat /{FILE}", raw], capture_output=True, text=True, check=True).stdout
    assert f"Size: {FILE_BYTES}" in said


def test_a_sync_that_met_a_commit_is_told_from_others() -> None:
    commits = [TimedCommit(began, 0.0, 0.0, 0.0, 1.0, 1) for began in (10.0, 20.0)]
    syncs = [(9.0, 0.5), (9.5, 0.6), (10.5, 0.1), (11.5, 0.2), (19.0, 3.0)]
    assert split_syncs(syncs, commits) == ([0.6, 0.1, 3.0], [0.5, 0.2])
