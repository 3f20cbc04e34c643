"""What heads are fitted on: features and labels of each question, kept so that more can be added without a reading."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from bayeslora.readouts.novelty import Novelty
from bayeslora.readouts.questions.reading import in_order
from bayeslora.runs.decisions.option_examples import OptionExamples
from bayeslora.runs.decisions.reading import Vectors
from bayeslora.system.console import track
from bayeslora.tasks.decisions import Question, Record, parse_question
from bayeslora.tasks.decisions.items import DecisionItem
from bayeslora.tasks.decisions.questions import signature


def counts_of_labels(records: Sequence[Record]) -> dict[tuple[Any, ...], int]:
    """How many labels records have, by the `signature` of the question."""
    found: dict[tuple[Any, ...], int] = {}
    for record in records:
        for name in record.targets:
            key = signature(record.questions[name])
            found[key] = found.get(key, 0) + 1
    return found


class VectorReader(Protocol):
    """What reads states and the questions about each: `HiddenReader`."""

    def vectors(self, asked: Iterable[tuple[Any, Sequence[Question]]]) -> Iterable[Vectors]:
        """In the order in which they are asked."""


@dataclass(frozen=True)
class Labels:
    """The labels of one question.

    Args:
        question: As it was first asked.
        states: `Record.state_key` of each label [labels].
        features: Of the question behind the state [labels, 2, layers, hidden].
        targets: Probabilities of its options [labels, options].
        weights: How much each label counts [labels].
    """

    question: Question
    states: tuple[str, ...]
    features: Tensor
    targets: Tensor
    weights: Tensor

    def joined(self, *others: Labels) -> Labels:
        """Those of the same question behind these, in the order of this one's options."""
        every = (self, *others)
        columns = [[each.question.keys.index(key) for key in self.question.keys] for each in every]
        return Labels(
            self.question,
            tuple(state for each in every for state in each.states),
            torch.cat([each.features for each in every]),
            torch.cat([each.targets[:, order] for each, order in zip(every, columns, strict=True)]),
            torch.cat([each.weights for each in every]),
        )


@dataclass(frozen=True)
class Examples:
    """Of all questions.

    Args:
        records: How many were read.
        states: Of each state by `Record.state_key`, its mean and its last token [layers, 2, hidden]; of earlier
            versions the mean alone.
        labels: By the `signature` of the question.
    """

    records: int = 0
    states: dict[str, Tensor] = field(default_factory=dict)
    labels: dict[tuple[Any, ...], Labels] = field(default_factory=dict)

    @classmethod
    def of(cls, hidden: VectorReader, records: Sequence[Record], *, progress: bool) -> Examples:
        """Read records, each state once with all that is asked about it."""
        found = cls(len(records))
        labelled = [(record, _asked(record)) for record in records if record.targets]
        about: dict[str, dict[tuple[Any, ...], Question]] = {}
        for record, asked in labelled:
            about.setdefault(record.state_key, {}).update(asked)
        states = {record.state_key: record.state for record, _ in labelled}
        prompts = ((states[key], [*asked.values()]) for key, asked in about.items())
        read = track(hidden.vectors(prompts), "read", "states", total=len(about), show=progress)
        known = dict(zip(about, read, strict=True))
        found.states.update({key: vectors.state for key, vectors in known.items()})
        rows: dict[tuple[Any, ...], list[Labels]] = {}
        for record, asked in labelled:
            questions = dict(zip(about[record.state_key], known[record.state_key].questions, strict=True))
            for key in asked:
                # Two ids of one question in a record are two labels of it.
                names = [name for name in record.targets if signature(record.questions[name]) == key]
                rows.setdefault(key, []).extend(_one(record, name, questions[key]) for name in names)
        found.labels.update({key: each[0].joined(*each[1:]) for key, each in rows.items()})
        return found

    def joined(self, other: Examples) -> Examples:
        """Those of `other` behind these, as if their records stood in one file.

        Of states that were read by an earlier version there is only the mean, and then it is that of all that counts.
        """
        labels = dict(self.labels)
        for key, more in other.labels.items():
            labels[key] = labels[key].joined(more) if key in labels else more
        states = self.states | other.states
        known = min((state.shape[1] for state in states.values()), default=0)
        return Examples(self.records + other.records, {key: state[:, :known] for key, state in states.items()}, labels)

    def features(self, labels: Labels) -> Tensor:
        """[labels, poolings, layers, hidden], as of `in_order`."""
        return in_order(torch.stack([_poolings_first(self.states[key]) for key in labels.states]), labels.features)

    def to_dict(self) -> dict[str, Any]:
        """What of them is no tensor."""
        questions = [labels.question.to_dict() for labels in self.labels.values()]
        return {"records": self.records, "states": list(self.states), "questions": questions}

    def tensors(self) -> dict[str, Tensor]:
        """Their tensors by name."""
        places = {key: place for place, key in enumerate(self.states)}
        found = {"states": torch.stack(list(self.states.values()))}
        for index, labels in enumerate(self.labels.values()):
            own = {"features": labels.features, "targets": labels.targets, "weights": labels.weights}
            own["states"] = torch.tensor([places[key] for key in labels.states])
            found |= {f"questions.{index}.{name}": tensor.contiguous() for name, tensor in own.items()}
        return found

    @classmethod
    def restored(cls, content: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Examples:
        """From `to_dict` and `tensors`.

        Raises:
            KeyError: A name is missing.
            IndexError, ValueError: Shapes do not fit.
        """
        names = list(map(str, content["states"]))
        labels = {}
        for index, value in enumerate(content["questions"]):
            own = {name: tensors[f"questions.{index}.{name}"] for name in ("features", "targets", "weights")}
            states = tuple(names[place] for place in tensors[f"questions.{index}.states"].tolist())
            question = parse_question(value)
            if {len(tensor) for tensor in own.values()} != {len(states)}:
                raise ValueError(f"questions.{index} has labels of different numbers")
            labels[signature(question)] = Labels(question, states, **own)
        read = tensors["states"]
        read = read.unsqueeze(2) if read.dim() == 3 else read  # Of earlier versions: the mean.
        return cls(int(content["records"]), dict(zip(names, read, strict=True)), labels)


def held(examples: Examples | OptionExamples | None) -> Examples | OptionExamples:
    """What a model holds of its training, for more records.

    Raises:
        ValueError: Nothing.
    """
    if examples is None:
        raise ValueError(
            "expected a model that was fitted and holds what it was fitted on, which zero-shot models, codes and heads "
            "per question over trained adapters and models of earlier versions do not; fit one on all records together."
        )
    return examples


def stacked(vectors: Vectors, place: int) -> Tensor:
    """As `Examples.features`, of one question about a state [poolings, layers, hidden]."""
    return in_order(_poolings_first(vectors.state), _poolings_first(vectors.questions[place]))


def _asked(record: Record) -> dict[tuple[Any, ...], Question]:
    """Questions with a label, by their signature."""
    return {signature(record.questions[name]): record.questions[name] for name in record.targets}


def _poolings_first(vectors: Tensor) -> Tensor:
    """[layers, 2, hidden] as [2, layers, hidden]."""
    return vectors.transpose(0, 1)


def _one(record: Record, name: str, vectors: Tensor) -> Labels:
    targets = torch.tensor([record.targets[name]], dtype=torch.float64)
    weights = torch.tensor([record.weight], dtype=torch.float64)
    features = _poolings_first(vectors).unsqueeze(0)
    return Labels(record.questions[name], (record.state_key,), features, targets, weights)


def state_means(hidden: VectorReader, items: Sequence[DecisionItem], *, progress: bool) -> dict[str, Tensor]:
    """The mean of each state of items by its key [hidden], behind the last layer that is read."""
    states = {item.state_key: item.state for item in items}
    read = hidden.vectors((state, []) for state in states.values())
    shown = track(read, "read", "states", total=len(states), show=progress)
    return {key: vectors.state[-1, 0] for key, vectors in zip(states, shown, strict=True)}


def novelty_of(states: Mapping[str, Tensor]) -> Novelty:
    """What later states are compared with, of `state_means`."""
    return Novelty.of(torch.stack(list(states.values())))
