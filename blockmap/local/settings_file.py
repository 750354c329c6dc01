"""Reads files of settings, and checks them.

A file that others could have written is refused, and so is one with credentials that others can read, as ssh(1) does.
"""

import os
import stat
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from blockmap.errors import UsageError
from blockmap.local import settings
from blockmap.local.settings import ENGINE_VARIABLES, NETWORK_VARIABLES, variable_of

_ENVIRONMENT = "environment"
_WORDS: Final = {
    "on": True,
    "yes": True,
    "true": True,
    "1": True,
    "off": False,
    "no": False,
    "false": False,
    "0": False,
}

Value = str | int | bool | tuple[str, ...]


@dataclass(frozen=True, slots=True)
class SettingKind:
    """What the values of a setting are, in a file and in the environment."""

    says: str
    """What a value must be."""
    from_file: Callable[[object], Value]
    """Returns the value of TOML's; ValueError."""
    from_text: Callable[[str], Value]
    """Returns the value of an environment variable; ValueError."""


@dataclass(frozen=True, slots=True)
class Key:
    """A setting that there is."""

    kind: SettingKind
    meaning: str
    default: str
    """What holds where nothing is set, for people."""


@dataclass(frozen=True, slots=True)
class Setting:
    """A value, and where it comes from."""

    value: Value
    origin: str
    """The path of a file, or the name of an environment variable."""


@dataclass(frozen=True, slots=True)
class SettingsFile:
    """What a file sets."""

    path: Path
    values: Mapping[str, Value]
    variables: Mapping[str, str]
    """Its table `[environment]`."""


class Settings:
    """What the environment and files set, the first file before the others; they are read once, when this is made."""

    def __init__(self, environment: Mapping[str, str], paths: Sequence[Path]) -> None:
        """Raises UsageError where a file has an error, or must not be used."""
        self._environment = environment
        self.files: list[SettingsFile] = []
        self.unreadable: list[Path] = []
        """Files that this user may not read."""
        for path in paths:
            try:
                file = _read_file(path)
            except PermissionError:
                self.unreadable.append(path)
                continue
            if file is not None:
                self.files.append(file)

    def find(self, name: str) -> Setting | None:
        """Returns what is set, or None; UsageError where an environment variable makes no sense."""
        variable = variable_of(name)
        if text := self._environment.get(variable):
            kind = KEYS[name].kind
            try:
                return Setting(kind.from_text(text), variable)
            except ValueError:
                raise UsageError(f"{variable}={text!r} in the environment must be {kind.says}") from None
        for file in self.files:
            if name in file.values:
                return Setting(file.values[name], str(file.path))
        return None

    def variables(self) -> dict[str, Setting]:
        """Returns the environment variables that the files set, whether or not the environment has them."""
        found: dict[str, Setting] = {}
        for file in self.files:
            for name, value in file.variables.items():
                found.setdefault(name, Setting(value, str(file.path)))
        return found


def current() -> Settings:
    """Returns what is set for this process; UsageError."""
    return Settings(os.environ, (settings.user_file(), settings.HOST_FILE))


def _read_file(path: Path) -> SettingsFile | None:
    """Returns what a file sets, None where there is none; PermissionError where this user may not read it, UsageError."""
    try:
        with open(path, "rb") as file:
            status = os.fstat(file.fileno())
            text = file.read()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except PermissionError:
        raise
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from error
    if status.st_uid not in (0, os.geteuid()):
        raise UsageError(
            f"{path} belongs to another user (uid {status.st_uid}), who must not decide what you do: chown it"
        )
    if status.st_mode & stat.S_IWOTH:
        raise UsageError(f"{path} can be written by everybody: chmod o-w {path}")
    try:
        found = tomllib.loads(text.decode())
    except (ValueError, RecursionError) as error:  # what tomllib and decoding raise
        raise UsageError(f"{path} is not TOML: {error}") from None
    variables = _parse_variables(path, found.pop(_ENVIRONMENT, {}))
    if variables and status.st_mode & stat.S_IROTH:
        raise UsageError(f"{path} has credentials, and can be read by everybody: chmod o-r {path}")
    return SettingsFile(path, {name: _parse(path, name, value) for name, value in found.items()}, variables)


def _parse(path: Path, name: str, value: object) -> Value:
    if name not in KEYS:
        raise UsageError(f"{path}: {name!r} is not a setting: {', '.join(KEYS)} and the table [{_ENVIRONMENT}] are")
    kind = KEYS[name].kind
    try:
        return kind.from_file(value)
    except ValueError:
        raise UsageError(f"{path}: {name} = {value!r} must be {kind.says}") from None


def _parse_variables(path: Path, table: object) -> dict[str, str]:
    if not isinstance(table, dict):
        raise UsageError(f"{path}: {_ENVIRONMENT} must be a table: [{_ENVIRONMENT}], then lines NAME = 'VALUE'")
    for name, value in table.items():
        if not name.startswith(ENGINE_VARIABLES) and name not in NETWORK_VARIABLES:
            raise UsageError(
                f"{path}: {name!r} in [{_ENVIRONMENT}] is no variable that stores read: {'..., '.join(ENGINE_VARIABLES)}..., "
                f"{', '.join(NETWORK_VARIABLES)} are"
            )
        if not isinstance(value, str) or "\0" in value:
            raise UsageError(
                f"{path}: {name} in [{_ENVIRONMENT}] must be text in quotes"
            )  # without the value, a secret
    return dict(table)


def _text(value: object) -> str:
    if not isinstance(value, str) or not value or "\0" in value:
        raise ValueError
    return value


def _path(value: object) -> str:
    path = os.path.expanduser(_text(value))
    if not os.path.isabs(path):
        raise ValueError
    return path


def _store(value: object) -> str:
    return _text(value) if "://" in _text(value) else _path(value)


def _key(value: object) -> str:
    return _text(value) if _text(value).startswith("ed25519:") else _path(value)


def _number(value: object) -> int:
    if type(value) is not int or value < 0:
        raise ValueError
    return value


def _switch(value: object) -> bool:
    if not isinstance(value, bool):
        raise ValueError
    return value


def _list(parse: Callable[[object], str]) -> Callable[[object], tuple[str, ...]]:
    return lambda value: tuple(map(parse, value if isinstance(value, list) else [value]))


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


def _is_on(text: str) -> bool:
    try:
        return _WORDS[text.lower()]
    except KeyError:
        raise ValueError from None


_TEXT: Final = SettingKind("text in quotes", _text, str)
_PATH: Final = SettingKind("a path from / or ~, in quotes", _path, str)
_STORE: Final = SettingKind("a URL, or a path from / or ~, in quotes", _store, str)
_NUMBER: Final = SettingKind("a number, at least 0", _number, lambda text: _number(int(text)))
_SWITCH: Final = SettingKind("true or false", _switch, _is_on)
_TEXTS: Final = SettingKind("text in quotes, or a list of such", _list(_text), _words)
_KEYS: Final = SettingKind("ed25519:..., a path from / or ~, or a list of such, in quotes", _list(_key), _words)

KEYS: Final[Mapping[str, Key]] = {
    "store": Key(_STORE, "the store", "none"),
    "cache": Key(_PATH, "the folder of the cache", "/var/cache/blockmap, or ~/.cache/blockmap"),
    "cache_size": Key(_NUMBER, "the most bytes of the cache", "20 GB, or a quarter of the free disk"),
    "socket": Key(_PATH, "the server's Unix socket", "/run/blockmap/nbd.sock, or below XDG_RUNTIME_DIR"),
    "state": Key(_PATH, "the folder of attachments and clones", "/var/lib/blockmap, or ~/.local/state/blockmap"),
    "trust": Key(_KEYS, "public keys, one of which must have signed what is opened, or files of them", "none"),
    "sign": Key(_PATH, "the file of the private key that signs what is written", "none"),
    "group": Key(_TEXT, "the group that may use status, images and top", "none"),
    "listen": Key(_TEXT, "HOST:PORT where the server serves on TCP as well", "none"),
    "metrics": Key(_TEXT, "PATH or HOST:PORT where the server answers Prometheus", "none"),
    "outage": Key(_TEXTS, "[EXPORT=]wait=SECONDS or [EXPORT=]fail: what reads do while the store is away", "wait=60"),
    "learn": Key(_SWITCH, "publish what starts read", "true"),
    "hydrate": Key(_SWITCH, "bring the rest of an image while its start goes on missing", "true"),
}
"""Settings by name, which is that of the option as well."""
