"""Prompts that are too long: the middle of the question's own text is cut, and nothing else."""

from __future__ import annotations

from collections.abc import Callable

MARK = " ... "
"""Stands where a text was cut."""


def fit(question: str, encode: Callable[[str], list[int]], room: int) -> list[int] | None:
    """The tokens of a prompt with as much of its question, which is too long, as fits; None where none of it does.

    Special tokens, template and choices stay whole: `encode` puts them around whatever question it is given.

    >>> fit("a question of many words", lambda text: [0, *map(len, text.split())], room=5)
    [0, 1, 5, 3, 5]

    Args:
        question: Its whole text.
        encode: Tokens of the prompt with a question.
        room: The most tokens, at least 1.
    """
    fitting, kept, beyond = None, -1, len(question)
    # Fewer letters hardly ever make more tokens; where they do, a few that would fit are lost.
    while beyond - kept > 1:
        middle = (kept + beyond) // 2
        tokens = encode(cut_middle(question, middle))
        if len(tokens) <= room:
            fitting, kept = tokens, middle
        else:
            beyond = middle
    return fitting


def cut_middle(text: str, letters: int) -> str:
    """`letters` of a text, half from its start and half from its end, with a mark between them.

    >>> cut_middle("abcdefghij", 4)
    'ab ... ij'
    """
    end = letters // 2
    return f"{text[: letters - end]}{MARK}{text[len(text) - end :]}"
