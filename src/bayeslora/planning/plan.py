"""The plan of a config: what each of its rows needs, whether it fits, and what would make it fit."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

from bayeslora.experiments.comparison.config import CompareConfig
from bayeslora.methods import lora_parameters, trainable_parameters
from bayeslora.models.heads import new_head
from bayeslora.models.missing import weights_to_draw
from bayeslora.planning.advice import Change, advise
from bayeslora.planning.architecture import base_on_meta, find_architecture
from bayeslora.planning.arguments import as_trained, option_name
from bayeslora.planning.estimate import Estimator, Setting
from bayeslora.planning.extent import Extent, extent_of
from bayeslora.planning.memory import Budget, Memory
from bayeslora.planning.passes import Passes, read_locally, sizes_of
from bayeslora.planning.shape import Shape
from bayeslora.runs.config import ModelConfig, RunConfig, TaskConfig, TrainConfig
from bayeslora.scoring import get_scoring
from bayeslora.tasks import Item

Items = dict[str, list[Item]] | None
_SHARING = "accelerate launch --config_file examples/accelerate/fsdp2.yaml --num_processes"


@dataclass(frozen=True)
class PlanOptions:
    """What the config does not say.

    Args:
        budget: The device.
        architecture: config.json of a base model that is not known here.
        tokens: Tokens of the longest item, instead of those measured or `max_length`.
        answer_tokens: Tokens of all choices of an item together (cloze scoring).
    """

    budget: Budget
    architecture: str | Path | None = None
    tokens: int | None = None
    answer_tokens: int | None = None


@dataclass(frozen=True)
class RowPlan:
    """One method of the plan.

    Args:
        title: Row of the comparison; of a run the method's name.
        trainable: Numbers that are trained.
        extra: Those beyond plain LoRA of the same rank on the same layers.
        training: Memory at the peak of a training step.
        prediction: The same of a prediction, with `chunk` draws in one forward.
        samples: Draws of a prediction; 0 for a point estimate.
        chunk: Draws in one forward.
        passes: What its run, or all its cells, compute; None where the number of items is not known.
    """

    title: str
    trainable: int
    extra: int
    training: Memory
    prediction: Memory
    samples: int
    chunk: int
    passes: Passes | None

    def fits(self, budget: Budget) -> bool:
        """Whether training and prediction fill no more than may be filled."""
        return max(self.training.total, self.prediction.total) <= budget.usable


@dataclass(frozen=True)
class Plan:
    """What a config needs.

    Args:
        model: Name of the base model.
        parameters: Numbers in the base model.
        head: Parts of a classifier's head that are new, and so trained whole with every method, and why.
        dtype: Their type.
        extents: The longest item of each scoring, and where that is known from.
        setting: What the config says of batches, checkpointing, 4 bits.
        budget: The device.
        rows: By method.
        proposals: The smallest changes that make all rows fit, as options and what they set; one empty proposal where
            the plan fits as it is, none where no change was found.
    """

    model: str
    parameters: int
    head: dict[str, str]
    dtype: str
    extents: list[Extent]
    setting: Setting
    budget: Budget
    rows: list[RowPlan]
    proposals: list[dict[str, Any]] = field(default_factory=list)

    @property
    def fits(self) -> bool:
        """Whether every row fits as the config is."""
        return all(row.fits(self.budget) for row in self.rows)

    @property
    def passes(self) -> Passes | None:
        """Of all rows."""
        total = Passes()
        for row in self.rows:
            if row.passes is None:
                return None
            total += row.passes
        return total


@dataclass(frozen=True)
class _Row:
    """One row while it is planned."""

    title: str
    run: RunConfig
    estimators: list[Estimator]
    """One for each scoring."""
    passes: Passes | None

    def setting(self, change: Change = Change()) -> Setting:  # noqa: B008
        run = self.run
        own = Setting(
            batch_size=run.train.batch_size,
            predict_batch_size=run.batch_size,
            checkpointing=run.model.gradient_checkpointing,
            four_bit=run.model.quantization == "bnb_4bit",
        )
        return change.of(own)

    def training(self, setting: Setting) -> Memory:
        return max((each.training(setting) for each in self.estimators), key=lambda memory: memory.total)

    def prediction(self, setting: Setting, budget: Budget) -> Memory:
        found = (each.prediction(setting, each.chunk(setting, budget)) for each in self.estimators)
        return max(found, key=lambda memory: memory.total)

    def chunk(self, budget: Budget) -> int:
        return min(each.chunk(self.setting(), budget) for each in self.estimators)

    def finished(self, budget: Budget) -> RowPlan:
        model, setting = self.estimators[0].model, self.setting()
        trainable = trainable_parameters(model)
        return RowPlan(
            title=self.title,
            trainable=trainable,
            extra=trainable - lora_parameters(model),
            training=self.training(setting),
            prediction=self.prediction(setting, budget),
            samples=self.estimators[0].num_samples,
            chunk=self.chunk(budget),
            passes=self.passes,
        )


def make_plan(
    config: RunConfig | CompareConfig, options: PlanOptions, note: Callable[[str], object] = lambda _: None
) -> Plan:
    """The plan of a run or of a comparison; no weights are loaded.

    Args:
        config: As `bayeslora train` or `bayeslora compare` read it.
        options: The device and what the config does not say.
        note: Told which row is being traced.

    Raises:
        OSError: The base model's architecture cannot be had.
        ValueError: The method does not fit the model.
    """
    return make_plans(config, options, [options.budget], note)[0]


@torch.random.fork_rng(devices=[])
def make_plans(
    config: RunConfig | CompareConfig,
    options: PlanOptions,
    budgets: Sequence[Budget],
    note: Callable[[str], object] = lambda _: None,
) -> list[Plan]:
    """As `make_plan`, for several devices; what they share is traced once.

    Torch's global random state stays as it is: adapters on the meta device draw their first values from it.
    """
    tasks = [config.task] if isinstance(config, RunConfig) else [*config.tasks.values()]
    outside = [] if isinstance(config, RunConfig) else [*config.out_of_distribution.values()]
    items = {id(task): read_locally(task) for task in (*tasks, *outside)}
    architecture = find_architecture(config.model.name, options.architecture, config.model.revision)
    extents = _extents(config, items, options)
    choices = max(extent.shape.choices for extent in extents)
    new = None if options.architecture else _new_weights(config.model, extents, choices)

    def base(scoring: str, layers: int | None = None) -> Any:
        kind: Any = get_scoring(scoring).kind
        width = choices if kind == "sequence_classification" else None
        return base_on_meta(architecture, kind, config.model.dtype, width, layers=layers, new=new)

    known: dict[Any, Estimator] = {}

    def estimator(run: RunConfig, shape: Shape) -> Estimator:
        key = (type(run.method), repr(sorted(run.method.arguments.items())), shape)
        if key not in known:
            known[key] = Estimator(partial(base, shape.scoring), run.method, shape, run.most_samples)
        return known[key]

    rows = []
    for title, run, passes in _runs(config, items):
        if not run.method.adapts:
            note(f"{title} is left out: a head in closed form trains no weights")
            continue
        note(title)
        rows.append(_Row(title, as_trained(run), [estimator(run, extent.shape) for extent in extents], passes))
    if not rows:
        raise ValueError(
            "there is nothing to plan: a head in closed form trains no weights. It needs the base model in memory, one "
            "forward of some items without gradients, and a few GiB for its fit (docs/guides/readout.md)."
        )
    plain = base(extents[0].shape.scoring)
    parameters, dtype = sum(weight.numel() for weight in plain.parameters()), next(plain.parameters()).dtype
    plans = []
    for budget in budgets:
        plan = Plan(
            model=config.model.name,
            parameters=parameters,
            head=new_head(plain),
            dtype=str(dtype).removeprefix("torch."),
            extents=extents,
            setting=rows[0].setting(),
            budget=budget,
            rows=[row.finished(budget) for row in rows],
        )
        # The command that compares takes one process.
        shareable = isinstance(config, RunConfig)
        changes = [Change()] if plan.fits else _changes(rows, plan.rows, budget, shareable=shareable)
        proposals = [as_options(change, plan.setting, rows[0].run.train) for change in changes]
        plans.append(dataclasses.replace(plan, proposals=proposals))
    return plans


def _new_weights(model: ModelConfig, extents: Sequence[Extent], choices: int) -> dict[str, str] | None:
    kinds = {get_scoring(extent.shape.scoring).kind for extent in extents}
    return weights_to_draw(model.name, choices, model.revision) if "sequence_classification" in kinds else None


def _changes(rows: list[_Row], finished: list[RowPlan], budget: Budget, *, shareable: bool) -> list[Change]:
    """Changes with which every row fits; the row that needs most is asked first."""
    order = {row.title: row for row in finished}
    for_training = sorted(rows, key=lambda row: -order[row.title].training.total)
    for_prediction = sorted(rows, key=lambda row: -order[row.title].prediction.total)

    def training_fits(change: Change) -> bool:
        return all(row.training(row.setting(change)).total <= budget.usable for row in for_training)

    def prediction_fits(change: Change) -> bool:
        return all(row.prediction(row.setting(change), budget).total <= budget.usable for row in for_prediction)

    return advise(rows[0].setting(), training_fits, prediction_fits, shareable=shareable)


def as_options(change: Change, setting: Setting, train: TrainConfig) -> dict[str, Any]:
    """A change as the options of the config, or of the launcher, that make it."""
    new, found = change.of(setting), dict[str, Any]()
    if change.checkpointing:
        found["model.gradient_checkpointing"] = True
    if change.accumulation > 1:
        found[option_name("batch_size", train)] = new.batch_size
        accumulation = train.gradient_accumulation_steps * change.accumulation
        found[option_name("gradient_accumulation_steps", train)] = accumulation
    if change.smaller_forwards > 1:
        found["batch_size"] = new.predict_batch_size
    if change.four_bit:
        found["model.quantization"] = "bnb_4bit"
    if change.devices > 1:
        found["launch"] = f"{_SHARING} {change.devices}"
    return found


def _runs(
    config: RunConfig | CompareConfig, items: Mapping[int, Items]
) -> Iterator[tuple[str, RunConfig, Passes | None]]:
    """Each row with one of its runs, and what all its runs compute."""
    if isinstance(config, RunConfig):
        sizes = sizes_of(config.task, items[id(config.task)])
        yield config.method.name, config, _passes(config, sizes, [sizes.dev, sizes.test])
        return
    for title in config.rows:
        run = config.run(next(iter(config.tasks)), title, config.seeds[0], config.grid(title)[0])
        yield title, run, _cells(config, title, items)


def _cells(config: CompareConfig, title: str, items: Mapping[int, Items]) -> Passes | None:
    """All cells of a row: those of the learning rate's selection, which predict dev alone, and one for each seed."""
    grid, total = config.grid(title), Passes()
    for name, task in config.tasks.items():
        run, sizes = config.run(name, title, config.seeds[0], grid[0]), sizes_of(task, items[id(task)])
        outside = [sizes_of(other, items[id(other)]).test for other in config.outside(name).values()]
        selection = _passes(run, sizes, [sizes.dev])
        final = _passes(run, sizes, [sizes.dev, sizes.test, *outside])
        if selection is None or final is None:
            return None
        for _ in grid if len(grid) > 1 else []:
            total += selection
        for _ in config.seeds:
            total += final
    return total


def _passes(run: RunConfig, sizes: Any, predicted: list[int | None]) -> Passes | None:
    if sizes.train is None or None in predicted:
        return None
    return Passes.of_run(run, sizes, [count for count in predicted if count is not None])


def _extents(config: RunConfig | CompareConfig, items: Mapping[int, Items], options: PlanOptions) -> list[Extent]:
    """The longest item of each scoring, over all tasks."""
    tasks: list[TaskConfig] = [config.task] if isinstance(config, RunConfig) else list(config.tasks.values())
    outside = list(config.out_of_distribution.values()) if isinstance(config, CompareConfig) else []
    found: dict[str, list[Extent]] = {}
    for task in tasks:
        for read in (task, *(dataclasses.replace(other, scoring=task.scoring) for other in outside)):
            source = next((other for other in outside if other.name == read.name), task)
            extent = extent_of(read, items[id(source)], config.model, options.tokens, options.answer_tokens)
            found.setdefault(task.scoring, []).append(extent)
    return [Extent.union(extents) for extents in found.values()]
