"""One colour, marker and line style for each method in every picture."""

from __future__ import annotations

import itertools
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

BASELINE = "lora"
"""The row that others are held against: plain LoRA."""

OUR_METHOD = "bayesian_lora"

_FIXED = {BASELINE: "#000000", OUR_METHOD: "#d55e00"}
_COLOURS = (
    "#332288",
    "#44aa99",
    "#88ccee",
    "#aa4499",
    "#117733",
    "#999933",
    "#882255",
    "#ddcc77",
    "#cc6677",
    "#888888",
)
"""Paul Tol's muted scheme (https://personal.sron.nl/~pault/), made for the common colour blindnesses, and a grey."""

_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
_LINES = ("-", "--", ":", "-.")

OUTSIDE_COLOURS = ("#d55e00", "#0072b2", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
"""Okabe and Ito's scheme, for the splits of one picture."""


@dataclass(frozen=True)
class Style:
    """How a method is drawn."""

    colour: str
    marker: str
    line: str


def styles(methods: Sequence[str]) -> dict[str, Style]:
    """The style of each method: variants ("lora + temperature" of "lora") share a colour and differ in their lines.

    So do methods beyond the number of colours.

    Args:
        methods: All methods of the file, so that the pictures of its tasks agree.
    """
    free, colours = itertools.cycle(_COLOURS), dict(_FIXED)
    markers, lines = itertools.cycle(_MARKERS), defaultdict[str, Iterator[str]](lambda: itertools.cycle(_LINES))
    found = {}
    for method in methods:
        family = re.split(r"\s*[+(,]", method, maxsplit=1)[0]
        if family not in colours:
            colours[family] = next(free)
        found[method] = Style(colours[family], next(markers), next(lines[colours[family]]))
    return found
