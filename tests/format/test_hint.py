"""Hints and the catalogue: round trips, a golden digest, and nothing but FormatError for any other bytes."""

import hashlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blockmap.errors import FormatError
from blockmap.format import catalogue, entry, hint, record, version
from blockmap.format.digest import ABSENT
from blockmap.format.hint import BundleRef, Hint
from blockmap.format.tree import Root
from blockmap.format.version import Version, WriterLayout
from tests.format.test_entry import SAMPLE, any_entries, text

REPO, TAG = "host:5000/team/redis", "7.2"
RECORD = version.encode(Version(Root(ABSENT, 5), Root(ABSENT, 5), WriterLayout(0, 0)))
BUNDLE = BundleRef("default", "bundles/x/default/1", 5000, 400)
FULL = Hint(SAMPLE, entry.encode(SAMPLE), RECORD, (BUNDLE,))

bundles = st.builds(
    lambda label, key, table, more: BundleRef(label, key, table + more, table),
    text,
    text,
    st.integers(0, 1 << 20),
    st.integers(0, 1 << 30),
)


@given(any_entries(), st.none() | st.just(RECORD), st.lists(bundles, max_size=3))
def test_what_is_encoded_is_decoded(value: entry.Entry, about: bytes | None, found: list[BundleRef]) -> None:
    repo, tag = value.key.split("/")[1:3]
    made = Hint(value, entry.encode(value), about, tuple(found))
    assert hint.decode(hint.encode(made), repo.replace("~", "/").replace("=", ":"), tag) == made


def test_the_format_is_frozen() -> None:
    data = hint.encode(FULL)
    assert data.split(b"\n")[0] == (
        b'{"bundles":[{"key":"bundles/x/default/1","label":"default","length":5000,"table":400}],'
        b'"entry":2,"format":1,"n":2,"version":3}'
    )
    assert FULL.stored in data
    assert RECORD in data
    assert hashlib.sha256(data).hexdigest() == GOLDEN


GOLDEN = "559cfa02e181de0f40ae7aa30a809cc26a8e456d6c1ccd35696e9694b08bfe66"


def test_a_long_record_is_left_out() -> None:
    made = Hint(SAMPLE, FULL.stored, b"x" * hint.MAX_VERSION_BYTES + b"\n")
    assert hint.decode(hint.encode(made), REPO, TAG).version is None


def test_a_hint_belongs_to_its_name() -> None:
    for repo, tag in ((REPO, "7"), ("redis", TAG)):
        with pytest.raises(FormatError, match="is not the entry"):
            hint.decode(hint.encode(FULL), repo, tag)


@given(st.data())
def test_any_damage_is_seen(data: st.DataObject) -> None:
    good = hint.encode(FULL)
    at = data.draw(st.integers(0, len(good) - 1))
    flipped = good[:at] + bytes([good[at] ^ 1 << data.draw(st.integers(0, 7))]) + good[at + 1 :]
    for damaged in (flipped, good[:at]):
        with pytest.raises(FormatError):
            hint.decode(damaged, REPO, TAG)


def changed(**changes: Any) -> bytes:
    """Returns the full hint with another head and a correct seal."""
    lines = record.unseal(hint.encode(FULL))
    value = record.decode(lines[0]) | changes
    return record.seal([record.encode({key: item for key, item in value.items() if item is not ...}), *lines[1:]])


WRONG: list[dict[str, Any]] = [
    *({key: ...} for key in ("bundles", "entry", "format", "n", "version")),
    {"format": 2},
    {"n": 1},
    {"n": 3},
    {"n": "2"},
    {"n": -1},
    {"entry": 3, "version": 2},
    {"entry": 1, "version": 4},
    {"entry": 0, "version": 5},
    {"entry": 2, "version": 2},
    {"entry": True, "version": 4},
    {"version": None},
    {"bundles": None},
    {"bundles": [5]},
    {"bundles": [{}]},
    {"bundles": [{"key": "k", "label": "l", "length": 5, "table": 6}]},
    {"bundles": [{"key": "k", "label": "l", "length": 1 << 50, "table": 6}]},
    {"bundles": [{"key": 5, "label": "l", "length": 5, "table": 5}]},
    {"bundles": [{"key": "k", "label": None, "length": 5, "table": 5}]},
]


@pytest.mark.parametrize("changes", WRONG, ids=str)
def test_wrong_values_are_format_errors(changes: dict[str, Any]) -> None:
    with pytest.raises(FormatError):
        hint.decode(changed(**changes), REPO, TAG)


def test_later_releases_may_add_keys() -> None:
    assert hint.decode(changed(more="x"), REPO, TAG) == FULL


@given(st.binary(max_size=300) | st.dictionaries(text, text).map(lambda value: record.seal([record.encode(value)])))
def test_arbitrary_bytes_are_format_errors(data: bytes) -> None:
    for decode in (lambda: hint.decode(data, REPO, TAG), lambda: catalogue.decode(data)):
        with pytest.raises(FormatError):
            decode()


@pytest.mark.parametrize(("length", "table"), [(5000, 5001), (1 << 33, 400), (1 << 31, 1 << 27), (5000, -1)])
def test_a_bundle_that_would_take_all_memory_makes_a_hint_none(length: int, table: int) -> None:
    with pytest.raises(FormatError):
        hint.decode(
            hint.encode(Hint(SAMPLE, FULL.stored, None, (BundleRef("default", "k", length, table),))), REPO, TAG
        )


# --- the catalogue

names = st.dictionaries(st.tuples(text, text), st.integers(1, entry.MAX_NUMBER), max_size=20)


@given(names)
def test_a_catalogue_that_is_encoded_is_decoded(numbers: dict[tuple[str, str], int]) -> None:
    assert catalogue.decode(catalogue.encode(numbers)) == numbers


@pytest.mark.parametrize(
    "value",
    [
        {},
        {"format": 2, "names": {}},
        {"format": 1, "names": []},
        {"format": 1, "names": {"a": 1}},
        {"format": 1, "names": {"a": {"1": 0}}},
        {"format": 1, "names": {"a": {"1": "1"}}},
        {"format": 1, "names": {"a": {"1": True}}},
        {"format": 1, "names": {"a": {"1": 10**16}}},
    ],
    ids=str,
)
def test_wrong_catalogues_are_format_errors(value: dict[str, Any]) -> None:
    with pytest.raises(FormatError):
        catalogue.decode(record.seal([record.encode(value)]))
