"""Shows an import's progress on a terminal: bytes of the layers, rate and time left."""

import sys
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from blockmap.filesystem.member import ImageSource
from blockmap.image.disk_image import DiskSource


class Watched:
    """Shows how much of a source has been read, while the block runs; nothing where standard error is no terminal."""

    def __init__(self, source: ImageSource | DiskSource, title: str, quiet: bool) -> None:
        self._shown: Progress | None = None
        if quiet or isinstance(source, DiskSource) or not sys.stderr.isatty():
            return
        total = sum(layer.size for layer in source.layers) or None
        shown = self._shown = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            transient=True,
        )
        task = shown.add_task(title, total=total)
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
