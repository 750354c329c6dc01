"""Lets clients in that name a user and a password of an htpasswd file, as web servers have it (`htpasswd -B`)."""

import base64
import binascii
import hmac
import os
import threading
from pathlib import Path

import bcrypt

from blockmap.errors import UsageError

_KINDS = ("$2y$", "$2b$", "$2a$")
_MOST_KNOWN = 1000
"""Passwords that are remembered as right: to check one by bcrypt takes 50 ms and more."""


class Passwords:
    """The users of an htpasswd file; safe to share between threads."""

    def __init__(self, path: Path) -> None:
        """Reads the file. UsageError where it cannot be read, or has other hashes than bcrypt's."""
        self._hashes: dict[str, bytes] = {}
        try:
            lines = path.read_text().splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"cannot read {path}: {error}") from error
        for number, line in enumerate(lines, start=1):
            user, colon, hashed = line.strip().partition(":")
            if not line.strip() or line.startswith("#"):
                continue
            if not (user and colon and hashed.startswith(_KINDS)):
                raise UsageError(
                    f"{path}, line {number}: USER:HASH is expected, with a hash of bcrypt, as `htpasswd -B` writes it"
                )
            self._hashes[user] = hashed.encode()
        if not self._hashes:
            raise UsageError(f"{path} names no user: `htpasswd -B {path} USER` adds one")
        self._secret = os.urandom(32)
        self._lock = threading.Lock()  # guards what follows
        self._known: set[bytes] = set()

    def admits(self, authorization: str | None) -> bool:
        """Returns True if the header names a user with the right password."""
        kind, _, encoded = (authorization or "").partition(" ")
        if kind.lower() != "basic":
            return False
        try:
            given = base64.b64decode(encoded, validate=True)
            user, colon, password = given.partition(b":")
            hashed = self._hashes.get(user.decode())
        except (binascii.Error, UnicodeDecodeError):
            return False
        mark = hmac.digest(self._secret, given, "sha256")
        with self._lock:
            if mark in self._known:
                return True
        if not colon or hashed is None or len(password) > 72 or not bcrypt.checkpw(password, hashed):
            return False
        with self._lock:
            if len(self._known) >= _MOST_KNOWN:
                self._known.clear()
            self._known.add(mark)
        return True
