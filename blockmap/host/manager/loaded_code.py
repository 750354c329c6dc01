"""Notices that the files of this program have changed since it was started, as an upgrade changes them."""

import os
import sys


class LoadedCode:
    """The modules of blockmap that are loaded when this is made."""

    def __init__(self) -> None:
        names = [name for name in sys.modules if name.partition(".")[0] == "blockmap"]
        files = {str(sys.modules[name].__file__) for name in names if getattr(sys.modules[name], "__file__", None)}
        self._stamps = {file: _stamp(file) for file in files}

    def has_changed(self) -> bool:
        """Returns True if one of the files is another one now, or gone."""
        return any(_stamp(file) != stamp for file, stamp in self._stamps.items())


def _stamp(file: str) -> tuple[int, int, int] | None:
    try:
        found = os.stat(file)
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size
