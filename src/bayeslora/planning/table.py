"""A plan as a record for JSON, and as a table to read."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from bayeslora.planning.memory import Memory
from bayeslora.planning.plan import Plan, RowPlan
from bayeslora.system.console import text_table

_PARTS = ("weights", "adapters", "gradients", "optimizer", "activations", "total")


def as_record(plan: Plan) -> dict[str, Any]:
    """Everything in the plan; bytes as whole numbers."""
    record = asdict(plan)
    record["budget"]["usable"] = plan.budget.usable
    record["fits"] = plan.fits
    record["passes"] = None if plan.passes is None else asdict(plan.passes)
    for row, source in zip(record["rows"], plan.rows, strict=True):
        for name in ("training", "prediction"):
            row[name]["total"] = getattr(source, name).total
    return record


def as_text(plan: Plan) -> str:
    """The plan in lines: the model, memory by part, passes, and what would make it fit."""
    lines = [*_head(plan), "", *_memory(plan), "", *_passes(plan), "", *_verdict(plan)]
    return "\n".join(lines)


def _head(plan: Plan) -> list[str]:
    setting = plan.setting
    shapes = [
        f"{extent.shape.scoring} scoring, up to {extent.shape.tokens} tokens per item ({extent.source})"
        for extent in plan.extents
    ]
    return [
        f"base model   {plan.model}: {_count(plan.parameters)} parameters in {plan.dtype}",
        *(f"new          {name}, trained whole: {why}" for name, why in plan.head.items()),
        f"items        {'; '.join(shapes)}",
        f"batches      {setting.batch_size} items in training, {setting.predict_batch_size} in prediction"
        f"{', gradient checkpointing' if setting.checkpointing else ''}{', 4-bit base' if setting.four_bit else ''}",
        f"device       {_size(plan.budget.device_memory)}, of which {plan.budget.headroom:.0%} is left free: "
        f"{_size(plan.budget.usable)} to fill",
    ]


def _memory(plan: Plan) -> list[str]:
    if len(plan.rows) == 1:
        return _one_row(plan.rows[0])
    header = ["", "trained", "over LoRA", "training", "activations", "prediction", "activations", "samples", "at once"]
    body = [
        [
            row.title,
            _count(row.trainable),
            _count(row.extra, sign=True),
            _size(row.training.total),
            _size(row.training.activations),
            _size(row.prediction.total),
            _size(row.prediction.activations),
            str(row.samples or "-"),
            str(row.chunk if row.samples else "-"),
            "yes" if row.fits(plan.budget) else "no",
        ]
        for row in plan.rows
    ]
    largest = max(plan.rows, key=lambda row: max(row.training.total, row.prediction.total))
    return [
        "memory at the peak:",
        text_table([*header, "fits"], body),
        "",
        f"The row that needs most, {largest.title}:",
        *_one_row(largest),
    ]


def _one_row(row: RowPlan) -> list[str]:
    def cells(memory: Memory) -> list[str]:
        return [_size(getattr(memory, name)) for name in _PARTS]

    parts = list(zip(_PARTS, cells(row.training), cells(row.prediction), strict=True))
    return [
        f"trained      {_count(row.trainable)} parameters, {_count(row.extra, sign=True)} over plain LoRA",
        f"prediction   {_samples(row)}",
        text_table(["memory at the peak", "training", "prediction"], parts),
    ]


def _samples(row: RowPlan) -> str:
    if not row.samples:
        return "a point estimate"
    return f"{row.samples} samples, {'all' if row.chunk == row.samples else row.chunk} in one forward"


def _passes(plan: Plan) -> list[str]:
    total = plan.passes
    if total is None:
        return ["passes       unknown: the number of items is not known here; set train_examples, ..., test_examples"]
    of_all = " (all rows, tasks and seeds)" if len(plan.rows) > 1 else ""
    return [
        f"passes       training: {total.optimizer_steps:,} optimizer steps, {total.training:,} items; "
        f"prediction: {total.prediction:,} items, each draw counted{of_all}"
    ]


def _verdict(plan: Plan) -> list[str]:
    if plan.fits:
        return ["It fits."]
    if not plan.proposals:
        return ["It does not fit, and no combination of the known options makes it fit: take a larger device."]
    ways = [", ".join(f"{name}: {_yaml(value)}" for name, value in proposal.items()) for proposal in plan.proposals]
    return ["It does not fit. Any of these makes it fit:", *(f"  - {way}" for way in ways)]


def _yaml(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _size(size: int) -> str:
    if size == 0:
        return "-"
    return f"{size / 1e9:.2f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB" if size >= 1e7 else f"{size / 1e6:.1f} MB"


def _count(number: int, *, sign: bool = False) -> str:
    scaled, unit = (number / 1e9, " B") if number >= 1e9 else (number / 1e6, " M") if number >= 1e6 else (number, "")
    text = f"{scaled:.2f}" if unit else f"{scaled:,}"
    return f"{'+' if sign and number > 0 else ''}{text}{unit}"
