"""Shared by the tests of the mathematics: random parameters, noise, and the linear map from noise to weights."""

from collections.abc import Callable, Iterable, Sequence
from math import prod

import torch
from torch import Tensor

from bayeslora.adapters.random_factor import RandomFactor
from bayeslora.posteriors import InducingPosterior
from bayeslora.posteriors.weights.base import Noise
from bayeslora.posteriors.weights.inducing import InducingWeights
from bayeslora.posteriors.weights.whitening import inducing_diagonal

Parameters = dict[str, Tensor]

GAUSSIANS = ("diagonal", "matrix_normal", "full")
FAMILIES = (*GAUSSIANS, "ensemble", "flow")


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(source: torch.Generator, *shape: int) -> Tensor:
    """Standard normal, float64."""
    return torch.randn(shape, generator=source, dtype=torch.float64)


def seeded(build: Callable[[], Parameters], seed: int) -> Parameters:
    """`build()`, which draws from torch's global generator, at `seed` and in float64."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return {name: value.double() for name, value in build().items()}


def perturbed(parameters: Parameters, source: torch.Generator, scale: float, stack: Sequence[int] = ()) -> Parameters:
    """`stack` copies of the parameters, each moved by noise of its own."""
    return {name: value + scale * normal(source, *stack, *value.shape) for name, value in sorted(parameters.items())}


def posterior_parameters(q: InducingPosterior, seed: int, scale: float = 0.4, stack: Sequence[int] = ()) -> Parameters:
    """Parameters of q(V) away from the start."""
    source = generator(seed)
    start = seeded(lambda: q.initial(normal(source, q.rows, q.columns)), seed)
    return perturbed(start, source, scale, stack)


def factor_parameters(
    family: InducingWeights, seed: int, scale: float = 0.3, stack: Sequence[int] = (), weight: Tensor | None = None
) -> Parameters:
    """Parameters of a factor away from the start; from a rank-one `weight`, which every family can embed."""
    source = generator(seed)
    if weight is None:
        weight = normal(source, family.rows, 1) @ normal(source, 1, family.columns)
    return perturbed(seeded(lambda: family.initial(weight), seed), source, scale, stack)


def noise_of(*parts: Tensor, uniform: Tensor | None = None, number: Tensor | None = None) -> Noise:
    """Noise of some draws of one factor, from its parts `[samples, *shape]`."""
    draws = len(parts[0])
    numbers = torch.cat([part.reshape(draws, -1) for part in parts], dim=1)
    uniform = torch.zeros(draws, dtype=numbers.dtype) if uniform is None else uniform
    shapes = tuple(tuple(part.shape[1:]) for part in parts)
    return Noise(numbers, shapes, uniform, torch.arange(draws) if number is None else number)


def noise_like(family: InducingWeights, source: torch.Generator, samples: int, stack: Sequence[int] = ()) -> Noise:
    """Noise of some draws in float64."""
    parts = [normal(source, samples, *stack, prod(shape)) for shape in family.noise_shapes]
    uniform = torch.rand(samples, generator=source, dtype=torch.float64)
    return Noise(torch.cat(parts, dim=-1), family.noise_shapes, uniform, torch.arange(samples))


def noise_from_rows(family: InducingWeights, rows: Tensor) -> Noise:
    """Noise whose numbers are the rows of a matrix `[samples, numbers]`."""
    return Noise(rows, family.noise_shapes, torch.zeros(len(rows), dtype=rows.dtype), torch.arange(len(rows)))


def noise_count(family: InducingWeights) -> int:
    return sum(prod(shape) for shape in family.noise_shapes)


def affine_map(function: Callable[[Tensor], Tensor], count: int) -> tuple[Tensor, Tensor]:
    """Offset `[d]` and matrix `[d, count]` of an affine function of rows `[samples, count] -> [samples, d]`.

    Also checks on one random input that the function is affine at all.
    """
    offset = function(torch.zeros(1, count, dtype=torch.float64))[0]
    matrix = (function(torch.eye(count, dtype=torch.float64)) - offset).T
    probe = normal(generator(count), 1, count)
    torch.testing.assert_close(function(probe)[0].detach(), (offset + matrix @ probe[0]).detach())
    return offset, matrix


def weight_map(family: InducingWeights, parameters: Parameters) -> tuple[Tensor, Tensor]:
    """vec W = offset + matrix @ noise, rows of W one after the other."""

    def weights(rows: Tensor) -> Tensor:
        return family.sample_weight(parameters, noise_from_rows(family, rows)).flatten(1)

    return affine_map(weights, noise_count(family))


def lower(raw: Tensor) -> Tensor:
    """The documented Cholesky factor: strict lower part as it is, diagonal exponentiated."""
    size = raw.shape[-1]
    below = torch.ones(size, size, dtype=torch.bool).tril(-1)
    return torch.where(below, raw, 0.0) + torch.eye(size, dtype=raw.dtype) * raw.exp()


def kron(left: Tensor, right: Tensor) -> Tensor:
    """Kronecker product over leading dimensions; it acts on vec of a matrix taken row by row."""
    product = torch.einsum("...ab,...cd->...acbd", left, right)
    return product.flatten(-4, -3).flatten(-2, -1)


def covariance_of(name: str, parameters: Parameters) -> Tensor:
    """Cov[vec V] of a Gaussian family from its documented parameters, rows of V one after the other."""
    if name == "diagonal":
        return torch.diag_embed((2 * parameters["v_log_std"]).exp().flatten(-2))
    if name == "full":
        factor = lower(parameters["v_factor"])
        return factor @ factor.mT
    rows, columns = lower(parameters["v_row_factor"]), lower(parameters["v_column_factor"])
    return kron(rows @ rows.mT, columns @ columns.mT)


class Projections:
    """Q and P of both sides by the textbook formulas, with explicit inverses."""

    def __init__(self, family: InducingWeights, parameters: Parameters):
        if family.bases == "free":
            row, column = parameters["row_basis"], parameters["column_basis"]
        else:
            identity = torch.eye(family.inducing, dtype=torch.float64)
            mean = parameters["mean"]
            row, column = (identity, mean) if family.side == "A" else (mean.mT, identity)
        self.row, self.row_share = self._one(row, parameters["row_log_diagonal"])
        self.column, self.column_share = self._one(column, parameters["column_log_diagonal"])

    @staticmethod
    def _one(basis: Tensor, log_diagonal: Tensor) -> tuple[Tensor, Tensor]:
        kernel = basis @ basis.mT + torch.diag_embed(inducing_diagonal(log_diagonal)[..., 0] ** 2)
        projection = torch.linalg.inv(torch.linalg.cholesky(kernel)) @ basis
        return projection, basis.mT @ torch.linalg.inv(kernel) @ basis

    @property
    def residual(self) -> Tensor:
        """Cov[vec R] = I - P_r (x) P_c."""
        share = kron(self.row_share, self.column_share)
        return torch.eye(share.shape[-1], dtype=share.dtype) - share

    def transported(self, covariance: Tensor) -> Tensor:
        """Cov[vec Q_r^T V Q_c] for Cov[vec V] = `covariance`."""
        both = kron(self.row.mT, self.column.mT)
        return both @ covariance @ both.mT


def factor_of(family: InducingWeights, seed: int = 0, scale: float = 0.3) -> RandomFactor:
    """A module away from the start, float32."""
    parameters = factor_parameters(family, seed, scale)
    factor = RandomFactor(family, torch.zeros(family.rows, family.columns))
    factor.load_state_dict({name: value.float() for name, value in parameters.items()})
    return factor


def float_noise(family: InducingWeights, seed: int, samples: int = 1) -> Noise:
    """Noise of one factor in float32."""
    noise = noise_like(family, generator(seed), samples)
    return noise._replace(numbers=noise.numbers.float(), uniform=noise.uniform.float())


def draw_of(noise: Noise, index: int) -> Noise:
    one = slice(index, index + 1)
    return Noise(noise.numbers[one], noise.shapes, noise.uniform[one], noise.number[one])


def as_leaves(parameters: Parameters) -> Parameters:
    return {name: value.detach().clone().requires_grad_() for name, value in parameters.items()}


def gradients(value: Tensor, leaves: Iterable[Tensor]) -> list[Tensor]:
    return list(torch.autograd.grad(value, list(leaves), allow_unused=True, materialize_grads=True))
