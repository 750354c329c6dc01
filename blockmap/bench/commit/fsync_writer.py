"""Writes 4 KiB to a file and syncs it, over and over; a program by itself:

    python -I -S fsync_writer.py FILE SECONDS_BETWEEN

Ends when its standard input does; then prints a line for each sync: when it began (monotonic seconds), and how long it took.
"""

import os
import select
import sys
import time


def _main(path: str, between: float) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
    taken: list[tuple[float, float]] = []
    number = 0
    while not select.select([0], [], [], between)[0]:
        number += 1
        began = time.monotonic()
        os.pwrite(fd, number.to_bytes(8, "little") * 512, 0)
        os.fsync(fd)
        taken.append((began, time.monotonic() - began))
    for began, seconds in taken:
        print(began, seconds)


if __name__ == "__main__":
    _main(sys.argv[1], float(sys.argv[2]))
