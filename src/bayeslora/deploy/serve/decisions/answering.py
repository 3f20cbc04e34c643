"""From a request to its answers: one thread puts it into tokens, another reads it beside those that wait with it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from bayeslora.deploy.serve.batching import Batcher
from bayeslora.deploy.serve.decisions.wire import Asked, refused
from bayeslora.deploy.serve.errors import Refused
from bayeslora.deploy.serve.settings import Settings
from bayeslora.runs.decisions import DecisionModel
from bayeslora.runs.decisions.requests import Request
from bayeslora.scoring.codes import TooLongError
from bayeslora.tasks.decisions import Answer


class Answering:
    """Answers requests with a model.

    Requests that arrive while others are read are read together afterwards, so far as heads answer them; a request
    with questions for codes is read by itself. A request that is wrong is refused before it meets another one.

    Args:
        model: It belongs to this from now on.
        settings: Its `batch_size` is how many requests share a forward at most, and `max_samples` how many draws one
            may ask for.
        observe: As of `Batcher`.
        room: Tokens of requests that are read together at most; default: those with which throughput on a CPU is
            highest (studies/cost/decisions).
    """

    def __init__(
        self,
        model: DecisionModel,
        settings: Settings,
        observe: Callable[[int, float], None] = lambda items, seconds: None,
        room: int | None = None,
    ):
        self.model, self._most_samples = model, settings.max_samples
        self._room = room or model.hidden.together
        self._words = ThreadPoolExecutor(max_workers=1, thread_name_prefix="bayeslora-tokens")
        self.batcher: Batcher[Request, dict[str, Answer]] = Batcher(
            self._read,
            batch_size=settings.batch_size,
            size=self._size,
            room=self._room,
            max_wait=0,
            queue_items=settings.queue_items,
            unit="requests",
            observe=observe,
        )

    async def __call__(self, asked: Asked) -> tuple[dict[str, Answer], int]:
        """The answers, and the tokens that were read.

        Raises:
            Refused: It cannot be read (413 where it is too long, else 422), or the queue is full (503).
            ArithmeticError: A probability is not finite.
        """
        self.batcher.check_room(1)
        request = await asyncio.get_running_loop().run_in_executor(self._words, self._request, asked)
        (answers,) = await self.batcher.submit([request])
        return answers, request.num_tokens

    def start(self) -> None:
        """Begin to answer."""
        self.batcher.start()

    async def close(self) -> None:
        """Take no more; what is not answered yet is refused (503)."""
        await self.batcher.close()
        await asyncio.to_thread(self._words.shutdown, cancel_futures=True)

    def _request(self, asked: Asked) -> Request:
        samples, seed = asked.extensions.num_samples, asked.extensions.seed
        if samples is not None and samples > self._most_samples:
            text = f"x_num_samples should be at most {self._most_samples} draws, got {samples}; ask for fewer."
            raise refused(text, ("x_num_samples",))
        try:
            return self.model.request(asked.state, asked.questions, samples, seed)
        except TooLongError as error:
            raise Refused(413, "context_length_exceeded", str(error), path=("state",)) from error
        except ValueError as error:
            raise refused(str(error), ("questions",)) from error

    def _size(self, request: Request) -> int:
        return self._room + 1 if request.by_code else request.num_tokens

    def _read(self, requests: Sequence[Request], kind: None) -> list[dict[str, Answer]]:
        found = list(self.model.answers(requests))
        if any(p != p for answers in found for answer in answers.values() for p in answer.probabilities):
            raise ArithmeticError("the model's probabilities are not finite.")
        return found
