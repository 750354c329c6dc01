"""Where a volume's blocks go while it is written."""

from typing import Protocol


class BlockSink(Protocol):
    """Takes the blocks of a volume, each once, from one thread."""

    def write(self, block: int, data: bytes | bytearray | memoryview) -> None:
        """Takes whole blocks at `block` and does not keep `data`.

        A write that begins where the last one ended continues its run; any other begins a new run, and so a new chunk.
        """

    def cut(self) -> None:
        """Makes what is written next begin a new chunk."""
