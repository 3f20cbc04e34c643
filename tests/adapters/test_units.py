"""Standard deviations in units of the base model: the same noise beside every base, kept with the adapter."""

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model

from bayeslora import BayesianLoraConfig, from_lora, kl_divergence, random_factors, sampling
from bayeslora.adapters.units import layer_units
from conftest import TARGETS, config_for, distance, logits_of, perturb, seeded, tiny_llama

RELATIVE = {"std_units": "base", "prior_std": [2.0, 0.05], "inducing_std": None, "posterior_std": 1.0}
OF_THE_UPDATE = 0.05 * (1 + 2.0**2) ** 0.5
"""rms of a drawn update beside that of the base weight, where B has mean 0: noise of B times size and noise of A."""


def adapted(scale: float = 1.0, width: int = 32, **options):
    base = tiny_llama(hidden_size=width)
    with torch.no_grad():
        for name, weight in base.named_parameters():
            weight.mul_(scale if "_proj" in name else 1.0)
    with seeded(1):
        return get_peft_model(base, config_for(**{**RELATIVE, **options})).eval()


def layer_of(model):
    return model.base_model.model.model.layers[0].self_attn.q_proj


def updates(model, draws: int = 64):
    """Updates of one layer by draws, beside the root mean square of its base weight."""
    layer = layer_of(model)
    with sampling(model, draws, seed=0), torch.no_grad():
        product = layer.lora_B["default"].weight @ layer.lora_A["default"].weight
    return layer.scaling["default"] * product / layer.get_base_layer().weight.square().mean().sqrt()


@pytest.mark.parametrize("other", [{"scale": 3.0}, {"lora_alpha": 64}], ids=["base", "alpha"])
def test_two_bases_that_are_equal_up_to_scale_have_the_same_noise(other):
    torch.testing.assert_close(updates(adapted(**other)), updates(adapted()))
    assert (updates(adapted(**other, std_units="weight")) - updates(adapted(std_units="weight"))).abs().max() > 0.05


@pytest.mark.parametrize(
    "other", [{}, {"width": 96}, {"r": 2}, {"r": 16}], ids=["as it is", "width", "lower", "higher"]
)
def test_the_noise_is_what_the_numbers_say_for_every_width_and_rank(other):
    assert updates(adapted(**other)).square().mean().sqrt().item() == pytest.approx(OF_THE_UPDATE, rel=0.1)


def test_the_divergence_of_a_start_at_the_prior_is_zero():
    assert kl_divergence(adapted()).total.item() == pytest.approx(0.0, abs=1e-4)


def test_the_units_are_kept_with_the_adapter(tmp_path):
    model = perturb(adapted())
    model.save_pretrained(tmp_path)
    for options in ({}, {"low_cpu_mem_usage": True}):
        loaded = PeftModel.from_pretrained(tiny_llama(), tmp_path, **options).eval()
        with sampling(loaded, seed=2), sampling(model, seed=2):
            assert distance(logits_of(loaded), logits_of(model)) == 0


def test_units_are_not_trained():
    model = adapted().train()
    assert not any(name.endswith("unit") for name, _ in model.named_parameters())
    assert sum(name.endswith("unit") for name, _ in model.named_buffers()) == len(random_factors(model))


def test_an_adapter_that_is_trained_gives_its_own_units(tmp_path):
    lora = perturb(
        get_peft_model(tiny_llama(), LoraConfig(r=4, target_modules=TARGETS["llama"], task_type="CAUSAL_LM"))
    )
    lora.eval().save_pretrained(tmp_path)
    model = from_lora(tiny_llama(), tmp_path, **RELATIVE).eval()
    assert torch.equal(logits_of(model), logits_of(lora))
    assert layer_of(model).lora_A["default"].unit.item() == pytest.approx(layer_units(layer_of(lora), "default")["A"])


def test_relative_noise_is_for_a_mean_function():
    with pytest.raises(ValueError, match="std_units='base' is for mean='lora'"):
        BayesianLoraConfig(mean="inducing", std_units="base")


def test_nothing_is_in_proportion_to_zero():
    with pytest.raises(ValueError, match="not zero"):
        adapted(scale=0.0)
