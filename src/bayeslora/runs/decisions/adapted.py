"""Codes over a trained adapter: a run whose items are questions about states, and its predictions for requests."""

from __future__ import annotations

import tempfile
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, cast

from bayeslora.methods import Method
from bayeslora.prediction.predictive import Predictive
from bayeslora.runs.config import HeadConfig, ModelConfig, RunConfig, TaskConfig, TrainConfig
from bayeslora.runs.decisions.config import DecisionConfig
from bayeslora.runs.decisions.heads import Heads
from bayeslora.runs.decisions.requests import Request, read_codes
from bayeslora.runs.run import Run
from bayeslora.scoring.codes import CodeReader, CodeScoring, Template, rotations
from bayeslora.scoring.codes.items import DecisionScoring
from bayeslora.tasks import Splits
from bayeslora.tasks.decisions import Question
from bayeslora.tasks.decisions.items import DecisionItem


@dataclass(frozen=True)
class Adapted(ABC):
    """What a decision model answers by over a trained adapter.

    Args:
        run: With a scoring of typed decisions.
    """

    run: Run

    readout: ClassVar[str] = "codes"
    """Of the questions that no head of their own answers."""

    @property
    def heads(self) -> Heads:
        """Those that answer; here none."""
        return Heads()

    @abstractmethod
    def read(self, reader: CodeReader, request: Request) -> list[Predictive]:
        """Predictives [draws, 1, options] of the questions of a request that no head of their own answers.

        Args:
            reader: Of `reader`.
            request: The request.
        """

    def prompts(self, reader: CodeReader, state: list[int], question: Question) -> list[list[int]]:
        """Tokens of a question behind those of a state; errors as of `CodeReader.prompts`."""
        return reader.prompts(state, question)

    def draws(self, request: Request) -> tuple[int, int]:
        """How many a request has, of "auto" all, or 0 for the mean; and their seed."""
        config = self.run.config
        return config.samples_used(request.num_samples), config.seed if request.seed is None else request.seed

    def reader(self) -> CodeReader:
        """What writes prompts, and reads them by codes, as the training did."""
        run, scoring = self.run, cast(DecisionScoring, self.run.scoring)
        prompts, orders = scoring.prompts, run.config.task.orders
        options: Any = {"template": prompts.template, "orders": orders, "max_length": prompts.max_length}
        return CodeReader(run.model, prompts.tokenizer, chat=scoring.chat_template, **options)


@dataclass(frozen=True)
class AdaptedCodes(Adapted):
    """Predictions by codes of the method that has trained the adapter.

    Each question is predicted by itself: an answer hangs on its state, its question, the number of draws and their
    seed, and on nothing beside it.
    """

    @property
    def scoring(self) -> CodeScoring:
        """What reads the run's items."""
        assert isinstance(self.run.scoring, CodeScoring)
        return self.run.scoring

    def read(self, reader: CodeReader, request: Request) -> list[Predictive]:
        """By codes."""
        samples, seed = self.draws(request)
        if samples == 0 and type(self.run.config.method).predict is Method.predict:
            # One pass, in which the state is read once for all questions.
            found = read_codes(reader, request)
        else:
            found = [self._drawn(request, name, samples, seed) for name in request.by_code]
        return [predictive.tempered(self.run.temperature) for predictive in found]

    def _drawn(self, request: Request, name: str, samples: int, seed: int) -> Predictive:
        run, question = self.run, request.questions[name]
        item = DecisionItem("request", "state", question.keys, None, state=None, asked=question)
        orders = rotations(len(question.options), self.scoring.prompts.orders)
        batch = self.scoring.batch([item], [[request.state + row for row in request.by_code[name]]], [orders])
        on_device = batch.to(next(run.model.parameters()).device)
        return run.config.method.predict(run.model, on_device, samples, seed, None, run.state).cpu()


def trained_on(
    items: Sequence[DecisionItem],
    settings: DecisionConfig,
    method: Method,
    options: TrainConfig | None,
    template: Template,
    name: str,
) -> Run:
    """A run that was trained on all of `items`; nothing is set aside, and no folder is left.

    Args:
        items: Questions with labels.
        settings: Of the decision model.
        method: What is trained below codes or heads.
        options: Of the training.
        template: The prompt.
        name: Of the task, for the run's config.
    """
    from bayeslora.runs.training import train

    asked: Any = {option: getattr(settings, option) for option in ("orders", "shuffles", "ranked")}
    task = TaskConfig(name=name, scoring=settings.readout, template=template.to_dict(), **asked)
    if settings.max_length is not None:
        task.max_length = settings.max_length
    draws: Any = settings.num_samples  # None: the usual number.
    config = RunConfig(
        model=ModelConfig(settings.model, settings.dtype, settings.device, settings.revision),
        task=task,
        method=method,
        train=options or TrainConfig(),
        seed=settings.seed,
        num_samples=draws,
        head=HeadConfig(label_noise=settings.label_noise),
    )
    with tempfile.TemporaryDirectory(prefix="bayeslora-") as folder:
        run = train(config, folder, splits=Splits(list(items), [], []))
    run.folder = None
    return run


def decision_config(config: RunConfig) -> DecisionConfig:
    """That of the decision model of a run."""
    base, task = config.model, config.task
    longest = None if task.max_length == TaskConfig().max_length else task.max_length
    return DecisionConfig(
        *(base.name, base.dtype, base.device, base.revision),
        readout=task.scoring,  # type: ignore[arg-type]
        orders=task.orders,
        shuffles=task.shuffles,
        ranked=task.ranked,
        max_length=longest,
        label_noise=config.head.label_noise,
        seed=config.seed,
        num_samples=config.most_samples,
    )


def check_trains(method: Method, readout: str) -> None:
    """Whether a method can be trained below this readout.

    Raises:
        ValueError: It trains no adapter, or the readout is "auto".
    """
    if readout == "auto":
        raise ValueError(
            "a method trains an adapter below codes or heads: set readout='codes', 'heads' or 'option_texts', or leave "
            "it out."
        )
    if not method.adapts and readout != "option_texts":
        raise ValueError(
            f"{type(method).__name__} trains no adapter, so there is nothing to train below {readout}; take Lora, "
            "BayesianLora or another method with adapters, or leave the method and the scoring out: heads on the "
            "frozen model are the default for records of decisions (one head for all questions, on the texts of their "
            "options: option_texts)."
        )
