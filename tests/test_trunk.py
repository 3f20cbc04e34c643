"""The trunk cache is exact, skips what it says, and stays out of the way where it does not apply."""

import pytest
import torch
from peft import get_peft_model

from bayeslora import predict
from bayeslora.scoring import Cloze, Letter
from bayeslora.tasks import Item
from bayeslora.trunk import TrunkCache, frozen_trunk
from conftest import bayesian, byte_level_tokenizer, config_for, distance, tiny_gpt2, tiny_llama

ITEMS = [
    Item("a", "What do plants need to grow?", ("sunlight and water", "iron", "wood"), 0),
    Item("b", "Which of these is a metal?", ("glass", "iron"), 1),
    Item("c", "The sun is what?", ("a star", "a rock", "paper", "wool"), 0),
    Item("d", "The moon is what?", ("a rock", "wood"), 0),
]


@pytest.fixture
def tokenizer():
    return byte_level_tokenizer()


def _adapted(tokenizer, options):
    base = tiny_llama(vocab_size=len(tokenizer), max_position_embeddings=256)
    return get_peft_model(base, config_for("llama", layers_to_transform=[2, 3], **options)).eval()


@pytest.mark.parametrize("scoring", [Cloze, Letter])
def test_cached_predictions_equal_uncached_ones_in_any_batch(tokenizer, scoring):
    model, collate = _adapted(tokenizer, {}), scoring(tokenizer)
    cache = TrunkCache(model)
    for items in (ITEMS[:2], ITEMS[2:]):
        predict(model, collate(items), num_samples=3, trunk_cache=cache)
    assert len(cache) == 4 and cache.skipped == 2 and cache.size > 0
    mixed = collate([ITEMS[3], ITEMS[0], ITEMS[2]])
    plain = predict(model, mixed, num_samples=3, chunk_size=2)
    cached = predict(model, mixed, num_samples=3, chunk_size=2, trunk_cache=cache)
    assert distance(plain.probabilities, cached.probabilities) < 1e-6
    assert plain.probabilities.std() > 1e-3


def test_the_frozen_layers_do_not_run_again(tokenizer):
    model, collate = _adapted(tokenizer, {}), Cloze(tokenizer)
    calls = []
    layers = model.get_base_model().model.layers
    for number, layer in enumerate(layers):
        layer.self_attn.register_forward_hook(lambda *_, number=number: calls.append(number))
    cache = TrunkCache(model)
    predict(model, collate(ITEMS), num_samples=0, trunk_cache=cache)
    assert calls == [0, 1, 2, 3]
    calls.clear()
    predict(model, collate(ITEMS[1:3]), num_samples=0, trunk_cache=cache)
    assert calls == [2, 3]


def test_gradients_with_the_cache_equal_those_without(tokenizer):
    model, collate = _adapted(tokenizer, {}), Cloze(tokenizer)
    cache, gradients = TrunkCache(model), []
    predict(model, collate(ITEMS), num_samples=0, trunk_cache=cache)
    for serving in (False, True):
        model.zero_grad()
        batch = collate(ITEMS[:3])
        if serving:
            with cache.serve(batch):
                logits = batch.choice_logits(model)
        else:
            logits = batch.choice_logits(model)
        torch.nn.functional.cross_entropy(logits, batch.labels).backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    assert gradients[0].abs().max() > 1e-4
    assert distance(gradients[0], gradients[1]) < 1e-6


def test_another_method_on_the_same_layers_reads_the_same_items(tokenizer):
    collate = Cloze(tokenizer)
    one, other = _adapted(tokenizer, {}), _adapted(tokenizer, {"r": 2})
    cache = TrunkCache(one)
    predict(one, collate(ITEMS), num_samples=0, trunk_cache=cache)
    rebound = cache.rebind(other)
    assert len(rebound) == 4
    expected = predict(other, collate(ITEMS), num_samples=0).probabilities
    assert distance(predict(other, collate(ITEMS), num_samples=0, trunk_cache=rebound).probabilities, expected) < 1e-6
    with pytest.raises(ValueError, match="2 layers in the cache"):
        cache.rebind(bayesian("llama"))


def test_there_is_no_trunk_to_cache_where_something_below_changes(tokenizer):
    assert frozen_trunk(bayesian("llama")) == []
    assert frozen_trunk(get_peft_model(tiny_gpt2(), config_for("gpt2", layers_to_transform=[2]))) != []
    dropping = get_peft_model(tiny_gpt2(resid_pdrop=0.1), config_for("gpt2", layers_to_transform=[2]))
    assert frozen_trunk(dropping) == []
    trained_embedding = get_peft_model(
        tiny_llama(), config_for("llama", layers_to_transform=[2], modules_to_save=["embed_tokens"])
    )
    assert frozen_trunk(trained_embedding) == []
