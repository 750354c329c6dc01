"""References that people type: docker's grammar, digests, labels; and names as parts of keys."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blockmap.errors import UsageError
from blockmap.format import keys
from blockmap.format.digest import Digest
from blockmap.format.refs import Moment, NameEntry, Reference, from_component, parse_name, parse_reference, to_component

HEX = "0123456789abcdef" * 4

VALID_REPOS = [
    "redis",
    "library/redis",
    "a",
    "0",
    "a.b",
    "a_b",
    "a__b",
    "a-b",
    "a---b",
    "registry.example.com/team/app",
    "registry.example.com:5000/team/app",
    "localhost:5000/app",
    "localhost/app",
    "REGISTRY.example.COM/app",
    "a-b.c-d:1/x/y/z",
    "1.2.3.4:80/a",
    "a" * 255,
]
INVALID_REPOS = [
    "",
    "/",
    "/redis",
    "redis/",
    "a//b",
    "Redis",
    "team/Redis",
    "a___b",
    "a..b",
    "a._b",
    "-a",
    "a-",
    ".a",
    "a.",
    "_a",
    "..",
    "../redis",
    "a/../b",
    "a/./b",
    "a b",
    "a~b",
    "a=b",
    "a\nb",
    "redis\n",
    "host:port/app",
    "host:/app",
    "-host.com/app",
    "é",
    "a" * 256,
]
VALID_TAGS = ["7", "latest", "7.2-alpine", "_x", "A", "v1.0_rc-1", "a" * 128, "0..1"]
INVALID_TAGS = ["", ".x", "-x", "a b", "a~", "a=", "é", "a" * 129, "7\n"]


@pytest.mark.parametrize("tag", VALID_TAGS)
@pytest.mark.parametrize("repo", VALID_REPOS)
def test_names(repo: str, tag: str) -> None:
    assert parse_name(f"{repo}:{tag}") == (repo, tag)
    assert parse_reference(f"{repo}:{tag}") == Reference(repo, tag, None)
    assert str(parse_reference(f"{repo}:{tag}")) == f"{repo}:{tag}"


@pytest.mark.parametrize("repo", VALID_REPOS)
def test_the_tag_is_latest_where_none_is_typed(repo: str) -> None:
    assert parse_name(repo) == (repo, "latest")


@pytest.mark.parametrize("suffix", ["", ":7", f"@sha256:{HEX}"])
@pytest.mark.parametrize("repo", INVALID_REPOS)
def test_what_is_no_repository(repo: str, suffix: str) -> None:
    with pytest.raises(UsageError, match="is not") as caught:
        parse_reference(repo + suffix)
    assert "for example" in str(caught.value)


@pytest.mark.parametrize("tag", INVALID_TAGS)
def test_what_is_no_tag(tag: str) -> None:
    with pytest.raises(UsageError, match=r"is not a tag.*for example"):
        parse_reference(f"redis:{tag}")


@pytest.mark.parametrize(
    ("text", "past", "shown"),
    [
        ("3", NameEntry(3), "3"),
        ("007", NameEntry(7), "7"),
        ("2026-11-20", Moment(1_795_132_800), "2026-11-20T00:00:00Z"),
        ("2026-11-20 08:30", Moment(1_795_163_400), "2026-11-20T08:30:00Z"),
        ("2026-11-20T08:30:00-02:00", Moment(1_795_170_600), "2026-11-20T10:30:00Z"),
        ("1 hour ago", Moment(6_400), "1970-01-01T01:46:40Z"),
        ("90 seconds ago", Moment(9_910), "1970-01-01T02:45:10Z"),
        ("3 weeks ago", Moment(0), "1970-01-01T00:00:00Z"),
    ],
)
def test_moments(text: str, past: NameEntry | Moment, shown: str) -> None:
    found = parse_reference(f"team/redis:7@{{{text}}}", clock=lambda: 10_000)
    assert found == Reference("team/redis", "7", None, None, past)
    assert str(found) == f"team/redis:7@{{{shown}}}"
    assert parse_reference(str(found)) == found
    assert parse_reference(f"redis@{{{text}}}", clock=lambda: 10_000).tag == "latest"
    assert str(parse_reference(f"redis@{{{shown}}}+web")) == f"redis:latest@{{{shown}}}+web"
    with pytest.raises(UsageError, match="is not a name"):
        parse_name(f"redis@{{{shown}}}")


@pytest.mark.parametrize(
    "text", ["", "0", "-1", "1.5", "x", "tomorrow", "1 year ago", "999999999 weeks ago", "2026-13-01", "1" * 17, "{3}"]
)
def test_what_is_no_moment(text: str) -> None:
    with pytest.raises(UsageError, match=r"is no moment|has no digest|is not"):
        parse_reference(f"redis:7@{{{text}}}", clock=lambda: 2e9)


def test_digests() -> None:
    found = parse_reference(f"host:5000/team/redis@sha256:{HEX}")
    assert found == Reference("host:5000/team/redis", None, bytes.fromhex(HEX))
    assert str(found) == f"host:5000/team/redis@sha256:{HEX}"


@pytest.mark.parametrize(
    "digest",
    [
        "",
        "sha256:",
        f"sha256:{HEX[1:]}",
        f"sha256:{HEX}0",
        f"sha256:{HEX.upper()}",
        f"sha512:{HEX}{HEX}",
        HEX,
        f"sha256:{HEX}\n",
    ],
)
def test_what_is_no_digest(digest: str) -> None:
    with pytest.raises(UsageError, match="64 lower-case hexadecimal digits"):
        parse_reference(f"redis@{digest}")


def test_a_tag_and_a_digest_are_one_too_many() -> None:
    with pytest.raises(UsageError):
        parse_reference(f"redis:7@sha256:{HEX}")


@pytest.mark.parametrize("label", ["default", "migrate", "a/b", "a.b_c-d", "x" * 64, "..."])
def test_labels(label: str) -> None:
    for name in ("redis:7", f"redis@sha256:{HEX}"):
        found = parse_reference(f"{name}+{label}")
        assert found.label == label
        assert str(found) == f"{name}+{label}"


@pytest.mark.parametrize("label", ["", "A", "x" * 65, "a b", "a+b", "é", "a:b", ".", "..", ".tmp-1", "a\n"])
def test_what_is_no_label(label: str) -> None:
    with pytest.raises(UsageError, match=r"is not a label.*for example"):
        parse_reference(f"redis:7+{label}")


@pytest.mark.parametrize("text", ["redis:7+migrate", f"redis@sha256:{HEX}"])
def test_what_is_no_name(text: str) -> None:
    with pytest.raises(UsageError, match=r"is not a name.*for example"):
        parse_name(text)


@given(st.text(max_size=40) | st.from_regex(r"[a-zA-Z0-9:/@+._~=-]{0,30}"))
def test_anything_is_a_reference_or_a_mistake(text: str) -> None:
    try:
        found = parse_reference(text)
    except UsageError:
        return
    assert parse_reference(str(found)) == found
    if found.tag is not None:
        key = keys.entry(found.repo, found.tag, 1)
        keys.check(key)
        assert keys.parse_entry(key) == ((found.repo, found.tag), 1)
    if found.label is not None:
        keys.check(f"profiles/{to_component(found.repo)}/{to_component(found.label)}/1")


@given(st.from_regex(r"[a-zA-Z0-9:/._-]{1,60}", fullmatch=True))
def test_components(text: str) -> None:
    component = to_component(text)
    assert "/" not in component
    assert ":" not in component
    assert from_component(component) == text


# --- keys


def test_keys_are_where_the_format_puts_them() -> None:
    name = Digest(bytes(range(32)))
    text = name.hex()
    assert keys.pack(name) == f"packs/00/{text}"
    assert keys.version(name, 2) == f"versions/{text}/0000000000000002"
    assert keys.entry("host:5000/a/b", "7", 12) == "names/host=5000~a~b/7/0000000000000012"
    assert keys.name_hint("host:5000/a/b", "7") == "hints/names/host=5000~a~b/7"
    assert keys.filemap(name, 1) == f"filemaps/{text}/0000000000000001"
    assert keys.filemap(name, 0) == f"filemaps/{text}"
    assert keys.layer(name, 1) == f"layers/{text}/0000000000000001"
    assert keys.oci(name, 1) == f"oci/{text}/0000000000000001"
    assert keys.oci(name, 0) == f"oci/{text}"
    for key in (keys.FORMAT, keys.pack(name), keys.entry("a", "b", 1), keys.oci(name, 1)):
        keys.check(key)


@pytest.mark.parametrize(
    "key",
    [
        "format",
        "names/a/b",
        "names/a/b/1",
        "names/a/b/0000000000000000",
        "names/a/b/00000000000000001",
        "names/a/b/000000000000000x",
        "names/a/b/٠٠٠٠٠٠٠٠٠٠٠٠٠٠٠١",
        "names/a/b/c/0000000000000001",
        "hints/a/b/0000000000000001",
        "",
    ],
)
def test_other_keys_are_no_entries(key: str) -> None:
    assert keys.parse_entry(key) is None


def test_numbers_sort_as_text() -> None:
    made = [keys.entry("a", "b", n) for n in (1, 2, 9, 10, 99, 100, 10**15)]
    assert made == sorted(made)
    assert all(re.fullmatch("[0-9]{16}", key.rsplit("/", 1)[1]) for key in made)
