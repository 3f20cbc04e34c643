"""The temperature: shrunk where dev says little, with its error, and marked at a bound."""

import logging
import math

import pytest
import torch
from torch import Tensor

from bayeslora.methods.laplace_approximation import LOGIT_DRAWS, GaussianLogits
from bayeslora.methods.laplace_approximation.gaussian import normal_points
from bayeslora.prediction.predictive import Predictive
from bayeslora.prediction.temperature import BOUNDS, FEW_ERRORS, PRIOR_STD, Temperature, bound_of, fit_temperature


def items(count: int, scale: float, seed: int = 0, sharpness: float = 1.0) -> tuple[Predictive, Tensor]:
    """Labels drawn from softmax(logits), and a predictive of softmax(scale * logits): the temperature is `scale`."""
    source = torch.Generator().manual_seed(seed)
    logits = sharpness * torch.randn(count, 4, generator=source)
    labels = torch.multinomial(logits.softmax(-1), 1, generator=source).flatten()
    return Predictive(torch.log_softmax(scale * logits, -1).unsqueeze(0)), labels


def nll(predictive: Predictive, labels: Tensor) -> float:
    return torch.nn.functional.nll_loss(predictive.log_probabilities, labels).item()


@pytest.mark.parametrize("scale", [0.5, 3.0])
def test_many_items_give_the_temperature_of_known_logits(scale):
    found = fit_temperature(*items(4000, scale))
    assert abs(found.value - scale) < 3 * found.standard_error < 0.3 * scale


def test_the_standard_error_is_the_spread_over_dev_splits():
    found = [fit_temperature(*items(200, 2.0, seed), prior_std=math.inf) for seed in range(60)]
    spread = torch.tensor([one.value for one in found]).std().item()
    assert spread == pytest.approx(sum(one.standard_error for one in found) / 60, rel=0.25)


def test_a_small_dev_split_of_a_calibrated_model_costs_little():
    """Sharp predictions, right most of the time; without the prior the NLL of new items rises fourfold."""
    test = items(5000, 1.0, seed=99, sharpness=12.0)
    after = dict.fromkeys((None, math.inf), 0.0)
    for seed in range(20):
        dev = items(20, 1.0, seed, sharpness=12.0)
        for prior in after:
            fitted = fit_temperature(*dev) if prior is None else fit_temperature(*dev, prior)
            after[prior] += nll(test[0].tempered(fitted.value), test[1]) / 20
    assert after[None] < 1.1 * nll(*test) < after[math.inf]


def test_where_every_item_is_right_the_temperature_stays_near_one_and_a_warning_says_so(caplog):
    logits = torch.tensor([[5.0, 0.0, -torch.inf], [5.0, 1.0, 0.0]])
    predictive = Predictive(torch.log_softmax(logits, -1).unsqueeze(0))
    with caplog.at_level(logging.WARNING, logger="bayeslora"):
        found = fit_temperature(predictive, torch.tensor([0, 0]))
    assert 0.8 < found.value < 1 and found.errors == 0 and found.items == 2
    assert torch.isfinite(predictive.tempered(found.value).probabilities).all()
    assert f"2 dev items of which 0 are wrong; with fewer than {FEW_ERRORS}" in caplog.text


def test_enough_errors_need_no_warning(caplog):
    with caplog.at_level(logging.WARNING, logger="bayeslora"):
        assert fit_temperature(*items(100, 2.0)).errors >= FEW_ERRORS
    assert caplog.text == ""


@pytest.mark.parametrize(
    ("sign", "bound", "meaning"), [(-1, 1, "predicts uniformly"), (1, 0, "takes its first choice")]
)
def test_at_a_bound_a_warning_and_the_record_say_what_it_does(sign, bound, meaning, caplog):
    """Confident answers, all of them wrong or all right."""
    logits = sign * torch.tensor([[9.0, 0.0]] * 400)
    predictive = Predictive(torch.log_softmax(logits if sign < 0 else logits / 50, -1).unsqueeze(0))
    with caplog.at_level(logging.WARNING, logger="bayeslora"):
        found = fit_temperature(predictive, torch.zeros(400, dtype=torch.long), math.inf)
    assert found.value == pytest.approx(BOUNDS[bound], rel=1e-3)
    assert meaning in bound_of(found.record) and meaning in caplog.text and "at a bound" in caplog.text


def test_what_is_kept_of_it():
    assert Temperature(2.0, 0.5, 3, 9).record == {"temperature": 2.0, "temperature_standard_error": 0.5}
    assert Temperature(2.0, math.inf, 3, 9).record["temperature_standard_error"] is None
    inside = [{}, {"temperature": 1.0}, {"temperature": 0.06}, {"temperature": 100.0}]
    assert [bound_of(record) for record in inside] == [None] * 4
    assert bound_of({"temperature": math.exp(5)}) == "predicts uniformly"


def test_of_gaussian_logits_the_mean_is_fitted():
    """The T of the smallest loss among draws whose noise is the same whatever T."""
    source = torch.Generator().manual_seed(1)
    mean, root = 3 * torch.randn(200, 3, generator=source), torch.randn(200, 3, 3, generator=source)
    gaussian = GaussianLogits(mean, root)
    labels = torch.multinomial(mean.softmax(-1), 1, generator=source).flatten()
    found = fit_temperature(gaussian, labels).value

    def loss(temperature: float) -> float:
        draws = Predictive(torch.log_softmax(mean / temperature + noise, -1))
        return nll(draws, labels) + (math.log(temperature) / PRIOR_STD) ** 2 / 2 / len(labels)

    noise = torch.einsum("bij,sj->sbi", root, normal_points(LOGIT_DRAWS, 3, 0).float())
    assert loss(found) < min(loss(found * 1.02), loss(found / 1.02))


def test_what_cannot_be_fitted_says_why():
    predictive, labels = items(3, 1.0)
    with pytest.raises(ValueError, match="got none"):
        fit_temperature(predictive.take(torch.arange(0)), labels[:0])
    with pytest.raises(ValueError, match="prior_std must be positive"):
        fit_temperature(predictive, labels, 0.0)
