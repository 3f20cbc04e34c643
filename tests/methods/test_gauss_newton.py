"""The Gauss-Newton posterior against dense linear algebra."""

import pytest
import torch
from test_laplace import NetworkBatch, dense_jacobian, network, network_batch
from torch import Tensor

from bayeslora.methods import TrainingResult
from bayeslora.methods.gauss_newton import GaussNewton, outer_maps, units
from bayeslora.methods.laplace_approximation import (
    LowRankGaussian,
    Subspace,
    contrasts,
    leading_directions,
    leading_root,
    lora_maps,
    low_rank_curvature,
)

torch.set_num_threads(1)


def full_subspace(maps, unit: float = 1.0) -> Subspace:
    widths = {name: max(one.in_features, one.out_features) for name, one in maps.items()}
    return Subspace({name: torch.eye(width).double() for name, width in widths.items()}, dict.fromkeys(maps, unit))


def fitted(model, batches, subspace: Subspace, prior_variance: float, columns: int = 9) -> LowRankGaussian:
    values, vectors, _ = low_rank_curvature(model, lora_maps(model), batches, subspace, columns, 500)
    return LowRankGaussian(subspace, values, vectors, prior_variance)


def stacked(model, batch, maps) -> Tensor:
    """Dense gradients of all scores by all weights [batch, choices, weights]."""
    return torch.cat([dense_jacobian(model, batch, one.weight) for one in maps.values()], -1)


def dense_covariance(model, batch, new, prior_variance: float) -> Tensor:
    """C J (sum_n J_n^T H_n J_n + I / s^2)^-1 J^T C with C the centring over choices."""
    maps = lora_maps(model)
    p = batch.choice_logits(model).detach().double().softmax(-1)
    jacobian = stacked(model, batch, maps)
    hessian = torch.diag_embed(p) - torch.einsum("bi,bj->bij", p, p)
    curvature = torch.einsum("bci,bcd,bdj->ij", jacobian, hessian, jacobian)
    inverse = torch.linalg.inv(curvature + torch.eye(len(curvature)) / prior_variance)
    centred = stacked(model, new, maps)
    centred = centred - centred.mean(1, keepdim=True)
    return torch.einsum("bci,ij,bdj->bcd", centred, inverse, centred)


@pytest.mark.parametrize("items", [1, 4, 30])
@pytest.mark.parametrize("prior_variance", [0.01, 1.0, 100.0])
def test_in_the_full_space_it_is_the_dense_posterior(items, prior_variance):
    model, batch, new = network(), network_batch(items, tokens=2), network_batch(3, tokens=4)
    maps = lora_maps(model)
    gaussian = fitted(model, [batch], full_subspace(maps), prior_variance)
    logits, found = gaussian.scores(model, new, maps)
    torch.testing.assert_close(logits, new.choice_logits(model).detach())
    expected = dense_covariance(model, batch, new, prior_variance)
    torch.testing.assert_close(found.posterior, expected, rtol=1e-3, atol=1e-5 * float(expected.max()))
    assert ((found.ratio > 0) & (found.ratio <= 1 + 1e-6)).all()


def test_units_are_standard_deviations_of_the_prior():
    model, batch, new = network(), network_batch(9), network_batch(2)
    maps = lora_maps(model)
    one = fitted(model, [batch], full_subspace(maps, 3.0), 0.25).scores(model, new, maps)[1]
    other = fitted(model, [batch], full_subspace(maps, 1.0), 0.25 * 9).scores(model, new, maps)[1]
    torch.testing.assert_close(one.posterior, other.posterior, rtol=1e-4, atol=1e-8)
    torch.testing.assert_close(one.prior, other.prior, rtol=1e-6, atol=1e-8)


def test_fewer_directions_and_columns_leave_more_of_the_prior():
    """Less of the curvature is kept, so no variance is smaller; across the directions it is the prior's."""
    model, batch, new = network(), network_batch(20), network_batch(3)
    maps = lora_maps(model)
    whole = fitted(model, [batch], full_subspace(maps), 4.0).scores(model, new, maps)[1]
    few = Subspace(leading_directions(model, maps, [batch], 1), dict.fromkeys(maps, 1.0))
    for gaussian in (fitted(model, [batch], few, 4.0), fitted(model, [batch], full_subspace(maps), 4.0, columns=1)):
        found = gaussian.scores(model, new, maps)[1]
        torch.testing.assert_close(found.prior, whole.prior)
        assert (torch.linalg.eigvalsh(found.posterior - whole.posterior) > -1e-6).all()
        assert (torch.linalg.eigvalsh(found.prior - found.posterior) > -1e-6).all()


def test_more_items_leave_less_variance():
    model, new = network(), network_batch(4, seed=9)
    maps, batch = lora_maps(model), network_batch(40)
    parts = [NetworkBatch({name: value[:count] for name, value in batch.items()}) for count in (2, 10, 40)]
    ratios = [fitted(model, [part], full_subspace(maps), 1.0).scores(model, new, maps)[1].ratio for part in parts]
    assert (ratios[0] > ratios[1]).all() and (ratios[1] > ratios[2]).all()


def test_contrasts_are_orthonormal_and_leave_out_missing_choices():
    basis = contrasts(torch.tensor([[True, True, True], [True, True, False]]))
    gram = basis.mT @ basis
    torch.testing.assert_close(gram[0], torch.eye(2).double())
    torch.testing.assert_close(gram[1].diagonal().sum(), torch.tensor(1.0).double())
    assert basis[1, 2].abs().max() < 1e-12 and basis.sum(1).abs().max() < 1e-12


def test_the_leading_root_is_the_best_approximation_of_its_rank():
    matrix = torch.diag(torch.tensor([1.0, 5.0, 3.0]).double())
    root = leading_root(matrix, 2)
    torch.testing.assert_close(root @ root.T, torch.diag(torch.tensor([0.0, 5.0, 3.0]).double()))


# --- the method ------------------------------------------------------------------------------------------------------


def test_the_priors_of_two_bases_that_are_equal_up_to_scale_say_the_same():
    """Units follow the base weights, so that an update relative to them has the same prior."""
    model = network()
    maps = outer_maps(model)
    before, layer = units(model, maps), model.base_model.model.body
    with torch.no_grad():
        layer.get_base_layer().weight.mul_(3)
        layer.lora_A["default"].weight.mul_(0.5)
    after = units(model, maps)
    for name, one in maps.items():
        update = layer.scaling["default"] * before[name] * layer.lora_A["default"].weight.norm() * 2
        other = layer.scaling["default"] * after[name] * layer.lora_A["default"].weight.norm()
        torch.testing.assert_close(other, 3 * update)
        assert one is layer.lora_B["default"]


def test_a_state_of_another_adapter_is_refused():
    model, batch = network(), network_batch()
    method = GaussNewton()
    with pytest.raises(ValueError, match="ask for 0 samples"):
        method.predict(model, batch, 10, 0)
    state = method.fit_posterior(model, TrainingResult(lambda: [batch], 3, None, None, 0))
    renamed = {name.replace("body", "other"): value for name, value in state.items()}
    with pytest.raises(ValueError, match="same run"):
        method.predict(model, batch, 10, 0, state=renamed)


def test_predictions_have_a_variance_ratio_that_follows_its_items():
    model, batch = network(), network_batch(20)
    method = GaussNewton(prior_scale=2.0)
    state = method.fit_posterior(model, TrainingResult(lambda: [batch], 20, None, None, 0))
    found = method.predict(model, batch, 10, 0, state=state)
    ratio = found.further["variance_ratio"]
    assert ratio.shape == (20,) and ((ratio > 0) & (ratio < 1)).all()
    order = torch.tensor([3, 1])
    torch.testing.assert_close(found.take(order).tempered(2.0).further["variance_ratio"], ratio[order])
    joined = type(found).concatenate([found.take(order), found.cpu()])
    torch.testing.assert_close(joined.further["variance_ratio"], torch.cat([ratio[order], ratio]))
    assert method.predict(model, batch, 0, 0, state=state).further == {}
    assert found.rescaled(torch.ones(20, 3)) is None  # What all choices share is not in a root of contrasts.
