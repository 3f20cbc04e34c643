"""A request in tokens: checked before anything is read, so that it can be read beside others."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import tee
from typing import Annotated, Any, TypeVar

from bayeslora.options.ranges import Draws, Range, check_value
from bayeslora.prediction.predictive import Predictive
from bayeslora.runs.decisions.reading import Prompt
from bayeslora.scoring.codes import CodeReader
from bayeslora.tasks.decisions import Question, parse_questions

Read = TypeVar("Read")

_Seed = Annotated[int, Range(0, 2**63, below=True)]
"""What torch takes."""


@dataclass(frozen=True)
class Request:
    """A state and questions about it.

    Args:
        questions: By id, in the order of the answers.
        state: Tokens of the state.
        by_head: The questions that heads answer.
        hidden: What is read for these, and for the novelty of the state; None where nothing is.
        by_code: Tokens of the other questions behind the state, one row for each order of the options; where their
            texts are read, for each option.
        num_samples: Posterior draws of an adapter; None: as many as the model takes.
        seed: Of the draws; None: the run's.
        about: The state as it was given.
    """

    questions: dict[str, Question]
    state: list[int]
    by_head: dict[str, Question]
    hidden: Prompt | None
    by_code: dict[str, list[list[int]]]
    num_samples: int | None = None
    seed: int | None = None
    about: Any = None

    def __post_init__(self) -> None:
        check_value(self.num_samples, Draws | None, "num_samples")
        check_value(self.seed, _Seed | None, "seed")

    @property
    def num_tokens(self) -> int:
        """Of the state and of all questions behind it."""
        heads = 0 if self.hidden is None else sum(map(len, self.hidden.questions))
        return len(self.state) + heads + sum(len(row) for rows in self.by_code.values() for row in rows)


def read_codes(reader: CodeReader, request: Request) -> list[Predictive]:
    """What codes say to the questions of a request that heads do not answer, each [1, 1, options]."""
    asked = [(request.questions[name], rows) for name, rows in request.by_code.items()]
    return [Predictive(score[None, None]) for score in reader.read(request.state, asked)]


def with_read(
    requests: Iterable[Request], read: Callable[[Iterable[Request]], Iterator[Read]]
) -> Iterator[tuple[Request, Read | None]]:
    """Each request with what `read` gives of those of which heads read something; None for the others."""
    own, ahead = tee(requests)
    found = read(request for request in ahead if request.hidden is not None)
    return ((request, None if request.hidden is None else next(found)) for request in own)


def as_questions(questions: Mapping[str, Any]) -> dict[str, Question]:
    """Questions by id, whether they are parsed already or not.

    Raises:
        QuestionError: One of them is wrong.
    """
    return {
        name: question if isinstance(question, Question) else parse_questions({name: question})[name]
        for name, question in questions.items()
    }
