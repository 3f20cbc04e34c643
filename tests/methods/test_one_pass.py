"""One pass: the reduced posterior against dense algebra, and what a prediction costs and says."""

import pytest
import torch
from peft import get_peft_model
from torch import nn

from bayeslora.methods import TrainingResult
from bayeslora.methods.gauss_newton import GaussNewton, outer_maps
from bayeslora.methods.laplace_approximation.hidden import (
    HiddenGaussian,
    hidden_curvature,
    hidden_scores,
    middle_layer,
)
from bayeslora.methods.one_pass import OnePass, _matched, _posterior
from bayeslora.scoring import Classification, Cloze
from bayeslora.scoring.trunk_cache import TrunkCache
from bayeslora.tasks import Item
from conftest import (
    byte_level_tokenizer,
    config_for,
    perturb,
    seeded,
    tiny_bert,
    tiny_llama,
    wordpiece_tokenizer,
)

WORDS = ("wood", "glass", "a metal", "water", "wool and paper")


def items(count: int, choices: int = 4, first: int = 0) -> list[Item]:
    return [
        Item(
            id=str(number),
            question=f"Which of these is number {number}?" + " Yes" * (number % 3),
            choices=tuple(WORDS[(number + shift) % len(WORDS)] for shift in range(choices - number % 2)),
            label=number % 2,
        )
        for number in range(first, first + count)
    ]


@pytest.fixture(scope="module")
def cloze():
    with seeded(3):
        model = get_peft_model(tiny_llama(vocab_size=320), config_for("llama", layers_to_transform=[1, 2, 3]))
    return perturb(model).eval(), Cloze(byte_level_tokenizer(320))


def trained(scoring, rows, size: int = 4, cache=None) -> TrainingResult:
    def batches():
        return (scoring(rows[start : start + size]) for start in range(0, len(rows), size))

    return TrainingResult(batches, len(rows), None, cache, 0)


def test_the_covariance_is_that_of_dense_algebra(cloze):
    """C X (G + I / v)^-1 X^T C times the scale, with X the mean hidden states of each choice's tokens over their
    standard deviation."""
    model, scoring = cloze
    layer = middle_layer(model, outer_maps(model).values())
    assert layer == 2
    train, new = items(12), scoring(items(3, first=40))
    curvature = hidden_curvature(model, [scoring(train[:5]), scoring(train[5:])], layer)
    found = HiddenGaussian(layer, curvature, 0.7, 3.0).scores(model, new)[1]

    def vectors(item: Item) -> torch.Tensor:
        rows, context = [], len(scoring.encode(scoring.prompt(item)))
        for choice in item.choices:
            ids = torch.tensor([scoring.encode(f"{scoring.prompt(item)} {choice}")])
            states = model(input_ids=ids, output_hidden_states=True).hidden_states[layer]
            rows.append(states[0, context:].mean(0))
        return torch.stack(rows).double().detach()

    raw = [vectors(item) for item in train]
    std = torch.cat(raw).std(0, correction=0)
    gauss_newton = torch.zeros(len(std), len(std)).double()
    for own, item in zip(raw, train, strict=True):
        p = scoring([item]).choice_logits(model).detach().double().softmax(-1)[0]
        hessian = torch.diag(p) - torch.outer(p, p)
        gauss_newton += (own / std).T @ hessian @ (own / std)
    inverse = torch.linalg.inv(gauss_newton + torch.eye(len(std)) / 0.7)
    for row, item in enumerate(items(3, first=40)):
        own = vectors(item) / std
        own = own - own.mean(0)
        count = len(own)
        torch.testing.assert_close(
            found.posterior[row, :count, :count], 3.0 * own @ inverse @ own.T, rtol=2e-3, atol=1e-4
        )
        torch.testing.assert_close(found.prior[row, :count, :count], 2.1 * own @ own.T, rtol=2e-3, atol=1e-4)
        assert found.posterior[row, count:].abs().sum() == 0


def test_the_whole_posterior_gives_mean_ratio_and_variance(cloze):
    model, scoring = cloze
    rows = items(24)
    state = OnePass(prior_scale=1.0).fit_posterior(model, trained(scoring, rows))
    whole = GaussNewton(prior_scale=1.0)
    reference = whole.fit_posterior(model, trained(scoring, rows))
    batch = scoring(rows)
    one = OnePass().predict(model, batch, 10, 0, state=state)
    other = whole.predict(model, batch, 10, 0, state=reference)
    ratios = [found.further["variance_ratio"].mean() for found in (one, other)]
    torch.testing.assert_close(*ratios, rtol=1e-3, atol=1e-3)
    variances = [found.root.square().sum((-2, -1)).mean() for found in (one, other)]
    torch.testing.assert_close(*variances, rtol=1e-3, atol=1e-5)
    assert (one.mutual_information > 0).all()


def test_a_prediction_is_one_forward_without_gradients_and_the_same_in_any_batch(cloze):
    model, scoring = cloze
    method = OnePass(prior_scale=1.0)
    state = method.fit_posterior(model, trained(scoring, items(12)))
    calls: list[bool] = []
    handle = model.get_base_model().lm_head.register_forward_hook(lambda *_: calls.append(torch.is_grad_enabled()))
    new = items(4, first=30)
    together = method.predict(model, scoring(new), 10, 0, state=state)
    assert calls == [False] and method.forwards_used(10) == 1
    handle.remove()
    for row, item in enumerate(new):
        alone = method.predict(model, scoring([item]), 3, 7, state=state)
        count = len(item.choices)
        torch.testing.assert_close(alone.probabilities[0], together.probabilities[row, :count], atol=2e-3, rtol=0)
        torch.testing.assert_close(
            alone.further["variance_ratio"][0], together.further["variance_ratio"][row], atol=1e-4, rtol=1e-3
        )
    mean = method.predict(model, scoring(new), 0, 0, state=state)
    torch.testing.assert_close(mean.probabilities.sum(-1), torch.ones(4))
    assert mean.further == {}


def test_a_kept_trunk_changes_nothing(cloze):
    model, scoring = cloze
    cache = TrunkCache(model)
    batch, layer = scoring(items(5)), middle_layer(model, outer_maps(model).values())
    expected = hidden_scores(model, batch, 1)
    for _ in range(2):
        found = hidden_scores(model, batch, 1, cache)
        torch.testing.assert_close(found.vectors, expected.vectors, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(found.logits, expected.logits, atol=1e-5, rtol=1e-4)
    assert cache.served and layer > 1


def test_more_items_leave_less_variance(cloze):
    model, scoring = cloze
    new, ratios = scoring(items(3, first=50)), []
    for count in (2, 8, 30):
        curvature = hidden_curvature(model, [scoring(items(count))], 2)
        curvature = type(curvature)(torch.ones_like(curvature.std), curvature.values, curvature.vectors)
        ratios.append(HiddenGaussian(2, curvature, 1.0, 1.0).scores(model, new)[1].ratio)
    assert (ratios[0] > ratios[1]).all() and (ratios[1] > ratios[2]).all()


def test_classes_are_read_from_the_whole_text():
    scoring = Classification(wordpiece_tokenizer())
    with seeded(4):
        base = tiny_bert(vocab_size=len(scoring.tokenizer), hidden_act="gelu")
        model = perturb(get_peft_model(base, config_for("bert"))).eval()
    rows = [
        Item(id=str(number), question=f"The sun is {'a' * (number % 4 + 1)} star", choices=("x", "y", "z"), label=0)
        for number in range(12)
    ]
    method = OnePass(prior_scale=1.0)
    state = method.fit_posterior(model, trained(scoring, rows))
    found = method.predict(model, scoring(rows), 10, 0, state=state)
    ratio = found.further["variance_ratio"]
    assert ((ratio > 0) & (ratio <= 1)).all() and (found.mutual_information > 0).all()
    alone = method.predict(model, scoring(rows[2:3]), 10, 0, state=state)
    torch.testing.assert_close(alone.further["variance_ratio"][0], ratio[2], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("ratio", [0.2, 0.5, 0.95])
def test_the_prior_variance_is_that_of_the_ratio(ratio):
    generator = torch.Generator().manual_seed(0)
    along = torch.rand(20, 6, generator=generator).double()
    prior, values = along.sum(1), torch.logspace(-2, 3, 6).double()
    found = _matched(prior, along, values, ratio)
    reached = _posterior(prior, along, values, found) / prior
    assert abs(float(reached.mean()) - ratio) < 1e-4


def test_a_ratio_out_of_reach_is_met_as_nearly_as_can_be():
    along = torch.tensor([[0.1, 0.1]]).double()
    found = _matched(torch.tensor([1.0]).double(), along, torch.ones(2).double(), 0.1)
    assert float(_posterior(torch.tensor([1.0]).double(), along, torch.ones(2).double(), found)) == pytest.approx(0.8)


def test_without_layers_it_says_what_can_be_used():
    with pytest.raises(ValueError, match="GaussNewton"):
        middle_layer(nn.Linear(2, 2), [])


def test_a_state_that_is_missing_is_refused(cloze):
    model, scoring = cloze
    with pytest.raises(ValueError, match="ask for 0 samples"):
        OnePass().predict(model, scoring(items(1)), 10, 0)


def test_a_single_item_says_nothing_of_what_is_new():
    scoring = Classification(wordpiece_tokenizer())
    with seeded(4):
        model = perturb(get_peft_model(tiny_bert(vocab_size=len(scoring.tokenizer)), config_for("bert"))).eval()
    batch = scoring([Item(id="a", question="The sun is a star", choices=("x", "y", "z"), label=0)])
    with pytest.raises(ValueError, match="at least two different items"):
        hidden_curvature(model, [batch], 2)


def test_an_untrained_adapter_is_told_the_option_that_helps(cloze):
    _, scoring = cloze
    with seeded(3):
        fresh = get_peft_model(tiny_llama(vocab_size=320), config_for("llama", layers_to_transform=[1, 2, 3])).eval()
    with pytest.raises(ValueError, match="give prior_scale a number"):
        OnePass().fit_posterior(fresh, trained(scoring, items(4)))
