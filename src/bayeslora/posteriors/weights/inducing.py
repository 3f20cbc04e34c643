"""A LoRA factor as a matrix-normal sparse Gaussian process with inducing variables (arXiv 2601.21003).

The functions here are pure and take stacked parameters `[..., *]`, so that all factors of one shape are evaluated in a
few batched kernels. Notation as in the paper: W [o, i] the factor, V [m_r, m_c] the whitened inducing variables,
sigma the prior standard deviation, lambda the scale of the conditional's standard deviation.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor

from bayeslora.posteriors import InducingPosterior, get_posterior
from bayeslora.posteriors.weights.base import KL, Noise, WeightPosterior
from bayeslora.posteriors.weights.whitening import DIAGONAL_FLOOR, DiagonalWhitening, Whitening, whiten, whiten_identity

Bases = Literal["lora", "free"]
Mean = Literal["lora", "inducing"]
Side = Literal["A", "B"]


@dataclass(frozen=True)
class InducingWeights(WeightPosterior):
    """q(W) of one factor shape: what is fixed about it, and the functions of its parameters.

    A factor W `[rows, columns]` has the sample

        W = mean + tau Q_r^T V Q_c + sigma lambda R,    V ~ q(V),    R ~ N(0, I - P_c (x) P_r)

    with tau = sigma in the paper. A larger tau gives the inducing variables a wide prior to learn their posterior in,
    while the residual stays small; the prior has lambda = 1 and V ~ N(0, I), so the KL does not change.

    Args:
        rows: o.
        columns: i.
        side: "A" or "B": which dimension is the LoRA rank.
        inducing: m = m_r = m_c; with `bases="lora"` it must be the rank.
        relative: Whether standard deviations are in units of the factor, which is a tensor `unit` of its own: a number
            in the family would keep the factors of different layers apart.
        posterior_options: As items, which can be hashed.

    The other arguments are options of `bayeslora.BayesianLoraConfig`, of one factor.
    """

    side: Side
    inducing: int
    posterior: str = "diagonal"
    posterior_options: tuple[tuple[str, Any], ...] = ()
    posterior_std: float = 1.0
    prior_std: float = 0.05
    inducing_std: float | None = None
    residual_scale: float = 1.0
    learn_residual_scale: bool = False
    maximum_residual_scale: float = 1.0
    mean: Mean = "lora"
    mean_std: float | None = None
    bases: Bases = "lora"
    inducing_diagonal: float = 0.1
    relative: bool = False
    q: InducingPosterior = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Build q(V) once."""
        q = get_posterior(
            self.posterior, self.inducing, self.inducing, self.posterior_std, **dict(self.posterior_options)
        )
        object.__setattr__(self, "q", q)

    # --- start ---------------------------------------------------------------------------------------------------

    def initial(self, weight: Tensor) -> dict[str, Tensor]:
        """Parameters whose mean is exactly `weight` `[rows, columns]`, up to rounding where `mean="inducing"`.

        Raises:
            ValueError: `mean="inducing"` and the rank of `weight` exceeds the number of inducing rows or columns.
        """
        parameters: dict[str, Tensor] = {}
        weight = weight.detach().float()
        start = torch.full((self.inducing, 1), self.inducing_diagonal - DIAGONAL_FLOOR, device=weight.device).log()
        parameters["row_log_diagonal"], parameters["column_log_diagonal"] = start, start.clone()
        if self.bases == "free":
            parameters["row_basis"], parameters["column_basis"] = self._spanning_bases(weight)
        if self.mean == "lora":
            parameters["mean"] = weight.clone()
            location = weight.new_zeros(self.inducing, self.inducing)
        else:
            location = self._embed(weight, parameters)
        parameters.update(self.q.initial(location))
        if self.learn_residual_scale:
            share = torch.tensor(self.residual_scale / self.maximum_residual_scale, device=weight.device)
            parameters["residual_logit"] = torch.logit(share).reshape(1, 1)
        if self.relative:
            parameters["unit"] = torch.ones(1, 1, device=weight.device)
        return {name: value.to(torch.float32) for name, value in parameters.items()}

    def _spanning_bases(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Orthonormal Z_r, Z_c whose spans hold the column and the row space of `weight`."""
        if weight.is_meta:
            return weight.new_empty(self.inducing, self.rows), weight.new_empty(self.inducing, self.columns)
        left, _, right = torch.linalg.svd(weight, full_matrices=False)
        rank = int(torch.linalg.matrix_rank(weight))
        return (
            _complete_basis(left.T[: min(rank, self.inducing)], self.inducing),
            _complete_basis(right[: min(rank, self.inducing)], self.inducing),
        )

    def _embed(self, weight: Tensor, parameters: Mapping[str, Tensor]) -> Tensor:
        """The V with sigma Q_r^T V Q_c = weight."""
        if weight.is_meta:
            return weight.new_empty(self.inducing, self.inducing)
        wide = {name: value.double() for name, value in parameters.items()}
        row, column = self._free_whitenings(wide)
        target = weight.double() / self.tau
        location = torch.linalg.pinv(row.projection.mT) @ target @ torch.linalg.pinv(column.projection)
        error = (row.projection.mT @ location @ column.projection - target).norm()
        if error > 1e-6 * target.norm().clamp_min(1e-12):
            raise ValueError(
                f"mean='inducing' needs num_inducing >= the rank of the factor it starts from, got "
                f"num_inducing={self.inducing} for a {self.rows} x {self.columns} factor of rank "
                f"{int(torch.linalg.matrix_rank(weight))}; raise num_inducing or use mean='lora'."
            )
        return location.to(weight.dtype)

    # --- functions of stacked parameters ---------------------------------------------------------------------------

    @staticmethod
    def _free_whitenings(parameters: Mapping[str, Tensor]) -> tuple[Whitening, Whitening]:
        """Those of rows (size o) and columns (size i) whose Z are parameters."""
        row = whiten(parameters["row_basis"], parameters["row_log_diagonal"])
        return row, whiten(parameters["column_basis"], parameters["column_log_diagonal"])

    def _whitenings(
        self, parameters: Mapping[str, Tensor]
    ) -> tuple[Whitening | DiagonalWhitening, Whitening | DiagonalWhitening]:
        """Those of rows (size o) and columns (size i)."""
        if self.bases == "free":
            return self._free_whitenings(parameters)
        row_diagonal, column_diagonal = parameters["row_log_diagonal"], parameters["column_log_diagonal"]
        if self.side == "A":
            return whiten_identity(row_diagonal), whiten(parameters["mean"], column_diagonal)
        return whiten(parameters["mean"].mT, row_diagonal), whiten_identity(column_diagonal)

    @property
    def tau(self) -> float:
        """Prior standard deviation of the part of W that the inducing variables explain."""
        return self.prior_std if self.inducing_std is None else self.inducing_std

    def _in_weights(self, std: float, parameters: Mapping[str, Tensor]) -> Tensor | float:
        """A standard deviation in units of the weight: a float, or `[..., 1, 1]` where it is relative."""
        return std * parameters["unit"] if self.relative else std

    def residual_scale_of(self, parameters: Mapping[str, Tensor]) -> Tensor | float:
        """lambda: a float where it is fixed, else `[..., 1, 1]`."""
        if not self.learn_residual_scale:
            return self.residual_scale
        return self.maximum_residual_scale * torch.sigmoid(parameters["residual_logit"])

    def mean_weight(self, parameters: Mapping[str, Tensor]) -> Tensor:
        """W at the mean of q(V) and R = 0, `[..., rows, columns]`: the deterministic factor of eval mode."""
        row, column = self._whitenings(parameters)
        tau = self._in_weights(self.tau, parameters)
        update = tau * _on_both_sides(row.lift, self.q.mean(parameters), column.lift)
        return parameters["mean"] + update if self.mean == "lora" else update

    def sample_weight(self, parameters: Mapping[str, Tensor], noise: Noise) -> Tensor:
        """Draws of W, `[samples, ..., rows, columns]`.

        R = E - Q_r^T (Q_r E Q_c^T + X) Q_c by Matheron's rule, where X ~ N(0, I - M_c (x) M_r), M = Q Q^T, is what
        the inducing variables add to the projected prior sample. With N = I - M = G G^T that covariance is
        I (x) N_r + N_c (x) M_r and also N_c (x) I + M_c (x) N_r: two small products, no further Cholesky, and exact
        also where Z Z^T is singular.
        """
        weight, inducing, square, side = noise.normal
        row, column = self._whitenings(parameters)
        scale = self._in_weights(self.prior_std, parameters) * self.residual_scale_of(parameters)
        if self.rows <= self.columns:
            wide = torch.cat([weight, side], dim=-1)
            projected = row.project(column.project_both(wide.mT).mT) + row.remain(square)
        else:
            tall = torch.cat([weight, side], dim=-2)
            projected = column.project(row.project_both(tall).mT).mT + column.remain(square.mT).mT
        values = self._in_weights(self.tau, parameters) * self.q.sample(parameters, inducing, noise.uniform)
        core = values - scale * projected
        draw = scale * weight + _on_both_sides(row.lift, core, column.lift)
        return parameters["mean"] + draw if self.mean == "lora" else draw

    def kl(self, parameters: Mapping[str, Tensor], noise: Noise | None) -> KL:
        """KL[q(V) || p(V)] with the MAP term of the mean, and the KL of W given V, exactly 0 at lambda = 1.

        Nats, `[...]`.
        """
        inducing = self.q.kl(parameters, None if noise is None else noise.normal[1])
        if self.mean == "lora" and self.mean_std is not None:
            std = self._in_weights(self.mean_std, parameters)
            inducing = inducing + 0.5 * (parameters["mean"] / std).square().sum((-2, -1))
        scale = self.residual_scale_of(parameters)
        if isinstance(scale, Tensor):
            per_weight = (0.5 * scale.square() - scale.log() - 0.5).squeeze((-2, -1))
        else:
            per_weight = torch.full_like(inducing, 0.5 * scale**2 - math.log(scale) - 0.5)
        return KL(inducing, self.rows * self.columns * per_weight)

    @property
    def fixed(self) -> tuple[str, ...]:  # type: ignore[override]
        """The unit."""
        return self.of_layer

    @property
    def of_layer(self) -> tuple[str, ...]:  # type: ignore[override]
        """The unit."""
        return ("unit",) if self.relative else ()

    @property
    def packed(self) -> bool:
        """They are four or more small tensors."""
        return True

    @property
    def kl_is_estimate(self) -> bool:
        """Only the flow's."""
        return self.q.kl_is_estimate

    @cached_property
    def noise_shapes(self) -> tuple[tuple[int, ...], ...]:
        """E [o, i]; for V; for the residual [m, m], and [o, m] or [m, i], whichever is smaller."""
        m = self.inducing
        side = (self.rows, m) if self.rows <= self.columns else (m, self.columns)
        return (self.rows, self.columns), self.q.noise_shape, (m, m), side


def _on_both_sides(rows: Callable[[Tensor], Tensor], value: Tensor, columns: Callable[[Tensor], Tensor]) -> Tensor:
    """R value C^T `[..., *, *]` from the maps by R and by C."""
    return columns(rows(value).mT).mT


def _complete_basis(rows: Tensor, count: int) -> Tensor:
    """Orthonormal `rows` [k, n] extended to `count` rows; orthonormal while count <= n."""
    missing = count - rows.shape[0]
    extra = torch.randn(missing, rows.shape[1], dtype=rows.dtype, device=rows.device)
    extra = extra - extra @ rows.T @ rows
    extra = torch.nn.functional.normalize(extra, dim=-1) if missing > rows.shape[1] else _orthonormal_rows(extra)
    return torch.cat([rows, extra])


def _orthonormal_rows(rows: Tensor) -> Tensor:
    return torch.linalg.qr(rows.T)[0].T.contiguous() if rows.shape[0] else rows
