"""`BayesianHead`: fit, predict, save and load in Python."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from bayeslora.readouts.features import FeatureReader
    from bayeslora.runs.config import ModelConfig, RunConfig
    from bayeslora.runs.heads import HeadRun
    from bayeslora.runs.prediction import Prediction
    from bayeslora.tasks import Item


class BayesianHead:
    """A head that learns to read a frozen model's answers, with its posterior in closed form.

    `bayeslora.BayesianHead("offline:smollm2").fit(items).predict(others)`; items are `bayeslora.tasks.Item`s, as
    `bayeslora.tasks.load_items(FILE)` and `bayeslora.get_task(NAME).splits()` give them.

    Args:
        model: Hub id, local folder, "offline:smollm2", or a `ModelConfig`.
        features: Folder in which what is read of the model is kept, for other heads on it; default: in memory.
        reads: As in the method of the same name: "hidden" (middle layers; those above do not run), "likelihood", or
            "both".
        label_noise: As in the method: whether to ask if training labels are wrong, or how many are drawn at random.
        prior: Run folder of a head fitted before on the same base model.
        max_length: Longest sequence in tokens, of a question with one choice.
    """

    def __init__(
        self,
        model: str | ModelConfig = "offline:smollm2",
        *,
        features: str | Path | None = None,
        reads: Literal["both", "hidden", "likelihood"] = "both",
        label_noise: bool | float = False,
        prior: str | Path | None = None,
        max_length: int = 1024,
    ):
        from bayeslora.methods.bayesian_head import BayesianHead as BayesianHeadMethod
        from bayeslora.runs.config import ModelConfig, RunConfig, TaskConfig, TrainConfig

        named = model if isinstance(model, ModelConfig) else ModelConfig(name=model)
        method = BayesianHeadMethod(reads, label_noise, None if prior is None else str(prior))
        kept = None if features is None else str(features)
        self._config = RunConfig(
            model=named,
            task=TaskConfig(name="items", scoring="options", max_length=max_length, chat_template=False),
            method=method,
            train=TrainConfig(cache_trunk=kept is not None, cache_trunk_folder=kept),
        )
        self._reader: FeatureReader | None = None
        self._run: HeadRun | None = None

    @property
    def config(self) -> RunConfig:
        """That of the run folder which `save` writes."""
        return self._config

    @property
    def run(self) -> HeadRun:
        """The fitted run.

        Raises:
            RuntimeError: Nothing was fitted.
        """
        if self._run is None:
            raise RuntimeError("this head is not fitted; call fit(items) first, or BayesianHead.load(folder).")
        return self._run

    @property
    def chosen(self) -> dict[str, Any]:
        """Weights and effective parameters of the blocks, noise, temperature, share of labels that look wrong, log
        evidence and leave-one-out NLL (nats)."""
        return dict(self.run.metrics["head"])

    def fit(self, items: Sequence[Item]) -> BayesianHead:
        """Fit to items with labels; what an earlier fit has read of the model is not read again.

        Raises:
            ValueError: There are no items, or one has no label.
        """
        from bayeslora.runs.heads import fit_run, open_reader

        if self._reader is None:
            self._reader = open_reader(self._config, Path())
        self._run = fit_run(self._config, list(items), Path(), self._reader)
        return self

    def predict(self, items: Sequence[Item], *, progress: bool = False) -> Prediction:
        """Probabilities, entropy and mutual information (nats) in `.predictive`, `.further["variance"]` and
        `.further["novelty"]`; `.rows()` has a record of each item, `.metrics()` the scores."""
        return self.run.predict(items, progress=progress)

    def save(self, folder: str | Path, *, overwrite: bool = False) -> None:
        """Write a run folder, which `bayeslora predict`, `evaluate` and `serve` take.

        Raises:
            FileExistsError: There is a run in the folder and not `overwrite`.
        """
        from bayeslora.runs.heads import write_head_run
        from bayeslora.system.folders import only_writer

        output = Path(folder)
        with only_writer(output):
            if (output / "metrics.json").exists() and not overwrite:
                raise FileExistsError(f"{output} holds a run already; name another folder, or pass overwrite=True.")
            write_head_run(self.run, output)

    def export(self, path: str | Path) -> None:
        """Write the head's mean, linear weights of the layers, as a safetensors file with its formula.

        Raises:
            ValueError: The head has a prior, which is a head of its own.
        """
        from bayeslora.readouts.formula import write_formula

        if self.run.prior is not None:
            raise ValueError("this head reads another one (prior); export a head without.")
        write_formula(self.run.head, Path(path))

    @classmethod
    def load(cls, folder: str | Path, *, device: str | None = None) -> BayesianHead:
        """The head that `save` or `bayeslora train` wrote.

        Raises:
            ValueError: The run in the folder is of another method.
        """
        from bayeslora.runs import load_run
        from bayeslora.runs.heads import HeadRun

        run = load_run(folder, device=device)
        if not isinstance(run, HeadRun):
            raise ValueError(
                f"{folder} is a run of the method {run.config.method.name}; load it by bayeslora.load_run."
            )
        head = cls(replace(run.config.model))
        head._config, head._run, head._reader = run.config, run, run.reader
        return head
