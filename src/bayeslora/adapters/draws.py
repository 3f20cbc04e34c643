"""Which draw of the posterior a forward uses: a fresh one, one that is held, or explicit ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from bayeslora.adapters.noise import PREDICTION, generator, set_noise
from bayeslora.adapters.random_factor import RandomFactor, forget, materialise
from bayeslora.adapters.random_module import RandomModule
from bayeslora.models.layers import forwards_replaced, layers_from_first, tokens_first


class Draws:
    """The draw that the next forward of one model uses; a plain attribute of the model under the adapters.

    Its two hooks on that model compute all weights once per forward. In train mode each forward takes a fresh draw,
    unless one is held (`hold_draw`, as the trainer does for each optimizer step). In eval mode a forward uses the
    posterior mean, unless it runs inside `sampling`.
    """

    def __init__(self, root: nn.Module):
        self.layers: list[LoraLayer] = []
        self.held = False
        self.explicit = False
        self.num_samples = 1
        self.use_cache = False
        self._materialised = False
        self._batch: int | None = None
        self._copied: Sequence[nn.Module] = ()
        self._repeating: list[Any] = []
        self._checkpointable = [layer for layer in root.modules() if hasattr(layer, "gradient_checkpointing")]
        self.one_by_one = tokens_first(root)
        self._handles = [
            root.register_forward_pre_hook(self._before_forward, with_kwargs=True),
            root.register_forward_hook(self._after_forward),
        ]

    def remove(self) -> None:
        """Take the hooks off the model."""
        for handle in self._handles:
            handle.remove()

    def modules(self, *, in_use: bool = False) -> list[RandomModule]:
        """Random modules of the active adapters, in the order of the model; `in_use`: not disabled and not merged."""
        found = []
        for layer in self.layers:
            if in_use and (layer.disable_adapters or layer.merged):
                continue
            containers = _containers(layer)
            for name in layer.active_adapters:
                for container in containers:
                    if isinstance(module := container._modules.get(name), RandomModule):
                        found.append(module)
        return found

    def other_adapters(self) -> list[list[RandomModule]]:
        """Random modules of each adapter that is not active."""
        found: dict[str, list[RandomModule]] = {}
        for layer in self.layers:
            for container in _containers(layer):
                for name, module in container.items():
                    if name not in layer.active_adapters and isinstance(module, RandomModule):
                        found.setdefault(name, []).append(module)
        return list(found.values())

    def clear(self) -> None:
        """Back to the mean (in eval mode) or to a fresh draw per forward (in train mode)."""
        self.held = self.explicit = self.use_cache = self._materialised = False
        self.set_copies(1, [])
        for module in [*self.modules(), *(m for group in self.other_adapters() for m in group)]:
            module.set_noise(None)

    @contextmanager
    def drawing(
        self, num_samples: int, seed: int, first: int, layers: Sequence[nn.Module], use_cache: bool = False
    ) -> Iterator[None]:
        """What `sampling` does, with the layers before which the rows are repeated (none: before the model)."""
        if self.explicit:
            raise ValueError("sampling contexts cannot be nested; leave the outer one first.")
        self.require_rows(num_samples)
        modules = self.modules()
        held = [(module, module.noise) for module in modules] if self.held else []
        copies, copied = self.num_samples, self._copied
        for adapter in (modules, *self.other_adapters()):
            generators = [generator(modules[0].device, seed, first + s, PREDICTION) for s in range(num_samples)]
            set_noise(adapter, generators, first=first, explicit=True)
        self.explicit, self.use_cache = True, use_cache
        self.set_copies(num_samples, layers)
        try:
            yield
        finally:
            self.clear()
            for module, kept in held:
                module.set_noise(kept)
            if held:
                self.held = True
                self.set_copies(copies, copied)

    def require_rows(self, num_samples: int) -> None:
        """Whether rows of a forward can be `num_samples` draws.

        Raises:
            ValueError: They cannot.
        """
        if num_samples > 1 and self.one_by_one:
            raise ValueError(
                f"{num_samples} samples in one forward need layers with the batch dimension first, and this model's "
                "have the tokens there. Take one sample at a time: bayeslora.predict does so by itself; in training "
                "set train_samples=1."
            )

    def set_copies(self, num_samples: int, layers: Sequence[nn.Module]) -> None:
        """Repeat the input of each of `layers` `num_samples` times; without layers, the input of the model."""
        for handle in self._repeating:
            handle.remove()
        layers = layers if num_samples > 1 else ()
        self.num_samples, self._batch, self._copied = num_samples, None, layers
        self._repeating = [layer.register_forward_pre_hook(self._repeat_inputs, with_kwargs=True) for layer in layers]

    def _before_forward(self, root: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        modules = self.modules(in_use=True)
        if not modules:
            self._batch = None
            return None
        for module in modules:
            module.begin_forward(kwargs)
        if modules[0].training and not (self.explicit or self.held):
            set_noise(self.modules(), [None])
        if not (self._materialised or _recomputes_reentrantly(self._checkpointable)):
            materialise(_factors(modules))
            self._materialised = self.use_cache
        if self.num_samples == 1 or not (self.explicit or modules[0].training):
            self._batch = None
            return None
        return self._prepare_samples(root, args, kwargs)

    def _after_forward(self, root: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        factors = _factors(self.modules(in_use=True))
        # A graph still needs the weights: gradient checkpointing reads them again in the backward pass. The next token
        # needs them too, and computing them again would cost more than a token of a small model.
        if factors and not self.use_cache and not (torch.is_grad_enabled() and factors[0].training):
            forget(factors)
        logits = getattr(output, "logits", None)
        if self._batch is not None and isinstance(logits, Tensor) and logits.shape[0] != self.num_samples * self._batch:
            raise ValueError(
                f"{self.num_samples} samples of a batch of {self._batch} should give logits with leading dimension "
                f"{self.num_samples * self._batch}, got {tuple(logits.shape)}: this model does not keep the batch "
                "dimension first. Take one sample at a time: bayeslora.predict(..., chunk_size=1)."
            )

    def _prepare_samples(self, root: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Note the batch size; without a shared trunk, repeat the inputs themselves."""
        if kwargs.get("labels") is not None:
            raise ValueError(
                f"labels cannot be given to a forward with num_samples={self.num_samples}: the model would compare "
                "S * batch predictions with batch labels. Leave labels out and average the probabilities, or use "
                "bayeslora.predict."
            )
        if kwargs.get("adapter_names") is not None:
            raise ValueError("adapter_names cannot be combined with several samples in one forward; use num_samples=1.")
        # transformers 5.24 calls it "cache".
        if any(kwargs.get(name) is not None for name in ("past_key_values", "cache")) and not self.use_cache:
            raise ValueError(
                "a key-value cache (past_key_values) cannot be combined with several samples in one forward unless the "
                "caller averages them: generate with bayeslora.generate, or open the context with sampling(..., "
                "use_cache=True)."
            )
        if not self.use_cache and ("use_cache" in kwargs or hasattr(root, "generate")):
            kwargs = {**kwargs, "use_cache": False}
        tensors = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor) and value.dim() >= 2]
        self._batch = max(value.shape[0] for value in tensors)
        if not self._copied:
            args, kwargs = self._repeat(args), self._repeat(kwargs)
        return args, kwargs

    def _repeat(self, value: Any) -> Any:
        """S copies, sample-major, of every tensor in `value` that has the batch in front."""
        if isinstance(value, Tensor):
            if value.dim() < 2 or value.shape[0] != self._batch:
                return value
            copies = value.expand(self.num_samples, *value.shape).flatten(0, 1)
            if not (torch.compiler.is_compiling() or copies.is_inference()):
                copies.copied_from = value, copies._version  # type: ignore[attr-defined]
            return copies
        if isinstance(value, tuple | list):
            return type(value)(self._repeat(entry) for entry in value)
        if isinstance(value, Mapping):
            return {key: self._repeat(entry) for key, entry in value.items()}
        return value

    def _repeat_inputs(self, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Forward pre-hook of the layers from the first random one on."""
        return self._repeat(args), self._repeat(kwargs)

    def copies_computed_once(self, layers: Sequence[nn.Module]) -> AbstractContextManager[None]:
        """What the linear maps and norms in `layers` make of copies is computed once and copied, without gradients.

        In the first random layer that is the norm before the attention and the base model's projections.
        """

        def run(module: nn.Module, own: Callable[..., Tensor], value: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            single, version = getattr(value, "copied_from", (None, None))
            if single is None or version != value._version or torch.is_grad_enabled() or args or kwargs:
                return own(value, *args, **kwargs)
            copies: Tensor = self._repeat(own(single))
            return copies

        inside = [module for layer in layers for module in layer.modules() if _acts_on_rows(module)]
        return forwards_replaced(inside, run)


def _acts_on_rows(module: nn.Module) -> bool:
    """Whether this is a linear map or a norm of the base model, with rows that do not know each other."""
    leaf = not isinstance(module, RandomModule) and not list(module.children())
    return leaf and any(True for _ in module.parameters()) and "forward" not in module.__dict__


def _containers(layer: Any) -> tuple[nn.ModuleDict, ...]:
    """Where a PEFT layer keeps what belongs to its adapters, by adapter."""
    modules = layer._modules  # Several times as fast as the attributes, and asked of every layer at every forward.
    return modules["lora_dropout"], modules["lora_A"], modules["lora_B"]


def _factors(modules: Sequence[RandomModule]) -> list[RandomFactor]:
    return [module for module in modules if isinstance(module, RandomFactor)]


def _recomputes_reentrantly(layers: Sequence[nn.Module]) -> bool:
    """Whether reentrant checkpointing is on: its nested backward passes must not share a graph of the weights."""
    if not torch.is_grad_enabled():
        return False
    for layer in layers:
        if layer.training and getattr(layer, "gradient_checkpointing", False):
            function = getattr(layer, "_gradient_checkpointing_func", None)
            return bool(getattr(function, "keywords", {}).get("use_reentrant", True))
    return False


def find_draws(model: nn.Module) -> Draws | None:
    """The `Draws` of a model with Bayesian-LoRA adapters, wrapped (PeftModel, DDP) or not; None without any."""
    for module in model.modules():
        draws = module.__dict__.get("bayeslora_draws")
        if isinstance(draws, Draws):
            return draws
    return None


def random_factors(model: nn.Module) -> list[RandomFactor]:
    """The random factors of the active adapters of `model`, in a fixed order; empty for a model without any."""
    return _factors(random_modules(model))


def random_modules(model: nn.Module) -> list[RandomModule]:
    """The random modules of the active adapters of `model`, its random factors among them, in a fixed order."""
    draws = find_draws(model)
    return [] if draws is None else draws.modules()


def hold_draw(model: nn.Module, *, seed: int, step: int, num_samples: int = 1) -> None:
    """Use the same draw, or draws, for all training forwards until the next call.

    It is a function of `(seed, step)` and of nothing else: the micro-batches of an accumulated batch, the processes of
    a distributed run and a run resumed from a checkpoint all see the same one. With several draws a forward gives
    outputs with leading dimension `num_samples * batch`, as in `sampling`.
    """
    draws = find_draws(model)
    if draws is None or not (modules := draws.modules()):
        return
    draws.require_rows(num_samples)
    device = modules[0].device
    numbers = [step * num_samples + s for s in range(num_samples)]
    set_noise(modules, [generator(device, seed, number) for number in numbers])
    draws.held = True
    if num_samples != draws.num_samples:
        draws.set_copies(num_samples, layers_from_first(model, modules) if num_samples > 1 else [])
