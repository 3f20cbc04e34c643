"""The rows of the study: each learns from records, and gives probabilities of the options of each labelled question."""

from __future__ import annotations

import json
import shutil
import tempfile
import time
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import decisionformer
import sysone
import torch
from decisionformer.datacheck import split_records
from sklearn.feature_extraction.text import TfidfVectorizer
from sysone.data import examples_from

from bayeslora.runs.decisions import DecisionModel
from bayeslora.runs.decisions.calibration import Calibration, Labelled, fit_temperatures
from bayeslora.runs.decisions.examples import Examples, signature
from bayeslora.runs.decisions.heads import Heads
from bayeslora.runs.decisions.reading import Vectors
from bayeslora.tasks.decisions import Answer, Question, Record
from bayeslora.tasks.decisions.questions import text_of

Probabilities = list[tuple[float, ...]]
"""Of each labelled question of each record, in the order of its options."""

FEW = 25
"""Records that a temperature of codes is fitted on."""


class System(ABC):
    """One row.

    Attributes:
        owed: Processor seconds of what was not computed again, since this process had done so for another row.
        chosen: What it took of a grid.
    """

    def __init__(self) -> None:
        self.owed = 0.0
        self.chosen: dict[str, Any] = {}

    @abstractmethod
    def fit(self, train: Sequence[Record]) -> None:
        """Learn."""

    @abstractmethod
    def predict(self, test: Sequence[Record]) -> Probabilities:
        """Answer the labelled questions."""


class Read:
    """Reads each state with its questions once in a process; what that took is owed by whoever asks again."""

    def __init__(self, read: Callable[[Any, Sequence[Question]], Any]):
        self.read = read
        self.known: dict[tuple[Any, ...], tuple[Any, float]] = {}
        self.asker: System | None = None

    def __call__(self, state: Any, questions: Sequence[Question]) -> Any:
        key = (text_of(state), *((signature(question), question.keys) for question in questions))
        if key in self.known:
            assert self.asker is not None, "whoever asks says so first"
            self.asker.owed += self.known[key][1]
        else:
            started = time.process_time()
            self.known[key] = self.read(state, questions), time.process_time() - started
        return self.known[key][0]


class OnHidden(System):
    """A decision model of bayeslora with heads."""

    def __init__(self, model: DecisionModel):
        super().__init__()
        self.model = model

    def fit(self, train: Sequence[Record]) -> None:
        self.model.fit(train, progress=False)

    def predict(self, test: Sequence[Record]) -> Probabilities:
        return [row.answer.probabilities for row in self.model.labelled(test)]


class TfIdf(System):
    """The same heads on the words of the state."""

    def __init__(self, model: DecisionModel):
        super().__init__()
        self.config = model.config

    def fit(self, train: Sequence[Record]) -> None:
        self.words = Words(train)
        self.heads = Heads.fit(Examples.of(self.words, train, progress=False), self.config, fewest=2)

    def predict(self, test: Sequence[Record]) -> Probabilities:
        found = []
        for record in test:
            asked = {name: record.questions[name] for name in record.targets}
            (vectors,) = self.words.vectors([(record.state, self.heads.fitted(asked))])
            answers = self.heads.answers(vectors, asked, self.heads.novelty_of(vectors))
            found += [answers[name].probabilities for name in asked]
        return found


class Words:
    """Gives the words of a state, and nothing of the question, as vectors of the heads."""

    def __init__(self, train: Sequence[Record]):
        texts = [text_of(record.state) for record in train]
        self.known = TfidfVectorizer(sublinear_tf=True, ngram_range=(1, 2)).fit(texts)

    def vectors(self, asked: Iterable[tuple[Any, Sequence[Question]]]) -> Iterator[Vectors]:
        for state, questions in asked:
            row = torch.from_numpy(self.known.transform([text_of(state)]).toarray()[0]).float()
            yield Vectors(row[None, None], torch.zeros(len(questions), 1, 2, len(row)))


class Codes(System):
    """Option codes of the base model without training, with temperatures from the first records."""

    def __init__(self, reader: Read):
        super().__init__()
        self.reader = reader

    def fit(self, train: Sequence[Record]) -> None:
        few = train[:FEW]
        targets = [record.targets[name] for record in few for name in record.targets]
        states = [record.state_key for record in few for _ in record.targets]
        rows = [Labelled(*row) for row in zip(self._answers(few), targets, states, strict=True)]
        common, groups = fit_temperatures(rows)
        self.calibration, self.chosen = Calibration(groups, common), {"temperatures": groups}

    def predict(self, test: Sequence[Record]) -> Probabilities:
        answers = self.calibration.apply({str(index): one for index, one in enumerate(self._answers(test))})
        return [answer.probabilities for answer in answers.values()]

    def _answers(self, records: Sequence[Record]) -> Iterator[Answer]:
        self.reader.asker = self
        for record in records:
            asked = [record.questions[name] for name in record.targets]
            for question, score in zip(asked, self.reader(record.state, asked), strict=True):
                yield Answer(question, tuple(score.exp().tolist()))


class Sysone(System):
    """sysone's `DecoderModel`; of several settings the one with the lowest loss of its own validation records.

    Only the fit with that setting is `seconds`: a user who knows it pays no more.
    """

    def __init__(self, folder: Path, grid: Sequence[dict[str, Any]], **options: Any):
        super().__init__()
        self.folder, self.grid, self.options = folder, grid, options

    def fit(self, train: Sequence[Record]) -> None:
        rows, tried = [_row(record, "expected") for record in train], []
        for setting in self.grid:
            started = time.process_time()
            model = self._model(setting).fit(rows)
            checks = [check.get("val_loss", check["train_loss"]) for check in model.history_]
            tried.append((min(checks), time.process_time() - started, setting, model))
        best = min(tried, key=lambda one: one[0])
        self.owed -= sum(one[1] for one in tried if one is not best)
        self.model, self.chosen = best[3], best[2] | {"epochs": best[3].history_[-1]["epoch"]}

    def predict(self, test: Sequence[Record]) -> Probabilities:
        # `predict` rounds to four digits, which would cost its NLL.
        examples, _ = examples_from([_row(record) for record in test], None, labeled=False)
        found, _ = self.model._predict_examples(examples)
        return [
            tuple(reversed(row[:2])) if example.question.type == "noul" else tuple(row[: example.question.k])
            for example, row in zip(examples, found, strict=True)
        ]

    def _model(self, setting: dict[str, Any]) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            options = {"precision": "bf16", "device": "cpu", "verbose": 0} | self.options | setting
            return sysone.DecoderModel(str(self.folder), **options)


class Decisionformer(System):
    """decisionformer's recipe for decoders: LoRA below an answer-code readout."""

    def __init__(self, folder: Path, steps: int):
        super().__init__()
        self.folder, self.steps = folder, steps

    def fit(self, train: Sequence[Record]) -> None:
        rows = [_row(record, "gold") | {"id": str(index)} for index, record in enumerate(train)]
        output = Path(tempfile.mkdtemp())
        for name, part in split_records(rows, {"calibration": 0.1, "dev": 0.1}).items():
            (output / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part), encoding="utf-8")
        try:
            summary = decisionformer.train(self._config(output))
            best = output / "run" / "best"
            self.model = decisionformer.AutoDecisionModel.from_pretrained(best, device="cpu", dtype=torch.bfloat16)
        finally:
            shutil.rmtree(output)
        self.chosen = {"best_step": summary["best_step"], "temperatures": summary["temperatures"]}

    def predict(self, test: Sequence[Record]) -> Probabilities:
        found: list[tuple[float, ...]] = []
        for record, response in zip(test, self.model.decide_many([_row(record) for record in test]), strict=True):
            for name in record.targets:
                answer = response["answers"][name]
                if answer["type"] == "noul":
                    found.append((answer["noul"], 1 - answer["noul"]))
                else:
                    found.append(tuple(answer["probabilities"][key] for key in record.questions[name].keys))
        return found

    def plain(self) -> None:
        """Without its temperatures."""
        self.model.temperature, self.model.temperature_by_type = 1.0, {}

    def _config(self, output: Path) -> dict[str, Any]:
        lora = {"r": 16, "lora_alpha": 32, "lora_dropout": 0.05, "target_modules": "all-linear"}
        # In bfloat16, for speed: by itself it computes in float32 on a CPU.
        finetune = {"mode": "lora", "lora": lora, "model_dtype": "bfloat16", "export": "adapter"}
        paths = {name: str(output / f"{name}.jsonl") for name in ("train", "calibration", "dev")}
        data = {"train": paths["train"], "calibration": paths["calibration"], "eval": {"dev": paths["dev"]}}
        train = {
            "output_dir": str(output / "run"),
            "max_steps": self.steps,
            "global_batch_size": 16,
            "lr": 2e-4,
            "head_lr": 2e-5,
            "eval_every": max(1, self.steps // 3),
            "save_every": None,
        }
        selection = {"selection_metric": "nll", "selection_mode": "min", "save_predictions": False}
        return {
            "model": {"backbone": str(self.folder), "head": {"type": "code_readout"}},
            "finetune": finetune,
            "data": data,
            "train": train,
            "eval": selection,
        }


def _row(record: Record, labels: str | None = None) -> dict[str, Any]:
    """A System One record, with labels under this name."""
    questions = {name: record.questions[name].to_dict() for name in record.targets}
    row: dict[str, Any] = {"state": record.state, "questions": questions}
    if labels is not None:
        row[labels] = {name: _label(record, name) for name in record.targets}
    return row


def _label(record: Record, name: str) -> Any:
    question, label = record.questions[name], record.label(name)
    if question.kind == "noul":
        return label == 0
    return label if question.kind == "score" else question.keys[label]
