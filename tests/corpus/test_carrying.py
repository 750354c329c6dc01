"""A version starts by what was learnt from the one before it: its import alone makes its bundle.

Run with -s: prints seconds, bytes and reads that had to be fetched: without a profile, with that of version 1, with its own.
"""

from collections.abc import Callable
from pathlib import Path
from statistics import median

import pytest

from tests.corpus.starts import Started, far, megabytes, record, start_once
from tests.faults.links import need_shared
from tests.host.conftest import Host

pytestmark = [
    pytest.mark.long,
    pytest.mark.root,
    pytest.mark.filterwarnings("ignore:subprocess .* is still running"),  # nbdfuse, which ends when it is unmounted
]

IMAGES = ["redis", "python-flask", "node-express", "python-ml"]
LINK = ("--rtt-ms", "50", "--mbit", "1000")
ROUNDS = 5
LABELS = {"unlearnt": "without", "default": "version 1's", "own": "its own"}
GAIN = 0.9


@pytest.mark.parametrize("image", IMAGES)
def test_version_2_gains_as_much_from_the_profile_of_version_1(
    image: str, corpus: Path, where: Path, need: Callable[..., None], need_root: None
) -> None:
    need("nginx", "nbdkit", "nbdfuse", "losetup")
    need_shared("corpus/run-startup")
    host = Host(where)
    host.do("import", "--quiet", f"oci:{corpus}/{image}:1", f"{image}:1")
    record(where, host.store, f"{image}:1")
    host.do("import", "--quiet", f"oci:{corpus}/{image}:2", f"{image}:2")
    own = record(where, host.store, f"{image}:2", "own")
    took: dict[str, list[Started]] = {label: [] for label in LABELS}
    for number in range(ROUNDS):
        for label in LABELS:
            with far(where / f"{label}-{number}", host.store, "--no-learn", link=LINK) as other:
                took[label].append(start_once(other, f"{image}:2+{label}"))
                replays = other.client.status()["fetch"]["replays"]
                assert [each["failed"] for each in replays] == [""] * (label != "unlearnt")
    print(f"\n{image}:2, bundle of its own profile {megabytes(own['bundles'][0]['bytes'])}, {LINK}")
    for label, title in LABELS.items():
        ready = sorted(each.ready_s for each in took[label])
        data = ", ".join(megabytes(each.remote_bytes) for each in took[label])
        missed = ", ".join(str(each.missed_reads) for each in took[label])
        print(f"  {title}: {median(ready):.2f} s ({ready[0]:.2f} to {ready[-1]:.2f}), {data}, missed reads {missed}")
    without, ported, best = (median(each.ready_s for each in took[label]) for label in LABELS)
    gain = (without - ported) / (without - best)
    print(f"  gain {gain:.2f}")
    assert gain >= GAIN
