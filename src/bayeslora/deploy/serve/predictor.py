"""The run behind a server: from items to records, in one call."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal, NamedTuple

import torch

from bayeslora.deploy.serve.errors import Refused
from bayeslora.deploy.serve.settings import Settings
from bayeslora.runs import Run, calibrated_on_dev
from bayeslora.runs.adaptive import can_stop
from bayeslora.tasks import Item


class Draws(NamedTuple):
    """Which posterior draws predict; items with the same ones can share a forward."""

    num_samples: int | Literal["auto"]
    seed: int


class Predictor:
    """Predicts items with a run as `bayeslora predict` does.

    Args:
        run: The run.
        settings: The server's; with a coverage the dev split of the run's task is predicted now.

    Raises:
        ValueError: The coverage is not in (0, 1), or there are no dev items to calibrate on.
    """

    def __init__(self, run: Run, settings: Settings):
        config = run.config
        asked_for = config.num_samples if settings.num_samples is None else settings.num_samples
        samples = config.most_samples if asked_for == "auto" else asked_for
        self.run = replace(
            run, config=replace(config, num_samples=samples, batch_size=settings.batch_size or config.batch_size)
        )
        self.settings = settings
        self.default = Draws(self._used(asked_for), config.seed)
        asked: Literal["auto"] | None = None
        if self.default.num_samples == "auto":
            asked = "auto"
            # What is learned from dev is learned now, and a run that cannot do it is refused now.
            self.run.settling()
        self.rule = None if settings.coverage is None else calibrated_on_dev(self.run, settings.coverage, asked)

    def _used(self, num_samples: int | Literal["auto"]) -> int | Literal["auto"]:
        """What a prediction is made of: "auto" alone where the method has draws to stop."""
        config = self.run.config
        if num_samples == "auto":
            if can_stop(config):
                return "auto"
            return config.samples_used()
        return config.samples_used(num_samples)

    @property
    def batch_size(self) -> int:
        """Items in one forward."""
        return self.run.config.batch_size

    @property
    def draws_depend_on_batch(self) -> bool:
        """Whether items of different requests must not share a forward."""
        return self.run.config.method.draws_depend_on_batch

    @property
    def choices(self) -> list[str] | None:
        """The choices of all items, where the run has them."""
        task = self.run.config.task
        return task.classes or task.choices

    @property
    def classes(self) -> int | None:
        """Classes of the classification head, if there is one."""
        if self.run.scoring.kind != "sequence_classification":
            return None
        config: Any = self.run.model.config
        return int(config.num_labels)

    def draws(self, num_samples: int | Literal["auto"] | None, seed: int | None) -> Draws:
        """The draws that a request asks for.

        Raises:
            Refused: They are too many, or the prediction sets were calibrated with others (422).
        """
        if num_samples is not None and num_samples != "auto" and num_samples > self.settings.max_samples:
            text = f"expected at most {self.settings.max_samples} samples, got {num_samples}; ask for fewer."
            raise Refused(422, "too_many_samples", text, field="num_samples")
        samples = self.default.num_samples
        if num_samples is not None:
            samples = self._used(num_samples)
        draws = Draws(samples, self.default.seed if seed is None else seed)
        if self.rule is not None and draws != self.default:
            field = "num_samples" if draws.num_samples != self.default.num_samples else "seed"
            text = (
                f"this server's prediction sets were calibrated with num_samples={self.default.num_samples} and "
                f"seed={self.default.seed}, got {draws.num_samples} and {draws.seed}; leave both out, or start a "
                "server without --coverage."
            )
            raise Refused(422, "calibrated_with_other_draws", text, field=field)
        return draws

    def __call__(self, items: Sequence[Item], draws: Draws) -> list[dict[str, Any]]:
        """Records of items; not for several threads at once.

        Raises:
            Refused: The scoring cannot read one of the items (422).
            ArithmeticError: The model's probabilities are not finite.
        """
        try:
            # A server would keep what heads read of every item that it was ever asked about.
            prediction = self.run.without_cache().predict(items, draws.num_samples, seed=draws.seed, progress=False)
        except ValueError:
            self._refuse_unreadable(items)
            raise
        if not torch.isfinite(prediction.predictive.probabilities).all():
            raise ArithmeticError("the model's probabilities are not finite.")
        return list(prediction.rows(self.settings.abstain_above, self.rule))

    def _refuse_unreadable(self, items: Sequence[Item]) -> None:
        for item in items:
            try:
                self.run.scoring([item])
            except ValueError as error:
                raise Refused(422, "unreadable_item", str(error), field="items") from error

    def described(self, name: str) -> dict[str, Any]:
        """What /v1/model says of the run called `name`."""
        config, settings = self.run.config, self.settings
        limits = ("max_body_bytes", "max_items", "max_choices", "max_characters", "max_samples", "timeout")
        scores = {key: value for key, value in self.run.metrics.items() if isinstance(value, str | int | float)}
        return {
            "run": name,
            "method": config.method.name,
            "base_model": config.model.name,
            "task": config.task.name,
            "scoring": config.task.scoring,
            "choices": self.choices,
            "classes": self.classes,
            "num_samples": self.default.num_samples,
            "seed": self.default.seed,
            "temperature": self.run.temperature,
            "abstain_above": settings.abstain_above,
            "coverage": settings.coverage,
            # JSON has no NaN.
            "metrics": {key: value for key, value in scores.items() if value == value},
            "limits": {limit: getattr(settings, limit) for limit in limits},
        }
