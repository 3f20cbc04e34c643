"""The likelihood of a text under S draws: two ways to average, and what is greedy under each.

With p_s(y_t | y_<t, x) the probability that draw s gives to token t of a continuation y of the context x:

    joint     log p(y | x) = log (1/S) sum_s prod_t p_s(y_t | y_<t, x)
    mixture   log p(y | x) = sum_t log (1/S) sum_s p_s(y_t | y_<t, x)

The joint likelihood is the posterior predictive of the whole continuation: one draw of the weights writes all of it. By
the chain rule it is a product over tokens too, with draws weighted by how well they predicted the tokens so far,

    p(y_t | y_<t, x) = sum_s w_s p_s(y_t | y_<t, x),      w_s proportional to prod_{u<t} p_s(y_u | y_<u, x),

where the mixture gives all draws the same weight at every token, as if each token came from a fresh draw. Both are
equal for continuations of one token and for S = 1. A continuation is greedy if each of its tokens is the most probable
one of p(y_t | y_<t, x), with the weights of the likelihood that is asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from bayeslora.prediction.predictive import log_mean_exp

Likelihood = Literal["joint", "mixture"]
LIKELIHOODS = ("joint", "mixture")


def log_likelihood(tokens: Tensor, likelihood: Likelihood) -> float:
    """Log-likelihood of a text in nats, from each draw's log-probabilities of its tokens `[samples, tokens]`."""
    averaged = log_mean_exp(tokens.sum(1)) if likelihood == "joint" else log_mean_exp(tokens).sum()
    return float(averaged)


@dataclass(frozen=True)
class Scored:
    """A continuation under all draws.

    Args:
        tokens: Log-probabilities of its tokens `[samples, tokens]`, nats.
        is_greedy: Whether each token is the most probable one; False where that was not asked for.
    """

    tokens: Tensor
    is_greedy: bool


class ContinuationScorer:
    """Collects what draws say of the continuations of one context that differ in their last token only.

    Args:
        prefix: The continuation without its last token.
        likelihood: Which weights of the draws make a token the most probable one.
        greedy: Whether to find the most probable tokens, which needs sums over the vocabulary.
    """

    def __init__(self, prefix: Sequence[int], likelihood: Likelihood, *, greedy: bool = True):
        self._prefix = torch.tensor(prefix, dtype=torch.long)
        self._likelihood = likelihood
        self._greedy = greedy
        self._tokens: list[Tensor] = []
        self._last: list[Tensor] = []
        self._sum: Tensor | None = None

    def add(self, log_probabilities: Tensor) -> None:
        """Take some more draws: `[samples, tokens, vocabulary]`, at the places that predict the continuation."""
        samples, places, _ = log_probabilities.shape
        prefix = self._prefix.to(log_probabilities.device).expand(samples, -1)
        tokens = log_probabilities[:, : places - 1].gather(-1, prefix.unsqueeze(-1)).squeeze(-1)
        self._tokens.append(tokens.cpu())
        self._last.append(log_probabilities[:, -1].cpu())
        if self._greedy:
            before = nn.functional.pad(tokens.cumsum(1), (1, 0))
            weight = before if self._likelihood == "joint" else torch.zeros_like(before)
            part = torch.logsumexp(weight.unsqueeze(-1) + log_probabilities, 0)
            self._sum = part if self._sum is None else torch.logaddexp(self._sum, part)

    def score(self, last: int) -> Scored:
        """The continuation prefix + `last` under the draws so far."""
        ends = torch.cat(self._last)[:, last : last + 1]
        tokens = torch.cat([torch.cat(self._tokens), ends], 1)
        best = [] if self._sum is None else self._sum.argmax(-1).tolist()
        return Scored(tokens, best == [*self._prefix.tolist(), last])
