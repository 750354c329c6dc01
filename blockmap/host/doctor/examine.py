"""Runs all checks, one after the other."""

from collections.abc import Iterator

from blockmap.errors import BlockmapError
from blockmap.host.doctor import disk, kernel, leftovers, programs, server, store
from blockmap.host.doctor.finding import Check, Examined, Finding, fault, skipped

CHECKS: tuple[Check, ...] = (
    *kernel.CHECKS, *programs.CHECKS, *disk.CHECKS, *server.CHECKS, *store.CHECKS, *leftovers.CHECKS,
)  # fmt: skip


def examine(subject: Examined) -> Iterator[tuple[str, Finding]]:
    """Yields each check's name with what it found."""
    for check in CHECKS:
        yield check.name, look(check, subject)


def look(check: Check, subject: Examined) -> Finding:
    """Returns what a check finds; an error that it meets is a fault, whose text says what to do behind its first colon."""
    try:
        return check.look(subject)
    except BlockmapError as error:
        said, _, advice = str(error).partition(": ")
        return fault(said, advice)
    except PermissionError as error:
        return skipped(f"this user may not look at {error.filename}")
    except OSError as error:
        return fault(f"it cannot be looked at: {error}", "see that this user may read it")
