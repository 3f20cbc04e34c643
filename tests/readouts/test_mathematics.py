"""The head's mathematics against dense, exact and brute-force computations."""

import math

import numpy as np
import pytest
import torch

from bayeslora.prediction.predictive import Predictive
from bayeslora.readouts.contrasts import Contrasts, helmert
from bayeslora.readouts.evidence import Repeats, fit_scales, log_evidence
from bayeslora.readouts.label_noise import fit_temperature_and_noise
from bayeslora.readouts.novelty import Novelty
from bayeslora.readouts.predictive import softmax_predictive, standard_points
from bayeslora.readouts.regression import Regression, Utilities
from helpers import generator, normal

MASK = torch.tensor([[True] * 4, [True, True, False, False], [True] * 3 + [False], [True] + [False] * 3, [True] * 4])


def _kernels(rows: int, count: int, seed: int = 0) -> list[torch.Tensor]:
    features = [normal(generator(seed + number), rows, 3 + number) for number in range(count)]
    return [block @ block.T / block.shape[1] for block in features]


# --- contrasts -------------------------------------------------------------------------------------------------------


def test_contrasts_hold_all_that_a_softmax_sees() -> None:
    contrasts, scores = Contrasts(MASK), normal(generator(0), 5, 4)
    back = contrasts.utilities(contrasts.padded(contrasts.flat(scores)))
    torch.testing.assert_close(
        torch.log_softmax(back.masked_fill(~MASK, -math.inf), -1),
        torch.log_softmax(scores.masked_fill(~MASK, -math.inf), -1),
    )
    assert len(contrasts) == 3 + 1 + 2 + 0 + 3
    assert contrasts.owners.tolist() == [0, 0, 0, 1, 2, 2, 4, 4, 4]


def test_contrasts_keep_distances_and_ignore_what_is_behind_the_mask() -> None:
    scores = normal(generator(1), 5, 4)
    flat = Contrasts(MASK).flat(scores)
    torch.testing.assert_close(flat, Contrasts(MASK).flat(scores.masked_fill(~MASK, math.nan)))
    for item in range(5):
        own = scores[item][MASK[item]]
        expected = ((own - own.mean()) ** 2).sum()
        torch.testing.assert_close((flat[Contrasts(MASK).owners == item] ** 2).sum(), expected)


def test_targets_are_the_contrasts_of_one_hot_labels() -> None:
    contrasts = Contrasts(MASK)
    back = contrasts.utilities(contrasts.padded(contrasts.targets(torch.tensor([3, 0, 1, 0, 2])))[..., 0])
    torch.testing.assert_close(back[0], torch.tensor([-0.25, -0.25, -0.25, 0.75], dtype=torch.float64))
    torch.testing.assert_close(back[3], torch.zeros(4, dtype=torch.float64))
    with pytest.raises(ValueError, match="item 1 has 2 of them and label 2"):
        contrasts.targets(torch.tensor([3, 2, 1, 0, 2]))
    with pytest.raises(ValueError, match="item 0 has none"):
        Contrasts(torch.zeros(1, 3, dtype=torch.bool))


def test_fewer_choices_need_the_first_rows_of_the_same_matrix() -> None:
    torch.testing.assert_close(helmert(3), helmert(5)[:2, :3])


# --- evidence --------------------------------------------------------------------------------------------------------


def test_rows_that_are_means_have_the_evidence_of_what_they_are_means_of() -> None:
    """Three rows of which one was seen three times, and another half as one thing and half as another."""
    kernels, targets = _kernels(3, 2), normal(generator(5), 3, 1)
    of = torch.tensor([0, 0, 0, 1, 2, 2])
    every = targets[of]
    every[4:, 0] += torch.tensor([0.3, -0.3])
    precision = torch.tensor([3.0, 1.0, 2.0], dtype=torch.float64)
    repeats = Repeats(3.0, 2 * 0.3**2)
    values, slopes = [], []
    for log_noise in (-1.0, 0.2):
        weights = torch.tensor([0.3, -0.7], dtype=torch.float64)
        whole = log_evidence([kernel[of][:, of] for kernel in kernels], every, weights, log_noise)
        means = log_evidence(kernels, targets, weights, log_noise, precision, repeats)
        values.append(whole[0] - means[0])
        slopes.append(means[1])
        torch.testing.assert_close(means[1], whole[1])
    assert values[0] == pytest.approx(values[1], abs=1e-6), "a constant of no scale"
    assert not torch.allclose(*slopes)


@pytest.mark.parametrize("weighted", [False, True])
def test_evidence_is_the_density_of_the_targets_and_its_slopes_are_right(weighted: bool) -> None:
    kernels, targets = _kernels(9, 2), normal(generator(5), 9, 2)
    precision = 0.2 + torch.rand(9, generator=generator(6), dtype=torch.float64) if weighted else None
    point = torch.tensor([0.3, -0.7, -0.4], dtype=torch.float64)
    value, gradient, _ = log_evidence(kernels, targets, point[:2], float(point[2]), precision)
    noise = point[2].exp() / (torch.ones(9, dtype=torch.float64) if precision is None else precision)
    covariance = sum(w.exp() * k for w, k in zip(point, kernels, strict=False)) + noise.diag()
    density = torch.distributions.MultivariateNormal(torch.zeros(9, dtype=torch.float64), covariance)
    assert value == pytest.approx(float(density.log_prob(targets.T).sum()), abs=1e-8)
    for index in range(3):
        step = torch.zeros(3, dtype=torch.float64)
        step[index] = 1e-5
        ends = [
            log_evidence(kernels, targets, (point + sign * step)[:2], float((point + sign * step)[2]), precision)[0]
            for sign in (1, -1)
        ]
        assert float(gradient[index]) == pytest.approx((ends[0] - ends[1]) / 2e-5, abs=1e-6)


def test_evidence_finds_the_block_that_made_the_targets() -> None:
    kernels = _kernels(120, 2)
    root = torch.linalg.cholesky(kernels[0] + 1e-9 * torch.eye(120))
    targets = root @ normal(generator(1), 120, 8) + 0.3 * normal(generator(2), 120, 8)
    scales = fit_scales(kernels, targets)
    assert float(scales.weights[0]) == pytest.approx(1, rel=0.5)
    assert float(scales.weights[1]) < 0.02
    assert math.sqrt(scales.noise) == pytest.approx(0.3, rel=0.1)
    assert 20 < float(scales.effective_parameters[0]) < 24 + 1e-6  # 3 features, 8 outputs
    solved = Regression.condition(scales.kernel(kernels), targets, scales.noise).solved
    fit = float(scales.weights[0] * (solved * (kernels[0] @ solved)).sum())
    assert fit == pytest.approx(float(scales.effective_parameters[0]), rel=0.05)  # MacKay's fixed point


def test_a_block_of_zeros_and_targets_of_zeros_do_no_harm() -> None:
    kernels = [*_kernels(10, 1), torch.zeros(10, 10, dtype=torch.float64)]
    scales = fit_scales(kernels, normal(generator(3), 10, 1))
    assert float(scales.effective_parameters[1]) == 0 and math.isfinite(scales.log_evidence)
    assert math.isfinite(fit_scales(kernels, torch.zeros(10, 1, dtype=torch.float64)).noise)


def test_a_singular_kernel_without_noise_has_its_answer() -> None:
    """Twelve rows of two features, fitted exactly: what is left of the targets is rounding."""
    features = normal(generator(0), 12, 2)
    kernel, targets = features @ features.T, features @ normal(generator(1), 2, 1)
    scales = fit_scales([kernel], targets)
    exact = Regression.condition(scales.kernel([kernel]), targets, scales.noise)
    torch.testing.assert_close(scales.kernel([kernel]) @ exact.solved, targets, rtol=1e-3, atol=1e-3)
    singular = Regression.condition(kernel, targets, 0.0)
    torch.testing.assert_close(kernel @ singular.solved, targets, rtol=1e-3, atol=1e-3)
    with pytest.raises(torch.linalg.LinAlgError):
        Regression.condition(-torch.eye(3, dtype=torch.float64), targets[:3], 0.0)


def test_nothing_to_fit_is_said() -> None:
    with pytest.raises(ValueError, match="nothing to fit"):
        fit_scales([torch.zeros(0, 0, dtype=torch.float64)], torch.zeros(0, 1, dtype=torch.float64))
    with pytest.raises(ValueError, match="finite"):
        fit_scales([torch.full((2, 2), math.nan, dtype=torch.float64)], torch.zeros(2, 1, dtype=torch.float64))


# --- regression ------------------------------------------------------------------------------------------------------


def test_the_posterior_is_that_of_a_conjugate_linear_model() -> None:
    features, new, targets = (normal(generator(seed), *shape) for seed, shape in enumerate([(7, 3), (4, 3), (7, 1)]))
    precision = features.T @ features / 0.4 + torch.eye(3)
    covariance = torch.linalg.inv(precision)
    mean = covariance @ features.T @ targets / 0.4
    places = torch.tensor([[0, 1], [2, -1], [3, -1]])
    prior = torch.stack([new[row] @ new[row].T for row in places.clamp_min(0)])
    found = Regression.condition(features @ features.T, targets, 0.4).predict(new @ features.T, prior, places)
    torch.testing.assert_close(found.mean[0, :, 0], (new[:2] @ mean)[:, 0], rtol=0, atol=1e-8)
    torch.testing.assert_close(found.covariance[0], new[:2] @ covariance @ new[:2].T, rtol=0, atol=1e-8)
    expected = torch.zeros(2, 2, dtype=torch.float64)
    expected[0, 0] = new[2] @ covariance @ new[2]
    torch.testing.assert_close(found.covariance[1], expected, rtol=0, atol=1e-8)
    assert float(found.mean[1, 1, 0]) == 0


def test_leave_one_out_is_that_of_explicit_refits() -> None:
    contrasts = Contrasts(MASK)
    rows = len(contrasts)
    kernel, targets = _kernels(rows, 1)[0], normal(generator(4), rows, 1)
    noise = 0.1 + torch.rand(rows, generator=generator(5), dtype=torch.float64)
    found = Regression.condition(kernel, targets, noise).leave_one_out(contrasts.places)
    for item in (0, 1, 2, 4):
        own = contrasts.owners == item
        refit = Regression.condition(kernel[~own][:, ~own], targets[~own], noise[~own])
        size = int(own.sum())
        alone = refit.predict(kernel[own][:, ~own], kernel[own][:, own].unsqueeze(0), torch.arange(size).unsqueeze(0))
        torch.testing.assert_close(found.mean[item, :size], alone.mean[0], rtol=0, atol=1e-8)
        torch.testing.assert_close(found.covariance[item, :size, :size], alone.covariance[0], rtol=0, atol=1e-8)
    assert float(found.mean[3].abs().sum() + found.covariance[3].abs().sum()) == 0  # one choice: nothing to tell


# --- probabilities ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dimensions", [1, 2, 4, 9])
def test_points_are_standard_normal(dimensions: int) -> None:
    points = standard_points(dimensions)
    torch.testing.assert_close(points.mean(0), torch.zeros(dimensions, dtype=torch.float64), rtol=0, atol=1e-12)
    torch.testing.assert_close((points**2).mean(0), torch.ones(dimensions, dtype=torch.float64))
    assert (np.corrcoef(points.T.numpy()) - np.eye(dimensions)).max() < 0.1 if dimensions > 1 else True


@pytest.mark.parametrize("choices", [2, 4])
def test_probabilities_are_those_of_very_many_draws(choices: int) -> None:
    contrasts, size = Contrasts(torch.ones(1, choices, dtype=torch.bool)), choices - 1
    mean, root = normal(generator(1), 1, size, 1), 0.7 * normal(generator(2), 1, size, size)
    found = softmax_predictive(Utilities(mean, root @ root.mT), contrasts, 0.5)
    draws = mean[0, :, 0] + normal(generator(3), 400_000, size) @ root[0].T
    every = torch.log_softmax(contrasts.utilities(draws) / 0.5, -1)
    torch.testing.assert_close(found.probabilities[0].double(), every.exp().mean(0), rtol=0, atol=4e-3)
    reference = Predictive(every.unsqueeze(1))
    assert float(found.mutual_information) == pytest.approx(float(reference.mutual_information), abs=5e-3)


def test_one_choice_is_certain_and_an_absent_one_impossible() -> None:
    contrasts = Contrasts(torch.tensor([[True, False, False], [True, True, False]]))
    flat = Utilities(torch.zeros(2, 2, 1, dtype=torch.float64), torch.zeros(2, 2, 2, dtype=torch.float64))
    found = softmax_predictive(flat, contrasts, 0.3)
    torch.testing.assert_close(found.probabilities, torch.tensor([[1.0, 0, 0], [0.5, 0.5, 0]]), check_dtype=False)
    assert float(found.entropy[0]) == 0 and float(found.mutual_information.max()) == pytest.approx(0, abs=1e-9)


def test_an_item_has_the_same_numbers_in_any_batch() -> None:
    mask = torch.ones(6, 4, dtype=torch.bool)
    mean, root = normal(generator(1), 6, 3, 1), normal(generator(2), 6, 3, 3)
    together = softmax_predictive(Utilities(mean, root @ root.mT), Contrasts(mask), 0.4)
    alone = softmax_predictive(Utilities(mean[4:5], (root @ root.mT)[4:5]), Contrasts(mask[:1]), 0.4)
    assert torch.equal(together.samples[:, 4:5], alone.samples)


# --- labels that are wrong -------------------------------------------------------------------------------------------


def _labelled(share: float, items: int = 3000) -> tuple[Predictive, torch.Tensor, torch.Tensor]:
    """Predictions twice too sharp, and labels of which a share is drawn uniformly."""
    scores = 2.0 * normal(generator(0), items, 4)
    labels = _draw(scores)
    wrong = torch.rand(items, generator=generator(2)) < share
    uniform = torch.randint(4, (items,), generator=generator(3))
    predictive = Predictive(torch.log_softmax(2 * scores, -1).unsqueeze(0))
    return predictive, torch.where(wrong, uniform, labels), wrong & (uniform != labels)


def _draw(scores: torch.Tensor) -> torch.Tensor:
    return torch.multinomial(scores.softmax(-1), 1, generator=generator(1))[:, 0]


def test_temperature_and_share_of_wrong_labels_are_found() -> None:
    predictive, labels, wrong = _labelled(0.2)
    found = fit_temperature_and_noise(predictive, labels, torch.full((3000,), 4))
    assert found.temperature == pytest.approx(2, rel=0.2) and found.share == pytest.approx(0.2, abs=0.04)
    assert float(found.right[wrong].mean()) < 0.5 < 0.8 < float(found.right[~wrong].mean())


def test_right_labels_stay_right() -> None:
    predictive, labels, _ = _labelled(0.0)
    found = fit_temperature_and_noise(predictive, labels, torch.full((3000,), 4))
    assert found.share < 0.02 and found.temperature == pytest.approx(2, rel=0.1)
    assert fit_temperature_and_noise(predictive, labels, torch.full((3000,), 4), noisy=False).share == 0


# --- novelty ---------------------------------------------------------------------------------------------------------


def test_novelty_is_a_quantile_of_the_training_questions_own_distances() -> None:
    questions = normal(generator(0), 300, 8)
    novelty = Novelty.of(questions)
    own = novelty.leave_one_out()
    assert float(own.mean()) == pytest.approx(0.5, abs=0.01) and float(own.max()) == 1
    assert float(novelty(normal(generator(1), 300, 8)).mean()) == pytest.approx(0.5, abs=0.06)
    assert float(novelty(normal(generator(1), 20, 8) + 4).min()) == 1
    pair = novelty(questions[:2] + 0.3)
    assert torch.equal(pair[1:], novelty(questions[1:2] + 0.3))  # the same in any batch


def test_novelty_of_constant_features_and_of_one_question() -> None:
    assert Novelty.of(torch.ones(5, 3, dtype=torch.float64))(torch.ones(1, 3, dtype=torch.float64)).tolist() == [1.0]
    assert len(Novelty.of(torch.ones(1, 3, dtype=torch.float64)).leave_one_out()) == 1
