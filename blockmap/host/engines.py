"""Containers whose roots are overlays, of docker, podman and `blockmap run`: their images, and where what they wrote is."""

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from blockmap.errors import HostError, NotFound, UsageError
from blockmap.host import tools
from blockmap.host.attachment_table import Attached
from blockmap.host.run import folders, runc

_ENGINES = ("docker", "podman")
_OVERLAYS = ("overlay", "overlay2")
"""What the engines call their drivers that keep what a container writes in a directory of its own."""


@dataclass(frozen=True, slots=True)
class OverlayContainer:
    """A container, running or not."""

    engine: str
    id: str
    image: str
    """What its image was called when it was made."""
    digest: str
    """The digest, sha256:HEX, of its image's configuration, or of the version."""
    upper: Path
    """The directory of what it wrote, above its image."""
    user_attributes: bool
    """True if overlay's own attributes there are of the kind that needs no privilege."""
    pause: tuple[str, ...]
    """The command that pauses it; none where it does not run, or is paused."""
    resume: tuple[str, ...]

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Keeps it paused while the block runs, if it runs; HostError."""
        if self.pause:
            tools.run(*self.pause)
        try:
            yield
        finally:
            if self.pause:
                tools.run(*self.resume)


def own_container(path: Path, image: Attached | None) -> OverlayContainer:
    """Returns a container of `blockmap run` by its folder, given what is attached as its image; UsageError where it has ended."""
    name = next(runc.containers(path), None)
    if name is None or image is None or folders.init_of(path) is None:
        raise UsageError(f"{folders.name_of(path)} has ended, and what it wrote has gone: `run --clone` keeps that")
    supervised = "resources" in folders.config(path)["linux"]
    base = runc.base(tools.find("runc"), path, supervised=supervised)
    return OverlayContainer(
        engine="blockmap",
        id=name,
        image=image.name,
        digest=image.export.partition("@")[2].partition("+")[0],
        upper=path / "scratch" / "upper",
        user_attributes=False,
        pause=(*base, "pause", name),
        resume=(*base, "resume", name),
    )


def find_container(name: str) -> OverlayContainer:
    """Returns a container by ID or name, of the engine in `docker:NAME` or `podman:NAME`, or of the first that has it.

    Raises NotFound, UsageError where it is kept in a way that is not understood, HostError.
    """
    engine, colon, rest = name.partition(":")
    if colon and engine not in _ENGINES:
        raise UsageError(f"there is no engine {engine}: say docker:{rest} or podman:{rest}")
    asked = (engine,) if colon else _ENGINES
    there = [each for each in asked if shutil.which(each)]
    if not there:
        raise HostError(
            f"{' and '.join(asked)} cannot be asked for the container {name}: not installed, or not in PATH"
        )
    said = []
    for each in there:
        done = subprocess.run(
            [each, "container", "inspect", rest if colon else name], capture_output=True, text=True, check=False
        )
        if done.returncode == 0:
            return _container(each, json.loads(done.stdout)[0])
        said.append(f"{each} says: {done.stderr.strip()}")
    raise NotFound(f"there is no container {name}: {'; '.join(said)}")


def _container(engine: str, about: dict[str, Any]) -> OverlayContainer:
    driver = about.get("GraphDriver") or {}
    places = driver.get("Data") or {}
    if driver.get("Name") not in _OVERLAYS or "UpperDir" not in places:
        raise UsageError(
            f"{engine} keeps what {about['Id'][:12]} writes by {driver.get('Name') or 'a snapshotter'}, of which nothing can be "
            "read here: it takes the storage driver overlay2 (docker info), or overlay (podman info)"
        )
    config, state = about["Image"], about["State"]
    runs = bool(state.get("Running")) and not state.get("Paused")
    return OverlayContainer(
        engine=engine,
        id=about["Id"],
        image=about.get("ImageName") or about["Config"]["Image"],
        digest=config if config.startswith("sha256:") else f"sha256:{config}",
        upper=Path(places["UpperDir"]),
        user_attributes=_has_user_attributes(places.get("MergedDir", "")),
        pause=(engine, "pause", about["Id"]) if runs else (),
        resume=(engine, "unpause", about["Id"]),
    )


def _has_user_attributes(merged: str) -> bool:
    """Returns True if a container's root is mounted with overlay's attributes in the user's namespace."""
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as lines:
        for line in lines:
            fields, _, rest = line.partition(" - ")
            if fields.split()[4] == merged:
                kind, _, options = rest.split()
                if kind.startswith("fuse"):
                    raise UsageError(f"{merged} is mounted by fuse-overlayfs, of which nothing can be read here")
                return "userxattr" in options.split(",")
    return False


def sync(directory: Path) -> None:
    """Writes what waits in memory for a directory's file system; HostError."""
    tools.run("sync", "--file-system", os.fspath(directory))
