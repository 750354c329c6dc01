"""Learns from one start if that has something to teach; a server runs this in a process of its own:

    python -m blockmap.learn.automatic STORE CACHE EXPORT TRACE [TRUSTED KEY]...

The last line that it prints says what came of it.
"""

import logging
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path

from blockmap.errors import BlockmapError
from blockmap.format.refs import parse_reference
from blockmap.format.signature import parse_public_key
from blockmap.learn.learner import ProfileLearner, find_subject
from blockmap.learn.local_files import LocalProfiles, load_trace
from blockmap.local.paths import profiles_folder
from blockmap.store.opening import open_store
from blockmap.store.signing import Trust

_log = logging.getLogger("blockmap")

_MISSED_SHARE = 0.1
"""A start that missed more of what it read teaches something."""
_MAX_WAIT_S = 60.0
"""Each process waits for a random time, so that not all hosts publish what they learnt from one event at once."""


def learn_from_start(
    store_url: str, cache: Path, export: str, trace: Path, warn: Callable[[str], None], trust: Trust | None = None
) -> str:
    """Merges the trace of a start of `export` with what is known, if that lacked enough of it, or has too much.

    Returns what came of it, for people; UsageError, NotFound, Untrusted, FormatError, Corrupt, StoreError.
    """
    store, _ = open_store(store_url)
    subject = find_subject(store, parse_reference(export), trust)
    learner = ProfileLearner(store, subject, LocalProfiles(profiles_folder(cache)), warn, trust)
    start = load_trace(trace)
    share, has_too_much = learner.judge(start)
    if share <= _MISSED_SHARE and not has_too_much:
        return f"nothing new learnt from this start, {share:.0%} of it was not known"
    learnt = learner.learn([start])
    profile = learnt.profile
    about = f"{len(profile.items):,} items from {profile.starts} starts"
    if learnt.kept is not None:
        return f"the store cannot be written from here: a profile of {about} stays on this host, in {learnt.kept}"
    return f"profile {profile.n} of {about}, with bundles for {len(learnt.bundles)} versions"


def _main(store_url: str, cache: str, export: str, trace: str, *keys: str) -> None:
    logging.basicConfig(format="%(message)s")
    time.sleep(random.uniform(0, _MAX_WAIT_S))
    try:
        trust = Trust(tuple(map(parse_public_key, keys)))
        print(learn_from_start(store_url, Path(cache), export, Path(trace), _log.warning, trust))
    except BlockmapError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    _main(*sys.argv[1:])
