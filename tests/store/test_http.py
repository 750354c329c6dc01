"""A directory store behind a web server, which is nginx here."""

import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from itertools import takewhile
from pathlib import Path

import pytest

from blockmap.errors import CannotList, Corrupt, NotAStore, NotFound, StoreReadOnly, StoreRefused, StoreUnavailable
from blockmap.format.digest import Digest
from blockmap.store.directory import DirectoryStore
from blockmap.store.http import HttpStore, open_http
from blockmap.store.names import EntryDraft, NameLog, NameReader, NameTarget
from blockmap.store.opening import create_store, open_store
from tests.conftest import CHECKOUT
from tests.store import servers
from tests.store.made import open_or_create
from tests.store.test_contract import MANY, at_once
from tests.waiting import free_ports

REPO, TAG = "registry.example.com:5000/team/redis", "7.2"
NAME = NameTarget(REPO, TAG)


@pytest.fixture
def directory(tmp_path: Path) -> DirectoryStore:
    return DirectoryStore(tmp_path / "served")


@pytest.fixture
def serve(need: Callable[..., None], tmp_path: Path) -> Iterator[Callable[..., str]]:
    """serve(more) starts a web server over the directory; gives its URL."""
    need("nginx")
    with ExitStack() as stack:

        def start(more: str = "") -> str:
            (tmp_path / "served").mkdir(exist_ok=True)
            where = tmp_path / f"nginx{len(list(tmp_path.iterdir()))}"
            where.mkdir()
            return stack.enter_context(servers.nginx(where, tmp_path / "served", more))

        yield start


@pytest.fixture
def web(serve: Callable[..., str]) -> HttpStore:
    return open_http(serve())


def test_objects_are_read(web: HttpStore, directory: DirectoryStore) -> None:
    data = bytes(range(256)) * 16
    directory.create("packs/ab/one", [data])
    directory.create("empty", [])
    assert web.get("packs/ab/one") == data
    assert type(web.get("packs/ab/one")) is bytes
    assert web.get("empty") == b""
    assert web.exists("packs/ab/one")
    for start, end in [(0, 1), (0, 4096), (1, 2), (999, 1001), (4095, 4096), (100, 100), (4096, 4096)]:
        assert web.get_range("packs/ab/one", start, end) == data[start:end]


@pytest.mark.parametrize("key", ["absent", "a/absent", "x/y/z"])
def test_what_is_absent_is_not_found(web: HttpStore, directory: DirectoryStore, key: str) -> None:
    directory.create("a/b", [b"data"])
    for call in (lambda: web.get(key), lambda: web.get_range(key, 0, 1), lambda: web.get_range(key, 0, 0)):
        with pytest.raises(NotFound, match=key):
            call()
    assert not web.exists(key)


@pytest.mark.parametrize(("start", "end"), [(0, 11), (9, 11), (10, 11), (11, 12), (100, 200), (11, 11)])
def test_a_range_past_the_end_is_corrupt(web: HttpStore, directory: DirectoryStore, start: int, end: int) -> None:
    directory.create("a", [b"0123456789"])
    with pytest.raises(Corrupt, match="a ends at byte 10"):
        web.get_range("a", start, end)


def test_what_is_longer_than_its_reader_takes_is_not_read(web: HttpStore, directory: DirectoryStore) -> None:
    directory.create("a", [bytes(3000)])
    assert web.get("a", 3000) == bytes(3000)
    with pytest.raises(Corrupt, match="/a has 3,000 bytes where at most 2,999 are expected"):
        web.get("a", 2999)
    with pytest.raises(Corrupt, match="a ends at byte 3000"):
        web.get_range("a", 0, 1 << 45)


def test_what_is_written_is_seen_at_once(web: HttpStore, directory: DirectoryStore) -> None:
    for number in range(3):
        assert not web.exists(f"names/a/b/{number}")
        directory.create(f"names/a/b/{number}", [b"x"])
        assert web.exists(f"names/a/b/{number}")
        directory.replace("hints/a", b"%d" % number)
        assert web.get("hints/a") == b"%d" % number


def test_readers_in_many_threads(web: HttpStore, directory: DirectoryStore) -> None:
    for number in range(50):
        directory.create(f"packs/{number}", [number.to_bytes(2, "big") * 2048])

    def read(seed: int) -> None:
        for step in range(200):
            number, at = (seed * 37 + step * 61) % 50, step * 2
            assert web.get_range(f"packs/{number}", at, at + 2) == number.to_bytes(2, "big")

    assert at_once([lambda seed=seed: read(seed) for seed in range(MANY)]) == [None] * MANY


def test_a_store_behind_a_web_server(serve: Callable[..., str], directory: DirectoryStore) -> None:
    _, form = create_store(directory.url)
    made = [NameLog(directory).set(NAME, EntryDraft(Digest(bytes([n]) * 32), 1)) for n in range(5)]
    opened, again = open_store(serve() + "/")
    assert again == form
    reader = NameReader(opened)
    assert reader.newest(REPO, TAG) == made[-1]
    directory.delete(directory.list("hints/")[0])
    assert reader.newest(REPO, TAG) == made[-1]
    assert list(reader.history(REPO, TAG)) == made[::-1]
    assert reader.newest(REPO, "absent") is None


def test_it_cannot_be_listed(web: HttpStore) -> None:
    with pytest.raises(CannotList, match=web.url):
        web.list("")


@pytest.mark.parametrize("make", [create_store, open_or_create])
def test_it_cannot_be_written(make: Callable[[str], object]) -> None:
    with pytest.raises(StoreReadOnly, match="x is read through a web server"):
        make("http://127.0.0.1:1/x")


def test_what_is_no_store(serve: Callable[..., str]) -> None:
    with pytest.raises(NotAStore, match="is not a blockmap store"):
        open_store(f"{serve()}/below")


def test_a_server_without_ranges(serve: Callable[..., str], directory: DirectoryStore) -> None:
    directory.create("a", [bytes(1000)])
    with pytest.raises(StoreRefused, match="200 instead of 206"):
        open_http(serve("max_ranges 0;")).get_range("a", 10, 20)


@pytest.mark.parametrize(("more", "says"), [("deny all;", "403 Forbidden"), ("return 401;", "401 Unauthorized")])
def test_a_server_that_refuses(serve: Callable[..., str], more: str, says: str) -> None:
    web = open_http(serve(more))
    for call in (lambda: web.get("format"), lambda: web.exists("format"), lambda: web.get_range("format", 0, 1)):
        with pytest.raises(StoreUnavailable, match=says):
            call()


def test_a_server_that_fails_is_asked_again_and_said(serve: Callable[..., str]) -> None:
    with pytest.raises(StoreUnavailable, match="503 Service") as caught:
        open_store(serve("return 503;"))
    assert "\n" not in str(caught.value)


def certify(where: Path) -> None:
    """An authority of one's own, authority.pem, and a certificate for localhost."""

    def openssl(*words: str) -> None:
        subprocess.run(["openssl", *words], cwd=where, check=True, capture_output=True)

    key = ("-newkey", "rsa:2048", "-nodes", "-keyout")
    openssl("req", "-x509", *key, "authority.key", "-out", "authority.pem", "-subj", "/CN=authority")
    openssl("req", *key, "key.pem", "-out", "request.pem", "-subj", "/CN=localhost")
    (where / "names").write_text("subjectAltName=DNS:localhost")
    signer = ("-CA", "authority.pem", "-CAkey", "authority.key", "-CAcreateserial")
    openssl("x509", "-req", "-in", "request.pem", *signer, "-out", "cert.pem", "-extfile", "names")


def test_encrypted_connections(
    need: Callable[..., None], directory: DirectoryStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    need("nginx", "openssl")
    directory.create("a", [b"0123456789"])
    (tmp_path / "nginx").mkdir()
    (tmp_path / "other").mkdir()
    for folder in ("nginx", "other"):
        certify(tmp_path / folder)
    with servers.nginx(tmp_path / "nginx", tmp_path / "served", certified=tmp_path / "nginx") as url:
        monkeypatch.delenv("SSL_CERT_FILE", raising=False)
        with pytest.raises(StoreUnavailable, match="certificate is not trusted: SSL_CERT_FILE can"):
            open_http(url).get("a")
        for named, said in (("absent", "cannot be read: No such file"), ("other/authority.pem", "has signed it")):
            monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / named))
            with pytest.raises(StoreUnavailable, match=f"not trusted: .*{tmp_path / named}.*{said}"):
                open_http(url).get("a")
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "nginx/authority.pem"))
        assert open_http(url).get_range("a", 2, 5) == b"234"


# --- the README's configurations


def recommended(beginning: str) -> str:
    """The block of the README's nginx configuration that begins so, without what is shell."""
    lines = (CHECKOUT / "README.rst").read_text().splitlines()
    first = next(number for number, line in enumerate(lines) if line.startswith(f"    {beginning}"))
    return "\n".join(takewhile(lambda line: line.startswith("    ") and "$ " not in line[:6], lines[first:]))


def test_the_recommended_server(need: Callable[..., None], directory: DirectoryStore, tmp_path: Path) -> None:
    need("nginx")
    directory.create("packs/a", [b"0123456789"])
    (port,) = free_ports(1)
    text = recommended("server { listen").replace("8000", f"127.0.0.1:{port}").replace("/srv/blockmap", directory.url)
    (tmp_path / "nginx").mkdir()
    with servers.configured(tmp_path / "nginx", port, text):
        assert open_http(f"http://127.0.0.1:{port}").get_range("packs/a", 2, 5) == b"234"


def test_the_recommended_cache(serve: Callable[..., str], directory: DirectoryStore, tmp_path: Path) -> None:
    """What never changes is kept, what changes is not, and neither is that something is missing."""
    big = bytes(range(256)) * (10 << 10)
    directory.create("packs/aa/big", [big])
    log = NameLog(directory)
    first = log.append(NAME, None, EntryDraft(Digest(bytes(32)), 1))
    (port,) = free_ports(1)
    text = recommended("proxy_cache_path").replace("8000", f"127.0.0.1:{port}").replace("http://origin", serve())
    (tmp_path / "cache").mkdir()
    with servers.configured(tmp_path / "cache", port, text.replace("/var/cache/store", f"{tmp_path}/cache/kept")):
        web = open_http(f"http://127.0.0.1:{port}")
        reader = NameReader(web)
        assert reader.newest(REPO, TAG) == first
        second = log.append(NAME, first, EntryDraft(Digest(bytes(32)), 2))
        assert reader.newest(REPO, TAG) == second
        for _ in range(2):
            assert web.get("packs/aa/big") == big
            for start, end in [(0, 1), (1_000_000, 1_100_000), (len(big) - 10, len(big))]:
                assert web.get_range("packs/aa/big", start, end) == big[start:end]
            with pytest.raises(Corrupt):
                web.get_range("packs/aa/big", len(big) - 10, len(big) + 1)
            assert web.exists("packs/aa/big")
        assert not web.exists("packs/aa/late")
        with pytest.raises(NotFound):
            web.get_range("packs/aa/late", 0, 1)
        directory.create("packs/aa/late", [b"late"])
        assert web.exists("packs/aa/late")
        assert web.get_range("packs/aa/late", 0, 4) == b"late"
        directory.delete("packs/aa/big")
        assert web.get("packs/aa/big") == big, "it is read from the cache"
