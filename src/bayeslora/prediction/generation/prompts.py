"""Text to tokens and back: prompts of a batch, and the piece of text that each generated token adds."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from transformers import PreTrainedTokenizerBase


def encode_prompts(
    tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], *, raw: bool = False
) -> dict[str, Tensor]:
    """`input_ids` and `attention_mask` `[batch, tokens]` of the prompts, padded on the left.

    Args:
        tokenizer: Of the model. If it has a chat template, each prompt is what the user says in a chat, and the
            model's turn comes next.
        prompts: Texts, at least one.
        raw: Take the texts as they are, also where there is a chat template.

    Raises:
        ValueError: There are no prompts, or one of them has no tokens.
    """
    chat = not raw and tokenizer.chat_template is not None
    texts = list(prompts)
    if chat:
        turns = [[{"role": "user", "content": prompt}] for prompt in prompts]
        texts = [str(tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)) for turn in turns]
    # The template writes the special tokens itself.
    rows = tokenizer(texts, add_special_tokens=not chat)["input_ids"] if texts else []
    if not rows or not all(rows):
        raise ValueError("prompts must hold at least one text and none without tokens; leave empty prompts out.")
    encoded = tokenizer.pad({"input_ids": rows}, padding_side="left", return_tensors="pt")
    return {name: encoded[name] for name in ("input_ids", "attention_mask")}


def token_pieces(tokenizer: PreTrainedTokenizerBase, tokens: list[int]) -> list[str]:
    """The text that each token adds to the text of those before it, without special tokens."""
    pieces: list[str] = []
    shown = 0
    for end in range(1, len(tokens) + 1):
        text = str(tokenizer.decode(tokens[:end], skip_special_tokens=True, clean_up_tokenization_spaces=False))
        # A character whose last byte is still to come is decoded as the replacement character.
        complete = end == len(tokens) or not text.endswith("\N{REPLACEMENT CHARACTER}")
        pieces.append(text[shown:] if complete else "")
        shown = len(text) if complete else shown
    return pieces
