"""DALorRA: Bernoulli masks on the ranks."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model
from test_trainer import step_logs, trainer_for
from torch import Tensor
from torch.distributions import Bernoulli
from torch.distributions import kl_divergence as reference_kl

from bayeslora import random_factors, sampling
from bayeslora.adapters.draws import hold_draw
from bayeslora.methods.dalorra import Dalorra, DalorraConfig, MaskedRowsWeights
from bayeslora.posteriors.weights.base import Noise
from conftest import TARGETS, distance, logits_of, perturb, seeded, tiny_llama, tokens
from helpers import generator, noise_of, normal

ROWS, COLUMNS = 4, 5
DRAWS = 40_000


def adapted(**options: Any) -> PeftModel:
    config = DalorraConfig(r=4, lora_alpha=8, target_modules=TARGETS["llama"], **options)
    with seeded(100):
        return get_peft_model(tiny_llama(vocab_size=320), config)


def parameters() -> dict[str, Tensor]:
    mean = normal(generator(0), ROWS, COLUMNS)
    return {"mean": mean, "mask_logit": torch.tensor([[-2.0], [0.0], [1.0], [4.0]], dtype=torch.float64)}


def noise(draws: int = DRAWS) -> Noise:
    return noise_of(normal(generator(1), draws, ROWS, 1))


def masks(weights: Tensor, values: dict[str, Tensor]) -> Tensor:
    """z of draws W = diag(z) A `[samples, rows]`; each row of W must be a multiple of the row of A."""
    found = weights / values["mean"]
    torch.testing.assert_close(found, found[..., :1].expand_as(found))
    return found[..., 0]


# --- the family ------------------------------------------------------------------------------------------------------


def test_draws_are_bernoulli() -> None:
    values = parameters()
    found = masks(MaskedRowsWeights(ROWS, COLUMNS).sample_weight(values, noise()), values)
    assert set(found.unique().tolist()) == {0.0, 1.0}
    probability = values["mask_logit"].sigmoid().squeeze(1)
    error = (probability * (1 - probability) / DRAWS).sqrt()
    assert ((found.mean(0) - probability).abs() < 4 * error).all()
    assert torch.corrcoef(found.T).fill_diagonal_(0).abs().max() < 0.03, "rows must have masks of their own"
    mean = MaskedRowsWeights(ROWS, COLUMNS).mean_weight(values)
    torch.testing.assert_close(mean, probability.unsqueeze(1) * values["mean"])


@pytest.mark.parametrize("temperature", [0.1, 2 / 3, 2.0])
def test_relaxed_masks_follow_the_concrete_distribution(temperature: float) -> None:
    """P(z < x) = sigmoid(temperature logit(x) - phi), equation 17 of arXiv 1611.00712 integrated."""
    values, family = parameters(), MaskedRowsWeights(ROWS, COLUMNS, temperature=temperature)
    relaxed = masks(family.training_weight(values, noise()), values)
    assert ((relaxed >= 0) & (relaxed <= 1)).all()
    for at in (0.05, 0.3, 0.5, 0.8, 0.99):
        expected = torch.sigmoid(temperature * torch.logit(torch.tensor(at)) - values["mask_logit"].squeeze(1))
        assert distance((relaxed < at).double().mean(0), expected) < 4 * 0.5 / DRAWS**0.5


def test_drawn_masks_are_the_rounded_relaxed_ones() -> None:
    values, family = parameters(), MaskedRowsWeights(ROWS, COLUMNS)
    relaxed, drawn = (
        masks(draw(values, noise(200)), values) for draw in (family.training_weight, family.sample_weight)
    )
    assert torch.equal(drawn, relaxed.round())


def test_extreme_noise_stays_finite() -> None:
    values = {name: value.float().requires_grad_() for name, value in parameters().items()}
    extreme = noise_of(torch.tensor([-12.0, 12.0]).reshape(2, 1, 1).expand(2, ROWS, 1))
    family = MaskedRowsWeights(ROWS, COLUMNS)
    family.training_weight(values, extreme).sum().backward()
    assert all(value.grad is not None and value.grad.isfinite().all() for value in values.values())


def test_kl_is_that_of_bernoulli_distributions() -> None:
    values, family = parameters(), MaskedRowsWeights(ROWS, COLUMNS, prior_probability=0.3)
    expected = reference_kl(Bernoulli(logits=values["mask_logit"]), Bernoulli(torch.tensor(0.3).double())).sum()
    torch.testing.assert_close(family.kl(values, None).total, expected)
    assert expected > 0
    start = MaskedRowsWeights(ROWS, COLUMNS, probability=0.3, prior_probability=0.3).initial(values["mean"])
    assert family.kl(start, None).total.abs() < 1e-6
    far = {**values, "mask_logit": torch.tensor([[-200.0], [200.0], [0.0], [0.0]])}
    bound = torch.tensor([0.7, 0.3]).log().sum().neg()
    assert family.kl(far, None).total.item() == pytest.approx(
        (bound + 2 * reference_kl(Bernoulli(torch.tensor(0.5)), Bernoulli(torch.tensor(0.3)))).item(), rel=1e-5
    )


def test_the_mean_starts_at_the_given_matrix() -> None:
    weight = normal(generator(2), ROWS, COLUMNS).float()
    family = MaskedRowsWeights(ROWS, COLUMNS, probability=0.7)
    torch.testing.assert_close(family.mean_weight(family.initial(weight)), weight)


# --- the adapter -----------------------------------------------------------------------------------------------------


def drawn_masks(model: PeftModel) -> Tensor:
    return torch.stack([(factor.weight / factor.mean)[:, 0] for factor in random_factors(model)])


def test_training_relaxes_and_prediction_draws() -> None:
    model = perturb(adapted()).train()
    hold_draw(model, seed=0, step=0)
    relaxed = drawn_masks(model)
    assert ((relaxed > 0) & (relaxed < 1)).all()
    with sampling(model, 1, seed=0):
        drawn = drawn_masks(model)
        assert distance(drawn, drawn.round()) < 1e-6, "a draw asked for in train mode is one of prediction"
    assert distance(drawn_masks(model), relaxed) < 1e-6
    model.eval()
    with sampling(model, 1, seed=0):
        assert distance(drawn_masks(model), drawn) < 1e-6
    assert (
        distance(drawn_masks(model), torch.stack([f.mask_logit.sigmoid()[:, 0] for f in random_factors(model)])) < 1e-6
    )


def test_the_masks_get_a_gradient_from_the_data() -> None:
    model = perturb(adapted()).train()
    hold_draw(model, seed=0, step=0)
    model(input_ids=tokens(), labels=tokens()).loss.backward()
    assert all(factor.mask_logit.grad.abs().max() > 0 for factor in random_factors(model))


def test_it_adds_one_number_per_rank() -> None:
    factors = random_factors(adapted())
    assert all({name: p.shape for name, p in f.named_parameters()}["mask_logit"] == (4, 1) for f in factors)
    assert all(len(list(f.parameters())) == 2 for f in factors)


def test_draws_in_one_forward_are_single_draws_with_weights() -> None:
    model = perturb(adapted(probability=0.5)).eval()
    with sampling(model, 4, seed=7):
        together = logits_of(model)
    apart = []
    for number in range(4):
        with sampling(model, 1, seed=7, first=number):
            apart.append(logits_of(model))
    assert distance(together, torch.cat(apart)) < 2e-5
    assert distance(apart[0], apart[1]) > 1e-2
    with sampling(model, 1, seed=7):
        merged = model.merge_and_unload()
    assert distance(logits_of(merged), apart[0]) < 1e-4


def test_save_and_load(tmp_path: Path) -> None:
    model = perturb(adapted()).eval()
    model.save_pretrained(tmp_path)
    for options in ({}, {"low_cpu_mem_usage": True}):
        loaded = PeftModel.from_pretrained(tiny_llama(vocab_size=320), tmp_path, **options)
        assert torch.equal(logits_of(loaded), logits_of(model))
        with sampling(model, 2, seed=3), sampling(loaded, 2, seed=3):
            assert torch.equal(logits_of(loaded), logits_of(model))


def test_training_lowers_the_loss_and_repeats(tmp_path: Path) -> None:
    ends = []
    for number in range(2):
        model = adapted(task_type="CAUSAL_LM", layers_to_transform=[2, 3])
        rate = Dalorra().trainer_options(1e-3, 30, 24)["posterior_learning_rate"]
        assert rate == pytest.approx(1e-2), "the paper's rate at the package's default"
        trainer = trainer_for(
            "cloze",
            tmp_path / str(number),
            model=model,
            optim="adamw_torch",
            learning_rate=0.01,
            max_steps=30,
            posterior_learning_rate=0.1,
        )
        trainer.train()
        losses = [entry["nll"] for entry in step_logs(trainer)]
        assert sum(losses[-5:]) < sum(losses[:5]) - 0.5
        ends.append({name: p.detach() for name, p in model.named_parameters() if p.requires_grad})
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"probability": 1.0}, "probability must be above 0 and below 1"),
        ({"prior_probability": 0.0}, "prior_probability must be above 0 and below 1"),
        ({"temperature": 0.0}, "temperature must be above 0"),
    ],
)
def test_values_out_of_range(options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DalorraConfig(**options)
