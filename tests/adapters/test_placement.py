"""Named placements of the adapters."""

import pytest
import torch

from bayeslora.adapters.placement import adapted_layers, linear_names
from bayeslora.experiments.comparison.config import AdapterConfig, CompareConfig
from bayeslora.methods import BayesianLora, Lora
from bayeslora.methods.full_fine_tuning import FullFineTuning
from bayeslora.runs.config import TaskConfig
from conftest import MODELS, tiny_llama


def adapted(method, **sizes):
    """Numbers of the layers that hold an adapter."""
    model = method.adapt(tiny_llama(**sizes), "causal_lm")
    return sorted(
        {int(name.split(".layers.")[1].split(".")[0]) for name, _ in model.named_modules() if "lora_A." in name}
    )


@pytest.mark.parametrize(
    ("options", "layers"),
    [
        ({}, [0, 1, 2, 3, 4]),
        ({"placement": "all"}, [0, 1, 2, 3, 4]),
        ({"placement": "top_half"}, [3, 4]),
        ({"placement": "top_quarter"}, [4]),
        ({"last_layers": 3}, [2, 3, 4]),
    ],
)
def test_each_placement_adapts_its_layers(options, layers):
    assert adapted(Lora(r=2, **options), num_hidden_layers=5) == layers


def adapted_modules(method):
    names = [name for name, _ in method.adapt(tiny_llama(num_hidden_layers=4), "causal_lm").named_modules()]
    return {name.partition(".layers.")[2].partition(".lora_A.")[0] for name in names if "lora_A." in name}


LINEAR = {f"self_attn.{name}_proj" for name in "qkvo"} | {f"mlp.{name}_proj" for name in ("gate", "up", "down")}


@pytest.mark.parametrize(("options", "layers"), [({}, range(4)), ({"placement": "top_half"}, (2, 3))])
@pytest.mark.parametrize("method", [Lora, BayesianLora])
def test_all_linear_maps_of_the_chosen_layers(method, options, layers):
    """PEFT by itself refuses its "all-linear" together with a choice of layers."""
    found = adapted_modules(method(r=2, target_modules="all-linear", **options))
    assert found == {f"{layer}.{name}" for layer in layers for name in LINEAR}


def test_all_linear_maps_are_those_inside_the_layers():
    """Not the pooler's of the same name, and in GPT-2 maps of another class."""
    bert = linear_names(MODELS["bert"]())
    assert any(name.endswith("layer.0.output.dense") for name in bert)
    assert not any("pooler" in name or "classifier" in name for name in bert)
    gpt2 = linear_names(MODELS["gpt2"](), [1])
    assert {name.partition(".h.")[2] for name in gpt2} == {
        "1.attn.c_attn",
        "1.attn.c_proj",
        "1.mlp.c_fc",
        "1.mlp.c_proj",
    }
    with pytest.raises(ValueError, match="found no linear maps in the 0 transformer layers of a Linear"):
        linear_names(torch.nn.Linear(2, 2))


def test_full_fine_tuning_of_all_linear_maps_of_the_upper_half():
    model = FullFineTuning(target_modules="all-linear", placement="top_half").adapt(
        tiny_llama(num_hidden_layers=2), "causal_lm"
    )
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert len(trained) == 7 and all(".layers.1." in name for name in trained)


def test_shares_are_rounded_down_but_never_to_nothing():
    assert adapted_layers(30, "top_quarter") == list(range(23, 30))
    assert adapted_layers(3, "top_quarter") == [2]
    assert adapted_layers(30) is None


def test_refusals():
    with pytest.raises(ValueError, match=r"placement must be one of .*got 'bottom'"):
        adapted(Lora(placement="bottom"))
    with pytest.raises(ValueError, match="both say which"):
        adapted(BayesianLora(placement="top_half", last_layers=2))


def test_a_comparison_places_the_adapters_of_every_row():
    config = CompareConfig(tasks={"a": TaskConfig()}, adapter=AdapterConfig(placement="top_half"))
    assert {config.run("a", title, 0, 0.1).method.placement for title in config.rows} == {"top_half"}
