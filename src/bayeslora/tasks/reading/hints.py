"""The 'did you mean' inside of an error message."""

from __future__ import annotations

from collections.abc import Iterable

from bayeslora.options.registry import did_you_mean


def nearest(wrong: str, known: Iterable[str]) -> str:
    """Return "did you mean 'x' or 'y'? " for the nearest known names, or nothing if none is near."""
    hint = did_you_mean(wrong, known, number=3, cutoff=0.5).lstrip()
    return f"d{hint[1:]} " if hint else ""
