"""Times as people read them."""

import pytest

from blockmap.terminal.times import ago


@pytest.mark.parametrize(
    ("passed", "said"),
    [
        (-5, "just now"), (1.9, "just now"), (2, "2 seconds ago"), (119, "119 seconds ago"), (120, "2 minutes ago"),
        (7199, "119 minutes ago"), (7200, "2 hours ago"), (2 * 86400, "2 days ago"), (13 * 86400, "13 days ago"),
        (14 * 86400, "2 weeks ago"), (60 * 86400, "2 months ago"), (800 * 86400, "2 years ago"),
    ],
)  # fmt: skip
def test_how_long_ago(passed: float, said: str) -> None:
    assert ago(1000.0, 1000.0 + passed) == said
