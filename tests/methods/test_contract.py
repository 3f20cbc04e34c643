"""What every method promises. Each class in `bayeslora.methods` is found by itself and goes through the same tests."""

import copy
import inspect
import json
import math
import random
import shutil
import types
import typing
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from torch import Tensor, nn

from bayeslora import kl_divergence, predict, sampling
from bayeslora.adapters.draws import find_draws, hold_draw, random_modules
from bayeslora.adapters.random_factor import RandomFactor
from bayeslora.methods import Lora, Method, VariationalMethod, method_classes
from bayeslora.methods.laplace_approximation import GaussianLogits
from bayeslora.models import load_base_model
from bayeslora.runs import Run, Trained, load_run, train
from bayeslora.runs.config import ModelConfig, RunConfig, TaskConfig, TrainConfig
from bayeslora.runs.config_files import dump_config, parse_config
from bayeslora.scoring import ChoiceBatch, Cloze
from bayeslora.scoring.trunk_cache import TrunkCache
from bayeslora.tasks import Item
from bayeslora.training.cross_entropy import smoothed_cross_entropy
from bayeslora_cli.main import main
from conftest import byte_level_tokenizer, distance, perturb, seeded, tiny_llama

METHODS = {one.name: one for one in method_classes() if one.__module__.startswith("bayeslora.methods.") and one.adapts}

SHARED: dict[str, Any] = {"r": 4, "lora_alpha": 8, "last_layers": 2}

OTHER_VALUES: dict[str, Any] = {
    "posterior": "ensemble",
    "posterior_options": {"members": 4},
    "target_modules": ["q_proj"],
    "modules_to_save": ["lm_head"],
}
"""Values that `changed` cannot find from an argument's type and default."""

STEPS, EVERY = 12, 6
SAMPLES = 3
SMOOTHING = 0.1


# --- a tiny world ----------------------------------------------------------------------------------------------------

WORDS = ("wood", "glass", "paper", "water", "wool")


def items(count: int, offset: int = 0) -> list[Item]:
    """Two to four choices each; "iron" is right, but for every fifth item."""
    result = []
    for index in range(count):
        width = 2 + index % 3
        choices = [WORDS[(index + shift) % len(WORDS)] for shift in range(width)]
        choices[index % width] = "iron"
        label = index % width if index % 5 else (index + 1) % width
        question = "Which " + "of these " * (index % 2) + f"is a metal ({offset + index})?"
        result.append(Item(id=str(offset + index), question=question, choices=tuple(choices), label=label))
    return result


TRAIN, DEV, TEST = items(16), items(12, 100), items(9, 200)


@dataclass(frozen=True)
class World:
    """A base model and a task, as folders."""

    base: Path
    data: Path

    def config(self, method: Method, **train_options: Any) -> RunConfig:
        fields: dict[str, Any] = {
            "max_steps": STEPS,
            "batch_size": 8,
            "learning_rate": 0.02,
            "logging_steps": 1,
            "save_steps": EVERY,
            # A cold cache sees other batches than a warm one, and so other roundings than a resumed run.
            "cache_trunk": False,
        }
        arguments = {"disable_tqdm": True, **train_options.pop("arguments", {})}
        return RunConfig(
            model=ModelConfig(name=str(self.base), device="cpu"),
            task=TaskConfig(name=str(self.data)),
            method=method,
            train=TrainConfig(**{**fields, **train_options}, arguments=arguments),
            num_samples=SAMPLES,
        )

    def base_model(self) -> nn.Module:
        return load_base_model(str(self.base), device="cpu")[0]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    folder = tmp_path_factory.mktemp("world")
    tokenizer = byte_level_tokenizer()
    model = tiny_llama(vocab_size=len(tokenizer), num_hidden_layers=3, max_position_embeddings=1024)
    model.save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    (folder / "data").mkdir()
    for name, part in (("train", TRAIN), ("dev", DEV), ("test", TEST)):
        rows = [{"id": i.id, "question": i.question, "choices": i.choices, "label": i.label} for i in part]
        (folder / "data" / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return World(folder / "base", folder / "data")


@pytest.fixture(scope="module", params=sorted(METHODS))
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def kind(name: str) -> type[Method]:
    return METHODS[name]


@dataclass(frozen=True, repr=False)
class TrainedRun:
    """One run of the method, with label smoothing, and its folder. Tests must leave the model as it is."""

    trained: Trained
    folder: Path

    @property
    def batch(self) -> ChoiceBatch:
        return self.trained.scoring(TEST)

    def samples(
        self, num_samples: int = SAMPLES, seed: int = 0, cache: TrunkCache | None = None, model: nn.Module | None = None
    ) -> Tensor:
        """Log-probabilities [samples, items, choices] by the method itself, as `finite` gives them."""
        method = self.trained.config.method
        model = self.trained.model if model is None else model
        found = method.predict(model, self.batch, num_samples, seed, cache, self.trained.state).samples
        return finite(found)


@pytest.fixture(scope="module")
def run(name: str, world: World, tmp_path_factory: pytest.TempPathFactory) -> TrainedRun:
    folder = tmp_path_factory.mktemp(name)
    config = world.config(METHODS[name](**SHARED), label_smoothing=SMOOTHING)
    return TrainedRun(train(config, folder), folder)


@pytest.fixture
def loaded(run: TrainedRun) -> Run:
    """The run from its folder: a model that a test may change."""
    return load_run(run.folder)


# --- helpers ---------------------------------------------------------------------------------------------------------


def finite(log_probabilities: Tensor) -> Tensor:
    """Comparable log-probabilities: 1, which is no log-probability, in the place of -inf; NaN is an error."""
    assert not log_probabilities.isnan().any()
    return log_probabilities.masked_fill(log_probabilities == -torch.inf, 1)


def labels_of(part: Sequence[Item]) -> Tensor:
    return torch.tensor([item.label for item in part])


def nll(probabilities: Tensor, part: Sequence[Item]) -> float:
    """Mean negative log-likelihood, nats."""
    return -probabilities[torch.arange(len(part)), labels_of(part)].log().mean().item()


def adapter_weights(model: nn.Module) -> dict[str, Tensor]:
    """What training may change, whether by the optimizer or in `fit_posterior`."""
    changes = ("lora_", ".modules_to_save.")
    return {key: value.detach().clone() for key, value in model.state_dict().items() if any(c in key for c in changes)}


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    assert found.keys() == expected.keys() and len(found) > 0
    worst = {key: distance(found[key], expected[key]) for key in expected}
    assert max(worst.values()) <= tolerance, max(worst.items(), key=lambda entry: entry[1])


def in_train_mode(world: World, method: Method) -> PeftModel:
    """A fresh adapter of the method, moved away from its start."""
    with seeded(1):
        model = method.adapt(world.base_model(), "causal_lm")
    return perturb(model, scale=0.05).train()  # type: ignore[return-value]


def choice_batch(world: World, part: Sequence[Item]) -> ChoiceBatch:
    return Cloze(load_base_model(str(world.base), device="cpu")[1])(part)


def gradients(model: nn.Module, loss: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    loss.backward()
    return {key: p.grad.clone() for key, p in model.named_parameters() if p.grad is not None}


def random_states() -> tuple[Any, ...]:
    return torch.get_rng_state().tolist(), str(np.random.get_state()), random.getstate()


def changed(kind: type[Method]) -> dict[str, Any]:
    """Another value than the default for every argument of a method."""
    values: dict[str, Any] = {}
    for base in reversed(kind.__mro__):
        if base is object or "__init__" not in vars(base):
            continue
        hints = typing.get_type_hints(base.__init__)
        for argument, parameter in inspect.signature(base.__init__).parameters.items():
            if argument != "self" and parameter.kind is not inspect.Parameter.VAR_KEYWORD:
                values[argument] = OTHER_VALUES.get(argument, _other(hints[argument], parameter.default))
    return values


def _other(hint: Any, default: Any) -> Any:
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        hint = next(part for part in typing.get_args(hint) if part is not type(None))
    if typing.get_origin(hint) is typing.Literal:
        return next(value for value in typing.get_args(hint) if value != default)
    if hint is bool:
        return not default
    if hint is int:
        return (default or 1) + 1
    if hint is float:
        return 0.5 * default if isinstance(default, float | int) and default else 0.25
    return "elsewhere" if hint is str else default


# --- 1. arguments ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("old", "new"), [("finish", "fit_posterior"), ("samples_used", "effective_num_samples")])
def test_a_hook_of_an_earlier_name_is_refused(
    old: str, new: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(TypeError, match=f"{old}, which is now called {new}"):
        type("Old", (Lora,), {old: lambda self, *_: None})
    (tmp_path / f"mine_{old}.py").write_text(
        f"from bayeslora.methods import Lora\n\n\nclass Mine(Lora):\n    def {old}(self, *_): ...\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(SystemExit):
        main(["train", "--method", f"mine_{old}.Mine", "--output_dir", str(tmp_path / "run")])
    said = capsys.readouterr().err
    assert f"which is now called {new}" in said and "Traceback" not in said


def test_arguments_are_attributes(kind: type[Method]) -> None:
    method = kind(**changed(kind))
    assert method.arguments == changed(kind)
    assert set(inspect.signature(Method.__init__).parameters) - {"self"} <= set(method.arguments)


def test_config_file_round_trip(kind: type[Method], world: World, tmp_path: Path) -> None:
    """With another value than the default for every argument."""
    method = kind(**changed(kind))
    same = [key for key, value in kind().arguments.items() if value == method.arguments[key]]
    assert same == [], "these need another value in OTHER_VALUES"
    path = tmp_path / "config.yaml"
    path.write_text(dump_config(world.config(method)))
    found = parse_config(path)
    assert type(found.method) is kind
    assert found.method.arguments == method.arguments
    assert replace(found, method=method) == world.config(method)


# --- 2. training -----------------------------------------------------------------------------------------------------


def test_training_lowers_the_nll(run: TrainedRun, world: World) -> None:
    batch = run.trained.scoring(TRAIN)
    before = nll(predict(world.base_model(), batch, 0).probabilities, TRAIN)
    for num_samples in (0, SAMPLES):
        after = nll(run.trained.predict(TRAIN, num_samples).predictive.probabilities, TRAIN)
        assert after < before - 0.15, num_samples


def test_everything_is_finite(run: TrainedRun) -> None:
    tensors = {**run.trained.model.state_dict(), **run.trained.state}
    assert [key for key, value in tensors.items() if not value.isfinite().all()] == []
    history = run.trained.metrics["history"]
    assert len(history) == STEPS
    assert all(math.isfinite(entry[part]) for entry in history for part in ("loss", "nll", "kl"))


def test_base_weights_stay(run: TrainedRun, world: World) -> None:
    prefix = "base_model.model."
    found = {
        key.removeprefix(prefix).replace(".base_layer", "").replace(".original_module", ""): value
        for key, value in run.trained.model.state_dict().items()
        if "lora_" not in key and ".modules_to_save." not in key
    }
    expected = world.base_model().state_dict()
    assert found.keys() == expected.keys()
    assert [key for key, value in expected.items() if not torch.equal(found[key], value)] == []


# --- 3. saving and loading -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_samples", [0, SAMPLES])
def test_save_and_load(run: TrainedRun, loaded: Run, num_samples: int) -> None:
    found, expected = (one.predict(TEST, num_samples).predictive.samples for one in (loaded, run.trained))
    assert distance(finite(found), finite(expected)) <= 1e-6


def test_adapter_loads_with_peft(run: TrainedRun, world: World) -> None:
    """The mean always; the draws too where the adapter is all there is."""
    model = PeftModel.from_pretrained(world.base_model(), str(run.folder / "adapter"))
    for num_samples in (0,) if run.trained.state else (0, SAMPLES):
        assert distance(run.samples(num_samples, model=model), run.samples(num_samples)) <= 1e-6


def test_saved_state_is_all_there_is(run: TrainedRun, loaded: Run) -> None:
    assert_same(adapter_weights(loaded.model), adapter_weights(run.trained.model), 0)
    assert loaded.state.keys() == run.trained.state.keys()
    assert all(distance(loaded.state[key], value.cpu()) == 0 for key, value in run.trained.state.items())


# --- 4. seeds --------------------------------------------------------------------------------------------------------


def test_prediction_is_a_function_of_its_seed(run: TrainedRun) -> None:
    with seeded(8):
        one = run.samples(seed=3)
    with seeded(9):
        assert torch.equal(run.samples(seed=3), one)
    if run.trained.config.method.closed_form:
        assert torch.equal(run.samples(seed=4), one)
        return
    # Where the draws are numbered members, another seed gives the same ones.
    random_draws = any(module.noise_shapes for module in random_modules(run.trained.model)) or run.trained.state
    if run.trained.config.method.effective_num_samples(SAMPLES) and random_draws:
        assert distance(run.samples(seed=4), one) > 1e-5


def test_draws_differ(run: TrainedRun) -> None:
    """A method with samples has uncertainty; one without has none."""
    spread = run.trained.predict(TEST).predictive.samples.exp().std(0, correction=0).max().item()
    if run.trained.config.method.effective_num_samples(SAMPLES):
        assert spread > 1e-4
    else:
        assert spread == 0


def test_training_is_a_function_of_its_seed(run: TrainedRun, tmp_path: Path) -> None:
    again = train(run.trained.config, tmp_path, evaluate_dev=False)
    assert_same(adapter_weights(again.model), adapter_weights(run.trained.model), 0)
    assert torch.equal(TrainedRun(again, tmp_path).samples(), run.samples())


def test_another_seed_trains_another_adapter(run: TrainedRun, tmp_path: Path) -> None:
    short = replace(run.trained.config.train, max_steps=1, warmup=0)
    other = train(replace(run.trained.config, train=short, seed=1), tmp_path, evaluate_dev=False)
    expected = adapter_weights(run.trained.model)
    assert any(distance(value, expected[key]) > 1e-3 for key, value in adapter_weights(other.model).items())


def test_prediction_leaves_the_global_random_state(run: TrainedRun) -> None:
    before = random_states()
    run.trained.predict(TEST)
    assert random_states() == before


def test_prediction_leaves_the_model(run: TrainedRun) -> None:
    model = run.trained.model

    def marks() -> list[Any]:
        parameters = [(parameter.requires_grad, parameter.grad is None) for parameter in model.parameters()]
        return [*parameters, *(module.training for module in model.modules())]

    before, marked = copy.deepcopy(model.state_dict()), marks()
    run.trained.predict(TEST)
    assert marks() == marked
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


# --- 5. the mean, and probabilities ----------------------------------------------------------------------------------


def test_no_samples_is_deterministic(run: TrainedRun) -> None:
    one = run.samples(0, seed=1)
    assert one.shape[0] == 1
    assert torch.equal(run.samples(0, seed=2), one)


def test_eval_mode_is_deterministic(loaded: Run) -> None:
    model = loaded.model.eval()
    batch = loaded.scoring(TEST)
    with torch.no_grad():
        with seeded(1):
            one = finite(batch.choice_logits(model))
        with seeded(2):
            assert torch.equal(finite(batch.choice_logits(model)), one)


@pytest.mark.parametrize("num_samples", [0, SAMPLES])
def test_probabilities(run: TrainedRun, num_samples: int) -> None:
    predictive = run.trained.predict(TEST, num_samples).predictive
    expected = run.trained.config.method.effective_num_samples(num_samples)
    assert predictive.samples.shape == (max(1, expected), len(TEST), 4)
    for probabilities in (*predictive.samples.exp(), predictive.probabilities):
        assert distance(probabilities.sum(-1), torch.ones(len(TEST))) < 1e-5
        for item, row in zip(TEST, probabilities, strict=True):
            assert (row[len(item.choices) :] == 0).all() and (row[: len(item.choices)] > 0).all()


# --- 6. several samples in one forward -------------------------------------------------------------------------------


def test_a_sample_does_not_depend_on_their_number(run: TrainedRun) -> None:
    if not run.trained.config.method.effective_num_samples(5):
        pytest.skip("a point estimate")
    many = run.samples(5)
    for fewer in (1, 2):
        few = run.samples(fewer)
        assert distance(few, many[: len(few)]) < 2e-6


@pytest.mark.parametrize("chunk_size", [1, 2, 5])
def test_chunks_of_samples(run: TrainedRun, chunk_size: int) -> None:
    """`bayeslora.predict` needs no method: the draws of what it can sample are those of the method."""
    if not random_modules(run.trained.model):
        pytest.skip("nothing in the model is random")
    if run.trained.config.method.closed_form:
        pytest.skip("the method's predictions are no draws of its random modules")
    found = predict(run.trained.model, run.batch, 5, 0, chunk_size=chunk_size).samples
    assert distance(finite(found), run.samples(5)) < 2e-6


def test_an_item_is_predicted_alone_as_in_a_batch_unless_the_method_says_otherwise(run: TrainedRun) -> None:
    """`bayeslora serve` lets the items of several requests share a batch."""
    trained, together = run.trained, run.samples()
    apart = []
    for index, item in enumerate(TEST):
        alone = trained.config.method.predict(trained.model, trained.scoring([item]), SAMPLES, 0, None, trained.state)
        width = len(item.choices)
        apart.append(distance(alone.samples[:, 0, :width], together[:, index, :width]))
    assert (max(apart) > 1e-3) == trained.config.method.draws_depend_on_batch
    assert trained.config.method.draws_depend_on_batch or max(apart) < 1e-5


def test_cached_trunk_changes_nothing(run: TrainedRun) -> None:
    cache = TrunkCache(run.trained.model)
    for num_samples in (0, SAMPLES):
        expected = run.samples(num_samples)
        for _ in range(2):
            assert distance(run.samples(num_samples, cache=cache), expected) < 1e-5


# --- 7. KL -----------------------------------------------------------------------------------------------------------


def test_kl(kind: type[Method], run: TrainedRun, world: World) -> None:
    model = in_train_mode(world, kind(**SHARED))
    hold_draw(model, seed=0, step=0)
    # Where the KL is that of latent variables of each item, it is that of the last forward.
    choice_batch(world, TRAIN[:4]).choice_logits(model)
    kl = kl_divergence(model).total
    after_training = kl_divergence(run.trained.model).total
    assert kl.isfinite() and after_training.isfinite()
    if not issubclass(kind, VariationalMethod):
        assert kl == 0
        return
    assert kl > 0 and after_training >= 0
    found = gradients(model, kl)
    assert all(value.isfinite().all() for value in found.values())
    assert any(value.abs().max() > 0 for value in found.values())


# --- 8. accumulation -------------------------------------------------------------------------------------------------

NOISE_PER_MICRO_BATCH = {"ivon": "IVON draws new weights for each micro-batch"}


def without_row_noise(kind: type[Method]) -> Method:
    """The method without noise that differs between the rows of a batch, which no split of the batch can repeat."""
    # MC dropout refuses a dropout of 0; with this one the chance of a single dropped number is below 1e-3.
    quiet = {"flipout": False, "lora_dropout": 1e-9}
    noisy = {key: value for key, value in kind().arguments.items() if key in quiet and value}
    return kind(**SHARED, **{key: quiet[key] for key in noisy})


def test_accumulated_batches_give_the_same_update(name: str, kind: type[Method], world: World, tmp_path: Path) -> None:
    if name in NOISE_PER_MICRO_BATCH:
        pytest.skip(NOISE_PER_MICRO_BATCH[name])
    method, results = without_row_noise(kind), []
    for size, accumulation in ((8, 1), (4, 2)):
        config = world.config(
            method,
            max_steps=2,
            batch_size=size,
            gradient_accumulation_steps=accumulation,
            # Plain steps, so that the update is the gradient; clipping would hide a wrong scale.
            arguments={"optim": "sgd"},
            max_grad_norm=0.0,
            lr_scheduler="constant",
            warmup=0,
        )
        results.append(train(config, tmp_path / str(size), evaluate_dev=False))
    # Without the buffers, which `fit_posterior` fills: a search finds a number to its precision only.
    whole, parts = (dict(result.model.named_parameters()) for result in results)
    assert_same(parts, whole, 1e-6)


# --- 9. gradient checkpointing ---------------------------------------------------------------------------------------


def nll_gradients(method: Method, model: nn.Module, batch: ChoiceBatch) -> dict[str, Tensor]:
    hold_draw(model, seed=4, step=7, num_samples=method.train_samples)
    with seeded(6):
        logits = batch.choice_logits(model)
        labels = batch.labels
        assert labels is not None
        loss = smoothed_cross_entropy(logits, labels.repeat(logits.shape[0] // labels.shape[0])).mean()
        return gradients(model, loss)


@pytest.mark.parametrize("lora_dropout", [0.0, 0.2])
def test_gradients_with_checkpointing(kind: type[Method], world: World, lora_dropout: float) -> None:
    options = {**SHARED, "lora_dropout": lora_dropout} if lora_dropout else SHARED
    method, batch = kind(**options), choice_batch(world, TRAIN[:6])
    expected = nll_gradients(method, in_train_mode(world, method), batch)
    model = in_train_mode(world, method)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.enable_input_require_grads()
    found = nll_gradients(method, model, batch)
    assert expected and any(value.abs().max() > 1e-3 for value in expected.values())
    assert_same(found, expected, 1e-6 * max(1.0, *(value.abs().max().item() for value in expected.values())))


# --- 10. adapters of PEFT --------------------------------------------------------------------------------------------


def base_prediction(world: World, batch: ChoiceBatch) -> Tensor:
    return finite(predict(world.base_model(), batch, 0).samples)


def test_disabled_adapter_is_the_base_model(run: TrainedRun, loaded: Run, world: World) -> None:
    expected = base_prediction(world, run.batch)
    assert distance(run.samples(0), expected) > 1e-2
    with loaded.model.disable_adapter():
        for num_samples in (0, SAMPLES):
            try:
                found = run.samples(num_samples, model=loaded.model)
            except ValueError as error:
                # A posterior that is no part of the adapter cannot be disabled with it.
                refusal = str(error)
                assert num_samples > 0 and run.trained.state and "enable the adapter" in refusal
            else:
                assert torch.equal(found, expected.expand_as(found)), num_samples
    assert distance(run.samples(model=loaded.model), run.samples()) <= 1e-6


def test_second_adapter(run: TrainedRun, loaded: Run, world: World) -> None:
    """A fresh adapter beside the trained one is the base model in the mean, and changes nothing of the trained one."""
    model = loaded.model
    options = copy.deepcopy(model.peft_config["default"])
    options.inference_mode = False
    with seeded(1):
        model.add_adapter("other", options)
    model.set_adapter("other")
    assert distance(finite(predict(model, run.batch, 0).samples), base_prediction(world, run.batch)) < 1e-6
    model.set_adapter("default")
    assert distance(run.samples(model=model), run.samples()) <= 1e-6


@pytest.mark.parametrize("what", ["mean", "draw"])
def test_merging(run: TrainedRun, loaded: Run, what: str) -> None:
    """Random weights merge, in the mean as in a draw. What is no set of weights refuses, and leaves the model whole."""
    model, draws = loaded.model, what == "draw"
    if draws and not random_modules(model):
        pytest.skip("nothing in the model is random")
    expected = finite(predict(model, run.batch, 1 if draws else 0).samples)
    refusal = ""
    with sampling(model, num_samples=1, seed=0) if draws else nullcontext():
        try:
            merged = model.merge_and_unload()
        except (NotImplementedError, ValueError) as error:
            refusal = str(error)
    if refusal:
        assert not all(isinstance(module, RandomFactor) for module in random_modules(model)), refusal
        assert len(refusal) > 40
        assert distance(finite(predict(model, run.batch, 1 if draws else 0).samples), expected) == 0
        return
    assert find_draws(merged) is None
    assert not any("lora_" in key for key in merged.state_dict())
    assert distance(finite(predict(merged, run.batch, 0).samples), expected) < 1e-4


# --- 11. options of the protocol -------------------------------------------------------------------------------------

MUCH_SMOOTHING = 0.5


@pytest.fixture(scope="module")
def tempered(name: str, world: World, tmp_path_factory: pytest.TempPathFactory) -> TrainedRun:
    """A short run with temperature scaling and much label smoothing."""
    folder = tmp_path_factory.mktemp(f"{name}-tempered")
    config = world.config(METHODS[name](**SHARED), max_steps=3, label_smoothing=MUCH_SMOOTHING)
    return TrainedRun(train(replace(config, temperature_scaling=True), folder), folder)


def test_label_smoothing(run: TrainedRun, tempered: TrainedRun, world: World, tmp_path: Path) -> None:
    """The loss of the first step, before any update, is linear in the smoothing."""
    config = world.config(run.trained.config.method, max_steps=1, warmup=0)
    none = train(config, tmp_path, evaluate_dev=False)
    plain, some, much = (one.metrics["history"][0]["nll"] for one in (none, run.trained, tempered.trained))
    assert abs(much - plain) > 1e-2
    assert some - plain == pytest.approx((much - plain) * SMOOTHING / MUCH_SMOOTHING, abs=1e-4)


def test_temperature_scaling(tempered: TrainedRun) -> None:
    trained = tempered.trained
    assert 0 < trained.temperature < math.inf and trained.temperature != 1
    after, before = (one.predict(DEV).predictive for one in (trained, replace(trained, temperature=1.0)))
    assert distance(after.probabilities, before.probabilities) > 1e-4
    assert nll(after.probabilities, DEV) <= nll(before.probabilities, DEV) + 1e-6
    assert trained.metrics["nll"] == pytest.approx(nll(after.probabilities, DEV), rel=1e-4)
    # Of each draw, and so of a prediction that is a single one.
    ranked = [one.mean if isinstance(one, GaussianLogits) else one.samples for one in (after, before)]
    assert torch.equal(*(scores.argmax(-1) for scores in ranked))


def test_temperature_is_loaded(tempered: TrainedRun) -> None:
    loaded = load_run(tempered.folder)
    assert loaded.metrics["temperature"] == tempered.trained.temperature
    found, expected = (one.predict(TEST).predictive.samples for one in (loaded, tempered.trained))
    assert distance(finite(found), finite(expected)) <= 1e-6


# --- 12. resuming ----------------------------------------------------------------------------------------------------


def test_resuming_ends_at_the_same_weights(run: TrainedRun, tmp_path: Path) -> None:
    """Killed after the first checkpoint: nothing else of the run is left."""
    first = f"checkpoints/checkpoint-{EVERY}"
    shutil.copytree(run.folder / first, tmp_path / first)
    resumed = train(run.trained.config, tmp_path, resume=True, evaluate_dev=False)
    assert [entry["step"] for entry in resumed.metrics["history"]] == list(range(1, STEPS + 1))
    assert_same(adapter_weights(resumed.model), adapter_weights(run.trained.model), 1e-7)
    assert distance(TrainedRun(resumed, tmp_path).samples(), run.samples()) <= 1e-6


# --- beyond: starting from a trained LoRA adapter ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def lora_run(world: World, tmp_path_factory: pytest.TempPathFactory) -> TrainedRun:
    folder = tmp_path_factory.mktemp("from")
    return TrainedRun(train(world.config(METHODS["lora"](**SHARED)), folder, evaluate_dev=False), folder)


def test_init_from_starts_at_the_trained_adapter(
    lora_run: TrainedRun, kind: type[Method], world: World, tmp_path: Path
) -> None:
    method, expected = kind(**SHARED, init_from=str(lora_run.folder)), lora_run.samples(0)
    model = method.adapt(world.base_model(), "causal_lm")
    assert distance(finite(predict(model, lora_run.batch, 0).samples), expected) < 1e-5
    assert any(parameter.requires_grad for parameter in model.parameters())
    try:
        untrained = train(world.config(method, max_steps=None, epochs=0), tmp_path)
    except ValueError as error:
        refusal = str(error)
        assert "epochs" in refusal
    else:
        assert distance(TrainedRun(untrained, tmp_path).samples(0), expected) < 1e-5
        found, trained = (one.predict(TEST).predictive.samples for one in (load_run(tmp_path), untrained))
        assert distance(finite(found), finite(trained)) <= 1e-6
