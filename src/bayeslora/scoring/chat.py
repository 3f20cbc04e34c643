"""A tokenizer's chat template as a frame around a question: what stands before it, behind it, and before the answer."""

from __future__ import annotations

from datetime import datetime
from typing import NamedTuple

from transformers import PreTrainedTokenizerBase

_TODAY = datetime(2024, 7, 26)
"""The date in every prompt, where a template asks for one (Llama 3.2): predictions must not change from day to day."""

_QUESTION, _ANSWER = "Question-bc3f", "Answer-4e91"


class Frame(NamedTuple):
    """Texts around a user's message and before the assistant's.

    Args:
        before: From the start of the conversation to the message.
        behind: From the message to where the answer begins, but for a space that belongs to its first word.
        separator: That space, or nothing.
    """

    before: str
    behind: str
    separator: str

    def prompt(self, message: str) -> str:
        """The conversation up to the answer; templates trim messages, and so does this."""
        return f"{self.before}{message.strip()}{self.behind}"


def chat_frame(tokenizer: PreTrainedTokenizerBase) -> Frame:
    """The frame of `tokenizer`'s chat template, for one message and its answer.

    Raises:
        ValueError: The tokenizer has no chat template, or one that does not keep a message as it is.
    """
    if not tokenizer.chat_template:
        raise ValueError(
            "the tokenizer has no chat template, so prompts cannot be put into it; leave chat_template at false, or "
            "set tokenizer.chat_template."
        )
    asked = [{"role": "user", "content": _QUESTION}]
    prompt = _rendered(tokenizer, asked, add_generation_prompt=True)
    answered = _rendered(tokenizer, [*asked, {"role": "assistant", "content": _ANSWER}])
    before, found, behind = prompt.partition(_QUESTION)
    if not found:
        raise ValueError("the tokenizer's chat template does not show the user's message; set chat_template to false.")
    # Some templates put more before an answer than they ask a model to begin with, such as an empty thought.
    lead = answered.removeprefix(prompt).partition(_ANSWER)[0] if answered.startswith(prompt) else ""
    behind += lead
    return Frame(before, behind.rstrip(" "), behind[len(behind.rstrip(" ")) :])


def _rendered(
    tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, str]], *, add_generation_prompt: bool = False
) -> str:
    rendered = tokenizer.apply_chat_template(
        messages,
        chat_template=_same_day() + tokenizer.get_chat_template(),
        add_generation_prompt=add_generation_prompt,
        tokenize=False,
        date_string=_TODAY.strftime("%d %b %Y"),
    )
    return str(rendered)


def _same_day() -> str:
    """A macro in place of the function that tells templates the date; functions cannot be given to them."""
    parts = "".join(f" | replace('%{letter}', '{_TODAY.strftime('%' + letter)}')" for letter in "YymdbBaAHMS")
    return "{%- macro strftime_now(format) -%}{{ format" + parts + " }}{%- endmacro -%}"
