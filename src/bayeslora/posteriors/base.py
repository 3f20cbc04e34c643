"""What a variational distribution over the whitened inducing variables has to offer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

Parameters = Mapping[str, Tensor]


@dataclass(frozen=True)
class InducingPosterior(ABC):
    """q(V) over whitened inducing variables V `[rows, columns]`, whose prior is p(V) = N(0, I).

    A posterior holds no tensors: it is the set of functions of one family. Its parameters live, one flat tensor per
    name, on the factor that uses them, so that several factors of one shape can be stacked into leading dimensions
    `[...]` and evaluated in one kernel each.

    Args:
        rows: Number of inducing rows m_r.
        columns: Number of inducing columns m_c.
        std: Standard deviation of q(V) at the start, in units of the prior's. At 1 the posterior starts at the prior.
    """

    rows: int
    columns: int
    std: float = 1.0

    name: ClassVar[str]
    has_kl: ClassVar[bool] = True
    """False where `kl` is a MAP penalty (the negative log-density of point masses) and not a divergence."""
    kl_is_estimate: ClassVar[bool] = False
    """True where `kl` needs noise."""

    @property
    def noise_shape(self) -> tuple[int, ...]:
        """Shape of the standard normal noise of one draw of one factor."""
        return (self.rows, self.columns)

    @abstractmethod
    def initial(self, loc: Tensor) -> dict[str, Tensor]:
        """Trainable parameters of one factor, each with at least two dimensions, centred on `loc` [rows, columns]."""

    def mean(self, parameters: Parameters) -> Tensor:
        """The point of q(V) used in mean mode, `[..., rows, columns]`: of a Gaussian E[V] = loc."""
        return parameters["v_loc"]

    @abstractmethod
    def sample(self, parameters: Parameters, noise: Tensor, uniform: Tensor) -> Tensor:
        """Reparametrised draws.

        Args:
            parameters: Stacked parameters, `[..., *]` each.
            noise: Standard normal noise `[samples, ..., *noise_shape]`.
            uniform: One number in [0, 1) per draw `[samples]`, shared by all factors of a model, for choices that
                must agree between factors.

        Returns:
            V `[samples, ..., rows, columns]`.
        """

    @abstractmethod
    def kl(self, parameters: Parameters, noise: Tensor | None) -> Tensor:
        """KL[q(V) || N(0, I)] in nats, `[...]`; exact unless the class says otherwise.

        `noise` `[samples, ..., *noise_shape]` serves the families whose `kl_is_estimate`.
        """


def gaussian_kl(loc: Tensor, trace: Tensor, log_determinant: Tensor) -> Tensor:
    """KL[N(loc, S) || N(0, I)] in nats from tr S `[...]` and log det S `[...]`; loc is `[..., rows, columns]`."""
    dimensions = loc.shape[-1] * loc.shape[-2]
    return 0.5 * (trace + loc.square().sum((-2, -1)) - dimensions - log_determinant)


def log_standard_normal(value: Tensor) -> Tensor:
    """log N(value; 0, I) in nats, summed over the last two dimensions."""
    dimensions = value.shape[-1] * value.shape[-2]
    constant = 0.5 * dimensions * torch.log(torch.tensor(2 * torch.pi, device=value.device))
    return -0.5 * value.square().sum((-2, -1)) - constant
