"""Holds what the plots of a report share.

Groups differ in the shape of their marks, in hatching or in their row as well as in colour. The colours are near Okabe and
Ito's, which colour-blind people can tell apart.
"""

from typing import Any, Final

from bokeh.models import Legend, LegendItem, Span

COLORS: Final = ("#0072b2", "#e69f00", "#009e73", "#d55e00", "#56b4e9", "#cc79a7", "#a89a00", "#5a3ea8", "#8c510a")
MARKS: Final = ("circle", "square", "triangle", "diamond", "inverted_triangle", "hex", "plus", "star", "x")
REST_COLOR: Final = "#8f8f8f"
READY_COLOR: Final = "#b00020"
TOOLS: Final = "pan,box_zoom,xwheel_zoom,reset,save"
SECONDS: Final = "seconds since the device was opened"
_FONT = "9pt"
_LABEL_LENGTH = 40


def shortened(text: str, length: int = _LABEL_LENGTH) -> str:
    """Shortens a text: a path loses its directories, then any text its middle."""
    if len(text) > length and "/" in text:
        text = f"\N{HORIZONTAL ELLIPSIS}/{text.rpartition('/')[2]}"
    if len(text) <= length:
        return text
    head = length // 2
    return f"{text[:head]}\N{HORIZONTAL ELLIPSIS}{text[head + 1 - length :]}"


def legend(items: list[LegendItem], columns: int, visible: bool = True) -> Any:
    """Returns a legend to lay below a plot; a click hides what it names."""
    return Legend(
        items=items, click_policy="hide", ncols=columns, label_text_font_size=_FONT, border_line_color=None, spacing=5,
        padding=2, visible=visible, location="top_left",
    )  # fmt: skip


def mark_ready(plot: Any, ready_ms: int, color: str = READY_COLOR) -> None:
    """Draws a dashed line where the program was ready, if the trace says when."""
    if ready_ms:
        line = Span(location=ready_ms / 1000, dimension="height", line_color=color, line_dash="dashed", line_width=2)
        plot.add_layout(line)
