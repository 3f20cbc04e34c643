"""The ELBO in transformers' Trainer: the same update however the batch is split, and runs that survive."""

import json
import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import TrainerCallback, TrainingArguments

from bayeslora import kl_divergence, negative_elbo, predict, random_factors
from bayeslora.adapters.draws import hold_draw
from bayeslora.scoring import Classification, Cloze
from bayeslora.system.files import last_complete_checkpoint
from bayeslora.tasks import Item
from bayeslora.training.elbo import kl_weight
from bayeslora.training.parameter_groups import variational_parameters
from bayeslora.training.trainer import BayesianLoraTrainer, NonFiniteLossError
from conftest import (
    byte_level_tokenizer,
    config_for,
    distance,
    logits_of,
    perturb,
    seeded,
    tiny_bert,
    tiny_llama,
    wordpiece_tokenizer,
)
from other_processes import run_copy

SEED = 3
WORDS = ("iron", "wood", "glass", "paper", "water", "wool", "sun and moon", "a lazy dog")


def items(count: int = 24) -> list[Item]:
    """Questions of different length, with two to five choices."""
    return [
        Item(
            id=str(index),
            question="Which of these " + "is a metal " * (index % 3) + f"{index}?",
            choices=tuple(WORDS[(index + shift) % len(WORDS)] for shift in range(2 + index % 4)),
            label=index % 2,
        )
        for index in range(count)
    ]


def texts(count: int = 24) -> list[dict[str, list[int]]]:
    """Sequences with very different numbers of target tokens."""
    generator = torch.Generator().manual_seed(1)
    rows = []
    for index in range(count):
        ids = torch.randint(4, 320, (4 + 2 * (index % 5),), generator=generator).tolist()
        hidden = index % 3
        rows.append({"input_ids": ids, "labels": [-100] * hidden + ids[hidden:]})
    return rows


def collate_texts(rows: Sequence[dict[str, list[int]]]) -> dict[str, Tensor]:
    length = max(len(row["input_ids"]) for row in rows)

    def padded(name: str, value: int) -> Tensor:
        return torch.tensor([row[name] + [value] * (length - len(row[name])) for row in rows])

    ids = padded("input_ids", 0)
    mask = torch.tensor([[1] * len(row["input_ids"]) + [0] * (length - len(row["input_ids"])) for row in rows])
    return {"input_ids": ids, "attention_mask": mask, "labels": padded("labels", -100)}


def collator(kind: str) -> Callable[..., Any]:
    if kind == "lm":
        return collate_texts
    return Cloze(byte_level_tokenizer()) if kind == "cloze" else Classification(wordpiece_tokenizer())


def dataset(kind: str, count: int = 24) -> list[Any]:
    return texts(count) if kind == "lm" else items(count)


def build(kind: str = "cloze", seed: int = 0, **options: Any) -> PeftModel:
    base = tiny_bert(vocab_size=320, num_labels=5) if kind == "bert" else tiny_llama(vocab_size=320)
    fields: dict[str, Any] = {"layers_to_transform": [2, 3], "prior_std": 0.1}
    fields["task_type"] = "SEQ_CLS" if kind == "bert" else "CAUSAL_LM"
    if kind == "bert":
        fields["modules_to_save"] = []
    with seeded(100 + seed):
        model = get_peft_model(base, config_for("bert" if kind == "bert" else "llama", **{**fields, **options}))
    return perturb(model, seed=1 + seed, scale=0.05)  # type: ignore[return-value]


def trainer_for(
    kind: str,
    folder: Path | str,
    *,
    model: nn.Module | None = None,
    train: list[Any] | None = None,
    callbacks: Sequence[TrainerCallback] = (),
    beta: float = 1.0,
    posterior_learning_rate: float | None = None,
    kl_warmup_steps: int = 0,
    trainer: type[BayesianLoraTrainer] = BayesianLoraTrainer,
    compute_metrics: Any = None,
    prior_std: float | None = None,
    **arguments: Any,
) -> BayesianLoraTrainer:
    fields: dict[str, Any] = {
        "output_dir": str(folder),
        "seed": SEED,
        "per_device_train_batch_size": 8,
        "max_steps": 3,
        "learning_rate": 0.05,
        "optim": "sgd",
        "lr_scheduler_type": "constant",
        # Clipping would hide a wrong scale of the gradient.
        "max_grad_norm": 0.0,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "use_cpu": True,
        "dataloader_pin_memory": False,
    }
    return trainer(
        model=build(kind) if model is None else model,
        args=TrainingArguments(**{**fields, **arguments}),
        train_dataset=dataset(kind) if train is None else train,
        eval_dataset=dataset(kind, 8),
        data_collator=collator(kind),
        callbacks=list(callbacks),
        beta=beta,
        posterior_learning_rate=posterior_learning_rate,
        kl_warmup_steps=kl_warmup_steps,
        compute_metrics=compute_metrics,
        prior_std=prior_std,
    )


def trained_parameters(trainer: BayesianLoraTrainer) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in trainer.model.named_parameters() if p.requires_grad}


def step_logs(trainer: BayesianLoraTrainer) -> list[dict[str, float]]:
    return [entry for entry in trainer.state.log_history if "loss" in entry]


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float = 1e-6) -> None:
    assert found.keys() == expected.keys()
    assert len(found) > 0
    worst = {name: distance(found[name], expected[name]) for name in expected}
    assert max(worst.values()) <= tolerance, max(worst.items(), key=lambda entry: entry[1])


# --- one batch, split in any way -----------------------------------------------------------------------------------

KINDS = ("cloze", "bert", "lm")
each_kind = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture(scope="module")
def whole_batches(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[dict[str, Tensor], list[Any]]]:
    """Parameters and logs after three steps on batches of 8, of each kind."""
    result = {}
    for kind in KINDS:
        trainer = trainer_for(kind, tmp_path_factory.mktemp("whole"))
        start = trained_parameters(trainer)
        trainer.train()
        end = trained_parameters(trainer)
        assert max(distance(start[name], end[name]) for name in start) > 1e-3
        result[kind] = end, step_logs(trainer)
    return result


@each_kind
@pytest.mark.parametrize(("size", "accumulation"), [(2, 4), (1, 8)])
def test_accumulated_batches_give_the_same_update(
    kind: str, size: int, accumulation: int, whole_batches: dict[str, Any], tmp_path: Path
) -> None:
    trainer = trainer_for(kind, tmp_path, per_device_train_batch_size=size, gradient_accumulation_steps=accumulation)
    trainer.train()
    expected, logs = whole_batches[kind]
    assert_same(trained_parameters(trainer), expected)
    for found, reference in zip(step_logs(trainer), logs, strict=True):
        for name in ("loss", "nll", "kl"):
            assert found[name] == pytest.approx(reference[name], rel=1e-4), name


@pytest.mark.parametrize("kind", ["cloze", "bert"])
def test_accumulation_where_the_trainer_divides(kind: str, tmp_path: Path) -> None:
    """Models that do not take num_items_in_batch: the trainer itself divides by the accumulation steps."""
    results = []
    for size, accumulation in ((8, 1), (2, 4)):
        trainer = trainer_for(
            kind,
            tmp_path / str(size),
            per_device_train_batch_size=size,
            gradient_accumulation_steps=accumulation,
        )
        trainer.model_accepts_loss_kwargs = False
        trainer.train()
        results.append((trained_parameters(trainer), step_logs(trainer)))
    assert_same(results[1][0], results[0][0])
    for found, reference in zip(results[1][1], results[0][1], strict=True):
        for name in ("loss", "nll", "kl"):
            assert found[name] == pytest.approx(reference[name], rel=1e-4), name


IN_TWO_PROCESSES = """
import os, sys
import torch
from test_trainer import KINDS, step_logs, trained_parameters, trainer_for

for kind in KINDS:
    trainer = trainer_for(kind, sys.argv[1] + "/" + kind, per_device_train_batch_size=4, ddp_backend="gloo")
    assert trainer.args.world_size == 2
    trainer.train()
    torch.save((trained_parameters(trainer), step_logs(trainer)), f"{sys.argv[1]}/{kind}-{os.environ['RANK']}.pt")
torch.distributed.destroy_process_group()
"""


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("distributed")
    done = run_copy(IN_TWO_PROCESSES, folder, str(folder), processes=2)
    assert done.returncode == 0, done.stderr[-6000:]
    return folder


@each_kind
def test_two_processes_give_the_same_update(kind: str, whole_batches: dict[str, Any], two_processes: Path) -> None:
    expected, logs = whole_batches[kind]
    for rank in (0, 1):
        found, _ = torch.load(two_processes / f"{kind}-{rank}.pt")
        assert_same(found, expected)
    for found, reference in zip(torch.load(two_processes / f"{kind}-0.pt")[1], logs, strict=True):
        for name in ("loss", "nll", "kl"):
            assert found[name] == pytest.approx(reference[name], rel=1e-4), name


# --- the objective -------------------------------------------------------------------------------------------------


class Gradients(TrainerCallback):
    """Gradients of the first step, as the optimizer gets them."""

    def __init__(self) -> None:
        self.first: dict[str, Tensor] = {}

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if not self.first:
            named = kwargs["model"].named_parameters()
            self.first = {name: p.grad.clone() for name, p in named if p.grad is not None}


def gradients_by_hand(kind: str, beta: float) -> dict[str, Tensor]:
    """Of the negative ELBO of the whole first batch: all 8 examples, whatever their order."""
    model = build(kind).train()
    hold_draw(model, seed=SEED, step=0)
    batch = collator(kind)(dataset(kind, 8))
    if kind == "lm":
        logits = torch.log_softmax(
            model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits, -1
        )
        targets = batch["labels"][:, 1:]
        present = targets != -100
        chosen = logits[:, :-1].gather(-1, targets.clamp_min(0).unsqueeze(-1)).squeeze(-1)
        observations = int(present.sum())
        nll = -chosen[present].sum() / observations
    else:
        observations = 8
        logits = torch.log_softmax(batch.choice_logits(model), -1)
        nll = -logits[torch.arange(8), batch.labels].mean()
    negative_elbo(nll, kl_divergence(model), observations, beta).backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@each_kind
@pytest.mark.parametrize("beta", [0.0, 5.0])
@pytest.mark.parametrize(("size", "accumulation"), [(8, 1), (2, 4), (1, 8)])
def test_gradient_is_that_of_the_elbo(kind: str, beta: float, size: int, accumulation: int, tmp_path: Path) -> None:
    seen = Gradients()
    trainer = trainer_for(
        kind,
        tmp_path,
        train=dataset(kind, 8),
        beta=beta,
        callbacks=[seen],
        max_steps=1,
        per_device_train_batch_size=size,
        gradient_accumulation_steps=accumulation,
    )
    trainer.train()
    expected = gradients_by_hand(kind, beta)
    scale = max(value.abs().max().item() for value in expected.values())
    assert_same(seen.first, expected, 2e-6 * max(1.0, scale))


def test_the_kl_has_a_gradient_of_its_own() -> None:
    """Else the tests above could not tell how often it enters."""
    with_kl, without = gradients_by_hand("cloze", 1.0), gradients_by_hand("cloze", 0.0)
    assert max(distance(with_kl[name], without[name]) for name in without) > 1e-3


@pytest.mark.parametrize("accumulation", [1, 4])
@pytest.mark.parametrize("kind", KINDS)
def test_logged_parts_add_up(kind: str, accumulation: int, tmp_path: Path) -> None:
    trainer = trainer_for(
        kind,
        tmp_path,
        beta=2.0,
        per_device_train_batch_size=8 // accumulation,
        gradient_accumulation_steps=accumulation,
        model=build(kind, residual_scale=0.5),
    )
    expected_kl = kl_divergence(trainer.model)
    trainer.train()
    logs = step_logs(trainer)
    assert len(logs) == 3
    observations = 24 if kind != "lm" else sum(sum(v != -100 for v in row["labels"][1:]) for row in texts())
    for entry in logs:
        assert entry["kl_weight"] == 2.0
        assert entry["loss"] == pytest.approx(entry["nll"] + 2.0 * entry["kl"] / observations, rel=1e-4)
        assert entry["kl"] == pytest.approx(entry["kl_inducing"] + entry["kl_conditional"], rel=1e-5)
    assert logs[0]["kl_inducing"] == pytest.approx(expected_kl.inducing.item(), rel=1e-5)
    assert logs[0]["kl_conditional"] == pytest.approx(expected_kl.conditional.item(), rel=1e-5)
    assert logs[0]["kl_conditional"] > 10


def test_logs_over_several_steps_are_means(tmp_path: Path) -> None:
    each, pairs = (trainer_for("cloze", tmp_path / str(every), max_steps=6, logging_steps=every) for every in (1, 2))
    each.train()
    pairs.train()
    single, double = step_logs(each), step_logs(pairs)
    assert len(single) == 6
    assert len(double) == 3
    for index, entry in enumerate(double):
        for name in ("loss", "nll", "kl"):
            mean = (single[2 * index][name] + single[2 * index + 1][name]) / 2
            assert entry[name] == pytest.approx(mean, rel=1e-4), name


def test_logs_of_a_second_call_of_train(tmp_path: Path) -> None:
    trainer = trainer_for("cloze", tmp_path, max_steps=6, logging_steps=2, learning_rate=0.0)
    trainer.train()
    first = step_logs(trainer)
    trainer.train()
    second = step_logs(trainer)[-3:]
    for one, two in zip(first, second, strict=True):
        assert two["nll"] == pytest.approx(one["nll"], rel=1e-4)
        assert two["kl"] == pytest.approx(one["kl"], rel=1e-4)


def test_number_of_examples(tmp_path: Path) -> None:
    assert trainer_for("cloze", tmp_path).num_observations == 24
    tokens = sum(sum(label != -100 for label in row["labels"][1:]) for row in texts())
    assert trainer_for("lm", tmp_path).num_observations == tokens
    scalar = [{"input_ids": [1, 2], "labels": 1}] * 7
    assert trainer_for("lm", tmp_path, train=scalar).num_observations == 7


def plain_lora() -> PeftModel:
    with seeded(1):
        config = LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM", init_lora_weights=False)
        return get_peft_model(tiny_llama(vocab_size=320), config)  # type: ignore[return-value]


@pytest.mark.parametrize(("kind", "accumulation"), [("cloze", 1), ("cloze", 4), ("lm", 2)])
def test_the_prior_of_plain_lora_is_that_of_the_closed_form(kind: str, accumulation: int, tmp_path: Path) -> None:
    """MAP: the gradient is that of the mean NLL plus w / (prior_std^2 N), however the batch is split."""
    updates, logs, start = {}, [], {}
    for prior_std in (None, 0.2):
        split: Any = {"per_device_train_batch_size": 8 // accumulation, "gradient_accumulation_steps": accumulation}
        trainer = trainer_for(kind, tmp_path, model=plain_lora(), prior_std=prior_std, max_steps=1, **split)
        start = trained_parameters(trainer)
        trainer.train()
        updates[prior_std] = {name: start[name] - value for name, value in trained_parameters(trainer).items()}
        logs.append(step_logs(trainer)[0])
    n, rate = trainer.num_observations, 0.05
    for name, weight in start.items():
        pulled = updates[0.2][name] - updates[None][name]
        torch.testing.assert_close(pulled, rate * weight / (0.2**2 * n), rtol=2e-3, atol=1e-7)
    squares = sum(weight.square().sum().item() for weight in start.values())
    assert logs[1]["kl"] == pytest.approx(squares / (2 * 0.2**2), rel=1e-4) and logs[1]["nll"] == logs[0]["nll"]
    assert logs[1]["loss"] == pytest.approx(logs[0]["loss"] + squares / (2 * 0.2**2 * n), rel=1e-4)


def test_plain_lora_trains_with_no_kl(tmp_path: Path) -> None:
    model = plain_lora()
    trainer = trainer_for("cloze", tmp_path, model=model)
    trainer.train()
    for entry in step_logs(trainer):
        assert entry["kl"] == 0
        assert entry["loss"] == pytest.approx(entry["nll"], rel=1e-5)


def test_each_step_has_its_own_draw(tmp_path: Path) -> None:
    """With nothing learned and the same batch in each step, the loss still moves: by the draw alone."""
    trainer = trainer_for("cloze", tmp_path, train=items(8), learning_rate=0.0)
    trainer.train()
    losses = [entry["nll"] for entry in step_logs(trainer)]
    assert min(abs(one - other) for one, other in pairwise(losses)) > 1e-4
    assert all(factor.noise is None for factor in random_factors(trainer.model))


def test_refusals(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="beta must be at least 0, got -1"):
        trainer_for("cloze", tmp_path, beta=-1)
    with pytest.raises(ValueError, match="prior_std must be above 0"):
        trainer_for("cloze", tmp_path, model=plain_lora(), prior_std=0.0)
    with pytest.raises(ValueError, match="trains none"):
        trainer_for("cloze", tmp_path, prior_std=1.0)
    with pytest.raises(ValueError, match="a prior of its own"):
        BayesianLoraTrainer(optimizer_cls_and_kwargs=(torch.optim.SGD, {}), prior_std=1.0)
    unlabelled = [Item(id="u", question="What?", choices=("sun", "moon"), label=None)] * 8
    with pytest.raises(ValueError, match="needs a label"):
        trainer_for("cloze", tmp_path, train=unlabelled).train()


# --- warm-up, optimizer groups -------------------------------------------------------------------------------------


def test_kl_weight_grows_linearly() -> None:
    assert [kl_weight(step, 2.0, 4) for step in range(7)] == [0, 0.5, 1.0, 1.5, 2.0, 2.0, 2.0]
    assert kl_weight(0, 2.0, 0) == 2.0


@pytest.fixture(scope="module")
def warm_up_logs(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, float]]:
    trainer = trainer_for("cloze", tmp_path_factory.mktemp("warm"), beta=2.0, kl_warmup_steps=4, max_steps=6)
    trainer.train()
    return step_logs(trainer)


def used_weight(entry: dict[str, float]) -> float:
    return (entry["loss"] - entry["nll"]) * 24 / entry["kl"]


def test_warm_up_reaches_beta(warm_up_logs: list[dict[str, float]]) -> None:
    used = [used_weight(entry) for entry in warm_up_logs]
    assert used == pytest.approx([0.5, 1.0, 1.5, 2.0, 2.0, 2.0], abs=2e-3)


def test_logged_weight_is_the_weight_that_was_used(warm_up_logs: list[dict[str, float]]) -> None:
    logged = [entry["kl_weight"] for entry in warm_up_logs]
    assert logged == pytest.approx([used_weight(entry) for entry in warm_up_logs], abs=2e-3)


@pytest.mark.parametrize("rate", [None, 0.5])
@pytest.mark.parametrize("bases", ["lora", "free"])
def test_groups_of_the_optimizer(rate: float | None, bases: str, tmp_path: Path) -> None:
    model = build(bases=bases, learn_residual_scale=True, residual_scale=0.5, modules_to_save=["lm_head"])
    trainer = trainer_for(
        "cloze", tmp_path, model=model, posterior_learning_rate=rate, weight_decay=0.1, optim="adamw_torch"
    )
    optimizer = trainer.create_optimizer()
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    grouped = [(names[id(p)], group) for group in optimizer.param_groups for p in group["params"]]
    trainable = sorted(name for name, p in model.named_parameters() if p.requires_grad)
    assert sorted(name for name, _ in grouped) == trainable
    variational = {name for name, _ in variational_parameters(model)}
    expected = {name for name in trainable if "lora_" in name and not name.endswith(".mean")}
    assert variational == expected
    for name, group in grouped:
        assert group["weight_decay"] == (0.0 if name in variational else 0.1), name
        assert group["lr"] == (rate if rate and name in variational else 0.05), name


def test_rates_of_the_groups_follow_the_schedule(tmp_path: Path) -> None:
    trainer = trainer_for(
        "cloze",
        tmp_path,
        posterior_learning_rate=0.5,
        lr_scheduler_type="linear",
        max_steps=4,
        logging_steps=1,
    )
    rates: list[list[float]] = []

    class Note(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            rates.append(sorted({group["lr"] for group in kwargs["optimizer"].param_groups if group["params"]}))

    trainer.add_callback(Note())
    trainer.train()
    assert rates[0] == pytest.approx([0.05 * 0.75, 0.5 * 0.75])
    assert rates[1] == pytest.approx([0.05 * 0.5, 0.5 * 0.5])


def test_posterior_learning_rate_moves_only_the_posterior_faster(tmp_path: Path) -> None:
    moved = {}
    for rate in (0.05, 0.1):
        trainer = trainer_for("cloze", tmp_path / str(rate), posterior_learning_rate=rate, max_steps=1)
        start = trained_parameters(trainer)
        trainer.train()
        moved[rate] = {name: value - start[name] for name, value in trained_parameters(trainer).items()}
    for name, value in moved[0.05].items():
        factor = 1 if name.endswith(".mean") else 2
        assert distance(moved[0.1][name], factor * value) < 1e-6, name


def test_weight_decay_reaches_the_means_only(tmp_path: Path) -> None:
    moved = {}
    for decay in (0.0, 0.5):
        trainer = trainer_for("cloze", tmp_path / str(decay), weight_decay=decay, max_steps=1, optim="adamw_torch")
        trainer.train()
        moved[decay] = trained_parameters(trainer)
    for name, value in moved[0.0].items():
        same = distance(moved[0.5][name], value) < 1e-7
        assert same != name.endswith(".mean"), name


# --- evaluation ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task_type", ["given", None])
@pytest.mark.parametrize("kind", ["cloze", "bert"])
def test_evaluate_is_the_loss_of_the_mean(kind: str, task_type: str | None, tmp_path: Path) -> None:
    options = {} if task_type else {"task_type": None}
    trainer = trainer_for(kind, tmp_path, model=build(kind, **options), per_device_eval_batch_size=4)
    found = trainer.evaluate()
    batch = collator(kind)(dataset(kind, 8))
    with torch.no_grad():
        expected = nn.functional.cross_entropy(batch.choice_logits(build(kind, **options).eval()), batch.labels)
    assert found["eval_loss"] == pytest.approx(expected.item(), rel=1e-5)


def test_metrics_get_the_logits_of_all_choices(tmp_path: Path) -> None:
    seen = {}

    def metrics(evaluated: Any) -> dict[str, float]:
        seen["logits"], seen["labels"] = evaluated.predictions, evaluated.label_ids
        return {"accuracy": float((evaluated.predictions.argmax(-1) == evaluated.label_ids).mean())}

    trainer = trainer_for("cloze", tmp_path, per_device_eval_batch_size=8, compute_metrics=metrics)
    found = trainer.evaluate()
    batch = collator("cloze")(items(8))
    with torch.no_grad():
        expected = batch.choice_logits(build().eval())
    assert seen["labels"].tolist() == batch.labels.tolist()
    logits = torch.tensor(seen["logits"])
    assert torch.equal(logits.isfinite(), expected.isfinite())
    assert distance(logits[expected.isfinite()], expected[expected.isfinite()]) < 1e-5
    assert found["eval_accuracy"] == (expected.argmax(-1) == batch.labels).float().mean().item()


class PredictBetween(TrainerCallback):
    """Looks at the posterior after each step, as a user's callback may."""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        predict(kwargs["model"], collator("cloze")(items(2)), 3)


def test_evaluation_and_prediction_leave_training_alone(tmp_path: Path) -> None:
    """Two micro-batches of 3 steps with evaluation in between, or none: the same parameters."""
    quiet = trainer_for("cloze", tmp_path / "quiet", per_device_train_batch_size=4, gradient_accumulation_steps=2)
    quiet.train()
    watched = trainer_for(
        "cloze",
        tmp_path / "watched",
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
        callbacks=[PredictBetween()],
        eval_strategy="steps",
        eval_steps=1,
    )
    watched.train()
    assert [entry for entry in watched.state.log_history if "eval_loss" in entry]
    assert_same(trained_parameters(watched), trained_parameters(quiet), 0)


class PredictWithin(TrainerCallback):
    """The same between two micro-batches of one step."""

    def on_substep_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        predict(kwargs["model"], collator("cloze")(items(2)), 3)


def test_prediction_within_a_step_leaves_its_draw_alone(tmp_path: Path) -> None:
    quiet = trainer_for("cloze", tmp_path / "quiet", per_device_train_batch_size=4, gradient_accumulation_steps=2)
    quiet.train()
    watched = trainer_for(
        "cloze",
        tmp_path / "watched",
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
        callbacks=[PredictWithin()],
    )
    watched.train()
    assert_same(trained_parameters(watched), trained_parameters(quiet), 1e-7)


# --- a run's life --------------------------------------------------------------------------------------------------

RUN: dict[str, Any] = {
    "max_steps": 6,
    "save_strategy": "steps",
    "save_steps": 3,
    "optim": "adamw_torch",
    "lr_scheduler_type": "linear",
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 2,
    "posterior_learning_rate": 0.1,
    "kl_warmup_steps": 4,
}


def run(folder: Path, kind: str = "cloze", *, seed: int = 0, **options: Any) -> BayesianLoraTrainer:
    """A trainer with dropout, momentum, a schedule and a warm-up: all of which a resumed run has to find again."""
    arguments = {**RUN, **options}
    model = arguments.pop("model", None) or build(kind, seed=seed, lora_dropout=0.1)
    return trainer_for(kind, folder, model=model, **arguments)


class StopAt(TrainerCallback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            control.should_training_stop = True


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Tensor], list[dict[str, float]]]:
    trainer = run(tmp_path_factory.mktemp("straight"))
    trainer.train()
    return trained_parameters(trainer), step_logs(trainer)


@pytest.mark.parametrize("how", ["newest", "path"])
def test_a_resumed_run_goes_on_as_if_never_stopped(how: str, straight: Any, tmp_path: Path) -> None:
    first = run(tmp_path, callbacks=[StopAt(3)])
    first.train()
    assert first.state.global_step == 3
    # A new process would start from other weights.
    second = run(tmp_path, seed=5)
    second.train(resume_from_checkpoint=True if how == "newest" else str(tmp_path / "checkpoint-3"))
    assert_same(trained_parameters(second), straight[0], 1e-7)
    logs = step_logs(second)
    assert [entry["step"] for entry in logs] == [1, 2, 3, 4, 5, 6]
    for found, expected in zip(logs, straight[1], strict=True):
        for name in ("loss", "nll", "kl"):
            assert found[name] == pytest.approx(expected[name], rel=1e-5), (found["step"], name)


def test_nothing_to_resume_starts_from_the_beginning(straight: Any, tmp_path: Path) -> None:
    trainer = run(tmp_path / "empty")
    trainer.train(resume_from_checkpoint=True)
    assert_same(trained_parameters(trainer), straight[0], 0)


@pytest.mark.parametrize("damage", ["missing", "cut"])
def test_a_half_written_checkpoint_is_skipped(damage: str, straight: Any, tmp_path: Path) -> None:
    run(tmp_path).train()
    state = tmp_path / "checkpoint-6" / "trainer_state.json"
    if damage == "missing":
        state.unlink()
    else:
        state.write_text(state.read_text()[:40])
    assert last_complete_checkpoint(tmp_path) == str(tmp_path / "checkpoint-3")
    trainer = run(tmp_path, seed=5)
    trainer.train(resume_from_checkpoint=True)
    assert_same(trained_parameters(trainer), straight[0], 1e-7)


class DiskFull(BayesianLoraTrainer):
    """The disk is full after the weights of the second checkpoint, before its optimizer."""

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if self.state.global_step == 6:
            raise OSError(28, "No space left on device")
        super()._save_optimizer_and_scheduler(output_dir)


def test_a_full_disk_in_a_checkpoint(straight: Any, tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No space left"):
        run(tmp_path, trainer=DiskFull).train()
    assert (tmp_path / "checkpoint-6").exists()
    trainer = run(tmp_path, seed=5)
    trainer.train(resume_from_checkpoint=True)
    assert_same(trained_parameters(trainer), straight[0], 1e-7)


def test_checkpoints_are_ordered_by_number(tmp_path: Path) -> None:
    for name in ("checkpoint-9", "checkpoint-10", "checkpoint-best", "checkpoint-11"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "trainer_state.json").write_text(json.dumps({"global_step": 1}))
    (tmp_path / "checkpoint-11" / "trainer_state.json").unlink()
    assert last_complete_checkpoint(tmp_path) == str(tmp_path / "checkpoint-10")
    assert last_complete_checkpoint(tmp_path / "nowhere") is None


class Poison(TrainerCallback):
    """Break the base model (loss) or the adapter (weights) when a step begins or has ended."""

    def __init__(self, step: int, what: str) -> None:
        self.step, self.what = step, what

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step and self.what == "loss":
            with torch.no_grad():
                kwargs["model"].base_model.model.lm_head.weight.fill_(math.nan)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step and self.what == "weights":
            with torch.no_grad():
                next(p for p in kwargs["model"].parameters() if p.requires_grad).fill_(math.inf)


def loads_well(folder: str) -> None:
    loaded = PeftModel.from_pretrained(tiny_llama(vocab_size=320), folder)
    assert all(parameter.isfinite().all() for parameter in loaded.parameters())
    assert logits_of(loaded).isfinite().all()
    assert distance(logits_of(loaded), logits_of(tiny_llama(vocab_size=320))) > 1e-2


def test_a_loss_that_is_not_a_number_stops_the_run(tmp_path: Path) -> None:
    trainer = run(tmp_path, callbacks=[Poison(4, "loss")])
    with pytest.raises(NonFiniteLossError, match=r"nan at step 5 of 6.*checkpoint-3"):
        trainer.train()
    assert trainer.state.global_step == 4
    assert all(parameter.isfinite().all() for parameter in trained_parameters(trainer).values())
    assert last_complete_checkpoint(tmp_path) == str(tmp_path / "checkpoint-3")
    loads_well(str(tmp_path / "checkpoint-3"))


def test_a_loss_that_is_not_a_number_before_any_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(NonFiniteLossError, match=r"step 1 of 6.*No checkpoint had been saved"):
        run(tmp_path, callbacks=[Poison(0, "loss")]).train()


def test_weights_that_are_not_finite_are_not_saved(tmp_path: Path) -> None:
    trainer = run(tmp_path, callbacks=[Poison(6, "weights")])
    with pytest.raises(NonFiniteLossError, match=r"not finite at step 6; nothing was saved.*checkpoint-3"):
        trainer.train()
    assert last_complete_checkpoint(tmp_path) == str(tmp_path / "checkpoint-3")
    assert not list(tmp_path.glob("checkpoint-6/*.safetensors"))
    loads_well(str(tmp_path / "checkpoint-3"))


def test_the_saved_model_is_an_adapter(tmp_path: Path) -> None:
    trainer = run(tmp_path)
    trainer.train()
    trainer.save_model(str(tmp_path / "final"))
    loads_well(str(tmp_path / "final"))
    loaded = PeftModel.from_pretrained(tiny_llama(vocab_size=320), tmp_path / "final")
    assert distance(logits_of(loaded), logits_of(trainer.model.eval())) < 1e-6


# --- other losses ----------------------------------------------------------------------------------------------------


def four_choices(count: int = 24) -> list[Item]:
    return [Item(str(n), f"Which is it, {n}?", WORDS[:4], n % 4) for n in range(count)]


def trained_with(folder: Path, model_seed: int = 0, **options: Any) -> list[dict[str, float]]:
    """Logs of three steps on batches of 8 or as `options` say."""
    fields: dict[str, Any] = {"per_device_train_batch_size": 8, "max_steps": 3, "logging_steps": 1, "seed": SEED}
    fields |= {"report_to": [], "disable_tqdm": True, "use_cpu": True, "save_strategy": "no", "learning_rate": 0.01}
    own = {name: options.pop(name) for name in ("compute_loss_func", "label_smoothing") if name in options}
    arguments = TrainingArguments(str(folder), **fields | options)
    collate = Cloze(byte_level_tokenizer())
    trainer = BayesianLoraTrainer(build(seed=model_seed), arguments, collate, four_choices(), **own)
    trainer.train()
    return step_logs(trainer)


def weighted(weights: list[float]) -> Callable[..., Tensor]:
    def loss(outputs: Any, labels: Tensor, num_items_in_batch: Any = None) -> Tensor:
        losses = nn.functional.cross_entropy(outputs.logits, labels, weight=torch.tensor(weights), reduction="sum")
        return losses / (len(labels) if num_items_in_batch is None else num_items_in_batch)

    return loss


def test_the_trainers_own_loss_function_is_used_for_items(tmp_path: Path) -> None:
    plain = trained_with(tmp_path)
    same = trained_with(tmp_path, compute_loss_func=weighted([1.0] * 4))
    double = trained_with(tmp_path, compute_loss_func=weighted([2.0] * 4))
    classes = trained_with(tmp_path, compute_loss_func=weighted([10.0, 1.0, 1.0, 1.0]))
    split = trained_with(
        tmp_path,
        compute_loss_func=weighted([10.0, 1.0, 1.0, 1.0]),
        per_device_train_batch_size=2,
        gradient_accumulation_steps=4,
    )
    for name, (first, second) in {"nll": (plain, same), "loss": (classes, split)}.items():
        assert [e[name] for e in first] == pytest.approx([e[name] for e in second], rel=1e-4)
    assert double[0]["nll"] == pytest.approx(2 * plain[0]["nll"], rel=1e-5)
    assert classes[0]["nll"] > 1.5 * plain[0]["nll"]


def test_the_trainers_label_smoothing_is_used_for_items(tmp_path: Path) -> None:
    own, factor, plain = (
        [entry["nll"] for entry in trained_with(tmp_path, **options)]
        for options in ({"label_smoothing": 0.3}, {"label_smoothing_factor": 0.3}, {})
    )
    assert own == factor and own != plain


def test_what_would_be_ignored_of_a_loss_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="say the same"):
        trained_with(tmp_path, label_smoothing=0.1, label_smoothing_factor=0.1)
    for option in ("label_smoothing", "label_smoothing_factor"):
        with pytest.raises(ValueError, match="smooth in that function"):
            trained_with(tmp_path, compute_loss_func=weighted([1.0] * 4), **{option: 0.1})
    trainer = trainer_for("lm", tmp_path)
    trainer.label_smoothing = 0.1
    with pytest.raises(ValueError, match=r"label_smoothing_factor=0\.1"):
        trainer.train()
