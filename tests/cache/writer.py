"""A process that fills a cache until it is killed; says `ready` once half a second of its work is in the journal."""

import random
import sys
from pathlib import Path

from blockmap.cache.cache import Cache
from blockmap.format import BLOCK
from tests.cache.contents import content, name, with_holes

NUMBERS = 600


def blocks_of(number: int) -> int:
    return number * 7 % 16 + 1


def main() -> None:
    cache = Cache(Path(sys.argv[1]), int(sys.argv[2]))
    chance = random.Random(int(sys.argv[3]))
    for step in range(1 << 30):
        number = chance.randrange(NUMBERS)
        blocks = blocks_of(number)
        mask = chance.getrandbits(blocks) if chance.random() < 0.4 else (1 << blocks) - 1
        if mask:
            cache.put(name(number), with_holes(content(number, blocks * BLOCK), mask), mask)
        if chance.random() < 0.02:
            cache.discard(cache.lookup(name(chance.randrange(NUMBERS))))
        if step == 500:
            cache.flush()
        if step > 500 and step % 50 == 0:
            print(step, flush=True)


if __name__ == "__main__":
    main()
