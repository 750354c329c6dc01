"""Object stores: what is particular to them beside the contract, and what their errors say."""

import logging
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from blockmap.errors import AlreadyExists, NotAStore, StoreReadOnly, StoreRefused, StoreUnavailable, UsageError
from blockmap.format.digest import Digest
from blockmap.format.pack import Pack
from blockmap.publish.object_writer import ObjectWriter
from blockmap.store.names import EntryDraft, NameLog, NameTarget
from blockmap.store.objects import open_objects
from blockmap.store.opening import create_store, location, open_store
from tests.store import servers
from tests.store.made import open_or_create
from tests.store.relay import Relay, relaying
from tests.waiting import free_ports


@pytest.fixture
def s3(seaweedfs: servers.S3, monkeypatch: pytest.MonkeyPatch) -> servers.S3:
    servers.use(seaweedfs, monkeypatch)
    return seaweedfs


@pytest.fixture
def relay(s3: servers.S3, monkeypatch: pytest.MonkeyPatch) -> Iterator[Relay]:
    with relaying(s3.port) as relay:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{relay.port}")
        yield relay


# --- stores in buckets


def test_a_store_is_made_and_opened(remote: str) -> None:
    made, form = create_store(remote)
    assert made.list("") == ["format"]
    assert made.url == remote
    opened, again = open_store(f"{remote}/")
    assert (opened.url, again) == (remote, form)
    assert open_or_create(remote)[1] == form
    with pytest.raises(UsageError, match=f"{remote} is a blockmap store already"):
        create_store(remote)


def test_stores_in_one_bucket_do_not_see_each_other(remote: str) -> None:
    whole, _ = create_store(remote)
    for near in (f"{remote}2", f"{remote}/below"):
        with pytest.raises(NotAStore, match=f"blockmap create {near}"):
            open_store(near)
    other, _ = create_store(f"{remote}2")
    other.create("packs/x", [b"x"])
    assert whole.list("") == ["format"]


@pytest.mark.parametrize("make", [create_store, open_or_create])
def test_a_prefix_of_something_else_is_refused(remote: str, make: Callable[[str], object]) -> None:
    place = open_objects(remote)
    for key in ("photos/b", "photos/a", "notes"):
        place.create(key, [b"mine"])
    with pytest.raises(NotAStore) as caught:
        make(remote)
    if make is create_store:
        assert "neither empty nor a store, it holds notes, photos:" in str(caught.value)
    assert place.list("") == ["notes", "photos/a", "photos/b"]


def test_an_attempt_that_was_broken_off_is_taken_up(remote: str) -> None:
    open_objects(remote).create("probe-0123", [b"x"])
    open_or_create(remote)
    open_store(remote)


def test_listings_are_complete(remote: str) -> None:
    """Servers give a thousand keys at a time."""
    store = open_objects(remote)
    keys = [f"names/library~redis/{number % 7}=x/{number:016d}" for number in range(2100)]
    for key in keys:
        store.create(key, [])
    store.create("names0", [])
    assert store.list("names/") == sorted(keys)
    assert store.list("") == sorted([*keys, "names0"])
    assert store.contents() == ["names"]


# --- URLs


@pytest.mark.parametrize("scheme", ["s3", "az", "gs", "http", "https"])
@pytest.mark.parametrize("rest", ["me:hunter2@host/path", "hunter2@host", "host/path?sig=hunter2", "host/#hunter2"])
def test_a_url_with_secrets_is_refused_and_not_shown(scheme: str, rest: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    for call in (open_store, create_store, open_or_create, location):
        with pytest.raises(UsageError, match="credentials in the environment") as caught:
            call(f"{scheme}://{rest}")
        assert "hunter2" not in str(caught.value)
    assert "hunter2" not in caplog.text


@pytest.mark.parametrize("url", ["s3://", "s3:///x", "s3://b//x", "s3://b/../x", "s3://b/x/../y", "az://c", "http://"])
def test_urls_that_name_nothing(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    servers.use(servers.S3(1), monkeypatch)
    with pytest.raises(UsageError):
        location(url)


def test_the_place_of_a_store_has_one_form(s3: servers.S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert location("s3://bucket") == location("s3://bucket/") == "s3://bucket"
    assert location("s3://bucket/a/b/") == "s3://bucket/a/b"
    assert location("http://host/a/") == "http://host/a"
    assert location("store") == location("./x/../store/") == location(f"file://{tmp_path}/store") == f"{tmp_path}/store"


# --- credentials and messages


def test_a_bucket_that_is_missing(s3: servers.S3) -> None:
    for call in (open_store, create_store, open_or_create):
        with pytest.raises(StoreUnavailable, match="the bucket of s3://absent/x does not exist"):
            call("s3://absent/x")


def test_wrong_keys_say_what_to_set(s3: servers.S3, monkeypatch: pytest.MonkeyPatch) -> None:
    url = s3.url()
    create_store(url)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter2")
    for call in (lambda: open_store(url), lambda: open_objects(url).list(""), lambda: open_objects(url).exists("x")):
        with pytest.raises(StoreUnavailable, match=r"403 Forbidden.*credentials") as caught:
            call()
        said = str(caught.value)
        assert "\n" not in said
        assert len(said) < 400
        assert "hunter2" not in said
    with pytest.raises(StoreUnavailable, match="SignatureDoesNotMatch"):
        open_store(url)


@pytest.mark.parametrize(
    "value", ["127.0.0.1:8333", "localhost:8333", "http:/x", "http://", "http://a b", "http://h:x"]
)
@pytest.mark.parametrize(("name", "url"), [("AWS_ENDPOINT_URL", "s3://b/x"), ("AZURE_STORAGE_ENDPOINT", "az://b/x")])
def test_an_endpoint_that_is_no_url(name: str, url: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match=f"{name}={value} is not the URL of a server: http"):
        location(url)


def test_an_endpoint_is_not_shown_with_its_password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "user:hunter2@host")
    with pytest.raises(UsageError, match="AWS_ENDPOINT_URL is not the URL") as caught:
        location("s3://b/x")
    assert "hunter2" not in str(caught.value)


def test_an_endpoint_without_tls(s3: servers.S3, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3.endpoint.replace("http://", "https://"))
    with pytest.raises(StoreUnavailable, match=r"does not speak TLS.*is its server up, and its address right"):
        open_store(s3.url())


def test_no_credentials_say_what_to_set(s3: servers.S3, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_METADATA_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(StoreUnavailable, match=r"no credentials were found.*AWS_ACCESS_KEY_ID"):
        open_store(s3.url())


def test_keys_that_may_only_read(s3: servers.S3, monkeypatch: pytest.MonkeyPatch) -> None:
    url = s3.url()
    made, _ = create_store(url)
    made.create("packs/x", [b"data"])
    NameLog(made).append(NameTarget("redis", "7"), None, EntryDraft(Digest(bytes(32)), 1))
    made.delete("hints/names/redis/7")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", servers.READ_KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", servers.READ_SECRET)
    opened, _ = open_or_create(url)
    assert opened.get_range("packs/x", 1, 3) == b"at"
    found = NameLog(opened).newest("redis", "7")  # would write the hint
    assert found is not None
    assert found.n == 1
    for call in (
        lambda: opened.create("packs/y", [b"x"]),
        lambda: opened.replace("hints/x", b"x"),
        lambda: opened.delete("packs/x"),
        lambda: NameLog(opened).append(NameTarget("redis", "7"), found, EntryDraft(Digest(bytes(32)), 2)),
        lambda: create_store(s3.url()),
    ):
        with pytest.raises(StoreReadOnly, match=r"cannot write s3://.*AccessDenied.*may write"):
            call()
    assert open_objects(url).list("packs/") == ["packs/x"]


def test_credentials_from_aws_files(s3: servers.S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = s3.url()
    create_store(url)
    for name in s3.environment:
        monkeypatch.delenv(name)
    (tmp_path / "credentials").write_text(
        f"[default]\naws_access_key_id = no\naws_secret_access_key = no\n"
        f"[team]\naws_access_key_id = {servers.KEY}\naws_secret_access_key = {servers.SECRET}\n"
    )
    (tmp_path / "config").write_text(f"[profile team]\nregion = us-east-1\nendpoint_url = {s3.endpoint}\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_PROFILE", "team")
    open_store(url)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")  # the environment comes first
    with pytest.raises(StoreUnavailable, match="refused"):
        open_store(url)
    monkeypatch.setenv("AWS_PROFILE", "absent")
    with pytest.raises(UsageError, match="absent"):
        open_store(url)


def test_a_server_that_is_away(monkeypatch: pytest.MonkeyPatch) -> None:
    (port,) = free_ports(1)
    servers.use(servers.S3(port), monkeypatch)
    store = open_objects("s3://bucket/x")
    calls: list[Callable[[], object]] = [
        lambda: store.get("a"),
        lambda: store.get_range("a", 0, 1),
        lambda: store.list(""),
        lambda: store.exists("a"),
        lambda: store.replace("a", b""),
        lambda: store.delete("a"),
        lambda: store.create("a", []),
    ]
    for call in calls:
        with pytest.raises(StoreUnavailable, match="Connection refused") as caught:
            call()
        assert "\n" not in str(caught.value)


# --- engines that do not keep their promises


@pytest.fixture(scope="module")
def rclone(need: Callable[..., None], tmp_path_factory: pytest.TempPathFactory) -> Iterator[servers.S3]:
    need("rclone")
    with servers.rclone(tmp_path_factory.mktemp("rclone")) as server:
        yield server


def test_a_server_that_ignores_conditions_is_refused(rclone: servers.S3, monkeypatch: pytest.MonkeyPatch) -> None:
    servers.use(rclone, monkeypatch)
    url = rclone.url()
    for make in (create_store, open_or_create):
        with pytest.raises(StoreRefused, match=f"{url} let [2-8] of 8 parallel writers create one object"):
            make(url)
    # It answers before it has written, so what the probe deleted may come back.
    assert all(key.startswith("probe-") for key in open_objects(url).list(""))


def test_a_server_that_ignores_ranges_is_refused(rclone: servers.S3, monkeypatch: pytest.MonkeyPatch) -> None:
    servers.use(rclone, monkeypatch)
    store = open_objects(rclone.url())
    store.replace("a", bytes(1000))
    with pytest.raises(StoreRefused, match="200 instead of 206"):
        store.get_range("a", 10, 20)


# --- lost answers


def test_a_create_whose_answer_is_lost_leaves_the_outcome_open(relay: Relay, s3: servers.S3) -> None:
    store = open_objects(s3.url())
    relay.lose = 1
    with pytest.raises(StoreUnavailable):
        store.create("a", [b"x"])
    assert relay.lost == 1
    assert store.get("a") == b"x"
    with pytest.raises(AlreadyExists):
        store.create("a", [b"x"])


def test_a_name_is_moved_although_the_answer_is_lost(relay: Relay, s3: servers.S3) -> None:
    log = NameLog(open_objects(s3.url()))
    relay.lose = 1
    made = log.append(NameTarget("redis", "7"), None, EntryDraft(Digest(bytes(32)), 1))
    assert relay.lost == 1
    assert list(log.history("redis", "7")) == [made]


def test_a_pack_is_stored_although_answers_are_lost(relay: Relay, s3: servers.S3) -> None:
    store = open_objects(s3.url())
    objects = ObjectWriter(store)
    name = Digest(secrets.token_bytes(32))
    relay.lose = 1
    objects.put_pack(Pack(name, [b"content"], []))
    assert relay.lost == 1
    assert [store.get(key) for key in store.list("packs/")] == [b"content"]
    objects.withdraw()
    assert store.list("packs/") == []


def test_hints_are_written_although_answers_are_lost(relay: Relay, s3: servers.S3) -> None:
    store = open_objects(s3.url())
    relay.lose = 2
    store.replace("hints/a", b"1")
    assert store.get("hints/a") == b"1"
    assert relay.lost == 2


def test_listings_that_break_off_are_asked_for_again(relay: Relay, s3: servers.S3) -> None:
    store = open_objects(s3.url())
    store.create("packs/a", [b"x"])
    relay.break_off = 2
    assert store.list("") == list(store.listing("packs/")) == ["packs/a"]
    assert relay.break_off == 0
    relay.break_off = 3
    with pytest.raises(StoreUnavailable, match="response body"):
        store.list("")
