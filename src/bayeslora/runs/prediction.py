"""Predicting items with a trained model."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from bayeslora.methods import State
from bayeslora.metrics import summary
from bayeslora.options.ranges import Draws, check_value
from bayeslora.prediction.conformal import ConformalSets
from bayeslora.prediction.predictive import Predictive, predict
from bayeslora.prediction.sequential import Settling, draw_until_settled
from bayeslora.runs.config import RunConfig
from bayeslora.scoring import Scoring
from bayeslora.scoring.base import choice_mask
from bayeslora.scoring.trunk_cache import TrunkCache
from bayeslora.system import console
from bayeslora.system.files import atomic_file
from bayeslora.system.processes import all_reduce_max, gather_items, is_sharded, shard_items
from bayeslora.tasks import Item

_ROUNDS_LIMIT = 2**30
"""Bytes of memory for hidden states of items that get their draws in rounds."""


@dataclass
class Prediction:
    """Predictive distributions of items, in their order."""

    items: Sequence[Item]
    predictive: Predictive
    num_samples: float
    """Draws of an item; their mean where items have different numbers of them."""
    seconds: float
    cut: int = 0
    """Items whose questions were too long and lost their middle."""
    further: Mapping[str, Tensor] = field(default_factory=dict)
    """What else is known of each item, by name [items], such as novelty."""
    file: ClassVar[str] = "predictions.jsonl"
    """Where an evaluation writes the records."""

    def first(self, count: int) -> Prediction:
        """That of the first items, at most so many."""
        items = self.items[:count]
        numbers = torch.arange(len(items))
        further = {name: values[: len(items)] for name, values in self.further.items()}
        return replace(self, items=items, predictive=self.predictive.take(numbers), further=further)

    def metrics(self) -> dict[str, Any]:
        """Scores on the items, which all need labels; `spread` is the mean of `Predictive.spread`."""
        labels = torch.tensor([item.label for item in self.items])
        scores: dict[str, Any] = dict(summary(self.predictive.probabilities, labels))
        return scores | {
            "num_samples": self.num_samples,
            "predict_seconds": round(self.seconds, 2),
            "spread": float(self.predictive.spread.mean()),
            "cut_items": self.cut,
        }

    def draw(self, path: Path, metrics: Mapping[str, Any]) -> None:
        """The picture of their calibration."""
        # Later: matplotlib.
        from bayeslora.metrics.reliability_diagram import reliability_diagram

        labels = torch.tensor([item.label for item in self.items])
        curves = {str(metrics["method"]): (self.predictive.probabilities, labels)}
        reliability_diagram(curves, path, title=f"{metrics['task']} ({metrics['split']})")

    def rows(self, abstain_above: float | None = None, rule: ConformalSets | None = None) -> Iterator[dict[str, Any]]:
        """One record per item for predictions.jsonl; entropies in nats.

        Args:
            abstain_above: Adds `abstain`, whether the entropy is above it (nats).
            rule: Adds `set` (indices) and `set_choices` (texts), the prediction set.
        """
        probabilities = self.predictive.probabilities
        uncertainty = zip(self.predictive.entropy.tolist(), self.predictive.mutual_information.tolist(), strict=True)
        sets = iter(()) if rule is None else iter(rule.sets(probabilities, choice_mask(self.items)))
        rows = zip(self.items, probabilities.tolist(), uncertainty, strict=True)
        for number, (item, row, (entropy, information)) in enumerate(rows):
            chosen = row[: len(item.choices)]
            best = max(range(len(chosen)), key=chosen.__getitem__)
            record: dict[str, Any] = {
                "id": item.id,
                "probabilities": chosen,
                "prediction": best,
                "choice": item.choices[best],
                "confidence": chosen[best],
                "entropy": entropy,
                "mutual_information": information,
            }
            record |= {name: values[number].item() for name, values in self.further.items()}
            if item.label is not None:
                record["label"] = item.label
            if abstain_above is not None:
                record["abstain"] = entropy > abstain_above
            if rule is not None:
                record["set"] = next(sets).nonzero().flatten().tolist()
                record["set_choices"] = [item.choices[index] for index in record["set"]]
            yield record


def predict_items(
    config: RunConfig,
    model: nn.Module,
    scoring: Scoring,
    items: Sequence[Item],
    *,
    trunk_cache: TrunkCache | None = None,
    num_samples: int | None = None,
    settling: Settling | None = None,
    state: State | None = None,
    temperature: float = 1.0,
    seed: int | None = None,
    progress: bool = True,
) -> Prediction:
    """Predict `items` with the method of `config`; items of similar length share a batch.

    Several processes share the batches, and each gets all predictions: all of them must call this. A batch is the same
    whoever predicts it, so the numbers do not depend on how many there are. With a model that FSDP2 has sharded every
    process takes part in every batch.

    Args:
        config: The run's.
        model: With the trained adapter.
        scoring: Reads the items.
        items: Any number of them.
        trunk_cache: Serves the frozen layers' output.
        num_samples: Draws; default: the config's.
        settling: When an item has draws enough, in place of `num_samples`, for a method with `draws_in_turn`.
        state: What the method's `fit_posterior` returned.
        temperature: Divides the log-probabilities, of a Gaussian over scores its mean.
        seed: Of the draws; default: the config's.
        progress: Whether to show a progress line.

    Raises:
        FloatingPointError: A prediction is not finite.
        ValueError: `num_samples` is out of its range.
    """
    check_value(num_samples, Draws | None, "num_samples")
    started = time.perf_counter()
    samples = config.samples_used(num_samples)
    seed = config.seed if seed is None else seed
    cuts = []

    def draw(numbers: Sequence[int], first: int, count: int) -> Predictive:
        chosen = [items[number] for number in numbers]
        chunks = in_chunks(chosen, config.batch_size)
        joined, cut = predict_chunks(
            config, model, scoring, chosen, chunks, trunk_cache, count, state, seed, progress, first_sample=first
        )
        cuts.append(cut)
        return joined.take(original_order(chunks))

    if settling is None:
        mean_draws: float = samples
        predictive = draw(range(len(items)), 0, samples).tempered(temperature)
    else:
        # Later rounds need not read the items' frozen layers again.
        if trunk_cache is None:
            trunk_cache = TrunkCache(model, _ROUNDS_LIMIT)
        settled = draw_until_settled(draw, settling, len(items), temperature)
        predictive = settled
        mean_draws = float(settled.counts.double().mean())
    require_finite(predictive, items)
    seconds = all_reduce_max(time.perf_counter() - started) or 0.0
    return Prediction(items, predictive, mean_draws, seconds, cuts[0], predictive.further)


def in_chunks(items: Sequence[Item], size: int) -> list[list[int]]:
    """Indices of `items` in batches of at most so many, by length."""
    order = by_length(items)
    return [order[first : first + size] for first in range(0, len(order), size)]


def original_order(chunks: Sequence[Sequence[int]]) -> Tensor:
    """Where each item stands in the chunks behind each other [items]."""
    order = [index for chunk in chunks for index in chunk]
    return torch.tensor(sorted(range(len(order)), key=order.__getitem__))


def predict_chunks(
    config: RunConfig,
    model: nn.Module,
    scoring: Scoring,
    items: Sequence[Item],
    chunks: Sequence[Sequence[int]],
    trunk_cache: TrunkCache | None,
    samples: int,
    state: State | None,
    seed: int,
    progress: bool,
    first_sample: int = 0,
) -> tuple[Predictive, int]:
    """Predictions of chunks of `items` behind each other, and how many items were cut; of all processes.

    A `first_sample` other than 0 is for methods with `draws_in_turn`.
    """
    device = next(model.parameters()).device
    parts = []
    together = is_sharded(model)
    own = chunks if together else shard_items(chunks)
    with console.progress("predict", sum(map(len, own)), "items", show=progress) as line:
        for chunk in own:
            batch = scoring([items[index] for index in chunk]).to(device)
            if first_sample:
                predictive = predict(model, batch, samples, seed, first_sample=first_sample, trunk_cache=trunk_cache)
            else:
                predictive = config.method.predict(model, batch, samples, seed, trunk_cache, state)
            parts.append(predictive.cpu())
            line.advance(len(chunk))
    cut = sum(items[index].id in scoring.cut for chunk in own for index in chunk)
    joined = Predictive.concatenate(parts if together else gather_items(parts))
    return joined, cut if together else sum(gather_items([cut]))


def require_finite(predictive: Predictive, items: Sequence[Item]) -> None:
    """Whether every item has a distribution.

    Raises:
        FloatingPointError: One has not; a file of predictions never holds NaN.
    """
    bad = (~torch.isfinite(predictive.probabilities).all(-1)).nonzero().flatten().tolist()
    if bad:
        raise FloatingPointError(
            f"{len(bad)} of {len(items)} predictions are not finite, such as that of item {items[bad[0]].id!r}. The "
            "weights overflow in this number type: load the model in float32 or bfloat16 (model.dtype), or train again "
            "with a lower learning rate."
        )


def by_length(items: Sequence[Item]) -> list[int]:
    """Indices of `items`, short ones first, so that items of similar length can share a batch."""
    lengths = [len(item.question) + sum(map(len, item.choices)) for item in items]
    return sorted(range(len(items)), key=lengths.__getitem__)


def write_rows(path: str | Path, rows: Iterable[dict[str, Any]]) -> None:
    """JSONL, atomically.

    Raises:
        ValueError: A number is NaN or infinite, which JSON does not know; nothing is written.
    """
    with atomic_file(path) as aside, open(aside, "w", encoding="utf-8") as file:
        for number, row in enumerate(rows):
            try:
                file.write(json.dumps(row, allow_nan=False) + "\n")
            except ValueError as error:
                raise ValueError(f"record {number} of {path} has a number that is not finite: {row}.") from error
