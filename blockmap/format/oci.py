"""Records of OCI documents lead from the SHA-256 of an index, manifest or configuration to a version: `oci/HEX/N`.

A sealed line of canonical JSON with `format`, `number` (of the version's record), `version` and, for an index, `index`: its
bytes in base64. So a record can be checked: the digest is that of the version's manifest or configuration, or of the index,
which lists the manifest. Of several numbers the highest that is right is believed; `oci/HEX`, as older stores have it, is
number 0.
"""

import base64
import json
from dataclasses import dataclass
from hashlib import sha256

from blockmap.errors import FormatError
from blockmap.format import record
from blockmap.format.digest import Digest, from_hex
from blockmap.format.entry import MAX_NUMBER
from blockmap.format.version import Version

FORMAT = 1


@dataclass(frozen=True, slots=True)
class DocumentRecord:
    """A document's reference to a version."""

    version: Digest
    number: int
    """The number of the version's record."""
    index: bytes | None = None
    """The document itself if it is an index, byte for byte."""

    def fits(self, digest: bytes, version: Version) -> bool:
        """Returns True if `digest` is that of a document of the version."""
        if any(own is not None and sha256(own).digest() == digest for own in (version.manifest, version.config)):
            return True
        if self.index is None or version.manifest is None or sha256(self.index).digest() != digest:
            return False
        return f"sha256:{sha256(version.manifest).hexdigest()}" in _listed(self.index)


def encode(made: DocumentRecord) -> bytes:
    """Returns the object as stored."""
    value: dict[str, object] = {"format": FORMAT, "number": made.number, "version": made.version.hex()}
    if made.index is not None:
        value["index"] = base64.b64encode(made.index).decode()
    return record.seal([record.encode(value)])


def decode(data: bytes) -> DocumentRecord:
    """Parses a record. Raises FormatError."""
    lines = record.unseal(data)
    if len(lines) != 1:
        raise FormatError(f"the record of an OCI document has {len(lines)} lines where 1 is expected")
    value = record.decode(lines[0])
    try:
        if value["format"] != FORMAT or type(value["number"]) is not int or not 1 <= value["number"] <= MAX_NUMBER:
            raise FormatError("the object says nothing about a version in a format known to this release")
        index = value.get("index")
        document = None if index is None else base64.b64decode(index, validate=True)
        return DocumentRecord(from_hex(value["version"]), value["number"], document)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise FormatError(f"the object lacks a field, or one has the wrong type: {error}") from error


def layer_digests(manifest: bytes) -> list[bytes]:
    """Returns the SHA-256 of each blob that a manifest lists as a layer; none if it is no manifest."""
    try:
        return [bytes.fromhex(each["digest"].removeprefix("sha256:")) for each in json.loads(manifest)["layers"]]
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError):
        return []


def _listed(index: bytes) -> list[object]:
    """Returns the digests of the manifests that an index lists; none if it is no index."""
    try:
        return [each["digest"] for each in json.loads(index)["manifests"]]
    except (KeyError, TypeError, ValueError, RecursionError):
        return []
