"""Cloze on models that packed choices would be wrong for: found out once, without traces, and read row by row."""

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from test_scoring import ITEMS, assert_same_logits, naive_cloze
from torch import Tensor, nn
from transformers import PreTrainedModel

from bayeslora import predict, sampling
from bayeslora.adapters.draws import hold_draw
from bayeslora.methods.laplace_approximation import lora_maps, record
from bayeslora.scoring import Cloze
from bayeslora.scoring.cloze import ClozeBatch
from bayeslora.scoring.packing import packs, probe_lengths
from bayeslora.scoring.trunk_cache import TrunkCache
from bayeslora.scoring.unpacked import UnpackedBatch
from bayeslora.training.cross_entropy import smoothed_cross_entropy
from conftest import byte_level_tokenizer, config_for, distance, perturb, seeded, tiny_llama
from unheeding import bloom, built, gpt_neo, mamba, mpt

MODELS: list[Callable[[], PreTrainedModel]] = [gpt_neo, bloom, mpt, mamba]
each_model = pytest.mark.parametrize("build", MODELS, ids=lambda build: build.__name__)


def adapted(build: Callable[[], PreTrainedModel] = gpt_neo) -> Any:
    options = config_for(target_modules=["q_proj", "v_proj"], layers_to_transform=[2, 3], task_type="CAUSAL_LM")
    with seeded(1):
        model = get_peft_model(built(build), options)
    return perturb(model).eval()


def naive(model: nn.Module) -> Tensor:
    return naive_cloze(model, byte_level_tokenizer(), ITEMS)


@each_model
def test_each_choice_is_read_as_if_it_stood_alone(
    build: Callable[[], PreTrainedModel], caplog: pytest.LogCaptureFixture
) -> None:
    model, batch = built(build), Cloze(byte_level_tokenizer())(ITEMS)
    with caplog.at_level(logging.WARNING, "bayeslora"), torch.no_grad():
        found = batch.choice_logits(model)
        assert_same_logits(found, naive(model))
        # The same word for each batch would say nothing new.
        batch.choice_logits(model)
    said = [record.getMessage() for record in caplog.records if record.name == "bayeslora"]
    assert [type(model).__name__ in message for message in said] == [True]
    assert batch.suited_to(model).labels.tolist() == [0, 1, 4, 2]


def test_a_window_that_only_long_texts_notice() -> None:
    """Whatever the config calls it, and however long it is: a model is tried again where rows are longer."""
    model, tokenizer = built(lambda: gpt_neo(window=300)), byte_level_tokenizer()
    del model.config.window_size
    short, long = ITEMS[2:], [replace(item, question=f"{item.question} " * 9) for item in ITEMS[2:]]
    assert Cloze(tokenizer)(short)["input_ids"].shape[1] < 128 and Cloze(tokenizer)(long)["input_ids"].shape[1] > 300
    for items, kind in ((short, ClozeBatch), (long, UnpackedBatch), (short, UnpackedBatch)):
        batch = Cloze(tokenizer)(items)
        assert isinstance(batch.suited_to(model), kind)
        with torch.no_grad():
            assert_same_logits(batch.choice_logits(model), naive_cloze(model, tokenizer, items))


def test_probes_reach_to_twice_the_rows_and_are_the_same_in_all_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_llama(max_position_embeddings=8192)
    for rows, longest in ((5, 64), (32, 64), (33, 128), (65, 256), (1000, 2048), (3000, 4096), (6000, 6000)):
        assert probe_lengths(model, rows)[-1] == longest
    assert probe_lengths(model, 200) == [64, 128, 256, 512] == sorted(probe_lengths(model, 200))
    assert probe_lengths(tiny_llama(max_position_embeddings=100), 80) == [64, 100]
    assert probe_lengths(tiny_llama(max_position_embeddings=50), 20) == [50]
    monkeypatch.setattr("bayeslora.scoring.packing.world_size", lambda: 2)
    assert {tuple(probe_lengths(model, rows)) for rows in (5, 33, 1000, 2000)} == {
        (64, 128, 256, 512, 1024, 2048, 4096)
    }


def test_a_model_is_tried_again_for_longer_rows_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    model, tried = tiny_llama(max_position_embeddings=1024), []

    def likelihoods(tokens: int) -> tuple[Tensor, Tensor]:
        tried.append(tokens)
        return torch.arange(8.0).reshape(4, 2), torch.arange(8.0).reshape(4, 2)

    for rows in (20, 10, 60, 30):
        assert packs(model, rows, likelihoods)
    assert tried == [64, 128]
    assert not packs(model, 100, lambda tokens: (torch.rand(4, 2), torch.rand(4, 2)))
    assert not packs(model, 20, likelihoods) and tried == [64, 128]


def test_packed_choices_stay_packed_where_they_are_right() -> None:
    batch = Cloze(byte_level_tokenizer())(ITEMS)
    for dtype in (torch.float32, torch.bfloat16):
        assert batch.suited_to(tiny_llama(vocab_size=320).to(dtype)) is batch
    # But not beyond the positions that the model has.
    assert batch.suited_to(tiny_llama(vocab_size=320, max_position_embeddings=64)) is not batch


def test_draws_and_the_trunk_cache() -> None:
    model = adapted()
    batch = Cloze(byte_level_tokenizer())(ITEMS)
    found = predict(model, batch, 3, seed=7)
    for number in range(3):
        with sampling(model, 1, seed=7, first=number):
            expected = torch.log_softmax(naive(model), -1)
        assert distance(found.samples[number].exp(), expected.exp()) < 1e-5
    cache = TrunkCache(model)
    assert cache.skipped == 2
    for _ in range(2):
        assert distance(predict(model, batch, 3, seed=7, trunk_cache=cache).samples.exp(), found.samples.exp()) < 1e-5


def test_gradients() -> None:
    model = adapted()
    weights = [parameter for parameter in model.parameters() if parameter.requires_grad]
    batch = Cloze(byte_level_tokenizer())(ITEMS[:2])
    loss = smoothed_cross_entropy(batch.choice_logits(model), batch.labels).mean()
    found = torch.autograd.grad(loss, weights, allow_unused=True)
    alone = UnpackedBatch.of(batch).to("cpu").choice_logits(model)
    expected = torch.autograd.grad(smoothed_cross_entropy(alone, batch.labels).mean(), weights, allow_unused=True)
    for one, other in zip(found, expected, strict=True):
        assert (one is None) == (other is None)
        assert one is None or distance(one, other) < 1e-6


def test_laplace_sees_the_rows_of_an_item_together() -> None:
    with seeded(1):
        model = perturb(get_peft_model(built(gpt_neo), LoraConfig(r=2, target_modules=["q_proj", "v_proj"]))).eval()
    batch = Cloze(byte_level_tokenizer())(ITEMS[:1])
    maps = lora_maps(model)
    logits, recording = record(model, batch, maps)
    assert distance(logits, naive(model)[:1, :4]) < 1e-5
    name = next(iter(maps))
    gradient = recording.gradients(logits, torch.tensor([[1.0, 0.0, 0.0, 0.0]]), [name])[name]
    assert gradient.shape[:2] == recording.inputs(name).shape[:2]
    assert len(gradient) == 1
    # Of the first choice's logit: nothing reaches the rows of the others.
    first, *others = gradient.unflatten(1, (4, -1)).unbind(1)
    assert first.abs().sum() > 0
    assert all(other.abs().sum() == 0 for other in others)


@pytest.mark.parametrize("build", [gpt_neo, tiny_llama])
def test_the_trial_leaves_no_traces(build: Callable[..., PreTrainedModel]) -> None:
    model = adapted(build if build is gpt_neo else lambda: tiny_llama(vocab_size=320)).train()
    batch = Cloze(byte_level_tokenizer())(ITEMS)
    forwards: list[bool] = []
    model.get_base_model().register_forward_hook(lambda module, args, output: forwards.append(module.training))
    hold_draw(model, seed=3, step=2, num_samples=2)
    held = [module.noise for module in model.bayeslora_draws.modules()]
    before = [(module.training, getattr(module, "disable_adapters", None)) for module in model.modules()]
    trained = [parameter.requires_grad for parameter in model.parameters()]
    state = torch.random.get_rng_state()
    batch.suited_to(model)
    # Each probe has a forward of packed choices, and one of a row each.
    assert forwards == [False] * (2 if build is gpt_neo else 4)
    assert torch.equal(state, torch.random.get_rng_state())
    assert before == [(module.training, getattr(module, "disable_adapters", None)) for module in model.modules()]
    assert trained == [parameter.requires_grad for parameter in model.parameters()]
    assert all(one is module.noise for one, module in zip(held, model.bayeslora_draws.modules(), strict=True))
    # Both held draws are in the training forward, which is the only one now.
    assert batch.choice_logits(model).shape == (2 * len(ITEMS), 5)
    assert forwards[-1] and sum(forwards) == 1


def test_merged_adapters_stay_merged() -> None:
    model = adapted(lambda: tiny_llama(vocab_size=320))
    model.merge_adapter()
    weight = model.get_base_model().model.layers[2].self_attn.q_proj.base_layer.weight.clone()
    batch = Cloze(byte_level_tokenizer())(ITEMS)
    batch.suited_to(model)
    after = model.get_base_model().model.layers[2].self_attn.q_proj.base_layer
    assert torch.equal(after.weight, weight)


def test_inside_of_draws_as_outside() -> None:
    tokenizer = byte_level_tokenizer()
    inside, outside = adapted(), adapted()
    with torch.no_grad(), sampling(inside, 3, seed=7):
        first = Cloze(tokenizer)(ITEMS).choice_logits(inside)
    Cloze(tokenizer)(ITEMS).suited_to(outside)
    with torch.no_grad(), sampling(outside, 3, seed=7):
        assert torch.equal(first, Cloze(tokenizer)(ITEMS).choice_logits(outside))
