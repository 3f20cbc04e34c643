"""IVON: its update equations, the posterior of a problem with a known one, and its life inside the Trainer."""

import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import TrainerCallback, TrainingArguments

from bayeslora import predict, sampling
from bayeslora.adapters.draws import random_factors
from bayeslora.methods import TrainingResult
from bayeslora.methods.ivon import Ivon, optimizer_class, posterior_std
from bayeslora.models import load_base_model
from bayeslora.runs import Trained, load_run, train
from bayeslora.runs.config import ModelConfig, RunConfig, TaskConfig, TrainConfig
from bayeslora.scoring import Classification, Cloze
from bayeslora.tasks import Item
from bayeslora.training.parameter_groups import sampled_weights
from bayeslora.training.trainer import BayesianLoraTrainer
from conftest import byte_level_tokenizer, distance, seeded, tiny_bert, tiny_llama, wordpiece_tokenizer

SEED = 3
WORDS = ("wood", "glass", "paper", "water", "wool")


def optimizer_of(parameters: Sequence[Tensor], **options: Any) -> Any:
    fields = {"lr": 0.1, "ess": 20.0, "weight_decay": 0.05, "hess_init": 2.0, "beta2": 0.9, "rescale_lr": False}
    # Two groups, one of them empty, as the Trainer gives them.
    groups: list[dict[str, Any]] = [{"params": list(parameters), "weight_decay": 0.0}, {"params": []}]
    return optimizer_class()(groups, **{**fields, **options})


# --- the update ------------------------------------------------------------------------------------------------------


class ByHand:
    """The algorithm of arXiv 2402.17641 with clipping (2411.04421), on one vector in float64."""

    def __init__(self, mean: Tensor, *, rate: float, ess: float, delta: float, hessian: float, clip: float):
        self.mean, self.hessian, self.momentum = mean.clone(), torch.full_like(mean, hessian), torch.zeros_like(mean)
        self.rate, self.ess, self.delta, self.clip, self.steps = rate, ess, delta, clip, 0

    @property
    def precision(self) -> Tensor:
        return self.ess * (self.hessian + self.delta)

    def step(self, weights: Sequence[Tensor], gradients: Sequence[Tensor], beta1: float, beta2: float) -> None:
        """One step from micro-batches: the weights each saw, and the gradient of its share of the batch's loss."""
        self.steps += 1
        gradient = torch.stack(list(gradients)).sum(0)
        products = [(w - self.mean) * g for w, g in zip(weights, gradients, strict=True)]
        hessian = self.precision * torch.stack(products).sum(0)
        self.momentum = beta1 * self.momentum + (1 - beta1) * gradient
        correction = 0.5 * (1 - beta2) ** 2 * (self.hessian - hessian) ** 2 / (self.hessian + self.delta)
        self.hessian = beta2 * self.hessian + (1 - beta2) * hessian + correction
        average = self.momentum / (1 - beta1**self.steps)
        newton = (average + self.delta * self.mean) / (self.hessian + self.delta)
        self.mean = self.mean - self.rate * newton.clamp(-self.clip, self.clip)


@pytest.mark.parametrize("clip", [math.inf, 0.2])
@pytest.mark.parametrize("parts", [1, 3])
def test_steps_are_those_of_the_paper(parts: int, clip: float) -> None:
    """Three steps on two tensors; the gradients of micro-batches add up in .grad, as in the Trainer."""
    with seeded(1):
        tensors = [
            nn.Parameter(torch.randn(2, 3, dtype=torch.float64)),
            nn.Parameter(torch.randn(4, dtype=torch.float64)),
        ]
        targets = torch.randn(3, parts, 10, dtype=torch.float64)
    optimizer = optimizer_of(tensors, clip_radius=clip)
    expected = ByHand(flat(tensors), rate=0.1, ess=20.0, delta=0.05, hessian=2.0, clip=clip)
    clipped = 0
    for step in range(3):
        weights, gradients = [], []
        for part in range(parts):
            with optimizer.sampled_params(train=True):
                weights.append(flat(tensors))
                share = (flat(tensors, grad=True) - targets[step, part]).pow(4).sum() / parts
                gradients.append(
                    torch.cat([g.flatten() for g in torch.autograd.grad(share, tensors, retain_graph=True)])
                )
                share.backward()
            assert distance(flat(tensors), expected.mean) < 1e-12
        total = torch.cat([parameter.grad.flatten() for parameter in tensors])  # type: ignore[union-attr]
        assert distance(total, torch.stack(gradients).sum(0)) < 1e-9
        before = expected.mean
        expected.step(weights, gradients, 0.9, 0.9)
        clipped += int(((expected.mean - before).abs() > 0.1 * clip - 1e-9).sum())
        optimizer.step()
        for parameter in tensors:
            parameter.grad = None
        assert distance(flat(tensors), expected.mean) < 1e-9
        found = torch.cat([posterior_std(optimizer)[parameter].flatten() for parameter in tensors])
        assert distance(found, expected.precision.rsqrt()) < 1e-9
    assert (clipped > 0) == math.isfinite(clip)


def flat(tensors: Sequence[Tensor], *, grad: bool = False) -> Tensor:
    joined = torch.cat([tensor.flatten() for tensor in tensors])
    return joined if grad else joined.detach().clone()


@pytest.mark.parametrize("sizes", [(30,), (10, 20)])
def test_posterior_of_a_linear_regression(sizes: tuple[int, ...]) -> None:
    """Gaussian noise of known size and a Gaussian prior: the best independent Gaussian has a closed form.

    64 runs side by side, whose average has little of their noise.
    """
    examples, noise_std, prior_std, steps = sum(sizes), 0.5, 0.7, 800
    with seeded(2):
        inputs = torch.randn(examples, 3, dtype=torch.float64) * torch.tensor([1.0, 0.3, 2.0])
        targets = inputs @ torch.tensor([0.5, -1.0, 0.2], dtype=torch.float64) + noise_std * torch.randn(examples)
    precision = inputs.T @ inputs / noise_std**2 + torch.eye(3, dtype=torch.float64) / prior_std**2
    exact_mean = torch.linalg.solve(precision, inputs.T @ targets / noise_std**2)
    exact_std = precision.diagonal().rsqrt()

    weights = nn.Parameter(torch.zeros(3, 64, dtype=torch.float64))
    method = Ivon(prior_std=prior_std, initial_std=0.2, beta2=0.99, clip_gradient=100.0)
    kind, options = method.trainer_options(1.0, steps, examples)["optimizer_cls_and_kwargs"]
    options["lr"] = 0.1
    optimizer = kind([{"params": [weights]}], **options)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.01, total_iters=steps)
    with seeded(3):
        for _ in range(steps):
            for x, y in zip(inputs.split(sizes), targets.split(sizes), strict=True):
                with optimizer.sampled_params(train=True):
                    (((y[:, None] - x @ weights) ** 2).sum() / (2 * noise_std**2 * examples)).backward()
            optimizer.step()
            schedule.step()
            weights.grad = None
    found = posterior_std(optimizer)[weights].pow(-2).mean(1).rsqrt()
    assert (found / exact_std - 1).abs().max() < 0.03
    assert ((weights.detach().mean(1) - exact_mean) / exact_std).abs().max() < 0.03
    # So that the test can fail: the start, the prior and the exact answer are far apart.
    assert (exact_std / 0.2 - 1).abs().max() > 0.5 and (exact_std / prior_std - 1).abs().min() > 0.2


def test_options_give_the_elbo_of_the_prior() -> None:
    options = Ivon(prior_std=0.5, initial_std=0.1, beta=0.25).trainer_options(2e-3, 10, 80)
    _, fields = options["optimizer_cls_and_kwargs"]
    assert fields["ess"] == 80 / 0.25
    assert fields["ess"] * fields["weight_decay"] == pytest.approx(0.5**-2)
    assert fields["ess"] * (fields["hess_init"] + fields["weight_decay"]) == pytest.approx(0.1**-2)
    assert fields["clip_radius"] * (fields["hess_init"] + fields["weight_decay"]) == pytest.approx(1e-6)
    assert fields["lr"] * fields["clip_radius"] == pytest.approx(2e-3)
    assert not fields["rescale_lr"]


def test_default_rate_moves_a_weight_by_the_learning_rate_at_most() -> None:
    kind, options = Ivon().trainer_options(1e-3, 10, 80)["optimizer_cls_and_kwargs"]
    weight = nn.Parameter(torch.tensor([0.1, -0.2]))
    optimizer = kind([{"params": [weight]}], **options)
    with optimizer.sampled_params(train=True):
        (1e6 * weight.sum()).backward()
    optimizer.step()
    assert weight.tolist() == pytest.approx([0.1 - 1e-3, -0.2 - 1e-3], abs=1e-6)


def test_an_error_inside_leaves_the_means() -> None:
    weight = nn.Parameter(torch.tensor([1.0, 2.0]))
    weight.grad = torch.tensor([3.0, 4.0])
    optimizer = optimizer_of([weight])

    def forward() -> None:
        with optimizer.sampled_params(train=True):
            assert weight.tolist() != [1.0, 2.0]
            raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        forward()
    assert weight.tolist() == [1.0, 2.0] and weight.grad.tolist() == [3.0, 4.0]
    assert optimizer.state["count"] == 0


def test_a_loaded_optimizer_goes_on_as_the_saved_one() -> None:
    """The package forgets the number of steps, and with it the bias correction of the momentum."""

    def one_step(weight: Tensor, optimizer: Any, seed: int) -> None:
        with seeded(seed), optimizer.sampled_params(train=True):
            weight.pow(4).sum().backward()
        optimizer.step()
        weight.grad = None

    first = nn.Parameter(torch.tensor([1.0, 2.0]))
    saved = optimizer_of([first])
    for seed in range(3):
        one_step(first, saved, seed)
    second = nn.Parameter(first.detach().clone())
    loaded = optimizer_of([second])
    loaded.load_state_dict(saved.state_dict())
    assert loaded.current_step == 3
    one_step(first, saved, 7)
    one_step(second, loaded, 7)
    assert torch.equal(first, second)
    assert torch.equal(posterior_std(loaded)[second], posterior_std(saved)[first])


# --- inside the Trainer ----------------------------------------------------------------------------------------------


def items(count: int = 24, offset: int = 0) -> list[Item]:
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


def adapted(method: Ivon, kind: str = "cloze", seed: int = 1) -> PeftModel:
    base = tiny_llama(vocab_size=320) if kind == "cloze" else tiny_bert(vocab_size=320, num_labels=6)
    with seeded(seed):
        return method.adapt(base, "causal_lm" if kind == "cloze" else "sequence_classification")


def classification() -> Classification:
    return Classification(wordpiece_tokenizer(), classes=("iron", *WORDS))


def trainer_for(
    folder: Path,
    method: Ivon,
    *,
    kind: str = "cloze",
    seed: int = 1,
    callbacks: Sequence[TrainerCallback] = (),
    learning_rate: float = 0.01,
    **arguments: Any,
) -> BayesianLoraTrainer:
    fields: dict[str, Any] = {
        "output_dir": str(folder),
        "seed": SEED,
        "per_device_train_batch_size": 8,
        "max_steps": 3,
        "lr_scheduler_type": "constant",
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "use_cpu": True,
        "dataloader_pin_memory": False,
        "remove_unused_columns": False,
    }
    fields.update(arguments)
    return BayesianLoraTrainer(
        model=adapted(method, kind, seed),
        args=TrainingArguments(learning_rate=learning_rate, **fields),
        train_dataset=items(),
        data_collator=Cloze(byte_level_tokenizer()) if kind == "cloze" else classification(),
        callbacks=list(callbacks),
        **method.trainer_options(learning_rate, fields["max_steps"], 24),
    )


def small(**options: Any) -> Ivon:
    return Ivon(**{"r": 4, "lora_alpha": 8, "last_layers": 2, **options})


def trained_parameters(trainer: BayesianLoraTrainer) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in trainer.model.named_parameters() if p.requires_grad}


def ended(trainer: BayesianLoraTrainer) -> TrainingResult:
    optimizer = getattr(trainer.optimizer, "optimizer", trainer.optimizer)
    return TrainingResult(lambda: [], 24, optimizer, None, SEED)


def largest_difference(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    assert one.keys() == other.keys() and one
    return max(distance(one[name], other[name]) for name in one)


class Watch(TrainerCallback):
    """The largest move of each step, and the weights that its forwards saw."""

    def __init__(self) -> None:
        self.rates: list[float] = []
        self.seen: list[Tensor] = []

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        factor = random_factors(kwargs["model"])[0]
        factor.register_forward_pre_hook(lambda module, inputs: self.seen.append(module.mean.detach().clone()))

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        group = kwargs["optimizer"].param_groups[0]
        self.rates.append(group["lr"] * group["clip_radius"])


def test_one_draw_per_micro_batch_around_the_means(tmp_path: Path) -> None:
    watch, method = Watch(), small(learning_rate_scale=0.0, initial_std=0.05)
    trainer = trainer_for(
        tmp_path, method, callbacks=[watch], per_device_train_batch_size=2, gradient_accumulation_steps=4
    )
    start = trained_parameters(trainer)
    trainer.train()
    assert largest_difference(trained_parameters(trainer), start) == 0
    draws = torch.stack(watch.seen)
    assert draws.shape == (12, 4, 32)
    mean = random_factors(trainer.model)[0].mean.detach()
    z = (draws - mean) / 0.05
    assert abs(z.mean().item()) < 4 / math.sqrt(z.numel())
    assert abs(z.var().item() - 1) < 4 * math.sqrt(2 / z.numel())
    correlation = torch.corrcoef(z.flatten(1)) - torch.eye(12)
    assert correlation.abs().max() < 5 / math.sqrt(128)


GRADIENT_DESCENT: dict[str, Any] = {
    "initial_std": 1e-6,
    "beta1": 0.0,
    "clip_gradient": 1e3,
    "learning_rate_scale": 1e3,
}
"""Next to no noise and no momentum; a gradient below the bound moves a weight by scale / bound times the rate."""


def test_accumulated_gradient_is_that_of_the_whole_batch(tmp_path: Path) -> None:
    """However the batch is split."""
    method = small(**GRADIENT_DESCENT)
    moved = {}
    for size, parts in ((8, 1), (2, 4), (1, 8)):
        trainer = trainer_for(
            tmp_path / str(size),
            method,
            max_steps=2,
            learning_rate=0.05,
            per_device_train_batch_size=size,
            gradient_accumulation_steps=parts,
        )
        start = trained_parameters(trainer)
        trainer.train()
        moved[size] = {name: value - start[name] for name, value in trained_parameters(trainer).items()}
    assert max(value.abs().max().item() for value in moved[8].values()) > 1e-3
    for size in (2, 1):
        assert largest_difference(moved[size], moved[8]) < 2e-5


def test_gradient_descent_where_the_noise_vanishes(tmp_path: Path) -> None:
    """The same setting against torch's SGD: the prior is a weight decay of 1 / (N prior_std^2), and nothing else."""
    method = small(**GRADIENT_DESCENT, prior_std=0.2)
    ivon = trainer_for(tmp_path / "ivon", method, max_steps=2, learning_rate=0.05)
    ivon.train()
    plain: dict[str, Any] = {"optim": "sgd", "max_grad_norm": 0.0, "weight_decay": 1 / (24 * 0.2**2)}
    sgd = trainer_for(tmp_path / "sgd", method, max_steps=2, learning_rate=0.05, **plain)
    sgd.optimizer_cls_and_kwargs = None
    sgd.train()
    assert isinstance(sgd.optimizer.optimizer, torch.optim.SGD)  # type: ignore[union-attr]
    assert largest_difference(trained_parameters(ivon), trained_parameters(sgd)) < 2e-5


def test_rate_follows_the_schedule(tmp_path: Path) -> None:
    watch = Watch()
    trainer_for(
        tmp_path,
        small(learning_rate_scale=50.0),
        callbacks=[watch],
        max_steps=4,
        learning_rate=0.002,
        lr_scheduler_type="linear",
    ).train()
    assert watch.rates == pytest.approx([0.1, 0.075, 0.05, 0.025])


def test_clipping_of_the_gradient_norm_does_not_reach_it(tmp_path: Path) -> None:
    """As the docstring says; clip_gradient is IVON's own bound."""
    results = []
    for norm in (0.0, 1e-6):
        trainer = trainer_for(tmp_path / str(norm), small(), max_grad_norm=norm)
        trainer.train()
        results.append(trained_parameters(trainer))
    assert largest_difference(*results) == 0


class StopAt(TrainerCallback):
    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 3:
            control.should_training_stop = True


def test_a_resumed_run_goes_on_as_if_never_stopped(tmp_path: Path) -> None:
    method = small(beta2=0.9)
    fields: dict[str, Any] = {
        "max_steps": 6,
        "save_strategy": "steps",
        "save_steps": 3,
        "lr_scheduler_type": "linear",
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
    }
    straight = trainer_for(tmp_path / "straight", method, **fields)
    straight.train()
    trainer_for(tmp_path / "cut", method, callbacks=[StopAt()], **fields).train()
    resumed = trainer_for(tmp_path / "cut", method, seed=9, **fields)
    resumed.train(resume_from_checkpoint=True)
    assert largest_difference(trained_parameters(resumed), trained_parameters(straight)) < 1e-7
    for trainer in (straight, resumed):
        method.fit_posterior(trainer.model, ended(trainer))  # type: ignore[arg-type]
    for found, expected in zip(random_factors(resumed.model), random_factors(straight.model), strict=True):
        assert distance(found.log_std, expected.log_std) < 1e-6


def test_draws_at_prediction_have_the_optimizers_std(tmp_path: Path) -> None:
    method = small(beta2=0.8, initial_std=0.1)
    trainer = trainer_for(tmp_path, method, max_steps=6)
    trainer.train()
    model: Any = trainer.model
    method.fit_posterior(model, ended(trainer))
    # From the optimizer's own record, by position: the Hessian is one vector over all parameters in their order.
    group = ended(trainer).optimizer.param_groups[0]
    assert group["ess"] == 24 and group["weight_decay"] == pytest.approx(1 / 24)
    expected = 1 / (24 * (group["hess"] + group["weight_decay"])).sqrt()
    assert (expected / 0.1 - 1).abs().max() > 0.1
    names = {id(parameter): parameter for parameter in group["params"]}
    assert len(names) == 8
    offset, z = 0, []
    with torch.no_grad(), sampling(model, 200, seed=1):
        draws = {id(factor.mean): factor.weight for factor in random_factors(model)}
    for parameter in group["params"]:
        std = expected[offset : offset + parameter.numel()].view_as(parameter)
        offset += parameter.numel()
        z.append(((draws[id(parameter)] - parameter.detach()) / std).flatten(1))
    joined = torch.cat(z, dim=1)
    assert abs(joined.mean().item()) < 4 / math.sqrt(joined.numel())
    assert abs(joined.var().item() - 1) < 4 * math.sqrt(2 / joined.numel())
    # Weight by weight: the largest of some hundred normal deviations.
    deviations = (joined.var(0) - 1) / math.sqrt(2 / 199)
    assert deviations.abs().max() < 6


def test_a_classification_head_is_trained_and_predicts_at_its_mean(tmp_path: Path) -> None:
    method = small(modules_to_save=["classifier"], target_modules=["query", "value"], last_layers=None)
    trainer = trainer_for(tmp_path, method, kind="bert")
    start = trained_parameters(trainer)
    head = [name for name in start if "classifier" in name]
    assert len(head) == 2
    trainer.train()
    end = trained_parameters(trainer)
    assert min(distance(end[name], start[name]) for name in head) > 1e-4
    model: Any = trainer.model
    method.fit_posterior(model, ended(trainer))
    assert posterior_std(ended(trainer).optimizer).keys() >= {dict(model.named_parameters())[name] for name in head}
    seen: list[Tensor] = []
    layer = model.base_model.model.classifier.modules_to_save["default"]
    layer.register_forward_hook(lambda module, inputs, output: seen.append(module.weight.detach().clone()))
    batch = classification()(items(4))
    assert predict(model, batch, 3).samples.exp().std(0).max() > 1e-4
    assert all(torch.equal(weight, end[head[0]]) for weight in seen) and seen


# --- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"beta": 0.0}, "beta must be positive, got 0.0"),
        ({"clip_gradient": 0.0}, "clip_gradient must be positive, got 0.0"),
        ({"initial_std": 0.0}, "initial_std must lie between 0 and prior_std = 1.0, got 0.0"),
        ({"initial_std": 0.2, "prior_std": 0.2}, "initial_std must lie between 0 and prior_std = 0.2, got 0.2"),
    ],
)
def test_refused_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Ivon(**options)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ivon", None)
    optimizer_class.cache_clear()
    try:
        with pytest.raises(ImportError, match=r'pip install "bayeslora\[ivon\]"'):
            Ivon().trainer_options(1e-3, 10, 80)
    finally:
        optimizer_class.cache_clear()


def test_several_processes_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    with pytest.raises(ValueError, match="one process, but there are 2"):
        Ivon().trainer_options(1e-3, 10, 80)


def test_scaled_gradients_are_refused() -> None:
    weight = nn.Parameter(torch.ones(2))
    wrapped = SimpleNamespace(optimizer=optimizer_of([weight]), scaler=object())
    with pytest.raises(ValueError, match="float16 training scales"), sampled_weights(wrapped):
        pass
    wrapped.scaler = None
    with sampled_weights(wrapped):
        assert weight.tolist() != [1.0, 1.0]
        weight.sum().backward()
    assert wrapped.optimizer.state["count"] == 1


def test_a_run_without_training_has_no_posterior() -> None:
    method = small()
    with pytest.raises(ValueError, match="learned in training"):
        method.fit_posterior(adapted(method), TrainingResult(lambda: [], 24, None, None, SEED))


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


@pytest.fixture(scope="module")
def run(world: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Trained, Path]:
    folder = tmp_path_factory.mktemp("run")
    config = RunConfig(
        model=ModelConfig(name=str(world / "base"), device="cpu"),
        task=TaskConfig(name=str(world / "data")),
        method=small(beta2=0.9),
        train=TrainConfig(
            max_steps=12, batch_size=8, learning_rate=0.01, logging_steps=1, arguments={"disable_tqdm": True}
        ),
        num_samples=4,
        seed=SEED,
    )
    return train(config, folder), folder


def samples(run: Any, number: int) -> Tensor:
    return run.predict(items(9, 200), number).predictive.samples.exp()


def test_training_lowers_the_loss(run: tuple[Trained, Path]) -> None:
    history = run[0].metrics["history"]
    assert sum(entry["nll"] for entry in history[-3:]) < sum(entry["nll"] for entry in history[:3]) - 0.3
    assert [entry["kl"] for entry in history] == [0] * 12


@pytest.mark.parametrize("number", [0, 4])
def test_a_loaded_run_predicts_the_same(number: int, run: tuple[Trained, Path]) -> None:
    trained, folder = run
    assert distance(samples(load_run(folder), number), samples(trained, number)) < 1e-6
    assert not (folder / "posterior.safetensors").exists()


def test_the_adapter_alone_holds_the_posterior(world: Path, run: tuple[Trained, Path]) -> None:
    trained, folder = run
    model = PeftModel.from_pretrained(load_base_model(str(world / "base"), device="cpu")[0], str(folder / "adapter"))
    pairs = list(zip(random_factors(model), random_factors(trained.model), strict=True))
    assert len(pairs) == 8
    for found, expected in pairs:
        assert torch.equal(found.mean, expected.mean) and torch.equal(found.log_std, expected.log_std)
        assert (found.log_std.exp() / 0.03 - 1).abs().max() > 0.05
        assert not any(name == "log_std" for name, _ in found.named_parameters())
    assert samples(trained, 4).std(0).max() > 1e-3
