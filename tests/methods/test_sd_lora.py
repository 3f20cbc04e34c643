"""SD-LoRA: the formula, frozen directions, trained magnitudes, and the next task from a run folder."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from bayeslora import predict, sampling
from bayeslora.deploy.export import export_mean
from bayeslora.methods.sd_lora import BayesianSdLora, SdLora
from conftest import distance, logits_of, perturb, seeded, tiny_bert, tiny_llama, tokens

RANK, ALPHA = 2, 6
METHODS = (SdLora, BayesianSdLora)


def method(kind: type[SdLora], previous: Path | None = None, **options: Any) -> SdLora:
    fields = {"r": RANK, "lora_alpha": ALPHA, "last_layers": 2, "init_from": previous and str(previous)}
    return kind(**{**fields, **options})


def task(kind: type[SdLora], seed: int, previous: Path | None = None, **options: Any) -> PeftModel:
    """The model after a task that moved everything it trains."""
    with seeded(seed):
        model = method(kind, previous, **options).adapt(tiny_llama(), "causal_lm")
    return perturb(model, seed, 0.3).eval()  # type: ignore[return-value]


def saved(model: PeftModel, folder: Path) -> Path:
    model.save_pretrained(str(folder))
    return folder


def layers(model: nn.Module) -> dict[str, Any]:
    return {name: layer for name, layer in model.named_modules() if isinstance(layer, LoraLayer)}


def current(layer: Any) -> tuple[Tensor, Tensor]:
    """A_t and B_t: parameters of their own, or the mean of their posterior (tested with its family)."""
    factors = layer.lora_A["default"], layer.lora_B["default"]
    if type(factors[0].family.current).__name__ == "PointWeights":
        return factors[0].mean.detach(), factors[1].mean.detach()
    a, b = (factor.family.current.mean_weight(factor.parameters_by_name).detach() for factor in factors)
    return a, b


@pytest.fixture(params=METHODS, ids=lambda kind: kind.name)
def kind(request: pytest.FixtureRequest) -> type[SdLora]:
    return request.param


def test_first_task_is_lora_with_a_magnitude(kind: type[SdLora]) -> None:
    with seeded(1):
        fresh = method(kind).adapt(tiny_llama(), "causal_lm").eval()
    assert distance(logits_of(fresh), logits_of(tiny_llama())) < 1e-6
    for layer in layers(task(kind, 1)).values():
        a, b = current(layer)
        magnitude = layer.lora_B["default"].magnitudes
        assert magnitude.shape == (1, 1) and magnitude.item() != pytest.approx(0.8)
        expected = ALPHA / RANK * magnitude.item() * b @ a
        assert distance(layer.get_delta_weight("default").detach(), expected) < 1e-5


def test_third_task_is_the_formula(kind: type[SdLora], tmp_path: Path) -> None:
    """Delta W = scale (a_1 B_1 A_1 / |B_1||A_1| + a_2 B_2 A_2 / |B_2||A_2| + a_3 B_3 A_3)."""
    first = task(kind, 1)
    second = task(kind, 2, saved(first, tmp_path / "1"))
    third = task(kind, 3, saved(second, tmp_path / "2"))
    base = dict(tiny_llama().named_modules())
    assert len(layers(third)) == 4
    for name, layer in layers(third).items():
        magnitudes = layer.lora_B["default"].magnitudes[0].tolist()
        assert len(set(magnitudes)) == 3
        update = torch.zeros_like(layer.weight)
        for number, model in enumerate((first, second, third)):
            a, b = current(layers(model)[name])
            size = b.norm() * a.norm() if model is not third else 1
            update += ALPHA / RANK * magnitudes[number] / size * b @ a
        assert distance(layer.get_delta_weight("default").detach(), update) < 1e-5
        value = torch.randn(3, layer.in_features, generator=torch.Generator().manual_seed(2))
        weight = base[name.removeprefix("base_model.model.")].weight
        assert distance(layer(value).detach(), (value @ (weight + update).T).detach()) < 1e-4


def test_old_directions_stay_bit_by_bit_and_everything_else_is_trained(kind: type[SdLora], tmp_path: Path) -> None:
    second = task(kind, 2, saved(task(kind, 1), tmp_path / "1"))
    model = method(kind, saved(second, tmp_path / "2")).adapt(tiny_llama(), "causal_lm").train()
    frozen = {key: value.clone() for key, value in model.state_dict().items() if key.endswith("directions")}
    assert len(frozen) == 8 and not any(key.endswith("directions") for key, _ in model.named_parameters())
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.05, weight_decay=0.1)
    for _ in range(3):
        model.zero_grad()
        model(input_ids=tokens(), labels=tokens()).loss.backward()
        optimizer.step()
    for layer in layers(model).values():
        magnitudes = layer.lora_B["default"].magnitudes
        assert magnitudes.shape == (1, 3) and (magnitudes.grad != 0).all()
        assert all(factor["default"].mean.grad.abs().max() > 0 for factor in (layer.lora_A, layer.lora_B))
    after = model.state_dict()
    assert all(torch.equal(after[key], value) for key, value in frozen.items())
    # The second task kept those of the first.
    for name, layer in layers(second).items():
        for side in ("lora_A", "lora_B"):
            old, new = getattr(layer, side)["default"].directions, frozen[f"{name}.{side}.default.directions"]
            assert torch.equal(new[:RANK] if side == "lora_A" else new[:, :RANK], old)


def test_where_old_magnitudes_begin(kind: type[SdLora], tmp_path: Path) -> None:
    folder = saved(task(kind, 1), tmp_path / "1")
    expected = logits_of(task(kind, 1))
    kept = method(kind, folder, old_magnitudes="keep").adapt(tiny_llama(), "causal_lm").eval()
    assert distance(logits_of(kept), expected) < 1e-4
    restarted = method(kind, folder).adapt(tiny_llama(), "causal_lm").eval()
    assert distance(logits_of(restarted), expected) > 1e-2
    for layer in layers(restarted).values():
        assert torch.equal(layer.lora_B["default"].magnitudes, torch.full((1, 2), 0.8))
        for side, dimension in (("lora_A", 0), ("lora_B", 1)):
            directions = getattr(layer, side)["default"].directions
            assert directions.shape[dimension] == RANK and directions.norm().item() == pytest.approx(1, abs=1e-5)


def test_saved_adapters_load_and_export_as_lora_of_the_summed_rank(kind: type[SdLora], tmp_path: Path) -> None:
    model = task(kind, 2, saved(task(kind, 1), tmp_path / "1"))
    loaded = PeftModel.from_pretrained(tiny_llama(), str(saved(model, tmp_path / "2"))).eval()
    assert torch.equal(logits_of(loaded), logits_of(model))
    export_mean(model, tmp_path / "plain")
    plain = PeftModel.from_pretrained(tiny_llama(), str(tmp_path / "plain")).eval()
    assert type(plain.peft_config["default"]).__name__ == "LoraConfig" and plain.peft_config["default"].r == 2 * RANK
    assert distance(logits_of(plain), logits_of(model)) < 1e-4
    assert distance(logits_of(model.merge_and_unload()), logits_of(plain)) < 1e-4


def test_posterior_of_the_current_task_draws_in_one_forward(tmp_path: Path) -> None:
    model = task(BayesianSdLora, 2, saved(task(BayesianSdLora, 1), tmp_path / "1"))
    ids, samples = tokens(), 5
    with sampling(model, samples, seed=3):
        together = logits_of(model, ids).unflatten(0, (samples, len(ids)))
    for number in range(samples):
        with sampling(model, 1, seed=3, first=number):
            assert distance(logits_of(model, ids), together[number]) < 1e-4
    assert together.std(0).max() > 1e-2
    # Only the current part of a factor is random.
    with sampling(model, samples, seed=3):
        for layer in layers(model).values():
            a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
            assert a[:, :RANK].std(0).max() == 0 and b[:, :, :RANK].std(0).max() == 0
            assert a[:, RANK:].std(0).min() > 0 and b[:, :, RANK:].std(0).min() > 0


def test_the_head_goes_on(tmp_path: Path) -> None:
    first = method(SdLora, last_layers=None).adapt(tiny_bert(), "sequence_classification")
    perturb(first, scale=0.2)
    again = method(SdLora, saved(first, tmp_path), last_layers=None, old_magnitudes="keep").adapt(
        tiny_bert(), "sequence_classification"
    )
    found, expected = (predict(one, {"input_ids": tokens()}, 0).probabilities for one in (again, first))
    assert distance(found, expected) < 1e-5
    assert any("classifier" in name for name, parameter in again.named_parameters() if parameter.requires_grad)
