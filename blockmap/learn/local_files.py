"""Files that a host keeps for itself: traces of its starts, and profiles that it may not publish."""

from collections.abc import Callable, Iterator
from pathlib import Path

from blockmap import durable
from blockmap.errors import FormatError, NotFound, UsageError
from blockmap.format import profile as profiles
from blockmap.format import trace as traces
from blockmap.format.profile import Profile
from blockmap.format.refs import to_component
from blockmap.format.trace import Trace
from blockmap.local.paths import TRACE_SUFFIX
from blockmap.store.packs import compress, expand


class TraceFolder:
    """The traces that servers write, one file each; `warn` gets messages about those that cannot be read."""

    def __init__(self, folder: Path, warn: Callable[[str], None]) -> None:
        self._folder = folder
        self._warn = warn

    def all(self) -> Iterator[tuple[Path, Trace]]:
        """Yields all traces with their paths, the oldest first."""
        for path in sorted(self._folder.glob(f"*{TRACE_SUFFIX}")):
            try:
                yield path, load_trace(path)
            except (FormatError, NotFound) as error:
                self._warn(f"{path} is left out: {error}")

    def of(self, repo: str, label: str) -> list[Trace]:
        return [trace for _, trace in self.all() if (trace.head.repo, trace.head.label) == (repo, label)]

    def find(self, name: str) -> Path:
        """Returns the path of the trace that `name` means: a path, or a name in the folder with or without its ending.

        Raises UsageError if there is none.
        """
        for path in (Path(name), self._folder / name, self._folder / f"{name}{TRACE_SUFFIX}"):
            if path.is_file():
                return path
        raise UsageError(f"there is no trace {name}, nor in {self._folder}: see `blockmap trace list`")


def load_trace(path: Path) -> Trace:
    """Reads a trace, whole or cut off. Raises NotFound or FormatError."""
    try:
        return traces.decode(path.read_bytes())
    except OSError as error:
        raise NotFound(f"{path} cannot be read: {error.strerror}") from error


class LocalProfiles:
    """Profiles that only this host has: one for each repository and label, numbered 0."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def path(self, repo: str, label: str) -> Path:
        return self._folder / to_component(repo) / to_component(label)

    def get(self, repo: str, label: str) -> Profile | None:
        """Returns the profile of a repository and label; None if it is absent or damaged."""
        try:
            return profiles.decode(self.path(repo, label).read_bytes(), repo, label, 0, expand)
        except (OSError, FormatError):
            return None

    def put(self, profile: Profile) -> Path:
        """Stores a profile in place of the one before, and returns its path. Raises StoreReadOnly or StoreUnavailable."""
        path = self.path(profile.repo, profile.label)
        durable.replace(path, profiles.encode(profile, compress))
        return path
