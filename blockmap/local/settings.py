"""Says what is set on this host: in the environment, in the user's file, in the host's file.

A command's option comes first, then BLOCKMAP_NAME in the environment, then NAME in ~/.config/blockmap.toml, then in
/etc/blockmap.toml, then the default. A file's table `[environment]` has variables for object stores and proxies, which hold where
the environment lacks them: sudo(8) and systemd start programs without those of a shell.

`settings_file` has what reads and checks files. It is imported where one is there: commands that are waited for ask as well.
"""

import os
from pathlib import Path
from typing import Any, Final

HOST_FILE: Final = Path("/etc/blockmap.toml")
ENGINE_VARIABLES: Final = ("AWS_", "AZURE_", "GOOGLE_")
"""How the names of variables begin that the engines of object stores read."""
NETWORK_VARIABLES: Final = (
    "SSL_CERT_FILE", "SSL_CERT_DIR", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy",
)  # fmt: skip
_TEXTS: Final = frozenset(("store", "cache", "socket", "state", "sign", "group", "listen", "metrics"))
"""Settings whose variables are taken as they are."""


def setting(name: str) -> Any:
    """Returns the value of a setting, of its kind's type, or None where it is not set; UsageError."""
    text = os.environ.get(variable_of(name))
    if text and name in _TEXTS:
        return text
    if not text and not _has_file():
        return None
    from blockmap.local.settings_file import current

    found = current().find(name)
    return None if found is None else found.value


def export_variables() -> None:
    """Puts the variables of the files into this process's environment, where it lacks them; UsageError."""
    if _has_file():
        from blockmap.local.settings_file import current

        for name, found in current().variables().items():
            os.environ.setdefault(name, str(found.value))


def user_file() -> Path:
    """Returns the file of this user's settings, which need not be there."""
    return Path(os.environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config")) / "blockmap.toml"


def variable_of(name: str) -> str:
    """Returns the environment variable of a setting."""
    return f"BLOCKMAP_{name.upper()}"


def _has_file() -> bool:
    return os.path.lexists(HOST_FILE) or os.path.lexists(user_file())
