"""Temperature scaling of a predictive distribution (arXiv 1706.04599)."""

from __future__ import annotations

import torch
from torch import Tensor

from bayeslora.predictive import Predictive

__all__ = ["fit_temperature"]


def fit_temperature(predictive: Predictive, labels: Tensor) -> float:
    """The temperature with the least NLL of the predictive on held-out items, by L-BFGS on its logarithm.

    Each draw's log-probabilities are divided by it before the draws are averaged; for a single draw this is the
    temperature scaling of the source.

    Args:
        predictive: Of the dev items, never of the test items.
        labels: Right choices [items].

    Raises:
        ValueError: There is no item.
    """
    if len(labels) == 0:
        raise ValueError("temperature scaling needs dev items with labels, got none; give the task a dev split.")
    # Finite, or the gradient at choices that an item does not have is not a number.
    samples = predictive.samples.double().clamp_min(-1e4)
    log_temperature = torch.zeros((), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([log_temperature], max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        # Bounded: where every dev item is right, the best temperature would be 0.
        scaled = Predictive(torch.log_softmax(samples / log_temperature.clamp(-3, 5).exp(), -1))
        loss = torch.nn.functional.nll_loss(scaled.log_probabilities, labels)
        loss.backward()
        return loss

    with torch.enable_grad():
        optimizer.step(closure)
    return float(log_temperature.detach().clamp(-3, 5).exp())
