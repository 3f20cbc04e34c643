"""Mixtures of experts: draws in the attention, and targets among the experts."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    MixtralConfig,
    MixtralForCausalLM,
    PreTrainedModel,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
    SiglipVisionConfig,
    SiglipVisionModel,
    XLNetConfig,
    XLNetLMHeadModel,
)

from bayeslora import BayesianLoraConfig, sampling
from bayeslora.adapters.from_lora import from_lora
from conftest import distance, logits_of, perturb, seeded, tokens

_SHARED = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "initializer_range": 0.2,
    "num_experts_per_tok": 2,
}


def tiny_qwen3_moe(implementation: str = "grouped_mm") -> PreTrainedModel:
    """Its first layer has an ordinary feed-forward part."""
    config = Qwen3MoeConfig(**_SHARED, head_dim=8, moe_intermediate_size=16, num_experts=4, mlp_only_layers=[0])
    config._experts_implementation = implementation
    with seeded(0):
        return Qwen3MoeForCausalLM(config).eval()


def tiny_mixtral(implementation: str = "grouped_mm") -> PreTrainedModel:
    config = MixtralConfig(**_SHARED, num_local_experts=4)
    config._experts_implementation = implementation
    with seeded(0):
        return MixtralForCausalLM(config).eval()


MIXTURES = {"qwen3_moe": tiny_qwen3_moe, "mixtral": tiny_mixtral}


def adapted(base: PreTrainedModel, targets: list[str] | str) -> torch.nn.Module:
    config = BayesianLoraConfig(r=4, target_modules=targets, prior_std=0.3, task_type="CAUSAL_LM")
    with seeded(1):
        return perturb(get_peft_model(base, config)).eval()


@pytest.mark.parametrize("implementation", ["grouped_mm", "eager"])
@pytest.mark.parametrize("name", MIXTURES)
def test_samples_in_one_forward_equal_the_loop(name: str, implementation: str) -> None:
    model = adapted(MIXTURES[name](implementation), ["q_proj", "v_proj", "lm_head"])
    ids = tokens(rows=4)
    with sampling(model, 3, seed=1):
        together = logits_of(model, ids)
    apart = []
    for number in range(3):
        with sampling(model, 1, seed=1, first=number):
            apart.append(logits_of(model, ids))
    assert distance(together, torch.cat(apart)) < 1e-4
    assert distance(apart[0], apart[1]) > 0.1


@pytest.mark.parametrize("name", MIXTURES)
def test_draws_are_routed_apart(name: str) -> None:
    """The draws differ in the experts that they choose, so the test above is not passed by routing the mean."""
    model, chosen = adapted(MIXTURES[name](), ["q_proj", "v_proj"]), []
    router = next(module for module in model.modules() if type(module).__name__.endswith("Router"))
    router.register_forward_hook(lambda _module, _inputs, output: chosen.append(output[2]))
    with sampling(model, 4, seed=1):
        logits_of(model, tokens(rows=4, length=12))
    draws = chosen[-1].unflatten(0, (4, -1))
    assert any(not torch.equal(draws[0], other) for other in draws[1:])


@pytest.mark.parametrize(
    ("name", "targets", "part"),
    [
        ("qwen3_moe", ["q_proj", "down_proj"], "experts"),
        ("qwen3_moe", ["gate_proj", "up_proj"], "experts"),
        ("qwen3_moe", ["gate_up_proj"], "experts"),
        ("qwen3_moe", ["experts"], "experts"),
        ("qwen3_moe", r".*\.mlp\.experts\.down_proj", "experts"),
        ("qwen3_moe", ["q_proj", "gate"], "router"),
        ("mixtral", ["w1", "w2", "w3"], "experts"),
        ("mixtral", ["gate"], "router"),
    ],
)
def test_experts_and_routers_are_refused_with_the_remedy(name: str, targets: list[str] | str, part: str) -> None:
    config = BayesianLoraConfig(r=4, target_modules=targets)
    with pytest.raises(ValueError, match=rf"cannot adapt 'model.layers.*{part}.*target_modules=\['q_proj', 'v_proj'\]"):
        get_peft_model(MIXTURES[name](), config)


def test_a_bare_parameter_is_no_expert() -> None:
    """XLNet's attention is made of parameters of three dimensions, without any experts."""
    config = XLNetConfig(vocab_size=96, d_model=32, n_layer=1, n_head=4, d_inner=48)
    with pytest.raises(
        ValueError, match=r"rel_attn\.q'.*bare parameter, no linear layer.*called layer_1, layer_2, lm_loss\."
    ):
        get_peft_model(XLNetLMHeadModel(config), BayesianLoraConfig(r=2, target_modules=["q", "layer_1"]))
    assert get_peft_model(XLNetLMHeadModel(config), BayesianLoraConfig(r=2, target_modules=["layer_1", "layer_2"]))


def test_a_vision_model_has_no_experts() -> None:
    """SigLIP pools with a probe of three dimensions."""
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    base = SiglipVisionModel(SiglipVisionConfig(**sizes, image_size=28, patch_size=14))
    model = get_peft_model(base, BayesianLoraConfig(r=2, target_modules=["down_proj", "fc1"]))
    assert [name for name, _ in model.named_modules() if name.endswith("fc1.lora_A.default")]


def test_target_parameters_are_refused() -> None:
    with pytest.raises(ValueError, match="does not support target_parameters"):
        BayesianLoraConfig(target_modules=["q_proj"], target_parameters=["mlp.experts.gate_up_proj"])


def test_the_ordinary_feed_forward_part_of_a_mixture_can_be_adapted() -> None:
    config = BayesianLoraConfig(r=4, target_modules=["q_proj", "down_proj"], layers_to_transform=[0])
    model = get_peft_model(tiny_qwen3_moe(), config)
    assert sum(name.endswith("lora_A.default") for name, _ in model.named_modules()) == 2


def test_single_linear_experts_are_refused() -> None:
    """Models outside of transformers may still have them."""

    class Expert(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up = torch.nn.Linear(4, 4)

    base = torch.nn.ModuleDict({"experts": torch.nn.ModuleList([Expert()])})
    with pytest.raises(ValueError, match="sees the tokens routed to it"):
        get_peft_model(base, BayesianLoraConfig(r=2, target_modules=["up"]))  # type: ignore[arg-type]


def test_an_attention_adapter_of_plain_lora_becomes_a_posterior(tmp_path) -> None:
    lora = perturb(get_peft_model(tiny_qwen3_moe(), LoraConfig(r=4, target_modules=["q_proj", "v_proj"]))).eval()
    lora.save_pretrained(tmp_path)  # type: ignore[operator]
    model = from_lora(tiny_qwen3_moe(), tmp_path).eval()
    assert distance(logits_of(model), logits_of(lora)) < 1e-4
