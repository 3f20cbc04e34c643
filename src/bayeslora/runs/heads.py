"""Runs of a Bayesian head on frozen features: fitted, predicted with, written and loaded."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from bayeslora.methods.bayesian_head import BayesianHead
from bayeslora.options.ranges import check_value
from bayeslora.readouts.blocks import OptionFeatures
from bayeslora.readouts.contrasts import Contrasts
from bayeslora.readouts.description import describe_head, summary
from bayeslora.readouts.features import FeatureReader
from bayeslora.readouts.files import head_from_tensors, head_tensors
from bayeslora.readouts.head import Head, fit_head
from bayeslora.readouts.labels import labels_of, weights_of
from bayeslora.runs.adaptive import NumSamples
from bayeslora.runs.beginning import check_beginning, check_config
from bayeslora.runs.config import RunConfig
from bayeslora.runs.config_files import write_config
from bayeslora.runs.items import describe_splits, task_items
from bayeslora.runs.loading import features_folder, load_model, merge_resolved, with_prompt
from bayeslora.runs.prediction import Prediction, require_finite
from bayeslora.runs.run import Run
from bayeslora.runs.state import STATE, load_state, save_state
from bayeslora.runs.trainer import training_metrics
from bayeslora.runs.writing import RUN_PARTS
from bayeslora.scoring import Options, get_scoring
from bayeslora.system.files import write_json
from bayeslora.system.folders import only_writer, replaced_together
from bayeslora.system.log import logger
from bayeslora.system.memory import peak_memory
from bayeslora.system.reading import restoring
from bayeslora.tasks import Item, Splits

_PRIOR = "prior"


@dataclass(kw_only=True)
class HeadRun(Run):
    """A fitted head and the model that it reads.

    Args:
        reader: Gives the features of items.
        head: The posterior.
        prior: The head whose utilities are one of this head's features, or None.
        splits: The items, where it was fitted in this process.
    """

    reader: FeatureReader
    head: Head
    prior: Head | None = None
    splits: Splits | None = None

    def features(self, items: Sequence[Item], *, progress: bool = False) -> OptionFeatures:
        """What the head reads of items."""
        return _read(self.reader, items, self.config.task.classes, self.prior, progress=progress)

    def without_cache(self) -> Self:
        """The run reading every item anew."""
        return replace(self, reader=self.reader.without_cache())

    def predict(
        self,
        items: Sequence[Item],
        num_samples: NumSamples = None,
        *,
        seed: int | None = None,
        progress: bool = True,
    ) -> Prediction:
        """Predictions with `variance` and `novelty`; without draws, so `num_samples` and `seed` change nothing."""
        check_value(num_samples, NumSamples, "num_samples")
        started = time.perf_counter()
        found = self.head.predict(self.features(items, progress=progress))
        require_finite(found.predictive, items)
        further = {"variance": found.variance, "novelty": found.novelty}
        cut = sum(item.id in self.scoring.cut for item in items)
        return Prediction(items, found.predictive, 0, time.perf_counter() - started, cut, further)


def train_head(
    config: RunConfig,
    output_dir: str | Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    evaluate_dev: bool = True,
    reader: FeatureReader | None = None,
    splits: Splits | None = None,
    also: Callable[[HeadRun, Path], None] | None = None,
) -> HeadRun:
    """Fit a head and write its run folder: `config.yaml`, `metrics.json` and `posterior.safetensors`, no adapter.

    Args:
        config: The run, with scoring "options" or "option_texts" and the method BayesianHead.
        output_dir: The run folder. The features go to `features/` in it, or to `train.cache_trunk_folder`; what an
            interrupted run has read is not read again.
        resume: Whether there may be a run of the same config in the folder, which is fitted again.
        overwrite: Replace a run that is in `output_dir`.
        evaluate_dev: Whether to predict the dev split, if there is one.
        reader: That of another run on the same base model.
        splits: The items; default: those of the config's task.
        also: Writes further parts of the finished run, into the folder that it is given.

    Raises:
        FileExistsError: There is a run in `output_dir`, and neither `resume` nor `overwrite`.
        RuntimeError: Another process writes to `output_dir`.
        ValueError: The config is wrong, or the training items have no labels to fit.
    """
    output = Path(output_dir)
    with only_writer(output):
        splits = task_items(config.task) if splits is None else splits
        if not splits.train:
            raise ValueError(f"task {config.task.name!r} has no training items; it is for evaluation only.")
        logger.info("%s", describe_splits(config.task.name, splits, "items"))
        check_config(config, len(splits.dev))
        config = replace(config, task=with_prompt(config.task, config.model, splits.train))
        check_beginning(config, output, splits.train, resume=resume, overwrite=overwrite)
        run = fit_run(config, splits.train, output, reader or open_reader(config, output))
        if splits.dev and evaluate_dev:
            run.metrics |= run.predict(splits.dev).metrics() | {"split": "dev"}
        run.splits = splits
        write_head_run(run, output, also)
    return run


def open_reader(config: RunConfig, output: Path) -> FeatureReader:
    """What reads the features of a run in the folder `output`.

    Raises:
        ValueError: The method is another, or scoring and method do not belong together.
    """
    _method(config)
    model, _, scoring = load_model(merge_resolved(config.model, output), config.task)
    return _reader(config, model, scoring, features_folder(config.train, output))


def fit_run(config: RunConfig, items: Sequence[Item], output: Path, reader: FeatureReader) -> HeadRun:
    """The head of training items; says what was chosen.

    Raises:
        ValueError: An item has no label, or the prior is not a head on the same features.
    """
    method, started = _method(config), time.perf_counter()
    labels = labels_of(items)
    prior, classes = _prior_head(method.prior, output), fixed_choices(items)
    config = replace(config, task=replace(config.task, classes=classes))
    with peak_memory(next(reader.model.parameters()).device) as memory:
        features = _read(reader, items, classes, prior, progress=True)
        read = time.perf_counter() - started
        head = fit_head(features, labels, weights=weights_of(items), label_noise=method.label_noise)
    seconds = time.perf_counter() - started
    chosen = describe_head(head)
    logger.info("%s", summary(chosen))
    metrics = training_metrics(config, len(items), seconds, memory.peak, parameters=0) | {
        "history": [],
        "feature_seconds": round(read, 2),
        "cut_train_items": sum(item.id in reader.scoring.cut for item in items),
        "chat_template": reader.scoring.chat_template,
        "head": chosen,
    }
    state = head_tensors(head) | prior_tensors(prior)
    return HeadRun(
        config=config,
        model=reader.model,  # type: ignore[arg-type]
        scoring=reader.scoring,
        metrics=metrics,
        state=state,
        reader=reader,
        head=head,
        prior=prior,
    )


def prior_tensors(prior: Head | None) -> dict[str, Tensor]:
    """Those of the head that serves as a prior, for the state of a run."""
    return {} if prior is None else {f"{_PRIOR}.{name}": tensor for name, tensor in head_tensors(prior).items()}


def fixed_choices(items: Sequence[Item]) -> list[str] | None:
    """The choices that all items share, in their order; None where they differ."""
    first = items[0].choices
    return list(first) if all(item.choices == first for item in items) else None


def _read(
    reader: FeatureReader, items: Sequence[Item], classes: Sequence[str] | None, prior: Head | None, *, progress: bool
) -> OptionFeatures:
    """What a head reads of items; of fixed choices also which one it is, so that each has a frequency of its own."""
    features = reader(items, progress=progress)
    if classes:
        features = features.with_numbers(choice=choice_indicators(items, classes))
    return _with_prior(features, prior)


def choice_indicators(items: Sequence[Item], classes: Sequence[str]) -> Tensor:
    """[items, choices, classes], 1 where a choice is that class; zeros for a choice that is none of them."""
    width, place = max(len(item.choices) for item in items), {text: index for index, text in enumerate(classes)}
    found = torch.zeros(len(items), width, len(classes))
    for number, item in enumerate(items):
        for index, text in enumerate(item.choices):
            if text in place:
                found[number, index, place[text]] = 1
    return found


def write_head_run(run: HeadRun, output: Path, also: Callable[[HeadRun, Path], None] | None = None) -> None:
    """All parts of a finished run, in the place of those of an earlier one and of its evaluations: all or none.

    `also` writes further parts into the folder that it is given.
    """
    with replaced_together(output, RUN_PARTS) as aside:
        save_state(run.state, aside)
        write_config(run.config, aside / "config.yaml")
        write_json(aside / "metrics.json", run.metrics)
        if also is not None:
            also(run, aside)


def load_head_run(config: RunConfig, folder: Path, metrics: dict[str, Any]) -> HeadRun:
    """The run in `folder`; its features are kept where its config says, else in memory.

    Raises:
        ValueError: The head's file lacks something, or is damaged.
    """
    model, _, scoring = load_model(merge_resolved(config.model, folder), config.task, trained=True)
    reader = _reader(config, model, scoring, config.train.cache_trunk_folder)
    state = load_state(folder)
    with restoring(folder / STATE):
        head = head_from_tensors({name: one for name, one in state.items() if not name.startswith(f"{_PRIOR}.")})
        prior = _prior_in(state)
    return HeadRun(
        config=config,
        model=model,  # type: ignore[arg-type]
        scoring=scoring,
        metrics=metrics,
        state=state,
        reader=reader,
        head=head,
        prior=prior,
    )


def _reader(config: RunConfig, model: nn.Module, scoring: Any, folder: str | Path | None) -> FeatureReader:
    reads = _method(config).reads
    parts = {"hidden": reads != "likelihood", "likelihood": reads != "hidden"}
    return FeatureReader(model, scoring, **parts, folder=folder, batch_size=config.batch_size)


def _prior_in(state: dict[str, Tensor]) -> Head | None:
    start = f"{_PRIOR}."
    tensors = {name.removeprefix(start): tensor for name, tensor in state.items() if name.startswith(start)}
    return head_from_tensors(tensors) if tensors else None


def _method(config: RunConfig) -> BayesianHead:
    scoring = get_scoring(config.task.scoring)
    if not (issubclass(scoring, Options) and isinstance(config.method, BayesianHead)):
        raise ValueError(
            f"scoring options and the method BayesianHead belong together, got scoring {config.task.scoring!r} and "
            f"method {type(config.method).__name__}; give both (--task.scoring options --method BayesianHead; for "
            "records of typed decisions --task.scoring option_texts)."
        )
    return config.method


def _prior_head(run: str | None, output: Path) -> Head | None:
    """The head of the run that serves as a prior, which stands alone: no prior of its own."""
    if run is None:
        return None
    path = next((one for one in (Path(run), output / run) if (one / STATE).is_file()), None)
    if path is None:
        raise ValueError(f"method.prior: there is no head in {run!r}; give the run folder of a fitted BayesianHead.")
    state = load_state(path)
    if "weights" not in state:
        raise ValueError(f"method.prior: {run!r} is a run of another method; give that of a BayesianHead.")
    if _prior_in(state) is not None:
        raise ValueError(f"method.prior: the head in {run!r} has a prior itself; give the one below it.")
    with restoring(path / STATE):
        return head_from_tensors(state)


def _with_prior(features: OptionFeatures, prior: Head | None) -> OptionFeatures:
    """`features` with the prior head's utilities, in nats, as one more block."""
    if prior is None:
        return features
    prior.check(features)
    utilities = Contrasts(features.mask).utilities(prior.utilities(features).mean[..., 0])
    scaled = utilities / (prior.scales.noise * prior.noise.temperature)
    return features.with_numbers(prior=scaled.float().unsqueeze(-1))
