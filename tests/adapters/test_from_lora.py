"""A trained LoRA adapter becomes a posterior whose mean is that adapter."""

import logging

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model

from bayeslora import BayesianLoraConfig, from_lora, random_factors, sampling
from bayeslora.adapters.starts import check_start, open_adapter
from bayeslora.runs.loading import merge_adapters
from conftest import TARGETS, bayesian, distance, logits_of, perturb, seeded, tiny_llama, tiny_llama_classifier


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


def saved_lora(base, folder, **options):
    with seeded(2):
        model = get_peft_model(base, LoraConfig(r=4, target_modules=["q_proj", "v_proj"], **options))
    perturb(model).eval().save_pretrained(folder)
    return model


def tied_llama():
    return tiny_llama(tie_word_embeddings=True)


@pytest.mark.parametrize("saved", [["embed_tokens"], ["lm_head"], ["embed_tokens", "lm_head"]])
def test_tied_modules_that_are_saved_whole(saved, tmp_path):
    lora = saved_lora(tied_llama(), tmp_path / "lora", modules_to_save=saved, ensure_weight_tying=True)
    model = from_lora(tied_llama(), tmp_path / "lora").eval()
    assert distance(logits_of(model), logits_of(lora)) == 0
    model.save_pretrained(tmp_path / "posterior")
    loaded = PeftModel.from_pretrained(tied_llama(), tmp_path / "posterior").eval()
    with sampling(model, 2, seed=1), sampling(loaded, 2, seed=1):
        assert distance(logits_of(model), logits_of(loaded)) == 0


def test_tied_adapters_are_refused():
    config = BayesianLoraConfig(r=4, target_modules=["q_proj", "lm_head"], ensure_weight_tying=True)
    with pytest.raises(ValueError, match="tied adapters would share one draw"):
        get_peft_model(tied_llama(), config)


def test_an_adapter_of_the_bare_backbone_fits_the_whole_model_and_the_other_way_round(tmp_path, caplog):
    lora = saved_lora(tiny_llama().model, tmp_path / "backbone")
    with caplog.at_level(logging.WARNING, "bayeslora"):
        model = from_lora(tiny_llama(), tmp_path / "backbone").eval()
    assert "differ by 'model.' alone" in caplog.text

    def hidden(backbone):
        return backbone(input_ids=torch.tensor([[5, 6, 7]])).last_hidden_state

    assert distance(hidden(model.base_model.model.model), hidden(lora)) == 0
    whole = saved_lora(tiny_llama(), tmp_path / "whole")
    backbone = from_lora(tiny_llama().model, tmp_path / "whole").eval()
    assert distance(hidden(backbone), hidden(whole.base_model.model.model)) == 0


def test_an_adapter_for_another_task_says_how_to_take_it(tmp_path):
    saved_lora(tiny_llama(), tmp_path, task_type="CAUSAL_LM")
    with pytest.raises(ValueError, match=r"task_type='SEQ_CLS'"):
        from_lora(tiny_llama_classifier(), tmp_path)
    model = from_lora(tiny_llama_classifier(), tmp_path, task_type="SEQ_CLS")
    assert model.base_model.model.score.modules_to_save["default"].weight.requires_grad


# --- how an adapter began -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("start", ["pissa", "pissa_niter_4", "olora"])
def test_an_adapter_that_changed_its_base_is_no_mean(start, tmp_path):
    saved_lora(tiny_llama(), tmp_path, init_lora_weights=start)
    with pytest.raises(ValueError, match=f"init_lora_weights='{start}', which changes the base"):
        from_lora(tiny_llama(), tmp_path)


def test_a_random_start_is_refused_wherever_it_would_be_drawn_anew(tmp_path):
    lora = saved_lora(tiny_llama(), tmp_path, init_lora_weights="pissa_niter_0")
    with seeded(99):
        assert distance(logits_of(PeftModel.from_pretrained(tiny_llama(), tmp_path).eval()), logits_of(lora)) > 1e-3
    for load in (open_adapter, lambda base, folder: merge_adapters(base, [folder])):
        with pytest.raises(ValueError, match=r"random decomposition .* which PEFT draws anew at each load"):
            load(tiny_llama(), tmp_path)
    with pytest.raises(ValueError, match="draws anew at each load"):
        BayesianLoraConfig(init_lora_weights="pissa_niter_4")


def test_a_start_that_a_load_repeats_is_taken(tmp_path):
    lora = saved_lora(tiny_llama(), tmp_path, init_lora_weights="pissa")
    with seeded(99):
        assert distance(logits_of(open_adapter(tiny_llama(), tmp_path).eval()), logits_of(lora)) < 1e-5


@pytest.mark.parametrize("start", ["pissa_niter_16", "lora_ga", "corda"])
def test_starts_that_a_load_does_not_repeat(start):
    with pytest.raises(ValueError, match=f"init_lora_weights='{start}' takes a .* base model"):
        check_start(LoraConfig(init_lora_weights=start))


@pytest.mark.parametrize("start", [True, False, "gaussian", "eva", "olora", "pissa", "orthogonal", "mica"])
def test_other_starts(start):
    check_start(LoraConfig(init_lora_weights=start))
