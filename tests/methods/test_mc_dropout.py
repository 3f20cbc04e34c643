"""Monte Carlo dropout: where the masks are, what they depend on, and that training is plain LoRA."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.utils.save_and_load import load_peft_weights
from test_trainer import assert_same, items, step_logs, trained_parameters, trainer_for
from torch import Tensor, nn

import bayeslora
from bayeslora.adapters.draws import random_modules
from bayeslora.adapters.from_lora import from_lora
from bayeslora.methods.mc_dropout import AdapterDropout, MonteCarloDropout, MonteCarloDropoutConfig
from bayeslora.posteriors.weights.base import Noise
from conftest import distance, logits_of, perturb, seeded, tiny_bert, tiny_llama, tokens
from helpers import generator, noise_of

P = 0.3
OPTIONS: dict[str, Any] = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"]}
LAYER = "base_model.model.model.layers.3.self_attn.q_proj"


def dropout_model(p: float = P, seed: int = 3) -> nn.Module:
    """A tiny Llama with a "trained" adapter, in eval mode."""
    with seeded(seed):
        method = MonteCarloDropout(**OPTIONS, lora_dropout=p, last_layers=2)
        model = method.adapt(tiny_llama(vocab_size=320), "causal_lm")
    return perturb(model).eval()


def plain_model(p: float = P, seed: int = 3) -> PeftModel:
    """Plain LoRA with the same adapter."""
    with seeded(seed):
        config = LoraConfig(**OPTIONS, lora_dropout=p, layers_to_transform=[2, 3], task_type="CAUSAL_LM")
        model = get_peft_model(tiny_llama(vocab_size=320), config)
    return perturb(model).eval()  # type: ignore[return-value]


def noise(*seeds: int) -> Noise:
    """Of draws made from generators of these seeds."""
    normal = torch.stack([torch.randn(1, generator=generator(seed)) for seed in seeds])
    return noise_of(normal)


def drawn(module: AdapterDropout, value: Tensor, *seeds: int) -> Tensor:
    module.set_noise(noise(*seeds), explicit=True)
    return module(value)


# --- the module ------------------------------------------------------------------------------------------------------


def test_nothing_is_dropped_in_eval_mode() -> None:
    module, value = AdapterDropout(P).eval(), torch.randn(4, 5)
    assert torch.equal(module(value), value)
    module.set_noise(noise(0))
    assert torch.equal(module(value), value)


def test_training_is_ordinary_dropout() -> None:
    module, value = AdapterDropout(P).train(), torch.randn(64, 5)
    module.set_noise(noise(0))
    with seeded(1):
        found = module(value)
    with seeded(1):
        assert torch.equal(found, nn.Dropout(P)(value))
    assert (found == 0).any()


@pytest.mark.parametrize("training", [False, True])
def test_a_draw_drops_each_number_by_itself(training: bool) -> None:
    module, value = AdapterDropout(P).train(training), torch.rand(8, 50, 50, generator=generator(0)) + 1
    found = drawn(module, value, 3)
    kept = found != 0
    assert distance(found[kept], (value / (1 - P))[kept]) < 1e-6
    error = (P * (1 - P) / value.numel()) ** 0.5
    assert (~kept).double().mean().item() == pytest.approx(P, abs=5 * error)
    # No row, token or feature goes as a whole, and no two have the same mask.
    for axis in range(3):
        slices = kept.movedim(axis, 0).flatten(1)
        assert len(slices.unique(dim=0)) == len(slices)
        frequency = slices.double().mean(1)
        assert distance(frequency, torch.full_like(frequency, 1 - P)) < 6 * (P * (1 - P) / slices.shape[1]) ** 0.5


def test_the_mean_over_draws_is_the_input() -> None:
    module, value = AdapterDropout(P), torch.ones(2, 3)
    found = drawn(module, value.repeat(4000, 1), *range(4000)).unflatten(0, (4000, 2))
    assert distance(found.mean(0), value) < 5 * (P / (1 - P) / 4000) ** 0.5
    assert len(found.flatten(1).unique(dim=0)) == 2**6


def test_masks_are_a_function_of_the_draw_alone() -> None:
    module, value = AdapterDropout(P), torch.rand(2, 7, 5) + 1
    before = torch.get_rng_state()
    together = drawn(module, value.repeat(3, 1, 1), 4, 5, 6).unflatten(0, (3, 2))
    for index, seed in enumerate((4, 5, 6)):
        assert torch.equal(drawn(module, value, seed), together[index])
    assert torch.equal(torch.get_rng_state(), before)
    assert distance(together[0], together[1]) > 1


def test_rows_that_are_no_multiple_of_the_draws() -> None:
    with pytest.raises(ValueError, match=r"dropout of 2 draws .* leading dimension of draws \* batch, got .*\(3, 5\)"):
        drawn(AdapterDropout(P), torch.ones(3, 5), 0, 1)


def test_noise_follows_the_model() -> None:
    module = AdapterDropout(P).half()
    assert module.device == torch.device("cpu") and module.kl().total == 0
    module.to("meta")  # PEFT makes modules there while it loads; there is no noise on it
    assert module.device == torch.device("cpu")
    assert list(module.state_dict()) == []


# --- in a model ------------------------------------------------------------------------------------------------------


def test_a_draw_is_lora_with_the_masks_on_the_input_of_a() -> None:
    model = dropout_model()
    layer = model.get_submodule(LAYER)
    value = torch.randn(2, 7, 32, generator=generator(0))
    with bayeslora.sampling(model, 1, seed=5), torch.no_grad():
        found = layer(value) - layer.base_layer(value)
        mask = layer.lora_dropout["default"](torch.ones_like(value))
    a, b = (getattr(layer, part)["default"].weight.detach() for part in ("lora_A", "lora_B"))
    assert set(mask.unique().tolist()) == {0.0, torch.tensor(1 / (1 - P)).item()}
    assert distance(found, 2 * (value * mask) @ a.T @ b.T) < 1e-5


def test_layers_have_masks_of_their_own() -> None:
    model = dropout_model()
    modules = random_modules(model)
    assert len(modules) == 4 and all(isinstance(module, AdapterDropout) for module in modules)
    with bayeslora.sampling(model, 1, seed=5):
        masks = torch.stack([module(torch.ones(50)) for module in modules])
    assert len(masks.unique(dim=0)) == 4


def test_without_samples_it_is_plain_lora() -> None:
    model, plain = dropout_model(), plain_model()
    assert distance(logits_of(model), logits_of(plain)) == 0
    with bayeslora.sampling(model, 2, seed=1):
        one, other = logits_of(model).unflatten(0, (2, -1))
    assert distance(one, other) > 0.01 and distance(one, logits_of(plain)) > 0.01


@pytest.mark.parametrize("chunk_size", [1, 3, 5])
def test_draws_in_chunks(chunk_size: int) -> None:
    """For every way to read the model: with a head of classes and a base model that has dropout of its own."""
    with seeded(3):
        method = MonteCarloDropout(**{**OPTIONS, "target_modules": ["query", "value"]}, lora_dropout=P)
        model = perturb(method.adapt(tiny_bert(hidden_dropout_prob=0.4), "sequence_classification")).train()
    expected = bayeslora.predict(model, {"input_ids": tokens()}, 5, seed=2, chunk_size=5).samples
    found = bayeslora.predict(model, {"input_ids": tokens()}, 5, seed=2, chunk_size=chunk_size).samples
    assert distance(found, expected) < 1e-5
    assert expected.std(0).max() > 1e-3


def test_other_dropout_of_the_model_stays_off() -> None:
    """With B = 0 the adapters' dropout has no effect: any spread would come from another one."""
    with seeded(3):
        method = MonteCarloDropout(**{**OPTIONS, "target_modules": ["query", "value"]})
        base = tiny_bert(hidden_dropout_prob=0.4, attention_probs_dropout_prob=0.4)
        model = method.adapt(base, "sequence_classification").train()
    assert sum(isinstance(module, nn.Dropout) for module in model.modules()) > 4
    found = bayeslora.predict(model, {"input_ids": tokens()}, 3, seed=0).samples
    assert distance(found, found[:1].expand_as(found)) < 1e-6


# --- training and files ----------------------------------------------------------------------------------------------


def test_training_is_that_of_plain_lora(tmp_path: Path) -> None:
    """The same masks from the same state of torch's generator, and so the same weights."""
    results, options = [], {"optim": "adamw_torch", "learning_rate": 0.01, "max_steps": 15}
    for model in (dropout_model(), plain_model()):
        trainer = trainer_for("cloze", tmp_path, model=model, **options)
        trainer.train()
        results.append(trained_parameters(trainer))
    assert_same(results[0], results[1], 0)
    logs = step_logs(trainer)
    assert all(entry["kl"] == 0 for entry in logs)
    assert sum(entry["nll"] for entry in logs[-3:]) < 0.8 * sum(entry["nll"] for entry in logs[:3])


@pytest.mark.parametrize("low_memory", [False, True])
def test_file_holds_the_lora_matrices_alone(low_memory: bool, tmp_path: Path) -> None:
    model = dropout_model()
    model.save_pretrained(tmp_path / "dropout")
    plain_model().save_pretrained(tmp_path / "plain")
    found, expected = (load_peft_weights(str(tmp_path / kind), device="cpu") for kind in ("dropout", "plain"))
    assert_same(found, expected, 0)
    base = tiny_llama(vocab_size=320)
    loaded = PeftModel.from_pretrained(base, tmp_path / "dropout", low_cpu_mem_usage=low_memory).eval()
    assert {module.p for module in random_modules(loaded)} == {P}  # type: ignore[union-attr]
    logits = []
    for one in (loaded, model):
        with bayeslora.sampling(one, 3, seed=4):
            logits.append(logits_of(one))
    assert torch.equal(*logits)


def test_an_adapter_trained_without_dropout_gets_that_of_the_method(tmp_path: Path) -> None:
    plain = plain_model(p=0.0)
    plain.save_pretrained(tmp_path)
    method = MonteCarloDropout(lora_dropout=0.4, init_from=str(tmp_path))
    model = method.adapt(tiny_llama(vocab_size=320), "causal_lm").eval()
    assert distance(logits_of(model), logits_of(plain)) < 1e-6
    assert model.peft_config["default"].lora_dropout == 0.4
    assert {module.p for module in random_modules(model)} == {0.4}  # type: ignore[union-attr]
    with pytest.raises(ValueError, match="needs lora_dropout in"):
        from_lora(tiny_llama(vocab_size=320), tmp_path, config_class=MonteCarloDropoutConfig)


@pytest.mark.parametrize("p", [0.0, 1.0, -0.1])
def test_needs_dropout(p: float) -> None:
    with pytest.raises(ValueError, match=rf"needs lora_dropout in \(0, 1\), got {p}"):
        MonteCarloDropout(lora_dropout=p).adapt(tiny_llama(), "causal_lm")


def test_predictions_of_items_are_a_function_of_the_seed(tmp_path: Path) -> None:
    trainer = trainer_for("cloze", tmp_path, model=dropout_model())
    batch = trainer.data_collator(items(5))
    one, same, other = (bayeslora.predict(trainer.model, batch, 4, seed=s).probabilities for s in (1, 1, 2))
    assert torch.equal(one, same) and distance(one, other) > 1e-3
