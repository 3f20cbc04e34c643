"""RepLoRA: A and B come out of networks while training, and are a plain LoRA adapter afterwards."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file
from test_contract import SHARED, TEST, World, world  # noqa: F401
from torch import Tensor, nn

from bayeslora.adapters.random_factor import RandomFactor
from bayeslora.deploy.export import export_run
from bayeslora.methods.replora import GeneratedFactor, GeneratedWeights, RepLora, RepLoraConfig, drop_networks
from bayeslora.runs import load_run, train
from conftest import distance, logits_of, perturb, seeded, tiny_llama

RANK, LATENT, HIDDEN_UNITS = 4, 5, 11
WIDTHS = 32 + 32 + 32 + 16
"""Inputs and outputs of q and v together; v has fewer heads."""


def adapted(seed: int = 0, **options: Any) -> PeftModel:
    """q and v of the last two of four layers."""
    fields: dict[str, Any] = {"r": RANK, "last_layers": 2, "latent_size": LATENT, "hidden_size": HIDDEN_UNITS}
    with seeded(seed):
        return RepLora(**{**fields, **options}).adapt(tiny_llama(), "causal_lm").eval()


def factors(model: nn.Module) -> dict[str, GeneratedFactor]:
    """By layer number, target and side, such as 3.q.A."""
    found = {}
    for name, module in model.named_modules():
        if isinstance(module, GeneratedFactor):
            parts = name.rpartition("layers.")[2].split(".")
            found[f"{parts[0]}.{parts[2][0]}.{parts[3][-1]}"] = module
    return found


def by_hand(factor: GeneratedFactor) -> Tensor:
    """Rank by rank, with the normal distribution function in gelu."""
    rows = []
    for latent in factor.latent:
        hidden = latent @ factor.hidden_weight + factor.hidden_bias[0]
        hidden = hidden * torch.special.ndtr(hidden)
        rows.append(sum(value * row for value, row in zip(hidden, factor.head, strict=True)))
    matrix = torch.stack(rows).detach()
    return matrix if factor.family.side == "A" else matrix.T


def test_weights_are_the_output_of_the_network() -> None:
    model = perturb(adapted(), scale=0.3)
    assert len(factors(model)) == 8
    for factor in factors(model).values():
        assert distance(factor.weight.detach(), by_hand(factor)) < 1e-5
        assert factor.weight.shape == (factor.out_features, factor.in_features)


@pytest.mark.parametrize("side", ["A", "B"])
def test_any_factor_is_an_exact_start(side: Any) -> None:
    weight = torch.randn((RANK, 30) if side == "A" else (30, RANK), generator=torch.Generator().manual_seed(1))
    family = GeneratedWeights(*weight.shape, side=side, latent_size=LATENT, hidden_size=RANK)
    with seeded(3):
        assert distance(family.mean_weight(family.initial(weight)), weight) < 1e-4
    assert torch.equal(family.mean_weight(family.initial(torch.zeros_like(weight))), torch.zeros_like(weight))


def test_a_fresh_adapter_starts_at_loras_matrices() -> None:
    for key, factor in factors(adapted()).items():
        bound = factor.in_features**-0.5 * (1 + 1e-4)  # of PEFT's uniform A
        assert factor.weight.abs().max() <= (bound if key.endswith("A") else 0)
        assert factor.weight.std() > 0.4 * bound or key.endswith("B")
    assert distance(logits_of(adapted()), logits_of(tiny_llama())) < 1e-6


def test_a_block_shares_its_latent_and_each_side_its_hidden_layer() -> None:
    found = factors(adapted())
    for layer in (2, 3):
        block = {key: factor for key, factor in found.items() if key.startswith(str(layer))}
        assert len({id(factor.latent) for factor in block.values()}) == 1
        for name in ("hidden_weight", "hidden_bias"):
            for side in "AB":
                assert len({id(getattr(factor, name)) for key, factor in block.items() if key[-1] == side}) == 1
            assert getattr(block[f"{layer}.q.A"], name) is not getattr(block[f"{layer}.q.B"], name)
        assert len({id(factor.head) for factor in block.values()}) == 4
    assert found["2.q.A"].latent is not found["3.q.A"].latent


def test_number_of_parameters() -> None:
    found = sum(p.numel() for p in adapted().parameters() if p.requires_grad)
    per_block = RANK * LATENT + 2 * (LATENT + 1) * HIDDEN_UNITS + HIDDEN_UNITS * WIDTHS
    assert found == 2 * per_block


def test_the_latent_gets_the_gradients_of_all_its_factors() -> None:
    model = perturb(adapted(), scale=0.3)
    found = factors(model)
    gradients = {}
    for key in ("3.q.A", "3.v.A", "3.q.B", "3.v.B"):
        model.zero_grad()
        found[key].weight.square().sum().backward()
        gradients[key] = found[key].latent.grad.clone()
    model.zero_grad()
    sum(found[key].weight.square().sum() for key in gradients).backward()
    assert all(value.abs().max() > 1e-3 for value in gradients.values())
    assert torch.allclose(found["3.q.A"].latent.grad, sum(gradients.values()), rtol=1e-4, atol=1e-5)


def test_what_is_shared_stays_shared_through_training_and_checkpoints(tmp_path: Path) -> None:
    model = perturb(adapted(), scale=0.3)
    model.save_pretrained(str(tmp_path))
    again = adapted(seed=7)
    again.load_adapter(str(tmp_path), "default", is_trainable=True)
    assert distance(logits_of(again), logits_of(model)) < 1e-6
    found = factors(again)
    assert found["2.q.A"].latent is found["2.v.B"].latent
    optimizer = torch.optim.SGD([p for p in again.parameters() if p.requires_grad], lr=0.1)
    again(input_ids=torch.tensor([[4, 5, 6]]), labels=torch.tensor([[4, 5, 6]])).loss.backward()
    optimizer.step()
    assert found["2.q.A"].latent is found["2.v.B"].latent
    assert distance(found["2.q.A"].latent.detach(), factors(model)["2.q.A"].latent.detach()) > 0


def test_dropping_the_networks_leaves_the_model() -> None:
    model = perturb(adapted(), scale=0.1).eval()
    expected, weights = logits_of(model), {key: factor.weight.detach() for key, factor in factors(model).items()}
    drop_networks(model)  # type: ignore[arg-type]
    assert distance(logits_of(model), expected) < 1e-5
    assert not any(isinstance(module, RandomFactor) for module in model.modules())
    layer = model.get_submodule("base_model.model.model.layers.3.self_attn.v_proj")
    assert torch.equal(layer.lora_B["default"].weight, weights["3.v.B"])
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == 2 * RANK * WIDTHS


def test_a_finished_run_is_plain_lora(world: World, tmp_path: Path) -> None:  # noqa: F811
    run = train(world.config(RepLora(**SHARED)), tmp_path / "run")
    config = json.loads((tmp_path / "run" / "adapter" / "adapter_config.json").read_text())
    assert config["peft_type"] == "LORA" and not {"latent_size", "format_version"} & config.keys()
    tensors = load_file(tmp_path / "run" / "adapter" / "adapter_model.safetensors")
    assert {key.rpartition(".lora_")[2] for key in tensors} == {"A.weight", "B.weight"}
    export_run(tmp_path / "run", tmp_path / "export")
    exported = PeftModel.from_pretrained(world.base_model(), str(tmp_path / "export")).eval()
    batch, loaded = run.scoring(TEST), load_run(tmp_path / "run")
    expected = run.predict(TEST).predictive.probabilities
    with torch.no_grad():
        found = batch.choice_logits(exported).softmax(-1)
    assert distance(found, expected) < 1e-5
    assert distance(loaded.predict(TEST).predictive.probabilities, expected) < 1e-6
    other = RepLora(**SHARED, init_from=str(tmp_path / "run")).adapt(world.base_model(), "causal_lm").eval()
    with torch.no_grad():
        assert distance(batch.choice_logits(other).softmax(-1), expected) < 1e-4
    assert len(factors(other)) == 8


@pytest.mark.parametrize("options", [{"hidden_size": 3}, {"latent_size": 0}, {"rank_pattern": {"q_proj": 100}}])
def test_values_out_of_range_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="_size must be at least"):
        get_peft_model(tiny_llama(), RepLoraConfig(r=RANK, **options))
