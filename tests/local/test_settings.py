"""Settings from the environment and from files: which comes first, and what is refused."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from blockmap.errors import UsageError
from blockmap.local import settings
from blockmap.local.settings_file import KEYS, Settings

Write = Callable[[str, str], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(name: str, text: str) -> Path:
        path = tmp_path / name
        path.write_text(text)
        path.chmod(0o640)
        return path

    return write


def test_the_environment_comes_before_the_user_and_the_user_before_the_host(write: Write, tmp_path: Path) -> None:
    user = write("user", 'cache = "/user"\nstore = "s3://user"')
    host = write("host", 'cache = "/host"\nstore = "/host"\nsign = "/host/key"')
    both = Settings({"BLOCKMAP_STORE": "/environment", "BLOCKMAP_SIGN": ""}, (user, host, tmp_path / "absent"))
    found = {name: both.find(name) for name in ("store", "cache", "sign", "state")}
    assert {name: each and (each.value, each.origin) for name, each in found.items()} == {
        "store": ("/environment", "BLOCKMAP_STORE"),
        "cache": ("/user", str(user)),
        "sign": ("/host/key", str(host)),
        "state": None,
    }


def test_values_of_each_kind(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/a")
    text = """
store = "~/store"
state = "~/state"
cache_size = 5_000
trust = ["ed25519:abc", "~/key.pub"]
outage = "wait=90"
learn = false
"""
    found = Settings({"BLOCKMAP_HYDRATE": "off", "BLOCKMAP_LISTEN": ":1"}, (write("file", text),))
    values = {name: each.value for name in KEYS if (each := found.find(name)) is not None}
    assert values == {
        "store": "/home/a/store",
        "state": "/home/a/state",
        "cache_size": 5000,
        "trust": ("ed25519:abc", "/home/a/key.pub"),
        "outage": ("wait=90",),
        "learn": False,
        "hydrate": False,
        "listen": ":1",
    }
    variables = {"BLOCKMAP_TRUST": " a  b ", "BLOCKMAP_CACHE_SIZE": "7", "BLOCKMAP_CACHE": "relative"}
    others = Settings(variables, ())
    assert [getattr(others.find(name), "value", None) for name in ("trust", "cache_size", "cache")] == [
        ("a", "b"),
        7,
        "relative",
    ]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("stroe = '/a'", "'stroe' is not a setting: store, cache, "),
        ("[store]\nurl = '/a'", "store = {'url': '/a'} must be a URL, or a path from / or ~, in quotes"),
        ("store = 'images'", "store = 'images' must be a URL"),
        ("cache = 3", "cache = 3 must be a path from / or ~"),
        ("cache = ''", "cache = '' must be"),
        ("cache_size = '20 GB'", "cache_size = '20 GB' must be a number, at least 0"),
        ("cache_size = true", "cache_size = True must be a number"),
        ("cache_size = -1", "cache_size = -1 must be a number"),
        ("learn = 'no'", "learn = 'no' must be true or false"),
        ("trust = [1]", r"trust = \[1\] must be ed25519:"),
        ("store = ", "is not TOML: Invalid value"),
        ("environment = 1", "environment must be a table"),
        (
            "[environment]\nPATH = '/bin'",
            "'PATH' in .environment. is no variable that stores read: AWS_..., AZURE_..., ",
        ),
        (
            "[environment]\nAWS_SECRET_ACCESS_KEY = 12345",
            "AWS_SECRET_ACCESS_KEY in .environment. must be text in quotes$",
        ),
    ],
)
def test_what_makes_no_sense_is_an_error_with_file_and_key(write: Write, text: str, said: str) -> None:
    path = write("file", text)
    with pytest.raises(UsageError, match=f"^{path}:? .*{said}" if "TOML" not in said else f"^{path} {said}"):
        Settings({}, (path,))


@pytest.mark.parametrize(("name", "value"), [("cache_size", "much"), ("learn", "perhaps"), ("cache_size", "-1")])
def test_variables_that_make_no_sense(name: str, value: str) -> None:
    with pytest.raises(UsageError, match=f"^BLOCKMAP_{name.upper()}='{value}' in the environment must be"):
        Settings({f"BLOCKMAP_{name.upper()}": value}, ()).find(name)


def test_credentials_that_everybody_can_read_are_refused(write: Write) -> None:
    path = write("file", "[environment]\nAWS_REGION = 'a'")
    path.chmod(0o644)
    with pytest.raises(UsageError, match=f"{path} has credentials, and can be read by everybody: chmod o-r {path}"):
        Settings({}, (path,))
    path.write_text("store = '/a'")
    assert Settings({}, (path,)).find("store") is not None


def test_a_file_that_everybody_can_write_is_refused(write: Write) -> None:
    path = write("file", "store = '/a'")
    path.chmod(0o646)
    with pytest.raises(UsageError, match=f"{path} can be written by everybody: chmod o-w"):
        Settings({}, (path,))


@pytest.fixture
def nobody() -> Iterator[None]:
    os.seteuid(65534)
    yield
    os.seteuid(0)


@pytest.mark.root
def test_a_file_of_another_user_is_refused(need_root: None, write: Write) -> None:
    path = write("file", "store = '/a'")
    os.chown(path, 65534, 65534)
    with pytest.raises(UsageError, match=r"belongs to another user \(uid 65534\)"):
        Settings({}, (path,))


@pytest.mark.root
def test_a_file_that_may_not_be_read_is_left_out_and_told(need_root: None, write: Write, nobody: None) -> None:
    path = Path("/etc/shadow")
    found = Settings({}, (path,))
    assert (found.files, found.unreadable, found.find("store")) == ([], [path], None)


def test_variables_fill_what_the_environment_lacks(
    write: Write, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "blockmap.toml").write_text(
        "[environment]\nAWS_REGION = 'user'\nAWS_PROFILE = 'user'\nhttps_proxy = 'p'"
    )
    (tmp_path / "blockmap.toml").chmod(0o600)
    host = write("host", "[environment]\nAWS_REGION = 'host'\nAZURE_STORAGE_ACCOUNT_NAME = 'host'")
    monkeypatch.setattr(settings, "HOST_FILE", host)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.setenv("AWS_PROFILE", "own")
    for name in ("AWS_REGION", "https_proxy", "AZURE_STORAGE_ACCOUNT_NAME"):
        monkeypatch.setenv(name, "")  # so that it is put back
        monkeypatch.delenv(name)
    settings.export_variables()
    names = ("AWS_REGION", "AWS_PROFILE", "https_proxy", "AZURE_STORAGE_ACCOUNT_NAME")
    assert [os.environ[name] for name in names] == ["user", "own", "p", "host"]
