"""One head on the texts of options, refitted with more records; an adapter below it stays as it is."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from torch import Tensor

from bayeslora.readouts.blocks import OptionFeatures
from bayeslora.readouts.description import describe_head, summary
from bayeslora.readouts.files import head_tensors, heads_state, is_head
from bayeslora.readouts.head import fit_head
from bayeslora.readouts.option_reading import OptionReading, heads_over_adapters, without_adapted
from bayeslora.runs.config import RunConfig
from bayeslora.runs.cross_fitting import adapted_features
from bayeslora.runs.decisions.option_examples import OptionExamples
from bayeslora.runs.heads import HeadRun, fixed_choices, prior_tensors
from bayeslora.runs.run import Run
from bayeslora.system.log import logger
from bayeslora.tasks.decisions.items import DecisionItem

_AnyRun = TypeVar("_AnyRun", bound=Run)


def examples_of(run: Run, items: Sequence[DecisionItem], states: dict[str, Tensor]) -> OptionExamples:
    """What the head of a run was fitted on in this process.

    Args:
        run: Its features of the items are known, and are not read again.
        items: Of its training.
        states: Of the items, as of `OptionExamples`.
    """
    features = run.features(items) if isinstance(run, HeadRun) else _reading(run).taught
    assert features is not None
    return OptionExamples.of(items, features, states, run.config.task.classes)


def read_examples(
    run: Run, items: Sequence[DecisionItem], states: dict[str, Tensor], before: OptionExamples
) -> OptionExamples:
    """More of them, read as the run reads; of fixed choices only where those of `before` are the same."""
    fixed = fixed_choices(items)
    classes = fixed if before.classes is not None and fixed == list(before.classes) else None
    if isinstance(run, HeadRun):
        features = _with_classes(run, classes).features(items)
    else:
        features = _adapted_features(run, items, classes)
    return OptionExamples.of(items, features, states, classes)


def refitted(run: Run, examples: OptionExamples) -> Run:
    """The run with its head fitted to these; what its training said of itself goes on, its scores on dev do not."""
    started = time.perf_counter()
    classes = None if examples.classes is None else list(examples.classes)
    labels, counting = examples.labels, examples.counting
    if isinstance(run, HeadRun):
        noise = run.config.method.label_noise  # type: ignore[attr-defined]
        head = fit_head(examples.features, labels, weights=counting, label_noise=noise)
        found: Run = replace(run, head=head, state=head_tensors(head) | prior_tensors(run.prior))
    else:
        reading = _reading(run)
        frozen = fit_head(without_adapted(examples.features), labels, weights=counting)
        heads = heads_over_adapters(frozen, examples.features, labels, run.config.head.average)
        state = {name: tensor for name, tensor in run.state.items() if not is_head(name)} | heads_state(heads)
        head, reading.heads, reading.frozen = heads[0], heads, _choosing(reading.frozen, classes)
        found = replace(run, state=state)
    found = _with_classes(found, classes)
    chosen = describe_head(head)
    logger.info("%s", summary(chosen))
    seconds = round(time.perf_counter() - started, 2)
    found.metrics = _kept(run.metrics) | {"train_examples": len(labels), "refit_seconds": seconds, "head": chosen}
    return found


def _kept(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """What metrics.json says of a training, and not of its scores."""
    names = ("method", "scoring", "model", "seed", "train_seconds", "peak_memory_bytes", "trainable_parameters")
    return {name: metrics[name] for name in (*names, "history", "chat_template") if name in metrics}


def _with_classes(run: _AnyRun, classes: list[str] | None) -> _AnyRun:
    """The run whose config has these fixed choices, or none."""
    config: RunConfig = replace(run.config, task=replace(run.config.task, classes=classes))
    return replace(run, config=config)


def _adapted_features(run: Run, items: Sequence[DecisionItem], classes: list[str] | None) -> OptionFeatures:
    """Of items, with the adapters and without; what answers reads its own choices again afterwards, come what may."""
    reading = _reading(run)
    own = reading.frozen
    reading.frozen = _choosing(own, classes)
    try:
        return reading.joined(*adapted_features(run.model, run.scoring, items, run.config.batch_size))
    finally:
        reading.frozen = own


def _choosing(frozen: Any, classes: list[str] | None) -> Any:
    """The frozen model's features, with these fixed choices."""
    return replace(frozen, classes=classes)


def _reading(run: Run) -> OptionReading:
    reading = run.scoring.reads  # type: ignore[attr-defined]
    assert isinstance(reading, OptionReading)
    return reading
