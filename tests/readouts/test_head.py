"""A head on made-up features: what it learns, what it refuses, and that its file is the head."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from bayeslora.readouts import head as module
from bayeslora.readouts.blocks import BlockScaling, OptionFeatures
from bayeslora.readouts.contrasts import Contrasts
from bayeslora.readouts.files import head_from_tensors, head_tensors
from bayeslora.readouts.formula import FORMULA, write_formula
from bayeslora.readouts.head import fit_head
from bayeslora.readouts.regression import Regression
from bayeslora.readouts.sparse import SparseRegression
from helpers import generator, normal


def made_up(items: int, seed: int = 0, choices: int = 3, hidden: int = 12) -> tuple[OptionFeatures, torch.Tensor]:
    """Features of which the first block says which choice is right; some items have one choice less."""
    source = generator(seed)
    mask = torch.ones(items, choices, dtype=torch.bool)
    mask[::4, -1] = False
    useful, useless = (normal(source, items, choices, hidden).float() for _ in range(2))
    scores = (useful[..., 0] + useful[..., 1]).masked_fill(~mask, -math.inf)
    labels = torch.multinomial((2 * scores).softmax(-1), 1, generator=source)[:, 0]
    blocks = {"useful": useful, "useless": useless, "constant": torch.ones(items, choices, 2)}
    return OptionFeatures(blocks, mask, normal(source, items, 5)), labels


def _nll(head: module.Head, features: OptionFeatures, labels: torch.Tensor) -> float:
    chosen = head.predict(features).predictive.log_probabilities.gather(-1, labels.unsqueeze(-1))
    return -float(chosen.mean())


@pytest.fixture(scope="module")
def fitted() -> module.Head:
    return fit_head(*made_up(100))


def test_it_learns_and_says_which_block_helped(fitted: module.Head) -> None:
    features, labels = made_up(400, seed=1)
    assert _nll(fitted, features, labels) < 0.75 < float(features.mask.sum(-1).double().log().mean())
    weights = dict(zip(fitted.scaling.scales, fitted.scales.weights.tolist(), strict=True))
    assert weights["useful"] > 10 * weights["useless"]
    assert fitted.noise.share == 0 and fitted.noise.nll == pytest.approx(_nll(fitted, features, labels), abs=0.1)


def test_leave_one_out_agrees_with_fits_without_the_item(fitted: module.Head) -> None:
    """At the same scales: what is left out is the item alone."""
    features, labels = made_up(100)
    contrasts, precision = Contrasts(features.mask), torch.ones(99, dtype=torch.float64)
    assert isinstance(fitted.posterior, Regression)
    left_out = fitted.posterior.leave_one_out(contrasts.places)
    for item in (0, 3):
        others = torch.tensor([number for number in range(100) if number != item])
        some = features[others]
        targets = Contrasts(some.mask).targets(labels[others])
        posterior = module.exact_posterior(fitted.scaling, fitted.scales, some, targets, precision)
        alone = replace(fitted, features=some, posterior=posterior).utilities(features[item : item + 1])
        torch.testing.assert_close(left_out.mean[item], alone.mean[0], rtol=0, atol=1e-8)


def test_numbers_do_not_depend_on_the_batch(fitted: module.Head) -> None:
    features, _ = made_up(30, seed=2)
    together, alone = fitted.predict(features), fitted.predict(features[7:8])
    torch.testing.assert_close(together.predictive.samples[:, 7:8], alone.predictive.samples, rtol=0, atol=1e-6)
    torch.testing.assert_close(together.variance[7:8], alone.variance)
    torch.testing.assert_close(together.novelty[7:8], alone.novelty)


def test_the_file_is_the_head_bit_for_bit(fitted: module.Head) -> None:
    features, _ = made_up(30, seed=2)
    again = head_from_tensors(head_tensors(fitted))
    assert list(again.scaling.scales) == list(fitted.scaling.scales)
    assert torch.equal(again.predict(features).predictive.samples, fitted.predict(features).predictive.samples)
    damaged = head_tensors(fitted)
    del damaged["labels"]
    with pytest.raises(ValueError, match="lacks 'labels'"):
        head_from_tensors(damaged)
    for place, name in ((0, "noise"), (2, "temperature"), (3, "share")):
        damaged = head_tensors(fitted)
        damaged["numbers"][place] = -1
        with pytest.raises(ValueError, match=f"{name} must be"):
            head_from_tensors(damaged)
    for name, value, said in (
        ("scale.useful", 0, "scale of 0"),
        ("scale.useful", math.nan, "NaN"),
        ("hidden.useless", math.inf, "infinity"),
        ("weights", math.nan, "NaN"),
    ):
        damaged = head_tensors(fitted)
        damaged[name] = torch.full_like(damaged[name], value)
        with pytest.raises(ValueError, match=said):
            head_from_tensors(damaged)


def test_a_size_does_not_matter(fitted: module.Head) -> None:
    """A feature in other units, or moved by the same amount for all choices, gives the same head."""
    features, labels = made_up(100)
    moved = {name: 1000 * block + 5 for name, block in features.hidden.items()}
    other = fit_head(replace(features, hidden=moved), labels)
    torch.testing.assert_close(other.scales.weights, fitted.scales.weights, rtol=1e-2, atol=1e-6)


def test_more_rows_than_an_exact_head_holds(monkeypatch: pytest.MonkeyPatch, fitted: module.Head) -> None:
    features, labels = made_up(100)
    monkeypatch.setattr(module, "EXACT_ROWS", 90)
    whole = fit_head(features, labels)  # all rows are inducing ones: exact
    assert isinstance(whole.posterior, SparseRegression)
    new, new_labels = made_up(100, seed=1)
    exact, sparse = fitted.predict(new), whole.predict(new)
    torch.testing.assert_close(sparse.predictive.probabilities, exact.predictive.probabilities, rtol=0, atol=1e-3)
    torch.testing.assert_close(sparse.variance, exact.variance, rtol=1e-2, atol=1e-3)
    assert whole.noise.nll == pytest.approx(fitted.noise.nll, abs=1e-3)
    monkeypatch.setattr(module, "INDUCING_ROWS", 60)
    few = fit_head(features, labels)
    assert len(few.features) < 60 and _nll(few, new, new_labels) < _nll(fitted, new, new_labels) + 0.05
    again = head_from_tensors(head_tensors(few))
    assert torch.equal(again.predict(new).predictive.samples, few.predict(new).predictive.samples)


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="Linux tells the peak since a reset")
def test_a_hundred_thousand_rows_fit_into_little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """All of a fit; studies/methods/readout/memory.json has it with the library's number of inducing rows."""
    monkeypatch.setattr(module, "INDUCING_ROWS", 64)
    monkeypatch.setattr(module, "EVIDENCE_ROWS", 200)
    source = generator(0)
    hidden = normal(source, 25_000, 5, 8).float()
    labels = torch.multinomial((2 * hidden[..., 0]).softmax(-1), 1, generator=source)[:, 0]
    features = OptionFeatures({"one": hidden}, torch.ones(25_000, 5, dtype=torch.bool), hidden[:, 0, :2])
    before = _peak_bytes(reset=True)
    head = fit_head(features, labels)
    assert len(Contrasts(features.mask)) == 100_000 and isinstance(head.posterior, SparseRegression)
    assert _peak_bytes() - before < 2**30  # One column of numbers for each pair of rows would take 80.
    assert head.noise.nll < 1.3 < math.log(5)


def _peak_bytes(reset: bool = False) -> int:
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.partition("VmHWM:")[2].split()[0])


def test_wrong_labels_count_less() -> None:
    features, labels = made_up(250)
    test, right = made_up(250, seed=1)
    wrong = torch.rand(250, generator=generator(9)) < 0.3
    noisy = torch.where(wrong, torch.randint(2, (250,), generator=generator(8)), labels)
    robust, plain = fit_head(features, noisy, label_noise=True), fit_head(features, noisy)
    if robust.noise.share:
        assert float(robust.precision[wrong & (noisy != labels)].mean()) < float(robust.precision.mean())
    assert _nll(robust, test, right) <= _nll(plain, test, right) + 1e-6


def test_labels_of_which_a_known_share_is_random_do_little_harm() -> None:
    """15 % of 500 labels drawn anew cost at most .02 nats on clean items; taken as right they cost more."""
    features, labels = made_up(500)
    test, right = made_up(1000, seed=1)
    replaced = torch.randperm(500, generator=generator(9))[:75]
    noisy = labels.clone()
    noisy[replaced] = torch.randint(2, (75,), generator=generator(8))
    clean, plain = fit_head(features, labels), fit_head(features, noisy)
    told = fit_head(features, noisy, label_noise=0.15)
    assert _nll(told, test, right) < _nll(clean, test, right) + 0.02 < _nll(plain, test, right)
    assert told.noise.share == 0.15
    wrong = noisy != labels
    assert float(told.precision[wrong].mean()) < 0.6 < 0.8 < float(told.precision[~wrong].mean())


def test_a_weight_is_so_many_copies_of_an_item() -> None:
    """In prior, noise and posterior; but the item leaves as a whole, so it does not predict its own copies."""
    features, labels = made_up(60)
    weights = 1.0 + torch.arange(60) % 3
    of = torch.arange(60).repeat_interleave(weights.long())
    weighted, copied = fit_head(features, labels, weights=weights), fit_head(features[of], labels[of])
    torch.testing.assert_close(weighted.scales.weights, copied.scales.weights, rtol=1e-2, atol=1e-6)
    assert weighted.scales.noise == pytest.approx(copied.scales.noise, rel=1e-3)
    new, _ = made_up(50, seed=1)
    one, other = weighted.utilities(new), copied.utilities(new)
    torch.testing.assert_close(one.mean, other.mean, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(one.covariance, other.covariance, rtol=1e-2, atol=1e-4)
    assert weighted.noise.temperature > copied.noise.temperature and weighted.noise.nll > copied.noise.nll
    plain = fit_head(features, labels).utilities(new)
    assert float((one.mean - plain.mean).abs().max()) > 0.05


def test_a_label_that_is_a_distribution_is_its_labels_each_as_probable() -> None:
    features, labels = made_up(60)
    soft = torch.nn.functional.one_hot(labels, 3).double()
    torch.testing.assert_close(
        fit_head(features, soft).predict(features).predictive.probabilities,
        fit_head(features, labels).predict(features).predictive.probabilities,
    )
    halves = soft.clone()
    halves[1::2] = torch.tensor([0.5, 0.5, 0.0], dtype=torch.float64)
    twice = torch.cat([torch.arange(60), torch.arange(1, 60, 2)])
    shares = torch.where(torch.arange(60) % 2 == 1, 0.5, 1.0)[twice]
    hard = torch.cat([torch.where(torch.arange(60) % 2 == 1, 0, labels), torch.ones(30, dtype=torch.long)])
    one, other = fit_head(features, halves), fit_head(features[twice], hard, weights=shares)
    assert one.scales.noise == pytest.approx(other.scales.noise, rel=0.02)
    new, _ = made_up(50, seed=1)
    torch.testing.assert_close(one.utilities(new).mean, other.utilities(new).mean, rtol=0, atol=0.01)
    likeliest = fit_head(features, halves.argmax(-1)).utilities(new)
    assert float((one.utilities(new).mean - likeliest.mean).abs().max()) > 0.1
    again = head_from_tensors(head_tensors(one))
    assert torch.equal(again.predict(new).predictive.samples, one.predict(new).predictive.samples)


def test_even_labels_pull_probabilities_towards_even_ones() -> None:
    features, _ = made_up(120, choices=2)
    mask = torch.ones(120, 2, dtype=torch.bool)
    features = replace(features, mask=mask)
    right = features.hidden["useful"][..., 0].argmax(-1)
    sure = torch.nn.functional.one_hot(right, 2).double()
    even = torch.full((120, 2), 0.5, dtype=torch.float64)
    found = [
        fit_head(features, share * even + (1 - share) * sure).predict(features).predictive.probabilities
        for share in (0.0, 0.6, 1.0)
    ]
    at = [float(part.gather(-1, right.unsqueeze(-1)).mean()) for part in found]
    assert at[0] > 0.9 and 0.56 < at[1] < 0.74 and at[2] == pytest.approx(0.5, abs=1e-3)


def test_labels_that_are_all_distributions_are_predicted_as_such() -> None:
    """As smooth as they are, they are no labels without noise: probabilities stay what they are, at a usual T."""
    features, _ = made_up(200)
    features = replace(features, mask=torch.ones_like(features.mask))
    soft = (0.5 * (features.hidden["useful"][..., 0] + features.hidden["useful"][..., 1])).double().softmax(-1)
    head = fit_head(features, soft)
    found = head.predict(features).predictive.log_probabilities
    lost = float((soft * (soft.log() - found)).sum(-1).mean())
    uniform = float((soft * (soft.log() + math.log(3))).sum(-1).mean())
    assert lost < 0.1 * uniform and 0.3 < head.noise.temperature < 3


def test_wrong_ones_among_distributions_count_less() -> None:
    features, labels = made_up(500)
    replaced = torch.randperm(500, generator=generator(9))[:75]
    noisy = labels.clone()
    noisy[replaced] = torch.randint(2, (75,), generator=generator(8))
    soft = 0.9 * torch.nn.functional.one_hot(noisy, 3) + 0.1 * features.mask / features.mask.sum(-1, keepdim=True)
    told, wrong = fit_head(features, soft.double(), label_noise=0.15), noisy != labels
    assert float(told.precision[wrong].mean()) < float(told.precision[~wrong].mean()) - 0.1


def test_one_class_only_and_a_class_never_seen() -> None:
    features, _ = made_up(40)
    head = fit_head(features, torch.zeros(40, dtype=torch.long))
    assert torch.isfinite(head.predict(features).predictive.probabilities).all()


def test_nothing_to_learn_says_uniform() -> None:
    features, labels = made_up(200)
    shuffled = torch.minimum(labels[torch.randperm(200, generator=generator(3))], features.mask.sum(-1) - 1)
    found = fit_head(features, shuffled).predict(made_up(100, seed=1)[0]).predictive
    assert float(found.probabilities.amax(-1).mean()) < 0.5


def test_equal_choices_have_equal_chances(fitted: module.Head) -> None:
    features, _ = made_up(2, seed=4)
    same = {name: block[:, :1].expand_as(block) for name, block in features.hidden.items()}
    found = fitted.predict(replace(features, hidden=same)).predictive.probabilities
    torch.testing.assert_close(found[1], torch.full((3,), 1 / 3))


def test_one_choice_is_certain_and_no_two_choices_are_nothing_to_fit(fitted: module.Head) -> None:
    features, labels = made_up(8)
    single = features.mask.clone()
    single[:, 1:] = False
    found = fitted.predict(replace(features, mask=single)).predictive.probabilities
    assert torch.equal(found[:, 0], torch.ones(8))
    with pytest.raises(ValueError, match="nothing to fit"):
        fit_head(replace(features, mask=single), torch.zeros_like(labels))


def test_features_that_are_missing_or_not_finite_are_said(fitted: module.Head) -> None:
    features, labels = made_up(8)
    lacking = {name: block for name, block in features.hidden.items() if name != "useful"}
    with pytest.raises(ValueError, match="'useful', but there is none"):
        fitted.predict(replace(features, hidden=lacking))
    with pytest.raises(ValueError, match="but it has 3"):
        fitted.predict(replace(features, hidden={**features.hidden, "useful": features.hidden["useful"][..., :3]}))
    bad = {**features.hidden, "useful": torch.full_like(features.hidden["useful"], math.nan)}
    with pytest.raises(ValueError, match="finite"):
        fit_head(replace(features, hidden=bad), labels)


def test_a_block_of_numbers_keeps_its_size() -> None:
    """A prior's utility that is sure of one item says more there than of another."""
    features, _ = made_up(4)
    numbers = torch.zeros(4, 3, 1)
    numbers[0, 0], numbers[1, 0] = 5.0, 0.5
    scaled = BlockScaling.of(features.with_numbers(prior=numbers))(features.with_numbers(prior=numbers))["prior"]
    owners = Contrasts(features.mask).owners
    ratio = scaled[owners == 1].abs().max() / scaled[owners == 0].abs().max()
    assert 0.05 < float(ratio) < 0.2


@pytest.mark.parametrize("rows", [5000, 90])
def test_the_formula_is_the_mean(rows: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """By the words of the file alone."""
    monkeypatch.setattr(module, "EXACT_ROWS", rows)
    features, labels = made_up(100)
    numbers = normal(generator(5), 100, 3, 2).float()
    head = fit_head(features.with_numbers(extra=numbers), labels)
    write_formula(head, tmp_path / "head.safetensors")
    with safe_open(tmp_path / "head.safetensors", "pt") as file:
        assert file.metadata() == {"formula": FORMULA}
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    new, _ = made_up(6, seed=3)
    new = new.with_numbers(extra=normal(generator(6), 6, 3, 2).float())
    mean = Contrasts(new.mask).utilities(head.utilities(new).mean[..., 0])
    for item in range(6):
        count = int(new.mask[item].sum())
        utility = torch.zeros(count)
        for name, block in {**new.hidden, **new.numbers}.items():
            z = tensors[f"scale.{name}"] * block[item, :count]
            z = z - z.mean(0)
            if name in new.hidden and float((z**2).sum()) > 0:
                z = z / ((z**2).sum() / (count - 1)).sqrt()
            utility += z @ tensors[f"weight.{name}"]
        torch.testing.assert_close(utility.double(), mean[item, :count], rtol=1e-3, atol=1e-4)
    assert float(tensors["temperature"]) == pytest.approx(head.scales.noise * head.noise.temperature)
