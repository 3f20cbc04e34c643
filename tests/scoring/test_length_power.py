"""Cloze over a power of the length: 1 is the mean per token, 0 the sum, packed or not."""

import pytest
import torch

from bayeslora.runs.config import TaskConfig
from bayeslora.runs.loading import scoring_of
from bayeslora.scoring import Cloze
from bayeslora.tasks import Item
from conftest import byte_level_tokenizer, tiny_llama

ITEMS = [Item("a", "What do plants need?", ("sunlight and water", "iron", "the moon"), 0)]


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("power", [0.0, 0.5, 1.0, 1.5])
def test_scores_are_sums_over_a_power_of_the_length(
    packed: bool, power: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = byte_level_tokenizer()
    model = tiny_llama(vocab_size=len(tokenizer), max_position_embeddings=512)
    monkeypatch.setattr("bayeslora.scoring.cloze.packs", lambda *_: packed)
    mean = Cloze(tokenizer)
    with torch.no_grad():
        means = mean(ITEMS).raw_logits(model)
        found = Cloze(tokenizer, length_power=power)(ITEMS).raw_logits(model)
    prompt = mean.encode(mean.prompt(ITEMS[0]))
    lengths = [len(mean.encode(f"{mean.prompt(ITEMS[0])} {choice}")) - len(prompt) for choice in ITEMS[0].choices]
    torch.testing.assert_close(found, means * torch.tensor([lengths]) ** (1 - power))


def test_it_is_an_option_of_cloze_alone() -> None:
    tokenizer = byte_level_tokenizer()
    assert scoring_of(TaskConfig(length_power=0.5), tokenizer, 64).length_power == 0.5  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match="length_power is for scoring cloze, not for letter"):
        scoring_of(TaskConfig(scoring="letter", length_power=0.5), tokenizer, 64)
