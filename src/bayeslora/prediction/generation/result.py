"""What generation gives back: tokens, how sure the model was of each, and scores of whole sequences."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from bayeslora.prediction.predictive import log_mean_exp

Measure = Literal["mutual_information", "entropy"]


@dataclass(frozen=True)
class Span:
    """Consecutive generated tokens of which the model was unsure.

    Attributes:
        start: Position of its first token among the generated ones.
        end: Position after its last token.
        value: The measure's mean over the span, nats.
        text: What it says; None without a tokenizer.
    """

    start: int
    end: int
    value: float
    text: str | None


@dataclass(frozen=True, kw_only=True)
class Generation:
    """Generated sequences with the uncertainty of each token. Where `mask` is False, statistics are 0.

    All are those of the model's own distribution of the next token, before temperature, penalties and filters.

    Attributes:
        tokens: Generated ids `[batch, new_tokens]`, without the prompt; padding after a sequence has ended.
        mask: True for generated tokens, an end-of-sequence token included `[batch, new_tokens]`.
        draw_log_probabilities: Log-probability of each token in each draw `[samples, batch, new_tokens]`, nats. One row
            for the posterior mean.
        entropy: Entropy of the distribution averaged over draws `[batch, new_tokens]`, nats: total uncertainty.
        mutual_information: That entropy minus the mean entropy of the draws, nats: epistemic uncertainty.
        num_samples: Draws that took part; 0 for the posterior mean, and for a model without a posterior.
        pieces: Text of each token of each sequence, which joined give its text; None without a tokenizer. Special
            tokens are "", and the bytes of a character that several tokens share come with its last one.
    """

    tokens: Tensor
    mask: Tensor
    draw_log_probabilities: Tensor
    entropy: Tensor
    mutual_information: Tensor
    num_samples: int
    pieces: list[list[str]] | None = None

    @property
    def texts(self) -> list[str] | None:
        """The generated texts, without special tokens; None without a tokenizer."""
        return None if self.pieces is None else ["".join(pieces) for pieces in self.pieces]

    @property
    def log_probability(self) -> Tensor:
        """log (1/S) sum_s p_s(y_t | y_<t) of each token `[batch, new_tokens]`, nats."""
        return log_mean_exp(self.draw_log_probabilities)

    @property
    def mean_log_probability(self) -> Tensor:
        """Mean over the tokens of `log_probability` `[batch]`, nats; minus it is the log perplexity."""
        return self.log_probability.sum(-1) / self.mask.sum(-1)

    @property
    def log_likelihood(self) -> Tensor:
        """log (1/S) sum_s prod_t p_s(y_t | y_<t) of each sequence `[batch]`, nats: one draw speaks for the whole."""
        return log_mean_exp(self.draw_log_probabilities.sum(-1))

    def spans(self, threshold: float, measure: Measure = "mutual_information") -> list[list[Span]]:
        """Runs of tokens whose `measure` exceeds `threshold` (nats), for each sequence.

        What is much differs from model to model; `bayeslora.runs.unsure.unsure_above` finds a run's own value, as
        `bayeslora generate` does.

        Raises:
            ValueError: There is no such measure.
        """
        unsure = self.values(measure).gt(threshold) & self.mask
        rows = enumerate(unsure.tolist())
        return [[self._span(row, start, end, measure) for start, end in _runs(flags)] for row, flags in rows]

    def values(self, measure: Measure) -> Tensor:
        """The measure of each token `[batch, new_tokens]`, nats.

        Raises:
            ValueError: There is no such measure.
        """
        if measure not in ("mutual_information", "entropy"):
            raise ValueError(f"measure must be 'mutual_information' or 'entropy', got {measure!r}.")
        return self.mutual_information if measure == "mutual_information" else self.entropy

    def records(self, threshold: float, measure: Measure = "mutual_information") -> Iterator[dict[str, Any]]:
        """One record per sequence, ready for JSON; the fields are those of docs/guides/generation.md."""
        scores = zip(self.mean_log_probability.tolist(), self.log_likelihood.tolist(), strict=True)
        columns = ("tokens", "log_probability", "entropy", "mutual_information")
        values = {name: getattr(self, name) for name in columns}
        for row, ((mean, joint), spans) in enumerate(zip(scores, self.spans(threshold, measure), strict=True)):
            shown = self.mask[row]
            record: dict[str, Any] = {"text": None if self.texts is None else self.texts[row]}
            record |= {"mean_log_probability": mean, "log_likelihood": joint, "num_samples": self.num_samples}
            record |= {name: column[row][shown].tolist() for name, column in values.items()}
            record["pieces"] = None if self.pieces is None else self.pieces[row]
            record["unsure"] = [vars(span) for span in spans]
            yield record

    def _span(self, row: int, start: int, end: int, measure: Measure) -> Span:
        text = None if self.pieces is None else "".join(self.pieces[row][start:end])
        return Span(start, end, float(self.values(measure)[row, start:end].mean()), text)


def _runs(flags: list[bool]) -> Iterator[tuple[int, int]]:
    """First and past-the-last position of each run of True."""
    start = None
    for position, flag in enumerate([*flags, False]):
        if flag and start is None:
            start = position
        elif not flag and start is not None:
            yield start, position
            start = None
