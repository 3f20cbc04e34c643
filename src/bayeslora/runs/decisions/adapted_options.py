"""One head on the texts of options as a decision model: what a run with scoring option_texts answers to requests."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from bayeslora.prediction.predictive import Predictive
from bayeslora.runs.decisions.adapted import Adapted
from bayeslora.runs.decisions.requests import Request
from bayeslora.scoring.codes import CodeReader
from bayeslora.scoring.option_texts import OptionTexts
from bayeslora.tasks.decisions import Question
from bayeslora.tasks.decisions.items import DecisionItem


@dataclass(frozen=True)
class AdaptedOptions(Adapted):
    """Answers by one head, on the frozen model or over an adapter; each question is read with its own options.

    A state is read once for each question about it.
    """

    readout: ClassVar[str] = "option_texts"

    @property
    def scoring(self) -> OptionTexts:
        """What reads the run's items."""
        assert isinstance(self.run.scoring, OptionTexts)
        return self.run.scoring

    def prompts(self, reader: CodeReader, state: list[int], question: Question) -> list[list[int]]:
        """Tokens of a question behind those of a state, a row for each option; errors as of the scoring."""
        return self.scoring.rows(state, question)

    def read(self, reader: CodeReader, request: Request) -> list[Predictive]:
        """By the texts of the options."""
        samples, seed = self.draws(request)
        # A server would keep what it has read of every state that it was ever asked about.
        run, found = self.run.without_cache(), []
        for name in request.by_code:
            question = request.questions[name]
            item = DecisionItem(name, "state", question.keys, None, state=request.about, asked=question)
            # By itself: a batch would have the numbers of its widest item.
            found.append(run.predict([item], samples, seed=seed, progress=False).predictive.cpu())
        return found
