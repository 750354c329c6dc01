"""A store between a test and a real one, which fails when it is told to."""

from collections.abc import Callable, Sequence

from blockmap.errors import StoreUnavailable
from blockmap.store.base import Buffer, Listed, Pruner


class Faulty:
    """Passes calls on to `inner`; what is set below happens to the next create only, or while it is set."""

    def __init__(self, inner: Pruner) -> None:
        self.inner = inner
        self.url, self.local = inner.url, inner.local
        self.before_create: Callable[[], None] | None = None
        """Called once, in front of the next create: what another writer does at the worst moment."""
        self.lose_answer = False
        """The next create succeeds, but its caller is told that the store did not answer."""
        self.fail_create = False
        """The next create does nothing, and its caller is told that the store did not answer."""
        self.down = False
        """Reads are not answered."""
        self.hints_refused = False

    def get(self, key: str, *most: int) -> bytes:
        self._answer()
        return self.inner.get(key, *most)

    def get_range(self, key: str, start: int, end: int) -> bytes:
        self._answer()
        return self.inner.get_range(key, start, end)

    def list(self, prefix: str) -> list[str]:
        self._answer()
        return self.inner.list(prefix)

    def exists(self, key: str) -> bool:
        self._answer()
        return self.inner.exists(key)

    def size(self, key: str) -> int:
        self._answer()
        return self.inner.size(key)

    def create(self, key: str, parts: Sequence[Buffer]) -> None:
        hook, self.before_create = self.before_create, None
        if hook is not None:
            hook()
        if self.fail_create:
            self.fail_create = False
            raise StoreUnavailable("connection reset before the request went out")
        self.inner.create(key, parts)
        if self.lose_answer:
            self.lose_answer = False
            raise StoreUnavailable("connection reset before the answer came")

    def replace(self, key: str, data: bytes) -> None:
        if self.hints_refused:
            raise StoreUnavailable("no room left")
        self.inner.replace(key, data)

    def delete(self, key: str) -> None:
        self.inner.delete(key)

    def _answer(self) -> None:
        if self.down:
            raise StoreUnavailable("no answer")


class Counted(Faulty):
    """Counts calls of all kinds."""

    calls = 0

    def create(self, key: str, parts: Sequence[Buffer]) -> None:
        self.calls += 1
        super().create(key, parts)

    def listing(self, prefix: str) -> dict[str, Listed]:
        return self.inner.listing(prefix)

    def modified(self, key: str) -> float:
        return self.inner.modified(key)

    def _answer(self) -> None:
        self.calls += 1


class ExistsCounter(Faulty):
    """Counts how often it is asked whether an object exists."""

    asked = 0

    def exists(self, key: str) -> bool:
        self.asked += 1
        return super().exists(key)
