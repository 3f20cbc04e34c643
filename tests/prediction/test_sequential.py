"""Draws until the answer is settled: the stated error on generated draws, the prior, uneven predictives."""

import math
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from scipy.stats import chi2

from bayeslora import Predictive, predict
from bayeslora.prediction.sequential import Adaptive, Settling, VariancePrior
from bayeslora.prediction.uneven import UnevenPredictive
from conftest import bayesian, perturb, tokens

sys.path.insert(0, str(Path(__file__).parents[2]))
from studies.methods.adaptive_samples.generated import DRAWS as ALL
from studies.methods.adaptive_samples.generated import settled, world


@pytest.mark.parametrize("error", [0.01, 0.05])
@pytest.mark.parametrize(
    ("choices", "spread", "noise", "tail", "most_draws"),
    [(2, 0.5, 1.0, 0.5, 9.9), (2, 1.5, 0.4, 0.5, 4), (4, 3.0, 0.1, 0.0, 1.5), (4, 1.5, 0.4, 0.0, 4)],
)
def test_the_answer_is_that_of_all_draws_but_for_the_stated_share(error, choices, spread, noise, tail, most_draws):
    samples = world(2000, choices, spread, noise, tail, 100)
    full, shares, counts = Predictive(samples).probabilities.argmax(-1), [], []
    for seed in range(8):
        dev = world(200, choices, spread, noise, tail, seed)
        found = settled(samples, Settling.fit(Adaptive(error=error), dev))
        shares.append(float((found.probabilities.argmax(-1) != full).double().mean()))
        counts.append(float(found.counts.double().mean()))
    # In the mean over dev sets, within what eight of them tell.
    assert sum(shares) / len(shares) <= 1.3 * error
    assert sum(counts) / len(counts) < most_draws


@pytest.mark.parametrize("asked", [{"tolerance": 0.05}, {"threshold": 0.8}])
def test_tolerance_and_threshold_hold_for_all_but_the_stated_share(asked):
    settling = Settling.fit(Adaptive(error=0.05, **asked), world(200, 3, 2.0, 0.3, 0.3, 0))
    samples = world(4000, 3, 2.0, 0.3, 0.3, 1)
    found, full = settled(samples, settling), Predictive(samples)
    top = found.probabilities.argmax(-1, keepdim=True)
    share, own = (each.probabilities.gather(-1, top).squeeze(-1) for each in (full, found))
    wrong = (share - own).abs() > 0.05 if "tolerance" in asked else (share >= 0.8) != (own >= 0.8)
    plain = settled(samples, Settling.fit(Adaptive(error=0.05), world(200, 3, 2.0, 0.3, 0.3, 0)))
    assert wrong.double().mean() <= 0.05
    assert plain.counts.double().mean() < found.counts.double().mean() < ALL


def test_the_prior_is_found_again():
    generator = torch.Generator().manual_seed(0)
    variances = 0.5 * 6 / torch.from_numpy(chi2.rvs(6, size=20000, random_state=0))
    observed = variances * torch.randn(9, 20000, generator=generator).square().mean(0)
    prior = VariancePrior.fit(observed, 9)
    assert prior.degrees == pytest.approx(6, rel=0.1) and prior.variance == pytest.approx(0.5, rel=0.05)
    assert prior.moderated(torch.tensor([2.0]), 9) == pytest.approx((6 * 0.5 + 18) / 15, rel=0.1)
    one = VariancePrior.fit(torch.full((50,), 0.3), 9)
    assert math.isinf(one.degrees) and one.moderated(torch.tensor([9.0]), 1) == pytest.approx(one.variance)
    assert VariancePrior.fit(torch.zeros(5), 9) == VariancePrior(math.inf, 0.0)


def test_choices_an_item_does_not_have_and_exact_ties():
    samples = torch.tensor([[0.7, 0.3, 0.0], [0.5, 0.5, 0.0]]).log().expand(ALL, -1, -1)
    settling = Settling(Adaptive(), ALL, VariancePrior(4.0, 1e-4), VariancePrior(4.0, 1e-4), 0.01)
    assert settling.settled(samples[:2]).tolist() == [True, False]
    assert settled(samples, settling).counts.tolist() == [1, ALL]


def test_looks_and_refusals():
    prior = VariancePrior(4.0, 1e-4)
    for fewest, most, looks in [
        (1, 1, [1]),
        (1, 9, [1, 2, 4, 8, 9]),
        (2, 8, [2, 4, 8]),
        (3, 10, [3, 6, 10]),
        (9, 4, [4]),
    ]:
        assert Settling(Adaptive(fewest=fewest), most, prior, prior, 0.01).looks == looks
    with pytest.raises(ValueError, match="error must be above 0 and below 1"):
        Adaptive(error=0)
    with pytest.raises(ValueError, match="fewest must be at least 1"):
        Adaptive(fewest=0)


@pytest.mark.parametrize(("noise", "binding"), [(0.4, "changes"), (0.1, "doubt")])
def test_the_limit_is_the_highest_with_the_stated_share_and_few_dev_items_lower_it(noise, binding):
    dev, error = world(200, 4, 1.5, noise, 0.5, 0), 0.02
    settling = Settling.fit(Adaptive(error=error), dev)
    full = Predictive(dev).probabilities.argmax(-1)
    doubts = torch.stack([settling.doubt(dev[:look]) for look in settling.looks[:-1]])

    def over(limit: float) -> list[str]:
        found = settled(dev, replace(settling, limit=limit))
        changed = int((found.probabilities.argmax(-1) != full).sum())
        left = sum(
            float(doubts[settling.looks.index(count), item])
            for item, count in enumerate(found.counts.tolist())
            if count < ALL
        )
        found = {"changes": changed + 1 if changed else 0, "doubt": left + limit}
        return [name for name, total in found.items() if total > error * 201]

    higher = doubts.unique()
    assert over(settling.limit) == [] and over(float(higher[higher > settling.limit][0])) == [binding]
    assert Settling.fit(Adaptive(error=error), dev[:, :8]).limit < settling.limit


def test_no_item_has_fewer_draws_than_asked_for():
    dev, samples = world(200, 3, 2.0, 0.3, 0.3, 0), world(500, 3, 2.0, 0.3, 0.3, 1)
    counts = settled(samples, Settling.fit(Adaptive(fewest=3), dev)).counts
    assert set(counts.tolist()) == {3, 6, ALL}


def test_an_uneven_predictive_is_that_of_each_item_alone():
    samples, counts = world(6, 3, 1.0, 1.0, 0.0, 3), torch.tensor([1, 2, 4, 10, 2, 8])
    present = torch.arange(ALL).unsqueeze(-1) < counts
    uneven = UnevenPredictive(samples.masked_fill(~present.unsqueeze(-1), -torch.inf), counts=counts)
    other = UnevenPredictive(uneven.samples[:4, :2], counts=counts[:2])
    joined = Predictive.concatenate([other, uneven.take(torch.tensor([3, 2]))])
    assert joined.further["num_samples"].tolist() == [1, 2, 10, 4]
    for predictive, items in [(uneven, range(6)), (joined, (0, 1, 3, 2)), (uneven.tempered(2.0), range(6))]:
        for place, item in enumerate(items):
            alone = Predictive(samples[: counts[item], item : item + 1])
            alone = alone.tempered(2.0) if predictive is not uneven and predictive is not joined else alone
            for name in ("probabilities", "entropy", "mutual_information", "spread"):
                assert torch.allclose(getattr(predictive, name)[place], getattr(alone, name)[0], atol=1e-6), name


def test_draws_go_on_where_others_ended():
    model, inputs = perturb(bayesian("bert")), {"input_ids": tokens(3, 5)}
    whole = predict(model, inputs, 5, seed=4).samples
    rest = predict(model, inputs, 3, seed=4, first_sample=2).samples
    assert torch.allclose(whole[2:], rest, atol=1e-5) and not torch.allclose(whole[:3], rest, atol=1e-3)


@pytest.mark.parametrize("value", [{"error": "x"}, {"error": None}, {"tolerance": float("nan")}, {"fewest": 2.5}])
def test_what_is_asked_for_is_checked_for_its_kind(value):
    with pytest.raises(ValueError, match=f"{next(iter(value))} must"):
        Adaptive(**value)


@pytest.mark.parametrize("fewest", [ALL, 3 * ALL])
def test_where_the_fewest_draws_are_all_every_item_has_all(fewest):
    dev = world(20, 3, 1.0, 0.3, 0.5, 0)
    found = settled(dev, Settling.fit(Adaptive(fewest=fewest), dev))
    assert found.counts.tolist() == [ALL] * 20
