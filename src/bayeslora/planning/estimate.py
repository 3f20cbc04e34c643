"""Memory of a training step and of a prediction: both run on the meta device, where tensors have no bytes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from bayeslora.adapters.draws import find_draws, hold_draw
from bayeslora.methods import Method
from bayeslora.models.layers import outermost_layers
from bayeslora.planning.heads import as_heads_read
from bayeslora.planning.memory import Budget, Memory, Weights
from bayeslora.planning.shape import Shape
from bayeslora.planning.tracing import phase_peaks
from bayeslora.prediction.predictive import affordable_samples, predict
from bayeslora.runs.cross_fitting import below_head
from bayeslora.scoring import ChoiceBatch, get_scoring
from bayeslora.scoring.options import Options
from bayeslora.training.elbo import kl_divergence, negative_elbo

Work = Callable[[Any, Callable[..., None]], object]
"""What is traced: it gets the model, and a function to call where a phase ends."""

_FEW = (3, 5)
"""Numbers of layers from which the bytes of each further one are known; three have one that is neither first nor last,
where more is alive than in the first."""


@dataclass(frozen=True)
class Setting:
    """What a user can choose that memory depends on.

    Args:
        batch_size: Items of a training forward.
        predict_batch_size: Items of a prediction's forward.
        checkpointing: Gradient checkpointing.
        four_bit: The base model's linear layers in 4 bits.
        devices: Over how many devices FSDP shares the frozen weights.
    """

    batch_size: int
    predict_batch_size: int
    checkpointing: bool = False
    four_bit: bool = False
    devices: int = 1


class Estimator:
    """Memory of one method on one base model; each forward is traced once, on few layers where all are alike.

    Args:
        base: Makes the base model on the meta device, with all its layers or with so many (`layers`).
        method: How it is adapted.
        shape: The largest item.
        num_samples: Draws that a prediction asks for.
    """

    def __init__(self, base: Callable[..., Any], method: Method, shape: Shape, num_samples: int):
        self._base, self.method, self.shape = base, method, shape
        # Of draws that take no forward of their own (Laplace's logits) none is planned for.
        self.num_samples = min(method.effective_num_samples(num_samples), method.forwards_used(num_samples))
        self._models: dict[tuple[bool, int | None], Any] = {}
        self._traced: dict[tuple[Any, ...], int] = {}
        self.weights = Weights.of(self.model)
        self._layers = len(outermost_layers(self.model))

    @property
    def model(self) -> Any:
        """With adapters, without checkpointing."""
        return self._model(False)

    def _model(self, checkpointing: bool, layers: int | None = None) -> Any:
        key = (checkpointing, layers)
        if key not in self._models:
            kind: Any = get_scoring(self.shape.scoring).kind
            base = self._base(layers=layers)
            method = below_head(self.method, base) if self._read_by_heads else self.method
            model: Any = method.adapt(base, kind)
            if checkpointing:
                model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
                model.enable_input_require_grads()
            self._models[key] = model
        return self._models[key]

    @property
    def _read_by_heads(self) -> bool:
        return self.shape.scoring == Options.name

    def _batch(self, model: Any, rows: int) -> ChoiceBatch:
        batch = self.shape.batch(rows)
        return as_heads_read(model, batch) if self._read_by_heads else batch

    def training(self, setting: Setting) -> Memory:
        """At the peak of a training step, gradients of an earlier micro-batch included."""
        activations = self._training_activations(setting.batch_size, setting.checkpointing)
        return self._stored(self.weights.memory(activations, training=True), setting)

    def prediction(self, setting: Setting, draws: int) -> Memory:
        """At the peak of a prediction with `draws` draws in one forward."""
        rows = setting.predict_batch_size
        if type(self.method).predict is not Method.predict:
            # The linearised predictive (Laplace) takes gradients of the logits: a forward and backward of its own.
            activations = self._training_activations(rows, False)
        else:
            activations = self._prediction_activations(rows, draws)
        return self._stored(self.weights.memory(activations, training=False), setting)

    def chunk(self, setting: Setting, budget: Budget) -> int:
        """Draws in one forward that `bayeslora.predict` would choose by itself on a device of this size.

        It takes half of the memory that is free, which here is the usable memory less the weights.
        """
        if self.num_samples <= 1:
            return 1
        resident = self._stored(self.weights.memory(0, training=False), setting).total
        batch = self._batch(self.model, setting.predict_batch_size)
        limit = max(2, budget.usable - resident) // 2
        return min(self.num_samples, affordable_samples(self.model, batch["input_ids"], batch.logit_positions, limit))

    def _stored(self, memory: Memory, setting: Setting) -> Memory:
        if setting.four_bit:
            memory = self.weights.in_four_bit(memory)
        return self.weights.sharded(memory, setting.devices) if setting.devices > 1 else memory

    def _training_activations(self, rows: int, checkpointing: bool) -> int:
        return self._activations(
            ("training", rows, checkpointing), lambda model, phase: self._step(model, rows, phase), checkpointing
        )

    def _prediction_activations(self, rows: int, draws: int) -> int:
        samples = min(self.num_samples, draws)

        def work(model: Any, _: object) -> None:
            predict(model, self._batch(model, rows), samples, chunk_size=max(1, samples))

        peak = self._activations(("prediction", rows, samples), work)
        if not self._read_by_heads:
            return peak
        # What is read of the frozen model is read for all layers, with the likelihoods.
        frozen = self._activations(("frozen", rows), lambda model, _: predict(model, self.shape.batch(rows), 0))
        return max(peak, frozen)

    def _activations(self, key: tuple[Any, ...], work: Work, checkpointing: bool = False) -> int:
        """Peak bytes of `work`. Where all layers are alike, few are traced.

        The peak of each phase then grows by the same bytes with each layer. That of the whole need not: with many
        layers another phase may have it than with few.
        """
        if key not in self._traced:
            if self._alike():
                few, more = (_traced(self._model(checkpointing, layers), work) for layers in _FEW)
                further = (self._layers - _FEW[1]) / (_FEW[1] - _FEW[0])
                peaks = [high + int((high - low) * further) for low, high in zip(few, more, strict=True)]
            else:
                peaks = _traced(self._model(checkpointing), work)
            self._traced[key] = max(peaks)
        return self._traced[key]

    def _alike(self) -> bool:
        """Whether all layers have the same parameters and attention, adapters included, and are more than few."""
        layers = outermost_layers(self.model)
        kinds = {
            (type(layer), getattr(layer, "attention_type", None), *((n, p.shape) for n, p in layer.named_parameters()))
            for layer in layers
        }
        return self._layers > _FEW[1] and len(kinds) == 1 and self.method.last_layers is None

    def _step(self, model: nn.Module, rows: int, next_phase: Callable[..., None]) -> None:
        """Forward and backward as `BayesianLoraTrainer` runs them."""
        model.train()
        batch, copies = self._batch(model, rows), self.method.train_samples
        hold_draw(model, seed=0, step=0, num_samples=copies)
        logits = batch.choice_logits(model)
        labels = batch["labels"].repeat(copies)
        nll = nn.functional.cross_entropy(logits, labels)
        next_phase()
        loss = negative_elbo(nll, kl_divergence(model, rows), num_examples=rows)
        next_phase()
        loss.backward()


def _traced(model: nn.Module, work: Work) -> list[int]:
    """Peak bytes of `work` beyond what the model holds; `model` is in eval mode and without a draw afterwards.

    One peak for each phase: `work` begins new ones, and so do the first layer's begin and the last layer's end.
    """
    layers = outermost_layers(model)
    hooks: list[Any] = []

    def run(next_phase: Callable[..., None]) -> None:
        if layers:
            hooks.append(layers[0].register_forward_pre_hook(next_phase))
            hooks.append(layers[-1].register_forward_hook(next_phase))
        work(model, next_phase)

    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.grad = torch.zeros_like(parameter)
    gradients = [parameter.grad for parameter in trained if parameter.grad is not None]
    try:
        return phase_peaks(run, [*model.parameters(), *model.buffers(), *gradients])
    finally:
        for hook in hooks:
            hook.remove()
        for parameter in trained:
            parameter.grad = None
        if (draws := find_draws(model)) is not None:
            draws.clear()
        model.eval()
