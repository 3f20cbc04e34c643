"""Default targets: PEFT's own where it has some, else query and value by the names that the model has for them."""

from typing import Any

import pytest
import torch
from peft import get_peft_model
from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as PEFT_TARGETS
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    Mistral3ForConditionalGeneration,
    PreTrainedModel,
)

from bayeslora import BayesianLoraConfig
from bayeslora.adapters import default_targets
from bayeslora.methods import BayesianLora, Lora
from conftest import tiny_llama

EXPECTED = {
    "albert": ["query", "value"],
    "distilbert": ["q_lin", "v_lin"],
    "gemma3": ["q_proj", "v_proj"],
    "glm4": ["q_proj", "v_proj"],
    "gpt_oss": ["q_proj", "v_proj"],
    "granite": ["q_proj", "v_proj"],
    "granitemoe": ["q_proj", "v_proj"],
    "mistral3": ["q_proj", "v_proj"],
    "modernbert": ["Wqkv"],
    "mpnet": ["q", "v"],
    "olmo2": ["q_proj", "v_proj"],
    "phi3": ["qkv_proj"],
    "qwen3_moe": ["q_proj", "v_proj"],
    "smollm3": ["q_proj", "v_proj"],
}
ENCODERS = ("albert", "distilbert", "modernbert", "mpnet")


def on_meta(kind: str) -> PreTrainedModel:
    """A model of two layers, without weights."""
    config = AutoConfig.for_model(kind)
    text = config.get_text_config()
    text.num_hidden_layers = 2
    if getattr(text, "layer_types", None):
        text.layer_types = text.layer_types[:2]
    auto: Any = AutoModelForSequenceClassification if kind in ENCODERS else AutoModelForCausalLM
    with torch.device("meta"):
        if kind == "mistral3":
            return Mistral3ForConditionalGeneration(config)
        model: PreTrainedModel = auto.from_config(config)
        return model


@pytest.mark.parametrize("kind", EXPECTED)
def test_query_and_value_are_found(kind: str) -> None:
    model = on_meta(kind)
    assert default_targets(model) == EXPECTED[kind]
    layers = 1 if kind == "albert" else 2  # ALBERT repeats its one layer.
    for method in (Lora(r=2), BayesianLora(r=2)):
        adapted = method.adapt(on_meta(kind), "sequence_classification" if kind in ENCODERS else "causal_lm")
        assert len([name for name, _ in adapted.named_modules() if name.endswith("lora_A.default")]) == layers * len(
            EXPECTED[kind]
        )


def test_a_config_of_the_users_own_has_them_too() -> None:
    model = get_peft_model(on_meta("smollm3"), BayesianLoraConfig(r=2))
    assert set(model.peft_config["default"].target_modules) == {"q_proj", "v_proj"}


def test_the_choice_of_peft_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    assert default_targets(tiny_llama()) is None
    monkeypatch.setitem(PEFT_TARGETS, "llama", ["k_proj"])
    for adapted in (BayesianLora(r=2).adapt(tiny_llama(), "causal_lm"), Lora(r=2).adapt(tiny_llama(), "causal_lm")):
        assert set(adapted.peft_config["default"].target_modules) == {"k_proj"}


def test_without_such_names_peft_asks_for_targets() -> None:
    model = nn.Sequential(nn.Linear(4, 4))
    assert default_targets(model) is None
    with pytest.raises(ValueError, match="target_modules"):
        get_peft_model(model, BayesianLoraConfig(r=2))  # type: ignore[arg-type]
