"""Reads and writes the files of keys: a private key in PEM (PKCS #8), and public keys as text, one a line."""

import stat
from collections.abc import Sequence
from pathlib import Path

from blockmap import durable
from blockmap.errors import AlreadyExists, UsageError
from blockmap.format.signature import PublicKey, parse_public_key
from blockmap.store.signing import Signer

_MOST_BYTES = 1 << 20
"""Bytes of a file of keys: 20,000 public keys, or a name that stands for something else."""
_PEM = b"-----BEGIN "


def create(path: Path) -> Signer:
    """Makes a pair of keys: the private one in `path`, for its owner alone, the public one beside it; returns the signer.

    Raises UsageError where one of them exists, StoreError where they cannot be written.
    """
    signer, public = Signer.generate(), public_path(path)
    if public.exists():
        raise UsageError(f"{public} exists: name another file, or delete the key if nobody needs it")
    try:
        durable.publish(path, [signer.to_pem()], 0o600)
    except AlreadyExists:
        raise UsageError(f"{path} exists: name another file, or delete the key if nobody needs it") from None
    durable.replace(public, f"{signer.public}\n".encode())
    return signer


def public_path(path: Path) -> Path:
    """Returns where `create` puts the public key of a private one."""
    return path.with_name(path.name + ".pub")


def read_signer(path: Path) -> Signer:
    """Returns the signer with the private key in a file; UsageError, also where every user can read it."""
    data = _read(path)
    if path.stat().st_mode & stat.S_IROTH:
        raise UsageError(f"every user can read the private key in {path}, so it proves nothing: chmod 600 {path}")
    try:
        return Signer.from_pem(data)
    except UsageError as error:
        raise UsageError(f"{path} is not a key to sign with: {error}") from error


def read_public(path: Path) -> list[PublicKey]:
    """Returns the public keys of a file: of a private key, or all of a list, where # begins a comment. Raises UsageError."""
    data = _read(path)
    if data.startswith(_PEM):
        return [read_signer(path).public]
    found = []
    for number, line in enumerate(data.decode(errors="replace").splitlines(), 1):
        words = line.partition("#")[0].split()
        try:
            found += [parse_public_key(words[0])] if words else []
        except UsageError as error:
            raise UsageError(f"line {number} of {path}: {error}") from error
    return found


def read_trusted(given: Sequence[str]) -> tuple[PublicKey, ...]:
    """Returns the keys that are given as text or by files, each once. Raises UsageError, also for a file without keys."""
    found: list[PublicKey] = []
    for each in given:
        if each.startswith("ed25519:"):
            found.append(parse_public_key(each))
            continue
        path = Path(each)
        if _read(path).startswith(_PEM):
            raise UsageError(f"{each} holds a private key: trust its public key, {public_path(path)}")
        keys = read_public(path)
        if not keys:
            raise UsageError(f"{each} has no key: with --trust it has one or more, each on a line of its own")
        found += keys
    return tuple(dict.fromkeys(found))


def _read(path: Path) -> bytes:
    try:
        with open(path, "rb") as file:
            data = file.read(_MOST_BYTES + 1)
    except OSError as error:
        raise UsageError(f"the file of keys {path} cannot be read: {error.strerror}") from error
    if len(data) > _MOST_BYTES:
        raise UsageError(f"{path} is no file of keys: it has more than {_MOST_BYTES:,} bytes")
    return data
