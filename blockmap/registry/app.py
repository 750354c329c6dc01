"""The HTTP of a registry, after the OCI distribution specification 1.1: what clients pull by."""

import json
import logging
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from blockmap.errors import BlockmapError, NotFound, StoreUnavailable, Untrusted, UsageError
from blockmap.format import oci
from blockmap.format.refs import parse_reference
from blockmap.image.media_types import INDEXES
from blockmap.image.oci import parse
from blockmap.registry.access import Passwords
from blockmap.registry.offers import Offers
from blockmap.registry.served import Document, ServedDigests
from blockmap.registry.spool import Spool
from blockmap.store.concurrent import each
from blockmap.store.repository import Repository
from blockmap.store.resolver import find_version
from blockmap.store.trusted_names import TrustedNames

_log = logging.getLogger(__name__)

_DIGEST = re.compile(r"sha256:([0-9a-f]{64})")
_RANGE = re.compile(r"bytes=(\d*)-(\d*)")
_MOST_TAGS = 1000
"""Tags of one answer."""
_INDEX = INDEXES[0]
_UNKNOWN = {"/manifests/": "MANIFEST_UNKNOWN", "/blobs/": "BLOB_UNKNOWN"}
_OFFICIAL = "library/"
"""What docker puts before names without a user."""


class ImageRegistry:
    """Answers the requests of clients that pull."""

    def __init__(
        self,
        repository: Repository,
        offers: Offers,
        served: ServedDigests,
        spool: Spool,
        passwords: Passwords | None = None,
    ) -> None:
        """Without `passwords`, everybody may pull."""
        self._repository, self._offers, self._served, self._spool = repository, offers, served, spool
        self._passwords = passwords
        self._names = TrustedNames(repository.store, repository.trust)

    def application(self) -> Starlette:
        """Returns it as an ASGI application."""
        name = "/v2/{name:path}"
        routes = [
            ("/v2/", self.base),
            ("/v2/_catalog", self.catalogue),
            (f"{name}/manifests/{{reference}}", self.manifest),
            (f"{name}/blobs/{{digest}}", self.blob),
            (f"{name}/tags/list", self.tags),
            (f"{name}/referrers/{{digest}}", self.referrers),
        ]
        return Starlette(routes=[Route(path, self._answering(handle), methods=["GET"]) for path, handle in routes])

    def base(self, request: Request) -> Response:
        return _json({})

    def catalogue(self, request: Request) -> Response:
        repos = sorted({repo for repo, _ in self._names.catalogue()})
        return _json({"repositories": _page(request, repos)})

    def tags(self, request: Request) -> Response:
        asked = _names(request)
        listed = self._names.catalogue()
        repo = next((name for name in asked if any(own == name for own, _ in listed)), None)
        if repo is None:
            raise NotFound(f"there is no image called {asked[0]}")
        tags = sorted(tag for own, tag in listed if own == repo)
        newest = each(lambda tag: self._names.newest(repo, tag), tags)
        there = [
            tag for tag, entry in zip(tags, newest, strict=True) if entry is not None and entry.version is not None
        ]
        return _json({"name": request.path_params["name"], "tags": _page(request, there)})

    def referrers(self, request: Request) -> Response:
        return _json({"schemaVersion": 2, "mediaType": _INDEX, "manifests": []}, _INDEX)

    def manifest(self, request: Request) -> Response:
        reference = request.path_params["reference"]
        found = _DIGEST.fullmatch(reference)
        document = self._by_digest(request, bytes.fromhex(found[1])) if found else self._by_tag(request, reference)
        headers = {"Docker-Content-Digest": f"sha256:{document.digest.hex()}"}
        return Response(document.content, media_type=None, headers={**headers, "Content-Type": document.media})

    def blob(self, request: Request) -> Response:
        found = _DIGEST.fullmatch(request.path_params["digest"])
        if found is None:
            raise UsageError("a blob is asked for by sha256:HEX")
        digest = bytes.fromhex(found[1])
        config, layer = self._served.document(digest, False), self._served.layer(digest)
        if config is None and layer is None:
            self._look_for(request, digest)
            config, layer = self._served.document(digest, False), self._served.layer(digest)
        headers = {"Docker-Content-Digest": f"sha256:{digest.hex()}", "Content-Type": "application/octet-stream"}
        if config is not None:
            return Response(config.content, headers=headers)
        if layer is None:
            raise NotFound(f"no image here has the blob sha256:{digest.hex()}")
        start, end, is_part = _range(request, layer.size)
        if start >= end and layer.size:
            return Response(status_code=416, headers={"Content-Range": f"bytes */{layer.size}"})
        headers |= {"Content-Length": str(end - start), "Accept-Ranges": "bytes"}
        if is_part:
            headers["Content-Range"] = f"bytes {start}-{end - 1}/{layer.size}"
        status = 206 if is_part else 200
        if request.method == "HEAD":
            return Response(status_code=status, headers=headers)
        wanted = layer
        pieces = self._spool.read(digest, layer.size, lambda blob: self._offers.fill(wanted, blob), start, end)
        # The first piece is asked for before the status goes out, so that what cannot be made is an error and no half answer.
        first = next(pieces, b"")
        return StreamingResponse(_chain(first, pieces), status, headers)

    def _answering(self, handle: Callable[[Request], Response]) -> Callable[[Request], Response]:
        """Returns a handler whose errors are answered as the specification has it."""

        def answer(request: Request) -> Response:
            unknown = next((code for part, code in _UNKNOWN.items() if part in request.url.path), "NAME_UNKNOWN")
            if self._passwords is not None and not self._passwords.admits(request.headers.get("authorization")):
                refused = _error(401, "UNAUTHORIZED", UsageError("log in first, with a user of this registry"))
                refused.headers["WWW-Authenticate"] = 'Basic realm="blockmap"'
                return refused
            try:
                return handle(request)
            except NotFound as error:
                return _error(404, unknown, error)
            except UsageError as error:
                return _error(400, "NAME_INVALID", error)
            except Untrusted as error:
                return _error(403, "DENIED", error)
            except StoreUnavailable as error:
                return _error(503, "UNAVAILABLE", error)
            except BlockmapError as error:
                _log.error("%s %s: %s", request.method, request.url.path, error)
                return _error(500, "UNKNOWN", error)

        return answer

    def _by_tag(self, request: Request, tag: str) -> Document:
        missing: BlockmapError = NotFound("no name is given")
        for repo in _names(request):
            try:
                return self._offers.manifest(find_version(self._repository, parse_reference(f"{repo}:{tag}")).version)
            except NotFound as error:
                missing = error
        raise missing

    def _by_digest(self, request: Request, digest: bytes) -> Document:
        repo = _names(request)[0]
        known = self._served.document(digest, True)
        if known is not None:
            return known
        found = find_version(self._repository, parse_reference(f"{repo}@sha256:{digest.hex()}"))
        made = self._offers.manifest(found.version)
        if made.digest == digest:
            return made
        index = None if found.document is None else oci.decode(found.document).index
        if index is not None:
            return Document(digest, str(parse(index, "the index").get("mediaType") or _INDEX), index)
        raise NotFound(
            f"the blobs of sha256:{digest.hex()} cannot be made again here (import the image with --keep-blobs); the same image is "
            f"here as sha256:{made.digest.hex()}"
        )

    def _look_for(self, request: Request, digest: bytes) -> None:
        """Makes the manifests of the images of a name, one of which may list a blob that was given by another registry."""
        asked = _names(request)
        for repo, tag in self._names.catalogue():
            if repo in asked and self._served.layer(digest) is None and self._served.document(digest, False) is None:
                try:
                    self._offers.manifest(find_version(self._repository, parse_reference(f"{repo}:{tag}")).version)
                except NotFound:
                    continue


def _error(status: int, code: str, error: Exception) -> Response:
    return _json({"errors": [{"code": code, "message": str(error)}]}, status=status)


def _json(value: Any, media: str = "application/json", status: int = 200) -> Response:
    return Response(json.dumps(value), status, {"Content-Type": media})


def _names(request: Request) -> list[str]:
    """Returns what an image may be called in the store, the likeliest first: a mirror is asked for docker's names."""
    name, registry = request.path_params["name"], request.query_params.get("ns")
    found = [f"{registry}/{name}", name] if registry else [name]
    if name.startswith(_OFFICIAL):
        found += [f"docker.io/{name}", name.removeprefix(_OFFICIAL)]
    return found


def _page(request: Request, listed: Sequence[str]) -> list[str]:
    last = request.query_params.get("last", "")
    try:
        count = min(int(request.query_params.get("n", _MOST_TAGS)), _MOST_TAGS)
    except ValueError:
        raise UsageError("n is a number") from None
    return [each for each in listed if each > last][: max(count, 0)]


def _range(request: Request, size: int) -> tuple[int, int, bool]:
    """Returns first byte, end and whether a part is asked for; an empty range where it cannot be given."""
    header = request.headers.get("range")
    found = _RANGE.fullmatch(header) if header else None
    if found is None or found[1] == found[2] == "":
        return 0, size, False
    if found[1] == "":
        return max(size - int(found[2]), 0), size, True
    return int(found[1]), min(int(found[2]) + 1, size) if found[2] else size, True


def _chain(first: bytes, rest: Iterator[bytes]) -> Iterator[bytes]:
    yield first
    yield from rest
