"""Heads of typed questions as tensors and plain fields, and back."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from bayeslora.options.ranges import Positive, Share, check_value
from bayeslora.readouts.novelty import Novelty
from bayeslora.readouts.questions.head import QuestionHead, posterior_of
from bayeslora.readouts.questions.kernels import Kernels
from bayeslora.tasks.decisions import parse_question
from bayeslora.tasks.decisions.questions import signature

_NUMBERS: dict[str, Any] = {"variance": Positive, "temperature": Positive, "share": Share, "nll": float}


def head_fields(head: QuestionHead) -> dict[str, Any]:
    """What of a head is no tensor."""
    return {"question": head.question.to_dict()} | {name: getattr(head, name) for name in _NUMBERS}


def head_tensors(head: QuestionHead) -> dict[str, Tensor]:
    """The tensors of a head by name."""
    own = {"weights": head.weights, "targets": head.targets, "noise": head.noise, "centre": head.centre}
    own |= {"points": head.kernels.points, "mean": head.kernels.mean, "scale": head.kernels.scale}
    return {name: tensor.contiguous() for name, tensor in own.items()}


def restored_head(name: str, fields: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> QuestionHead:
    """A head from its fields and tensors.

    Args:
        name: What stands before the names of its tensors.
        fields: Of `head_fields`.
        tensors: Those of `head_tensors`, and any others.

    Raises:
        KeyError: A tensor or a field is missing.
        ValueError: A number is out of its range.
        RuntimeError: Shapes do not fit.
    """

    def own(tensor: str) -> Tensor:
        return tensors[f"{name}.{tensor}"]

    kernels = Kernels(own("points"), own("mean"), own("scale"))
    start, _, place = name.rpartition(".")
    for field, kind in _NUMBERS.items():
        check_value(fields[field], kind, f"{start}[{place}].{field}")
    numbers = {field: float(fields[field]) for field in _NUMBERS}
    question = parse_question(fields["question"])
    weights, targets, noise = own("weights"), own("targets"), own("noise")
    if bool(((kernels.scale == 0) & (kernels.points != 0).any(0)).any()):
        raise ValueError(f"{name} has a scale of 0 for a feature that varies")
    # Of before: the mean of all, whatever their weights.
    centre = tensors.get(f"{name}.centre", targets.mean(0))
    posterior = posterior_of(kernels.between_points(), weights, targets, noise, centre)
    return QuestionHead(question, kernels, weights, targets, noise, centre, posterior, **numbers)


def heads_state(heads: Sequence[Mapping[Any, QuestionHead]], novelty: Novelty | None) -> dict[str, Tensor]:
    """Tensors alone, for the state of a run: of several sets of heads for the same questions, and of novelty."""
    state = {} if novelty is None else {f"head.{name}": tensor for name, tensor in novelty.tensors().items()}
    for number, each in enumerate(heads):
        for place, head in enumerate(each.values()):
            fields = torch.tensor(list(json.dumps(head_fields(head)).encode()), dtype=torch.uint8)
            own = {"fields": fields} | head_tensors(head)
            state |= {f"head.{number}.{place}.{name}": tensor.clone() for name, tensor in own.items()}
    return state


def heads_from_state(state: Mapping[str, Tensor]) -> tuple[list[dict[Any, QuestionHead]], Novelty | None]:
    """What `heads_state` wrote, whatever else is in the state.

    Raises:
        ValueError: A tensor is missing, or damaged.
    """
    names = sorted({tuple(map(int, name.split(".")[1:3])) for name in state if name.endswith(".fields")})
    if not names:
        raise ValueError("the run's posterior.safetensors has no head; copy it again from where it was written.")
    heads: list[dict[Any, QuestionHead]] = [{} for _ in range(1 + names[-1][0])]
    try:
        for number, place in names:
            name = f"head.{number}.{place}"
            head = restored_head(name, json.loads(bytes(state[f"{name}.fields"].tolist())), state)
            heads[number][signature(head.question)] = head
        rest = {name.removeprefix("head."): tensor for name, tensor in state.items() if name.startswith("head.novelty")}
        return heads, Novelty.restored(rest) if rest else None
    except (KeyError, RuntimeError, json.JSONDecodeError) as error:
        raise ValueError(f"the heads of posterior.safetensors are damaged ({error}); copy it again.") from error
