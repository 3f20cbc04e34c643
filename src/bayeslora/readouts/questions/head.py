"""The head of one question: Gaussian process regression of its labels, and probabilities of its options from it.

Labels are numbers: of a noul +1 and -1, of a score the level's place between -1 and 1, of a choice one in its own
column and zero in the others; soft labels are the means of these, and their scatter is part of the noise. With noise
of variance s2 around a latent f ~ N(m, v), an option whose number is e has p(e | f) proportional to
exp(-|e - f|^2 / 2 tau), tau = (s2 + v) T. T and the share of wrong labels come from exact leave-one-out predictions of
whole states; no record is set aside for them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from bayeslora.prediction.predictive import Predictive
from bayeslora.readouts.evidence import Repeats, Scales, combined, fit_scales
from bayeslora.readouts.label_noise import fit_to_distributions
from bayeslora.readouts.predictive import standard_points
from bayeslora.readouts.questions.kernels import Kernels
from bayeslora.readouts.regression import Regression, Utilities
from bayeslora.tasks.decisions import Question

_ROUNDS = 3
"""Of expectation maximisation, where labels may be wrong."""

_LEAST_RIGHT = 0.05
_NO_NOISE = 1e-3
_POINTS = 256


def positions(question: Question) -> Tensor:
    """The number, or row of numbers, that stands for each option [options, outputs], float64.

    >>> from bayeslora.tasks.decisions import parse_question
    >>> positions(parse_question({"type": "score", "instructions": "How?", "criteria": ["a", "b", "c"]})).flatten()
    tensor([-1.,  0.,  1.], dtype=torch.float64)
    """
    count = len(question.options)
    if question.kind == "choice":
        return torch.eye(count, dtype=torch.float64)
    line = torch.linspace(-1, 1, count, dtype=torch.float64).unsqueeze(1)
    return line.flip(0) if question.kind == "noul" else line


def posterior_of(
    matrices: Sequence[Tensor], weights: Tensor, targets: Tensor, noise: Tensor, centre: Tensor
) -> Regression:
    """Given the labels' numbers, less their centre.

    Args:
        matrices: Of `Kernels.between_points`.
        weights: As in `QuestionHead`, like `targets` and `noise`.
        targets: [records, outputs].
        noise: [records].
        centre: [outputs].
    """
    return Regression.condition(combined(matrices, weights), targets - centre, noise)


@dataclass(frozen=True)
class QuestionHead:
    """A fitted head.

    Args:
        question: What it answers.
        kernels: The training features.
        weights: Prior variance of each kernel.
        targets: Numbers of the labels [records, outputs].
        noise: Noise variance of each record [records].
        centre: Mean of the targets, each as often as its record counts [outputs]: where predictions return to.
        posterior: Of `posterior_of`.
        variance: Noise variance s2 of a right label.
        temperature: T.
        share: Of wrong labels.
        nll: Leave-one-out NLL of the labels, nats, the wrong ones included.
    """

    question: Question
    kernels: Kernels
    weights: Tensor
    targets: Tensor
    noise: Tensor
    centre: Tensor
    posterior: Regression
    variance: float
    temperature: float = 1.0
    share: float = 0.0
    nll: float = float("nan")

    @classmethod
    def fit(
        cls,
        question: Question,
        features: Tensor,
        targets: Tensor,
        states: Sequence[str],
        record_weights: Tensor | None = None,
        *,
        noisy: bool,
    ) -> QuestionHead:
        """Fit everything in closed form or by the evidence.

        Args:
            question: The question.
            features: [records, poolings, layers, hidden].
            targets: Probabilities of the options [records, options].
            states: What records that leave together share.
            record_weights: How much each label counts [records]: the variance of its noise is s2 / weight, weights
                taken relative to their mean. Default: alike.
            noisy: Whether labels may be wrong.
        """
        places, targets = positions(question), targets.double()
        kernels, numbers = Kernels.of(features, record_weights), targets @ places
        # s2 is the noise of a label, and a soft one is the mean of several.
        scatter = targets @ places.square().sum(1) - numbers.square().sum(1)
        matrices = kernels.between_points()
        choices = torch.full((len(targets),), targets.shape[1])
        counting = torch.ones(len(targets), dtype=torch.float64) if record_weights is None else record_weights
        counting = counting / counting.mean()
        centre = (counting[:, None] * numbers).mean(0)
        right = counting
        scales: Scales | None = None
        for _ in range(_ROUNDS if noisy else 1):
            repeats = Repeats(scatter=float((right * scatter).sum()))
            scales = fit_scales(matrices, numbers - centre, right, scales, repeats)
            noise = scales.noise / right
            posterior = posterior_of(matrices, scales.weights, numbers, noise, centre)
            head = cls(question, kernels, scales.weights, numbers, noise, centre, posterior, scales.noise)
            found = fit_to_distributions(head.leave_one_out(states), targets, choices, counting, noisy=noisy)
            if found.share < _NO_NOISE:
                break
            right = found.right.clamp_min(_LEAST_RIGHT) * counting
        return replace(head, temperature=found.temperature, share=found.share, nll=found.nll)

    def described(self) -> dict[str, float]:
        """What was fitted, for metrics.json: leave-one-out NLL (nats), labels, temperature, share of wrong labels."""
        return {
            "nll": self.nll,
            "labels": len(self.targets),
            "temperature": self.temperature,
            "wrong": self.share,
        }

    def moved(self, features: Tensor, kept: Tensor) -> QuestionHead:
        """This prior, noise and temperature on other features of some of its records.

        Adapters have learned from the labels of all records, so what they hold of these looks better than it is:
        evidence and leave-one-out predictions of it would trust it too much.

        Args:
            features: Of all its records, as of `fit`, from other layers or weights.
            kept: Whether each record is one of those [records].
        """
        noise, targets = self.noise[kept], self.targets[kept]
        counting = self.variance / noise
        kernels = Kernels.of(features[kept], counting)
        centre = (counting[:, None] * targets).sum(0) / counting.sum()
        posterior = posterior_of(kernels.between_points(), self.weights, targets, noise, centre)
        return replace(self, kernels=kernels, targets=targets, noise=noise, centre=centre, posterior=posterior)

    def predict(self, features: Tensor) -> Predictive:
        """Of new features [records, poolings, layers, hidden]; its samples are [points, records, options]."""
        cross, own = self.kernels.to_points(features)
        mixed = combined(cross, self.weights)
        prior = (own * self.weights[:, None]).sum(0)[:, None, None]
        return self._predictive(self.posterior.predict(mixed, prior, torch.arange(len(features)).unsqueeze(1)))

    def leave_one_out(self, states: Sequence[str]) -> Predictive:
        """Of the training records, each without all records of its state, at T = 1 where none is fitted yet."""
        places: dict[str, list[int]] = {}
        for row, state in enumerate(states):
            places.setdefault(state, []).append(row)
        width = max(map(len, places.values()))
        table = torch.tensor([rows + [-1] * (width - len(rows)) for rows in places.values()])
        grouped = self.posterior.leave_one_out(table)
        flat, order = table >= 0, table[table >= 0]
        mean = torch.empty_like(self.targets)
        mean[order] = grouped.mean[flat]
        variance = torch.empty(len(states), dtype=torch.float64)
        variance[order] = grouped.covariance.diagonal(dim1=1, dim2=2)[flat]
        return self._predictive(Utilities(mean.unsqueeze(1), variance[:, None, None]))

    def _predictive(self, utilities: Utilities) -> Predictive:
        mean = utilities.mean[:, 0] + self.centre
        variance = utilities.covariance[:, 0, 0].clamp_min(0)
        points = standard_points(mean.shape[1], _POINTS)
        latent = mean + points.unsqueeze(1) * variance.sqrt().unsqueeze(1)
        tau = (self.variance + variance) * self.temperature
        distance = (positions(self.question) - latent.unsqueeze(2)).square().sum(-1)
        samples = torch.log_softmax(-distance / (2 * tau[:, None]), -1)
        # So many records cannot show that an error is rarer than this (Jeffreys): no option is ever impossible.
        rest = 0.5 / (len(self.targets) + 1)
        return Predictive(torch.log((1 - rest) * samples.exp() + rest / samples.shape[-1]))
