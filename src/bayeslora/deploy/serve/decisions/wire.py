"""What a wire format is: from a body to questions, from answers to a body, and how it says that something is wrong."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from starlette.responses import JSONResponse, Response

from bayeslora.deploy.serve.errors import Refused
from bayeslora.tasks.decisions import Answer, Question, QuestionError
from bayeslora.tasks.decisions.questions import shown

_MOST_SAMPLES = 2**31 - 1
_MOST_SEED = 2**63 - 1


@dataclass(frozen=True)
class Extensions:
    """What a request asks for beyond its format.

    Args:
        answered: Whether fields beginning with `x_` are answered.
        num_samples: Posterior draws, 0 for the mean; None: as the model takes.
        seed: Of the draws; None: the model's.
    """

    answered: bool = True
    num_samples: int | None = None
    seed: int | None = None


@dataclass(frozen=True)
class Asked:
    """A request, whatever the format it came in.

    Args:
        state: What the questions are about.
        questions: By name, in the request's order.
        model: The name that the client asked for.
        values: What the client calls the options of a question, where that is not their keys.
        names: What the client calls the questions, where that is not their keys here.
        extensions: What it asks for beyond the format.
    """

    state: Any
    questions: dict[str, Question]
    model: str | None = None
    values: dict[str, list[Any]] = field(default_factory=dict)
    names: dict[str, str | None] = field(default_factory=dict)
    extensions: Extensions = field(default_factory=Extensions)


class Wire(ABC):
    """One of the formats."""

    name: ClassVar[str]
    wrong_body: ClassVar[int | None] = None
    """The status of whatever is wrong with a body; None: 413 for one that is too long, else 422."""

    @abstractmethod
    def parse(self, body: Mapping[str, Any]) -> Asked:
        """The request of a body.

        Raises:
            Refused: It is wrong (422); `path` says where.
        """

    @abstractmethod
    def answered(self, asked: Asked, answers: Mapping[str, Answer], model: str, tokens: int) -> dict[str, Any]:
        """The body of an answer.

        Args:
            asked: The request.
            answers: By the questions' names.
            model: Name of what answers.
            tokens: That were read.
        """

    @abstractmethod
    def error(self, problem: Refused) -> dict[str, Any]:
        """The body of an answer that is none."""

    def status(self, problem: Refused) -> int:
        """Its HTTP status."""
        return self.wrong_body if self.wrong_body and problem.status in (413, 422) else problem.status

    def refusal(self, problem: Refused) -> Response:
        """The whole answer."""
        return JSONResponse(self.error(problem), self.status(problem), problem.headers)


def refused(message: str, path: Sequence[str | int], code: str = "value_error") -> Refused:
    """A request that is wrong at a place in its body."""
    return Refused(422, code, message, field=".".join(map(str, path)), path=path)


def asking(path: Sequence[str | int], parse: Callable[[], Any]) -> Any:
    """What `parse` gives; what is wrong with a question is refused at its place below `path`.

    Raises:
        Refused: It is wrong (422).
    """
    try:
        return parse()
    except QuestionError as error:
        raise refused(str(error), (*path, *error.path)) from error


def extensions(body: Mapping[str, Any]) -> Extensions:
    """`x_extensions`, `x_num_samples` and `x_seed` of a request; null is as absent.

    Raises:
        Refused: An extension is of another type or out of its range (422).
    """
    wanted = body.get("x_extensions")
    if not (wanted is None or isinstance(wanted, bool)):
        text = f"x_extensions should be true or false, got {shown(wanted)}; send one of them, or leave it out."
        raise refused(text, ("x_extensions",), "bool_type")
    for name, least, most in (("x_num_samples", 0, _MOST_SAMPLES), ("x_seed", 0, _MOST_SEED)):
        value = body.get(name)
        whole = isinstance(value, int) and not isinstance(value, bool)
        if value is not None and not (whole and least <= value <= most):
            expected = f"{name} should be a whole number from {least} to {most}"
            text = f"{expected}, got {shown(value)}; send one, or leave it out."
            raise refused(text, (name,), "value_error" if whole else "int_type")
    return Extensions(wanted is not False, body.get("x_num_samples"), body.get("x_seed"))
