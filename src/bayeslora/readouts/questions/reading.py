"""Heads of typed questions over adapters: what the layers hold of each question and its state, read by its own head."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from bayeslora.adapters.switching import adapters_off
from bayeslora.models.layers import evaluating
from bayeslora.readouts.hidden import differentiable_vectors
from bayeslora.readouts.novelty import Novelty
from bayeslora.readouts.over_adapters import NO_FOLD, HeadsOverAdapters, folds_of, repeated
from bayeslora.readouts.questions.files import heads_from_state, heads_state
from bayeslora.readouts.questions.head import QuestionHead
from bayeslora.scoring.heads import HeadScoring, QuestionBatch
from bayeslora.scoring.trunk_cache import TrunkCache, served
from bayeslora.tasks.decisions.items import DecisionItem
from bayeslora.tasks.decisions.questions import Question, signature
from bayeslora.tasks.decisions.records import key_of

DEPTHS = (1 / 3, 1 / 2, 2 / 3)
"""Of the layers behind which is read; adapters lie below the last of them, and those above do not run."""

_KEPT = 4096
"""Questions whose frozen features are remembered."""


class Features(NamedTuple):
    """Of items: state's mean, question's mean and last token, state's last token [items, poolings, layers, hidden].

    Args:
        adapted: With the adapters.
        frozen: Without.
    """

    adapted: Tensor
    frozen: Tensor


class _Examples(NamedTuple):
    """The training items of one question.

    Args:
        question: As it was first asked.
        rows: Which of the training items.
        targets: Probabilities of its options, in its order [labels, options].
        weights: How much each label counts [labels].
        states: What labels that leave together share.
        folds: [labels].
    """

    question: Question
    rows: Tensor
    targets: Tensor
    weights: Tensor
    states: list[str]
    folds: Tensor


class QuestionReading(HeadsOverAdapters):
    """Reads typed questions.

    Args:
        every: As of `HeadsOverAdapters`.
        base: The model, which gets adapters.
        scoring: Whose batches are read.
        noisy: Whether labels may be wrong.

    Attributes:
        heads: Those of all training items by the `signature` of their question, whose probabilities are averaged: on
            the adapted layers, and where it is asked for on the frozen model.
        state_novelty: Of states, read by the frozen model.
        trunk_cache: Is given what the frozen layers below the adapters compute where the model is read without these.
    """

    def __init__(self, every: Sequence[int], base: nn.Module, scoring: HeadScoring, *, noisy: bool = True):
        super().__init__(every)
        self.base, self.scoring, self.noisy = base, scoring, noisy
        self.heads: list[dict[Any, QuestionHead]] = []
        self.state_novelty: Novelty | None = None
        self.trunk_cache: TrunkCache | None = None
        self._examples: dict[Any, _Examples] = {}
        self._fold: dict[str, int] = {}
        self._of_folds: list[dict[Any, QuestionHead]] = []
        self._frozen: dict[Any, QuestionHead] = {}
        self._known: dict[bytes, Tensor] = {}
        self._room = _KEPT
        self._batch = type("ReadQuestionBatch", (QuestionBatch,), {"reading": self})
        self._signatures: list[Any] = []

    def __call__(self, batch: QuestionBatch, items: Sequence[Any]) -> QuestionBatch:
        """The batch of `items` that the heads read.

        Further keys: `frozen` [batch, poolings, layers, hidden]; `head` [batch], which of the questions an item is;
        `columns` [batch, choices], which of the head's options each choice is; `fold` [batch].
        """
        places = [self._place(item.asked) for item in items]
        width = batch["choice_mask"].shape[1]
        columns = [
            _columns(self._question(place), item.asked, width) for place, item in zip(places, items, strict=True)
        ]
        read: QuestionBatch = self._batch(
            **batch,
            frozen=self._frozen_features(batch),
            head=torch.tensor(places),
            columns=torch.tensor(columns),
            fold=torch.tensor([self._fold.get(item.id, NO_FOLD) for item in items]),
        )
        return read

    def features(self, model: nn.Module, batch: QuestionBatch) -> Features:
        """Of a batch's items, in each draw behind the one before, with the graph of the adapted layers; on the CPU."""
        own = _read(model, batch, self.layers)
        frozen = repeated(batch["frozen"], len(own) // batch.batch_size)
        below = len(self.every) - len(self.layers)
        return Features(torch.cat([frozen[:, :, :below], own], 2), frozen)

    def logits(self, model: nn.Module, batch: QuestionBatch) -> Tensor:
        """[rows, choices]: log-probabilities, of training items those of their fold's head, with a graph."""
        features = self.features(model, batch)
        copies = len(features.adapted) // batch.batch_size
        heads, columns, folds = (repeated(batch[name], copies) for name in ("head", "columns", "fold"))
        if bool((folds != NO_FOLD).all()):
            if not self._of_folds:
                raise RuntimeError("no head was fitted to the folds yet; `bayeslora train` does so at each epoch.")
            found = self._by_head(features.adapted, heads, columns, folds, self._of_folds)
        else:
            if not self.heads:
                raise RuntimeError("no head was fitted yet; `bayeslora train` does so.")
            read = zip(self.heads, features, strict=False)  # Without an average there is no head on frozen features.
            each = [self._by_head(part, heads, columns, torch.zeros_like(folds), [own]) for own, part in read]
            found = torch.logsumexp(torch.stack(each), 0) - torch.tensor(float(len(each))).log()
        return found.to(batch["choice_mask"].device)

    def novelty(self, items: Sequence[Any]) -> Tensor:
        """Of the items' states [items] (`bayeslora.readouts.novelty`)."""
        assert self.state_novelty is not None
        parts = [self.scoring(items[first : first + 8])["frozen"] for first in range(0, len(items), 8)]
        return self.state_novelty(torch.cat(parts)[:, 0, -1])

    # --- the training --------------------------------------------------------------------------------------------

    def begin(self, items: Sequence[DecisionItem], folds: int, seed: int) -> None:
        """Take the training items over, in so many folds of each question's states."""
        rows: dict[Any, list[int]] = {}
        for row, item in enumerate(items):
            rows.setdefault(signature(item.asked), []).append(row)
        self._signatures = list(rows)
        self._examples = {key: _examples(items, own, folds, seed) for key, own in rows.items()}
        self._room = max(_KEPT, len(items))
        for own in self._examples.values():
            self._fold |= {items[row].id: fold for row, fold in zip(own.rows.tolist(), own.folds.tolist(), strict=True)}

    def refit(self, parts: Sequence[Features], order: Tensor) -> None:
        """Fit the heads of the folds, on the adapters as they are."""
        features = _together(parts, order)
        frozen, last = self._frozen_heads(features.frozen), max(self._fold.values())
        self.heads = [self._moved(frozen, features.adapted)]
        self._of_folds = [self._moved(frozen, features.adapted, without=fold) for fold in range(last + 1)]

    def finish(self, parts: Sequence[Features], order: Tensor, average: bool | None) -> dict[str, Tensor]:
        """Fit the heads of all items, which from now on read every item; their tensors."""
        features = _together(parts, order)
        frozen = self._frozen_heads(features.frozen)
        adapted = self._moved(frozen, features.adapted)
        self.heads = [adapted, frozen] if average else [adapted]
        self._fold, self._of_folds = {}, []
        self.state_novelty = Novelty.of(features.frozen[:, 0, -1])
        return heads_state(self.heads, self.state_novelty)

    def _frozen_heads(self, features: Tensor) -> dict[Any, QuestionHead]:
        """The heads of the model without adapters, which no training changes."""
        if not self._frozen:
            for key, own in self._examples.items():
                self._frozen[key] = QuestionHead.fit(
                    own.question,
                    features[own.rows],
                    own.targets,
                    own.states,
                    own.weights,
                    noisy=self.noisy,
                )
        return self._frozen

    def _moved(
        self, frozen: Mapping[Any, QuestionHead], features: Tensor, without: int = NO_FOLD
    ) -> dict[Any, QuestionHead]:
        return {key: frozen[key].moved(features[own.rows], own.folds != without) for key, own in self._examples.items()}

    @property
    def fitted(self) -> bool:
        """Whether there are heads of the folds."""
        return bool(self._of_folds)

    def fold_tensors(self) -> dict[str, Tensor]:
        """The heads of the folds, for a checkpoint."""
        return heads_state(self._of_folds, None) if self._of_folds else {}

    def restore_folds(self, tensors: Mapping[str, Tensor]) -> None:
        """The heads that `fold_tensors` gave."""
        self._of_folds, _ = heads_from_state(tensors)

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """The heads whose tensors `finish` gave, whatever else is in the state."""
        self.heads, self.state_novelty = heads_from_state(state)
        self._signatures = list(self.heads[0])

    def described(self) -> dict[str, Any]:
        """For each question the leave-one-out NLL of the frozen model's head (nats), and what it was fitted to."""
        return {head.question.instructions: head.described() for head in self.heads[-1].values()}

    def forget(self) -> None:
        """Read every state anew: what the frozen model holds of those that were read is not remembered any more."""
        self._known.clear()

    # --- what is read --------------------------------------------------------------------------------------------

    def _frozen_features(self, batch: QuestionBatch) -> Tensor:
        if "groups" in batch:  # What happens to be asked together is not met again.
            return self._read_frozen(batch)
        names = [
            _name(batch, row, place) for row, place in zip(batch["row"].tolist(), batch["place"].tolist(), strict=True)
        ]
        if not all(name in self._known for name in names):
            self._known |= dict(zip(names, self._read_frozen(batch), strict=True))
        found = torch.stack([self._known[name] for name in names])
        while len(self._known) > self._room:
            del self._known[next(iter(self._known))]
        return found

    def _read_frozen(self, batch: QuestionBatch) -> Tensor:
        whole = self._batch(batch.to(next(self.base.parameters()).device))
        with adapters_off(self.base), evaluating(self.base), torch.no_grad(), served(whole, self.trunk_cache):
            return _read(self.base, whole, self.every)

    def _place(self, question: Question) -> int:
        """Which of the known questions it is.

        Raises:
            ValueError: None.
        """
        key = signature(question)
        if key not in self._signatures:
            raise ValueError(
                f"there is no head for the question {question.instructions!r}: heads answer the questions that they "
                "were trained on, with the same options. Train on records that have it, or read it by codes."
            )
        return self._signatures.index(key)

    def _question(self, place: int) -> Question:
        key = self._signatures[place]
        return self._examples[key].question if key in self._examples else self.heads[0][key].question

    def _by_head(
        self,
        features: Tensor,
        which: Tensor,
        columns: Tensor,
        folds: Tensor,
        heads: Sequence[Mapping[Any, QuestionHead]],
    ) -> Tensor:
        """Log-probabilities of the choices [items, choices], zero where `columns` has none."""
        rows, found = [], []
        for fold, place in sorted(set(zip(folds.tolist(), which.tolist(), strict=True))):
            own = ((folds == fold) & (which == place)).nonzero()[:, 0]
            said = heads[fold][self._signatures[place]].predict(features[own]).log_probabilities
            rows.append(own)
            found.append(said.gather(1, columns[own].clamp_min(0)).masked_fill(columns[own] < 0, 0))
        return torch.cat(found)[torch.cat(rows).argsort()]


def _examples(items: Sequence[DecisionItem], rows: Sequence[int], folds: int, seed: int) -> _Examples:
    own = [items[row] for row in rows]
    question = own[0].asked
    targets = torch.zeros(len(own), len(question.keys), dtype=torch.float64)
    for label, item in enumerate(own):
        columns = [question.keys.index(key) for key in item.asked.keys]
        targets[label, columns] = torch.tensor(_target(item), dtype=torch.float64)
    weights = torch.tensor([item.weight for item in own], dtype=torch.float64)
    states = [key_of(item.state) for item in own]
    if len(set(states)) < 2:
        raise ValueError(
            f"heads over adapters need labels of at least two states for each question, but {question.instructions!r} "
            "has those of one; label more records, leave the question out, or train codes, which questions share."
        )
    return _Examples(question, torch.tensor(rows), targets, weights, states, folds_of(own, folds, seed))


def _target(item: DecisionItem) -> Sequence[float]:
    if item.label_probabilities is not None:
        return item.label_probabilities
    if item.label is None:
        raise ValueError(f"a head needs labels, but training item {item.id!r} has none; leave such items out.")
    return [float(place == item.label) for place in range(len(item.choices))]


def _columns(question: Question, asked: Question, width: int) -> list[int]:
    """Where each option of `asked` stands in `question`; -1 where there is none."""
    places = [question.keys.index(key) for key in asked.keys]
    return places + [-1] * (width - len(places))


def _read(model: nn.Module, batch: QuestionBatch, layers: Sequence[int]) -> Tensor:
    """[draws * items, poolings, layers, hidden], float32 on the CPU, with the graph."""
    suited = batch.suited_to(model)
    vectors = differentiable_vectors(model, suited.rows, layers).float().cpu()
    rows = vectors.unflatten(0, (-1, len(suited["asked"])))
    row, state, place = (batch[name].cpu() for name in ("row", "state", "place"))
    of_state, of_question = (rows[:, row, group].transpose(2, 3) for group in (state, place))
    return in_order(of_state, of_question).flatten(0, 1)


def in_order(state: Tensor, question: Tensor) -> Tensor:
    """What heads read: the state's mean, the question's mean and last token, and the state's last token.

    The last is what earlier versions did not read.

    Args:
        state: Mean and last token of states, of earlier versions the mean alone [..., 1 or 2, layers, hidden].
        question: Mean and last token of questions [..., 2, layers, hidden].
    """
    return torch.cat([state[..., :1, :, :], question, state[..., 1:, :, :]], -3)


def _name(batch: QuestionBatch, row: int, place: int) -> bytes:
    """A name for what is read of a question: the tokens of its row, where they belong, and which one it is."""
    length = int(batch["lengths"][row])
    tokens, positions = (batch[name][row, -length:].cpu().numpy().tobytes() for name in ("input_ids", "position_ids"))
    return hashlib.sha256(tokens + positions + place.to_bytes(4)).digest()


def _together(parts: Sequence[Features], order: Tensor) -> Features:
    adapted, frozen = (torch.cat(part)[order] for part in zip(*parts, strict=True))
    return Features(adapted, frozen)
