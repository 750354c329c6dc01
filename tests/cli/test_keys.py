"""`blockmap key`, and what `import`, `images` and `show` say of signatures."""

import json
import re
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from blockmap.cli.main import program
from blockmap.errors import BlockmapError, NotFound, Untrusted, UsageError
from blockmap.format import keys
from blockmap.store.directory import DirectoryStore
from blockmap.store.opening import create_store
from tests.image.builder import listing
from tests.image.layouts import archive, file, layout
from tests.store.signers import changed, forge

Blockmap = Callable[..., Result]


@pytest.fixture
def blockmap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Blockmap:
    """Runs commands on a store of their own, in this process; raises their errors."""
    create_store(str(tmp_path / "store"))
    environment = {"BLOCKMAP_STORE": str(tmp_path / "store"), "BLOCKMAP_CACHE": str(tmp_path / "cache")}
    for name in ("SIGN", "TRUST"):
        monkeypatch.delenv(f"BLOCKMAP_{name}", raising=False)

    def run(*arguments: object, **more: str) -> Result:
        done = CliRunner().invoke(program, list(map(str, arguments)), env={**environment, **more})
        if isinstance(done.exception, BlockmapError):
            raise done.exception
        assert done.exit_code == 0, done.output
        return done

    return run


@pytest.fixture
def image(tmp_path: Path) -> str:
    return f"oci:{layout(tmp_path / 'image', [archive([file('a', b'x')])])}"


def listed(blockmap: Blockmap, *arguments: object, **more: str) -> list[tuple[str, int, str | None, bool]]:
    rows = json.loads(blockmap("images", "--json", *arguments, **more).stdout)
    return [(row["name"], row["entry"], row["signed_with"], row["refused"] is not None) for row in rows]


def test_a_key_is_made_shown_and_listed(blockmap: Blockmap, tmp_path: Path) -> None:
    made = blockmap("key", "create", tmp_path / "key").stdout
    assert stat.S_IMODE((tmp_path / "key").stat().st_mode) == 0o600
    public = (tmp_path / "key.pub").read_text().strip()
    found = re.search("^key       ([0-9a-f]{16})$", made, re.MULTILINE)
    assert found is not None
    assert public in made
    for name in ("key", "key.pub"):
        assert blockmap("key", "show", tmp_path / name).stdout == f"{public}  # {found[1]}\n"
    assert "PRIVATE" not in made
    with pytest.raises(UsageError, match=r"key\.pub exists: name another file"):
        blockmap("key", "create", tmp_path / "key")

    assert "no key is in use" in blockmap("key", "list").stdout
    blockmap("key", "create", tmp_path / "other")
    used = {"BLOCKMAP_SIGN": str(tmp_path / "key"), "BLOCKMAP_TRUST": f"{public} {tmp_path}/other.pub"}
    rows = json.loads(blockmap("key", "list", "--json", **used).stdout)
    assert [(row["signs"], row["trusted"]) for row in rows] == [(True, True), (False, True)]
    assert rows[0]["key"] == found[1]
    shown = blockmap("key", "list", **used).stdout
    assert [line.split()[0] for line in shown.splitlines()[1:]] == [row["key"] for row in rows]


def test_images_say_which_key_signed_them(blockmap: Blockmap, image: str, tmp_path: Path) -> None:
    for name in ("ours", "theirs"):
        blockmap("key", "create", tmp_path / name)
    ours, theirs = (
        blockmap("key", "show", tmp_path / name).stdout.split("# ")[1].strip() for name in ("ours", "theirs")
    )
    blockmap("import", image, "a:plain", "--quiet")
    assert "SIGNED" not in blockmap("images").stdout
    blockmap("import", image, "a:ours", "--quiet", "--sign", tmp_path / "ours")
    blockmap("import", image, "a:theirs", "--quiet", BLOCKMAP_SIGN=str(tmp_path / "theirs"))
    plain = [("a:ours", 1, ours, False), ("a:plain", 1, None, False), ("a:theirs", 1, theirs, False)]
    assert listed(blockmap) == plain
    assert re.search(f"^a:ours .* {ours}$", blockmap("images").stdout, re.MULTILINE)
    trust = ("--trust", tmp_path / "ours.pub")
    refused = [("a:ours", 1, ours, False), ("a:plain", 1, None, True), ("a:theirs", 1, theirs, True)]
    assert listed(blockmap, *trust) == refused
    rows = [line.rsplit("  ", 1)[1] for line in map(str.rstrip, blockmap("images", *trust).stdout.splitlines())]
    assert rows == ["SIGNED WITH", ours, "-, refused", f"{theirs}, refused"]
    assert listed(blockmap, *trust, "--trust", tmp_path / "theirs.pub")[2] == ("a:theirs", 1, theirs, False)

    assert f"signed      with key {ours}, not checked without --trust\n" in blockmap("show", "a:ours").stdout
    assert f"signed      with key {ours}\n" in blockmap("show", "a:ours", *trust).stdout
    for name in ("a:plain", "a:theirs"):
        with pytest.raises(Untrusted, match=f"entry 1 of {name} is .*signed"):
            blockmap("show", name, *trust)
        with pytest.raises(Untrusted, match=f"entry 1 of {name} is .*signed"):
            blockmap("verify", name, BLOCKMAP_TRUST=str(tmp_path / "ours.pub"))
    blockmap("verify", "a:ours", *trust)


def test_a_signature_that_was_tampered_with_is_listed_as_refused(
    blockmap: Blockmap, image: str, tmp_path: Path
) -> None:
    blockmap("key", "create", tmp_path / "key")
    blockmap("import", image, "a:1", "--quiet", "--sign", tmp_path / "key")
    (before,) = listed(blockmap, "--trust", tmp_path / "key.pub")
    assert before[3] is False
    store = DirectoryStore(tmp_path / "store")
    forge(store, keys.entry("a", "1", 1), lambda lines: [changed(lines[0], message="x"), lines[1]])
    (after,) = listed(blockmap, "--trust", tmp_path / "key.pub")
    assert after == (*before[:3], True)


def test_an_image_is_signed_by_importing_it_again(blockmap: Blockmap, image: str, tmp_path: Path) -> None:
    """Once, whoever else imports it; a version keeps its digest."""
    for name in ("ours", "theirs"):
        blockmap("key", "create", tmp_path / name)

    def imported(*arguments: object) -> tuple[str, int]:
        summary = json.loads(blockmap("import", image, "a:1", "--json", *arguments).stdout)
        return summary["digest"].removeprefix("sha256:"), summary["entry"]

    digest, first = imported()
    assert first == 1
    assert imported("--sign", tmp_path / "ours") == (digest, 2)
    assert imported("--sign", tmp_path / "ours") == imported() == (digest, 0)
    assert imported("--sign", tmp_path / "theirs") == (digest, 3)
    store = DirectoryStore(tmp_path / "store")
    assert len(store.list(f"versions/{digest}/")) == 3
    for name in ("ours", "theirs"):
        blockmap("show", f"a@sha256:{digest}", "--trust", tmp_path / f"{name}.pub")
    blockmap("verify", "a:1", "--trust", tmp_path / "theirs.pub")
    assert imported("--sign", tmp_path / "ours") == (digest, 4)
    assert len(store.list(f"versions/{digest}/")) == 3, "the record that we signed is taken again"


def test_two_who_sign_can_import_one_image_in_turn(blockmap: Blockmap, image: str, tmp_path: Path) -> None:
    for name in ("ours", "theirs"):
        blockmap("key", "create", tmp_path / name)
    for n in range(1, 11):
        name = ("ours", "theirs")[n % 2]
        summary = json.loads(blockmap("import", image, "a:1", "--json", "--sign", tmp_path / name).stdout)
        assert summary["entry"] == n
        blockmap("show", "a:1", "--trust", tmp_path / f"{name}.pub")
    assert len(DirectoryStore(tmp_path / "store").list("versions/")) == 2


def test_tags_and_removals_are_signed(blockmap: Blockmap, image: str, tmp_path: Path) -> None:
    blockmap("key", "create", tmp_path / "key")
    sign, trust = ("--sign", tmp_path / "key"), ("--trust", tmp_path / "key.pub")
    blockmap("import", image, "a:1", "--quiet")
    for tag in range(2, 12):
        blockmap("tag", "a:1", f"a:{tag}", *sign)
        blockmap("show", f"a:{tag}", *trust)
    store = DirectoryStore(tmp_path / "store")
    assert len(store.list("versions/")) == 2, "one record that we signed serves all"
    with pytest.raises(Untrusted, match=r"entry 1 of a:1 is not signed"):
        blockmap("tag", "a:1", "a:12", *sign, *trust)
    blockmap("tag", "a:2", "a:12", *sign, *trust)
    assert len(store.list("versions/")) == 2
    blockmap("tag", "a:2", "a:1")
    for export, opens in (("a:1", False), ("a:1@{1}", False), ("a:2@{1}", True)):
        if opens:
            blockmap("diff", export, "a:2", *trust)
        else:
            with pytest.raises(Untrusted, match=r"entry [12] of a:1 is not signed"):
                blockmap("diff", export, "a:2", *trust)

    blockmap("untag", "a:2")
    blockmap("show", "a:2", *trust)
    blockmap("show", "a:2@{0 seconds ago}", *trust)
    blockmap("untag", "a:2", *sign)
    with pytest.raises(NotFound, match="there is no image a:2"):
        blockmap("show", "a:2", *trust)
    with pytest.raises(NotFound, match="there is no image a:2"):
        blockmap("untag", "a:2", *sign)
    blockmap("show", "a:2@{1}", *trust)
    rows = json.loads(blockmap("log", "a:2", "--json").stdout)
    assert [row["signed_with"] is not None for row in rows] == [True, False, True]
    assert "SIGNED WITH" in blockmap("log", "a:2").stdout
    assert "SIGNED WITH" not in blockmap("log", "a:1").stdout


def test_an_import_with_a_key_that_is_none_stores_nothing(blockmap: Blockmap, image: str, tmp_path: Path) -> None:
    (tmp_path / "key").write_text("no key\n")
    (tmp_path / "key").chmod(0o600)
    with pytest.raises(UsageError, match="is not a key to sign with"):
        blockmap("import", image, "a:1", "--sign", tmp_path / "key")
    assert set(listing(tmp_path / "store")) == {keys.FORMAT}


def test_errors_are_one_line_and_an_exit_code(tmp_path: Path) -> None:
    for arguments, code, said in (
        (("key", "create", "/proc/no/key"), 1, "blockmap: "),
        (("key", "show", tmp_path / "absent"), 2, "absent cannot be read: No such file or directory"),
        (("images", "--store", tmp_path, "--trust", "ed25519:x"), 2, "'ed25519:x' is not a public key"),
        (("images", "--store", tmp_path, "--trust", tmp_path / "absent"), 2, "absent cannot be read"),
        (("serve", "--store", tmp_path, "--trust", tmp_path / "absent"), 2, "absent cannot be read"),
    ):
        done = subprocess.run(
            [sys.executable, "-m", "blockmap.cli.main", *map(str, arguments)],
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.returncode, said in done.stderr, len(done.stderr.splitlines())) == (code, True, 1), done.stderr
