"""Adapters on base models in 4 and 8 bits: draws, a training step, saving and loading, merging."""

from pathlib import Path

import pytest
import torch
from peft import PeftModel
from test_cli import data  # noqa: F401
from test_heads import CHECKPOINTS, loaded, written
from torch import nn

import bayeslora
from bayeslora.deploy.export import export_merged
from bayeslora.methods import BayesianLora
from bayeslora.models import load_base_model
from bayeslora.models.heads import head_modules
from bayeslora.models.quantization import quantization_config
from bayeslora.runs import load_run, task_items, train
from bayeslora.runs.config import ModelConfig, RunConfig, TaskConfig, TrainConfig
from bayeslora.scoring.trunk_cache import frozen_trunk, trunk_digest
from conftest import (
    byte_level_tokenizer,
    distance,
    logits_of,
    perturb,
    seeded,
    tiny_llama,
    tiny_llama_classifier,
    tokens,
)

PACKAGES = {"bnb_4bit": "bitsandbytes", "bnb_8bit": "bitsandbytes", "torchao_int8": "torchao"}
ERRORS = {"bnb_4bit": 0.5, "bnb_8bit": 0.1, "torchao_int8": 0.05}
"""Largest relative error of the logits that rounding may bring."""
ROUNDING = {"bnb_4bit": 1e-5, "bnb_8bit": 0.1, "torchao_int8": 1e-5}
"""Of a draw alone against the same in a batch; LLM.int8() picks its outliers over the whole batch."""


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Wide enough for the blocks of 64 weights of the 4-bit type."""
    folder = tmp_path_factory.mktemp("base")
    tokenizer = byte_level_tokenizer()
    wide = {"hidden_size": 128, "intermediate_size": 128, "num_hidden_layers": 3, "initializer_range": 0.1}
    tiny_llama(vocab_size=len(tokenizer), max_position_embeddings=1024, **wide).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", params=sorted(PACKAGES))
def kind(request: pytest.FixtureRequest) -> str:
    pytest.importorskip(PACKAGES[request.param], reason=f"{PACKAGES[request.param]} is not installed")
    return request.param


@pytest.fixture
def model(kind: str, base: Path) -> PeftModel:
    return adapted(kind, base)


def adapted(kind: str, base: Path) -> PeftModel:
    quantized, _ = load_base_model(str(base), dtype="float32", device="cpu", quantization=kind)
    with seeded(3):
        found = BayesianLora(r=4, last_layers=2, prior_std=0.3).adapt(quantized, "causal_lm")
    return perturb(found, scale=0.05).eval()  # type: ignore[return-value]


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    return ((found - expected).norm() / expected.norm()).item()


def test_the_linear_layers_are_packed_and_the_head_is_not(kind: str, base: Path) -> None:
    plain, _ = load_base_model(str(base), dtype="float32", device="cpu")
    packed, _ = load_base_model(str(base), dtype="float32", device="cpu", quantization=kind)
    error = relative(logits_of(packed), logits_of(plain))
    assert 1e-4 < error < ERRORS[kind]
    assert type(packed.lm_head) is nn.Linear
    weight = packed.model.layers[0].self_attn.q_proj.weight
    assert not weight.dtype.is_floating_point or hasattr(weight.data, "__tensor_flatten__")


def test_draws_in_one_forward_are_the_draws_one_by_one(kind: str, model: PeftModel) -> None:
    with bayeslora.sampling(model, 3, seed=1):
        together = logits_of(model).unflatten(0, (3, -1))
    assert together.std(0).mean() > 0.01
    for index in range(3):
        with bayeslora.sampling(model, 1, seed=1, first=index):
            assert relative(together[index], logits_of(model)) < ROUNDING[kind]


def test_a_training_step_is_of_the_adapter_alone_in_float32(kind: str, model: PeftModel) -> None:
    # A prediction before it: on a CPU bitsandbytes would pack 4-bit weights anew.
    before = logits_of(model)
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained and all("lora_" in name and p.dtype == torch.float32 for name, p in trained.items())
    model.train()
    loss = model(input_ids=tokens(), labels=tokens()).loss + bayeslora.kl_divergence(model).total / 100
    loss.backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in trained.values())
    torch.optim.SGD(trained.values(), lr=0.01).step()
    assert distance(before, logits_of(model.eval())) > 1e-4


def test_merging_the_mean_and_a_draw_is_off_by_rounding_alone(kind: str, base: Path, model: PeftModel) -> None:
    mean = logits_of(model)
    model.merge_adapter()
    assert relative(logits_of(model), mean) < ERRORS[kind]
    with model.disable_adapter():
        pass
    again = adapted(kind, base)
    with bayeslora.sampling(again, 1, seed=2):
        draw = logits_of(again)
        assert relative(draw, mean) > ERRORS[kind]
        merged = again.merge_and_unload()
    assert relative(logits_of(merged), draw) < ERRORS[kind]


def test_an_export_of_merged_weights_says_what_to_do_instead(model: PeftModel, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="load the base model unquantised"):
        export_merged(model, tmp_path / "merged")


def test_a_run_is_trained_saved_and_loaded(kind: str, base: Path, data: Path, tmp_path: Path) -> None:  # noqa: F811
    config = RunConfig(
        model=ModelConfig(name=str(base), dtype="float32", device="cpu", quantization=kind),  # type: ignore[arg-type]
        task=TaskConfig(name=str(data)),
        method=BayesianLora(r=2, last_layers=2, prior_std=0.3),
        train=TrainConfig(max_steps=2, batch_size=4, logging_steps=1, arguments={"disable_tqdm": True}),
        num_samples=3,
    )
    trained = train(config, tmp_path / "run")
    assert trained.trunk_cache is not None and trained.trunk_cache.skipped == 1
    loaded = load_run(tmp_path / "run")
    assert loaded.config.model.quantization == kind
    test = task_items(config.task).test
    trained.trunk_cache = None
    found, expected = (run.predict(test).predictive.probabilities for run in (loaded, trained))
    assert distance(found, expected) < 1e-6
    # The adapter goes on the base in full precision as well.
    full = load_base_model(str(base), dtype="float32", device="cpu")[0]
    assert (
        relative(logits_of(PeftModel.from_pretrained(full, str(tmp_path / "run" / "adapter"))), logits_of(loaded.model))
        < ERRORS[kind]
    )


def test_the_key_of_the_trunk_cache_knows_the_packed_weights(kind: str, model: PeftModel, base: Path) -> None:
    digest = trunk_digest(model, frozen_trunk(model))
    other = adapted(kind, base)
    assert trunk_digest(other, frozen_trunk(other)) == digest
    plain = load_base_model(str(base), dtype="float32", device="cpu")[0]
    with seeded(3):
        plain = BayesianLora(r=4, last_layers=2).adapt(plain, "causal_lm")
    assert trunk_digest(plain, frozen_trunk(plain)) != digest


def test_a_new_classification_head_is_trained_and_not_packed(kind: str, base: Path, tmp_path: Path) -> None:
    tokenizer = byte_level_tokenizer()
    wide = {"hidden_size": 128, "intermediate_size": 128, "num_hidden_layers": 2}
    tiny_llama_classifier(vocab_size=len(tokenizer), **wide).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    model, _ = load_base_model(
        str(tmp_path), kind="sequence_classification", dtype="float32", device="cpu", num_labels=3, quantization=kind
    )
    assert type(model.score) is nn.Linear and model.score.weight.dtype == torch.float32
    adapter = BayesianLora(r=2).adapt(model, "sequence_classification")
    adapter(input_ids=tokens(), labels=torch.tensor([0, 1, 2])).loss.backward()
    assert any(p.grad is not None and "score" in name for name, p in adapter.named_parameters())


ENCODERS = ("bert", "roberta", "deberta", "modernbert", "albert", "distilbert", "electra", "mpnet", "bart", "t5")


@pytest.mark.parametrize("name", ENCODERS)
def test_the_heads_of_encoders_are_not_packed(kind: str, name: str, tmp_path: Path) -> None:
    written(tmp_path, name)
    model = loaded(tmp_path, quantization=kind)
    inside = [model.get_submodule(part) for part in head_modules(model)]
    head = [layer for part in inside for layer in part.modules() if isinstance(layer, nn.Linear)]
    assert head and all(type(layer) is nn.Linear and layer.weight.dtype == torch.float32 for layer in head)
    assert not any(hasattr(layer.weight, "__tensor_flatten__") for layer in head)
    assert model.is_quantized
    adapter = BayesianLora(r=2, target_modules=CHECKPOINTS[name][3]).adapt(model, "sequence_classification").train()
    ids = torch.cat([tokens(), torch.full((3, 1), 2)], dim=1)
    loss = torch.nn.functional.cross_entropy(adapter(input_ids=ids).logits, torch.arange(3))
    loss.backward()
    trained = {key for key, each in adapter.named_parameters() if each.requires_grad and "lora_" not in key}
    assert trained and all(adapter.get_parameter(key).grad is not None for key in trained)
    adapter.save_pretrained(tmp_path / "adapter")
    again = PeftModel.from_pretrained(loaded(tmp_path, seed=9, quantization=kind), str(tmp_path / "adapter")).eval()
    assert distance(logits_of(again, ids), logits_of(adapter.eval(), ids)) < 1e-5


def test_a_missing_package_is_named_with_its_extra(monkeypatch) -> None:
    monkeypatch.setattr("bayeslora.models.quantization.find_spec", lambda name: None)
    assert quantization_config("none", "float32") is None
    with pytest.raises(ImportError, match=r"bayeslora\[quantized\]"):
        quantization_config("bnb_4bit", "float32")


def test_an_unknown_quantization_is_refused(base: Path) -> None:
    with pytest.raises(ValueError, match="Expected quantization to be one of none, bnb_4bit"):
        load_base_model(str(base), quantization="int3")  # type: ignore[arg-type]
