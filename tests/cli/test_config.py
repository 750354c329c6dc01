"""Settings as commands take them, and `blockmap config`."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from blockmap.host.serve import nbdkit

BLOCKMAP = (str(Path(sys.executable).with_name("blockmap")),)
Blockmap = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def blockmap(tmp_path: Path) -> Blockmap:
    """Runs a command with an environment of its own, and the user's file below tmp_path/config."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("BLOCKMAP_", "AWS_", "SSL_"))}
    (tmp_path / "config").mkdir()

    def run(*words: str | Path, by: tuple[str, ...] = (), **more: str) -> subprocess.CompletedProcess[str]:
        environment = {**kept, "XDG_CONFIG_HOME": str(tmp_path / "config"), **more}
        session = {"BLOCKMAP_TEST_SESSION": os.environ["BLOCKMAP_TEST_SESSION"]}
        command = [*by, *BLOCKMAP, *map(str, words)]
        return subprocess.run(command, env={**environment, **session}, capture_output=True, text=True)

    return run


@pytest.fixture
def file(tmp_path: Path, blockmap: Blockmap) -> Path:
    return tmp_path / "config" / "blockmap.toml"


def settings(blockmap: Blockmap, **more: str) -> dict[str, dict[str, Any]]:
    done = blockmap("config", "--json", **more)
    assert done.returncode == 0, done.stderr
    found: dict[str, dict[str, Any]] = json.loads(done.stdout)
    return found


def test_an_option_comes_before_the_environment_and_that_before_the_file(blockmap: Blockmap, file: Path) -> None:
    file.write_text('socket = "/from/file"')
    assert "no blockmap server answers at /from/file" in blockmap("status").stderr
    there = {"BLOCKMAP_SOCKET": "/from/environment"}
    assert "no blockmap server answers at /from/environment" in blockmap("status", **there).stderr
    assert (
        "no blockmap server answers at /from/option" in blockmap("status", "--socket", "/from/option", **there).stderr
    )


def test_the_store_and_keys_come_from_the_file(blockmap: Blockmap, file: Path, tmp_path: Path) -> None:
    keys = [tmp_path / name for name in ("one", "two")]
    for key in keys:
        assert blockmap("key", "create", key).returncode == 0
    file.write_text(
        f'store = "{tmp_path}/store"\nsign = "{keys[0]}"\ntrust = ["{keys[0]}.pub", "{keys[1]}.pub"]\ncache = "{tmp_path}/cache"'
    )
    assert blockmap("create").returncode == 0
    assert (tmp_path / "store" / "format").exists()
    rows = json.loads(blockmap("key", "list", "--json").stdout)
    assert [(row["signs"], row["trusted"]) for row in rows] == [(True, True), (False, True)]
    rows = json.loads(blockmap("key", "list", "--json", "--trust", f"{keys[1]}.pub").stdout)
    assert [(row["signs"], row["trusted"]) for row in rows] == [(True, False), (False, True)]


def test_config_says_what_holds_and_where_it_comes_from(blockmap: Blockmap, file: Path) -> None:
    file.write_text(
        'store = "/srv/images"\nlearn = false\n[environment]\nAWS_SECRET_ACCESS_KEY = "hush"\nAWS_REGION = "a"\n'
    )
    file.chmod(0o600)
    found = settings(blockmap, BLOCKMAP_TRUST="ed25519:a b", AWS_REGION="b")
    assert found["settings"]["store"] == {"value": "/srv/images", "from": str(file)}
    assert found["settings"]["learn"] == {"value": False, "from": str(file)}
    assert found["settings"]["hydrate"] == {"value": True, "from": "default"}
    assert found["settings"]["trust"] == {"value": ["ed25519:a", "b"], "from": "BLOCKMAP_TRUST"}
    assert found["settings"]["cache"]["from"] == "default"
    assert found["environment"] == {"AWS_REGION": "environment", "AWS_SECRET_ACCESS_KEY": str(file)}
    assert found["files"][str(file)] == "read"
    assert Path(str(found["plugin"])) == nbdkit.plugin_script()
    text = blockmap("config").stdout
    assert "store                  /srv/images" in text
    assert "hush" not in text
    assert f"file      {file}: read" in text


def test_an_error_in_a_file_ends_commands_with_its_name_and_leaves_help(blockmap: Blockmap, file: Path) -> None:
    file.write_text("cache-size = 1")
    for command in ("config", "status", "serve"):
        done = blockmap(command)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.startswith(f"blockmap: {file}: 'cache-size' is not a setting: store, ")
    assert blockmap("--help").returncode == 0


def test_a_store_that_is_not_set_is_told_with_all_ways_to_set_it(blockmap: Blockmap) -> None:
    done = blockmap("images")
    assert done.returncode == 2
    assert (
        "add --store URL (a directory will do), set BLOCKMAP_STORE, or write store = 'URL' in /etc/blockmap.toml"
        in done.stderr
    )


@pytest.mark.root
def test_the_host_s_file_is_for_all_also_where_the_environment_is_lost(
    need_root: None, blockmap: Blockmap, tmp_path: Path
) -> None:
    """As with sudo, which keeps no variable; /etc is another one for that time."""
    etc = tmp_path / "etc"
    etc.mkdir()
    (etc / "blockmap.toml").write_text(f'store = "{tmp_path}/store"\n[environment]\nAWS_REGION = "a"')
    (etc / "blockmap.toml").chmod(0o640)
    by = ("unshare", "--mount", "sh", "-c", f'mount --bind {etc} /etc && exec env -i PATH="$PATH" "$@"', "sh")
    done = blockmap("create", by=by)
    assert done.returncode == 0, done.stderr
    done = blockmap("config", "--json", by=by)
    found = json.loads(done.stdout)
    assert found["settings"]["store"] == {"value": f"{tmp_path}/store", "from": "/etc/blockmap.toml"}
    assert found["environment"] == {"AWS_REGION": "/etc/blockmap.toml"}
    assert blockmap("images", by=by).returncode == 0


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_names_of_images_complete(blockmap: Blockmap, file: Path, tmp_path: Path, shell: str) -> None:
    file.write_text(f'store = "{tmp_path}/store"\nsocket = "{tmp_path}/none.sock"')
    assert blockmap("create").returncode == 0
    (tmp_path / "image").mkdir()
    for name in ("redis:7", "redis:8", "postgres:16"):
        assert blockmap("import", tmp_path / "image", name).returncode == 0

    def complete(*words: str) -> list[str]:
        at = words[-1] if shell == "fish" else str(len(words))
        line = {"COMP_WORDS": " ".join(["blockmap", *words]), "COMP_CWORD": at}
        done = blockmap(_BLOCKMAP_COMPLETE=f"{shell}_complete", **line)
        assert done.stderr == ""
        return [word for line in done.stdout.splitlines() for word in line.replace(",", " ").split()]

    assert {"redis:7", "redis:8"} <= set(complete("run", "red"))
    assert "postgres:16" not in complete("run", "red")
    assert "postgres:16" in complete("profile", "build", "p")
    assert "redis:7" not in complete("trace", "show", "r")
    (tmp_path / "store" / "format").unlink()
    file.write_text("store = 1")
    assert "redis:7" not in complete("run", "red")


def test_bash_completes_a_name_with_its_colon(blockmap: Blockmap, file: Path, tmp_path: Path) -> None:
    """In bash itself, where a colon ends a word: what it is told is the rest of the name."""
    file.write_text(f'store = "{tmp_path}/store"\nsocket = "{tmp_path}/none.sock"')
    assert blockmap("create").returncode == 0
    (tmp_path / "image").mkdir()
    for name in ("redis:7.4", "redis:7.2"):
        assert blockmap("import", tmp_path / "image", name).returncode == 0
    functions = Path("/usr/share/bash-completion/bash_completion")
    if not functions.exists():
        pytest.skip("bash-completion is not installed: apt-get install bash-completion")
    script = f"""
source {functions}
eval "$(_BLOCKMAP_COMPLETE=bash_source blockmap)"
COMP_WORDBREAKS=$' \\t\\n"\\'><=;|&(:'
COMP_WORDS=(blockmap run redis : 7.); COMP_CWORD=4; COMP_LINE="blockmap run redis:7."; COMP_POINT=${{#COMP_LINE}}; COMP_TYPE=9
_blockmap_completion blockmap redis:7. run 2>/dev/null
printf '%s\\n' "${{COMPREPLY[@]}}"
"""
    environment = {**os.environ, "XDG_CONFIG_HOME": str(file.parent)}
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, env=environment, timeout=60)
    assert sorted(done.stdout.split()) == ["7.2", "7.4"]
