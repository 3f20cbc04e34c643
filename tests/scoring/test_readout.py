"""What is read of a model is computed, exactly, and the rest of its top is not."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from test_scoring import ITEMS, NAIVE, SIZES
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from bayeslora import predict, sampling
from bayeslora.adapters.draws import find_draws
from bayeslora.methods.c_lora import CLoraConfig
from bayeslora.models.layers import outermost_layers
from bayeslora.scoring import Cloze, Letter
from bayeslora.scoring.top_layer import head_of_words, last_positions
from conftest import (
    CAUSAL,
    HIDDEN,
    LAYERS,
    MODELS,
    bayesian,
    byte_level_tokenizer,
    config_for,
    distance,
    logits_of,
    perturb,
    seeded,
    tiny_llama,
    tokens,
)

COUNT = 2
UPPER = [LAYERS - 2, LAYERS - 1]
each_scoring = pytest.mark.parametrize("scoring", [Cloze, Letter], ids=lambda scoring: scoring.name)


def adapted(name: str = "llama", **options: Any) -> nn.Module:
    with seeded(100):
        model = get_peft_model(MODELS[name](**SIZES), config_for(name, layers_to_transform=UPPER, **options))
    return perturb(model).eval()


@contextmanager
def positions_seen(module: nn.Module) -> Iterator[list[int]]:
    """How many positions each forward of `module` has, over all rows."""
    seen: list[int] = []
    handle = module.register_forward_hook(lambda _, args, output: seen.append(output[..., 0].numel()))
    yield seen
    handle.remove()


def top_and_head(model: Any) -> tuple[nn.Module, nn.Module]:
    """The MLP of the top layer, and the head."""
    return outermost_layers(model)[-1].mlp, model.get_base_model().get_output_embeddings()  # type: ignore[return-value]


@each_scoring
@pytest.mark.parametrize("name", CAUSAL)
def test_chunks_of_samples_are_a_plain_loop_over_draws_and_items(name: str, scoring: Any) -> None:
    model, tokenizer = adapted(name), byte_level_tokenizer()
    found = predict(model, scoring(tokenizer)(ITEMS), 3, seed=7, chunk_size=2).samples
    for number in range(3):
        with sampling(model, 1, seed=7, first=number):
            expected = torch.log_softmax(NAIVE[scoring](model, tokenizer, ITEMS), -1)
        there = expected.isfinite()
        assert distance(found[number][there], expected[there]) < 2e-5
    assert distance(found[0][there], found[1][there]) > 1e-3


@pytest.mark.parametrize("name", CAUSAL)
def test_the_top_layer_and_the_head_see_what_is_read(name: str) -> None:
    model, tokenizer = adapted(name), byte_level_tokenizer()
    mlp, head = top_and_head(model)
    with positions_seen(mlp) as above, positions_seen(head) as read:
        predict(model, Letter(tokenizer)(ITEMS), 3)
    assert (above, read) == ([3 * 4], [3 * 4])
    batch = Cloze(tokenizer)(ITEMS).suited_to(model)
    answers = [[len(tokenizer(f" {choice}")["input_ids"]) for choice in item.choices] for item in ITEMS]
    # The last token of the question predicts the first one of every choice.
    needed = sum(1 + sum(count - 1 for count in item) for item in answers)
    with positions_seen(mlp) as above, positions_seen(head) as read:
        predict(model, batch, 3)
    assert above == [3 * 4 * (1 + max(map(sum, answers)))]
    assert 3 * needed <= read[0] < 3 * (needed + 4)


@pytest.mark.parametrize("name", CAUSAL)
@pytest.mark.parametrize("masked", [False, True])
def test_the_last_positions_are_those_of_the_whole_model(name: str, masked: bool) -> None:
    model, ids = bayesian(name), tokens()
    options: dict[str, Any] = {"use_cache": False}
    if masked:
        options["attention_mask"] = torch.ones_like(ids)
        options["attention_mask"][0, :3] = 0
    expected = logits_of(model, ids, **options)
    for count in (1, COUNT, ids.shape[1]):
        with last_positions(model, count):
            found = logits_of(model, ids, **options)
        assert distance(found[:, -count:], expected[:, -count:]) < 2e-5
    assert distance(logits_of(model, ids, **options), expected) == 0


@pytest.mark.parametrize("name", [*CAUSAL, "bert"])
def test_the_first_random_layer_projects_copies_once(name: str) -> None:
    model, ids = bayesian(name, layers_to_transform=UPPER), tokens()
    layers, draws = outermost_layers(model)[-2:], find_draws(model)
    assert draws is not None
    counts = []
    with torch.no_grad(), sampling(model, 4, seed=7):
        for shared in ([], layers[:1]):
            with draws.copies_computed_once(shared), FlopCounterMode(display=False) as counter:
                found = logits_of(model, ids)
            counts.append((counter.get_total_flops(), found))
    assert distance(counts[0][1], counts[1][1]) < 2e-5
    # Queries, keys and values of 3 of 4 copies; with fewer heads of keys and values than of queries a bit less.
    projections = 2 * ids.numel() * HIDDEN * HIDDEN * (3 if name in ("gpt2", "bert") else 2)
    assert counts[0][0] - counts[1][0] == 3 * projections


def test_layers_that_look_back_a_few_tokens_only() -> None:
    kinds = ["full_attention", "full_attention", "full_attention", "sliding_attention"]
    model = MODELS["gemma"](sliding_window=4, layer_types=kinds).eval()
    ids = tokens(length=12)
    expected = logits_of(model, ids, use_cache=False)
    with last_positions(model, 1), positions_seen(outermost_layers(model)[-1].mlp) as seen:
        found = logits_of(model, ids, use_cache=False)
    assert distance(found[:, -1], expected[:, -1]) < 2e-5
    assert seen == [3]


def runs_whole(model: nn.Module) -> bool:
    """Whether all positions of the last layer are computed although one is asked for."""
    with last_positions(model, 1), positions_seen(outermost_layers(model)[-1].mlp) as seen:
        model(input_ids=tokens(), use_cache=False)
    return seen == [21]


@torch.no_grad()
def test_where_it_does_not_apply_nothing_changes() -> None:
    model = bayesian()
    assert not runs_whole(model)
    with torch.enable_grad():
        assert runs_whole(model)
    assert runs_whole(model.train())
    with seeded(1):
        contextual = get_peft_model(tiny_llama(), CLoraConfig(r=2, target_modules=["q_proj"])).eval()
    assert runs_whole(contextual)
    plain = get_peft_model(tiny_llama(), LoraConfig(r=2, target_modules=["q_proj"])).eval()
    assert not runs_whole(plain)
    outermost_layers(plain)[-1].forward = outermost_layers(plain)[-1].forward
    assert runs_whole(plain), "a wrapper had put a forward of its own there"


def test_no_cache_is_left_behind_and_a_cache_of_the_caller_is_respected() -> None:
    model, ids = bayesian(), tokens()
    with torch.no_grad(), last_positions(model, 1):
        output = model(input_ids=ids, use_cache=True)
    assert output.past_key_values.get_seq_length(LAYERS - 1) == ids.shape[1]
    assert distance(output.logits, logits_of(model, ids)) < 2e-5


def test_a_head_of_its_own_kind_is_left_alone() -> None:
    words = torch.tensor([5, 3])
    model = bayesian()
    expected = logits_of(model)[..., words]
    with head_of_words(model, words) as chosen:
        found = logits_of(model)
    assert chosen and distance(found, expected) < 1e-5
    for options in ({"target_modules": ["lm_head"]}, {"modules_to_save": ["lm_head"]}):
        with head_of_words(bayesian(**options), words) as chosen:  # type: ignore[arg-type]
            assert not chosen


@each_scoring
def test_an_adapted_head_scores_as_a_loop(scoring: Any) -> None:
    model, tokenizer = adapted(target_modules=["lm_head"]), byte_level_tokenizer()
    found = predict(model, scoring(tokenizer)(ITEMS), 2, seed=7).samples
    with sampling(model, 1, seed=7, first=1):
        expected = torch.log_softmax(NAIVE[scoring](model, tokenizer, ITEMS), -1)
    there = expected.isfinite()
    assert distance(found[1][there], expected[there]) < 2e-5


@each_scoring
def test_gradients_are_those_of_the_whole_head(scoring: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model, batch = adapted(), scoring(byte_level_tokenizer())(ITEMS)

    def gradients() -> list[Tensor]:
        model.zero_grad()
        nn.functional.cross_entropy(batch.choice_logits(model), batch.labels).backward()
        return [p.grad.clone() for p in model.parameters() if p.grad is not None]

    found = gradients()
    monkeypatch.setattr("bayeslora.scoring.top_layer._replaceable", lambda *_: False)
    for one, other in zip(found, gradients(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
    assert max(gradient.abs().max() for gradient in found) > 1e-4
