"""What a training shows: a progress line and a short table of its means, in place of the Trainer's dictionaries."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from transformers import PrinterCallback, ProgressCallback, TrainerCallback

from bayeslora.system.console import Progress, progress, say
from bayeslora.training.trainer import ELBOTrainerMixin

_ROWS = 20
"""Lines of the table at most."""


@contextmanager
def training_shown(trainer: ELBOTrainerMixin, unit: str) -> Iterator[None]:
    """Have trainings of `trainer` inside show a progress line, and a table above it.

    Nothing is shown where `TrainingArguments.disable_tqdm` is set, and no table where the training is a part of other
    work with a progress line. A notebook keeps the display that transformers has for it.

    Args:
        trainer: Any Trainer with the ELBO.
        unit: What N of KL / N counts: "item" or "token".
    """
    trainer.remove_callback(PrinterCallback)
    if trainer.pop_callback(ProgressCallback) is None:
        yield
        return
    with ExitStack() as stack:
        shown = _Shown(stack, trainer, unit)
        trainer.add_callback(shown)
        stack.callback(trainer.remove_callback, shown)
        yield


class _Shown(TrainerCallback):
    """Opens the line at the start of a training, which knows its steps, on a stack that closes it whatever happens."""

    def __init__(self, stack: ExitStack, trainer: ELBOTrainerMixin, unit: str) -> None:
        self._stack, self._trainer, self._unit = stack, trainer, unit
        self._line: Progress | None = None
        self._table: _Table | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._line = self._stack.enter_context(progress("train", state.max_steps, "steps", state.global_step))

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._line is not None:
            self._line.advance(state.global_step - self._line.done)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if self._line is None or self._line.nested or "nll" not in (logs or {}):
            return
        if self._table is None:
            # Of a method without one it is exactly zero.
            has_kl = bool(logs["kl"])
            self._table = _Table(self._unit, self._trainer.num_observations if has_kl else None, self._line)
        self._table.log(state.global_step, state.max_steps, logs)


class _Table:
    """Means since the line before; at most `_ROWS` lines, the last step always among them.

    Args:
        unit: What `observations` counts.
        observations: N; None for a method without a KL.
        line: Above which it stands.
    """

    def __init__(self, unit: str, observations: int | None, line: Progress) -> None:
        self._observations, self._line = observations, line
        self._steps, self._sums, self._written = line.first, {"nll": 0.0, "kl": 0.0}, line.first
        heads = ["step", "epoch", f"nll/{unit}", *([] if observations is None else [f"kl/{unit}"]), "learning rate"]
        self._widths = [max(8, len(head)) for head in heads]
        say(self._aligned(heads))

    def log(self, step: int, last: int, logs: dict[str, float]) -> None:
        """The means of the steps since the last log."""
        count, self._steps = step - self._steps, step
        for name in self._sums:
            self._sums[name] += count * logs[name]
        if step < last and step - self._written < last / _ROWS:
            return
        means = {name: value / (step - self._written) for name, value in self._sums.items()}
        cells = [str(step), f"{logs['epoch']:.1f}", f"{means['nll']:.3f}"]
        cells += [] if self._observations is None else [f"{means['kl'] / self._observations:.3f}"]
        self._line.write(self._aligned([*cells, f"{logs['learning_rate']:.2e}"]))
        self._written, self._sums = step, dict.fromkeys(self._sums, 0.0)

    def _aligned(self, cells: list[str]) -> str:
        return "  ".join(cell.rjust(width) for cell, width in zip(cells, self._widths, strict=True))
