"""The top of a causal language model, computed only for what is read of it: exact, and without knowing the model.

A score of choices reads a few positions, and of the language-model head a few words. The top layer's keys and values
are needed at all positions, but its queries' results, its MLP, the norm above it and the head only where they are read.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache

from bayeslora.adapters.draws import find_draws
from bayeslora.adapters.random_factor import RandomFactor
from bayeslora.models.layers import base_model, forwards_replaced, layers_below, outermost_layers, text_config


@contextmanager
def last_positions(model: nn.Module, count: int) -> Iterator[None]:
    """Forwards inside this context may compute the top layer for the last `count` positions alone; the others are zero.

    It does so without gradients, in eval mode, in decoders with eager or SDPA attention whose top layer takes a cache
    of keys and values, and where no random module in it that is in use depends on the position. Elsewhere all positions
    are right.
    """
    layer = _top_layer(model)
    if layer is None:
        yield
        return

    def run(layer: nn.Module, own: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if torch.is_grad_enabled():  # Checkpointing would run the layer again outside of this context.
            return own(*args, **kwargs)
        inputs = _by_name(layer, args, kwargs)
        length = inputs["hidden_states"].shape[1]
        mask, before = inputs.pop("attention_mask", None), length - count
        masked = isinstance(mask, Tensor) and mask.dim() == 4 and mask.shape[-2:] == (length, length)
        # Without a mask, attention is causal from the first position, which is wrong for several at the end.
        known = masked or (mask is None and count == 1)
        cached = [name for name in ("cache", "past_key_values") if name in inputs]
        if before < 1 or not known or len(cached) != 1 or inputs.pop(cached[0]) is not None:
            return own(*args, **kwargs)
        keys = {cached[0]: _KeysAndValues()}
        with suppress(_Collected):
            own(**_positions(inputs, slice(before), length), attention_mask=None, **keys)
        rows = mask[:, :, before:] if isinstance(mask, Tensor) else None
        output = own(**_positions(inputs, slice(before, None), length), attention_mask=rows, **keys)
        # At the full length, since some models reshape it to that of their input.
        hidden, *rest = output if isinstance(output, tuple) else (output,)
        hidden = nn.functional.pad(hidden, (0, 0, before, 0))
        return (hidden, *rest) if isinstance(output, tuple) else hidden

    with forwards_replaced([layer], run):
        yield


def head_of_words(model: nn.Module, words: Tensor) -> AbstractContextManager[bool]:
    """Whether logits of forwards inside this context are those of `words` [words] alone, in their order."""

    def run(head: Any, own: Callable[..., Any], hidden: Tensor) -> Tensor:
        bias = None if head.bias is None else head.bias[words]
        return nn.functional.linear(hidden, head.weight[words], bias)

    return _head_replaced(model, run)


def head_at_ends(model: nn.Module, ends: Tensor, words: Tensor) -> AbstractContextManager[bool]:
    """Whether logits of forwards inside this context are those of `words` at one place of each row alone
    [rows, 1, words], in float32: in bfloat16 a logit of 20 is known to a sixteenth.

    Args:
        model: A causal language model.
        ends: The place of each row [rows].
        words: Ids of the tokens [words].
    """

    def run(head: Any, own: Callable[..., Any], hidden: Tensor) -> Tensor:
        last = hidden[torch.arange(len(hidden), device=hidden.device), ends].unsqueeze(1)
        bias = None if head.bias is None else head.bias[words].float()
        return nn.functional.linear(last.float(), head.weight[words].float(), bias)

    return _head_replaced(model, run)


def head_of_positions(model: nn.Module, choose: Callable[[Tensor], Tensor]) -> AbstractContextManager[bool]:
    """Whether the head sees `choose(hidden)` instead of the hidden states [rows, positions, hidden]."""
    return _head_replaced(model, lambda head, own, hidden: own(choose(hidden)))


def head_left_out(model: nn.Module) -> AbstractContextManager[bool]:
    """Whether the head hands on the hidden states of each row's first position, for forwards whose logits nobody reads.

    To read one position would cost more than it seems: in bfloat16 on a CPU a few rows times a wide vocabulary take
    seconds.
    """
    return _head_replaced(model, lambda head, own, hidden: hidden[:, :1])


@contextmanager
def _head_replaced(model: nn.Module, run: Callable[..., Tensor]) -> Iterator[bool]:
    base = base_model(model)
    head = base.get_output_embeddings() if hasattr(base, "get_output_embeddings") else None
    # A head that is adapted, quantised or sharded has a forward of its own kind; one that is compiled would be again.
    if type(head) is not nn.Linear or type(head.weight) is not nn.Parameter or not _replaceable(model, head):
        yield False
        return
    with forwards_replaced([head], run):
        yield True


class _Collected(Exception):
    """The keys and values are known: the rest of the layer need not run."""


class _KeysAndValues(Cache):
    """Stands in for a cache in one layer: the first update is all that is asked of that forward."""

    def __init__(self) -> None:
        self._first: tuple[Tensor, Tensor] | None = None

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Keys and values `[rows, heads, positions, features]` of all positions so far."""
        if self._first is None:
            self._first = key_states, value_states
            raise _Collected
        keys, values = self._first
        return torch.cat([keys, key_states], dim=-2), torch.cat([values, value_states], dim=-2)


def _by_name(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """All arguments of the layer's forward by name, defaults included."""
    signature = inspect.signature(type(layer).forward)
    bound = signature.bind(layer, *args, **kwargs)
    bound.apply_defaults()
    inputs = dict(list(bound.arguments.items())[1:])
    for name, parameter in signature.parameters.items():
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            inputs |= inputs.pop(name)
    return inputs


def _positions(value: Any, chosen: slice, length: int) -> Any:
    """The `chosen` positions of every tensor in `value` that has one entry for each of `length` positions."""
    if isinstance(value, Tensor):
        if value.dim() == 1:
            return value[chosen] if value.shape[0] == length else value
        return value[:, chosen] if value.shape[1] == length else value
    if isinstance(value, tuple | list):
        return type(value)(_positions(entry, chosen, length) for entry in value)
    if isinstance(value, dict):
        return {name: _positions(entry, chosen, length) for name, entry in value.items()}
    return value


def _top_layer(model: nn.Module) -> nn.Module | None:
    """The last layer, where it is known what its attention is and that nothing else reads it."""
    base = base_model(model)
    layers = outermost_layers(base)
    config = text_config(base)
    if len(layers) < 2 or not getattr(base, "_supports_attention_backend", False) or config is None:
        return None
    kinds = set(getattr(config, "layer_types", None) or ())
    draws, top = find_draws(model), set(map(id, layers[-1].modules()))
    random = [] if draws is None else [module for module in draws.modules(in_use=True) if id(module) in top]
    known = (
        not kinds - {"full_attention", "sliding_attention"}
        and getattr(config, "_attn_implementation", None) in ("eager", "sdpa")
        and len(layers_below(base, layers[-1:])) == len(layers) - 1
        and all(isinstance(module, RandomFactor) for module in random)
        and not layers[-1].training
    )
    return layers[-1] if known and _replaceable(model, layers[-1]) else None


def _replaceable(model: nn.Module, module: nn.Module) -> bool:
    """Whether no cache, wrapper or compiler has a hand in the forward of `module`."""
    compiled = any(getattr(part, "_compiled_call_impl", None) or hasattr(part, "_orig_mod") for part in (model, module))
    return "forward" not in module.__dict__ and not compiled
