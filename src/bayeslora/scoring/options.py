"""Option scoring: each choice is read at its own tokens, for a head that learns to tell them apart."""

from __future__ import annotations

from typing import ClassVar

from bayeslora.scoring.cloze import Cloze

__all__ = ["Options"]


class Options(Cloze):
    """Batches as of `Cloze`: choices packed behind their question, blind to each other.

    A `bayeslora.readouts.Head` reads hidden states at the choices' tokens; without one, the logits are cloze's.
    """

    name: ClassVar[str] = "options"
