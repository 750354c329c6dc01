"""Shows an import's progress on a terminal: bytes of the layers, rate and time left."""

import sys
from importlib import import_module
from types import TracebackType
from typing import TYPE_CHECKING

from blockmap.filesystem.member import ImageSource
from blockmap.image.disk_image import DiskSource

if TYPE_CHECKING:
    from rich.progress import Progress


class Watched:
    """Shows how much of a source has been read, while the block runs; nothing where standard error is no terminal."""

    def __init__(self, source: ImageSource | DiskSource, title: str, quiet: bool) -> None:
        self._shown: Progress | None = None
        if quiet or isinstance(source, DiskSource) or not sys.stderr.isatty():
            return
        shown = self._shown = _bar()
        task = shown.add_task(title, total=sum(layer.size for layer in source.layers) or None)
        for layer in source.layers:
            layer.progress = lambda count: shown.advance(task, count)

    def __enter__(self) -> None:
        if self._shown is not None:
            self._shown.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._shown is not None:
            self._shown.stop()


def _bar() -> "Progress":
    """Makes the bar; rich takes some 25 ms to import, a twentieth of an import that reads no layer, and is often not needed."""
    progress, console = import_module("rich.progress"), import_module("rich.console")
    columns = (
        progress.TextColumn("{task.description}"),
        progress.BarColumn(),
        progress.DownloadColumn(),
        progress.TransferSpeedColumn(),
        progress.TimeRemainingColumn(),
    )
    bar: Progress = progress.Progress(*columns, console=console.Console(stderr=True), transient=True)
    return bar
