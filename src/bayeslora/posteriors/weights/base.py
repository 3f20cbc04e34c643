"""What a distribution over one LoRA factor has to offer."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

from torch import Tensor


class KL(NamedTuple):
    """The two parts of the KL from posterior to prior, in nats."""

    inducing: Tensor
    """Of the inducing variables; in a family without any, of the weights themselves."""
    conditional: Tensor
    """Of the weights given the inducing variables, E_q(V) KL[q(W | V) || p(W | V)]."""

    @property
    def total(self) -> Tensor:
        """The sum of both parts."""
        return self.inducing + self.conditional


class Noise(NamedTuple):
    """What some draws of stacked factors are made of."""

    numbers: Tensor
    """Standard normal `[samples, ..., count]`: all that a factor needs for a draw, side by side."""
    shapes: tuple[tuple[int, ...], ...]
    """What they are cut into: `WeightPosterior.noise_shapes`."""
    uniform: Tensor
    """One number in [0, 1) per draw `[samples]`, shared by all factors of a model."""
    number: Tensor
    """Number of each draw `[samples]`, int64."""

    @property
    def normal(self) -> tuple[Tensor, ...]:
        """Standard normal `[samples, ..., *shape]`, one for each of the shapes."""
        pieces = self.numbers.split([math.prod(shape) for shape in self.shapes], dim=-1) if self.shapes else ()
        return tuple(piece.unflatten(-1, shape) for piece, shape in zip(pieces, self.shapes, strict=True))


@dataclass(frozen=True)
class WeightPosterior(ABC):
    """A family of distributions over a factor W `[rows, columns]`.

    It holds no tensors: it is what is fixed about one factor shape, and the pure functions of its parameters. Those
    take stacked parameters `[..., *]`, so that all factors of one shape are evaluated in a few batched kernels. Each
    parameter has two dimensions or more.

    Args:
        rows: o.
        columns: i.
    """

    rows: int
    columns: int

    draws_in_training: ClassVar[bool] = True
    """Whether training uses draws; otherwise it uses the mean, and draws are for prediction only."""
    location: ClassVar[tuple[str, ...]] = ("mean",)
    """Names of the parameters that are ordinary LoRA matrices; the others are variational."""
    fixed: ClassVar[tuple[str, ...]] = ()
    """Names of parameters that no optimizer trains."""
    of_layer: ClassVar[tuple[str, ...]] = ()
    """Names among the fixed of what the layer below gives, and a new mean leaves as it is."""

    @property
    def packed(self) -> bool:
        """Whether a factor stores its variational parameters, all but `location` and `fixed`, in one tensor."""
        return False

    @property
    def flipout(self) -> bool:
        """Whether each row of a training batch has its own signs of the perturbation (arXiv 1803.04386)."""
        return False

    @property
    def kl_is_estimate(self) -> bool:
        """Whether `kl` is a Monte Carlo estimate, which needs noise."""
        return False

    @property
    @abstractmethod
    def noise_shapes(self) -> tuple[tuple[int, ...], ...]:
        """Shapes of the normal noise of one draw of one factor."""

    @abstractmethod
    def initial(self, weight: Tensor) -> dict[str, Tensor]:
        """Parameters whose mean is `weight` `[rows, columns]`."""

    @abstractmethod
    def mean_weight(self, parameters: Mapping[str, Tensor]) -> Tensor:
        """The deterministic factor of eval mode `[..., rows, columns]`."""

    @abstractmethod
    def sample_weight(self, parameters: Mapping[str, Tensor], noise: Noise) -> Tensor:
        """Draws of W `[samples, ..., rows, columns]`."""

    def training_weight(self, parameters: Mapping[str, Tensor], noise: Noise) -> Tensor:
        """What training uses in the place of those draws: a relaxation where they are discrete, else the draws."""
        return self.sample_weight(parameters, noise)

    @abstractmethod
    def kl(self, parameters: Mapping[str, Tensor], noise: Noise | None) -> KL:
        """KL from posterior to prior, `[...]` each; `noise` serves the families that estimate it."""


def no_kl(weight: Tensor) -> KL:
    """That of a family without a density: zeros `[...]` for factors `[..., rows, columns]`."""
    zero = weight.new_zeros(weight.shape[:-2])
    return KL(zero, zero)
