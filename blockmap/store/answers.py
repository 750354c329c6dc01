"""Translates obstore's errors: into a kind, and one line of their pages of text, without what may be secret."""

import os
import re
from typing import TYPE_CHECKING

from obstore.exceptions import (
    AlreadyExistsError,
    BaseError,
    NotSupportedError,
    PermissionDeniedError,
    UnauthenticatedError,
)

from blockmap.errors import AlreadyExists, BlockmapError, NotFound, StoreReadOnly, StoreRefused, StoreUnavailable

if TYPE_CHECKING:
    from obstore import GetResult

ERRORS = (BaseError, OSError, ValueError, NotImplementedError)
"""Errors that calls of obstore raise: its own, and FileNotFoundError and others for some."""

_STATUS = re.compile(r"status code: (\d{3})( \w[\w -]*)?")
_CODE = re.compile(r"<Code>([^<]{1,100})</Code>|\(code: (\w{1,100})\)")
_MESSAGE = re.compile(r"<Message>([^<]{1,300})")
_SAID = re.compile(r'(?:message|error): "([^"\n]{1,200})')
_QUERY = re.compile(r"\?[^\s,)]*")  # a signature may be in it
_TIMES = re.compile(r" in [\d.]+(?:[mnµ]?s)\b(?:, after \d+ retries, max_retries: \d+, retry_timeout: \w+)? *")
_MAX_CHARACTERS = 300
_CREDENTIALS = {
    "s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_SKIP_SIGNATURE=true for a bucket that anybody may read",
    "az": "AZURE_STORAGE_ACCOUNT_KEY or AZURE_STORAGE_SAS_TOKEN",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS",
}
_DENIED = ("AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "AuthorizationFailure")
_LIES = {
    "Range request not supported": "answers a range with the whole object (200 instead of 206)",
    "non-partial response": "answers a range with the whole object (200 instead of 206)",
    "Content-Range header not present": "answers a range without saying which (Content-Range is missing)",
    "Failed to parse value for CONTENT_RANGE": "answers a range without saying which (Content-Range is not understood)",
    "Content-Length Header missing": "does not say how long its answers are (Content-Length is missing)",
    "error following redirect": "redirects without end, or to nowhere",
}
"""What a server that breaks HTTP does, by words in the error."""
_OTHER_RANGE = re.compile(r"Requested (\d+)\.\.(\d+), got (\d+)\.\.(\d+)")
_CODINGS = ("gzip", "x-gzip", "deflate", "br", "zstd", "compress")
_ROLES = re.compile("/latest/api/token|/latest/meta-data|/metadata/identity|/computeMetadata/")
"""Where obstore looks for the role of a cloud's machine when nothing else says who it is."""


def is_broken_off(error: Exception) -> bool:
    """Returns True if the answer began, and ended too early."""
    return "response body" in str(error)


def is_past_end(error: Exception) -> bool:
    """Returns True if a range was refused because it begins at or behind the end of its object."""
    return _status(error) == 416 or "Wanted range starting at" in str(error)


def check_coding(answer: "GetResult", url: str) -> None:
    """Raises StoreRefused where an answer is compressed, which nobody asked for: its bytes are not the object's."""
    coding = answer.attributes.get("Content-Encoding", "")
    if coding.lower() in _CODINGS:
        raise StoreRefused(
            f"{url} compresses its answers (Content-Encoding: {coding}): have its server or proxy leave them as they are"
        )


def explain(error: Exception, url: str, key: str, *, writing: bool = False) -> BlockmapError:
    """Returns the error to raise when a call for `key` failed: StoreUnavailable for a write whose outcome is unknown."""
    what = f"{url}/{key}" if key else url
    text = str(error)
    if isinstance(error, AlreadyExistsError):
        return AlreadyExists(f"{what} exists already")
    if "NoSuchBucket" in text or "ContainerNotFound" in text:
        return StoreUnavailable(
            f"the bucket of {url} does not exist: make it with your provider's tools, or correct the URL"
        )
    if isinstance(error, FileNotFoundError) and not writing:
        return NotFound(f"there is no {key} in {url}")
    if _ROLES.search(text):
        return StoreUnavailable(
            f"no credentials were found for {url}: set {_CREDENTIALS.get(url.partition(':')[0], 'those of its engine')}"
        )
    said = one_line(error)
    if (
        isinstance(error, (PermissionDeniedError, UnauthenticatedError))
        or _status(error) in (401, 403)
        or _is_denial(text)
    ):
        if writing:
            return StoreReadOnly(f"cannot write {what}: {said}; check that the credentials are right and may write")
        return StoreUnavailable(
            f"may not read {what}: {said}; check the credentials in the environment, which must allow reading and listing"
        )
    if lie := _lie(error):
        return StoreRefused(f"{url} {lie}: its server, or a proxy before it, breaks HTTP; correct it, or use another")
    if isinstance(error, (NotSupportedError, NotImplementedError)) or _status(error) == 501:
        return StoreRefused(f"{url} cannot do what blockmap needs: {said}; use another engine")
    advice = "; is its server up, and its address right?" if "error sending request" in said else ""
    return StoreUnavailable(f"cannot {'write' if writing else 'read'} {what}: {said}{advice}")


def _lie(error: Exception) -> str:
    """What is wrong with an answer that HTTP does not allow, as a predicate; empty where nothing is."""
    text = str(error)
    if found := _OTHER_RANGE.search(text):
        asked, got = f"{found[1]} to {found[2]}", f"{found[3]} to {found[4]}"
        return f"answers a range with another: bytes {got} where {asked} were asked for"
    if is_past_end(error):
        return "refuses a range that the object has (416)"
    return next((lie for words, lie in _LIES.items() if words in text), "")


def one_line(error: Exception) -> str:
    """Returns the part of an error's text that helps a person."""
    text = str(error)
    head, _, debug = text.partition("\n\nDebug source")
    code, message, found = _CODE.search(head), _MESSAGE.search(head), _STATUS.search(head)
    if found or code:
        parts = [f"the server answered {found[1]}{found[2] or ''}".rstrip()] if found else []
        parts += [code[1] or code[2]] if code else []
        parts += [message[1].rstrip(".")] if message else []
        line = ": ".join(parts)
    else:
        line = _TIMES.sub(" ", head.split("\n")[0]).removeprefix("Generic ").partition(" error: ")[2] or head
        if cause := _cause(debug):
            line += f" ({cause})"
    return " ".join(_QUERY.sub("", line).split())[:_MAX_CHARACTERS]


def _cause(debug: str) -> str:
    """Returns the innermost reason, which only the debugging text has."""
    if "kind: Timeout" in debug:
        return "no answer in time"
    if "InvalidCertificate" in debug:
        return f"its certificate is not trusted: {_trust()}"
    if "InvalidContentType" in debug:
        return "it does not speak TLS, or not on this port: http:// instead of https://"
    if said := _SAID.findall(debug):
        return str(said[-1])
    return "the connection broke" if "Incomplete" in debug else ""


def _trust() -> str:
    """Returns what to do about a certificate that is not trusted."""
    named = os.environ.get("SSL_CERT_FILE")
    if not named:
        return "SSL_CERT_FILE can name a file of authorities"
    try:
        with open(named, "rb"):
            pass
    except OSError as error:
        return f"SSL_CERT_FILE names {named}, which cannot be read: {error.strerror}"
    return f"no authority in {named}, which SSL_CERT_FILE names, has signed it"


def _is_denial(text: str) -> bool:
    found = _CODE.search(text)
    return found is not None and (found[1] or found[2]) in _DENIED


def _status(error: Exception) -> int:
    """Returns the HTTP status that an error is about; 0 where there was none."""
    found = _STATUS.search(str(error))
    return int(found[1]) if found else 0
