"""Optimizers for LoRA pairs: the property that defines each, and what a torch optimizer in a Trainer must keep."""

import io
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.linalg
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from test_contract import SHARED, World, world  # noqa: F401
from test_cost import Operations
from torch import Tensor, nn
from transformers import Trainer, TrainingArguments

from bayeslora import BayesianLoraConfig, random_factors
from bayeslora.methods import BayesianLora, Method, method_classes
from bayeslora.methods.ensemble import EnsembleConfig
from bayeslora.methods.ivon import Ivon
from bayeslora.methods.mean_field import MeanFieldConfig
from bayeslora.methods.replora import RepLoraConfig
from bayeslora.runs import load_run, train
from bayeslora.runs.config_files import parse_config
from bayeslora.training.optimizers import PAIR_OPTIMIZERS, LoraRite, OpLora, RefLora, build_optimizer, lora_pairs
from bayeslora.training.optimizers.lora_rite import inverse_root
from bayeslora.training.optimizers.oplora import LowRank, alternating_sweep, tangent_gradient, truncate
from bayeslora.training.optimizers.pairs import parameter_groups
from bayeslora.training.optimizers.reflora import refactoring, scalar_refactoring
from bayeslora.training.parameter_groups import variational_parameters
from bayeslora.training.trainer import BayesianLoraTrainer
from conftest import VOCABULARY, seeded, tiny_llama

NAMES = PAIR_OPTIMIZERS.names()
OUT, IN, RANK = 9, 7, 3

Gradient = Callable[[Tensor, int], Tensor]
"""dL/d(B A) `[out, in]` at the product and the number of a step."""


# --- a pair alone ----------------------------------------------------------------------------------------------------


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def pair(seed: int = 0, out: int = OUT, size: int = IN, rank: int = RANK) -> tuple[nn.Parameter, nn.Parameter]:
    """A and B."""
    return nn.Parameter(normal(2 * seed, rank, size)), nn.Parameter(normal(2 * seed + 1, out, rank))


def groups(*pairs: tuple[Tensor, Tensor], random: bool = False) -> list[dict[str, Any]]:
    return [{"params": [factor for one in pairs for factor in one], "pairs": True, "random": random}]


def set_gradients(a: Tensor, b: Tensor, gradient: Tensor) -> None:
    """Those of a loss whose gradient with respect to B A is `gradient`."""
    a.grad, b.grad = (b.detach().mT @ gradient).to(a.dtype), (gradient @ a.detach().mT).to(b.dtype)


def products(optimizer: torch.optim.Optimizer, a: Tensor, b: Tensor, gradient: Gradient, steps: int) -> list[Tensor]:
    """B A after each step."""
    found = []
    for step in range(steps):
        set_gradients(a, b, gradient((b @ a).detach(), step))
        optimizer.step()
        found.append((b @ a).detach().clone())
    return found


def stream(product: Tensor, step: int) -> Tensor:
    """A gradient with noise, of a size near 1."""
    return 0.1 * (product - normal(99, OUT, IN)) + 0.1 * normal(1000 + step, OUT, IN)


def largest(found: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    return max((one - other).abs().max().item() for one, other in zip(found, expected, strict=True))


# --- LoRA-RITE -------------------------------------------------------------------------------------------------------


def transformed(a: Tensor, b: Tensor, seed: int) -> tuple[nn.Parameter, nn.Parameter]:
    """(T^-1 A, B T) with a T that is neither orthogonal nor diagonal."""
    change = normal(seed, RANK, RANK) + 2 * torch.eye(RANK, dtype=torch.float64)
    return nn.Parameter(torch.linalg.solve(change, a.detach())), nn.Parameter(b.detach() @ change)


@pytest.mark.parametrize("weight_decay", [0.0, 0.3])
@pytest.mark.parametrize("zero", [False, True], ids=["full rank", "B = 0"])
def test_lora_rite_does_not_see_how_the_product_is_split(zero: bool, weight_decay: float) -> None:
    a, b = pair()
    if zero:
        b.data.zero_()
    other = transformed(a, b, seed=5)
    options: Any = {"lr": 0.05, "weight_decay": weight_decay}
    found, expected = (products(LoraRite(groups(p), **options), *p, stream, 15) for p in (other, (a, b)))
    assert largest(found[-1:], found[:1]) > 0.1
    assert largest(found, expected) < 1e-8


def test_adamw_sees_how_the_product_is_split() -> None:
    """So that the test above can fail."""
    a, b = pair()
    other = transformed(a, b, seed=5)
    found, expected = (products(torch.optim.AdamW(p, lr=0.05), *p, stream, 15) for p in (other, (a, b)))
    assert largest(found, expected) > 0.1


def full_rank_root(matrix: Tensor, rank: int) -> Tensor:
    """matrix^(-1/2) on its `rank` leading directions."""
    values, vectors = torch.linalg.eigh(matrix)
    values, vectors = values[-rank:], vectors[:, -rank:]
    return vectors / values.sqrt() @ vectors.mT


class AmbientRite:
    """LoRA-RITE without any basis: moments of the size of the weight, kept on the other factor's row space."""

    def __init__(self, lr: float, clip: float):
        self.lr, self.clip, self.step = lr, clip, 0
        self.moments: dict[int, tuple[Tensor, Tensor]] = {}

    def decay(self, beta: float) -> float:
        # Equals a zero-started average divided by 1 - beta^t.
        return (beta - beta**self.step) / (1 - beta**self.step)

    def update(self, pairs: list[tuple[Tensor, Tensor]], gradients: list[Tensor]) -> list[tuple[Tensor, Tensor]]:
        self.step += 1
        sides = []
        for (a, b), gradient in zip(pairs, gradients, strict=True):
            sides += [(b, a.mT, gradient), (a.mT, b, gradient.mT)]
        shown = [gradient @ other @ torch.linalg.pinv(other) for _, other, gradient in sides]
        norm = torch.sqrt(sum((part**2).sum() for part in shown))
        shown = [part * min(1.0, self.clip / norm.item()) for part in shown]
        moved = []
        for index, ((factor, other, _), part) in enumerate(zip(sides, shown, strict=True)):
            projection = other @ torch.linalg.pinv(other)
            size, first, second = part.shape[1], self.decay(0.9), self.decay(0.999)
            before = self.moments.get(index, (torch.zeros_like(part), torch.zeros(size, size).double()))
            square = second * projection @ before[1] @ projection + (1 - second) * part.mT @ part / part.shape[0]
            mean = first * before[0] @ projection + (1 - first) * part @ full_rank_root(square, other.shape[1])
            self.moments[index] = (mean, square)
            moved.append(factor - self.lr * mean @ torch.linalg.pinv(other.mT))
        return [(moved[index + 1].mT, moved[index]) for index in range(0, len(moved), 2)]


@pytest.mark.parametrize("clip", [0.5, 1e6])
def test_lora_rite_equals_its_formula_without_bases(clip: float) -> None:
    """Two pairs of different shape, whose gradients are clipped together."""
    pairs = [pair(0), pair(1, out=6, size=11)]
    optimizer = LoraRite(groups(*pairs), lr=0.05, clip_norm=clip, eps_root=1e-14)
    reference = AmbientRite(0.05, clip)
    expected = [(a.detach().clone(), b.detach().clone()) for a, b in pairs]
    for step in range(6):
        gradients = [normal(50 + 2 * step + i, b.shape[0], a.shape[1]) for i, (a, b) in enumerate(pairs)]
        for (a, b), gradient in zip(pairs, gradients, strict=True):
            set_gradients(a, b, gradient)
        optimizer.step()
        expected = reference.update(expected, gradients)
        for found, wanted in zip(pairs, expected, strict=True):
            assert largest([part.detach() for part in found], wanted) < 1e-9


def test_lora_rite_moves_only_b_while_b_is_zero() -> None:
    a, b = pair()
    b.data.zero_()
    before, optimizer = a.detach().clone(), LoraRite(groups((a, b)), lr=0.05)
    products(optimizer, a, b, stream, 1)
    assert torch.equal(a, before) and torch.linalg.matrix_rank(b) == RANK
    products(optimizer, a, b, stream, 1)
    assert not torch.equal(a, before)


def test_lora_rite_stands_gradients_of_low_rank() -> None:
    """One token gives a gradient of rank one; float32, where the other eigenvalues of V are rounding errors."""
    a, b = (nn.Parameter(factor.detach().float()) for factor in pair())
    b.data.zero_()
    direction = (normal(3, OUT, 1) @ normal(4, 1, IN)).float()
    found = products(LoraRite(groups((a, b)), lr=0.01), a, b, lambda *_: direction, 30)
    moves = [(after - before).norm() for before, after in pairwise(found)]
    # Each step moves at most about lr sqrt(out r) through B and lr sqrt(in r) through A.
    assert max(moves) < 0.01 * 2 * ((OUT * RANK) ** 0.5 + (IN * RANK) ** 0.5)


def test_lora_rite_does_not_blow_up_rounding_errors() -> None:
    """Directions of 1e-5 beside one of 1: their squares are lost in float32, and may come out negative."""
    for seed in range(20):
        gradient = (normal(seed, 50, 1) @ normal(seed + 100, 1, 6) + 1e-5 * normal(seed + 200, 50, 6)).float()
        direction = gradient @ inverse_root(gradient.mT @ gradient / 50, 1e-6)
        assert direction.square().mean().sqrt() < 1.5


# --- RefLoRA ---------------------------------------------------------------------------------------------------------


def root(matrix: Tensor) -> Tensor:
    return torch.from_numpy(np.real(scipy.linalg.sqrtm(matrix.detach().numpy())))


@pytest.mark.parametrize("seed", range(3))
def test_reflora_refactoring_is_its_closed_form(seed: int) -> None:
    a, b = (factor.detach() for factor in pair(seed))
    scale, inverse = refactoring(a, b)
    root_a = root(a @ a.mT)
    inverse_root = torch.linalg.inv(root_a)
    expected = inverse_root @ root(root_a @ b.mT @ b @ root_a) @ inverse_root
    assert torch.allclose(scale, expected, rtol=1e-9)
    assert torch.allclose(scale @ inverse, torch.eye(RANK).double(), atol=1e-10)
    assert torch.equal(scale, scale.mT) and torch.linalg.eigvalsh(scale).min() > 0
    assert torch.allclose(scale @ a @ a.mT @ scale, b.mT @ b, rtol=1e-9)


@pytest.mark.parametrize("seed", range(3))
def test_reflora_refactoring_balances_and_minimises_the_bound(seed: int) -> None:
    a, b = (factor.detach() for factor in pair(seed))
    scale, _ = refactoring(a, b)
    factor = torch.linalg.cholesky(scale)
    new_a, new_b = factor.mT @ a, torch.linalg.solve(factor, b.mT).mT
    assert torch.allclose(new_b @ new_a, b @ a)
    assert torch.allclose(new_a @ new_a.mT, new_b.mT @ new_b)

    def bound(matrix: Tensor) -> Tensor:
        return torch.trace(matrix @ a @ a.mT) + torch.trace(torch.linalg.inv(matrix) @ b.mT @ b)

    assert torch.allclose(bound(scale), 2 * torch.linalg.matrix_norm(b @ a, "nuc"))
    for trial in range(20):
        change = torch.linalg.matrix_exp(0.1 * normal(trial, RANK, RANK))
        assert bound(change @ scale @ change.mT) > bound(scale)


def test_reflora_scalar_refactoring_minimises_the_bound() -> None:
    a, b = (factor.detach() for factor in pair())
    scale = scalar_refactoring(a, b).item()
    assert scale == pytest.approx((b.norm() / a.norm()).item())

    def bound(value: float) -> float:
        return (value * a.norm() ** 2 + b.norm() ** 2 / value).item()

    assert all(bound(scale) < bound(scale * change) for change in (0.5, 0.9, 1.1, 2.0))


def test_reflora_leaves_a_factor_of_zeros_alone() -> None:
    a, b = (factor.detach() for factor in pair())
    scale, inverse = refactoring(a, torch.zeros_like(b))
    assert torch.equal(scale, torch.eye(RANK).double()) and torch.equal(inverse, scale)
    assert scalar_refactoring(a, torch.zeros_like(b)).item() == 1


@pytest.mark.parametrize("scalar", [False, True])
def test_reflora_starts_with_100_steps_of_adamw(scalar: bool) -> None:
    (a, b), (other_a, other_b) = pair(), pair()
    options: Any = {"lr": 0.01, "weight_decay": 0.1}
    found = products(RefLora(groups((a, b)), scalar=scalar, **options), a, b, stream, 102)
    expected = products(torch.optim.AdamW([other_a, other_b], **options), other_a, other_b, stream, 102)
    assert all(torch.equal(one, other) for one, other in zip(found[:99], expected[:99], strict=True))
    # The scalar form rescales the factors after step 100, which leaves their product, up to rounding.
    assert largest(found[99:100], expected[99:100]) < 1e-12
    assert largest(found[100:101], expected[100:101]) > 1e-5


def test_reflora_is_adamw_on_the_refactored_gradients() -> None:
    (a, b), (other_a, other_b) = pair(), pair()
    optimizer, adamw = (
        RefLora(groups((a, b)), lr=0.01, warmup_steps=2),
        torch.optim.AdamW([other_a, other_b], lr=0.01, weight_decay=0),
    )
    for step in range(8):
        set_gradients(a, b, stream((b @ a).detach(), step))
        optimizer.step()
        set_gradients(other_a, other_b, stream((other_b @ other_a).detach(), step))
        if step >= 2:
            scale, inverse = refactoring(other_a.detach(), other_b.detach())
            other_a.grad, other_b.grad = inverse @ other_a.grad, other_b.grad @ scale
        adamw.step()
        assert torch.allclose(a, other_a, rtol=1e-12) and torch.allclose(b, other_b, rtol=1e-12)


def test_reflora_scalar_is_adamw_on_balanced_factors() -> None:
    """A step of AdamW, then sqrt(s) A and B / sqrt(s), whose gradients, and so AdamW's moments, are the inverse."""
    (a, b), (other_a, other_b) = pair(), pair()
    optimizer = RefLora(groups((a, b)), lr=0.01, scalar=True, warmup_steps=2)
    adamw = torch.optim.AdamW([other_a, other_b], lr=0.01, weight_decay=0)
    for step in range(8):
        set_gradients(a, b, stream((b @ a).detach(), step))
        optimizer.step()
        set_gradients(other_a, other_b, stream((other_b @ other_a).detach(), step))
        adamw.step()
        if step >= 1:
            size = (other_b.norm() / other_a.norm()).item()
            for factor, power in ((other_a, 0.5), (other_b, -0.5)):
                factor.data *= size**power
                adamw.state[factor]["exp_avg"] *= size**-power
                adamw.state[factor]["exp_avg_sq"] *= size ** (-2 * power)
            assert a.norm().item() == pytest.approx(b.norm().item(), rel=1e-9)
        assert torch.allclose(a, other_a, rtol=1e-10) and torch.allclose(b, other_b, rtol=1e-10)


def test_reflora_scalar_does_not_rescale_means_of_random_factors() -> None:
    """Their noise has a size of its own: S multiplies the gradients."""
    (a, b), (other_a, other_b) = pair(), pair()
    b.data *= 5
    other_b.data *= 5
    optimizer = RefLora(groups((a, b), random=True), lr=0.01, scalar=True, warmup_steps=0)
    adamw = torch.optim.AdamW([other_a, other_b], lr=0.01, weight_decay=0)
    for step in range(5):
        set_gradients(a, b, stream((b @ a).detach(), step))
        optimizer.step()
        set_gradients(other_a, other_b, stream((other_b @ other_a).detach(), step))
        scale = (other_b.norm() / other_a.norm()).item()
        other_a.grad, other_b.grad = other_a.grad / scale, other_b.grad * scale
        adamw.step()
        assert torch.allclose(a, other_a, rtol=1e-10) and torch.allclose(b, other_b, rtol=1e-10)
    assert b.norm() > 3 * a.norm()


# --- OPLoRA ----------------------------------------------------------------------------------------------------------


def dense(matrix: LowRank) -> Tensor:
    return matrix.left @ matrix.right


def truncated(matrix: Tensor, rank: int) -> Tensor:
    left, values, right = np.linalg.svd(matrix.detach().numpy(), full_matrices=False)
    return torch.from_numpy(left[:, :rank] * values[:rank] @ right[:rank])


def projections(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """On the columns of B and on the rows of A."""
    return b @ torch.linalg.pinv(b), torch.linalg.pinv(a) @ a


@pytest.mark.parametrize("rank_of_b", [RANK, 1, 0])
def test_oplora_gradient_is_what_the_factors_know_of_it(rank_of_b: int) -> None:
    a, b = (factor.detach() for factor in pair())
    b[:, rank_of_b:] = 0
    gradient = normal(7, OUT, IN)
    found = dense(tangent_gradient(LowRank(b, a), b.mT @ gradient, gradient @ a.mT))
    columns, rows = projections(a, b)
    assert torch.allclose(found, columns @ gradient + gradient @ rows - columns @ gradient @ rows)
    # The two equations hold, and no smaller matrix fulfils them.
    assert torch.allclose(b.mT @ found, b.mT @ gradient) and torch.allclose(found @ a.mT, gradient @ a.mT)
    identity_b, identity_a = torch.eye(OUT).double(), torch.eye(IN).double()
    assert torch.allclose((identity_b - columns) @ found @ (identity_a - rows), torch.zeros(OUT, IN).double())


@pytest.mark.parametrize("rank_of_b", [RANK, 1, 0])
@pytest.mark.parametrize("damping", [1e-10, 1e-2, 1.0])
def test_oplora_sweeps_never_increase_the_distance(rank_of_b: int, damping: float) -> None:
    a, b = (factor.detach() for factor in pair())
    b[:, rank_of_b:] = 0
    start, move = LowRank(b, a), LowRank(normal(8, OUT, 5), normal(9, 5, IN))
    current, before = start, dense(move).norm()
    for _ in range(12):
        current = alternating_sweep(current, start, move, damping)
        after = (dense(current) - dense(start) - dense(move)).norm()
        assert after <= before * (1 + 1e-12)
        before = after
    assert before < 0.9 * dense(move).norm()


def test_oplora_many_sweeps_end_at_the_truncated_svd_step() -> None:
    a, b = (factor.detach() for factor in pair())
    start, move = LowRank(b, a), LowRank(normal(8, OUT, 5), normal(9, 5, IN))
    target, current = dense(start) + dense(move), start
    expected = truncated(target, RANK)
    first = (dense(alternating_sweep(start, start, move, 1e-10)) - expected).norm()
    for _ in range(400):
        current = alternating_sweep(current, start, move, 1e-10)
    assert first > 1e-2
    assert largest([dense(current)], [expected]) < 1e-8


def test_oplora_step_is_two_least_squares_problems() -> None:
    """The formulas of one sweep, with the gradient that the factors know."""
    a, b = pair()
    old_a, old_b, gradient, lr = a.detach().clone(), b.detach().clone(), normal(7, OUT, IN), 0.3
    set_gradients(a, b, gradient)
    OpLora(groups((a, b)), lr=lr, momentum=0.0, damping=1e-12).step()
    columns, rows = projections(old_a, old_b)
    known = columns @ gradient + gradient @ rows - columns @ gradient @ rows
    new_b = old_b - lr * gradient @ old_a.mT @ torch.linalg.inv(old_a @ old_a.mT)
    new_a = torch.linalg.inv(new_b.mT @ new_b) @ new_b.mT @ (old_b @ old_a - lr * known)
    assert torch.allclose(b, new_b, atol=1e-8) and torch.allclose(a, new_a, atol=1e-8)


@pytest.mark.parametrize("rank", [2, 4, 30])
def test_oplora_truncation_is_that_of_the_dense_matrix(rank: int) -> None:
    matrix = LowRank(normal(1, OUT, 6), normal(2, 6, IN))
    found = truncate(matrix, rank)
    assert found.left.shape == (OUT, rank) and found.right.shape == (rank, IN)
    assert torch.allclose(dense(found), truncated(dense(matrix), rank))


def test_oplora_momentum_is_the_dense_one_truncated() -> None:
    out, size, rank, decay = 20, 16, 2, 0.8
    a, b = pair(out=out, size=size, rank=rank)
    optimizer, momentum = OpLora(groups((a, b)), lr=0.1, momentum=decay), torch.zeros(out, size).double()
    for step in range(6):
        gradient = normal(20 + step, out, size)
        columns, rows = projections(a.detach(), b.detach())
        known = columns @ gradient + gradient @ rows - columns @ gradient @ rows
        momentum = truncated(decay * momentum + known, 2 * rank)
        set_gradients(a, b, gradient)
        optimizer.step()
        state = optimizer.state[a]
        found = state["momentum_left"] @ state["momentum_right"]
        assert state["momentum_left"].shape == (out, 2 * rank)
        assert torch.allclose(found, momentum, atol=1e-10)


def test_oplora_momentum_is_the_dense_one_where_that_has_low_rank() -> None:
    """With a learning rate of 0 the factors stay, and all their gradients lie in one space of rank 2 r."""
    a, b = pair(out=20, size=16, rank=2)
    optimizer, momentum = OpLora(groups((a, b)), lr=0.0, momentum=0.8), torch.zeros(20, 16).double()
    columns, rows = projections(a.detach(), b.detach())
    for step in range(6):
        gradient = normal(20 + step, 20, 16)
        momentum = 0.8 * momentum + columns @ gradient + gradient @ rows - columns @ gradient @ rows
        set_gradients(a, b, gradient)
        optimizer.step()
    state = optimizer.state[a]
    assert torch.allclose(state["momentum_left"] @ state["momentum_right"], momentum, atol=1e-10)


def test_oplora_does_not_lose_directions_to_gradients_of_low_rank() -> None:
    a, b = pair()
    b.data.zero_()
    before, optimizer = torch.linalg.svdvals(a.detach()).min(), OpLora(groups((a, b)), lr=0.1)
    products(optimizer, a, b, lambda *_: normal(3, OUT, 1) @ normal(4, 1, IN), 1)
    assert torch.linalg.matrix_rank(b, rtol=1e-6) == 1
    assert torch.linalg.svdvals(a.detach()).min() > 0.5 * before


# --- all -------------------------------------------------------------------------------------------------------------

OPTIONS: dict[str, dict[str, Any]] = {
    "lora_rite": {"lr": 0.02},
    "reflora": {"lr": 0.02, "warmup_steps": 3},
    "reflora_scalar": {"lr": 0.02, "warmup_steps": 3},
    "oplora": {"lr": 0.02, "pair_lr": 0.2},
}


class Layers(nn.Module):
    """Linear layers of two shapes, and one that has no pair."""

    def __init__(self, count: int = 2):
        super().__init__()
        self.wide = nn.ModuleList(nn.Linear(6, 8) for _ in range(count))
        self.tall = nn.ModuleList(nn.Linear(8, 6) for _ in range(count))
        self.head = nn.Linear(6, 4)

    def forward(self, value: Tensor) -> Tensor:
        for wide, tall in zip(self.wide, self.tall, strict=True):
            value = value + tall(torch.tanh(wide(value)))
        return self.head(value)


def adapted(count: int = 2, dtype: torch.dtype = torch.float32, zero: bool = False) -> PeftModel:
    """With a pair in each layer of `wide` and `tall`, and a trained head."""
    options: Any = {"r": 3, "target_modules": r".*(wide|tall)\.\d+", "modules_to_save": ["head"]}
    with seeded(0):
        model = get_peft_model(Layers(count), LoraConfig(init_lora_weights=zero, **options))
        return model.to(dtype)


def random_gradients(model: nn.Module, step: int) -> None:
    """The same for every model of the same structure, exact in bfloat16."""
    generator = torch.Generator().manual_seed(step)
    for parameter in model.parameters():
        if parameter.requires_grad:
            gradient = torch.randn(parameter.shape, generator=generator).bfloat16()
            parameter.grad = (0.1 * gradient).bfloat16().to(parameter.dtype)


def trained(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}


def same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> bool:
    return found.keys() == expected.keys() and all(torch.equal(found[key], expected[key]) for key in expected)


@pytest.mark.parametrize("name", NAMES)
def test_converges_on_a_quadratic_problem(name: str) -> None:
    """Two products of different shape towards targets of the same rank, from B = 0."""
    pairs = [pair(0), pair(1, out=6, size=11)]
    targets = [(b @ a).detach() for a, b in (pair(2), pair(3, out=6, size=11))]
    for _, b in pairs:
        b.data.zero_()
    options = {**OPTIONS[name], "lr": 0.1} | ({"pair_lr": 0.3, "momentum": 0.5} if name == "oplora" else {})
    optimizer = PAIR_OPTIMIZERS.get(name)(groups(*pairs), **options)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, 400)
    losses = []
    for _ in range(400):
        optimizer.zero_grad()
        loss = sum((0.5 * (b @ a - target).square().sum() for (a, b), target in zip(pairs, targets, strict=True)))
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    assert losses[-1] < 1e-3 * losses[0], losses[::50]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", NAMES)
def test_a_resumed_optimizer_goes_on_bit_by_bit(name: str, dtype: torch.dtype) -> None:
    model = adapted(dtype=dtype)
    optimizer = build_optimizer(name, model, weight_decay=0.1, **OPTIONS[name])
    for step in range(6):
        random_gradients(model, step)
        optimizer.step()
    file = io.BytesIO()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    resumed = adapted(dtype=dtype)
    resumed.load_state_dict(saved["model"])
    second = build_optimizer(name, resumed, weight_decay=0.1, **OPTIONS[name])
    second.load_state_dict(saved["optimizer"])
    for step in range(6, 10):
        for one, its in ((model, optimizer), (resumed, second)):
            random_gradients(one, step)
            its.step()
    assert same(trained(resumed), trained(model))
    assert not same(trained(resumed), {key: saved["model"][key] for key in trained(model)})


@pytest.mark.parametrize("name", NAMES)
def test_sixteen_bit_parameters_are_trained_in_float32(name: str) -> None:
    """They are those of a float32 run, rounded: no update is lost, however small."""
    narrow, wide = adapted(dtype=torch.bfloat16), adapted()
    wide.load_state_dict(narrow.state_dict())
    options = OPTIONS[name] | {"lr": 2e-4} | ({"pair_lr": 2e-4} if name == "oplora" else {})
    optimizers = [build_optimizer(name, model, weight_decay=0.1, **options) for model in (narrow, wide)]
    before = trained(narrow)
    for step in range(8):
        for model, optimizer in zip((narrow, wide), optimizers, strict=True):
            random_gradients(model, step)
            optimizer.step()
    tensors = [value for state in optimizers[0].state.values() for value in state.values() if isinstance(value, Tensor)]
    assert tensors and {value.dtype for value in tensors} == {torch.float32}
    assert same(trained(narrow), {key: value.bfloat16() for key, value in trained(wide).items()})
    assert not same(trained(narrow), before)


def test_weights_set_from_outside_win_over_the_copy_in_float32() -> None:
    model = adapted(dtype=torch.bfloat16)
    optimizer = build_optimizer("lora_rite", model, lr=1e-6)
    random_gradients(model, 0)
    optimizer.step()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    expected = trained(model)
    random_gradients(model, 1)
    optimizer.step()
    assert max((value - expected[key]).abs().max() for key, value in trained(model).items()) < 0.05


@pytest.mark.parametrize("fused", [None, True])
@pytest.mark.parametrize("name", NAMES)
def test_what_is_in_no_pair_gets_adamw_bit_by_bit(name: str, fused: bool | None) -> None:
    model, other = adapted(), adapted()
    decayed = [key for key, _ in model.named_parameters() if key.endswith("head.modules_to_save.default.weight")]
    options = OPTIONS[name] | {"lr": 0.02, "weight_decay": 0.1}
    optimizer = build_optimizer(name, model, decayed=decayed, fused=fused, **options)
    heads = {key: p for key, p in other.named_parameters() if p.requires_grad and "head" in key}
    adamw = torch.optim.AdamW(
        [{"params": [p], "weight_decay": 0.1 if key in decayed else 0.0} for key, p in heads.items()],
        lr=0.02,
        fused=fused,
    )
    for step in range(6):
        for one, its in ((model, optimizer), (other, adamw)):
            random_gradients(one, step)
            its.step()
    found = trained(model)
    assert len(decayed) == 1 and len(heads) == 2
    assert all(torch.equal(found[key], value) for key, value in heads.items())


@pytest.mark.parametrize("name", NAMES)
def test_a_step_takes_as_many_kernels_for_many_layers_as_for_few(name: str) -> None:
    totals = []
    for count in (2, 5):
        model = adapted(count)
        optimizer = build_optimizer(name, model, fused=True, **OPTIONS[name])
        for step in range(5):
            random_gradients(model, step)
            with Operations() as operations:
                optimizer.step()
        totals.append(operations.total)
    assert totals[0] == totals[1]


@pytest.mark.parametrize("name", NAMES)
def test_pairs_do_not_depend_on_how_they_are_stacked(name: str) -> None:
    """Two pairs of one shape give what each gives alone, but for the clipping of all together."""
    options = OPTIONS[name] | ({"clip_norm": 0.0} if name == "lora_rite" else {})
    together, alone = [pair(0), pair(1)], [pair(0), pair(1)]
    optimizer = PAIR_OPTIMIZERS.get(name)(groups(*together), **options)
    single = [PAIR_OPTIMIZERS.get(name)(groups(one), **options) for one in alone]
    for step in range(6):
        for index, (one, other) in enumerate(zip(together, alone, strict=True)):
            for a, b in (one, other):
                set_gradients(a, b, normal(100 + 2 * step + index, OUT, IN))
            single[index].step()
        optimizer.step()
    for one, other in zip(together, alone, strict=True):
        assert largest([f.detach() for f in one], [f.detach() for f in other]) < 1e-12


@pytest.mark.parametrize("name", NAMES)
def test_a_pair_without_gradients_stays(name: str) -> None:
    first, second = pair(0), pair(1)
    before = [factor.detach().clone() for factor in second]
    products(PAIR_OPTIMIZERS.get(name)(groups(first, second), weight_decay=0.1), *first, stream, 3)
    assert all(torch.equal(factor, old) for factor, old in zip(second, before, strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_factors_smaller_than_the_rank(name: str) -> None:
    """A layer of two inputs with r = 3, from B = 0."""
    a, b = pair(size=2)
    b.data.zero_()
    target = normal(5, OUT, 2)
    options = OPTIONS[name] | {"lr": 0.05} | ({"pair_lr": 0.2} if name == "oplora" else {})
    found = products(PAIR_OPTIMIZERS.get(name)(groups((a, b)), **options), a, b, lambda z, _: z - target, 60)
    assert (found[-1] - target).norm() < 0.5 * target.norm()


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("lora_rite", {"clip_norm": -1.0}),
        ("reflora", {"warmup_steps": -1}),
        ("oplora", {"sweeps": 0}),
        ("oplora", {"momentum": 1.0}),
        ("lora_rite", {"betas": (0.9, 1.0)}),
        ("reflora", {"lr": -1.0}),
        ("adam", {}),
    ],
)
def test_values_out_of_range_are_refused(name: str, options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"must|unknown optimizer"):
        build_optimizer(name, adapted(1), **options)


def test_unknown_options_are_refused() -> None:
    with pytest.raises(TypeError, match="sweeps"):
        build_optimizer("lora_rite", adapted(1), sweeps=2)


# --- which parameters are pairs --------------------------------------------------------------------------------------


def llama(config: type[LoraConfig] = LoraConfig, **options: Any) -> PeftModel:
    fields: dict[str, Any] = {"r": 4, "target_modules": ["q_proj", "v_proj"], "layers_to_transform": [2, 3]}
    with seeded(0):
        return get_peft_model(tiny_llama(), config(**{**fields, **options}, task_type="CAUSAL_LM"))


@pytest.mark.parametrize(
    ("config", "shape", "random"),
    [
        (LoraConfig, (), False),
        (BayesianLoraConfig, (), True),
        (MeanFieldConfig, (), True),
        (EnsembleConfig, (5,), True),
    ],
)
def test_pairs_of_an_adapter(config: type[LoraConfig], shape: tuple[int, ...], random: bool) -> None:
    pairs = lora_pairs(llama(config))
    assert [name.rpartition("layers.")[2] for name, *_ in pairs] == [
        f"{layer}.self_attn.{part}_proj.default" for layer in (2, 3) for part in ("q", "v")
    ]
    assert all(one.a.shape == (*shape, 4, 32) for one in pairs)
    assert [one.b.shape for one in pairs] == [(*shape, 32, 4), (*shape, 16, 4)] * 2
    assert all(one.random is random for one in pairs)


@pytest.mark.parametrize("method", [one for one in method_classes() if one.adapts], ids=lambda method: method.name)
def test_pairs_of_every_method(method: type[Method]) -> None:
    with seeded(0):
        model = method(r=4, last_layers=2).adapt(tiny_llama(), "causal_lm")
    without = {"replora", "sd_lora", "bayesian_sd_lora", "full_fine_tuning"}
    assert len(lora_pairs(model)) == (0 if method.name in without else 4)


def test_every_trainable_parameter_is_in_one_group() -> None:
    model = llama(BayesianLoraConfig, modules_to_save=["lm_head"])
    found = [id(p) for group in parameter_groups(model, 0.1) for p in group["params"]]
    expected = [id(p) for p in model.parameters() if p.requires_grad]
    assert sorted(found) == sorted(expected) and len(set(found)) == len(found)


def test_embeddings_are_pairs_and_convolutions_are_not() -> None:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words, self.convolution = nn.Embedding(11, 6), nn.Conv1d(6, 6, 3)

    model = get_peft_model(Mixed(), LoraConfig(r=2, target_modules=["words", "convolution"]))
    assert [(one.a.shape, one.b.shape) for one in lora_pairs(model)] == [((2, 11), (6, 2))]
    rest = [group for group in parameter_groups(model) if not group["pairs"]]
    assert [p.dim() for group in rest for p in group["params"]] == [3, 3]


def test_frozen_adapters_are_no_pairs() -> None:
    model = llama()
    model.add_adapter("other", model.peft_config["default"])
    assert {name.rpartition(".")[2] for name, *_ in lora_pairs(model)} == {"default"}
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    assert lora_pairs(model) == []


@pytest.mark.parametrize(("config", "options"), [(RepLoraConfig, {}), (BayesianLoraConfig, {"mean": "inducing"})])
def test_factors_that_are_no_parameters_are_refused(config: type[LoraConfig], options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="no trainable LoRA pair"):
        build_optimizer("lora_rite", llama(config, **options))


# --- in a Trainer ----------------------------------------------------------------------------------------------------


def texts(count: int = 16) -> list[dict[str, Tensor]]:
    """Two sequences over and over."""
    ids = torch.randint(4, VOCABULARY, (2, 9), generator=torch.Generator().manual_seed(3))
    return [{"input_ids": ids[index % 2], "labels": ids[index % 2]} for index in range(count)]


def loss_of(model: nn.Module) -> float:
    """Mean NLL of the texts at the posterior mean, nats per token."""
    ids = torch.stack([row["input_ids"] for row in texts()])
    with torch.no_grad():
        return model.eval()(input_ids=ids, labels=ids).loss.item()


def arguments(folder: Path, **changes: Any) -> TrainingArguments:
    fields: dict[str, Any] = {
        "output_dir": str(folder),
        "max_steps": 8,
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 2,
        "learning_rate": 0.02,
        "lr_scheduler_type": "cosine",
        "warmup_steps": 2,
        "weight_decay": 0.01,
        "max_grad_norm": 1.0,
        "logging_steps": 1,
        "save_steps": 4,
        "report_to": [],
        "disable_tqdm": True,
        "use_cpu": True,
        "dataloader_pin_memory": False,
    }
    return TrainingArguments(**{**fields, **changes})


PAIR_OPTIONS: dict[str, dict[str, Any]] = {
    "lora_rite": {},
    "reflora": {"warmup_steps": 2},
    "reflora_scalar": {"warmup_steps": 2},
    "oplora": {"pair_lr": 0.5},
}


@pytest.mark.parametrize("name", NAMES)
def test_in_transformers_trainer(name: str, tmp_path: Path) -> None:
    """Schedule, clipping, accumulation, and a checkpoint from which a new process would go on the same."""

    def trainer(folder: Path) -> Trainer:
        model = llama()
        optimizer = build_optimizer(name, model, lr=0.02, **PAIR_OPTIONS[name])
        return Trainer(model, arguments(folder), train_dataset=texts(), optimizers=(optimizer, None))

    whole = trainer(tmp_path)
    before = loss_of(whole.model)
    whole.train()
    assert loss_of(whole.model) < before - 0.3
    rates = {group["lr"] for group in whole.optimizer.param_groups}
    assert max(rates) < 1e-3
    resumed = trainer(tmp_path)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert same(trained(resumed.model), trained(whole.model))


def bayesian_trainer(name: str, folder: Path, model: PeftModel, **options: Any) -> BayesianLoraTrainer:
    return BayesianLoraTrainer(
        model=model,
        args=arguments(folder, **options.pop("arguments", {})),
        train_dataset=texts(),
        optimizer=name,
        optimizer_options=PAIR_OPTIONS[name],
        **options,
    )


@pytest.mark.parametrize("name", NAMES)
def test_means_of_bayesian_lora_are_trained(name: str, tmp_path: Path) -> None:
    def trainer(steps: int = 8) -> BayesianLoraTrainer:
        return bayesian_trainer(
            name, tmp_path, llama(BayesianLoraConfig), posterior_learning_rate=1e-3, arguments={"max_steps": steps}
        )

    whole = trainer()
    before = loss_of(whole.model)
    whole.train()
    assert loss_of(whole.model) < before - 0.15
    resumed = trainer()
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert same(trained(resumed.model), trained(whole.model))


@pytest.mark.parametrize("name", NAMES)
def test_spread_of_bayesian_lora_is_trained_by_adamw_bit_by_bit(name: str, tmp_path: Path) -> None:
    """With the same gradients, the same rates and the same decay."""
    models = [llama(BayesianLoraConfig) for _ in range(2)]
    trainers = [
        bayesian_trainer(name, tmp_path, models[0], posterior_learning_rate=3e-3),
        BayesianLoraTrainer(models[1], arguments(tmp_path), train_dataset=texts(), posterior_learning_rate=3e-3),
    ]
    optimizers = [trainer.create_optimizer() for trainer in trainers]
    assert type(optimizers[1]) is torch.optim.AdamW and type(optimizers[0]) is not torch.optim.AdamW
    start = trained(models[0])
    for step in range(5):
        for model, optimizer in zip(models, optimizers, strict=True):
            random_gradients(model, step)
            optimizer.step()
    found, expected = (trained(model) for model in models)
    spread = {key for key, _ in variational_parameters(models[0])}
    assert spread and all(torch.equal(found[key], expected[key]) for key in spread)
    assert any(not torch.equal(found[key], start[key]) for key in spread)
    means = found.keys() - spread
    assert len(means) == len(random_factors(models[0]))
    assert all(not torch.equal(found[key], start[key]) for key in means if "lora_B" in key)


def test_option_of_the_command_line(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("method: {class_path: Lora}\ntrain: {optimizer: oplora, optimizer_options: {pair_lr: 0.5}}\n")
    config = parse_config(path)
    assert (config.train.optimizer, config.train.optimizer_options) == ("oplora", {"pair_lr": 0.5})
    path.write_text("method: {class_path: Lora}\ntrain: {optimizer: muon}\n")
    with pytest.raises(ValueError, match="muon"):
        parse_config(path)


def test_options_without_their_optimizer_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="pair_lr"):
        BayesianLoraTrainer(llama(), arguments(tmp_path), train_dataset=texts(), optimizer_options={"pair_lr": 1.0})


def test_a_method_with_an_optimizer_of_its_own_refuses_another(tmp_path: Path) -> None:
    pytest.importorskip("ivon")
    options = Ivon().trainer_options(1e-3, 10, 16)
    with pytest.raises(ValueError, match="its own optimizer"):
        bayesian_trainer("lora_rite", tmp_path, llama(), **options)


@pytest.mark.parametrize("name", NAMES)
def test_in_a_run(name: str, world: World, tmp_path: Path) -> None:  # noqa: F811
    """Through the config of a run, as on the command line."""
    options: Any = {"optimizer": name, "optimizer_options": PAIR_OPTIONS[name], "max_steps": 6, "save_steps": None}
    run = train(world.config(BayesianLora(**SHARED), **options), tmp_path, evaluate_dev=False)
    nll = [entry["nll"] for entry in run.metrics["history"]]
    assert len(nll) == 6 and nll[-1] < nll[0]
    assert load_run(tmp_path).config.train.optimizer == name
