"""Platforms, by which the image of an index that fits a host is chosen."""

import os
from dataclasses import dataclass
from typing import Any

from blockmap.errors import UsageError

_ARCHITECTURES = {
    "x86_64": ("amd64", ""), "aarch64": ("arm64", ""), "armv7l": ("arm", "v7"), "armv6l": ("arm", "v6"),
    "i686": ("386", ""), "i386": ("386", ""), "ppc64le": ("ppc64le", ""), "s390x": ("s390x", ""),
    "riscv64": ("riscv64", ""),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Platform:
    os: str
    architecture: str
    variant: str = ""

    def __str__(self) -> str:
        return "/".join(part for part in (self.os, self.architecture, self.variant) if part)

    def fits(self, offered: dict[str, Any]) -> bool:
        """Returns True if the platform of a descriptor is this one; the variant is compared only if both have one."""
        if (offered.get("os"), offered.get("architecture")) != (self.os, self.architecture):
            return False
        return not self.variant or offered.get("variant", "") in ("", self.variant)


def parse_platform(text: str | None) -> Platform:
    """Parses `OS/ARCH[/VARIANT]`; None stands for this host's platform. Raises UsageError."""
    if text is None:
        machine = os.uname().machine
        return Platform("linux", *_ARCHITECTURES.get(machine, (machine, "")))
    parts = text.split("/")
    if not 2 <= len(parts) <= 3 or not all(parts):
        raise UsageError(f"{text!r} is not a platform: OS/ARCH or OS/ARCH/VARIANT is expected, for example linux/arm64")
    return Platform(*parts)
