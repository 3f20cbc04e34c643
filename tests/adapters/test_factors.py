"""q(W) of a factor: moments, divergences and limits against closed forms; the module that applies it."""

import copy
import io
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.autograd import gradcheck
from torch.distributions import MultivariateNormal, kl_divergence

from bayeslora import BayesianLoraConfig
from bayeslora.adapters.random_factor import RandomFactor, forget, materialise, stacked_kl
from bayeslora.posteriors.weights.base import KL
from bayeslora.posteriors.weights.inducing import InducingWeights
from bayeslora.posteriors.weights.whitening import inducing_diagonal, whiten, whiten_identity
from bayeslora.training.elbo import negative_elbo
from helpers import (
    FAMILIES,
    GAUSSIANS,
    Parameters,
    Projections,
    as_leaves,
    covariance_of,
    draw_of,
    factor_of,
    factor_parameters,
    float_noise,
    generator,
    gradients,
    kron,
    noise_count,
    noise_from_rows,
    noise_like,
    noise_of,
    normal,
    seeded,
    weight_map,
)

torch.set_num_threads(1)

FEW = settings(max_examples=25, deadline=None, derandomize=True, database=None)

# Side, rows, columns, m: with bases="lora" m is the rank.
TALL_AND_WIDE = [("A", 2, 5, 2), ("B", 5, 2, 2)]
FREE_ONLY = [("A", 3, 4, 2), ("B", 4, 3, 2), ("A", 2, 4, 3), ("B", 4, 2, 3), ("A", 3, 3, 4)]
CASES = [(bases, *case) for bases in ("free", "lora") for case in TALL_AND_WIDE] + [
    ("free", *case) for case in FREE_ONLY
]
MODULE_OPTIONS: list[dict[str, Any]] = [
    {"mean": mean, "bases": bases, "learn_residual_scale": learn}
    for mean, bases in (("lora", "lora"), ("lora", "free"), ("inducing", "free"))
    for learn in (False, True)
]


def family_of(bases: str, side: str, rows: int, columns: int, inducing: int, **options: Any) -> InducingWeights:
    """A family whose residual is far from both of its limits."""
    fields: dict[str, Any] = {"prior_std": 0.7, "inducing_diagonal": 0.6, "posterior_std": 0.8, **options}
    if fields.get("posterior") == "ensemble":
        fields["posterior_options"] = (("members", 3),)
    if fields.get("posterior") == "flow":
        fields["posterior_options"] = (("hidden", 5), ("transforms", 2))
    return InducingWeights(rows, columns, side, inducing, bases=bases, **fields)  # type: ignore[arg-type]


def with_std(family: InducingWeights, parameters: Parameters, log_std: float) -> Parameters:
    assert family.posterior == "diagonal"
    return {**parameters, "v_log_std": torch.full_like(parameters["v_log_std"], log_std)}


def vec_mean(family: InducingWeights, parameters: Parameters) -> Tensor:
    """E[vec W] by the formula."""
    sides = Projections(family, parameters)
    update = family.prior_std * sides.row.mT @ parameters["v_loc"] @ sides.column
    return (parameters["mean"] + update if family.mean == "lora" else update).flatten()


def vec_covariance(family: InducingWeights, parameters: Parameters) -> Tensor:
    """Cov[vec W] by the formula."""
    sides = Projections(family, parameters)
    explained = sides.transported(covariance_of(family.posterior, parameters))
    return family.prior_std**2 * (explained + family.residual_scale**2 * sides.residual)


# --- whitening -----------------------------------------------------------------------------------------------------


@given(
    inducing=st.integers(1, 5),
    size=st.integers(1, 6),
    stack=st.sampled_from([(), (3,), (2, 2)]),
    basis_scale=st.floats(0, 3),
    log_diagonal=st.floats(-3, 1),
    seed=st.integers(0, 2**20),
)
@FEW
def test_whitening_by_its_definitions(inducing, size, stack, basis_scale, log_diagonal, seed):
    source = generator(seed)
    basis = basis_scale * normal(source, *stack, inducing, size)
    raw = log_diagonal + 0.3 * normal(source, *stack, inducing, 1)
    found = whiten(basis, raw)
    diagonal = torch.diag_embed(inducing_diagonal(raw).squeeze(-1))
    kernel = basis @ basis.mT + diagonal @ diagonal
    close = {"rtol": 1e-8, "atol": 1e-9}
    cholesky = torch.linalg.cholesky(kernel)
    torch.testing.assert_close(cholesky @ found.projection, basis, **close)
    torch.testing.assert_close(cholesky @ found.remainder, diagonal, **close)
    whole = found.projection @ found.projection.mT + found.remainder @ found.remainder.mT
    torch.testing.assert_close(whole, torch.eye(inducing, dtype=torch.float64).expand_as(whole), **close)
    share = basis.mT @ torch.linalg.solve(kernel, basis)
    torch.testing.assert_close(found.projection.mT @ found.projection, share, **close)


@pytest.mark.parametrize("stack", [(), (3,)])
def test_whitening_of_the_identity_is_its_closed_form(stack):
    raw = normal(generator(0), *stack, 4, 1)
    identity = torch.eye(4, dtype=torch.float64).expand(*stack, 4, 4)
    found, expected = whiten_identity(raw), whiten(identity, raw)
    for diagonal, matrix in zip(found, expected[:2], strict=True):
        torch.testing.assert_close(torch.diag_embed(diagonal.squeeze(-1)), matrix)
    value, both = normal(generator(1), *stack, 4, 3), normal(generator(2), *stack, 8, 3)
    for name in ("project", "lift", "remain"):
        torch.testing.assert_close(getattr(found, name)(value), getattr(expected, name)(value))
    torch.testing.assert_close(found.project_both(both), expected.project_both(both))
    assert gradcheck(lambda value: tuple(whiten_identity(value)), raw.requires_grad_())


def test_whitening_differentiates():
    source = generator(0)
    basis, raw = normal(source, 2, 3, 4).requires_grad_(), normal(source, 2, 3, 1).requires_grad_()
    assert gradcheck(lambda *inputs: tuple(whiten(*inputs)), (basis, raw))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_whitening_is_never_done_below_float32(dtype):
    found = whiten(normal(generator(0), 2, 3).to(dtype), torch.zeros(2, 1, dtype=dtype))
    expected = torch.float64 if dtype == torch.float64 else torch.float32
    assert {part.dtype for part in found} == {expected}
    assert all(part.isfinite().all() for part in found)


# --- moments, exactly ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("bases", "side", "rows", "columns", "inducing"), CASES)
@pytest.mark.parametrize("seed", range(2))
def test_the_residual_has_the_covariance_of_the_conditional(bases, side, rows, columns, inducing, seed):
    family = family_of(bases, side, rows, columns, inducing)
    parameters = with_std(family, factor_parameters(family, seed), -60)
    offset, matrix = weight_map(family, parameters)
    residual = Projections(family, parameters).residual
    torch.testing.assert_close(matrix @ matrix.T / family.prior_std**2, residual, rtol=0, atol=1e-10)
    torch.testing.assert_close(offset, vec_mean(family, parameters), rtol=0, atol=1e-10)
    # Neither limit: both the explained and the unexplained part count.
    assert 0.05 < torch.linalg.eigvalsh(residual)[0] < 0.95


@pytest.mark.parametrize(("bases", "side", "rows", "columns", "inducing"), CASES)
@pytest.mark.parametrize("posterior", GAUSSIANS)
@pytest.mark.parametrize("residual_scale", [1.0, 0.3])
def test_draws_are_affine_in_the_noise_with_the_right_moments(
    bases, side, rows, columns, inducing, posterior, residual_scale
):
    family = family_of(bases, side, rows, columns, inducing, posterior=posterior, residual_scale=residual_scale)
    parameters = factor_parameters(family, 5)
    offset, matrix = weight_map(family, parameters)
    torch.testing.assert_close(offset, vec_mean(family, parameters), rtol=0, atol=1e-10)
    torch.testing.assert_close(offset, family.mean_weight(parameters).flatten(), rtol=0, atol=1e-10)
    torch.testing.assert_close(matrix @ matrix.T, vec_covariance(family, parameters), rtol=0, atol=1e-10)


@pytest.mark.parametrize("mean", ["lora", "inducing"])
@pytest.mark.parametrize(("side", "rows", "columns", "inducing"), TALL_AND_WIDE + FREE_ONLY)
def test_the_prior_of_a_weight_is_white(mean, side, rows, columns, inducing):
    family = family_of("free", side, rows, columns, inducing, mean=mean)
    parameters = with_std(family, factor_parameters(family, 1), 0)
    parameters["v_loc"] = torch.zeros_like(parameters["v_loc"])
    offset, matrix = weight_map(family, parameters)
    expected = family.prior_std**2 * torch.eye(rows * columns, dtype=torch.float64)
    torch.testing.assert_close(matrix @ matrix.T, expected, rtol=0, atol=1e-10)
    mean_function = parameters["mean"].flatten() if mean == "lora" else torch.zeros_like(offset)
    torch.testing.assert_close(offset, mean_function, rtol=0, atol=1e-12)


@pytest.mark.parametrize("side", ["A", "B"])
def test_singular_kernels_are_exact_too(side):
    """B = 0 with tied bases, so that Z Z^T = 0; and rows of Z that repeat each other."""
    rows, columns = (2, 5) if side == "A" else (5, 2)
    tied = family_of("lora", side, rows, columns, 2)
    zero = seeded(lambda: tied.initial(torch.zeros(rows, columns)), 0)
    assert not zero["mean"].any()
    free = family_of("free", side, rows, columns, 3, inducing_diagonal=0.05)
    repeated = factor_parameters(free, 3)
    for name in ("row_basis", "column_basis"):
        repeated[name] = repeated[name][:1].expand(3, -1)
    for family, parameters in ((tied, zero), (free, repeated)):
        offset, matrix = weight_map(family, parameters)
        assert matrix.isfinite().all()
        torch.testing.assert_close(offset, vec_mean(family, parameters), rtol=0, atol=1e-10)
        torch.testing.assert_close(matrix @ matrix.T, vec_covariance(family, parameters), rtol=0, atol=1e-10)


# --- moments, by sampling ------------------------------------------------------------------------------------------


def assert_moments(weights: Tensor, mean: Tensor, covariance: Tensor, errors: float = 5.0) -> None:
    """Empirical mean and covariance of Gaussian rows `[draws, d]` within `errors` standard errors, element by element.

    Var[mean_i] = C_ii / n and Var[cov_ij] = (C_ii C_jj + C_ij^2) / n. Of d (d + 3) / 2 <= 119 numbers (d <= 14) one is
    5 standard errors off with probability 119 * 5.7e-7 = 7e-5 per case at most, for some other seed than the fixed one.
    """
    draws, size = weights.shape
    assert size <= 14
    variance = covariance.diagonal()
    assert ((weights.mean(0) - mean).abs() <= errors * (variance / draws).sqrt()).all()
    centred = weights - weights.mean(0)
    empirical = centred.T @ centred / (draws - 1)
    error = ((variance[:, None] * variance + covariance.square()) / draws).sqrt()
    assert ((empirical - covariance).abs() <= errors * error).all()


@pytest.mark.parametrize(
    ("bases", "side", "rows", "columns", "inducing"),
    [*CASES[:6], ("free", "A", 2, 4, 3), ("free", "B", 4, 2, 3)],
)
@pytest.mark.parametrize("residual_scale", [1.0, 0.3])
def test_many_draws_have_the_right_moments(bases, side, rows, columns, inducing, residual_scale):
    family = family_of(bases, side, rows, columns, inducing, posterior="full", residual_scale=residual_scale)
    parameters = factor_parameters(family, 9)
    weights = family.sample_weight(parameters, noise_like(family, generator(4), 40_000)).flatten(1)
    assert_moments(weights, vec_mean(family, parameters), vec_covariance(family, parameters))


@pytest.mark.parametrize("side", ["A", "B"])
def test_many_draws_at_a_zero_factor_have_the_right_moments(side):
    rows, columns = (2, 5) if side == "A" else (5, 2)
    family = family_of("lora", side, rows, columns, 2, posterior_std=0.5)
    parameters = seeded(lambda: family.initial(torch.zeros(rows, columns)), 0)
    weights = family.sample_weight(parameters, noise_like(family, generator(6), 40_000)).flatten(1)
    assert_moments(weights, vec_mean(family, parameters), vec_covariance(family, parameters))


@pytest.mark.parametrize("side", ["A", "B"])
def test_a_flow_is_carried_to_the_weight_as_every_other_v_is(side):
    """W - lambda R is sigma Q_r^T V Q_c of the V that the flow drew, and the mean that of T(loc)."""
    rows, columns = (2, 5) if side == "A" else (5, 2)
    family = family_of("free", side, rows, columns, 2, posterior="flow", mean="inducing")
    parameters = factor_parameters(family, 2, scale=0.5)
    sides, noise = Projections(family, parameters), noise_like(family, generator(0), 7)
    weight, inducing, square, side = noise.normal
    silent = noise_of(
        torch.zeros_like(weight), inducing, torch.zeros_like(square), torch.zeros_like(side), uniform=noise.uniform
    )
    values = family.q.sample(parameters, noise.normal[1], noise.uniform)
    expected = family.prior_std * sides.row.mT @ values @ sides.column
    torch.testing.assert_close(family.sample_weight(parameters, silent), expected)
    mean = family.prior_std * sides.row.mT @ family.q.mean(parameters) @ sides.column
    torch.testing.assert_close(family.mean_weight(parameters), mean)


# --- divergence ----------------------------------------------------------------------------------------------------


@given(
    case=st.sampled_from(CASES),
    residual_scale=st.floats(0.01, 1),
    seed=st.integers(0, 2**20),
)
@FEW
def test_the_conditional_part_is_the_divergence_of_the_conditionals(case, residual_scale, seed):
    family = family_of(*case, residual_scale=residual_scale, inducing_diagonal=0.9)
    parameters = factor_parameters(family, seed)
    covariance = Projections(family, parameters).residual
    mean = normal(generator(seed), covariance.shape[0])
    q, p = MultivariateNormal(mean, residual_scale**2 * covariance), MultivariateNormal(mean, covariance)
    noise = noise_like(family, generator(0), 1)
    found = family.kl(parameters, noise)
    torch.testing.assert_close(found.conditional, kl_divergence(q, p), rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(found.inducing, family.q.kl(parameters, noise.normal[1]))
    torch.testing.assert_close(found.total, found.inducing + found.conditional)


@pytest.mark.parametrize("posterior", [*GAUSSIANS, "flow"])
@pytest.mark.parametrize("mean", ["lora", "inducing"])
def test_the_divergence_is_zero_where_q_is_the_prior(posterior, mean):
    family = family_of("free", "B", 5, 2, 2, posterior=posterior, mean=mean, posterior_std=1.0)
    weight = normal(generator(0), 5, 2) if mean == "lora" else torch.zeros(5, 2)
    parameters = seeded(lambda: family.initial(weight), 0)
    kl = family.kl(parameters, noise_like(family, generator(0), 1))
    assert kl.conditional.item() == 0
    assert abs(kl.total.item()) < 1e-12
    moved = {**parameters, "v_loc": parameters["v_loc"] + 0.1}
    assert family.kl(moved, noise_like(family, generator(0), 1)).total > 1e-3


def learned(bound: float, start: float = 0.1, **options: Any) -> InducingWeights:
    return family_of(
        "lora", "B", 5, 2, 2, learn_residual_scale=True, residual_scale=start, maximum_residual_scale=bound, **options
    )


def test_a_trained_scale_starts_where_asked_and_replaces_the_fixed_one():
    family, fixed = learned(0.5, 0.2), family_of("lora", "B", 5, 2, 2, residual_scale=0.2)
    parameters = factor_parameters(family, 0, scale=0, stack=(3,))
    scale = family.residual_scale_of(parameters)
    torch.testing.assert_close(scale, torch.full((3, 1, 1), 0.2, dtype=torch.float64), rtol=1e-6, atol=0)
    noise = noise_like(family, generator(0), 4, (3,))
    torch.testing.assert_close(
        family.sample_weight(parameters, noise), fixed.sample_weight(parameters, noise), rtol=1e-6, atol=1e-6
    )
    found, expected = family.kl(parameters, noise), fixed.kl(parameters, noise)
    assert found.conditional.shape == expected.conditional.shape == (3,)
    torch.testing.assert_close(found.conditional, expected.conditional, rtol=1e-5, atol=0)


@given(logit=st.floats(-10, 10), bound=st.floats(0.05, 1))
@FEW
def test_the_scale_stays_below_its_bound_and_keeps_a_gradient(logit, bound):
    """A clamp would stop the gradient at the bound; its sign there must pull lambda up, towards the prior's."""
    family = learned(bound, bound / 2)
    parameters = {**factor_parameters(family, 0), "residual_logit": torch.tensor([[logit]]).double()}
    noise = noise_like(family, generator(0), 1)

    def conditional(value: Tensor) -> Tensor:
        return family.kl({**parameters, "residual_logit": value}, noise).conditional

    single = {"residual_logit": torch.tensor([[logit]])}
    for scale in (family.residual_scale_of(parameters), family.residual_scale_of(single)):
        assert 0 < scale.item() < torch.tensor(bound, dtype=scale.dtype).item()
    leaf = parameters["residual_logit"].clone().requires_grad_()
    (gradient,) = gradients(conditional(leaf), [leaf])
    step = 1e-4
    numeric = (conditional(leaf + step) - conditional(leaf - step)) / (2 * step)
    assert gradient.item() < 0
    torch.testing.assert_close(gradient.squeeze(), numeric.detach(), rtol=1e-4, atol=1e-7)


def test_the_data_still_move_a_scale_that_has_reached_its_bound():
    family = learned(0.5)
    parameters = as_leaves({**factor_parameters(family, 0), "residual_logit": torch.full((1, 1), 7.0).double()})
    assert family.residual_scale_of(parameters).item() > 0.499
    weights = family.sample_weight(parameters, noise_like(family, generator(0), 50))
    (gradient,) = gradients(weights.square().mean(), [parameters["residual_logit"]])
    assert gradient.item() > 1e-6


@pytest.mark.parametrize(("bases", "side", "rows", "columns", "inducing"), CASES[:4])
@pytest.mark.parametrize("posterior", FAMILIES)
def test_draws_mean_and_divergence_differentiate(bases, side, rows, columns, inducing, posterior):
    columns, rows = min(columns, 3), min(rows, 3)
    options = {"mean": "lora" if bases == "lora" else "inducing", "learn_residual_scale": True, "residual_scale": 0.5}
    family = family_of(bases, side, rows, columns, inducing, posterior=posterior, **options)
    parameters = as_leaves(factor_parameters(family, 3, stack=(1,)))
    names, noise = list(parameters), noise_like(family, generator(8), 2, (1,))

    def outputs(*values: Tensor) -> tuple[Tensor, ...]:
        given = dict(zip(names, values, strict=True))
        kl = family.kl(given, noise)
        return family.sample_weight(given, noise), family.mean_weight(given), kl.inducing, kl.conditional

    assert gradcheck(outputs, tuple(parameters.values()))
    reached = gradients(outputs(*parameters.values())[0].square().sum(), parameters.values())
    assert all(gradient.any() for gradient in reached)


# --- limits --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("posterior", FAMILIES)
@pytest.mark.parametrize(("bases", "mean"), [("free", "inducing"), ("free", "lora"), ("lora", "lora")])
@pytest.mark.parametrize(("side", "rows", "columns", "inducing"), TALL_AND_WIDE)
def test_without_spread_a_draw_is_the_deterministic_update(bases, mean, side, rows, columns, inducing, posterior):
    family = family_of(
        bases, side, rows, columns, inducing, posterior=posterior, mean=mean, posterior_std=1e-30, residual_scale=1e-30
    )
    parameters = factor_parameters(family, 4, scale=0)
    source = generator(1)
    for name in parameters:
        if name in ("mean", "v_loc", "v_members", "row_basis", "column_basis"):
            # The same shift for all members of the ensemble.
            parameters[name] = parameters[name] + 0.4 * normal(source, *parameters[name].shape[-2:])
    loc = parameters["v_members"][0] if posterior == "ensemble" else parameters["v_loc"]
    expected = vec_mean(family, {**parameters, "v_loc": loc}).reshape(rows, columns)
    assert (expected.norm() if mean == "inducing" else (expected - parameters["mean"]).norm()) > 0.1
    draws = family.sample_weight(parameters, noise_like(family, generator(2), 6))
    torch.testing.assert_close(family.mean_weight(parameters), expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(draws, expected.expand_as(draws), rtol=0, atol=1e-12)


@pytest.mark.parametrize("posterior", FAMILIES)
@pytest.mark.parametrize("bases", ["free", "lora"])
@pytest.mark.parametrize(("side", "rows", "columns"), [("A", 4, 9), ("B", 9, 4)])
def test_a_lora_factor_is_the_mean_bit_for_bit(posterior, bases, side, rows, columns):
    for seed in range(5):
        family = family_of(bases, side, rows, columns, 4, posterior=posterior, mean="lora")
        weight = normal(generator(seed), rows, columns).float()
        found = RandomFactor(family, weight).eval().weight
        if posterior == "ensemble":
            # Its members average to zero up to rounding only.
            torch.testing.assert_close(found, weight, rtol=0, atol=1e-6)
        else:
            assert torch.equal(found, weight)


@pytest.mark.parametrize("posterior", FAMILIES)
@pytest.mark.parametrize(("side", "rows", "columns"), [("A", 4, 9), ("B", 9, 4)])
@pytest.mark.parametrize("inducing", [4, 6])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 50.0])
def test_a_lora_factor_embeds_without_a_mean_function(posterior, side, rows, columns, inducing, scale):
    family = family_of(
        "free", side, rows, columns, inducing, posterior=posterior, mean="inducing", inducing_diagonal=0.1
    )
    if posterior == "ensemble":
        family = family_of(
            "free", side, rows, columns, inducing, posterior=posterior, mean="inducing", posterior_std=1e-6 * scale
        )
    weight = scale * normal(generator(inducing), rows, columns).float()
    factor = RandomFactor(family, weight).eval()
    assert "mean" not in factor.parameters_by_name
    assert (factor.weight - weight).abs().max() < 2e-6 * weight.abs().max()


@pytest.mark.parametrize("inducing", [1, 2, 3])
def test_too_few_inducing_variables_are_refused_by_rank(inducing):
    source = generator(0)
    weight = normal(source, 4, 3) @ normal(source, 3, 9)
    family = family_of("free", "A", 4, 9, inducing, mean="inducing")
    if inducing < 3:
        with pytest.raises(ValueError, match=r"num_inducing=\d for a 4 x 9 factor of rank 3"):
            family.initial(weight)
    else:
        torch.testing.assert_close(family.mean_weight(family.initial(weight)), weight.float(), rtol=0, atol=1e-5)
    family_of("free", "A", 4, 9, inducing, mean="lora").initial(weight)


@pytest.mark.parametrize("posterior", FAMILIES)
@pytest.mark.parametrize(("bases", "mean"), [("free", "inducing"), ("free", "lora"), ("lora", "lora")])
def test_a_zero_factor_starts_with_mean_zero_and_draws_around_it(posterior, bases, mean):
    family = family_of(bases, "B", 6, 2, 2, posterior=posterior, mean=mean)
    factor = RandomFactor(family, torch.zeros(6, 2)).eval()
    limit = 1e-6 if posterior == "ensemble" else 0.0
    assert factor.weight.abs().max() <= limit
    factor.set_noise(float_noise(family, 0), explicit=True)
    assert factor.weight.abs().max() > 0.01


def test_embedding_again_restarts_the_posterior():
    family = family_of("free", "A", 2, 5, 2, mean="inducing", posterior_std=0.3)
    factor, weight = factor_of(family), normal(generator(3), 2, 5).float()
    assert (factor.weight - weight).abs().max() > 0.1
    factor.embed(weight)
    torch.testing.assert_close(factor.weight, weight, rtol=0, atol=1e-5)
    torch.testing.assert_close(factor.parameters_by_name["v_log_std"].exp(), torch.full((2, 2), 0.3))


@given(nll=st.floats(0, 5), inducing=st.floats(0, 50), conditional=st.floats(0, 50), beta=st.floats(0, 1))
@FEW
def test_the_objective_counts_both_parts_once_per_example(nll, inducing, conditional, beta):
    mean_nll, *parts = torch.tensor([nll, inducing, conditional], dtype=torch.float64)
    found = negative_elbo(mean_nll, KL(*parts), 25, beta)
    assert found.item() * 25 == pytest.approx(25 * nll + beta * (inducing + conditional), rel=1e-12, abs=1e-12)


# --- a conjugate model ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("side", "rows", "columns", "examples"),
    [("A", 1, 3, 12), ("A", 2, 3, 12), ("B", 3, 2, 12), ("A", 2, 3, 2), ("A", 2, 3, 200)],
)
def test_bayesian_linear_regression_is_recovered(side, rows, columns, examples):
    """y = W x + noise with W ~ N(0, sigma^2 I): the ELBO's maximum is the posterior, and its value the log evidence.

    With D much smaller than Z on as many inducing variables as W has rows and columns, V determines W, and q(V) with a
    full covariance contains the true posterior. A draw is affine in its noise and the log-likelihood quadratic, so the
    average over the points +-sqrt(n) e_j of the n noise numbers is its exact expectation.
    """
    inducing, deviation = max(rows, columns), 0.5
    family = InducingWeights(
        rows,
        columns,
        side,  # type: ignore[arg-type]
        inducing,
        posterior="full",
        mean="inducing",
        bases="free",
        prior_std=0.7,
        inducing_diagonal=0.01,
    )
    parameters = seeded(lambda: family.initial(torch.zeros(rows, columns)), 0)
    for name in ("row_basis", "column_basis"):
        parameters[name] = 100 * parameters[name]
    source = generator(1)
    inputs = normal(source, examples, columns)
    outputs = inputs @ normal(source, rows, columns).T + deviation * normal(source, examples, rows)

    size = noise_count(family)
    axes = size**0.5 * torch.eye(size, dtype=torch.float64)
    points = noise_from_rows(family, torch.cat([axes, -axes]))
    trained = as_leaves({name: parameters[name] for name in ("v_loc", "v_factor")})
    observed = torch.distributions.Normal(outputs, deviation)

    def loss() -> Tensor:
        current = {**parameters, **trained}
        predicted = inputs @ family.sample_weight(current, points).mT
        mean_nll = -observed.log_prob(predicted).sum((-2, -1)).mean() / examples
        return negative_elbo(mean_nll, family.kl(current, points), examples)

    optimizer = torch.optim.LBFGS(
        trained.values(), max_iter=400, line_search_fn="strong_wolfe", tolerance_grad=1e-10, tolerance_change=1e-15
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = loss()
        value.backward()
        return value

    optimizer.step(closure)

    identity = torch.eye(columns, dtype=torch.float64)
    covariance = torch.linalg.inv(inputs.T @ inputs / deviation**2 + identity / family.prior_std**2)
    mean = (covariance @ inputs.T @ outputs / deviation**2).T
    marginal = deviation**2 * torch.eye(examples, dtype=torch.float64)
    marginal = marginal + family.prior_std**2 * inputs @ inputs.T
    evidence = MultivariateNormal(torch.zeros(examples, dtype=torch.float64), marginal).log_prob(outputs.T).sum()

    found = {name: value.detach() for name, value in {**parameters, **trained}.items()}
    offset, matrix = weight_map(family, found)
    torch.testing.assert_close(family.mean_weight(found), mean, rtol=0, atol=1e-4)
    torch.testing.assert_close(offset.reshape(rows, columns), mean, rtol=0, atol=1e-4)
    expected = kron(torch.eye(rows, dtype=torch.float64), covariance)
    torch.testing.assert_close(matrix @ matrix.T, expected, rtol=0, atol=1e-4)
    torch.testing.assert_close(-examples * loss().detach(), evidence, rtol=0, atol=1e-4)


# --- the module ----------------------------------------------------------------------------------------------------


def families_for_module(**options: Any) -> list[InducingWeights]:
    return [family_of("lora", *case, **options) for case in TALL_AND_WIDE]


def trained_factor(seed: int = 0, samples: int = 1, **options: Any) -> RandomFactor:
    """In train mode, with noise."""
    family = family_of(options.pop("bases", "lora"), "A", 2, 5, 2, **options)
    factor = factor_of(family, seed).train()
    factor.set_noise(float_noise(family, seed + 10, samples))
    return factor


def fresh(factor: RandomFactor) -> Tensor:
    """What `factor.weight` must be, computed from the parameters and the noise as they are now."""
    noise = factor.noise
    parameters = {name: value.detach() for name, value in factor.parameters_by_name.items()}
    if noise is None or not (factor.explicit or factor.training):
        return factor.family.mean_weight(parameters)
    draws = factor.family.sample_weight(parameters, noise)
    return draws[0] if len(draws) == 1 else draws


@pytest.mark.parametrize("posterior", FAMILIES)
@pytest.mark.parametrize("samples", [0, 1, 3])
def test_stacked_factors_are_what_they_are_one_by_one(posterior, samples):
    factors = [
        factor_of(family, seed)
        for seed in range(3)
        for family in families_for_module(posterior=posterior, residual_scale=0.5)
    ]
    for seed, factor in enumerate(factors):
        if samples:
            noise = float_noise(factor.family, seed, samples)
            shared = float_noise(factors[0].family, 99, samples).uniform
            factor.set_noise(noise._replace(uniform=shared), explicit=True)
    alone = [factor.weight.detach() for factor in factors]
    expected = [fresh(factor) for factor in factors]
    materialise(factors)
    for factor, one, other in zip(factors, alone, expected, strict=True):
        assert factor.weight is factor.weight  # held
        shape = (factor.out_features, factor.in_features)
        assert factor.weight.shape == ((samples, *shape) if samples > 1 else shape)
        torch.testing.assert_close(factor.weight, one, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(factor.weight, other, rtol=1e-5, atol=1e-6)
    forget(factors)
    assert factors[0].weight is not factors[0].weight


@pytest.mark.parametrize("posterior", FAMILIES)
def test_stacked_divergences_are_those_of_each_factor(posterior):
    options = {"posterior": posterior, "learn_residual_scale": True, "residual_scale": 0.4}
    families = 3 * families_for_module(**options)
    factors = [factor_of(family, seed) for seed, family in enumerate(families)]
    for seed, factor in enumerate(factors):
        factor.train().set_noise(float_noise(factor.family, seed))
    each = []
    for factor in factors:
        parameters = {name: value.detach() for name, value in factor.parameters_by_name.items()}
        expected, found = factor.family.kl(parameters, factor.noise), factor.kl()
        assert found.inducing.shape == found.conditional.shape == ()
        torch.testing.assert_close(found.inducing, expected.inducing, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(found.conditional, expected.conditional, rtol=1e-5, atol=1e-5)
        each.append(expected)
    assert len({round(part.inducing.item(), 4) for part in each}) == len(factors)
    for held in (False, True):
        if held:
            materialise(factors)
        stacks = stacked_kl(factors)
        assert len(stacks) == len(families_for_module(**options))
        for name in ("inducing", "conditional"):
            total = torch.stack([getattr(part, name) for part in stacks]).sum()
            expected = torch.stack([getattr(part, name) for part in each]).sum()
            torch.testing.assert_close(total, expected, rtol=1e-5, atol=1e-4)


def test_the_divergence_after_a_forward_is_that_of_the_parameters_as_they_are_now():
    """It shares the stacked parameters of the forward, as long as nothing has changed them."""
    factors = [trained_factor(seed) for seed in range(2)]
    found = []
    for shared in (False, True):
        for factor in factors:
            factor.zero_grad()
        if shared:
            materialise(factors)
        loss = torch.stack([factor(torch.ones(1, 5)).square().sum() for factor in factors]).sum()
        (loss + sum(part.total for part in stacked_kl(factors))).backward()
        found.append([parameter.grad.clone() for factor in factors for parameter in factor.parameters()])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)
    for factor in factors:
        factor.zero_grad()
    materialise(factors)
    torch.stack([factor(torch.ones(1, 5)).square().sum() for factor in factors]).sum().backward()
    sum(part.total for part in stacked_kl(factors)).backward()  # The graph of the first pass is gone.
    again = [parameter.grad for factor in factors for parameter in factor.parameters()]
    for one, other in zip(again, found[0], strict=True):
        torch.testing.assert_close(one, other)
    before = factors[0].kl().total.detach()
    materialise(factors)
    with torch.no_grad():
        factors[0].parameters_by_name["v_loc"].add_(1.0)
    after = torch.stack([part.total for part in stacked_kl(factors)]).sum()
    assert after > before + factors[1].kl().total + 0.5
    one_alone = stacked_kl(factors[:1])
    assert len(one_alone) == 1
    torch.testing.assert_close(one_alone[0].total, factors[0].kl().total)


@pytest.mark.parametrize("options", MODULE_OPTIONS, ids=str)
@pytest.mark.parametrize("posterior", FAMILIES)
def test_parameters_are_named_flat_and_have_two_dimensions(posterior, options):
    for side, rows, columns in (("A", 2, 5), ("B", 5, 2)):
        family = InducingWeights(rows, columns, side, 2, posterior=posterior, residual_scale=0.5, **options)
        factor = RandomFactor(family, torch.zeros(rows, columns))
        assert (factor.in_features, factor.out_features) == (columns, rows)
        names = set(family.initial(torch.zeros(rows, columns)))
        assert factor.parameters_by_name.keys() == names
        assert dict(factor.named_parameters()).keys() == ({"mean"} & names) | {"variational"}
        assert not list(factor.buffers())
        for name, parameter in factor.named_parameters():
            assert "." not in name
            assert parameter.dim() >= 2
            assert parameter.dtype == torch.float32
            assert parameter.is_contiguous()
            assert parameter.isfinite().all()


@pytest.mark.parametrize("bases", ["lora", "free"])
@pytest.mark.parametrize("posterior", FAMILIES)
def test_weights_held_from_a_forward_are_dropped_when_a_parameter_changes_in_place(posterior, bases):
    factor = trained_factor(posterior=posterior, bases=bases, learn_residual_scale=True, residual_scale=0.5)
    inputs = torch.randn(3, 5, generator=generator(0))
    for name, parameter in factor.named_parameters():
        materialise([factor])
        factor(inputs)
        held = factor.weight
        assert factor.weight is held
        with torch.no_grad():
            parameter.add_(0.3)
        assert not torch.allclose(fresh(factor), held), name
        torch.testing.assert_close(factor.weight, fresh(factor), msg=lambda text, name=name: f"{name}: {text}")
        torch.testing.assert_close(factor(inputs), inputs @ fresh(factor).T)


def test_weights_held_from_a_forward_are_dropped_by_a_step_of_the_optimizer():
    factor = trained_factor()
    optimizer = torch.optim.AdamW(factor.parameters(), lr=0.1)
    materialise([factor])
    factor(torch.ones(1, 5)).square().sum().backward()
    held = factor.weight.detach().clone()
    optimizer.step()
    assert not torch.allclose(factor.weight, held)
    torch.testing.assert_close(factor.weight, fresh(factor))


@pytest.mark.parametrize("assign", [False, True])
def test_weights_held_from_a_forward_are_dropped_by_a_load(assign):
    """With `assign` the parameters are other objects afterwards, as young as those before."""
    factor = trained_factor()
    for seed in (1, 2):
        state = trained_factor(seed).state_dict()
        materialise([factor])
        factor.load_state_dict({name: value.clone() for name, value in state.items()}, assign=assign)
        torch.testing.assert_close(factor.weight, fresh(factor))


def test_weights_held_from_a_forward_are_dropped_by_a_cast():
    factor = trained_factor().eval()
    materialise([factor])
    assert factor.weight.dtype == torch.float32
    factor.double()
    assert factor.weight.dtype == torch.float64
    torch.testing.assert_close(factor.weight, fresh(factor))


def test_weights_held_from_a_forward_are_dropped_when_the_draw_or_the_mode_changes():
    factor = trained_factor(posterior="full")
    materialise([factor])
    draw = factor.weight.detach().clone()
    factor.eval()
    mean = factor.weight.detach().clone()
    torch.testing.assert_close(mean, fresh(factor))
    assert not torch.allclose(mean, draw)
    materialise([factor])
    factor.train()
    torch.testing.assert_close(factor.weight, draw)
    materialise([factor])
    factor.set_noise(float_noise(factor.family, 77))
    torch.testing.assert_close(factor.weight, fresh(factor))
    assert not torch.allclose(factor.weight, draw)


def test_weights_held_without_a_graph_are_not_used_where_one_is_needed():
    factor = trained_factor()
    with torch.no_grad():
        materialise([factor])
        assert not factor.weight.requires_grad
    factor(torch.ones(1, 5)).sum().backward()
    assert factor.get_parameter("variational").grad.any()


@pytest.mark.parametrize("samples", [1, 3])
def test_held_weights_pass_the_same_gradients(samples):
    one, other = (
        trained_factor(samples=samples, residual_scale=0.5),
        trained_factor(samples=samples, residual_scale=0.5),
    )
    inputs = torch.randn(6, 5, generator=generator(0))
    materialise([one])
    one(inputs).square().sum().backward()
    other(inputs).square().sum().backward()
    for (name, parameter), twin in zip(one.named_parameters(), other.parameters(), strict=True):
        assert parameter.grad.any(), name
        torch.testing.assert_close(parameter.grad, twin.grad)


@pytest.mark.parametrize("posterior", FAMILIES)
def test_a_factor_copies_and_pickles_after_a_forward_in_train_mode(posterior):
    factor = trained_factor(posterior=posterior)
    materialise([factor])
    output = factor(torch.ones(1, 5))
    assert output.requires_grad
    stream = io.BytesIO()
    torch.save(factor, stream)
    stream.seek(0)
    for twin in (copy.deepcopy(factor), torch.load(stream, weights_only=False)):
        assert twin.training
        torch.testing.assert_close(twin(torch.ones(1, 5)), output)
        with torch.no_grad():
            next(twin.parameters()).add_(1.0)
        torch.testing.assert_close(twin.weight, fresh(twin))
        assert not torch.allclose(twin.weight, factor.weight)


@pytest.mark.parametrize("posterior", FAMILIES)
@pytest.mark.parametrize("case", TALL_AND_WIDE)
@pytest.mark.parametrize("inner", [(), (4,), (2, 3)])
def test_several_draws_in_one_forward_are_those_of_a_loop(posterior, case, inner):
    samples, batch = 3, 2
    factor = factor_of(family_of("lora", *case, posterior=posterior, residual_scale=0.5)).eval()
    noise = float_noise(factor.family, 1, samples)
    noise = noise._replace(uniform=torch.tensor([0.1, 0.5, 0.9]))
    inputs = torch.randn(samples * batch, *inner, factor.in_features, generator=generator(2))
    factor.set_noise(noise, explicit=True)
    together = factor(inputs)
    assert together.shape == (samples * batch, *inner, factor.out_features)
    loop = []
    for s in range(samples):
        factor.set_noise(draw_of(noise, s), explicit=True)
        loop.append(nn.functional.linear(inputs[s * batch : (s + 1) * batch], factor.weight))
    assert not torch.allclose(loop[0], loop[1])
    torch.testing.assert_close(together, torch.cat(loop), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("leading", [1, 2, 4, 7])
def test_a_batch_that_is_no_multiple_of_the_draws_is_refused(leading):
    factor = trained_factor(samples=3)
    with pytest.raises(ValueError, match="3 posterior samples in one forward need a leading dimension"):
        factor(torch.zeros(leading, 6, 5))


@pytest.mark.parametrize("samples", [0, 1, 2])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_the_output_has_the_precision_of_the_input(dtype, samples):
    factor = trained_factor(samples=max(samples, 1)).train(samples > 0)
    inputs = torch.randn(4, 3, 5, generator=generator(0)).to(dtype)
    output = factor(inputs)
    assert output.dtype == dtype
    weight = factor.weight if samples > 1 else factor.weight.unsqueeze(0)
    exact = torch.einsum("sbti,soi->sbto", inputs.double().unflatten(0, (len(weight), -1)), weight.double()).flatten(
        0, 1
    )
    tolerance = 8 * torch.finfo(dtype).eps * exact.abs().max().item()
    torch.testing.assert_close(output.double(), exact, rtol=0, atol=tolerance)
    output.float().sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in factor.parameters() if parameter.grad is not None)


@pytest.mark.parametrize("samples", [0, 1, 2])
@pytest.mark.parametrize("posterior", FAMILIES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_a_factor_cast_with_its_model_keeps_working(dtype, posterior, samples):
    """`model.to(torch.bfloat16)` casts the adapter with the model; the noise stays float32."""
    factor = trained_factor(posterior=posterior, samples=max(samples, 1)).train(samples > 0)
    before = factor.weight.detach()
    factor.to(dtype)
    after = factor(torch.eye(5, dtype=dtype).repeat(max(samples, 1), 1))
    after = after.unflatten(0, (-1, 5)).mT.squeeze(0).float()
    torch.testing.assert_close(after, before, rtol=0, atol=1e-5 if dtype == torch.float64 else 0.1)
    assert all(part.isfinite() for part in factor.kl())


def test_only_explicit_noise_counts_in_eval_mode():
    factor = trained_factor()
    draw = factor.weight.detach()
    mean = factor.family.mean_weight(factor.parameters_by_name).detach()
    assert not torch.allclose(mean, draw)
    torch.testing.assert_close(factor.eval().weight, mean)
    factor.set_noise(factor.noise, explicit=True)
    torch.testing.assert_close(factor.weight, draw)
    factor.set_noise(None)
    torch.testing.assert_close(factor.weight, mean)
    torch.testing.assert_close(factor.train().weight, mean)


# --- priors of the mean and of each side ------------------------------------------------------------------------------


def test_the_prior_of_the_mean_adds_its_negative_log_density_without_the_constant():
    flat, proper = (InducingWeights(2, 6, "A", 2, mean_std=std) for std in (None, 0.3))
    parameters = factor_parameters(flat, 0)
    difference = proper.kl(parameters, None).inducing - flat.kl(parameters, None).inducing
    density = torch.distributions.Normal(0.0, 0.3)
    expected = (density.log_prob(torch.zeros(())) - density.log_prob(parameters["mean"])).sum()
    torch.testing.assert_close(difference, expected.to(difference))
    draws = [family.sample_weight(parameters, noise_like(family, generator(1), 2)) for family in (flat, proper)]
    assert torch.equal(*draws)


def test_without_a_mean_function_there_is_no_mean_to_have_a_prior():
    family = InducingWeights(2, 6, "A", 2, mean="inducing", bases="free", mean_std=0.3)
    parameters = factor_parameters(family, 0)
    torch.testing.assert_close(family.kl(parameters, None).inducing, family.q.kl(parameters, None))


def test_a_pair_of_prior_scales_is_for_a_and_for_b():
    config = BayesianLoraConfig(prior_std=[0.1, 0.02], inducing_std=[0.3, 0.2])
    a, b = config.family("A", 8, 16), config.family("B", 16, 8)
    assert (a.prior_std, a.tau, b.prior_std, b.tau) == (0.1, 0.3, 0.02, 0.2)
    one = BayesianLoraConfig(prior_std=0.1, inducing_std=None)
    assert one.family("A", 8, 16).tau == one.family("B", 16, 8).tau == 0.1


@pytest.mark.parametrize("value", [[0.1], [0.1, 0.2, 0.3], [0.1, 0.0], -1.0])
def test_prior_scales_that_make_no_sense_are_refused(value):
    with pytest.raises(ValueError, match="prior_std"):
        BayesianLoraConfig(prior_std=value)
