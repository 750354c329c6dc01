"""Draws seconds to ready over round-trip time, one panel for each image."""

from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from blockmap.bench.coldstart.report import ReadyFigures
from blockmap.errors import HostError

_PANEL_INCHES = 5.0


def need_matplotlib() -> Any:
    """matplotlib.figure; HostError where it is not installed. A figure of its own needs no display."""
    try:
        from matplotlib import figure
    except ImportError:
        raise HostError("--plot needs matplotlib, which is not installed: pip install matplotlib") from None
    return figure


def draw(figures: Sequence[ReadyFigures], path: Path) -> None:
    """Writes an SVG or PNG, by the file's ending: medians, and bars from the lowest to the highest."""
    images = list(dict.fromkeys(each.image for each in figures))
    canvas = need_matplotlib().Figure(figsize=(_PANEL_INCHES * len(images), _PANEL_INCHES), layout="constrained")
    panels = canvas.subplots(1, len(images), squeeze=False)[0]
    for panel, image in zip(panels, images, strict=True):
        for each in figures:
            if each.image == image:
                _line(panel, each)
        panel.set(title=image, xlabel="round-trip time, ms", ylabel="seconds to ready", yscale="log")
        panel.grid(alpha=0.3)
        panel.legend(fontsize="small")
    canvas.savefig(path)


def _line(panel: Any, figures: ReadyFigures) -> None:
    if None in figures.ready_s:
        panel.axhline(median(figures.ready_s[None]), label=figures.way, color="black", linestyle=":")
        return
    points = sorted((rtt, values) for rtt, values in figures.ready_s.items() if rtt is not None)
    middles = [median(values) for _, values in points]
    below = [middle - min(values) for middle, (_, values) in zip(middles, points, strict=True)]
    above = [max(values) - middle for middle, (_, values) in zip(middles, points, strict=True)]
    panel.errorbar([rtt for rtt, _ in points], middles, [below, above], label=figures.way, marker="o", capsize=3)
