"""Stores objects in a bucket of S3 and compatible services, Azure Blob, or Google Cloud Storage.

Uses obstore's blocking calls, which let other threads run. Its threads start at the first call, and do not
survive a fork: make the first call after it.
"""

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import obstore
from obstore.store import AzureStore, GCSStore, HTTPStore, S3Store

from blockmap.errors import Corrupt, NotFound, UsageError
from blockmap.format import keys
from blockmap.store import answers, aws, limits
from blockmap.store.base import Buffer, Listed, too_long

if TYPE_CHECKING:
    from obstore import ObjectMeta
    from obstore.store import ClientConfig, RetryConfig

CLIENT: "ClientConfig" = {
    # The endpoint that the user names says whether the connection is encrypted.
    "allow_http": True,
    "connect_timeout": timedelta(seconds=3),
    "read_timeout": timedelta(seconds=10),
    "timeout": timedelta(seconds=120),
    "pool_max_idle_per_host": "64",
}
RETRIES: "RetryConfig" = {
    # Retries for what passes in a moment. Waiting for a server that is away is the fetcher's business.
    "max_retries": 4,
    "retry_timeout": timedelta(seconds=3),
    "backoff": {"init_backoff": timedelta(milliseconds=50), "max_backoff": timedelta(seconds=1), "base": 2},
}
_PAGE = 1000
_LIST_ATTEMPTS = 3
"""obstore goes on with an object whose answer broke off, but gives a listing up."""
_ENDPOINTS = {
    "s3": ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT"),
    "az": ("AZURE_STORAGE_ENDPOINT", "AZURE_ENDPOINT"),
}

Engine = S3Store | AzureStore | GCSStore | HTTPStore


class ObjectReader:
    """Reads objects through obstore. Its errors are replaced, not chained: their texts may hold signed URLs."""

    local = False

    def __init__(self, url: str, engine: Engine) -> None:
        self.url = url
        self._engine = engine

    def get(self, key: str, most: int = limits.RECORD) -> bytes:
        keys.check(key)
        with self._explained(key):
            answer = obstore.get(self._engine, key)
            answers.check_coding(answer, self.url)
            size = answer.meta["size"]
            if size > most:
                raise too_long(self.url, key, size, most)
            return bytes(answer.bytes())

    def get_range(self, key: str, start: int, end: int) -> bytes | memoryview:
        keys.check(key)
        if start == end:  # obstore refuses it
            self._check_end(key, end)
            return b""
        try:
            data = memoryview(obstore.get_range(self._engine, key, start=start, end=end))
        except answers.ERRORS as error:
            if answers.is_past_end(error):
                self._check_end(key, end)
            raise answers.explain(error, self.url, key) from None
        if len(data) != end - start:
            with self._explained(key):
                answers.check_coding(obstore.get(self._engine, key, options={"range": (start, end)}), self.url)
            self._check_end(key, end)
            raise Corrupt(f"{self.url}/{key}: {len(data)} bytes came where {end - start} were asked for")
        return data

    def list(self, prefix: str) -> list[str]:
        return sorted(each["path"] for each in self._listed(prefix))

    def exists(self, key: str) -> bool:
        try:
            self.size(key)
        except NotFound:
            return False
        return True

    def size(self, key: str) -> int:
        keys.check(key)
        with self._explained(key):
            return int(obstore.head(self._engine, key)["size"])

    def listing(self, prefix: str) -> dict[str, Listed]:
        return {
            each["path"]: Listed(int(each["size"]), each["last_modified"].timestamp()) for each in self._listed(prefix)
        }

    def modified(self, key: str) -> float:
        keys.check(key)
        with self._explained(key):
            return obstore.head(self._engine, key)["last_modified"].timestamp()

    def _listed(self, prefix: str) -> "Sequence[ObjectMeta]":
        attempts = _LIST_ATTEMPTS
        while True:
            try:
                pages = obstore.list(self._engine, prefix or None, chunk_size=_PAGE)
                return [each for page in pages for each in page]
            except answers.ERRORS as error:
                attempts -= 1
                if not attempts or not answers.is_broken_off(error):
                    raise answers.explain(error, self.url, prefix) from None

    def _check_end(self, key: str, end: int) -> None:
        size = self.size(key)
        if size < end:
            raise Corrupt(f"{self.url}/{key} ends at byte {size}, before byte {end}")

    @contextmanager
    def _explained(self, key: str, *, writing: bool = False) -> Iterator[None]:
        try:
            yield
        except answers.ERRORS as error:
            raise answers.explain(error, self.url, key, writing=writing) from None


class ObjectStore(ObjectReader):
    """Objects of a bucket below a prefix; create-only by a conditional put, durable when a call returns."""

    def create(self, key: str, parts: Sequence[Buffer]) -> None:
        """Creates an object. StoreUnavailable leaves open whether it was created: only the answer may be lost."""
        self._put(key, b"".join(parts), create=True)

    def replace(self, key: str, data: bytes) -> None:
        self._put(key, data, create=False)

    def delete(self, key: str) -> None:
        keys.check(key)
        try:
            obstore.delete(self._engine, key)
        except FileNotFoundError:
            pass  # S3 does not mind, Azure does
        except answers.ERRORS as error:
            raise answers.explain(error, self.url, key, writing=True) from None

    def contents(self) -> Sequence[str]:
        """Returns some of the names at the top of the store; none where it is empty."""
        with self._explained(""):
            page = next(iter(obstore.list(self._engine, chunk_size=_PAGE)), [])
            return sorted({each["path"].partition("/")[0] for each in page})

    def _put(self, key: str, data: bytes, *, create: bool) -> None:
        keys.check(key)
        with self._explained(key, writing=True):
            # In one piece: conditions on multipart uploads are ignored by some servers.
            obstore.put(self._engine, key, data, mode="create" if create else "overwrite", use_multipart=False)


def open_objects(url: str) -> ObjectStore:
    """Returns the store at s3://BUCKET/PREFIX, az://CONTAINER/PREFIX or gs://BUCKET/PREFIX; makes no call. UsageError.

    Endpoint and credentials are taken from the environment, by obstore and, for AWS's files, by `aws`.
    """
    scheme, _, rest = url.partition("://")
    bucket, _, prefix = rest.partition("/")
    prefix = prefix.rstrip("/")
    if not bucket:
        raise UsageError(f"{url} names no bucket: write {scheme}://BUCKET/PREFIX")
    if prefix:
        keys.check(prefix)
    for name in _ENDPOINTS.get(scheme, ()):
        _check_endpoint(name, os.environ.get(name, ""))
    try:
        engine = _engine(scheme, bucket, prefix or None)
    except answers.ERRORS as error:
        raise UsageError(f"{url} cannot be used: {answers.one_line(error)}; the README has its settings") from error
    return ObjectStore(f"{scheme}://{bucket}" + (f"/{prefix}" if prefix else ""), engine)


def _check_endpoint(name: str, value: str) -> None:
    """Raises UsageError for an endpoint that obstore would take, and panic on at the first request."""
    try:
        parts = urlsplit(value)
        well = parts.scheme in ("http", "https") and bool(parts.hostname) and not re.search(r"\s", value)
        _ = parts.port
    except ValueError:
        well = False
    if value and not well:
        shown = "" if "@" in value else f"={value}"
        raise UsageError(f"{name}{shown} is not the URL of a server: http(s)://HOST[:PORT] is expected")


def _engine(scheme: str, bucket: str, prefix: str | None) -> Engine:
    if scheme == "az":
        return AzureStore(bucket, prefix=prefix, client_options=CLIENT, retry_config=RETRIES)
    if scheme == "gs":
        return GCSStore(bucket, prefix=prefix, client_options=CLIENT, retry_config=RETRIES)
    found = aws.profile()
    settings = found.settings if found else None
    return S3Store(
        bucket,
        prefix=prefix,
        config=settings,
        client_options=CLIENT,
        retry_config=RETRIES,
        credential_provider=found,
    )
