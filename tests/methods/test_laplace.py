"""Laplace-LoRA against dense linear algebra and autograd Jacobians."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn

from bayeslora.methods import Lora, State, TrainingResult
from bayeslora.methods.laplace import LaplaceLora
from bayeslora.methods.laplace_approximation import (
    LOGIT_DRAWS,
    GaussianLogits,
    KroneckerBlock,
    KroneckerSum,
    OuterProductSum,
    best_prior_precision,
    corrected_blocks,
    covariance_root,
    eigenvalues,
    kronecker_blocks,
    leading_root,
    log_evidence,
    logit_covariance,
    lora_maps,
    normal_points,
    output_hessian,
    record,
)
from bayeslora.prediction.predictive import Predictive
from bayeslora.prediction.temperature import fit_temperature
from bayeslora.runs import load_run, train
from bayeslora.runs.config import ModelConfig, RunConfig, TaskConfig, TrainConfig
from bayeslora.scoring import ChoiceBatch, Classification, Cloze, Letter
from bayeslora.scoring.trunk_cache import TrunkCache
from bayeslora.tasks import Item
from conftest import (
    byte_level_tokenizer,
    perturb,
    seeded,
    tiny_bert,
    tiny_gpt2,
    tiny_llama,
    wordpiece_tokenizer,
)

torch.set_num_threads(1)

Blocks = dict[str, KroneckerBlock]
Weights = dict[str, Tensor]


# --- a network small enough for dense matrices -----------------------------------------------------------------------


class Network(nn.Module):
    """Tokens [batch, tokens, 5], a linear map, their mean where `mask` says so, and a linear head on `choices`."""

    def __init__(self, choices: int = 3):
        super().__init__()
        self.body = nn.Linear(5, 6)
        self.head = nn.Linear(6, choices)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        kept = mask.to(x.dtype).unsqueeze(-1)
        return self.head((self.body(x) * kept).sum(1) / kept.sum(1))


class NetworkBatch(ChoiceBatch):
    def raw_logits(self, model: nn.Module) -> Tensor:
        return model(self["x"], self["mask"])


def network(target: Sequence[str] = ("body",), choices: int = 3) -> PeftModel:
    with seeded(1):
        base = Network(choices).double()
        model = get_peft_model(base, LoraConfig(r=2, lora_alpha=4, target_modules=list(target)))
    return perturb(model.double(), scale=0.3).eval()  # type: ignore[return-value]


def network_batch(items: int = 3, tokens: int = 1, choices: int = 3, seed: int = 0) -> NetworkBatch:
    source = torch.Generator().manual_seed(seed)
    return NetworkBatch(
        x=torch.randn(items, tokens, 5, generator=source, dtype=torch.float64),
        mask=torch.ones(items, tokens, dtype=torch.bool),
        input_ids=torch.randint(4, 90, (items, tokens), generator=source),
        attention_mask=torch.ones(items, tokens, dtype=torch.long),
        choice_mask=torch.ones(items, choices, dtype=torch.bool),
        labels=torch.randint(0, choices, (items,), generator=source),
    )


# --- dense references ------------------------------------------------------------------------------------------------


def dense_jacobian(model: nn.Module, batch: ChoiceBatch, weight: Tensor) -> Tensor:
    """Gradient of each raw logit by a trainable weight, one backward pass each: [batch, choices, weights]."""
    logits = batch.raw_logits(model)
    rows = [torch.autograd.grad(logit, weight, retain_graph=True)[0].flatten() for logit in logits.flatten()]
    return torch.stack(rows).unflatten(0, logits.shape).double()


def dense_curvature(model: nn.Module, batch: ChoiceBatch, weight: Tensor) -> Tensor:
    """sum_n J_n^T (diag(p_n) - p_n p_n^T) J_n."""
    p = batch.choice_logits(model).detach().double().softmax(-1)
    jacobian = dense_jacobian(model, batch, weight)
    hessian = torch.diag_embed(p) - torch.einsum("bi,bj->bij", p, p)
    return torch.einsum("bci,bcd,bdj->ij", jacobian, hessian, jacobian)


def dense(block: KroneckerBlock) -> Tensor:
    """The block on the weight's elements, rows of the weight one after the other."""
    basis = torch.kron(block.output_vectors, block.input_vectors).double()
    return basis * block.eigenvalues.flatten() @ basis.T


def assert_near(one: Tensor, other: Tensor, relative: float = 1e-5) -> None:
    """Difference small beside the largest element; the logits, and so the gradients' weights, are float32."""
    assert one.shape == other.shape
    assert (one - other).abs().max() <= relative * other.abs().max().clamp_min(1e-12)


# --- curvature -------------------------------------------------------------------------------------------------------


def test_the_root_squares_to_the_hessian_and_ignores_missing_choices():
    p = torch.tensor([[0.2, 0.5, 0.3], [0.4, 0.6, 0.0]], dtype=torch.float64)
    logits = p.log().requires_grad_()
    root = leading_root(output_hessian(logits), 2)
    for n in range(2):
        inner = logits[n].detach()[: 3 - n].requires_grad_()
        expected = torch.autograd.functional.hessian(lambda f: torch.logsumexp(f, 0), inner)
        torch.testing.assert_close((root @ root.mT)[n, : 3 - n, : 3 - n], expected)
    assert root[1, 2].abs().sum() == 0


@pytest.mark.parametrize(("choices", "tokens"), [(2, 1), (3, 1), (3, 4)])
def test_the_block_of_one_item_is_exact_where_tokens_share_their_gradient(choices, tokens):
    model, batch = network(choices=choices), network_batch(1, tokens, choices)
    maps = lora_maps(model)
    blocks, _ = kronecker_blocks(model, maps, [batch])
    assert [name.rpartition("body.")[2] for name in maps] == ["lora_A.default", "lora_B.default"]
    for name, module in maps.items():
        assert_near(dense(blocks[name]), dense_curvature(model, batch, module.weight))


def test_the_block_is_that_of_the_sum_over_items():
    """Copies of one item: exact again, and N times its block, in whatever batches they come."""
    model, one = network(), network_batch(1)
    maps = lora_maps(model)
    copies = [
        NetworkBatch({name: value.repeat(count, *[1] * (value.dim() - 1)) for name, value in one.items()})
        for count in (3, 4)
    ]
    blocks, log_likelihood = kronecker_blocks(model, maps, copies)
    for name, module in maps.items():
        assert_near(dense(blocks[name]), 7 * dense_curvature(model, one, module.weight))
    expected = 7 * one.choice_logits(model).log_softmax(-1)[0, one["labels"][0]]
    assert log_likelihood == pytest.approx(expected.item(), rel=1e-5)


def test_items_that_differ_give_the_kfac_formula():
    model, batch = network(), network_batch(5)
    maps = lora_maps(model)
    blocks, _ = kronecker_blocks(model, maps, [batch])
    x = batch["x"][:, 0]
    first, second = maps.values()
    scaling, head = 2.0, model.base_model.model.head.weight
    p = batch.choice_logits(model).detach().double().softmax(-1)
    hessian = (torch.diag_embed(p) - torch.einsum("bi,bj->bij", p, p)).sum(0)
    to_second = scaling * head
    to_first = to_second @ second.weight
    for name, inputs, jacobian in zip(maps, (x, x @ first.weight.T), (to_first, to_second), strict=True):
        expected = torch.kron(jacobian.T @ hessian @ jacobian, inputs.T @ inputs / 5)
        assert_near(dense(blocks[name]), expected.detach())


def test_corrected_eigenvalues_are_the_curvature_along_the_eigenbasis():
    """With items and tokens that differ, in two batches: nearer to the curvature than KFAC in the same basis."""
    model, whole = network(), network_batch(7, tokens=3)
    whole["mask"][:, 0] = torch.arange(7) % 2 == 0
    maps = lora_maps(model)
    batches = [NetworkBatch({name: value[part] for name, value in whole.items()}) for part in (slice(3), slice(3, 7))]
    blocks, _ = kronecker_blocks(model, maps, batches)
    for name, block in corrected_blocks(model, maps, batches, blocks).items():
        curvature = dense_curvature(model, whole, maps[name].weight)
        basis = torch.kron(block.output_vectors, block.input_vectors)
        assert_near(block.eigenvalues.flatten(), (basis.T @ curvature @ basis).diagonal())
        assert (dense(block) - curvature).norm() < 0.9 * (dense(blocks[name]) - curvature).norm()


def test_padding_does_not_count():
    model, batch = network(), network_batch(1, tokens=3)
    padded = NetworkBatch(batch | {"x": torch.cat([torch.full((1, 2, 5), 9.0), batch["x"]], 1)})
    padded["mask"] = torch.tensor([[False, False, True, True, True]])
    maps = lora_maps(model)
    (blocks, _), (others, _) = (kronecker_blocks(model, maps, [b]) for b in (batch, padded))
    for name in maps:
        assert_near(dense(others[name]), dense(blocks[name]))


def test_an_outer_product_sum_is_exact_in_full_and_the_leading_part_below():
    source = torch.Generator().manual_seed(0)
    rows = torch.randn(50, 6, generator=source, dtype=torch.float64) * torch.tensor([9, 7, 5, 0.3, 0.2, 0.1])
    exact = rows.T @ rows
    full, cut = OuterProductSum(6, 6), OuterProductSum(6, 3)
    for chunk in rows.split(7):
        full.add(chunk)
        cut.add(chunk)
    values, vectors = full.eigen()
    torch.testing.assert_close(vectors * values @ vectors.T, exact)
    torch.testing.assert_close(vectors.T @ vectors, torch.eye(6, dtype=torch.float64))
    values, vectors = cut.eigen()
    assert values.shape == (3,) and vectors.shape == (6, 3)
    # What is cut away is about 1 / 500 of the rest here.
    assert ((vectors * values @ vectors.T - exact).norm() / exact.norm()) < 5e-3
    nothing = OuterProductSum(4, 4)
    nothing.add(torch.zeros(3, 4))
    assert nothing.eigen()[0].shape == (0,) and nothing.eigen()[1].shape == (4, 0)


def test_only_the_wide_factor_is_cut():
    def widths(width_in: int, width_out: int, rank: int | None) -> tuple[int, int]:
        total = KroneckerSum(width_in, width_out, rank)
        source = torch.Generator().manual_seed(0)
        total.add(torch.randn(40, width_in, generator=source), torch.randn(40, width_out, generator=source))
        block = total.block()
        return len(block.input_values), len(block.output_values)

    assert widths(30, 4, None) == (30, 4) and widths(30, 4, 2) == (2, 4)
    assert widths(4, 30, 2) == (4, 2) and widths(4, 1024, None) == (4, 40) and widths(1025, 4, None) == (10, 4)


# --- evidence --------------------------------------------------------------------------------------------------------


def fitted(batch: NetworkBatch, rank: int | None = None) -> tuple[dict[str, nn.Linear], Blocks, float, float]:
    model = network()
    maps = lora_maps(model)
    blocks, log_likelihood = kronecker_blocks(model, maps, [batch], rank=rank)
    norm = sum((module.weight**2).sum().item() for module in maps.values())
    return maps, blocks, log_likelihood, norm


def dense_evidence(blocks: Blocks, log_likelihood: float, norm: float, precision: float) -> float:
    posterior = torch.block_diag(*[dense(block) for block in blocks.values()])
    count = len(posterior)
    posterior = posterior + precision * torch.eye(count)
    _, log_determinant = torch.linalg.slogdet(posterior)
    gaussian = -precision / 2 * norm + count / 2 * math.log(precision)
    return log_likelihood + gaussian - float(log_determinant) / 2


@pytest.mark.parametrize("rank", [None, 2])
@pytest.mark.parametrize("precision", [0.03, 1.0, 40.0])
def test_the_evidence_is_that_of_dense_matrices(rank, precision):
    _, blocks, log_likelihood, norm = fitted(network_batch(9), rank)
    mine = log_evidence(log_likelihood, norm, eigenvalues(blocks.values()), precision)
    assert mine == pytest.approx(dense_evidence(blocks, log_likelihood, norm, precision), abs=1e-5)


@pytest.mark.parametrize("items", [2, 40, 400])
def test_the_best_prior_precision_maximises_the_dense_evidence(items):
    _, blocks, log_likelihood, norm = fitted(network_batch(items))
    curvature = eigenvalues(blocks.values())
    best = best_prior_precision(norm, curvature)
    grid = np.geomspace(1e-4, 1e4, 801)
    scores = [dense_evidence(blocks, log_likelihood, norm, precision) for precision in grid]
    assert abs(math.log(best / grid[int(np.argmax(scores))])) < 0.03
    # MacKay's fixed point: precision * |theta|^2 is the effective number of parameters.
    assert best * norm == pytest.approx(float((curvature / (curvature + best)).sum()), rel=1e-4)


@pytest.mark.parametrize("scale", [1e-9, 1e9])
def test_the_search_brackets_any_scale(scale):
    curvature = scale * torch.tensor([0.5, 2.0, 7.0], dtype=torch.float64)
    for norm in (1e-6, 1.0, 1e6):
        best = best_prior_precision(norm, curvature)
        assert best * norm == pytest.approx(float((curvature / (curvature + best)).sum()), rel=1e-3)


def test_without_curvature_the_evidence_chooses_nothing():
    with pytest.raises(ValueError, match="give prior_precision a number"):
        best_prior_precision(1.0, torch.zeros(0))


# --- predictive ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("corrected", [False, True])
@pytest.mark.parametrize("rank", [None, 2])
def test_the_covariance_is_the_dense_one(rank, corrected):
    model, precision = network(), 0.7
    maps, train = lora_maps(model), [network_batch(9)]
    blocks, _ = kronecker_blocks(model, maps, train, rank=rank)
    if corrected:
        blocks = corrected_blocks(model, maps, train, blocks)
    batch = network_batch(4, tokens=2, seed=5)
    expected = 0
    for name, module in maps.items():
        jacobian = dense_jacobian(model, batch, module.weight)
        sigma = torch.linalg.inv(dense(blocks[name]) + precision * torch.eye(module.weight.numel()))
        expected = expected + jacobian @ sigma @ jacobian.mT
    logits, recording = record(model, batch, maps)
    mine = logit_covariance(logits, recording, blocks, precision)
    assert_near(mine.double(), expected)
    # However small the share of the maps that is held at once.
    torch.testing.assert_close(logit_covariance(logits, recording, blocks, precision, memory_limit=1), mine)


def test_the_memory_limit_groups_the_maps(monkeypatch):
    model, batch = network(target=("body", "head")), network_batch(4)
    maps = lora_maps(model)
    blocks, _ = kronecker_blocks(model, maps, [batch])
    logits, recording = record(model, batch, maps)
    groups: list[int] = []
    gradients = recording.gradients
    monkeypatch.setattr(recording, "gradients", lambda f, w, names: groups.append(len(names)) or gradients(f, w, names))
    # Weights: 10 and 12 in the body's maps, 12 and 6 in the head's; 4 bytes each, for 4 items and 3 choices.
    for weights, expected in ((40, [4]), (24, [2, 2]), (21, [1, 1, 2]), (1, [1, 1, 1, 1])):
        groups.clear()
        logit_covariance(logits, recording, blocks, 1.0, memory_limit=weights * 4 * 4 * 3)
        assert groups == [size for size in expected for _ in range(3)]


WORDS = ("iron", "wood", "glass", "paper", "water", "wool", "sun and moon", "a lazy dog")


def items(count: int = 6, offset: int = 0) -> list[Item]:
    """Questions of different length, with two to four choices."""
    return [
        Item(
            id=str(index),
            question="Which of these " + "is a metal " * (index % 3) + f"{index}?",
            choices=tuple(WORDS[(index + shift) % len(WORDS)] for shift in range(2 + index % 3)),
            label=index % 2,
        )
        for index in range(offset, offset + count)
    ]


def case(kind: str) -> tuple[PeftModel, Any]:
    """A tiny model with a perturbed LoRA adapter, and a scoring."""
    options: dict[str, Any] = {"r": 2, "lora_alpha": 4, "lora_dropout": 0.3}
    if kind == "classification":
        base, scoring = tiny_bert(vocab_size=320, num_labels=4), Classification(wordpiece_tokenizer())
        options |= {"target_modules": ["query", "dense"], "layers_to_transform": [3], "task_type": "SEQ_CLS"}
    elif kind == "gpt2":
        base, scoring = tiny_gpt2(vocab_size=320), Cloze(byte_level_tokenizer())
        options |= {"target_modules": ["c_attn", "c_fc"], "fan_in_fan_out": True, "layers_to_transform": [2, 3]}
    else:
        scoring = {"cloze": Cloze, "letter": Letter, "head": Cloze}[kind](byte_level_tokenizer())
        base = tiny_llama(vocab_size=320, max_position_embeddings=512)
        options |= {"target_modules": ["q_proj", "v_proj"], "layers_to_transform": [2, 3]}
        if kind == "head":
            options |= {"target_modules": ["lm_head", "v_proj"], "layers_to_transform": None}
    with seeded(3):
        model = get_peft_model(base, LoraConfig(**options))
    return perturb(model, scale=0.2).eval(), scoring  # type: ignore[return-value]


KINDS = ("cloze", "letter", "classification", "gpt2", "head")


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_of_a_batch_are_those_of_each_item_alone(kind):
    model, scoring = case(kind)
    maps, batch = lora_maps(model), scoring(items(3))
    logits, recording = record(model, batch, maps)
    choices = logits.shape[1]
    for index, item in enumerate(items(3)):
        alone = scoring([item])
        expected = {name: dense_jacobian(model, alone, module.weight)[0] for name, module in maps.items()}
        for choice in range(choices):
            weights = torch.zeros(3, choices)
            weights[:, choice] = 1
            for name, gradients in recording.gradients(logits, weights, maps).items():
                mine = (gradients.mT @ recording.inputs(name))[index].flatten().double()
                if choice < len(item.choices):
                    torch.testing.assert_close(mine, expected[name][choice], rtol=1e-3, atol=1e-5)
                else:
                    assert mine.abs().sum() == 0


def training(model: PeftModel, scoring: Any, train: list[Item], size: int = 4, cache: TrunkCache | None = None):
    def batches() -> list[ChoiceBatch]:
        return [scoring(train[first : first + size]) for first in range(0, len(train), size)]

    return TrainingResult(batches, len(train), None, cache, 0)


def predict(method: LaplaceLora, model: nn.Module, batch: ChoiceBatch, state: State | None, samples: int = 5, **more):
    return method.predict(model, batch, samples, 0, state=state, **more)


@pytest.mark.parametrize("kind", KINDS)
def test_finish_and_predict_on_every_scoring(kind):
    model, scoring = case(kind)
    method = LaplaceLora()
    state = method.fit_posterior(model, training(model, scoring, items(8)))
    batch = scoring(items(5, 20))
    predictive = predict(method, model, batch, state)
    assert predictive.samples.shape == (LOGIT_DRAWS, *batch["choice_mask"].shape)
    assert predictive.samples.dtype == predictive.log_probabilities.dtype == torch.float32
    torch.testing.assert_close(predictive.samples.exp().sum(-1), torch.ones(LOGIT_DRAWS, 5))
    assert (predictive.samples.isneginf() == ~batch["choice_mask"]).all()
    assert not predictive.samples.isnan().any() and (predictive.mutual_information > 0).all()


def test_finish_takes_the_options_and_returns_the_evidence_at_its_best():
    model, scoring = case("cloze")
    work = training(model, scoring, items(8))
    maps = lora_maps(model)
    blocks, log_likelihood = kronecker_blocks(model, maps, work.batches(), rank=2)
    norm = sum(module.weight.double().pow(2).sum().item() for module in maps.values())
    state = LaplaceLora(kronecker_rank=2).fit_posterior(model, work)
    best = best_prior_precision(norm, eigenvalues(blocks.values()))
    assert state["prior_precision"].item() == pytest.approx(best, rel=1e-4)
    expected = dense_evidence(blocks, log_likelihood, norm, best)
    assert state["log_evidence"].item() == pytest.approx(expected, rel=1e-4)
    assert all(value.shape == (32, 2) for name, value in state.items() if name.endswith("lora_A.default.input_vectors"))
    number = LaplaceLora(prior_precision=3.0).fit_posterior(model, work)
    assert number["prior_precision"].item() == 3 and number["log_evidence"] != state["log_evidence"]


def test_a_corrected_posterior_predicts_after_loading_as_before():
    model, scoring = case("cloze")
    work, batch = training(model, scoring, items(8)), scoring(items(5, 20))
    states = {kind: LaplaceLora(curvature=kind).fit_posterior(model, work) for kind in ("kfac", "ekfac")}
    assert states["kfac"].keys() < states["ekfac"].keys()
    assert states["kfac"]["log_evidence"] != states["ekfac"]["log_evidence"]
    # The option belongs to the fit; a state says itself what it is.
    answers = {kind: predict(LaplaceLora(), model, batch, state) for kind, state in states.items()}
    assert isinstance(answers["ekfac"], GaussianLogits)
    assert not torch.allclose(answers["kfac"].log_probabilities, answers["ekfac"].log_probabilities)


def gaussians(items: int, choices: int, scale: float = 3.0) -> GaussianLogits:
    source = torch.Generator().manual_seed(0)
    mean, matrix = torch.randn(items, choices, generator=source), torch.randn(items, choices, choices, generator=source)
    return GaussianLogits(scale * mean, covariance_root(scale**2 * matrix @ matrix.mT).float())


def test_the_root_squares_to_the_covariance():
    root = gaussians(4, 3).root
    matrix = torch.randn(4, 3, 2, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    found = covariance_root(matrix @ matrix.mT)
    torch.testing.assert_close(found @ found, matrix @ matrix.mT)
    torch.testing.assert_close(root, root.mT)


def test_the_points_are_normal_and_in_pairs():
    points = normal_points(4096, 3, 5)
    assert torch.equal(points[::2], -points[1::2])
    torch.testing.assert_close(points.T.cov(), torch.eye(3, dtype=torch.float64), atol=0.02, rtol=0)
    assert float((points.abs() < 1).double().mean()) == pytest.approx(0.6827, abs=0.01)
    assert torch.equal(normal_points(64, 2, 5), points[:64, :2])
    assert (normal_points(64, 2, 6) != points[:64, :2]).all()
    with pytest.raises(ValueError, match="even"):
        normal_points(3, 2, 0)


@pytest.mark.parametrize("choices", [2, 5])
def test_the_predictive_is_the_integral(choices):
    """Against a million random draws; and its uncertainties are those of its own draws."""
    found = gaussians(6, choices)
    noise = torch.randn(2**20, choices, generator=torch.Generator().manual_seed(1))
    expected = sum(
        (found.mean + torch.einsum("bij,sj->sbi", found.root, part)).softmax(-1).sum(0) for part in noise.split(2**16)
    )
    torch.testing.assert_close(found.probabilities, expected / 2**20, atol=0.004, rtol=0)
    dense = Predictive(found.samples)
    for name in ("log_probabilities", "entropy", "mutual_information", "spread"):
        torch.testing.assert_close(getattr(found, name), getattr(dense, name), atol=2e-5, rtol=1e-4)


def test_a_temperature_mends_a_covariance_that_is_too_large():
    """Labels from softmax(mean / 2), and a posterior so broad that sharper draws are as far from it."""
    mean = 3 * torch.randn(4000, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    truth = (mean / 2).softmax(-1)
    labels = torch.multinomial(truth, 1, generator=torch.Generator().manual_seed(1)).squeeze(-1)
    broad = GaussianLogits(mean, 6 * torch.eye(3, dtype=torch.float64).expand(4000, -1, -1))

    def distance(predictive):
        return float((predictive.probabilities - truth).abs().mean())

    found = broad.tempered(fit_temperature(broad, labels).value)
    samples = Predictive(broad.samples[:512])
    draws = samples.tempered(fit_temperature(samples, labels).value)
    assert distance(found) < 0.03 < 0.08 < min(distance(draws), distance(broad))


def test_with_two_choices_the_likelier_one_is_that_of_the_mean():
    """Also where it leads by a hundred-thousandth of the standard deviation, which no random draws would show."""
    spread = gaussians(200, 2, scale=30.0)
    near = GaussianLogits(spread.mean * 1e-5, spread.root)
    for found in (spread, near):
        assert torch.equal(found.probabilities.argmax(-1), found.mean.argmax(-1))


def test_items_are_taken_and_put_together_whatever_their_width(monkeypatch):
    narrow, wide = gaussians(3, 2), gaussians(4, 3)
    together = Predictive.concatenate([narrow, wide])
    order = torch.tensor([6, 0, 3])
    assert isinstance(together, GaussianLogits) and together.samples.shape == (LOGIT_DRAWS, 7, 3)
    torch.testing.assert_close(together.probabilities[:3, :2], narrow.probabilities)
    torch.testing.assert_close(together.probabilities[3:], wide.probabilities)
    assert (together.probabilities[:3, 2] == 0).all() and together.mutual_information.isfinite().all()
    torch.testing.assert_close(together.take(order).probabilities, together.probabilities[order])
    monkeypatch.setattr("bayeslora.methods.laplace_approximation.gaussian._CHUNK", 1)
    torch.testing.assert_close(together.take(order).samples, together.samples[:, order])


def test_probabilities_are_averaged_not_logits():
    model, scoring = case("cloze")
    method = LaplaceLora(prior_precision=0.01)
    state = method.fit_posterior(model, training(model, scoring, items(8)))
    batch = scoring(items(3, 20))
    predictive = predict(method, model, batch, state)
    maps = lora_maps(model)
    blocks, _ = kronecker_blocks(model, maps, training(model, scoring, items(8)).batches())
    logits, recording = record(model, batch, maps)
    root = covariance_root(logit_covariance(logits, recording, blocks, 0.01))
    draws = logits.double() + torch.einsum("bij,sj->sbi", root, normal_points(LOGIT_DRAWS, logits.shape[-1], 0))
    torch.testing.assert_close(predictive.probabilities, draws.softmax(-1).mean(0).float(), rtol=1e-4, atol=1e-5)
    assert (predictive.probabilities - draws.mean(0).softmax(-1)).abs().max() > 0.01


def test_a_prediction_depends_on_the_item_alone_and_on_no_number_of_samples():
    model, scoring = case("cloze")
    method = LaplaceLora(prior_precision=1.0)
    state = method.fit_posterior(model, training(model, scoring, items(8)))
    test = items(4, 20)
    many = predict(method, model, scoring(test), state, samples=7).probabilities
    assert torch.equal(predict(method, model, scoring(test), state, samples=1).probabilities, many)
    assert (method.effective_num_samples(0), method.effective_num_samples(7)) == (0, LOGIT_DRAWS)
    assert method.forwards_used(7) == 1
    for index, item in enumerate(test):
        alone = predict(method, model, scoring([item]), state).probabilities[0]
        torch.testing.assert_close(alone, many[index, : len(alone)], rtol=1e-3, atol=1e-4)
    other = method.predict(model, scoring(test), 3, 1, state=state).probabilities
    assert 1e-6 < (other - many).abs().max() < 0.01


def test_predictions_do_not_depend_on_what_is_trainable_or_on_the_mode_and_change_nothing():
    model, scoring = case("cloze")
    method, batch = LaplaceLora(), scoring(items(3, 20))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    expected = method.fit_posterior(model, training(model, scoring, items(8)))
    model.train()
    state = method.fit_posterior(model, training(model, scoring, items(8)))
    assert all(torch.equal(state[name], expected[name]) for name in expected)
    assert model.training and all(parameter.grad is None for parameter in model.parameters())
    first = predict(method, model, batch, state)
    after = model.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    assert not any(module._forward_hooks for module in lora_maps(model).values())
    model.requires_grad_(False)
    with torch.no_grad():
        assert torch.equal(predict(method, model, batch, state).samples, first.samples)


def test_the_trunk_cache_changes_nothing():
    model, scoring = case("cloze")
    method, cache = LaplaceLora(), TrunkCache(model)
    assert cache.skipped == 2
    plain = method.fit_posterior(model, training(model, scoring, items(8)))
    fill = method.fit_posterior(model, training(model, scoring, items(8), cache=cache))
    assert len(cache) == 8
    served = method.fit_posterior(model, training(model, scoring, items(8), cache=cache))
    batch = scoring(items(3, 20))
    expected = predict(method, model, batch, plain).probabilities
    for state in (fill, served):
        for _ in range(2):
            mine = predict(method, model, batch, state, trunk_cache=cache).probabilities
            torch.testing.assert_close(mine, expected, rtol=1e-3, atol=1e-4)


def test_a_large_prior_precision_gives_the_point_estimate():
    model, scoring = case("cloze")
    batch = scoring(items(5, 20))
    point = Lora().predict(model, batch, 0, 0).probabilities
    gaps = []
    for precision in (1e0, 1e3, 1e10):
        method = LaplaceLora(prior_precision=precision)
        state = method.fit_posterior(model, training(model, scoring, items(8)))
        gaps.append(float((predict(method, model, batch, state).probabilities - point).abs().max()))
        assert torch.equal(predict(method, model, batch, None, samples=0).probabilities, point)
    assert gaps[0] > gaps[1] > gaps[2] and gaps[2] < 1e-4


def variance(method: LaplaceLora, model: PeftModel, scoring: Any, train: list[Item]) -> Tensor:
    maps = lora_maps(model)
    blocks, _ = kronecker_blocks(model, maps, training(model, scoring, train).batches(), rank=method.kronecker_rank)
    logits, recording = record(model, scoring(items(5, 50)), maps)
    return logit_covariance(logits, recording, blocks, 0.01).diagonal(dim1=1, dim2=2)


def test_more_data_or_more_of_the_curvature_means_less_variance():
    model, scoring = case("cloze")
    few, many = (variance(LaplaceLora(), model, scoring, items(count)) for count in (8, 32))
    present = few > 0
    assert (many[present] < few[present]).all()
    cut = variance(LaplaceLora(kronecker_rank=2), model, scoring, items(32))
    assert (cut[present] > many[present]).all()


def test_last_means_the_last_adapted_layer():
    model, scoring = case("cloze")
    names = list(lora_maps(model, "last"))
    assert len(names) == 4 and all(".layers.3." in name for name in names)
    assert len(lora_maps(model)) == 8
    assert [name.split(".")[-3] for name in lora_maps(case("head")[0], "last")] == ["lm_head", "lm_head"]
    state = LaplaceLora(layers="last").fit_posterior(model, training(model, scoring, items(8)))
    assert len(state) == 4 * 4 + 2
    last, every = (predict(LaplaceLora(), model, scoring(items(5, 20)), s) for s in (state, all_of(model)))
    assert (last.mutual_information > 0).all()
    assert last.mutual_information.mean() < every.mutual_information.mean()


def all_of(model: PeftModel) -> State:
    scoring = Cloze(byte_level_tokenizer())
    last = LaplaceLora(layers="last").fit_posterior(model, training(model, scoring, items(8)))
    precision = float(last["prior_precision"])
    return LaplaceLora(prior_precision=precision).fit_posterior(model, training(model, scoring, items(8)))


def test_a_shared_map_counts_all_its_calls():
    class Twice(Network):
        def forward(self, x: Tensor, mask: Tensor) -> Tensor:
            return super().forward(x, mask) + super().forward(torch.tanh(x), mask)

    with seeded(1):
        model = get_peft_model(Twice().double(), LoraConfig(r=2, target_modules=["body"])).double()
    perturb(model, scale=0.3).eval()
    maps, batch = lora_maps(model), network_batch(2)
    logits, recording = record(model, batch, maps)
    for name, module in maps.items():
        gradients = recording.gradients(logits, torch.tensor([[0.0, 1.0, 0.0]] * 2), maps)[name]
        mine = (gradients.mT @ recording.inputs(name)).flatten(1)
        assert_near(mine, dense_jacobian(model, batch, module.weight)[:, 1])


# --- errors ----------------------------------------------------------------------------------------------------------


def test_what_cannot_be_done_says_why():
    model, scoring = case("cloze")
    batch = scoring(items(2))
    with pytest.raises(ValueError, match="ask for 0 samples"):
        predict(LaplaceLora(), model, batch, {})
    state = LaplaceLora().fit_posterior(model, training(model, scoring, items(4)))
    with pytest.raises(ValueError, match="the adapter and the state of the same run"):
        predict(LaplaceLora(), case("classification")[0], batch, state)
    with pytest.raises(ValueError, match="active LoRA adapter"):
        lora_maps(tiny_llama())
    with pytest.raises(ValueError, match="no DoRA"):
        lora_maps(get_peft_model(tiny_llama(), LoraConfig(target_modules=["q_proj"], use_dora=True)))
    with pytest.raises(ValueError, match="no embeddings"):
        lora_maps(get_peft_model(tiny_llama(), LoraConfig(target_modules=["embed_tokens"])))
    model.merge_adapter()
    with pytest.raises(ValueError, match="do not merge"):
        predict(LaplaceLora(), model, batch, state)
    flat, packed = network(), network_batch(2, 3)
    packed |= {"x": packed["x"].view(6, 1, 5), "mask": packed["mask"].view(6, 1)}
    with pytest.raises(ValueError, match="leading dimension"):
        record(flat, packed, lora_maps(flat))


@pytest.mark.parametrize(
    "options", [{"layers": "first"}, {"prior_precision": 0.0}, {"prior_precision": "cv"}, {"kronecker_rank": 0}]
)
def test_options_are_checked(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        LaplaceLora(**options)


# --- runs ------------------------------------------------------------------------------------------------------------


def test_a_run_folder_gives_back_the_same_predictions(tmp_path: Path):
    tokenizer = byte_level_tokenizer()
    tiny_llama(vocab_size=len(tokenizer), max_position_embeddings=512).save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    for name, part in (("train", items(20)), ("test", items(6, 50))):
        rows = [{"question": i.question, "choices": ["iron", "wood", "wool"], "label": i.label} for i in part]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n", encoding="utf-8")

    def config(method: Any, **options: Any) -> RunConfig:
        model = ModelConfig(str(tmp_path / "base"), device="cpu")
        task = TaskConfig(str(tmp_path), train_examples=10)
        return RunConfig(model, task, method, TrainConfig(batch_size=4, **options), num_samples=6)

    trained = train(config(LaplaceLora(r=2, last_layers=2), max_steps=2), tmp_path / "run")
    assert trained.metrics["num_samples"] == LOGIT_DRAWS and trained.metrics["spread"] > 0
    loaded = load_run(tmp_path / "run")
    assert loaded.config.method.arguments == trained.config.method.arguments
    expected = trained.predict(trained.splits.test).predictive
    again = loaded.predict(trained.splits.test).predictive
    torch.testing.assert_close(again.samples, expected.samples, rtol=1e-3, atol=1e-4)

    # Around an adapter that is there already, without training.
    train(config(Lora(r=2, last_layers=2), max_steps=2), tmp_path / "lora")
    method = LaplaceLora(init_from=str(tmp_path / "lora"), prior_precision=5.0)
    after = train(config(method, epochs=0), tmp_path / "after")
    point = load_run(tmp_path / "lora").predict(trained.splits.test, 0).predictive
    torch.testing.assert_close(after.predict(trained.splits.test, 0).predictive.samples, point.samples)
    assert float(after.state["prior_precision"]) == 5.0
    assert isinstance(after.predict(trained.splits.test).predictive, Predictive)
