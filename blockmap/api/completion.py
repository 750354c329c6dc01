"""Lists names of images for a shell that completes what is typed: at once, or not at all."""

from concurrent.futures import TimeoutError

from blockmap.errors import BlockmapError
from blockmap.store.concurrent import spawn
from blockmap.store.names import NameReader
from blockmap.store.opening import reach

_PATIENCE_S = 1.0
"""How long somebody who has pressed the tab key waits without wondering."""


def image_names(url: str | None, begin: str = "") -> list[str]:
    """Returns names REPO:TAG that begin with `begin`, sorted; none where there is no store, or it does not answer in time.

    Names that were removed may be among them: to leave them out, each name's log would have to be asked.
    """
    if not url:
        return []
    try:
        found = spawn(lambda: NameReader(reach(url)).catalogue()).result(_PATIENCE_S)
    except (BlockmapError, TimeoutError):
        return []
    return sorted(name for name in (f"{repo}:{tag}" for repo, tag in found) if name.startswith(begin))
