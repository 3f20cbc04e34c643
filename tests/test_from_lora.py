"""A trained LoRA adapter becomes a posterior whose mean is that adapter."""

import pytest
import torch
from peft import LoraConfig, get_peft_model

from bayeslora import from_lora, random_factors, sampling
from conftest import TARGETS, bayesian, distance, logits_of, perturb, tiny_llama


@pytest.fixture
def lora(tmp_path):
    options = {"r": 4, "lora_alpha": 8, "target_modules": TARGETS["llama"], "task_type": "CAUSAL_LM"}
    model = get_peft_model(tiny_llama(), LoraConfig(**options, rank_pattern={"q_proj": 2}, modules_to_save=["lm_head"]))
    perturb(model).eval().save_pretrained(tmp_path / "lora")
    return model, tmp_path / "lora"


def test_the_mean_is_the_adapter_bit_for_bit(lora):
    plain, folder = lora
    model = from_lora(tiny_llama(), folder, prior_std=0.2)
    assert torch.equal(logits_of(model.eval()), logits_of(plain))
    with sampling(model, seed=1):
        assert distance(logits_of(model), logits_of(plain)) > 1e-3
    assert all(parameter.requires_grad for factor in random_factors(model) for parameter in factor.parameters())


def test_the_papers_parameterisation_embeds_it_too(lora):
    plain, folder = lora
    model = from_lora(tiny_llama(), folder, mean="inducing", posterior="full")
    assert distance(logits_of(model.eval()), logits_of(plain)) < 1e-4


def test_what_is_no_lora_adapter_is_refused(lora, tmp_path):
    bayesian("llama").save_pretrained(tmp_path / "bayesian")
    with pytest.raises(ValueError, match="expects a LoRA adapter"):
        from_lora(tiny_llama(), tmp_path / "bayesian")
    with pytest.raises(ValueError, match="does not fit this model"):
        from_lora(tiny_llama(num_hidden_layers=3), lora[1])
