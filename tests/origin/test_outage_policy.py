"""The outage contract as people write it."""

import pytest

from blockmap.errors import UsageError
from blockmap.origin.outage_policy import OutagePolicy, parse, parse_option


@pytest.mark.parametrize(("text", "seconds"), [("fail", 0.0), ("wait=90", 90.0), ("wait=0.5", 0.5), ("wait=0", 0.0)])
def test_what_is_understood(text: str, seconds: float) -> None:
    assert parse(text) == OutagePolicy(seconds)
    assert parse_option(text) == ("", OutagePolicy(seconds))
    assert parse_option(f"redis:1={text}") == ("redis:1", OutagePolicy(seconds))
    assert parse(str(OutagePolicy(seconds))) == OutagePolicy(seconds)


@pytest.mark.parametrize(
    "text", ["", "wait", "wait=", "wait=-1", "wait=x", "wait=inf", "wait=1e9", "FAIL", "redis:1", "a=b=c", "=="]
)
def test_what_is_not(text: str) -> None:
    with pytest.raises(UsageError, match="wait=SECONDS"):
        parse_option(text)
