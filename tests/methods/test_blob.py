"""BLoB: the posterior of A, Flipout, and what of it reaches the model."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from test_trainer import assert_same, items, step_logs, trained_parameters, trainer_for
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence

import bayeslora
from bayeslora.adapters.draws import hold_draw, random_factors
from bayeslora.adapters.random_factor import RandomFactor
from bayeslora.methods.blob import Blob, BlobConfig, BlobWeights
from conftest import distance, perturb, seeded, tiny_llama, tokens
from helpers import affine_map, as_leaves, draw_of, float_noise, generator, gradients, noise_from_rows, normal

EPSILON = 0.05
FAMILY = BlobWeights(3, 5, std=EPSILON**2, prior_std=0.2)


def parameters(*stack: int, seed: int = 0) -> dict[str, Tensor]:
    """Means and roots of both signs, away from the start, float64."""
    source = generator(seed)
    return {"mean": normal(source, *stack, 3, 5), "root_std": 0.5 * normal(source, *stack, 3, 5)}


def posterior(values: dict[str, Tensor]) -> Normal:
    return Normal(values["mean"], values["root_std"] ** 2)


def blob(**options: Any) -> nn.Module:
    with seeded(3):
        method = Blob(r=4, lora_alpha=8, last_layers=2, **options)
        return method.adapt(tiny_llama(vocab_size=320), "causal_lm")


# --- the family ------------------------------------------------------------------------------------------------------


def test_start_is_that_of_the_paper() -> None:
    family = BlobWeights(40, 50, std=EPSILON**2)
    weight = torch.randn(40, 50, generator=generator(1))
    with seeded(0):
        start = family.initial(weight)
    assert torch.equal(start["mean"], weight)
    root, low = start["root_std"], EPSILON / 2**0.5
    assert low <= root.min() < low + 1e-4 and EPSILON - 1e-4 < root.max() <= EPSILON
    # Uniform: the standard error of the mean of 2000 is (EPSILON - low) / sqrt(12 * 2000) = 1e-4.
    assert root.mean().item() == pytest.approx((low + EPSILON) / 2, abs=5e-4)


def test_draws_have_the_squared_root_as_standard_deviation() -> None:
    values = parameters()
    offset, matrix = affine_map(
        lambda rows: FAMILY.sample_weight(values, noise_from_rows(FAMILY, rows)).flatten(1),  # type: ignore[arg-type]
        15,
    )
    assert distance(offset, values["mean"].flatten()) == 0
    assert distance(matrix, torch.diag(values["root_std"].flatten() ** 2)) < 1e-12


def test_kl_is_that_of_independent_gaussians() -> None:
    values = parameters(4)
    prior = Normal(torch.zeros(4, 3, 5, dtype=torch.float64), 0.2)
    found = FAMILY.kl(values, None)
    torch.testing.assert_close(found.total, kl_divergence(posterior(values), prior).sum((-2, -1)))
    assert found.total.shape == (4,)


def test_kl_gradient_of_the_root() -> None:
    """d/dG of G^4 / (2 p^2) - log G^2, also where G is negative."""
    leaves = as_leaves(parameters())
    root = leaves["root_std"].detach()
    found = gradients(FAMILY.kl(leaves, None).total, [leaves["root_std"]])[0]
    torch.testing.assert_close(found, 2 * root**3 / 0.2**2 - 2 / root)


# --- Flipout ---------------------------------------------------------------------------------------------------------


def flipout_factor(flipout: bool = True) -> RandomFactor:
    family = BlobWeights(3, 5, flipout=flipout)
    factor = RandomFactor(family, torch.zeros(3, 5))
    factor.load_state_dict({name: value.float() for name, value in parameters().items()})
    return factor.train()


def weights_of_rows(factor: RandomFactor, rows: int, seed: int = 0) -> Tensor:
    """The W `[rows, out, in]` that each row of a batch is multiplied with: each row's tokens are the unit vectors."""
    with seeded(seed), torch.no_grad():
        return factor(torch.eye(5).expand(rows, 5, 5)).mT


def perturbations(factor: RandomFactor, rows: int, seed: int = 0) -> Tensor:
    return weights_of_rows(factor, rows, seed) - factor.mean


def test_each_row_has_the_step_s_draw_with_signs_of_its_own() -> None:
    """dW o s r^T: dW is symmetric, so that this has the distribution of dW in every row."""
    factor = flipout_factor()
    factor.set_noise(float_noise(factor.family, 1))
    drawn = (factor.weight - factor.mean).detach()
    found = perturbations(factor, 64)
    assert distance(found.abs(), drawn.abs().expand_as(found)) < 1e-6
    signs = (found / drawn).round()
    # Signs of rank one: each row and column is the first one or its negative.
    assert distance(signs, signs[:, :, :1] * signs[:, :1, :] * signs[:, :1, :1]) == 0
    assert len(signs.unique(dim=0)) > 32
    assert found.mean(0).abs().max() < 5 / 64**0.5 * drawn.abs().max()


def test_a_row_has_the_moments_of_an_exact_draw() -> None:
    factor = flipout_factor()
    rows = []
    for step in range(3000):
        factor.set_noise(float_noise(factor.family, step))
        rows.append(perturbations(factor, 1, seed=step)[0].flatten())
    found, std = torch.stack(rows), factor.root_std.detach().flatten() ** 2
    covariance = found.T @ found / len(found) / std.outer(std)
    assert distance(covariance, torch.eye(15)) < 0.13  # five standard errors of a variance: 5 * sqrt(2 / 3000)
    assert (found.mean(0) / std).abs().max() < 5 / 3000**0.5


def test_signs_are_fresh_in_each_forward_and_follow_torchs_generator() -> None:
    factor = flipout_factor()
    factor.set_noise(float_noise(factor.family, 1))
    one = perturbations(factor, 8, seed=0)
    assert torch.equal(perturbations(factor, 8, seed=0), one)
    assert distance(perturbations(factor, 8, seed=1), one) > 0.1


def test_several_draws_in_one_training_forward() -> None:
    factor = flipout_factor()
    noise = float_noise(factor.family, 1, samples=2)
    factor.set_noise(noise)
    found = perturbations(factor, 6).unflatten(0, (2, 3)).abs()
    for number in range(2):
        factor.set_noise(draw_of(noise, number))
        drawn = (factor.weight - factor.mean).detach().abs()
        assert distance(found[number], drawn.expand(3, 3, 5)) < 1e-6


@pytest.mark.parametrize("case", ["off", "eval", "sampling", "mean"])
def test_no_signs_but_in_training_with_a_draw(case: str) -> None:
    factor = flipout_factor(flipout=case != "off")
    if case == "eval":
        factor.eval()
    factor.set_noise(None if case == "mean" else float_noise(factor.family, 1), explicit=case == "sampling")
    found = weights_of_rows(factor, 4)
    assert distance(found, factor.weight.detach().expand(4, 3, 5)) < 1e-6


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradients_with_checkpointing(reentrant: bool) -> None:
    found = []
    for checkpointing in (False, True):
        model = perturb(blob(), scale=0.05).train()
        if checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
            model.enable_input_require_grads()
        hold_draw(model, seed=0, step=1)
        with seeded(4):
            model(input_ids=tokens()).logits.square().mean().backward()
        found.append({name: p.grad for name, p in model.named_parameters() if p.requires_grad})
    scale = max(value.abs().max().item() for value in found[0].values())
    assert scale > 0.01
    assert_same(found[1], found[0], 1e-5 * scale)


# --- the method ------------------------------------------------------------------------------------------------------


def test_only_a_is_random() -> None:
    model = blob()
    factors = random_factors(model)
    assert len(factors) == 4 and {factor.out_features for factor in factors} == {4}
    for name, module in model.named_modules():
        if name.endswith(".lora_B.default"):
            assert type(module) is nn.Linear and not module.weight.any()
    trained = trained_parameters_of(model)
    assert {name.rsplit("default.")[-1] for name in trained} == {"mean", "root_std", "weight"}


def trained_parameters_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def test_options_reach_the_posterior() -> None:
    factor = random_factors(blob(epsilon=0.2, prior_std=0.7, flipout=False))[0]
    assert factor.family == BlobWeights(4, 32, std=0.2**2, prior_std=0.7, flipout=False)
    assert factor.root_std.min() > 0.14 and 0.19 < factor.root_std.max() <= 0.2


@pytest.mark.parametrize(("option", "value"), [("epsilon", 0.0), ("epsilon", -0.05), ("prior_std", 0.0)])
def test_values_out_of_range(option: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{option} must be above 0 and at most 1000, got {value}"):
        BlobConfig(**{option: value})


def test_training_lowers_the_loss_and_loads(tmp_path: Path) -> None:
    model = blob()
    options = {"optim": "adamw_torch", "learning_rate": 0.01, "max_steps": 15}
    trainer = trainer_for("cloze", tmp_path, model=model, beta=0.05, **options)
    start = trained_parameters(trainer)
    trainer.train()
    logs = step_logs(trainer)
    assert logs[0]["kl"] == pytest.approx(bayeslora.kl_divergence(blob()).total.item(), rel=1e-5)
    # An epoch has three steps.
    for part in ("nll", "kl"):
        assert sum(entry[part] for entry in logs[-3:]) < 0.9 * sum(entry[part] for entry in logs[:3]), part
    end = trained_parameters(trainer)
    assert all(distance(end[name], value) > 1e-3 for name, value in start.items())
    model.save_pretrained(tmp_path / "adapter")
    loaded = PeftModel.from_pretrained(tiny_llama(vocab_size=320), tmp_path / "adapter")
    batch = trainer.data_collator(items(6))
    for number in (0, 4):
        expected = bayeslora.predict(model, batch, number, seed=1).probabilities
        assert distance(bayeslora.predict(loaded, batch, number, seed=1).probabilities, expected) < 1e-6


def test_accumulation_without_flipout(tmp_path: Path) -> None:
    results = []
    for size, accumulation in ((8, 1), (2, 4)):
        trainer = trainer_for(
            "cloze",
            tmp_path,
            model=blob(flipout=False),
            per_device_train_batch_size=size,
            gradient_accumulation_steps=accumulation,
            learning_rate=1e-4,
        )
        trainer.train()
        results.append(trained_parameters(trainer))
    assert_same(results[1], results[0])
