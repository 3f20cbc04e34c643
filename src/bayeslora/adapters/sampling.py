"""Explicit draws from the posterior: S samples in one forward."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from bayeslora.adapters.draws import find_draws
from bayeslora.models.layers import layers_from_first


@contextmanager
def sampling(
    model: nn.Module,
    num_samples: int = 1,
    seed: int = 0,
    *,
    first: int = 0,
    share_trunk: bool = True,
    use_cache: bool = False,
) -> Iterator[None]:
    """Forwards inside this context use draws from the posterior instead of its mean.

    >>> import peft, torch, transformers
    >>> import bayeslora
    >>> sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    >>> base = transformers.LlamaForCausalLM(transformers.LlamaConfig(vocab_size=50, **sizes))
    >>> model = peft.get_peft_model(base, bayeslora.BayesianLoraConfig(r=2, task_type="CAUSAL_LM")).eval()
    >>> ids = torch.tensor([[5, 6, 7], [8, 9, 10]])
    >>> with torch.no_grad(), sampling(model, num_samples=4, seed=0):
    ...     logits = model(input_ids=ids).logits
    >>> logits.unflatten(0, (4, 2)).shape  # [samples, batch, tokens, vocabulary]
    torch.Size([4, 2, 3, 50])

    With several samples a forward on a batch of B gives outputs with leading dimension `num_samples * B`,
    sample-major: `logits.unflatten(0, (num_samples, B))`. The part of the model below the first random layer runs once
    per batch. All forwards in the context see the same draws. With `num_samples=1`, `merge_and_unload()` inside the
    context bakes in that draw.

    Args:
        model: A model with Bayesian-LoRA adapters (a model without any is left as it is: it has no uncertainty).
        num_samples: Number of draws S >= 1.
        seed: Seed of the draws; draw s is the same for every `num_samples`. Their stream is apart from that of the
            training steps, so that the run's own seed will do.
        first: Number of the first draw; `sampling(num_samples=4)` is `first=0` and `first=2` with two samples each.
        share_trunk: Run the layers below the first random factor once and repeat their output (exact). Off, the
            inputs are repeated.
        use_cache: Several draws may read and write the key-value cache, one that starts empty in this context: the
            layers below the first random one keep B rows, the others S * B. For a caller who feeds each step with B
            rows, as `bayeslora.generate` does.

    Raises:
        ValueError: `num_samples` is not positive, or sampling contexts are nested.
    """
    if num_samples < 1:
        raise ValueError(f"num_samples must be at least 1, got {num_samples}; outside `sampling` the mean is used.")
    draws = find_draws(model)
    if draws is None or not (modules := draws.modules()):
        yield
        return
    layers = layers_from_first(model, modules) if share_trunk and num_samples > 1 else []
    with draws.drawing(num_samples, seed, first, layers, use_cache):
        yield
