"""What container engines tolerate in a layer, and bounds on what they take.

Engines leave out what a file system cannot hold and people do not miss: attributes of other systems, ACLs as text, times
before 1901 or after 2446. The same is done here, and said once for each kind and layer.
"""

from collections.abc import Callable, Generator, Iterator
from dataclasses import replace

from blockmap.errors import ImageError
from blockmap.filesystem.ext4.inode import MAX_TIME, MIN_TIME
from blockmap.filesystem.ext4.xattr import is_known
from blockmap.filesystem.member import Member, Members
from blockmap.filesystem.paths import show

Warn = Callable[[str], None]
"""Shows a message to a person."""

_MAX_XATTRS = 8192
"""Bytes of the extended attributes of a member; ext4 has room for 4.1 kB, and says so more exactly."""


class Oddities:
    """Collects what is odd about the members of a layer."""

    def __init__(self, layer: str, warn: Warn) -> None:
        self._layer, self._warn = layer, warn
        self._found: dict[str, tuple[str, int]] = {}

    def add(self, path: bytes, what: str, example: str = "") -> None:
        """Counts a member that is odd in a way, of which an example is shown."""
        first, count = self._found.get(what) or (f"{show(path)} {what}{example}", 0)
        self._found[what] = first, count + 1

    def tell(self) -> None:
        """Warns once for each kind."""
        for first, count in self._found.values():
            others = f" ({count - 1:,} more members of the layer as well)" if count > 1 else ""
            self._warn(f"layer {self._layer}: {first}{others}")
        self._found.clear()


class UnpackPolicy:
    """How much an image may unpack to, over all its layers, and who is told what was left out."""

    def __init__(self, warn: Warn = lambda text: None, most: int | None = None) -> None:
        self.warn = warn
        self._most = most
        self._unpacked = self._contents = 0

    def counted(self, pieces: Iterator[bytes]) -> Iterator[bytes]:
        """Yields pieces that were decompressed. Raises ImageError beyond the limit; `pieces` is closed with this iterator."""
        try:
            for piece in pieces:
                self._unpacked += len(piece)
                self.check(self._unpacked)
                yield piece
        finally:
            if isinstance(pieces, Generator):
                pieces.close()

    def hold(self, size: int) -> None:
        """Takes the size of a file, which may be sparse. Raises ImageError beyond the limit."""
        self._contents += size
        self.check(self._contents)

    def check(self, count: int) -> None:
        """Raises ImageError if that many bytes are beyond the limit."""
        if self._most is not None and count > self._most:
            raise ImageError(
                f"the image unpacks to more than {self._most / (1 << 30):,.6g} GiB: raise the limit by --max-size, if you trust it"
            )


def tolerated(members: Members, odd: Oddities, policy: UnpackPolicy) -> Members:
    """Yields members as ext4 can hold them. Raises ImageError beyond the bounds; `members` is closed with this iterator."""
    try:
        for member, contents in members:
            if member.size:
                policy.hold(member.size)
            if member.xattrs or not MIN_TIME <= member.mtime_s <= MAX_TIME:
                member = fit(member, odd)
            yield member, contents
    finally:
        if isinstance(members, Generator):
            members.close()
        odd.tell()


def fit(member: Member, odd: Oddities) -> Member:
    """Returns a member with those attributes and times that ext4 can hold. Raises ImageError for too many attributes."""
    if not MIN_TIME <= member.mtime_s <= MAX_TIME:
        odd.add(member.path, "has a time that ext4 cannot hold (1901 to 2446): the nearest is taken")
        low = member.mtime_s < MIN_TIME
        member = replace(member, mtime_s=MIN_TIME if low else MAX_TIME, mtime_ns=0 if low else 999_999_999)
    if not member.xattrs:
        return member
    xattrs = {name: value for name, value in member.xattrs.items() if is_known(name)}
    if len(xattrs) < len(member.xattrs):
        foreign = next(name for name in member.xattrs if name not in xattrs)
        odd.add(member.path, "loses attributes that Linux does not know, such as ", show(foreign[:80]))
        member = replace(member, xattrs=xattrs)
    taken = sum(len(name) + len(value) for name, value in xattrs.items())
    if taken > _MAX_XATTRS:
        raise ImageError(
            f"{show(member.path)}: its extended attributes take {taken} bytes, more than ext4 has for them"
        )
    return member
