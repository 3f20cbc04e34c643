"""Pictures, drawn without pyplot and so without global state; each is the bytes of a PNG."""

from __future__ import annotations

import base64
import io
import math
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

GREY = "#777777"
SMALL = 8
"""Size of fonts in a panel."""


@dataclass(frozen=True)
class Picture:
    """A picture with its words.

    Attributes:
        name: File name without its ending.
        title: Line above it.
        caption: What it shows, for readers and for those who cannot see it.
        png: The file.
    """

    kind = "picture"
    name: str
    title: str
    caption: str
    png: bytes

    @property
    def data_uri(self) -> str:
        """The picture as an address that holds the picture itself."""
        return "data:image/png;base64," + base64.b64encode(self.png).decode()


def panel_grid(number: int, *, width: float = 2.1, height: float = 2.35, columns: int = 4) -> tuple[Figure, list[Axes]]:
    """A figure with `number` panels in rows of at most `columns`."""
    columns = min(columns, number)
    lines = math.ceil(number / columns)
    figure = Figure(figsize=(max(width * columns, 4) + 0.4, height * lines + 0.4), layout="constrained")
    grid = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False).ravel().tolist()
    for axes in grid[:number]:
        plain(axes)
    for axes in grid[number:]:
        axes.set_visible(False)
    for axes in grid[max(0, number - columns) : number]:
        axes.xaxis.set_tick_params(labelbottom=True)
    return figure, grid[:number]


def plain(axes: Axes) -> None:
    """Small labels, and no frame above and on the right."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=SMALL)


def legend(figure: Figure, axes: Axes) -> None:
    """One legend for the whole figure, by the lines of `axes`."""
    plain(axes)
    handles, names = axes.get_legend_handles_labels()
    figure.legend(handles, names, loc="outside right upper", fontsize=SMALL, frameon=False)


def png(figure: Figure) -> bytes:
    """The bytes of a PNG; equal pictures are equal files."""
    buffer = io.BytesIO()
    # Without the version of matplotlib, equal pictures are equal files.
    FigureCanvasAgg(figure).print_figure(buffer, format="png", dpi=150, metadata={"Software": None})
    return buffer.getvalue()
