"""Reads and writes the fields of tar headers and the records of pax headers.

Readers raise ImageError for anything malformed. Writers are canonical, so that equal members have equal headers.

A header is 512 bytes: name 100, mode 8, uid 8, gid 8, size 12, mtime 12, checksum 8, type 1, link name 100, magic and
version 8, user and group names 64, device numbers 8 and 8, prefix 155, zeros 12 (POSIX.1-2001, pax).
"""

import base64
import binascii
import struct
from dataclasses import replace
from urllib.parse import quote_from_bytes, unquote_to_bytes

from blockmap.errors import ImageError
from blockmap.filesystem.ext4.xattr import is_known
from blockmap.filesystem.member import Member, MemberKind
from blockmap.filesystem.paths import show

BLOCK = 512
HEADER = struct.Struct("100s8s8s8s12s12s8sc100s8s64s8s8s155s12x")
_XATTR = b"SCHILY.xattr."
_LIBARCHIVE = b"LIBARCHIVE.xattr."
SPARSE = b"GNU.sparse."
ACL = b"SCHILY.acl."
"""Prefixes of records about sparse files, and of ACLs as text."""
_USED = frozenset((b"path", b"linkpath", b"size", b"mtime", b"uid", b"gid"))
_USED_PREFIXES = (_XATTR, _LIBARCHIVE, SPARSE, ACL)
_SEGMENT = (SPARSE + b"offset", SPARSE + b"numbytes")
"""Records that come once for each segment of a sparse file of version 0.0, in turns."""
_TIME_DIGITS = 100
"""Digits of a time, which may be out of any range."""
_TYPES = {
    MemberKind.FILE: b"0", MemberKind.HARDLINK: b"1", MemberKind.SYMLINK: b"2", MemberKind.CHAR: b"3",
    MemberKind.BLOCK: b"4", MemberKind.DIR: b"5",
    MemberKind.FIFO: b"6",
}  # fmt: skip


def records(data: bytes) -> dict[bytes, bytes]:
    """Parses the records of a pax header (length, space, key, =, value, newline), and returns those in use."""
    found = {}
    segments: list[bytes] = []
    at = 0
    while at < len(data):
        space = data.find(b" ", at, at + 20)
        digits = data[at:space] if space > 0 else b""
        end = at + int(digits) if digits.isdigit() else 0
        key, equals, value = data[space + 1 : end - 1].partition(b"=")
        if end <= space + 1 or end > len(data) or data[end - 1 : end] != b"\n" or not equals:
            raise ImageError("a pax header is damaged: get the archive again")
        if key in _SEGMENT:
            if key != _SEGMENT[len(segments) % 2]:
                raise ImageError("a sparse member's map is damaged: get the archive again")
            segments.append(value)
        elif key in _USED or key.startswith(_USED_PREFIXES):
            found[key] = value
        at = end
    if segments:
        found[SPARSE + b"map"] = b",".join(segments)
    return found


def xattrs_of(extended: dict[bytes, bytes], path: bytes) -> dict[bytes, bytes]:
    """Returns extended attributes by full name, from the records of star and Go, or else from libarchive's."""
    found = {}
    for key, value in extended.items():
        if key.startswith(_XATTR):
            found[key[len(_XATTR) :]] = value
        elif key.startswith(_LIBARCHIVE):
            name = unquote_to_bytes(key[len(_LIBARCHIVE) :])
            try:
                padded = value + b"=" * (-len(value) % 4)
                found.setdefault(name, base64.b64decode(padded, validate=is_known(name)))
            except binascii.Error as error:
                if not is_known(name):
                    continue
                raise ImageError(
                    f"{show(path)}: an extended attribute is not base64: the archive is damaged"
                ) from error
    if b"" in found or any(b"\0" in name for name in found):
        raise ImageError(
            f"{show(path)}: an extended attribute has no name, or a zero byte in it: the archive is damaged"
        )
    return found


def number(field: bytes, what: str) -> int:
    """Parses an octal number, or one in base 256 if the first bit is set, which may be negative."""
    if field[0] & 0x80:
        value = int.from_bytes(field, "big") - (1 << 8 * len(field) - 1)
        return value - (1 << 8 * len(field) - 1) if field[0] & 0x40 else value
    text = field.strip(b" \0")  # unused fields may be filled with either
    if not text.isdigit():
        text = text.split(b"\0", 1)[0].rstrip(b" ")
        if not text:
            return 0
    try:
        if text.isdigit():
            return int(text, 8)
    except ValueError:
        pass  # a digit that is not octal
    raise ImageError(f"a header's {what} is {field!r}, not a number: the archive is damaged")


def decimal(text: bytes, digits: int = 20) -> int:
    """Parses the number in a pax record."""
    if not text.removeprefix(b"-").isdigit() or len(text) > digits:
        raise ImageError(f"a pax header has {text[:40]!r} where a number is expected: the archive is damaged")
    return int(text)


def time_of(text: bytes) -> tuple[int, int]:
    """Parses a time into seconds and the nanoseconds after them; a fraction of a negative time counts away from zero."""
    whole, _, fraction = text.partition(b".")
    seconds = decimal(whole, _TIME_DIGITS)
    if fraction and not fraction.isdigit():
        raise ImageError(f"a pax header has the time {text[:40]!r}: the archive is damaged")
    nanoseconds = int(fraction[:9].ljust(9, b"0"))
    if whole.startswith(b"-") and nanoseconds:
        return seconds - 1, 1_000_000_000 - nanoseconds
    return seconds, nanoseconds


def check_sum(block: bytes, field: bytes) -> None:
    """Raises ImageError if the checksum of a header is wrong; old programs added up signed bytes."""
    expected = number(field, "checksum")
    unsigned = sum(block) - sum(field) + 8 * 32
    if unsigned != expected:
        high = sum(byte > 127 for byte in block[:148] + block[156:])
        if unsigned - 256 * high != expected:
            raise ImageError("a header's checksum is wrong: the archive is damaged, or is none")


def text_of(field: bytes) -> bytes:
    """Returns a field up to its first zero byte."""
    return field.split(b"\0", 1)[0]


def header(member: Member, stored: int | None = None) -> bytes:
    """Returns the headers of a member: a pax header for values that ustar cannot hold, then a ustar header.

    `stored` is the size in the archive of a sparse member, whose map stands before its content (version 1.0).
    """
    path = (member.path or b".") + (b"/" if member.kind is MemberKind.DIR else b"")
    extended: dict[bytes, bytes] = {}
    if stored is not None:
        described = {b"major": b"1", b"minor": b"0", b"name": path, b"realsize": b"%d" % member.size}
        extended = {SPARSE + key: value for key, value in described.items()}
        member = replace(member, size=stored)
    if len(path) > 100:
        extended[b"path"] = path
    if len(member.target) > 100:
        extended[b"linkpath"] = member.target
    for key, value, digits in ((b"uid", member.uid, 7), (b"gid", member.gid, 7), (b"size", member.size, 11)):
        if value >= 8**digits:
            extended[key] = b"%d" % value
    if member.mtime_ns or not 0 <= member.mtime_s < 8**11:
        extended[b"mtime"] = _decimal_time(member.mtime_s, member.mtime_ns)
    for name, content in member.xattrs.items():
        if b"=" in name:  # it would end the key of a record
            extended[_LIBARCHIVE + quote_from_bytes(name, safe="").encode()] = base64.b64encode(content).rstrip(b"=")
        else:
            extended[_XATTR + name] = content
    block = _ustar(path, _TYPES[member.kind], member)
    if not extended:
        return block
    data = b"".join(_record(key, extended[key]) for key in sorted(extended))
    first = _ustar(b"././@PaxHeader", b"x", Member(b"", MemberKind.FILE, 0, size=len(data)))
    return first + data + bytes(-len(data) % BLOCK) + block


def _ustar(path: bytes, kind: bytes, member: Member) -> bytes:
    def octal(value: int, digits: int) -> bytes:
        return b"%0*o\0" % (digits, value if 0 <= value < 8**digits else 0)

    block = HEADER.pack(
        path[:100], octal(member.mode, 7), octal(member.uid, 7), octal(member.gid, 7), octal(member.size, 11),
        octal(member.mtime_s, 11), b" " * 8, kind, member.target[:100], b"ustar\x0000", b"", octal(member.major, 7),
        octal(member.minor, 7), b"",
    )  # fmt: skip
    return block[:148] + b"%06o\0 " % sum(block) + block[156:]


def _record(key: bytes, value: bytes) -> bytes:
    rest = len(key) + len(value) + 3  # a space, "=", a newline
    length = rest + len(b"%d" % (rest + len(b"%d" % rest)))
    return b"%d %s=%s\n" % (length, key, value)


def _decimal_time(seconds: int, nanoseconds: int) -> bytes:
    total = seconds * 10**9 + nanoseconds
    whole, fraction = divmod(abs(total), 10**9)
    return b"%s%d.%09d" % (b"-" if total < 0 else b"", whole, fraction)
