"""Generated text with each token coloured by how unsure the model was of it; the bytes of a PNG."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from bayeslora.prediction.generation.result import Measure

_COLUMNS = 88
_PROMPT_LINES = 4
_DPI = 144
_FONT_SIZE = 10.0
_CELL = 6.0
"""Width of a character of DejaVu Sans Mono of that size in points: a whole number of pixels, to which it is rounded."""
_LINE = 19.0
"""Height of a line in points."""
_MARGIN = 16.0
_BAR = 52.0
"""Height of the colour bar with its numbers and name, in points."""
_COLOURS = LinearSegmentedColormap.from_list("unsure", ["#ffffff", "#fee3c5", "#fdb675", "#ee7733"])
_UNDERLINE = "#0072b2"
_GREY = "#777777"
_UNPRINTABLE = "\N{REPLACEMENT CHARACTER}"
_TITLES = {"mutual_information": "mutual information (nats)", "entropy": "entropy (nats)"}


class _Character(NamedTuple):
    character: str
    line: int
    column: int
    token: int


def uncertainty_picture(records: Sequence[Mapping[str, Any]], measure: Measure = "mutual_information") -> bytes:
    """Records as wrapped text, one below the other, with a colour bar; unsure spans are underlined.

    Characters that DejaVu Sans Mono does not have, such as Chinese ones, are shown as boxes.

    Args:
        records: Of `Generation.records`, with `pieces`; their `prompt`, if any, stands above in grey, its last lines.
        measure: What colours the tokens, nats.

    Raises:
        ValueError: There are no records, or they have no texts.
    """
    if not records or any(record.get("pieces") is None for record in records):
        raise ValueError("the picture needs records with texts; give generate a tokenizer.")
    prompts = [_last_lines(_wrapped([str(record.get("prompt", ""))])) for record in records]
    texts = [_wrapped(record["pieces"]) for record in records]
    heights = [_height(part) for pair in zip(prompts, texts, strict=True) for part in pair]
    axes, figure = _page(sum(heights) + len(records) - 1)
    largest = max((value for record in records for value in record[measure]), default=0.0)
    colours = ScalarMappable(Normalize(0, max(largest, 1e-3)), _COLOURS)
    top = 0
    for record, prompt, text in zip(records, prompts, texts, strict=True):
        _write(axes, prompt, top, colour=_GREY)
        top += _height(prompt)
        _shade(axes, text, top, [colours.to_rgba(value) for value in record[measure]])
        unsure = {token for span in record["unsure"] for token in range(span["start"], span["end"])}
        _underline(axes, text, top, unsure)
        _write(axes, text, top, colour="black")
        top += _height(text) + 1
    underlined = "; unsure spans underlined" if any(record["unsure"] for record in records) else ""
    _colour_bar(figure, colours, _TITLES[measure] + underlined)
    buffer = io.BytesIO()
    # Without the version of matplotlib, equal pictures are equal files.
    FigureCanvasAgg(figure).print_figure(buffer, format="png", dpi=_DPI, metadata={"Software": None})
    return buffer.getvalue()


def _wrapped(pieces: Sequence[str]) -> list[_Character]:
    """Every character's place, with lines broken between words where possible; a line break shows as a hook."""
    owners = [token for token, piece in enumerate(pieces) for _ in piece]
    placed: list[_Character] = []
    line = column = 0
    for word in re.finditer(r"\n|[^\S\n]|\S+", "".join(pieces)):
        if word.group() == "\n":
            placed.append(_Character("\N{DOWNWARDS ARROW WITH CORNER LEFTWARDS}", line, column, owners[word.start()]))
            line, column = line + 1, 0
            continue
        if column + len(word.group()) > _COLUMNS and column > 0:
            line, column = line + 1, 0
            if word.group().isspace():
                continue
        for offset, character in enumerate(word.group()):
            if column == _COLUMNS:
                line, column = line + 1, 0
            shown = character if character.isprintable() else " " if character.isspace() else _UNPRINTABLE
            placed.append(_Character(shown, line, column, owners[word.start() + offset]))
            column += 1
    return placed


def _last_lines(characters: list[_Character]) -> list[_Character]:
    """The last lines, from line 0 on."""
    skipped = _height(characters) - _PROMPT_LINES
    if skipped <= 0:
        return characters
    first, *others = [place._replace(line=place.line - skipped) for place in characters if place.line >= skipped]
    return [first._replace(character="\N{HORIZONTAL ELLIPSIS}"), *others]


def _height(characters: list[_Character]) -> int:
    return characters[-1].line + 1 if characters else 0


def _page(lines: int) -> tuple[Axes, Figure]:
    """Axes in units of characters and lines, with room for the colour bar below."""
    width = _COLUMNS * _CELL + 2 * _MARGIN
    height = lines * _LINE + 2 * _MARGIN + _BAR
    figure = Figure(figsize=(width / 72, height / 72))
    place = (_MARGIN / width, (_MARGIN + _BAR) / height, _COLUMNS * _CELL / width, lines * _LINE / height)
    axes = figure.add_axes(place, xlim=(0, _COLUMNS), ylim=(lines, 0))
    axes.set_axis_off()
    return axes, figure


def _runs(characters: Iterable[_Character], *, by_token: bool) -> Iterator[list[_Character]]:
    """Neighbours on one line, of one token if asked."""
    for _, run in groupby(characters, lambda place: (place.line, place.token if by_token else 0)):
        yield list(run)


def _write(axes: Axes, characters: list[_Character], top: int, colour: str) -> None:
    for run in _runs(characters, by_token=False):
        text = "".join(place.character for place in run)
        place = (run[0].column, top + run[0].line + 0.5)
        font: dict[str, Any] = {"family": "DejaVu Sans Mono", "size": _FONT_SIZE, "color": colour}
        axes.text(*place, text, ha="left", va="center_baseline", parse_math=False, **font)


def _shade(axes: Axes, characters: list[_Character], top: int, colours: Sequence[Any]) -> None:
    for run in _runs(characters, by_token=True):
        corner = (run[0].column, top + run[0].line + 0.04)
        axes.add_patch(Rectangle(corner, len(run) - 0.1, 0.92, facecolor=colours[run[0].token], linewidth=0))


def _underline(axes: Axes, characters: list[_Character], top: int, unsure: set[int]) -> None:
    marked = [place for place in characters if place.token in unsure]
    for _, run in groupby(enumerate(marked), lambda entry: (entry[1].line, entry[1].column - entry[0])):
        places = [place for _, place in run]
        height = top + places[0].line + 0.9
        ends = [places[0].column, places[-1].column + 1]
        axes.plot(ends, [height, height], color=_UNDERLINE, linewidth=2, solid_capstyle="butt")


def _colour_bar(figure: Figure, colours: ScalarMappable, label: str) -> None:
    width, height = (72 * size for size in figure.get_size_inches())
    axes = figure.add_axes((_MARGIN / width, (_MARGIN + 24) / height, 0.45, 9 / height))
    bar = figure.colorbar(colours, cax=axes, orientation="horizontal")
    bar.locator = MaxNLocator(5)
    bar.update_ticks()
    bar.ax.tick_params(labelsize=8)
    bar.outline.set_linewidth(0.5)
    bar.set_label(label, fontsize=9)
