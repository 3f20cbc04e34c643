"""Heads over adapters (scorings "options" and "heads" with a method that adapts): fitted beside the training.

Adapters lie below the layer that is read, at two thirds of the depth. An item's loss is that of a head which was fitted
to the folds without it, in closed form on features that are detached; the heads are fitted again at every epoch, and
the gradient goes through the features into the adapters alone. Their prior and temperature are those of a head on the
frozen model. After the training one head is fitted to all items, whose probabilities are by default averaged with those
of the frozen model's.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import TrainerCallback

from bayeslora.adapters.switching import adapters_off
from bayeslora.methods import Method, State
from bayeslora.models.layers import descendants, evaluating, outermost_layers
from bayeslora.readouts.blocks import OptionFeatures
from bayeslora.readouts.features import FeatureReader
from bayeslora.readouts.hidden import read_layers
from bayeslora.readouts.option_reading import OptionReading
from bayeslora.readouts.over_adapters import HeadsOverAdapters
from bayeslora.readouts.questions.reading import DEPTHS, QuestionReading
from bayeslora.runs.config import RunConfig
from bayeslora.runs.heads import choice_indicators
from bayeslora.runs.prediction import in_chunks, original_order
from bayeslora.scoring import Scoring
from bayeslora.scoring.heads import HeadScoring
from bayeslora.scoring.trunk_cache import TrunkCache, served
from bayeslora.system.files import atomic_file
from bayeslora.system.reading import read_tensors
from bayeslora.tasks import Item

_HEADS = "heads.safetensors"


def below_head(method: Method, model: nn.Module) -> Method:
    """`method` with its layers counted from the one that is read down."""
    placed = copy.copy(method)
    placed.top = _top(read_layers(model))
    return placed


def _top(layers: Sequence[int]) -> int:
    """Of the layers that a frozen model is read at the one that adapters lie below: at two thirds of the depth."""
    return layers[-2] if len(layers) > 2 else layers[-1]


def read_by_heads(config: RunConfig, base: nn.Module, scoring: Any, folder: str | Path | None) -> None:
    """Let heads read the batches of `scoring`; to be called before `base` gets its adapters."""
    if isinstance(scoring, HeadScoring):
        scoring.reads = QuestionReading(read_layers(base, DEPTHS), base, scoring, noisy=config.head.label_noise)
        return
    reader = FeatureReader(base, copy.copy(scoring), folder=folder, batch_size=config.batch_size)
    scoring.reads = OptionReading(read_layers(base), _Frozen(reader, config.task.classes))


@dataclass(frozen=True)
class _Frozen:
    """The features of items in the model without adapters; of fixed choices also which one it is."""

    reader: FeatureReader
    classes: Sequence[str] | None

    def __call__(self, items: Sequence[Any]) -> OptionFeatures:
        with adapters_off(self.reader.model):
            features = self.reader(items)
        return features.with_numbers(choice=choice_indicators(items, self.classes)) if self.classes else features

    def without_cache(self) -> _Frozen:
        return replace(self, reader=self.reader.without_cache())


def reading_of(scoring: Any) -> HeadsOverAdapters | None:
    """What reads the batches of a run's scoring; None where that is not heads."""
    reads = getattr(scoring, "reads", None)
    return reads if isinstance(reads, HeadsOverAdapters) else None


def read_above_adapters(model: PeftModel, reading: HeadsOverAdapters) -> None:
    """Let `reading` take from the adapted model the layers that adapters change.

    Raises:
        ValueError: There is an adapter above the last layer that is read, or none at all.
    """
    layers = outermost_layers(model)
    adapted = [
        number
        for number, layer in enumerate(layers)
        if any(isinstance(module, BaseTunerLayer) for module in descendants(layer))
    ]
    top = _top(read_layers(model))
    if not adapted:
        raise ValueError(
            "heads over adapters also read the model without them, and this method changes the weights themselves; "
            "take one with adapters, such as Lora."
        )
    if max(adapted) >= top:
        raise ValueError(
            f"a head over adapters reads layer {top} of {len(layers)}, and the adapters must lie below: they are in "
            f"the layers {[number + 1 for number in adapted]}."
        )
    reading.layers = [layer for layer in reading.every if min(adapted) < layer <= top]


class CrossFitting(TrainerCallback):
    """Fits the heads of a training at each of its epochs, and the last one.

    Args:
        config: The run's.
        model: With its adapters.
        scoring: Whose batches heads read.
        items: Of the training.
        trunk_cache: Serves the frozen layers' output.
    """

    def __init__(
        self,
        config: RunConfig,
        model: PeftModel,
        scoring: Scoring,
        items: Sequence[Item],
        trunk_cache: TrunkCache | None,
    ):
        reading = reading_of(scoring)
        assert reading is not None
        self.reading, self.model, self.scoring = reading, model, scoring
        self.items, self.trunk_cache, self.config = items, trunk_cache, config
        self._fitted_at: int | None = None
        self.reading.begin(items, config.head.folds, config.seed)

    def features(self) -> tuple[list[Any], Tensor]:
        """Of the training items, without noise in the adapters: batch by batch, and where each item stands."""
        return adapted_features(self.model, self.scoring, self.items, self.config.batch_size, self.trunk_cache)

    def refit(self) -> None:
        """Heads of the folds, on the adapters as they are."""
        self.reading.refit(*self.features())

    def require(self) -> None:
        """Fit the heads of the folds where no epoch did."""
        if not self.reading.fitted:
            self.refit()

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Fit the heads; in a training that goes on within an epoch, take those of its checkpoint."""
        kept = Path(args.output_dir) / f"checkpoint-{state.global_step}" / _HEADS
        if state.epoch and state.epoch % 1 and kept.is_file():
            self.reading.restore_folds(read_tensors(kept))
        elif self._fitted_at != state.global_step:
            self.refit()

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Fit the heads that an evaluation of this epoch's end reads with."""
        if args.eval_strategy != "no":
            self.refit()
            self._fitted_at = state.global_step

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Keep the heads of the epoch with its checkpoint."""
        heads = self.reading.fold_tensors()
        if heads and state.is_world_process_zero:
            with atomic_file(Path(args.output_dir) / f"checkpoint-{state.global_step}" / _HEADS) as aside:
                save_file({name: tensor.contiguous() for name, tensor in heads.items()}, aside)

    def finish(self) -> State:
        """Fit the heads of all items, which from now on read every item; their tensors."""
        return self.reading.finish(*self.features(), self.config.head.average)


def adapted_features(
    model: nn.Module,
    scoring: Scoring,
    items: Sequence[Item],
    batch_size: int,
    trunk_cache: TrunkCache | None = None,
) -> tuple[list[Any], Tensor]:
    """What heads read of items, without noise in the adapters: batch by batch, and where each item stands [items].

    Args:
        model: With its adapters.
        scoring: Whose batches heads read.
        items: The items.
        batch_size: Of a forward.
        trunk_cache: Serves the frozen layers' output.
    """
    reading, chunks = reading_of(scoring), in_chunks(items, batch_size)
    assert reading is not None
    device, parts = next(model.parameters()).device, []
    with evaluating(model), torch.no_grad():
        for chunk in chunks:
            batch = scoring([items[index] for index in chunk]).to(device).suited_to(model)
            with served(batch, trunk_cache):
                parts.append(reading.features(model, batch))
    return parts, original_order(chunks)
