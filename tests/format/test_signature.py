"""Signatures and public keys as text: round trips, frozen forms, and nothing but declared errors for any other bytes."""

import base64
import hashlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blockmap.errors import FormatError, UsageError
from blockmap.format import record, signature
from blockmap.format.signature import PublicKey, Signature, parse_public_key

signatures = st.builds(Signature, st.binary(min_size=8, max_size=8).map(bytes.hex), st.binary(min_size=64, max_size=64))
public_keys = st.binary(min_size=32, max_size=32).map(PublicKey)


@given(signatures)
def test_a_signature_is_decoded_as_it_was_encoded(value: Signature) -> None:
    assert signature.decode(signature.encode(value)) == value


def test_the_form_of_a_signature_is_frozen() -> None:
    line = signature.encode(Signature("00112233445566aa", bytes(range(64))))
    assert line == (
        b'{"key":"00112233445566aa","signature":"AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8gISIjJCUmJygpKissLS4vMDEyMzQ1'
        b'Njc4OTo7PD0+Pw=="}'
    )


@pytest.mark.parametrize(
    "changes",
    [
        {"key": None},
        {"key": 7},
        {"key": "0" * 15},
        {"key": "0" * 16 + "\n"},
        {"key": "A" * 16},
        {"signature": None},
        {"signature": 5},
        {"signature": ""},
        {"signature": base64.b64encode(bytes(63)).decode()},
        {"signature": base64.b64encode(bytes(65)).decode()},
        {"signature": "\n" + base64.b64encode(bytes(64)).decode()},
        {"signature": "é" * 88},
    ],
    ids=str,
)
def test_wrong_values_are_format_errors(changes: dict[str, Any]) -> None:
    good = {"key": "0" * 16, "signature": base64.b64encode(bytes(64)).decode()}
    signature.decode(record.encode(good))
    with pytest.raises(FormatError):
        signature.decode(record.encode({**good, **changes}))


@given(st.binary(max_size=200))
def test_arbitrary_bytes_are_format_errors(data: bytes) -> None:
    with pytest.raises(FormatError):
        signature.decode(data)


@given(public_keys)
def test_a_public_key_is_parsed_as_it_was_written(key: PublicKey) -> None:
    assert parse_public_key(str(key)) == key


def test_the_form_of_a_public_key_is_frozen() -> None:
    key = PublicKey(bytes(range(32)))
    assert str(key) == "ed25519:AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="
    assert key.id == hashlib.sha256(bytes(range(32))).digest()[:8].hex() == "630dcd2966c43366"


@given(st.text(max_size=80) | st.text(max_size=60).map(lambda text: "ed25519:" + text))
def test_any_other_text_is_no_public_key(text: str) -> None:
    with pytest.raises(UsageError, match="is not a public key"):
        parse_public_key(text)
