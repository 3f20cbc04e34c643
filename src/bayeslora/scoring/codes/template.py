"""The one prompt in which a model reads a state and a question; it is stored with what was fitted in it."""

from __future__ import annotations

import string
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from bayeslora.tasks.decisions.questions import Option, Question, text_of

_ANNOUNCED = "Questions:\n"
_ROOM = 2000
"""Characters: an announcement is read before every state, and must leave it its place."""

_NOUL = {"true": "yes", "false": "no"}


@dataclass(frozen=True)
class Template:
    """Texts with gaps. The state comes first, so that it is read once for all questions; no id of a question appears.

    Heads read the last token of a state, so what divides it from a question belongs to the question.

    Args:
        state: With {state}.
        question: With {instructions} and {options}.
        option: A line of {options}, with {code} and {option}.
        description: What {option} is where an option has a description, with {key} and {text}.
        request: Ends the prompt of a chat.
        answer: Ends the prompt of a model without a chat template.
    """

    state: str = "State:\n{state}"
    question: str = "\n\nQuestion: {instructions}\n{options}\n"
    option: str = "{code}: {option}"
    description: str = "{key}: {text}"
    request: str = "Answer with the code of one option."
    answer: str = "Answer:"

    def announcing(self, questions: Iterable[Question]) -> Template:
        """With what will be asked before the state, so that a model reads the state for it (once for all questions).

        For a fixed set of questions, in their order. A text of one's own for the state is left as it is, and more than
        2,000 characters of questions are not announced.

        >>> from bayeslora.tasks.decisions import parse_question
        >>> Template().announcing([parse_question({"type": "noul", "instructions": "Is it urgent?"})]).state
        'Questions:\\nIs it urgent?\\n\\nState:\\n{state}'
        """
        usual = Template.state
        if self.state != usual and not (self.state.startswith(_ANNOUNCED) and self.state.endswith(usual)):
            return self
        asked = "\n".join(dict.fromkeys(question.instructions for question in questions))
        escaped = asked.replace("{", "{{").replace("}", "}}")
        return replace(self, state=f"{_ANNOUNCED}{escaped}\n\n{usual}" if 0 < len(asked) <= _ROOM else usual)

    def show_state(self, state: Any) -> str:
        """The part that all questions share."""
        return self.state.format(state=text_of(state))

    def show_question(self, question: Question, codes: Sequence[str], order: Sequence[int]) -> str:
        """A question and its options.

        Args:
            question: The question.
            codes: For each place in the list.
            order: Which option stands in each place.
        """
        lines = [
            self.option.format(code=code, option=self.show_option(question, question.options[index]))
            for code, index in zip(codes, order, strict=False)
        ]
        return self.question.format(instructions=question.instructions, options="\n".join(lines))

    def show_option(self, question: Question, option: Option) -> str:
        """An option without its code: of a score the level's text, else its name and what it means."""
        if question.kind == "score":
            return str(option.text)
        key = _NOUL[option.key] if question.kind == "noul" else option.key
        return key if option.text is None else self.description.format(key=key, text=option.text)

    @classmethod
    def of(cls, texts: Mapping[str, str]) -> Template:
        """With these texts in the place of its own.

        Raises:
            ValueError: There is no such text, or one lacks a gap or has another.
        """
        gaps = {each.name: _gaps(str(each.default)) for each in fields(cls)}
        for name, text in texts.items():
            if name not in gaps:
                raise ValueError(f"a template has the texts {', '.join(gaps)}, got {name!r}; correct the name.")
            if _gaps(text) != gaps[name]:
                wanted = ", ".join(f"{{{gap}}}" for gap in sorted(gaps[name])) or "no gap"
                raise ValueError(f"the template's {name} should have {wanted}, but it is {text!r}; correct it.")
        return cls(**texts)

    @classmethod
    def stored(cls, texts: Mapping[str, str]) -> Template:
        """Of a run, which holds all texts; one of an earlier version only those that were not the usual ones then.

        Raises:
            ValueError: As of `of`.
        """
        return cls.of({**_EARLIER, **texts})

    def to_dict(self) -> dict[str, str]:
        """As it is stored."""
        return asdict(self)


_EARLIER = {"state": "State:\n{state}\n\n", "question": "Question: {instructions}\n{options}\n"}


def _gaps(text: str) -> set[str]:
    return {name for _, name, _, _ in string.Formatter().parse(text) if name is not None}
