"""A decision model: fitted on records, asked typed questions about a state, saved as a folder."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from bayeslora.methods.bayesian_head import BayesianHead
from bayeslora.runs.decisions.adapted import trained_on
from bayeslora.runs.decisions.adapted_options import AdaptedOptions
from bayeslora.runs.decisions.answering import AnsweringModel
from bayeslora.runs.decisions.calibration import Labelled, Signal, calibrated
from bayeslora.runs.decisions.drift import DRIFTED, Drift, drift
from bayeslora.runs.decisions.examples import Examples, counts_of_labels, held, novelty_of, state_means
from bayeslora.runs.decisions.files import read_model, write_model
from bayeslora.runs.decisions.heads import Heads, check_enough
from bayeslora.runs.decisions.option_examples import OptionExamples
from bayeslora.runs.decisions.option_refit import examples_of, read_examples, refitted
from bayeslora.runs.run import Run
from bayeslora.system.folders import to_be_written
from bayeslora.system.log import logger
from bayeslora.tasks.decisions import Question, Record, parse_questions, read_records
from bayeslora.tasks.decisions.items import DecisionItem, items_of, without_states

FEWEST = 25
"""Labels from which on a question gets a head of its own by default; and questions that vary, together, one head."""


class DecisionModel(AnsweringModel):
    """Answers typed questions about a state with probabilities that know what they do not know.

    Learning, calibration and folders are here; `decide`, which asks, is that of `AnsweringModel`.

    Args:
        model: Hub id, local folder, or "offline:smollm2"; or a whole `DecisionConfig`.
        template: The prompt.
        method: Of `bayeslora.methods`, with readout "codes", "heads" or "option_texts": what `fit` trains below them.
            Default: nothing, and for "option_texts" `BayesianHead`, a head on the frozen model.
        train: Options of that training (`bayeslora.runs.config.TrainConfig`).
        **options: Fields of `DecisionConfig`.

    Attributes:
        adapted: What answers over a trained adapter; None where none was trained.
        questions: Those that it was fitted on, by their ids.
        trained_states: Digests of the states that it was fitted on.
        examples: Features and labels that it was fitted on, for `extend`; None where it has none.
    """

    def fit(
        self,
        records: str | Path | Sequence[Record],
        questions: Mapping[str, Any] | None = None,
        *,
        progress: bool = True,
    ) -> DecisionModel:
        """Learn from records; what was learned before is forgotten, a calibration too.

        With a method it trains what lies below codes, heads or the head on option texts on all of them.

        Args:
            records: A file of them, or what `read_records` gave.
            questions: Those of records that have only a state and labels.
            progress: Whether a bar shows how many states are read.

        Raises:
            TaskError: A record is wrong.
            ValueError: There is too little to learn from.
            TooLongError: A state does not fit; nothing is cut.
        """
        name = "records"
        if isinstance(records, str | Path):
            shared = None if questions is None else parse_questions(questions)
            name, records = str(records), read_records(records, shared, require_labels=True)
        if self.method is None and self.config.readout == "auto" and _vary(records):
            logger.info(
                "the questions vary, and one head learns from all of them: it reads the texts of options (readout "
                "option_texts)"
            )
            self.config, self.method = replace(self.config, readout="option_texts"), BayesianHead()
        if self.method is not None:
            items = items_of(records)
            self.take(trained_on(items, self.config, self.method, self.train, self.template, name), items, progress)
            return self
        self.questions = self._learn(records, Examples(), progress)
        return self

    def take(self, run: Run, items: Sequence[DecisionItem], progress: bool = True) -> None:
        """Answer by a run that was trained on these items, in the place of what was learned before."""
        self.adapt(run)
        self.examples, self.calibration = None, None
        if self.heads.novelty is None:
            means = state_means(self.hidden, items, progress=progress)
            self.heads = Heads({}, novelty_of(means))
            if isinstance(self.adapted, AdaptedOptions):
                self.examples = examples_of(run, items, means)
        self.trained_states = frozenset(item.state_key for item in items)
        self.questions = {item.name: item.asked for item in items}

    def extend(self, records: str | Path | Sequence[Record], *, progress: bool = True) -> DecisionModel:
        """Learn from more records, as if `fit` had been given them behind those it was given; only these are read.

        States of heads are read behind the questions of the first records (`Template.announcing`), not behind new ones.

        A calibration is forgotten: it was of the heads before. An adapter below option texts stays as it is.

        Args:
            records: A file of them, or what `read_records` gave; of one with only a state and labels, the model's own
                questions count.
            progress: Whether a bar shows how many states are read.

        Raises:
            TaskError: A record is wrong.
            ValueError: The model was not fitted, or does not hold what it was fitted on.
            TooLongError: A state does not fit; nothing is cut.
        """
        before = held(self.examples)
        if isinstance(records, str | Path):
            records = read_records(records, self.questions or None, require_labels=True)
        known = sum(record.state_key in self.trained_states for record in records)
        logger.info(
            "%d records of before and %d new ones, of which %d have a state of before",
            before.records,
            len(records),
            known,
        )
        if self.calibration is not None:
            logger.warning("the calibration was of the heads of before, and is left out: calibrate again")
        if isinstance(before, OptionExamples):
            self._refit(items_of(records), before, progress)
        else:
            self.questions = self.questions | self._learn(records, before, progress)
        return self

    def _refit(self, items: Sequence[DecisionItem], before: OptionExamples, progress: bool) -> None:
        """Fit the head on option texts to more items; what the model has learned before is replaced at the end."""
        assert self.adapted is not None
        if not items:
            raise ValueError("expected labels among the new records, but none has one.")
        means = state_means(self.hidden, items, progress=progress)
        examples = before.joined(read_examples(self.adapted.run, items, means, before))
        self.adapt(refitted(self.adapted.run, examples))
        self.heads = Heads({}, novelty_of(examples.states))
        self.trained_states |= frozenset(means)
        self.questions = self.questions | {item.name: item.asked for item in items}
        self.examples, self.calibration = examples, None

    def _learn(self, records: Sequence[Record], before: Examples, progress: bool) -> dict[str, Question]:
        """Fit heads; what the model has learned before is replaced at the end. Gives the questions of the records."""
        if self.config.readout == "codes":
            raise ValueError(
                "readout='codes' without a method learns nothing: give one, such as method=bayeslora.methods.Lora(), "
                "take readout='auto', 'heads' or 'option_texts', or decide without fit."
            )
        fewest = FEWEST if self.config.readout == "auto" else 2
        counts = Counter({key: len(labels.states) for key, labels in before.labels.items()})
        counts.update(counts_of_labels(records))
        check_enough(counts, fewest)
        asked = (question for record in records for question in record.questions.values())
        hidden = self.hidden if before.records else self.hidden.announcing(asked)
        examples = before.joined(Examples.of(hidden, records, progress=progress))
        self.heads = Heads.fit(examples, self.config, fewest=fewest)
        self.reader, self.hidden, self.template = hidden.reader, hidden, hidden.reader.template
        known = self.trained_states if before.records else frozenset[str]()
        self.trained_states = known | {record.state_key for record in records}
        self.examples, self.calibration = examples, None
        return {name: question for record in records for name, question in record.questions.items()}

    def calibrate(
        self,
        records: str | Path | Sequence[Record],
        *,
        alpha: float | None = None,
        delta: float = 0.1,
        signal: Signal = "confidence",
        coverage: float | None = None,
    ) -> DecisionModel:
        """Learn temperatures and, with an alpha, thresholds from labelled records that `fit` has not seen.

        Records whose state it has seen are left out with a word: of these it knows the answers.

        Args:
            records: A file of them, or what `read_records` gave.
            alpha: The share of errors that answers with the action "automate" may have.
            delta: Probability with which that promise may fail, for each question.
            signal: What the threshold is on: "confidence", "entropy" or "novelty".
            coverage: Share of states whose right option the answers' sets shall hold, or None for no sets.

        Raises:
            TaskError: A record is wrong.
            ValueError: There are too few labels, or an argument is out of its range.
        """
        if isinstance(records, str | Path):
            records = read_records(records, self.questions or None, require_labels=True)
        records = without_states(records, self.trained_states, "calibration records")
        self.calibration = None
        rows = list(self.labelled(records))
        self.calibration = calibrated(rows, alpha=alpha, delta=delta, signal=signal, coverage=coverage)
        shift = self.drift({row.state: row.answer.novelty for row in rows})
        if shift is not None and shift.p < DRIFTED:
            logger.warning("the labelled states are not like those of the training: %s", shift)
        return self

    def drift(self, novelties: Mapping[str, float | None]) -> Drift | None:
        """Whether states that it was not fitted on lie farther out than those it was fitted on.

        Args:
            novelties: By distinct states: `Answer.novelty`, the same for each question about a state.

        Returns:
            The test (`bayeslora.runs.decisions.drift`), or None where nothing was fitted.
        """
        if self.heads.novelty is None:
            return None
        return drift([value for value in novelties.values() if value is not None], len(self.heads.novelty.reference))

    def labelled(self, records: Sequence[Record]) -> Iterator[Labelled]:
        """Answers to the questions of records whose right answers are known, beside these."""
        labelled = [record for record in records if record.targets]
        requests = (self.request(one.state, {name: one.questions[name] for name in one.targets}) for one in labelled)
        for record, answers in zip(labelled, self.answers(requests), strict=True):
            yield from (Labelled(answer, record.targets[name], record.state_key) for name, answer in answers.items())

    def save(self, folder: str | Path, *, overwrite: bool = False, metrics: Mapping[str, Any] | None = None) -> None:
        """Write the model's folder: `decision.json`, and what was learned. The base model is named, not copied.

        Args:
            folder: Where.
            overwrite: Replace what is there.
            metrics: Are written to metrics.json.

        Raises:
            FileExistsError: There is something at `folder`, and not `overwrite`.
        """
        with to_be_written(Path(folder), overwrite=overwrite):
            write_model(self, Path(folder), metrics)

    @classmethod
    def load(cls, folder: str | Path, *, device: str | None = None) -> DecisionModel:
        """A saved one.

        Raises:
            FileNotFoundError: There is none in `folder`.
            ValueError: A file of it is damaged.
        """
        return read_model(cls, Path(folder), device)


def _vary(records: Sequence[Record]) -> bool:
    """Whether questions vary: none has labels enough for a head or as many as there are questions, but all have."""
    counts = counts_of_labels(records).values()
    most = max(counts, default=0)
    return most < FEWEST <= sum(counts) and most < len(counts)
