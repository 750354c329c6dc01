"""Signers and trust: who signed is told apart from who did not; keys in files; what openssl says of it."""

import stat
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blockmap.errors import Untrusted, UsageError
from blockmap.format import entry, record, signature, version
from blockmap.format.signature import PublicKey, Signature
from blockmap.store import key_files
from blockmap.store.signing import Signer, Trust
from tests.format.test_entry import SAMPLE as ENTRY
from tests.format.test_version import VERSION
from tests.store.signers import changed, signer, trusting

OURS, THEIRS = signer(1), signer(2)


def check(stored: bytes, trust: Trust) -> None:
    trust.check_entry("entry 2 of a:1", stored, entry.decode(stored, ENTRY.key).signature)


def test_signatures_are_those_of_the_standard() -> None:
    """Ed25519 has one signature for a key and a text, so that another library must find the same."""
    signed = OURS.entry(ENTRY)
    assert OURS.public.raw.hex() == "8a88e3dd7409f195fd52db2d3cba5d72ca6709bf1d94121bf3748801b40f6f5c"
    assert signed.signature is not None
    assert signed.signature.key == OURS.public.id
    assert signed.signature.value.hex() == (
        "8da081912c177104b33192ccde74c5ebb32209fcb7870870870bfc664db9110e"
        "45aadafffd7f03ce969132789c64ef0d2066987383ddd42b378cfdf17bff6d0b"
    )
    of_version = OURS.version(VERSION).signature
    assert of_version is not None
    assert of_version.value.hex() == (
        "8a2249684c3c3c566249660e694d6f4da1d7d93dfeb01ab04527402a4b431d1a"
        "8faa203e8bc254fad4cac669ab974645c393739c657a0478400462646f7d260b"
    )


def test_openssl_verifies_entries_and_versions(tmp_path: Path, need: Callable[..., None]) -> None:
    need("openssl")
    (tmp_path / "key").write_bytes(OURS.to_pem())
    public = subprocess.run(["openssl", "pkey", "-in", tmp_path / "key", "-pubout"], check=True, capture_output=True)
    (tmp_path / "public").write_bytes(public.stdout)
    for kind, stored in (
        (b"blockmap-entry-1\n", entry.encode(OURS.entry(ENTRY))),
        (b"blockmap-version-1\n", version.encode(OURS.version(VERSION))),
    ):
        lines = record.unseal(stored)
        (tmp_path / "text").write_bytes(kind + lines[0])
        (tmp_path / "signature").write_bytes(signature.decode(lines[-1]).value)
        verify = ["openssl", "pkeyutl", "-verify", "-rawin", "-pubin", "-inkey", "public", "-in", "text"]
        done = subprocess.run([*verify, "-sigfile", "signature"], cwd=tmp_path, capture_output=True, text=True)
        assert "Verified Successfully" in done.stdout, done.stderr


def test_what_a_trusted_key_signed_is_trusted() -> None:
    signed = entry.encode(OURS.entry(ENTRY))
    for trust in (Trust(), trusting(OURS), trusting(THEIRS, OURS)):
        check(signed, trust)
    check(entry.encode(ENTRY), Trust())
    stored = version.encode(OURS.version(VERSION))
    trusting(OURS).check_version("v", stored, version.decode(stored, VERSION.name).signature)


@pytest.mark.parametrize(
    ("stored", "why"),
    [
        (entry.encode(ENTRY), "entry 2 of a:1 is not signed, and only what key .* signed is opened here"),
        (entry.encode(THEIRS.entry(ENTRY)), f"entry 2 of a:1 is signed with key {THEIRS.public.id}, and only what key"),
        (
            entry.encode(replace(OURS.entry(ENTRY), message="another")),
            f"entry 2 of a:1 does not have the signature of key {OURS.public.id} that it shows",
        ),
        (
            entry.encode(replace(ENTRY, signature=Signature(OURS.public.id, bytes(64)))),
            "does not have the signature",
        ),
        (
            entry.encode(replace(ENTRY, signature=OURS._sign(signature.VERSION + entry.line(ENTRY)))),
            "does not have the signature",
        ),
    ],
    ids=["none", "another key's", "of another entry", "zeros", "made for a version"],
)
def test_nothing_else_is_trusted(stored: bytes, why: str) -> None:
    with pytest.raises(Untrusted, match=why):
        check(stored, trusting(OURS))


@given(st.data())
def test_a_signed_line_cannot_be_changed(data: st.DataObject) -> None:
    """Whatever else parses, with a right seal, is refused, unless the signed line is the same to the byte."""
    line, signed = record.unseal(entry.encode(OURS.entry(ENTRY)))
    fields = record.decode(line)
    key = data.draw(st.sampled_from(sorted(fields)))
    value = data.draw(st.sampled_from([*fields.values(), "", 0, 7, None, "x"]))
    stored = record.seal([changed(line, **{key: value}), signed])
    try:
        parsed = entry.decode(stored, str(fields["key"]))
    except Exception:
        return
    if stored == entry.encode(OURS.entry(ENTRY)):
        return
    with pytest.raises(Untrusted):
        trusting(OURS).check_entry("e", stored, parsed.signature)


def test_a_line_with_keys_of_later_releases_can_be_signed() -> None:
    line = changed(entry.line(ENTRY), later=1)
    stored = record.seal([line, signature.encode(OURS._sign(signature.ENTRY + line))])
    check(stored, trusting(OURS))


def test_a_signer_knows_its_own() -> None:
    assert OURS.has_signed_entry(OURS.entry(ENTRY))
    assert OURS.has_signed_version(OURS.version(VERSION))
    for other in (ENTRY, THEIRS.entry(ENTRY), replace(OURS.entry(ENTRY), message="another")):
        assert not OURS.has_signed_entry(other)
    for wrong in (VERSION, THEIRS.version(VERSION), replace(OURS.version(VERSION), message="another")):
        assert not OURS.has_signed_version(wrong)


# --- files


def test_a_pair_of_keys_is_made(tmp_path: Path) -> None:
    made = key_files.create(tmp_path / "new/release")
    assert stat.S_IMODE((tmp_path / "new/release").stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "new/release.pub").stat().st_mode) == 0o644
    assert key_files.read_signer(tmp_path / "new/release").public == made.public
    assert key_files.read_public(tmp_path / "new/release") == [made.public]
    assert key_files.read_trusted([str(tmp_path / "new/release.pub")]) == (made.public,)
    assert made.public != key_files.create(tmp_path / "other").public


@pytest.mark.parametrize("there", ["release", "release.pub"])
def test_no_key_is_overwritten(tmp_path: Path, there: str) -> None:
    (tmp_path / there).write_bytes(b"precious")
    with pytest.raises(UsageError, match=f"{there} exists: name another file"):
        key_files.create(tmp_path / "release")
    assert [(each.name, each.read_bytes()) for each in tmp_path.iterdir()] == [(there, b"precious")]


def test_keys_of_openssl_are_as_good(tmp_path: Path, need: Callable[..., None]) -> None:
    need("openssl")
    subprocess.run(["openssl", "genpkey", "-algorithm", "ed25519", "-out", tmp_path / "key"], check=True)
    own = key_files.read_signer(tmp_path / "key")
    check(entry.encode(own.entry(ENTRY)), Trust((own.public,)))


def test_a_private_key_is_private(tmp_path: Path) -> None:
    key_files.create(tmp_path / "key")
    (tmp_path / "key").chmod(0o644)
    with pytest.raises(UsageError, match=r"every user can read the private key in .*: chmod 600 "):
        key_files.read_signer(tmp_path / "key")


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "no private key that can be read"),
        (b"hello\n", "no private key that can be read"),
        (str(OURS.public).encode(), "no private key that can be read"),
        (b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n", "no private key that can be read"),
        (b"x" * 2_000_000, "more than 1,048,576 bytes"),
    ],
    ids=["empty", "text", "public", "damaged", "long"],
)
def test_what_is_no_key_to_sign_with(tmp_path: Path, content: bytes, why: str) -> None:
    (tmp_path / "key").write_bytes(content)
    (tmp_path / "key").chmod(0o600)
    with pytest.raises(UsageError, match=why):
        key_files.read_signer(tmp_path / "key")


def test_other_kinds_of_keys_do_not_sign(tmp_path: Path, need: Callable[..., None]) -> None:
    need("openssl")
    for algorithm, why in (("x25519", "not an Ed25519 key"), ("ed448", "not an Ed25519 key")):
        subprocess.run(["openssl", "genpkey", "-algorithm", algorithm, "-out", tmp_path / "key"], check=True)
        with pytest.raises(UsageError, match=why):
            key_files.read_signer(tmp_path / "key")


def test_a_key_with_a_password_is_refused(tmp_path: Path, need: Callable[..., None]) -> None:
    need("openssl")
    locked = [
        "openssl",
        "genpkey",
        "-algorithm",
        "ed25519",
        "-aes256",
        "-pass",
        "pass:x",
        "-out",
        str(tmp_path / "key"),
    ]
    subprocess.run(locked, check=True)
    with pytest.raises(UsageError, match="no private key that can be read"):
        key_files.read_signer(tmp_path / "key")


def test_trusted_keys_come_as_text_and_in_files(tmp_path: Path) -> None:
    listed = tmp_path / "keys"
    listed.write_text(f"# ours\n\n{OURS.public}   # the release key\n{THEIRS.public} of a friend\n")
    assert key_files.read_trusted([str(OURS.public), str(listed)]) == (OURS.public, THEIRS.public)
    assert key_files.read_trusted([]) == ()


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "has no key"),
        (b"# nothing\n", "has no key"),
        (b"\nssh-ed25519 AAAA\n", "line 2 of .*keys: 'ssh-ed25519' is not a public key"),
        (b"ed25519:AAAA\n", "line 1 of .*keys: 'ed25519:AAAA' is not a public key"),
        (b"\xff\xfe", "line 1 of .*keys: .* is not a public key"),
        (OURS.to_pem(), "holds a private key: trust its public key, .*keys.pub"),
    ],
    ids=["empty", "comment", "ssh", "short", "binary", "private"],
)
def test_a_file_of_keys_that_is_none_is_refused(tmp_path: Path, content: bytes, why: str) -> None:
    (tmp_path / "keys").write_bytes(content)
    with pytest.raises(UsageError, match=why):
        key_files.read_trusted([str(tmp_path / "keys")])


def test_an_absent_file_of_keys_is_refused(tmp_path: Path) -> None:
    for read in (lambda path: key_files.read_trusted([str(path)]), key_files.read_signer, key_files.read_public):
        with pytest.raises(UsageError, match="keys cannot be read: No such file"):
            read(tmp_path / "keys")


def test_a_key_is_a_point_or_signs_nothing() -> None:
    """Bytes that are no point of the curve are a key that nobody has."""
    nobody = PublicKey(b"\xff" * 32)
    with pytest.raises(Untrusted, match="does not have the signature"):
        check(entry.encode(replace(ENTRY, signature=Signature(nobody.id, bytes(64)))), Trust((nobody,)))


def test_who_uses_no_keys_does_not_wait_for_them() -> None:
    program = (
        "import sys; from click.testing import CliRunner; from blockmap.cli.main import program, _COMMANDS\n"
        "for each in _COMMANDS: assert CliRunner().invoke(program, [each, '--help']).exit_code == 0, each\n"
        "from blockmap.server import server; from nbdplugin import options\n"
        "from blockmap.store.signing import Trust; Trust().check_entry('', b'', None)\n"
        "sys.exit('cryptography' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_a_new_signer_has_a_key_of_its_own() -> None:
    assert Signer.generate().public != Signer.generate().public
