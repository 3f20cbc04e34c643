"""The posterior predictive: its numbers against numpy, its limits, its chunks."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from bayeslora import Predictive, predict, random_factors, sampling
from bayeslora.prediction.predictive import affordable_samples
from bayeslora.scoring import Cloze, Letter
from bayeslora.tasks import Item
from conftest import (
    bayesian,
    config_for,
    distance,
    logits_of,
    metaspace_tokenizer,
    perturb,
    seeded,
    tiny_bert,
    tiny_llama,
    tokens,
)

ITEMS = [
    Item(id="1", question="Which of these is a metal?", choices=("iron", "wood", "glass"), label=0),
    Item(id="2", question="Is the moon a rock?", choices=("Yes", "No"), label=0),
    Item(id="3", question="What do plants need?", choices=("water", "wool", "iron", "paper"), label=0),
]


def as_numpy(predictive: Predictive) -> np.ndarray:
    return predictive.samples.double().exp().numpy()


def entropy(probabilities: np.ndarray) -> np.ndarray:
    safe = np.where(probabilities > 0, probabilities, 1.0)
    return -(probabilities * np.log(safe)).sum(-1)


def random_predictive(samples: int = 6, batch: int = 5, choices: int = 4, scale: float = 2.0) -> Predictive:
    generator = torch.Generator().manual_seed(3)
    logits = scale * torch.randn(samples, batch, choices, generator=generator)
    logits[:, 1, 2:] = -torch.inf
    logits[:, 2, 3:] = -torch.inf
    return Predictive(torch.log_softmax(logits, -1))


@contextmanager
def counted_forwards(model: nn.Module) -> Iterator[list[int]]:
    """Rows that reach the head in each forward."""
    rows: list[int] = []
    handle = model.register_forward_hook(lambda module, args, output: rows.append(output.logits.shape[0]))
    yield rows
    handle.remove()


# --- against numpy -------------------------------------------------------------------------------------------------


def test_probabilities_and_uncertainty_are_numpy_s() -> None:
    predictive = random_predictive()
    p = as_numpy(predictive)
    mean = p.mean(0)
    np.testing.assert_allclose(predictive.probabilities.numpy(), mean, atol=1e-6)
    np.testing.assert_allclose(predictive.log_probabilities.exp().numpy(), mean, atol=1e-6)
    np.testing.assert_allclose(predictive.entropy.numpy(), entropy(mean), atol=1e-6)
    mutual = entropy(mean) - entropy(p).mean(0)
    np.testing.assert_allclose(predictive.mutual_information.numpy(), mutual, atol=1e-6)
    assert mutual.min() > 0.05
    top = mean.argmax(-1)
    spread = np.stack([p[:, row, choice].std() for row, choice in enumerate(top)])
    np.testing.assert_allclose(predictive.spread.numpy(), spread, atol=1e-6)


def test_choices_an_item_does_not_have() -> None:
    predictive = random_predictive()
    assert (predictive.log_probabilities[1, 2:] == -torch.inf).all()
    assert (predictive.probabilities[1, 2:] == 0).all()
    for value in (predictive.entropy, predictive.mutual_information, predictive.spread):
        assert value.isfinite().all()
    np.testing.assert_allclose(predictive.probabilities.sum(-1).numpy(), 1, atol=1e-6)
    assert predictive.entropy[1] <= np.log(2) + 1e-6


def test_entropy_is_in_nats() -> None:
    even = Predictive(torch.full((1, 1, 4), 0.25).log())
    assert even.entropy.item() == pytest.approx(np.log(4))
    sure = Predictive(torch.tensor([[[0.0, -torch.inf]]]))
    assert sure.entropy.item() == 0


def test_mutual_information_is_never_negative_and_zero_without_disagreement() -> None:
    same = random_predictive(1).samples.expand(7, -1, -1)
    assert (Predictive(same).mutual_information >= 0).all()
    assert Predictive(same).mutual_information.max() < 1e-6
    assert torch.equal(random_predictive(1).mutual_information, torch.zeros(5))
    assert (random_predictive(300, scale=1e-4).mutual_information >= 0).all()
    # Two certain draws that disagree: one bit.
    split = Predictive(torch.tensor([[[0.0, -torch.inf]], [[-torch.inf, 0.0]]]))
    assert split.mutual_information.item() == pytest.approx(np.log(2))


def test_concatenated_batches_of_different_width() -> None:
    wide, narrow = random_predictive(choices=4), random_predictive(choices=3)
    both = Predictive.concatenate([wide, narrow])
    assert both.samples.shape == (6, 10, 4)
    assert distance(both.probabilities[:5], wide.probabilities) < 1e-6
    assert distance(both.probabilities[5:, :3], narrow.probabilities) < 1e-6
    assert (both.probabilities[5:, 3] == 0).all()
    assert distance(both.mutual_information[5:], narrow.mutual_information) < 1e-6


# --- predict -------------------------------------------------------------------------------------------------------


def test_predict_is_the_log_softmax_of_each_draw() -> None:
    model, ids = bayesian("bert"), tokens()
    found = predict(model, {"input_ids": ids}, 4, seed=7)
    for number in range(4):
        with sampling(model, 1, seed=7, first=number):
            expected = torch.log_softmax(logits_of(model, ids), -1)
        assert distance(found.samples[number], expected) < 1e-5
    assert found.samples.shape == (4, 3, 3)
    assert found.samples.std(0).max() > 0.05
    assert not found.samples.requires_grad


@pytest.mark.parametrize("name", ["bert", "llama_classifier"])
@pytest.mark.parametrize("chunk_size", [1, 2, 3, 100])
def test_chunks_do_not_change_the_result(name: str, chunk_size: int) -> None:
    model, batch = bayesian(name), {"input_ids": tokens()}
    whole = predict(model, batch, 7, seed=7)
    with counted_forwards(model) as rows:
        chunked = predict(model, batch, 7, seed=7, chunk_size=chunk_size)
    assert distance(chunked.samples, whole.samples) < 1e-5
    assert sum(rows) == 7 * 3
    assert max(rows) == min(chunk_size, 7) * 3


@pytest.mark.parametrize("scoring", [Cloze, Letter])
def test_chunks_do_not_change_choices(scoring: Any) -> None:
    batch = scoring(metaspace_tokenizer())(ITEMS)
    with seeded(100):
        model = get_peft_model(tiny_llama(vocab_size=160), config_for(layers_to_transform=[2, 3]))
    perturb(model).eval()
    whole = predict(model, batch, 5, seed=7)
    for chunk_size in (1, 2):
        assert (
            distance(predict(model, batch, 5, seed=7, chunk_size=chunk_size).probabilities, whole.probabilities) < 1e-5
        )
    assert (whole.probabilities[1, 2:] == 0).all()
    assert whole.mutual_information.isfinite().all()
    assert whole.mutual_information.min() > 0


def test_seed_decides() -> None:
    model, batch = bayesian("bert"), {"input_ids": tokens()}
    assert torch.equal(predict(model, batch, 4, seed=1).samples, predict(model, batch, 4, seed=1).samples)
    assert distance(predict(model, batch, 4, seed=1).samples, predict(model, batch, 4, seed=2).samples) > 0.05
    more = predict(model, batch, 6, seed=1).samples
    assert distance(more[:4], predict(model, batch, 4, seed=1).samples) < 1e-5


def test_no_samples_is_the_mean() -> None:
    model, ids = bayesian("bert", lora_dropout=0.5), tokens()
    mean = torch.log_softmax(logits_of(model, ids), -1)
    model.train()
    found = predict(model, {"input_ids": ids}, 0)
    assert found.samples.shape == (1, 3, 3)
    assert torch.equal(found.samples[0], mean)
    assert torch.equal(found.mutual_information, torch.zeros(3))


def test_train_mode_does_not_matter_and_comes_back() -> None:
    model, batch = bayesian("bert", lora_dropout=0.5), {"input_ids": tokens()}
    expected = predict(model, batch, 3)
    model.train()
    model.base_model.model.classifier.eval()
    modes = [module.training for module in model.modules()]
    assert torch.equal(predict(model, batch, 3).samples, expected.samples)
    assert [module.training for module in model.modules()] == modes


def test_mode_comes_back_after_an_error() -> None:
    model = bayesian().train()
    with pytest.raises(ValueError, match="class logits"):
        predict(model, {"input_ids": tokens()}, 3)
    assert model.training
    assert all(not factor.explicit for factor in random_factors(model))


def test_plain_models_have_no_epistemic_uncertainty() -> None:
    lora = perturb(get_peft_model(tiny_bert(), LoraConfig(target_modules=["query"]))).eval()
    for model in (lora, tiny_bert()):
        found = predict(model, {"input_ids": tokens()}, 5)
        assert torch.equal(found.samples[0], torch.log_softmax(logits_of(model), -1))
        assert torch.equal(found.mutual_information, torch.zeros(3))


def test_disabled_adapters_predict_as_the_base_model() -> None:
    model, ids = bayesian("bert"), tokens(4)
    expected = torch.softmax(logits_of(tiny_bert(), ids), -1)
    for num_samples in (1, 2, 3):
        with model.disable_adapter():
            found = predict(model, {"input_ids": ids}, num_samples)
        assert distance(found.probabilities, expected) < 1e-5
        assert found.mutual_information.max() < 1e-5


def test_merged_adapters_predict_as_the_merged_model() -> None:
    model, ids = bayesian("bert"), tokens(4)
    expected = torch.softmax(logits_of(model, ids), -1)
    model.merge_adapter()
    for num_samples in (1, 2, 3):
        found = predict(model, {"input_ids": ids}, num_samples)
        assert distance(found.probabilities, expected) < 1e-4
        assert found.mutual_information.max() < 1e-5


def test_a_tiny_memory_limit_takes_one_draw_at_a_time() -> None:
    model, batch = bayesian("bert"), {"input_ids": tokens()}
    with counted_forwards(model) as rows:
        found = predict(model, batch, 5, memory_limit=1)
    assert rows == [3] * 5
    with counted_forwards(model) as rows:
        whole = predict(model, batch, 5)
    assert rows == [15]
    assert distance(found.samples, whole.samples) < 1e-5


def test_the_memory_limit_counts_rows_and_length() -> None:
    model = bayesian("bert")

    def chunk(rows: int, length: int) -> int:
        with counted_forwards(model) as seen:
            predict(model, {"input_ids": tokens(rows, length)}, 64, memory_limit=1_000_000)
        return seen[0] // rows

    assert 64 > chunk(4, 10) > chunk(16, 10) >= 1
    assert chunk(4, 10) > chunk(4, 40) >= 1


def test_on_a_cpu_more_draws_share_a_forward_of_few_tokens_than_of_many() -> None:
    model = bayesian("bert")
    # 48 numbers of 4 bytes per token in the widest activation, 8 MiB of them at most.
    few, many = (affordable_samples(model, torch.zeros(8, length, dtype=torch.long), 1) for length in (50, 100))
    assert few == 2**23 // (8 * 50 * 48 * 4) and many == 2**23 // (8 * 100 * 48 * 4)
    assert affordable_samples(model, torch.zeros(8, 50, dtype=torch.long), 1, 2**40) > 1000 * few
    assert affordable_samples(model, torch.zeros(8, 10**6, dtype=torch.long), 1) == 1


def test_labels_in_the_inputs_are_not_used() -> None:
    model = bayesian("bert")
    with_labels = predict(model, {"input_ids": tokens(), "labels": torch.tensor([0, 1, 2])}, 3)
    assert torch.equal(with_labels.samples, predict(model, {"input_ids": tokens()}, 3).samples)


def test_refusals() -> None:
    model, batch = bayesian("bert"), {"input_ids": tokens()}
    with pytest.raises(ValueError, match=r"num_samples must be at least 0.*got -1"):
        predict(model, batch, -1)
    with pytest.raises(ValueError, match="chunk_size must be at least 1, got 0"):
        predict(model, batch, 3, chunk_size=0)
    with pytest.raises(ValueError, match=r"Letter or Cloze"):
        predict(bayesian(), batch, 0)
    with sampling(model, 1), pytest.raises(ValueError, match="nested"):
        predict(model, batch, 3)
