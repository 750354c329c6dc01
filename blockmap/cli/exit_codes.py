"""What the exit status of the program says; `blockmap help exit-codes` prints it."""

NO_SERVER = 3
"""`status` and `stop` found no server."""

EXIT_CODES = (
    ("0", "it is done"),
    (
        "1",
        "it failed, and the message says why; doctor: there is a fault; verify and fsck: something is damaged, and was not mended",
    ),
    ("2", "the command makes no sense as it was given: an option, a name, a source, or a store that is there already"),
    ("3", "status and stop: no server answers"),
    ("126", "run and exec: the program cannot be executed"),
    ("127", "run and exec: the program is not in the image"),
    ("128+N", "run and exec: signal N ended the program; any other status of theirs is the program's own"),
    ("130", "it was interrupted, by ctrl-C or a signal"),
)
"""Each status, and what it means."""
