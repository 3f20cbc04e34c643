"""TFB: the same mean function, isotropic noise, and the noise level that the tolerance asks for."""

import json
import logging
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import Tensor, nn

from bayeslora import kl_divergence, predict, sampling
from bayeslora.adapters.draws import random_factors
from bayeslora.adapters.random_factor import RandomFactor
from bayeslora.methods import Lora, Method, TrainingResult
from bayeslora.methods.tfb import Tfb, TfbWeights, _inverse, _pairs, _subset, _to_svd_form, largest_sigma
from bayeslora.models import load_base_model
from bayeslora.runs import Trained, load_run, train
from bayeslora.runs.config import ModelConfig, RunConfig, TaskConfig, TrainConfig
from bayeslora.scoring import ChoiceBatch, Cloze
from bayeslora.scoring.trunk_cache import TrunkCache
from bayeslora.tasks import Item
from conftest import byte_level_tokenizer, distance, perturb, seeded, tiny_llama
from helpers import affine_map, kron, noise_count, noise_from_rows

SEED = 5
WORDS = ("wood", "glass", "paper", "water", "wool")


def items(count: int = 20, offset: int = 0) -> list[Item]:
    """Two to four choices each; "iron" is right, but for every fifth item."""
    result = []
    for index in range(count):
        width = 2 + index % 3
        choices = [WORDS[(index + shift) % len(WORDS)] for shift in range(width)]
        choices[index % width] = "iron"
        label = index % width if index % 5 else (index + 1) % width
        name = str(offset + index)
        result.append(Item(id=name, question=f"Which is a metal ({name})?", choices=tuple(choices), label=label))
    return result


def adapted(scale: float = 0.1, **options: Any) -> PeftModel:
    """A tiny model with a "trained" TFB adapter, in eval mode."""
    method = Tfb(**{"r": 4, "lora_alpha": 8, "last_layers": 2, "target_modules": ["q_proj", "v_proj"], **options})
    with seeded(1):
        model = method.adapt(tiny_llama(vocab_size=320), "causal_lm")
    return perturb(model, scale=scale).eval()  # type: ignore[return-value]


def batches(count: int = 20, size: int = 4) -> list[ChoiceBatch]:
    scoring, rows = Cloze(byte_level_tokenizer()), items(count)
    return [scoring(rows[first : first + size]) for first in range(0, count, size)]


def training(trunk_cache: TrunkCache | None = None) -> TrainingResult:
    return TrainingResult(batches, 20, None, trunk_cache, SEED)


def mean_logits(model: nn.Module) -> Tensor:
    with torch.no_grad():
        return torch.cat([batch.choice_logits(model).clamp_min(-1e3).flatten() for batch in batches()])


def relative_change(model: nn.Module, samples: int, anchors: list[ChoiceBatch], labels: str = "true") -> float:
    """Of the anchors' mean NLL, by a path of its own: one item at a time, probabilities averaged by hand."""
    losses = {0: 0.0, samples: 0.0}
    for batch in anchors:
        at_mean = predict(model, batch, 0).probabilities
        targets = batch["labels"] if labels == "true" else at_mean.argmax(-1)
        draws = torch.zeros_like(at_mean, dtype=torch.float64)
        for number in range(samples):
            with torch.no_grad(), sampling(model, 1, SEED, first=number):
                draws += torch.softmax(batch.choice_logits(model), -1) / samples
        for count, probabilities in ((0, at_mean), (samples, draws)):
            for row, target in zip(probabilities, targets, strict=True):
                losses[count] -= math.log(row[target])
    return abs(losses[samples] - losses[0]) / losses[0]


def scale_noise(model: nn.Module, factor: float) -> None:
    for one in random_factors(model):
        one.parameters_by_name["std"].mul_(factor)


def sigmas(model: nn.Module) -> Tensor:
    """std_i * d_i of all rows with noise; d is the norm of the columns of B'."""
    found = [a.parameters_by_name["std"][:, 0] * b.weight.detach().norm(dim=0) for a, b in _pairs(model)]
    return torch.cat(found)


# --- the SVD form ----------------------------------------------------------------------------------------------------


def test_finish_keeps_the_function_of_the_mean() -> None:
    model = adapted()
    before = mean_logits(model)
    factors = [a.weight.detach().clone() for a, _ in _pairs(model)]
    Tfb().fit_posterior(model, training())
    assert distance(mean_logits(model), before) < 1e-5
    assert all(distance(a.weight, old) > 1e-2 for (a, _), old in zip(_pairs(model), factors, strict=True))


def test_columns_of_b_are_orthogonal_and_sorted() -> None:
    model = adapted()
    for factor, other in _pairs(model):
        singular = _to_svd_form(factor, other)
        gram = other.weight.detach().double().T @ other.weight.detach().double()
        assert distance(gram, torch.diag(singular.square())) < 1e-6
        assert (singular[:-1] >= singular[1:]).all()


def one_layer(weight_b: Tensor, columns: int = 5) -> tuple[RandomFactor, nn.Linear]:
    """A and B of a layer with this B."""
    outputs, rank = weight_b.shape
    other = nn.Linear(rank, outputs, bias=False)
    other.weight.data = weight_b.float()
    with seeded(2):
        factor = RandomFactor(TfbWeights(rank, columns), torch.randn(rank, columns))
    return factor, other


def full_rank() -> Tensor:
    with seeded(3):
        return torch.randn(7, 3)


def zero_column() -> Tensor:
    weight = full_rank()
    weight[:, 1] = 0
    return weight


def dependent_columns() -> Tensor:
    weight = full_rank()
    weight[:, 2] = weight[:, 0] - 2 * weight[:, 1]
    return weight


def fewer_outputs_than_rank() -> Tensor:
    with seeded(3):
        return torch.randn(2, 3)


SHAPES = {
    "full_rank": (full_rank, 3),
    "zero_column": (zero_column, 2),
    "dependent_columns": (dependent_columns, 2),
    "fewer_outputs_than_rank": (fewer_outputs_than_rank, 2),
    "zero": (lambda: torch.zeros(7, 3), 0),
}
each_shape = pytest.mark.parametrize(("build", "rank"), SHAPES.values(), ids=list(SHAPES))


@each_shape
def test_covariance_of_the_update_is_isotropic_in_the_column_space_of_b(build: Callable[[], Tensor], rank: int) -> None:
    """Cov[vec B' A'] = sigma^2 P (x) I exactly, P the projection onto the columns of B; its mean is B A."""
    sigma, weight_b = 0.3, build()
    factor, other = one_layer(weight_b)
    product = weight_b.double() @ factor.weight.detach().double()
    inverse = _inverse(_to_svd_form(factor, other))
    family = factor.family
    mean, b = factor.weight.detach().double(), other.weight.detach().double()
    parameters = {"mean": mean, "std": sigma * inverse.unsqueeze(-1)}

    def update(rows: Tensor) -> Tensor:
        return (b @ family.sample_weight(parameters, noise_from_rows(family, rows))).flatten(1)

    offset, matrix = affine_map(update, noise_count(family))
    projection = weight_b.double() @ torch.linalg.pinv(weight_b.double(), rtol=1e-5)
    assert round(torch.trace(projection).item()) == rank
    assert distance(offset.view_as(product), product) < 1e-6
    expected = sigma**2 * kron(projection, torch.eye(product.shape[1], dtype=torch.float64))
    assert distance(matrix @ matrix.T, expected) < 1e-6


@each_shape
def test_rows_without_effect_get_no_noise(build: Callable[[], Tensor], rank: int) -> None:
    factor, other = one_layer(build())
    inverse = _inverse(_to_svd_form(factor, other))
    assert inverse.isfinite().all()
    assert int((inverse > 0).sum()) == rank


# --- the search ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("crossing", [1e-5, 0.0099, 0.01, 0.3, 70.0])
@pytest.mark.parametrize(("power", "at_most"), [(2, 5), (4, 12), (0.5, 16), (20, 24)])
def test_search_finds_the_crossing(power: float, at_most: int, crossing: float) -> None:
    calls = []

    def change(sigma: float) -> float:
        calls.append(sigma)
        return 0.003 * (sigma / crossing) ** power

    found, evaluations = largest_sigma(change, 0.003)
    assert crossing / 1.05 <= found <= crossing * (1 + 1e-12)
    assert evaluations == len(calls)
    far = max(0, math.ceil(abs(math.log10(crossing / 0.01))) - 1)
    assert evaluations <= at_most + 2 * far


def test_a_loss_that_is_not_a_number_is_beyond_any_tolerance() -> None:
    found, _ = largest_sigma(lambda sigma: math.nan if sigma > 0.5 else 0.0, 0.1)
    assert 0.5 / 1.05 <= found <= 0.5


@pytest.mark.parametrize(("value", "expected"), [(0.0, 0.01 * 2**39), (1.0, 0.0)])
def test_a_search_without_a_crossing_ends_with_a_warning(
    value: float, expected: float, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "bayeslora"):
        assert largest_sigma(lambda sigma: value, 0.5) == (expected, 40)
    assert "ended after 40 evaluations" in caplog.text


# By the labels of these random items no noise whatever changes the loss of a random model by 5 %.
@pytest.mark.parametrize(("labels", "tolerance"), [("true", 0.003), ("predicted", 0.003), ("predicted", 0.05)])
def test_found_level_is_the_largest_within_the_tolerance(
    labels: str, tolerance: float, caplog: pytest.LogCaptureFixture
) -> None:
    model = adapted()
    method = Tfb(tolerance=tolerance, anchor_examples=None, anchor_samples=4, anchor_labels=labels)  # type: ignore[arg-type]
    with caplog.at_level(logging.INFO, "bayeslora"):
        assert method.fit_posterior(model, training()) == {}
    level = sigmas(model)
    assert level.min() > 0 and level.max() / level.min() < 1.001
    logged = re.search(r"sigma_q = (\S+) after \d+ evaluations of the NLL of 20 anchors", caplog.text)
    assert logged and float(logged[1]) == pytest.approx(level.mean().item(), rel=1e-3)
    assert relative_change(model, 4, batches(), labels) <= tolerance * (1 + 1e-3)
    scale_noise(model, 1.1)
    assert relative_change(model, 4, batches(), labels) > tolerance


def test_the_tolerance_does_not_depend_on_the_number_of_anchors() -> None:
    """The fault of the public code: the change was divided by the number of anchors once more."""
    model = adapted()
    Tfb(tolerance=0.01, anchor_examples=8, anchor_samples=4).fit_posterior(model, training())
    chosen = _subset(batches(), 8, SEED)
    assert sum(batch.batch_size for batch in chosen) == 8
    assert 0.01 / 1.4 < relative_change(model, 4, chosen) <= 0.01 * (1 + 1e-3)


def test_anchors_are_a_seeded_draw_of_whole_batches() -> None:
    everything = batches()
    first = _subset(everything, 10, seed=0)
    assert sum(batch.batch_size for batch in first) == 12
    assert [id(b) for b in _subset(everything, 10, seed=0)] == [id(b) for b in first]
    assert any([id(b) for b in _subset(everything, 10, seed=s)] != [id(b) for b in first] for s in (1, 2))
    assert len({id(b) for b in first}) == 3
    assert _subset(everything, None, seed=0) == everything
    assert sum(batch.batch_size for batch in _subset(everything, 1000, seed=0)) == 20


def test_trunk_cache_serves_the_search() -> None:
    plain, cached = adapted(), adapted()
    Tfb().fit_posterior(plain, training())
    cache = TrunkCache(cached)
    Tfb().fit_posterior(cached, training(cache))
    assert len(cache) == 20
    assert distance(sigmas(cached), sigmas(plain)) < 0.02 * sigmas(plain).max()


def test_an_untrained_adapter_is_refused() -> None:
    with seeded(1):
        model = Tfb(r=4, target_modules=["q_proj"]).adapt(tiny_llama(vocab_size=320), "causal_lm")
    with pytest.raises(ValueError, match=r"B is zero in all layers.*init_from"):
        Tfb().fit_posterior(model, training())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tolerance": 0.0}, "tolerance must be positive"),
        ({"anchor_examples": 0}, "anchor_examples must be at least 1, got 0"),
        ({"anchor_samples": 0}, "anchor_samples must be at least 1, got 0"),
        ({"anchor_labels": "some"}, "'true' or 'predicted', got 'some'"),
    ],
)
def test_refusals(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Tfb(**options)


# --- a run -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders base and data."""
    folder = tmp_path_factory.mktemp("world")
    tokenizer = byte_level_tokenizer()
    tiny_llama(vocab_size=len(tokenizer), max_position_embeddings=1024).save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    (folder / "data").mkdir()
    for name, part in (("train", items(16)), ("dev", items(6, 100)), ("test", items(9, 200))):
        rows = [{"id": i.id, "question": i.question, "choices": i.choices, "label": i.label} for i in part]
        (folder / "data" / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def run(world: Path, folder: Path, method: type[Method], method_options: Any = None, **options: Any) -> Trained:
    arguments: dict[str, Any] = {"max_steps": 8, "batch_size": 8, "learning_rate": 0.01, "logging_steps": 1}
    config = RunConfig(
        model=ModelConfig(name=str(world / "base"), device="cpu"),
        task=TaskConfig(name=str(world / "data")),
        method=method(r=4, lora_alpha=8, last_layers=2, **(method_options or {})),
        train=TrainConfig(**{**arguments, **options}, arguments={"disable_tqdm": True}),
        num_samples=4,
        seed=SEED,
    )
    return train(config, folder)


@pytest.fixture(scope="module")
def runs(world: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Trained, Path]]:
    result = {}
    for method in (Lora, Tfb):
        folder = tmp_path_factory.mktemp(method.name)
        result[method.name] = run(world, folder, method), folder
    return result


def samples(run: Any, number: int) -> Tensor:
    return run.predict(items(9, 200), number).predictive.samples.exp()


def test_training_is_that_of_plain_lora(runs: dict[str, tuple[Trained, Path]]) -> None:
    lora, tfb = runs["lora"][0], runs["tfb"][0]
    history = tfb.metrics["history"]
    assert history[-1]["nll"] < history[0]["nll"] - 0.1
    assert [entry["kl"] for entry in history] == [0] * 8
    for found, expected in zip(history, lora.metrics["history"], strict=True):
        assert found["nll"] == pytest.approx(expected["nll"], abs=1e-5)
    assert distance(samples(tfb, 0), samples(lora, 0)) < 1e-4
    assert kl_divergence(tfb.model).total == 0


def test_a_run_has_uncertainty_after_training(runs: dict[str, tuple[Trained, Path]]) -> None:
    assert samples(runs["tfb"][0], 4).std(0).max() > 1e-3


@pytest.mark.parametrize("number", [0, 4])
def test_a_loaded_run_predicts_the_same(number: int, runs: dict[str, tuple[Trained, Path]]) -> None:
    trained, folder = runs["tfb"]
    assert not (folder / "posterior.safetensors").exists()
    assert distance(samples(load_run(folder), number), samples(trained, number)) < 1e-6


def test_the_adapter_alone_holds_the_posterior(world: Path, runs: dict[str, tuple[Trained, Path]]) -> None:
    trained, folder = runs["tfb"]
    model = PeftModel.from_pretrained(load_base_model(str(world / "base"), device="cpu")[0], str(folder / "adapter"))
    for found, expected in zip(_pairs(model), _pairs(trained.model), strict=True):
        assert isinstance(found[1], nn.Linear)
        assert torch.equal(found[1].weight, expected[1].weight)
        for name in ("mean", "std"):
            value = found[0].parameters_by_name[name]
            assert torch.equal(value, expected[0].parameters_by_name[name])
            assert value.shape == ((4, 32) if name == "mean" else (4, 1))


def test_a_trained_adapter_needs_no_training(
    world: Path, runs: dict[str, tuple[Trained, Path]], tmp_path: Path
) -> None:
    lora, folder = runs["lora"]
    found = run(world, tmp_path, Tfb, {"init_from": str(folder)}, epochs=0, max_steps=None)
    assert distance(samples(found, 0), samples(lora, 0)) < 1e-5
    assert samples(found, 4).std(0).max() > 1e-3
    # The same adapter and anchors as in the run that trained it: the same level.
    assert distance(sigmas(found.model), sigmas(runs["tfb"][0].model)) < 0.1 * sigmas(found.model).max()
