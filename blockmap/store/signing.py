"""Signs entries and versions, and judges whether a key that this host trusts has signed them.

The library `cryptography` is imported by those who use keys: it takes 30 ms, which nobody else waits for.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from blockmap.errors import Untrusted, UsageError
from blockmap.format import entry as entries
from blockmap.format import signature as signatures
from blockmap.format.entry import Entry
from blockmap.format.signature import PublicKey, Signature
from blockmap.format.version import Version

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

_AGAIN = "have somebody with a trusted key import the image again with --sign"


class Signer:
    """Signs with one private key."""

    def __init__(self, key: "Ed25519PrivateKey") -> None:
        self._key = key
        self.public = PublicKey(key.public_key().public_bytes_raw())

    @classmethod
    def generate(cls) -> "Signer":
        """Returns a signer with a new key."""
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

        return cls(Ed25519PrivateKey.generate())

    @classmethod
    def from_pem(cls, data: bytes) -> "Signer":
        """Parses a private key in PKCS #8, as `to_pem` and openssl write it. Raises UsageError."""
        from cryptography.exceptions import UnsupportedAlgorithm
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
        from cryptography.hazmat.primitives.serialization import load_pem_private_key

        try:
            key = load_pem_private_key(data, None)
        except (ValueError, TypeError, UnsupportedAlgorithm) as error:
            raise UsageError(f"it holds no private key that can be read: {str(error) or 'no PEM'}") from error
        if not isinstance(key, Ed25519PrivateKey):
            raise UsageError("its key is not an Ed25519 key: make one with `blockmap key create`")
        return cls(key)

    def to_pem(self) -> bytes:
        from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

        return self._key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())

    def entry(self, entry: Entry) -> Entry:
        """Returns an entry with this key's signature."""
        return replace(entry, signature=self._sign(signatures.ENTRY + entries.line(entry)))

    def version(self, version: Version) -> Version:
        """Returns a version with this key's signature."""
        return replace(version, signature=self._sign(signatures.VERSION + version.line()))

    def has_signed_entry(self, entry: Entry) -> bool:
        return self._has_signed(signatures.ENTRY + entries.line(entry), entry.signature)

    def has_signed_version(self, version: Version) -> bool:
        return self._has_signed(signatures.VERSION + version.line(), version.signature)

    def _sign(self, text: bytes) -> Signature:
        return Signature(self.public.id, self._key.sign(text))

    def _has_signed(self, text: bytes, signature: Signature | None) -> bool:
        own = self.public
        return signature is not None and signature.key == own.id and _is_valid(_loaded(own), text, signature.value)


@dataclass(frozen=True, slots=True)
class Trust:
    """The keys that a host trusts; without any, it opens what is not signed as well."""

    keys: tuple[PublicKey, ...] = ()
    _by_id: "Mapping[str, Ed25519PublicKey]" = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        # Here, so that a server with keys loads the library when it starts, and no open waits for it.
        object.__setattr__(self, "_by_id", {key.id: _loaded(key) for key in self.keys})
        if len(self._by_id) < len(set(self.keys)):
            raise UsageError("two of the trusted keys have the same id: leave one out")

    def __bool__(self) -> bool:
        return bool(self.keys)

    @property
    def ids(self) -> list[str]:
        return sorted(self._by_id)

    def check_entry(self, what: str, stored: bytes, signature: Signature | None) -> None:
        """Raises Untrusted where keys are trusted and none of them signed an entry; `what` names it in the message."""
        self._check(what, signatures.ENTRY + signatures.first_line(stored), signature)

    def check_version(self, what: str, stored: bytes, signature: Signature | None) -> None:
        """Raises Untrusted where keys are trusted and none of them signed the record of a version."""
        self._check(what, signatures.VERSION + signatures.first_line(stored), signature)

    def _check(self, what: str, text: bytes, signature: Signature | None) -> None:
        if not self.keys:
            return
        if signature is None:
            raise Untrusted(
                f"{what} is not signed, and only what {_listed(self.ids)} signed is opened here (--trust): {_AGAIN}"
            )
        key = self._by_id.get(signature.key)
        if key is None:
            raise Untrusted(
                f"{what} is signed with key {signature.key}, and only what {_listed(self.ids)} signed is opened here: add that "
                f"key to --trust if you know whose it is, or {_AGAIN}"
            )
        if not _is_valid(key, text, signature.value):
            raise Untrusted(
                f"{what} does not have the signature of key {signature.key} that it shows: it was changed, or the signature "
                f"is that of something else; {_AGAIN}"
            )


def _loaded(key: PublicKey) -> "Ed25519PublicKey":
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    return Ed25519PublicKey.from_public_bytes(key.raw)


def _is_valid(key: "Ed25519PublicKey", text: bytes, value: bytes) -> bool:
    from cryptography.exceptions import InvalidSignature

    try:
        key.verify(value, text)
    except InvalidSignature:
        return False
    return True


def _listed(ids: Iterable[str]) -> str:
    return "key " + " or ".join(ids)
