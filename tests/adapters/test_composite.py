"""Models of several parts: text adapts and counts the language model alone."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import (
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Gemma3ForSequenceClassification,
    Gemma3TextConfig,
    Mistral3Config,
    Mistral3ForConditionalGeneration,
    PerceiverConfig,
    PerceiverForSequenceClassification,
    PreTrainedModel,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
)

import bayeslora
from bayeslora import BayesianLoraConfig
from bayeslora.adapters.from_lora import from_lora
from bayeslora.methods import BayesianLora, Lora
from bayeslora.methods.full_fine_tuning import FullFineTuning
from bayeslora.models.layers import layers_from_first, outermost_layers
from bayeslora.models.modalities import beside_text
from bayeslora.planning import base_on_meta
from bayeslora.scoring.trunk_cache import TrunkCache
from conftest import config_for, distance, logits_of, perturb, seeded, tiny_bert, tiny_gpt2, tiny_llama

TEXT: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "initializer_range": 0.2,
    "pad_token_id": 0,
}
VISION: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}


def gemma3_config() -> Gemma3Config:
    text = Gemma3TextConfig(**TEXT, query_pre_attn_scalar=8, sliding_window=8)
    return Gemma3Config(text_config=text.to_dict(), vision_config=VISION, image_token_index=95)


def tiny_gemma3(kind: type[PreTrainedModel] = Gemma3ForConditionalGeneration) -> PreTrainedModel:
    with seeded(0):
        return kind(gemma3_config()).eval()


def tiny_mistral3() -> PreTrainedModel:
    text, vision = {"model_type": "mistral", **TEXT}, {"model_type": "pixtral", **VISION}
    with seeded(0):
        return Mistral3ForConditionalGeneration(Mistral3Config(text_config=text, vision_config=vision)).eval()


def tiny_qwen_vl() -> PreTrainedModel:
    vision = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 32}
    text = {**TEXT, "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}}
    with seeded(0):
        return Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(text_config=text, vision_config=vision)).eval()


COMPOSITES: dict[str, tuple[Callable[[], PreTrainedModel], list[str]]] = {
    "gemma3": (tiny_gemma3, ["model.vision_tower", "model.multi_modal_projector"]),
    "gemma3 classifier": (
        lambda: tiny_gemma3(Gemma3ForSequenceClassification),
        ["model.vision_tower", "model.multi_modal_projector"],
    ),
    "mistral3": (tiny_mistral3, ["model.vision_tower", "model.multi_modal_projector"]),
    "qwen2.5-vl": (tiny_qwen_vl, ["model.visual"]),
}


def adapted_names(model: nn.Module) -> list[str]:
    return [
        name.removesuffix(".lora_A.default") for name, _ in model.named_modules() if name.endswith("lora_A.default")
    ]


@pytest.mark.parametrize("name", COMPOSITES)
def test_what_text_does_not_reach(name: str) -> None:
    build, expected = COMPOSITES[name]
    model = build()
    assert beside_text(model) == expected
    assert len(outermost_layers(model)) == 3
    before = {key: parameter.clone() for key, parameter in model.named_parameters()}
    perturbed = [parameter for key, parameter in model.named_parameters() if key.startswith(tuple(expected))]
    logits = logits_of(model)
    for parameter in perturbed:
        parameter.data.normal_()
    assert perturbed and distance(logits_of(model), logits) == 0
    assert len(perturbed) < len(before)


@pytest.mark.parametrize("build", [tiny_llama, tiny_gpt2, tiny_bert])
def test_text_reaches_all_of_a_language_model(build: Callable[[], PreTrainedModel]) -> None:
    assert beside_text(build()) == []


def test_what_a_head_reads_is_no_tower() -> None:
    """Perceiver says that it reads images."""
    sizes = {"num_latents": 4, "d_latents": 16, "d_model": 16, "num_self_attends_per_block": 1, "vocab_size": 96}
    sizes |= {"num_self_attention_heads": 2, "num_cross_attention_heads": 2, "max_position_embeddings": 16}
    assert beside_text(PerceiverForSequenceClassification(PerceiverConfig(**sizes))) == []


@pytest.mark.parametrize("targets", [["q_proj", "v_proj"], ["gate_proj", "down_proj"], "all-linear", None])
@pytest.mark.parametrize("kind", [LoraConfig, BayesianLoraConfig])
def test_a_method_adapts_the_language_model_alone(kind: type[LoraConfig], targets: Any) -> None:
    method = (BayesianLora if kind is BayesianLoraConfig else Lora)(r=2, target_modules=targets)
    names = adapted_names(method.adapt(tiny_gemma3(), "causal_lm"))
    assert names and all(".language_model.layers." in name for name in names)


@pytest.mark.parametrize("name", COMPOSITES)
@pytest.mark.parametrize("targets", [["q_proj", "v_proj"], "all-linear"])
def test_a_posterior_of_the_users_own_says_what_it_leaves_out(
    name: str, targets: Any, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    build, unread = COMPOSITES[name]
    if name == "qwen2.5-vl" and targets != "all-linear":
        targets = ["q_proj", "v_proj", "qkv"]
    with caplog.at_level(logging.WARNING, "bayeslora"):
        model = get_peft_model(build(), BayesianLoraConfig(r=2, target_modules=targets))
    assert f"no adapters in {unread[0]}" in caplog.text
    names = adapted_names(model)
    assert names and not [one for one in names if one.startswith(tuple(f"base_model.model.{part}" for part in unread))]
    perturb(model).eval()
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(build(), tmp_path).eval()
    assert adapted_names(loaded) == names and distance(logits_of(loaded), logits_of(model)) == 0


@pytest.mark.parametrize(
    "targets",
    [
        r".*\.(vision_tower|language_model)\..*\.q_proj",
        ["q_proj", "vision_tower.encoder.layers.0.self_attn.k_proj"],
    ],
)
def test_a_tower_that_is_named_is_adapted(targets: Any) -> None:
    model = get_peft_model(tiny_gemma3(), BayesianLoraConfig(r=2, target_modules=targets)).eval()
    assert any("vision_tower" in name for name in adapted_names(model))
    # Its draws come before the layers that text passes, so these cannot begin to have several rows for an item.
    assert layers_from_first(model, bayeslora.random_factors(model)) == []


def test_the_users_own_exclusions_stay() -> None:
    for excluded in (["v_proj"], r".*v_proj"):
        config = BayesianLoraConfig(r=2, target_modules=["q_proj", "v_proj"], exclude_modules=excluded)
        names = adapted_names(get_peft_model(tiny_gemma3(), config))
        layers = [f"base_model.model.model.language_model.layers.{number}.self_attn.q_proj" for number in range(3)]
        assert names == layers


def test_the_kl_and_the_upper_layers_are_those_of_the_language_model() -> None:
    def kl(base: PreTrainedModel) -> float:
        with seeded(1):
            model = get_peft_model(base, config_for(target_modules=["q_proj"]))
        return bayeslora.kl_divergence(model, 100).total.item()

    text: Any = tiny_gemma3().get_submodule("model.language_model")
    assert kl(tiny_gemma3()) == pytest.approx(kl(text)) and kl(tiny_gemma3()) > 0
    upper = adapted_names(
        BayesianLora(r=2, last_layers=1, target_modules="all-linear").adapt(tiny_gemma3(), "causal_lm")
    )
    assert len(upper) == 7 and all("language_model.layers.2." in name for name in upper)


def test_the_layers_below_the_adapters_are_cached_as_in_a_language_model() -> None:
    model = BayesianLora(r=2, last_layers=1).adapt(tiny_gemma3(), "causal_lm")
    assert TrunkCache(model).skipped == 2


def test_full_fine_tuning_leaves_the_tower() -> None:
    model = FullFineTuning().adapt(tiny_gemma3(), "causal_lm")
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert trained and not [name for name in trained if "vision" in name or "multi_modal" in name]


def test_from_lora_drops_a_tower_that_other_tools_have_adapted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    lora = perturb(get_peft_model(tiny_gemma3(), LoraConfig(r=2, target_modules=["q_proj"]))).eval()
    assert any("vision_tower" in name for name in adapted_names(lora))
    lora.save_pretrained(tmp_path)  # type: ignore[operator]
    with caplog.at_level(logging.WARNING, "bayeslora"):
        model = from_lora(tiny_gemma3(), tmp_path).eval()
    assert "2 factors of parts that text does not reach" in caplog.text
    assert distance(logits_of(model), logits_of(lora)) == 0


def test_an_old_adapter_with_a_tower_is_loaded_as_it_is(tmp_path: Path) -> None:
    pattern = r".*\.(q_proj)"
    model = perturb(get_peft_model(tiny_gemma3(), BayesianLoraConfig(r=2, target_modules=pattern))).eval()
    model.peft_config["default"].target_modules = {"q_proj"}  # type: ignore[index, union-attr]
    model.save_pretrained(tmp_path)  # type: ignore[operator]
    loaded = PeftModel.from_pretrained(tiny_gemma3(), tmp_path)
    assert adapted_names(loaded) == adapted_names(model) and "vision_tower" in str(adapted_names(loaded))


def test_a_plan_traces_few_layers_of_the_language_model() -> None:
    assert len(outermost_layers(base_on_meta(gemma3_config()))) == 3
    assert len(outermost_layers(base_on_meta(gemma3_config(), layers=2))) == 2
    assert base_on_meta(gemma3_config(), "sequence_classification", num_labels=4).config.num_labels == 4
