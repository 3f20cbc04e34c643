"""Option scoring: each choice is read at its own tokens, for a head that learns to tell them apart."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from bayeslora.scoring.base import ChoiceItem
from bayeslora.scoring.cloze import Cloze, ClozeBatch


class Options(Cloze):
    """Batches as of `Cloze`: choices packed behind their question, blind to each other.

    A `bayeslora.readouts.Head` reads hidden states at the choices' tokens; without one, the logits are cloze's.

    Attributes:
        reads: Makes of a batch and its items one whose logits are a head's (`bayeslora.readouts.over_adapters`); None:
            those of cloze.
    """

    name = "options"
    by_heads = True
    reads: Callable[[ClozeBatch, Sequence[ChoiceItem]], ClozeBatch] | None = None

    def __call__(self, items: Sequence[ChoiceItem]) -> ClozeBatch:
        """Batch of `items`."""
        batch = super().__call__(items)
        return batch if self.reads is None else self.reads(batch, items)
