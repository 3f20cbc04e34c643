"""Numbers that became NaN or infinite in training."""

from __future__ import annotations


class NonFiniteLossError(FloatingPointError):
    """The loss or the weights became NaN or infinite; training stopped before they were used or saved."""


def likely_cause(
    updates: int, learning_rate: float, posterior_learning_rate: float | None, max_grad_norm: float
) -> str:
    """What to change, in words: the options that are the most likely to blame.

    Args:
        updates: Optimizer steps that had been taken.
        learning_rate: Peak learning rate of the weights.
        posterior_learning_rate: That of the variational parameters; None where they have none of their own.
        max_grad_norm: Where gradients are clipped; 0: they are not.
    """
    if updates == 0:
        return (
            "No update had been made, so it is not the learning rate: check the data, the base model's weights and its "
            "dtype (float16 ends at 65504; take bfloat16 or float32), lora_alpha and the method's standard deviations."
        )
    rates = f"Lower the learning rate ({learning_rate:g})"
    if posterior_learning_rate is not None:
        rates += f" or posterior_learning_rate_scale (a rate of {posterior_learning_rate:g})"
    if not max_grad_norm:
        rates += ", set max_grad_norm (gradients are not clipped)"
    return f"{rates}, or check the data."
