"""Mean-field Gaussians on both factors: the family, its optimum where that is known, and the method."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from test_trainer import assert_same, items, step_logs, trained_parameters, trainer_for
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence

import bayeslora
from bayeslora.adapters.draws import random_factors
from bayeslora.methods.blob import BlobWeights
from bayeslora.methods.mean_field import MeanField, MeanFieldConfig
from bayeslora.posteriors.weights.gaussian import GaussianWeights
from bayeslora.training.elbo import negative_elbo
from conftest import distance, logits_of, seeded, tiny_llama, tokens
from helpers import affine_map, generator, noise_from_rows, normal

FAMILY = GaussianWeights(3, 5, std=0.1, prior_std=0.2)


def parameters(*stack: int) -> dict[str, Tensor]:
    """Away from the start, float64."""
    source = generator(0)
    return {"mean": normal(source, *stack, 3, 5), "log_std": normal(source, *stack, 3, 5) - 1}


def mean_field(**options: Any) -> nn.Module:
    with seeded(3):
        method = MeanField(r=4, lora_alpha=8, last_layers=2, **options)
        return method.adapt(tiny_llama(vocab_size=320), "causal_lm")


# --- the family ------------------------------------------------------------------------------------------------------


def test_start() -> None:
    weight = torch.randn(3, 5, generator=generator(1))
    start = FAMILY.initial(weight)
    assert torch.equal(start["mean"], weight) and start["mean"].data_ptr() != weight.data_ptr()
    assert distance(FAMILY.standard_deviation(start), torch.full((3, 5), 0.1)) < 1e-7


def test_draws_are_independent_gaussians() -> None:
    values = parameters()
    offset, matrix = affine_map(
        lambda rows: FAMILY.sample_weight(values, noise_from_rows(FAMILY, rows)).flatten(1),  # type: ignore[arg-type]
        15,
    )
    assert distance(offset, values["mean"].flatten()) == 0
    assert distance(matrix, torch.diag(values["log_std"].exp().flatten())) < 1e-12


def test_kl_is_that_of_independent_gaussians() -> None:
    values = parameters(4)
    prior = Normal(torch.zeros(4, 3, 5, dtype=torch.float64), 0.2)
    expected = kl_divergence(Normal(values["mean"], values["log_std"].exp()), prior)
    torch.testing.assert_close(FAMILY.kl(values, None).total, expected.sum((-2, -1)))


@pytest.mark.parametrize("kind", [GaussianWeights, BlobWeights])
def test_optimum_for_linear_regression(kind: type[GaussianWeights]) -> None:
    """With a Gaussian likelihood the best mean-field posterior is known.

    Its means are the exact posterior's, and its precisions the diagonal of the exact precision.
    """
    source, noise_std = generator(2), 0.5
    inputs, targets = normal(source, 20, 4), normal(source, 20)
    precision = inputs.T @ inputs / noise_std**2 + torch.eye(4, dtype=torch.float64) / 0.3**2
    family = kind(1, 4, std=0.04, prior_std=0.3)
    with seeded(0):
        leaves = {name: p.requires_grad_() for name, p in family.initial(torch.zeros(1, 4).double()).items()}
    # Over these eight points the mean of a quadratic is its mean over the Gaussian.
    points = 2 * torch.cat([torch.eye(4), -torch.eye(4)]).double()
    optimizer = torch.optim.LBFGS(leaves.values(), max_iter=500, line_search_fn="strong_wolfe", tolerance_change=1e-14)

    def loss() -> Tensor:
        optimizer.zero_grad()
        weights = family.sample_weight(leaves, noise_from_rows(family, points)).squeeze(1)  # type: ignore[arg-type]
        nll = -Normal(weights @ inputs.T, noise_std).log_prob(targets).mean()
        value = negative_elbo(nll, family.kl(leaves, None), num_examples=20)
        value.backward()
        return value

    optimizer.step(loss)
    expected = torch.linalg.solve(precision, inputs.T @ targets) / noise_std**2
    assert distance(leaves["mean"].detach()[0], expected) < 1e-5
    assert distance(family.standard_deviation(leaves).detach()[0], precision.diagonal().rsqrt()) < 1e-5


@pytest.mark.parametrize("option", ["std", "prior_std"])
def test_values_out_of_range(option: str) -> None:
    with pytest.raises(ValueError, match=rf"^{option} must be above 0 and at most 1000, got -1\.0"):
        MeanFieldConfig(**{option: -1.0})


# --- the method ------------------------------------------------------------------------------------------------------


def test_both_factors_are_random() -> None:
    model = mean_field(std=0.02, prior_std=0.5, flipout=True)
    factors = random_factors(model)
    assert len(factors) == 8
    assert all(factor.family.std == 0.02 and factor.family.prior_std == 0.5 for factor in factors)
    assert all(factor.family.flipout for factor in factors)
    names = {name.rsplit("default.")[-1] for name, p in model.named_parameters() if p.requires_grad}
    assert names == {"mean", "log_std"}


def test_starts_at_plain_lora() -> None:
    """The mean is the base model; a draw is not, since B is random too."""
    model = mean_field().eval()
    assert distance(logits_of(model), logits_of(tiny_llama(vocab_size=320))) < 1e-6
    with bayeslora.sampling(model, 1):
        assert distance(logits_of(model), logits_of(tiny_llama(vocab_size=320))) > 1e-3


def test_a_draw_is_the_product_of_two_drawn_factors() -> None:
    model = mean_field(std=0.1).eval()
    layer = model.get_submodule("base_model.model.model.layers.3.self_attn.q_proj")
    value = torch.randn(2, 7, 32, generator=generator(0))
    with bayeslora.sampling(model, 1, seed=5), torch.no_grad():
        found = layer(value) - layer.base_layer(value)
        drawn = []
        for container in (layer.lora_A, layer.lora_B):
            factor = container["default"]
            drawn.append(factor.mean + factor.log_std.exp() * factor.noise.normal[0][0])
    assert distance(found, 2 * value @ drawn[0].T @ drawn[1].T) < 1e-5
    assert found.abs().max() > 0.05


def test_training_lowers_the_loss_and_loads(tmp_path: Path) -> None:
    model = mean_field()
    options = {"optim": "adamw_torch", "learning_rate": 0.01, "max_steps": 15}
    trainer = trainer_for("cloze", tmp_path, model=model, beta=0.05, **options)
    start = trained_parameters(trainer)
    trainer.train()
    logs = step_logs(trainer)
    assert logs[0]["kl"] == pytest.approx(bayeslora.kl_divergence(mean_field()).total.item(), rel=1e-5)
    # An epoch has three steps.
    assert sum(entry["nll"] for entry in logs[-3:]) < 0.8 * sum(entry["nll"] for entry in logs[:3])
    assert logs[-1]["kl"] < logs[0]["kl"] - 100
    end = trained_parameters(trainer)
    assert all(distance(end[name], value) > 1e-3 for name, value in start.items())
    model.save_pretrained(tmp_path / "adapter")
    loaded = PeftModel.from_pretrained(tiny_llama(vocab_size=320), tmp_path / "adapter")
    batch = trainer.data_collator(items(6))
    for number in (0, 4):
        expected = bayeslora.predict(model, batch, number, seed=1).probabilities
        assert distance(bayeslora.predict(loaded, batch, number, seed=1).probabilities, expected) < 1e-6


def test_flipout_trains_with_other_noise_but_predicts_with_the_same() -> None:
    """Row signs are for training alone: draws at prediction are those of the posterior either way."""
    plain, signed = mean_field(std=0.1), mean_field(std=0.1, flipout=True)
    signed.load_state_dict(plain.state_dict())
    found = []
    for model in (plain, signed):
        model.eval()
        with bayeslora.sampling(model, 3, seed=2):
            found.append(logits_of(model))
    assert torch.equal(found[0], found[1])
    trained = []
    for model in (plain, signed):
        model.train()
        with seeded(0), torch.no_grad():
            trained.append(model(input_ids=tokens()).logits)
    assert distance(trained[0], trained[1]) > 1e-2


def test_accumulated_batches_give_the_same_update(tmp_path: Path) -> None:
    results = []
    for size, accumulation in ((8, 1), (2, 4)):
        trainer = trainer_for(
            "cloze",
            tmp_path,
            model=mean_field(),
            per_device_train_batch_size=size,
            gradient_accumulation_steps=accumulation,
            learning_rate=1e-4,
        )
        trainer.train()
        results.append(trained_parameters(trainer))
    assert_same(results[1], results[0])
