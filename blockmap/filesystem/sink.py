"""The sink that takes the blocks of a volume while it is written."""

from typing import Protocol


class BlockSink(Protocol):
    """Takes the blocks of a volume, each once, from one thread."""

    def write(self, block: int, data: bytes | bytearray | memoryview) -> None:
        """Takes whole blocks at `block` and does not keep `data`.

        A write that begins at the end of the last one continues its run; any other begins a new run, and so a new chunk.
        """

    def cut(self) -> None:
        """Makes the next write begin a new chunk."""
