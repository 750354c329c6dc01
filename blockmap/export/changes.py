"""Layers made of file systems: all of one, or how one differs from another.

Such a layer is canonical, so that equal file systems give equal digests: members sorted by the bytes of their paths, whole seconds,
no names of users, pax records only where they are needed; of a file with several names the first has the content. A layer of
differences has with each member the directories above it, and a whiteout for what is gone; a file one of whose names is new comes
with all its names, since engines that keep layers apart cannot link into another one.
"""

import struct
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from hashlib import sha256

from blockmap.errors import ImageError
from blockmap.export.archives import LayerArchive, StoredContent
from blockmap.export.contents import HOLE, ContentReader
from blockmap.filesystem.ext4.reader import DirectoryEntry, Ext4Reader
from blockmap.filesystem.member import Member, MemberKind
from blockmap.filesystem.merge import WHITEOUT
from blockmap.filesystem.paths import show
from blockmap.format import BLOCK
from blockmap.format.filemap import FileRun, folders_above
from blockmap.image import pax
from blockmap.image.sparse import Segments, encode_map, stored_segments
from blockmap.upkeep.differences import TreeDifference

_MADE_BY_EXT4 = b"lost+found"
_WRITTEN = 1024 + 0x30
"""Where the superblock says when the file system was last written."""
_END = bytes(2 * pax.BLOCK)

Warn = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class FileSystem:
    """The file system in a volume, read whole but for contents. ImageError where there is none that is understood."""

    reader: Ext4Reader
    entries: Mapping[bytes, DirectoryEntry]
    """By path; the root's is empty."""
    written: str
    """When it was last written, as configurations of images have dates; empty if it does not say."""


def read_file_system(contents: ContentReader, warn: Warn) -> FileSystem:
    """Reads the tree of a file system; sockets are left out, which is said."""
    read = contents.windows()
    reader = Ext4Reader(read)
    if reader.block_bytes != BLOCK:
        raise ImageError(
            f"the file system has blocks of {reader.block_bytes} bytes: only those of {BLOCK} can be exported"
        )
    entries = {}
    for entry in reader.walk():
        if entry.kind is MemberKind.SOCKET:
            warn(f"{show(entry.path)} is a socket: left out, the program that listens makes it")
        else:
            entries[entry.path] = entry
    (seconds,) = struct.unpack("<I", read(_WRITTEN, 4))
    return FileSystem(reader, entries, f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%SZ}" if seconds else "")


def whole_layer(found: FileSystem, reader: ContentReader) -> LayerArchive:
    """Returns the layer that has all of a file system."""
    paths = set(found.entries)
    if not any(path.startswith(_MADE_BY_EXT4 + b"/") for path in paths):
        paths.discard(_MADE_BY_EXT4)
    return _archive(found, paths, (), reader)


def changed_layer(
    old: FileSystem, new: FileSystem, trees: TreeDifference, reader: ContentReader
) -> LayerArchive | None:
    """Returns the layer that makes `new` of `old`; None if they are the same. `trees` is the difference of their trees."""
    changed = {
        path
        for path, entry in new.entries.items()
        if path not in old.entries or not _is_same(old, old.entries[path], new, entry, trees)
    }
    changed |= _relinked(old, new, changed)
    gone = [path for path in old.entries if path not in new.entries and _is_directory(old, new, _above(path))]
    if not changed and not gone:
        return None
    above = {folder for path in (*changed, *gone) for folder in folders_above(path)}
    return _archive(new, changed | above, gone, reader)


def _above(path: bytes) -> bytes:
    return path.rpartition(b"/")[0]


def _is_directory(old: FileSystem, new: FileSystem, path: bytes) -> bool:
    """Returns True if a path is a directory in both."""
    return all(path in each.entries and each.entries[path].kind is MemberKind.DIR for each in (old, new))


def _is_same(
    old: FileSystem, was: DirectoryEntry, new: FileSystem, entry: DirectoryEntry, trees: TreeDifference
) -> bool:
    """Returns True if a path has the same attributes and contents in both."""
    if _attributes(was) != _attributes(entry):
        return False
    if entry.kind is not MemberKind.FILE:
        return True
    if was.size != entry.size:
        return False
    if was.runs == entry.runs and not any(trees.touches(start, length) for _, start, length in entry.runs):
        return True
    return _content(old.reader, was) == _content(new.reader, entry)


def _attributes(entry: DirectoryEntry) -> tuple[object, ...]:
    return (
        entry.kind, entry.mode, entry.uid, entry.gid, entry.mtime_s, entry.mtime_ns, entry.target, entry.major, entry.minor,
        entry.xattrs,
    )  # fmt: skip


def _content(reader: Ext4Reader, entry: DirectoryEntry) -> bytes:
    state = sha256()
    for piece in reader.contents(entry):
        state.update(piece)
    return state.digest()


def _relinked(old: FileSystem, new: FileSystem, changed: set[bytes]) -> set[bytes]:
    """Returns all names of files with several, where the names that belong together are others, or one has changed."""
    groups = _names(new)
    holders: defaultdict[int, set[int]] = defaultdict(set)
    for number, paths in groups.items():
        for path in paths:
            if path in old.entries:
                holders[old.entries[path].number].add(number)
    found: set[bytes] = set()
    for paths in groups.values():
        before = {old.entries[path].number if path in old.entries else None for path in paths}
        split = any(before_number is not None and len(holders[before_number]) > 1 for before_number in before)
        if len(before) > 1 or split or any(path in changed for path in paths):
            found.update(paths)
    return found


def _names(found: FileSystem) -> dict[int, list[bytes]]:
    """Returns the names of everything but directories, by inode."""
    names: defaultdict[int, list[bytes]] = defaultdict(list)
    for path, entry in found.entries.items():
        if entry.kind is not MemberKind.DIR:
            names[entry.number].append(path)
    return names


def _archive(found: FileSystem, paths: Iterable[bytes], gone: Iterable[bytes], reader: ContentReader) -> LayerArchive:
    whiteouts = {b"/".join(filter(None, (_above(path), WHITEOUT + path.rpartition(b"/")[2]))): None for path in gone}
    headers, contents = bytearray(), list[StoredContent]()
    firsts: dict[int, bytes] = {}
    for path in sorted({*paths, *whiteouts}):
        if path in whiteouts:
            headers += pax.header(Member(path, MemberKind.FILE, 0))
            continue
        if path.rpartition(b"/")[2].startswith(WHITEOUT):
            raise ImageError(
                f"{show(path)} has the name of a whiteout, which no layer can hold as a file: rename or remove it"
            )
        entry = found.entries[path]
        member = _member(entry)
        if entry.kind is not MemberKind.DIR and firsts.setdefault(entry.number, path) != path:
            link = replace(
                member, kind=MemberKind.HARDLINK, size=0, target=firsts[entry.number], major=0, minor=0, xattrs={}
            )
            headers += pax.header(link)
            continue
        segments = stored_segments(_data(entry), entry.size) if member.size else None
        if segments is None:
            stored = member.size
            headers += pax.header(member)
        else:
            encoded = encode_map(segments)
            stored = len(encoded) + sum(length for _, length in segments)
            headers += pax.header(member, stored) + encoded
        if member.size:
            contents.append(StoredContent(len(headers), _runs(entry), member.size, segments))
            headers += bytes(-stored % pax.BLOCK)
    headers += _END
    return LayerArchive(bytes(headers), contents, reader)


def _member(entry: DirectoryEntry) -> Member:
    return Member(
        entry.path, entry.kind, entry.mode, entry.uid, entry.gid, entry.mtime_s, 0,
        entry.size if entry.kind is MemberKind.FILE else 0, entry.target, entry.major, entry.minor, entry.xattrs,
    )  # fmt: skip


def _data(entry: DirectoryEntry) -> Segments:
    """Returns the segments of a file that are no holes."""
    found: Segments = []
    for logical, _, length in entry.runs:
        start, end = logical * BLOCK, min((logical + length) * BLOCK, entry.size)
        if found and sum(found[-1]) == start:
            start = found.pop()[0]
        if start < end:
            found.append((start, end - start))
    return found


def _runs(entry: DirectoryEntry) -> list[FileRun]:
    """Returns the blocks of a file up to its end, holes among them."""
    runs: list[FileRun] = []
    blocks, at = -(-entry.size // BLOCK), 0
    for logical, start, length in [*entry.runs, (blocks, HOLE, 0)]:
        if min(logical, blocks) > at:
            runs.append((HOLE, min(logical, blocks) - at))
        if length and logical < blocks:
            runs.append((start, min(length, blocks - logical)))
        at = logical + length
    return runs
