"""Stores for tests of what is done with a store: made where there is none."""

from blockmap.errors import NotAStore
from blockmap.store.base import Pruner
from blockmap.store.opening import Format, create_store, open_writer


def open_or_create(url: str) -> tuple[Pruner, Format]:
    try:
        return open_writer(url)
    except NotAStore:
        return create_store(url)
