"""Heads as tensors and plain fields, and back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from bayeslora.options.ranges import Positive, Share, check_value
from bayeslora.readouts.novelty import Novelty
from bayeslora.runs.decisions.head import QuestionHead, posterior_of
from bayeslora.runs.decisions.heads import Heads, signature
from bayeslora.runs.decisions.kernels import Kernels
from bayeslora.tasks.decisions import parse_question

__all__ = ["head_fields", "heads_tensors", "restored_heads"]

_NUMBERS: dict[str, Any] = {"variance": Positive, "temperature": Positive, "share": Share, "nll": float}


def head_fields(head: QuestionHead) -> dict[str, Any]:
    """What of a head is no tensor."""
    return {"question": head.question.to_dict()} | {name: getattr(head, name) for name in _NUMBERS}


def heads_tensors(heads: Heads) -> dict[str, Tensor]:
    """The tensors of all heads by name."""
    tensors: dict[str, Tensor] = {}
    for index, head in enumerate(heads.by_signature.values()):
        own = {"weights": head.weights, "targets": head.targets, "noise": head.noise, "centre": head.centre}
        own |= {"points": head.kernels.points, "mean": head.kernels.mean, "scale": head.kernels.scale}
        tensors |= {f"heads.{index}.{name}": tensor.contiguous() for name, tensor in own.items()}
    if heads.novelty is not None:
        tensors |= heads.novelty.tensors()
    return tensors


def restored_heads(fields: Sequence[Mapping[str, Any]], tensors: Mapping[str, Tensor]) -> Heads:
    """Heads from their fields and tensors.

    Raises:
        KeyError: A tensor or a field is missing.
        ValueError: A number is out of its range.
        RuntimeError: Shapes do not fit.
    """
    heads = [_head(index, one, tensors) for index, one in enumerate(fields)]
    novelty = Novelty.restored(tensors)
    return Heads({signature(head.question): head for head in heads}, novelty)


def _head(index: int, fields: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> QuestionHead:
    def own(name: str) -> Tensor:
        return tensors[f"heads.{index}.{name}"]

    kernels = Kernels(own("points"), own("mean"), own("scale"))
    for name, kind in _NUMBERS.items():
        check_value(fields[name], kind, f"heads[{index}].{name}")
    numbers = {name: float(fields[name]) for name in _NUMBERS}
    question = parse_question(fields["question"])
    weights, targets, noise = own("weights"), own("targets"), own("noise")
    if bool(((kernels.scale == 0) & (kernels.points != 0).any(0)).any()):
        raise ValueError(f"heads[{index}] has a scale of 0 for a feature that varies")
    # Of before: the mean of all, whatever their weights.
    centre = tensors.get(f"heads.{index}.centre", targets.mean(0))
    posterior = posterior_of(kernels.between_points(), weights, targets, noise, centre)
    return QuestionHead(question, kernels, weights, targets, noise, centre, posterior, **numbers)
