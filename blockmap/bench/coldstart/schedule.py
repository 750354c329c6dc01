"""Orders what is measured: every round has each combination once, shuffled, so that no way always goes first."""

import random
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Step:
    """One start."""

    round: int
    image: str
    way: str
    rtt_ms: float | None
    """None where no link lies between: such a way is measured once a round."""


def interleave(
    images: Sequence[str], remote: Sequence[str], local: Sequence[str], rtts_ms: Sequence[float], rounds: int
) -> list[Step]:
    """Returns all steps; the same arguments give the same order."""
    steps = []
    for number in range(rounds):
        for image in images:
            found = [Step(number, image, way, rtt) for way in remote for rtt in rtts_ms]
            found += [Step(number, image, way, None) for way in local]
            random.Random(f"{number} {image}").shuffle(found)
            steps += found
    return steps
