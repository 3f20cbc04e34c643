"""Option vectors: what is read is what the layers hold when each choice is read alone."""

from pathlib import Path

import pytest
import torch

from bayeslora.models.layers import outermost_layers
from bayeslora.readouts.features import FeatureReader
from bayeslora.readouts.hidden import differentiable_vectors, item_vectors, read_layers, vectors_together
from bayeslora.scoring import Cloze
from bayeslora.tasks import Item
from conftest import CAUSAL, MODELS, byte_level_tokenizer

ITEMS = [
    Item("a", "What do plants need?", ("sunlight and water", "iron", "the moon"), 0),
    Item("b", "Is the sun a star? Say so.", ("Yes", "No"), 0),
]


def _scoring() -> Cloze:
    return Cloze(byte_level_tokenizer(), 512)


def _model(name: str):
    return MODELS[name](vocab_size=len(byte_level_tokenizer()), max_position_embeddings=512)


@pytest.mark.parametrize("name", CAUSAL)
def test_vectors_are_those_of_each_choice_read_alone(name: str) -> None:
    model, scoring = _model(name), _scoring()
    found = item_vectors(model, scoring(ITEMS), [1, 3])
    for item, vectors in zip(ITEMS, found, strict=True):
        prompt = scoring.encode(scoring.prompt(item))
        for number, choice in enumerate(item.choices):
            whole = scoring.encode(f"{scoring.prompt(item)} {choice}")
            with torch.no_grad():
                output = model(input_ids=torch.tensor([whole]), output_hidden_states=True)
            states = torch.stack([output.hidden_states[layer][0] for layer in (1, 3)])
            own = states[:, len(prompt) :]
            torch.testing.assert_close(vectors.hidden[number + 1, :, 0], own.mean(1), rtol=1e-3, atol=2e-4)
            torch.testing.assert_close(vectors.hidden[number + 1, :, 1], own[:, -1], rtol=1e-3, atol=2e-4)
            torch.testing.assert_close(vectors.hidden[0, :, 1], states[:, len(prompt) - 1], rtol=1e-3, atol=2e-4)
            tokens = torch.tensor(whole[len(prompt) :])
            scores = output.logits[0, len(prompt) - 1 : -1].log_softmax(-1).gather(-1, tokens.unsqueeze(-1))[:, 0]
            expected = torch.stack([scores.mean(), scores.sum(), scores.min(), torch.tensor(float(len(tokens)))])
            assert vectors.likelihood is not None
            torch.testing.assert_close(vectors.likelihood[number], expected, rtol=1e-3, atol=2e-4)


def test_one_row_for_each_choice_gives_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    model, batch = _model("llama"), _scoring()(ITEMS)
    packed = item_vectors(model, batch, [2])
    monkeypatch.setattr("bayeslora.scoring.cloze.packs", lambda *_: False)
    for one, other in zip(packed, item_vectors(model, batch, [2]), strict=True):
        torch.testing.assert_close(one.hidden, other.hidden, rtol=1e-3, atol=2e-4)
        torch.testing.assert_close(one.likelihood, other.likelihood, rtol=1e-3, atol=2e-4)


def test_layers_above_what_is_read_run_only_for_the_likelihood() -> None:
    model, batch = _model("llama"), _scoring()(ITEMS)
    batch.suited_to(model)
    ran: list[int] = []
    for number, layer in enumerate(outermost_layers(model)):
        layer.register_forward_pre_hook(lambda *_, number=number: ran.append(number))
    without = item_vectors(model, batch, [1, 2], likelihood=False)
    assert ran == [0, 1] and without[0].likelihood is None
    ran.clear()
    whole = item_vectors(model, batch, [1, 2])
    assert ran == [0, 1, 2, 3] and torch.equal(whole[0].hidden, without[0].hidden)
    assert read_layers(model) == [1, 2, 3]


@pytest.mark.parametrize("name", CAUSAL)
def test_with_a_graph_they_are_the_same_and_nothing_above_runs(name: str) -> None:
    model, scoring = _model(name).eval(), _scoring()
    batch = scoring(ITEMS).suited_to(model)
    widths: list[int] = []
    model.get_output_embeddings().register_forward_hook(lambda *given: widths.append(given[-1].shape[-1]))
    vectors = differentiable_vectors(model, batch, [1, 3])  # type: ignore[arg-type]
    assert widths == [vectors.shape[-1]]  # Hidden states, not words.
    for number, expected in enumerate(item_vectors(model, scoring(ITEMS), [1, 3])):
        count = len(expected.hidden)
        torch.testing.assert_close(vectors[number, :count].detach(), expected.hidden, rtol=1e-4, atol=1e-5)
    vectors.sum().backward()
    gradients = [
        any(part.grad is not None and float(part.grad.abs().max()) > 0 for part in layer.parameters())
        for layer in outermost_layers(model)
    ]
    assert gradients == [True, True, True, False]


@pytest.mark.parametrize("name", CAUSAL)
def test_items_of_one_forward_have_the_numbers_that_they_have_alone(name: str) -> None:
    model, scoring = _model(name).eval(), _scoring()
    items = [scoring([item]) for item in [*ITEMS, *ITEMS[::-1]]]
    if any(item.suited_to(model) is not item for item in items):
        pytest.skip("this model does not read packed choices")
    for found, item in zip(vectors_together(model, items, [1, 3]), items, strict=True):
        alone = item_vectors(model, item, [1, 3])[0]
        torch.testing.assert_close(found.hidden, alone.hidden, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(found.likelihood, alone.likelihood, rtol=1e-5, atol=1e-5)
    without = vectors_together(model, items, [1, 3], likelihood=False)
    assert without[3].likelihood is None
    torch.testing.assert_close(without[3].hidden, vectors_together(model, items[3:], [1, 3])[0].hidden)


@pytest.mark.parametrize(("tokens", "forwards"), [(512, 1), (40, 2), (1, 2)])
def test_items_share_a_forward(tokens: int, forwards: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bayeslora.readouts.features._TOKENS", tokens)
    model, ran = _model("llama"), []
    reader = FeatureReader(model, _scoring(), likelihood=False)
    _scoring()(ITEMS[:1]).suited_to(model)  # Tried before.
    outermost_layers(model)[0].register_forward_pre_hook(lambda *_: ran.append(1))
    reader(ITEMS)
    assert len(ran) == forwards


def test_a_model_that_reads_no_packed_choices_reads_items_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = FeatureReader(_model("llama"), _scoring())(ITEMS)
    monkeypatch.setattr("bayeslora.scoring.cloze.packs", lambda *_: False)
    found = FeatureReader(_model("llama"), _scoring())(ITEMS)
    for name, block in expected.hidden.items():
        torch.testing.assert_close(found.hidden[name], block, rtol=1e-3, atol=2e-4)


def test_items_are_read_once_also_by_another_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = _model("llama")
    first = FeatureReader(model, _scoring(), folder=tmp_path)(ITEMS)
    later = FeatureReader(model, _scoring(), folder=tmp_path)
    monkeypatch.setattr("bayeslora.readouts.features.vectors_together", None)
    again = later(ITEMS[::-1])
    for name, block in first.hidden.items():
        assert torch.equal(again.hidden[name].flip(0), block)
    assert torch.equal(again.numbers["likelihood"].flip(0), first.numbers["likelihood"])
    assert first.mask.tolist() == [[True] * 3, [True, True, False]]


def test_other_weights_have_another_folder(tmp_path: Path) -> None:
    FeatureReader(_model("llama"), _scoring(), folder=tmp_path)(ITEMS)
    other = MODELS["llama"](seed=1, vocab_size=len(byte_level_tokenizer()), max_position_embeddings=512)
    FeatureReader(other, _scoring(), folder=tmp_path)(ITEMS)
    assert len(list(tmp_path.iterdir())) == 2


def test_an_item_reads_the_same_beside_any_other(tmp_path: Path) -> None:
    reader = FeatureReader(_model("llama"), _scoring())
    alone, together = FeatureReader(_model("llama"), _scoring())(ITEMS[1:]), reader(ITEMS)
    for name, block in alone.hidden.items():
        torch.testing.assert_close(block[0, :2], together.hidden[name][1, :2], rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="no items"):
        reader([])
