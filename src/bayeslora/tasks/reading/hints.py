"""The 'did you mean' part of an error message."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def nearest(wrong: str, known: Iterable[str]) -> str:
    """Return "did you mean 'x' or 'y'? " for the nearest known names, or nothing if none is near."""
    by_lower = {name.lower(): name for name in known}
    close = difflib.get_close_matches(wrong.lower(), by_lower, n=3, cutoff=0.5)
    if not close:
        return ""
    return "did you mean " + " or ".join(repr(by_lower[name]) for name in close) + "? "
