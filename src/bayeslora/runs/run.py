"""A trained adapter in memory, ready to predict."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Self

from peft import PeftModel

from bayeslora.methods import State
from bayeslora.options.ranges import check_value
from bayeslora.prediction.sequential import Adaptive, Settling
from bayeslora.readouts.files import is_head
from bayeslora.runs.adaptive import NumSamples, is_adaptive, learn_settling, settling_of
from bayeslora.runs.config import RunConfig
from bayeslora.runs.prediction import Prediction, predict_items
from bayeslora.scoring import Scoring
from bayeslora.scoring.trunk_cache import TrunkCache
from bayeslora.tasks import Item


@dataclass(kw_only=True)
class Run:
    """What training leaves, or what was loaded from a run folder.

    Attributes:
        known_settling: What `settling` has found.
        folder: Where it keeps what it computes once; None where there is no such place, as for a run of the Hub.
    """

    config: RunConfig
    model: PeftModel
    scoring: Scoring
    metrics: dict[str, Any]
    state: State
    temperature: float = 1.0
    trunk_cache: TrunkCache | None = None
    folder: Path | None = None
    known_settling: dict[tuple[Adaptive, int, float], Settling] = field(default_factory=dict, repr=False)

    def predict(
        self,
        items: Sequence[Item],
        num_samples: NumSamples = None,
        *,
        seed: int | None = None,
        progress: bool = True,
    ) -> Prediction:
        """`predict_items` with the run's adapter, state, temperature and cache; with heads also `novelty`.

        With `num_samples="auto"`, or an `Adaptive` for another error than 0.01, an item gets draws until its answer is
        settled, at most the run's own number; a method whose predictions are not made of draws predicts as ever
        (docs/guides/adaptive_samples.md).

        Raises:
            ValueError: `num_samples` is none of these; or it is "auto", and the method's draws depend on the batch or
                the task has no dev items.
        """
        reading = getattr(self.scoring, "reads", None)
        check_value(num_samples, NumSamples, "num_samples")
        asked = self.config.num_samples if num_samples is None else num_samples
        settling = self.settling(asked) if is_adaptive(asked) else None
        prediction = predict_items(
            self.config,
            self.model,
            self.scoring,
            items,
            trunk_cache=self.trunk_cache,
            num_samples=None if is_adaptive(asked) else asked,
            settling=settling,
            state=self.own_state,
            temperature=self.temperature,
            seed=seed,
            progress=progress,
        )
        if reading is None:
            return prediction
        return replace(prediction, further={**prediction.further, "novelty": reading.novelty(items)})

    @property
    def own_state(self) -> State:
        """The state of the method, without that of heads which read its batches."""
        if getattr(self.scoring, "reads", None) is None:
            return self.state
        return {name: tensor for name, tensor in self.state.items() if not is_head(name)}

    def settling(self, num_samples: Literal["auto"] | Adaptive = "auto") -> Settling | None:
        """When an item has draws enough; None where predictions are made of no draws that could be fewer.

        Raises:
            ValueError: The method's draws depend on the batch, or the task has no dev items.
        """
        known = self.known_settling
        return settling_of(self.config, num_samples, self.folder, self.temperature, self.predict_with_all_draws, known)

    def learn_settling(self, dev: Prediction) -> None:
        """Learn it from the run's dev items, which were predicted with all draws."""
        learn_settling(self.config, dev, self.temperature, self.known_settling)

    def predict_with_all_draws(self, items: Sequence[Item]) -> Prediction:
        """`predict` with the run's number of draws, of "auto" with the number that no item gets more than."""
        return self.predict(items, self.config.most_samples)

    def without_cache(self) -> Self:
        """The run reading every item anew, as for the cost of a prediction."""
        scoring = self.scoring
        if (reading := getattr(scoring, "reads", None)) is not None:
            scoring = copy.copy(scoring)
            scoring.reads = reading.without_cache()  # type: ignore[attr-defined]
        return replace(self, trunk_cache=None, scoring=scoring)

    def scored(self, task: str, split: str, scores: Mapping[str, Any]) -> dict[str, Any]:
        """metrics.json of an evaluation: what is known of the run, with these scores in the place of those on dev.

        Those on dev, which stand nowhere else, go on as `dev`.
        """
        metrics = self.metrics | {"task": task, "split": split} | dict(scores)
        if self.metrics.get("split") == "dev":
            metrics["dev"] = {name: self.metrics[name] for name in scores if name in self.metrics}
        return metrics
