"""Debian's own kernel, unpacked from its package, with the modules that a small guest needs."""

import lzma
import re
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from toolbox import ToolError, cache_folder, download_packages, run

META_PACKAGE = "linux-image-cloud-amd64"  # a third of linux-image-amd64's size; it has nbd, ext4 and virtio
MODULES = ("virtio_pci", "virtio_net", "nbd", "ext4", "overlay", "loop")


@dataclass(frozen=True, slots=True)
class Kernel:
    image: Path  # what QEMU boots
    version: str
    modules: tuple[Path, ...]  # uncompressed, in the order in which they must be loaded


def debian_kernel(suite: str = "") -> Kernel:
    """The kernel of the cache folder, or else the newest of a Debian release, this machine's by default (30 MB to download)."""
    cache = cache_folder(f"kernel-{suite}" if suite else "kernel")
    ready = sorted(cache.glob("*/done"), key=lambda path: path.stat().st_mtime)
    if not ready:
        _fetch(cache, suite)
        ready = list(cache.glob("*/done"))
    folder = ready[-1].parent
    modules = tuple(sorted((folder / "modules").iterdir()))
    return Kernel(folder / "vmlinuz", folder.name, modules)


def _fetch(cache: Path, suite: str) -> None:
    with tempfile.TemporaryDirectory(prefix=".tmp-", dir=cache) as name:
        work = Path(name)
        (meta,) = download_packages([META_PACKAGE], work, suite)
        depends = run(["dpkg-deb", "--field", meta, "Depends"])
        meta.unlink()
        found = re.search(r"linux-image-(\S+)", depends)
        if found is None:
            raise ToolError(f"{META_PACKAGE} names no kernel package in its dependencies: {depends.strip()}")
        version = found[1]
        (package,) = download_packages([f"linux-image-{version}"], work, suite)
        run(["dpkg-deb", "--extract", package, work / "tree"])
        result = work / "result"
        (result / "modules").mkdir(parents=True)
        shutil.copy(work / "tree" / "boot" / f"vmlinuz-{version}", result / "vmlinuz")
        (library,) = (work / "tree").glob("**/lib/modules/" + version)
        for number, (module, content) in enumerate(_closure(library)):
            (result / "modules" / f"{number:02}-{module}.ko").write_bytes(content)
        (result / "done").touch()
        try:
            result.rename(cache / version)
        except OSError:  # somebody else was faster
            if not (cache / version / "done").exists():
                raise


def _closure(library: Path) -> list[tuple[str, bytes]]:
    """MODULES and what they depend on, by name, dependencies first; those built into the kernel are left out."""
    builtin = {_plain(line) for line in (library / "modules.builtin").read_text().split()}
    files = {_plain(path.name): path for path in library.rglob("*.ko*")}
    order: dict[str, bytes] = {}

    def visit(module: str) -> None:
        if module in builtin or module in order:
            return
        if module not in files:
            raise ToolError(f"kernel {library.name} has no module {module}")
        content = files[module].read_bytes()
        if files[module].suffix == ".xz":
            content = lzma.decompress(content)
        depends = re.search(rb"\0depends=([^\0]*)\0", content)  # of the section .modinfo, which depmod reads too
        for other in filter(None, depends[1].decode().split(",") if depends else []):
            visit(other.replace("-", "_"))
        order[module] = content

    for module in MODULES:
        visit(module)
    return list(order.items())


def _plain(name: str) -> str:
    """The module's name of a path like kernel/fs/ext4/ext4.ko.xz."""
    return name.rpartition("/")[2].partition(".ko")[0].replace("-", "_")
