"""ScalaBL: Gaussian scales between the LoRA factors."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from test_trainer import step_logs, trainer_for
from torch.distributions import Normal
from torch.distributions import kl_divergence as reference_kl

from bayeslora import from_lora, kl_divergence, random_factors, sampling
from bayeslora.methods.scalabl import ScalaBL, ScalaBLConfig, ScaledRowsWeights, orthogonal_rows
from conftest import TARGETS, distance, logits_of, perturb, seeded, tiny_llama
from helpers import generator, noise_of, normal

ROWS, COLUMNS = 3, 7


def adapted(**options: Any) -> PeftModel:
    config = ScalaBLConfig(r=4, lora_alpha=8, target_modules=TARGETS["llama"], **options)
    with seeded(100):
        return get_peft_model(tiny_llama(vocab_size=320), config)


def parameters(seed: int = 0, stack: tuple[int, ...] = (2,)) -> dict[str, torch.Tensor]:
    source = generator(seed)
    return {
        "mean": normal(source, *stack, ROWS, COLUMNS),
        "s_loc": normal(source, *stack, ROWS, 1),
        "s_log_std": 0.5 * normal(source, *stack, ROWS, 1) - 1,
    }


# --- the family ------------------------------------------------------------------------------------------------------


def test_draws_scale_the_rows() -> None:
    family, values = ScaledRowsWeights(ROWS, COLUMNS), parameters(stack=())
    noise = normal(generator(1), 5, ROWS, 1)
    found = family.sample_weight(values, noise_of(noise))
    for draw, number in zip(found, noise, strict=True):
        scales = values["s_loc"] + values["s_log_std"].exp() * number
        torch.testing.assert_close(draw, torch.diag(scales.squeeze(1)) @ values["mean"])
    torch.testing.assert_close(family.mean_weight(values), torch.diag(values["s_loc"].squeeze(1)) @ values["mean"])


def test_kl_is_from_posterior_to_prior() -> None:
    family, values = ScaledRowsWeights(ROWS, COLUMNS, prior_std=0.7), parameters()
    q, p = Normal(values["s_loc"], values["s_log_std"].exp()), Normal(0.0, 0.7)
    found = family.kl(values, None)
    torch.testing.assert_close(found.total, reference_kl(q, p).sum((-2, -1)))
    assert distance(found.total, reference_kl(Normal(torch.zeros_like(q.loc), 0.7), q).sum((-2, -1))) > 1
    assert (found.total > 0).all()
    at_prior = {**values, "s_loc": 0 * values["s_loc"], "s_log_std": 0 * values["s_loc"] + torch.tensor(0.7).log()}
    assert family.kl(at_prior, None).total.abs().max() < 1e-7


def test_the_start_is_the_given_matrix() -> None:
    weight = normal(generator(2), ROWS, COLUMNS).float()
    weight[1] = 0
    family = ScaledRowsWeights(ROWS, COLUMNS, std=0.3)
    start = family.initial(weight)
    torch.testing.assert_close(family.mean_weight(start), weight)
    torch.testing.assert_close(start["mean"].norm(dim=1), torch.tensor([1.0, 0.0, 1.0]))
    torch.testing.assert_close(start["s_log_std"].exp(), torch.full((ROWS, 1), 0.3))


# --- the adapter -----------------------------------------------------------------------------------------------------


def test_a_fresh_frame_is_orthonormal_with_the_singular_values_of_the_random_factor() -> None:
    with seeded(100):
        plain = get_peft_model(tiny_llama(vocab_size=320), LoraConfig(r=4, target_modules=TARGETS["llama"]))
    originals = [module["default"].weight for name, module in plain.named_modules() if name.endswith("lora_A")]
    factors = random_factors(adapted())
    assert len(factors) == len(originals) == 12
    for factor, original in zip(factors, originals, strict=True):
        torch.testing.assert_close(factor.mean @ factor.mean.T, torch.eye(4), atol=1e-5, rtol=0)
        torch.testing.assert_close(factor.s_loc.squeeze(1), torch.linalg.svdvals(original), atol=1e-5, rtol=0)


def test_a_rank_above_the_width_keeps_its_matrix() -> None:
    weight = normal(generator(3), 5, 2)
    assert torch.equal(orthogonal_rows(weight), weight)


def test_a_start_other_than_zero_keeps_its_matrix() -> None:
    """PiSSA takes B A out of the base weights: only its own A puts it back."""
    model = adapted(init_lora_weights="pissa").eval()
    assert distance(logits_of(model), logits_of(tiny_llama(vocab_size=320))) < 1e-3


def test_it_adds_two_numbers_per_rank() -> None:
    added = sum(p.numel() for factor in random_factors(adapted()) for name, p in factor.named_parameters())
    plain = sum(factor.out_features * factor.in_features for factor in random_factors(adapted()))
    assert added - plain == 2 * 4 * len(random_factors(adapted()))


def test_draws_in_one_forward_are_single_draws_with_weights() -> None:
    model = perturb(adapted()).eval()
    with sampling(model, 3, seed=7):
        together = logits_of(model)
    apart = []
    for number in range(3):
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


def test_a_trained_adapter_becomes_the_mean(tmp_path: Path) -> None:
    plain = get_peft_model(tiny_llama(), LoraConfig(r=4, target_modules=TARGETS["llama"], task_type="CAUSAL_LM"))
    perturb(plain).eval().save_pretrained(tmp_path)
    model = from_lora(tiny_llama(), tmp_path, config_class=ScalaBLConfig, std=0.1).eval()
    assert distance(logits_of(model), logits_of(plain)) < 1e-5
    assert random_factors(model)[0].s_log_std.exp().mean().item() == pytest.approx(0.1)


def test_training_lowers_the_loss_and_repeats(tmp_path: Path) -> None:
    ends = []
    for number in range(2):
        model = adapted(task_type="CAUSAL_LM", layers_to_transform=[2, 3])
        method = ScalaBL()
        rates = method.trainer_options(0.01, 30, 24)["posterior_learning_rate"]
        trainer = trainer_for(
            "cloze",
            tmp_path / str(number),
            model=model,
            optim="adamw_torch",
            learning_rate=0.01,
            max_steps=30,
            posterior_learning_rate=rates,
        )
        assert rates == pytest.approx(0.05)
        trainer.train()
        losses = [entry["nll"] for entry in step_logs(trainer)]
        assert sum(losses[-5:]) < sum(losses[:5]) - 0.5
        ends.append({name: p.detach() for name, p in model.named_parameters() if p.requires_grad})
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])


def test_the_kl_reaches_the_scales_and_not_the_frame() -> None:
    model = perturb(adapted())
    kl_divergence(model).total.backward()
    for factor in random_factors(model):
        assert factor.mean.grad is None or not factor.mean.grad.any()
        assert factor.s_loc.grad.abs().max() > 0 and factor.s_log_std.grad.abs().max() > 0


@pytest.mark.parametrize("options", [{"std": 0.0}, {"prior_std": -1.0}])
def test_values_out_of_range(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="std must be above 0"):
        ScalaBLConfig(**options)
