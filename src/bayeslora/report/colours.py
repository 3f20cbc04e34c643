"""One colour, marker and line style for each method in every picture."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass

from bayeslora.report.rows import BASELINE, OUR_METHOD

__all__ = ["OUTSIDE_COLOURS", "Style", "styles"]

_FIXED = {BASELINE: "#000000", OUR_METHOD: "#d55e00"}
_COLOURS = ("#332288", "#44aa99", "#88ccee", "#aa4499", "#117733", "#999933", "#882255", "#ddcc77", "#cc6677")
"""Paul Tol's muted scheme (https://personal.sron.nl/~pault/), told apart under the common colour blindnesses."""

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

    Args:
        methods: All methods of the file, so that the pictures of its tasks agree.
    """
    families: dict[str, list[str]] = {}
    for method in methods:
        families.setdefault(_family(method), []).append(method)
    free = itertools.cycle(_COLOURS)
    found = {}
    for number, (family, members) in enumerate(families.items()):
        colour = _FIXED.get(family) or next(free)
        for variant, method in enumerate(members):
            marker, line = _MARKERS[(number + variant) % len(_MARKERS)], _LINES[variant % len(_LINES)]
            found[method] = Style(colour, marker, line)
    return {method: found[method] for method in methods}


def _family(method: str) -> str:
    return re.split(r"\s*[+(,]", method, maxsplit=1)[0]
