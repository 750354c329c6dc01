"""`blockmap import` as a person meets it: registries, standard input, what is no image, what is no store."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path

import pytest
from click.testing import CliRunner

from blockmap.api.completion import image_names
from blockmap.cli.image_list import images
from tests.image.builder import bulk, docker_archive, import_image, listing
from tests.image.layouts import archive, file, layout
from tests.image.registry import LocalRegistry, local_registry
from tests.waiting import until

BASE = archive([file(f"usr/{number}", bulk(number, 30_000)) for number in range(20)])
ONE = archive([file("own", b"1")])
TWO = archive([file("own", b"2")])


class Shell:
    """Runs commands with a store, a cache and a home of their own."""

    def __init__(self, where: Path) -> None:
        self.where = where
        self.store = where / "store"
        own = where / "home/.config/containers"
        own.mkdir(parents=True)
        (own / "policy.json").write_text('{"default": [{"type": "insecureAcceptAnything"}]}')
        self.environment = {
            **os.environ,
            "HOME": str(where / "home"),
            "BLOCKMAP_STORE": str(self.store),
            "BLOCKMAP_CACHE": str(where / "cache"),
        }

    def run(self, *arguments: str | Path, status: int = 0, given: Path | None = None) -> str:
        """Runs a command; returns what it says, on either stream."""
        with open(given or os.devnull, "rb") as put_in:
            done = subprocess.run(
                [sys.executable, "-m", "blockmap.cli.main", *map(str, arguments)],
                env=self.environment, stdin=put_in, capture_output=True, text=True, check=False,
            )  # fmt: skip
        said = done.stdout + done.stderr
        assert done.returncode == status, said
        return said

    def json(self, *arguments: str | Path) -> dict[str, object]:
        found: dict[str, object] = json.loads(self.run(*arguments, "--json"))
        return found


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    made = Shell(tmp_path)
    made.run("create")
    return made


@pytest.fixture
def registry(tmp_path: Path, need: Callable[..., None]) -> Iterator[LocalRegistry]:
    need("skopeo", "docker-registry")
    with local_registry(tmp_path / "registry") as served:
        yield served


def asked(registry: LocalRegistry, before: list[str], count: int) -> list[str]:
    """Returns the requests since `before`; waits till there are `count`, since each is logged after its answer."""
    until(lambda: len(registry.requests()) >= len(before) + count)
    return registry.requests()[len(before) :]


def test_a_registry_is_asked_twice_where_nothing_changed(shell: Shell, registry: LocalRegistry, tmp_path: Path) -> None:
    reference = registry.put(layout(tmp_path / "one", [BASE, ONE]), "team/app:1")
    first = shell.json("import", reference, "app:1")
    before = registry.requests()
    objects = listing(shell.store)
    assert shell.run("import", reference, "app:1") == f"app:1 is up to date  {first['digest']}\n"
    assert asked(registry, before, 2) == ["GET /v2/", "GET /v2/team/app/manifests/1"]
    assert listing(shell.store) == objects
    before = registry.requests()
    other = shell.json("import", reference, "other:1")
    assert len(asked(registry, before, 2)) == 2
    assert (other["digest"], other["entry"], other["data_bytes"]) == (first["digest"], 1, first["data_bytes"])


def test_only_layers_that_the_store_lacks_are_asked_for(shell: Shell, registry: LocalRegistry, tmp_path: Path) -> None:
    one, two = layout(tmp_path / "one", [BASE, ONE]), layout(tmp_path / "two", [BASE, TWO])
    shell.run("import", registry.put(one, "app:1"), "app:1")
    reference = registry.put(two, "app:2")
    before = registry.requests()
    found = shell.json("import", reference, "app:2")
    (name,) = {each["digest"] for each in manifest(one)["layers"]} & {
        each["digest"] for each in manifest(two)["layers"]
    }
    (own,) = {each["digest"] for each in manifest(two)["layers"]} - {name}
    since = asked(registry, before, 8)
    assert f"GET /v2/app/blobs/{own}" in since
    assert not any(name in request for request in since)
    shell.environment["BLOCKMAP_STORE"] = str(tmp_path / "fresh")
    shell.run("create")
    assert shell.json("import", reference, "app:2")["digest"] == found["digest"]


def manifest(image: Path) -> dict[str, list[dict[str, str]]]:
    top = json.loads((image / "index.json").read_text())["manifests"][0]["digest"]
    found: dict[str, list[dict[str, str]]] = json.loads((image / "blobs/sha256" / top[7:]).read_text())
    return found


def test_an_index_is_known_with_the_image_of_each_platform(
    shell: Shell, registry: LocalRegistry, tmp_path: Path
) -> None:
    tops = []
    for architecture in ("amd64", "arm64"):
        own = layout(tmp_path / architecture, [archive([file(architecture)])], config={"architecture": architecture})
        registry.put(own, f"app:{architecture}")
        top = json.loads((own / "index.json").read_text())["manifests"][0]
        tops.append({**top, "annotations": {}, "platform": {"os": "linux", "architecture": architecture}})
    both = tmp_path / "both"
    layout(both, [archive([file("amd64")])])
    for architecture in ("amd64", "arm64"):
        for blob in (tmp_path / architecture / "blobs/sha256").iterdir():
            (both / "blobs/sha256" / blob.name).write_bytes(blob.read_bytes())
    index = json.dumps({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": tops})
    (both / "blobs/sha256" / sha256(index.encode()).hexdigest()).write_text(index)
    described = {
        "mediaType": "application/vnd.oci.image.index.v1+json", "digest": f"sha256:{sha256(index.encode()).hexdigest()}",
        "size": len(index), "annotations": {"org.opencontainers.image.ref.name": "1"},
    }  # fmt: skip
    (both / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [described]}))
    reference = registry.put(both, "app:1")
    found = [shell.json("import", reference, f"{each}:1", "--platform", f"linux/{each}") for each in ("amd64", "arm64")]
    assert found[0]["digest"] != found[1]["digest"]
    for known, architecture in zip(found, ("amd64", "arm64"), strict=True):
        before = registry.requests()
        again = shell.json("import", reference, f"{architecture}:1", "--platform", f"linux/{architecture}")
        assert asked(registry, before, 2) == ["GET /v2/", "GET /v2/app/manifests/1"]
        assert (again["digest"], again["entry"]) == (known["digest"], 0)


def test_all_tags(shell: Shell, registry: LocalRegistry, tmp_path: Path) -> None:
    for tag, own in (("1", ONE), ("2", TWO)):
        registry.put(layout(tmp_path / tag, [BASE, own]), f"team/app:{tag}")
    place = f"docker://{registry.address}/team/app"
    said = shell.run("import", "--all-tags", place, "app")
    assert said.endswith(f"{place}: 2 imported, 0 up to date\n")
    registry.put(layout(tmp_path / "3", [b"no archive" * 100]), "team/app:11")
    said = shell.run("import", "--all-tags", place, "app", status=1)
    assert "app:1 is up to date" in said
    assert "app:2 is up to date" in said
    assert "0 imported, 2 up to date, 1 not imported, for the reasons above: 11" in said
    assert image_names(str(shell.store)) == ["app:1", "app:2"]
    assert image_names(str(shell.store), "app:2") == ["app:2"]
    assert image_names(str(tmp_path / "nowhere")) == []
    assert "without a tag" in shell.run("import", "--all-tags", f"{place}:1", status=2)


def test_a_registry_elsewhere_without_tls_says_how_it_is_allowed(
    shell: Shell, registry: LocalRegistry, tmp_path: Path
) -> None:
    """A name that is not loopback's, although what it stands for is."""
    settings = f'[[registry]]\nprefix = "registry.example/team"\nlocation = "{registry.address}/team"\n'
    (shell.where / "home/.config/containers/registries.conf").write_text(settings)
    said = shell.run("import", "docker://registry.example/team/app:1", "app:1", status=1)
    assert "the registry at registry.example does not speak TLS: allow it with" in said
    assert "insecure = true" in said


def test_what_docker_save_writes_comes_on_standard_input(shell: Shell, tmp_path: Path) -> None:
    saved = docker_archive(tmp_path / "saved.tar", [BASE, ONE], ["team/app:7"])
    assert "team/app:7" in shell.run("import", "-", given=saved)
    assert "other:1" in shell.run("import", "-", "other:1", given=saved)
    image = layout(tmp_path / "image", [BASE, ONE])
    subprocess.run(["tar", "-C", image, "-czf", tmp_path / "image.tar.gz", "."], check=True)
    assert "has no name of its own: say `blockmap import - NAME`" in shell.run(
        "import", "-", status=2, given=tmp_path / "image.tar.gz"
    )
    assert "oci:1" in shell.run("import", "-", "oci:1", given=tmp_path / "image.tar.gz")
    (tmp_path / "files.tar").write_bytes(BASE)
    assert "neither what `docker save` wrote nor an OCI layout" in shell.run(
        "import", "-", "x:1", status=1, given=tmp_path / "files.tar"
    )


def test_the_local_docker_s_image_without_a_tag_is_latest(shell: Shell, need: Callable[..., None]) -> None:
    """There is no daemon, and what is asked of it is said."""
    need("skopeo")
    shell.environment["DOCKER_HOST"] = "unix:///nonexistent"
    for given, wanted in (
        ("redis", "redis:latest"),
        ("host:5000/redis", "host:5000/redis:latest"),
        ("redis:7", "redis:7"),
    ):
        said = shell.run("import", f"docker-daemon:{given}", "x:1", status=1)
        assert f"skopeo could not read docker-daemon:{wanted}: " in said


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("redis:7", "say docker://redis:7 for an image in a registry, docker-daemon:redis:7 for one of the local docker"),
        ("docker.io/library/redis:7", "say docker://docker.io/library/redis:7 for .*, docker-daemon:redis:7 for"),
    ],
)  # fmt: skip
def test_a_name_of_docker_s_is_no_source(shell: Shell, source: str, said: str) -> None:
    assert re.search(said, shell.run("import", source, "x:1", status=2))


def test_no_store_is_made_unasked(shell: Shell, tmp_path: Path) -> None:
    image = layout(tmp_path / "image", [BASE])
    typed = tmp_path / "sotre"
    said = shell.run("import", f"oci:{image}", "x:1", "--store", typed, status=1)
    assert f"is not a blockmap store: correct --store, or make one with `blockmap create {typed}`" in said
    assert not typed.exists()


@pytest.mark.parametrize(("data", "kind"), [(b"root:x:0:0\n" * 100, "text"), (b"\x7fELF\0\1" * 201, "data")])
def test_a_file_that_is_no_disk_is_refused(
    shell: Shell, tmp_path: Path, data: bytes, kind: str, need: Callable[..., None]
) -> None:
    need("qemu-img")
    path = tmp_path / "file"
    path.write_bytes(data)
    said = shell.run("import", path, "x:1", status=2)
    assert f"{path} is no disk image: it is {kind}, {len(data):,} bytes" in said
    path.write_bytes(data[:510] + b"\x55\xaa" + data)  # a boot sector, and an end that is no whole sector
    assert "x:1" in shell.run("import", path, "x:1")
    path.write_bytes(bytes(512 * 3))
    assert "x:2" in shell.run("import", path, "x:2")


def test_the_right_to_write_is_tried_before_the_source_is_read(shell: Shell, tmp_path: Path) -> None:
    """As root the folder is made a file, so that nothing can be written below it; the source is not even there."""
    (shell.store / "hints").write_text("")
    said = shell.run("import", f"oci:{tmp_path}/absent", "x:1", status=1)
    assert "cannot write" in said
    assert "take room" not in said


def test_images_are_listed_by_repository_with_what_they_share(tmp_path: Path) -> None:
    store = tmp_path / "store"

    def shown(*arguments: str) -> str:
        done = CliRunner().invoke(images, ["--store", str(store), "--cache", str(tmp_path / "cache"), *arguments])
        assert done.exit_code == 0, done.output
        return done.output

    for tag, own in (("1", ONE), ("2", TWO)):
        import_image(store, f"oci:{layout(tmp_path / tag, [BASE, own])}", f"app:{tag}", tmp_path)
    other = layout(tmp_path / "o", [archive([file("x", bulk(7, 50_000))])])
    for name in ("other:1", "other:again"):
        import_image(store, f"oci:{other}", name, tmp_path)
    assert shown("-q") == "app:1\napp:2\nother:1\nother:again\n"
    assert shown("app", "-q") == "app:1\napp:2\n"
    assert shown("app:2", "-q") == "app:2\n"
    assert shown("none", "-q") == ""
    assert re.search(r"^app:1 +[0-9a-f]{12} +(just now|\d+ seconds ago) +", shown("app"), re.MULTILINE)
    assert re.search(r"^app:1 +sha256:[0-9a-f]{64} ", shown("--no-trunc"), re.MULTILINE)
    found = {each["name"]: each for each in json.loads(shown("--data", "--json"))}
    stored = {name: (each["stored_bytes"], each["unique_bytes"]) for name, each in found.items()}
    assert stored["other:1"] == stored["other:again"], "two names of one version"
    assert stored["other:1"][0] > stored["other:1"][1] > 50_000  # all of them have a root directory
    assert stored["app:1"][0] > 600_000
    assert 0 < stored["app:1"][1] < 20_000
    (again,) = json.loads(shown("other:1", "--data", "--json"))
    assert (again["stored_bytes"], again["unique_bytes"]) == stored["other:1"], "as this host remembers it"
    assert re.search("NAME +DIGEST +UPDATED +DATA +STORED +UNIQUE +VOLUME", shown("--data"))
