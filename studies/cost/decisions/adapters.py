"""Cost of eight typed questions about one state by heads over an adapter, over plain LoRA asked one after the other.

python -m studies.cost.decisions.adapters --output studies/cost/decisions/adapters.json --threads 1 --clock processor

As `measure.py`, with the same state of 400 tokens, questions and LoRA. Bayesian-LoRA lies in the eight layers below the
last one that is read; it is trained for two steps, since what an answer costs does not hang on what was learned.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

import bayeslora
from bayeslora.methods import BayesianLora
from bayeslora.runs.config import TrainConfig
from bayeslora.runs.decisions import DecisionModel
from bayeslora.runs.decisions.adapted_heads import AdaptedHeads
from studies.cost.decisions.measure import LONG, STATE, PlainLora, of_length, record
from studies.cost.timing import CLOCKS, Work, common_options, environment, paired, ratios, save

RECORDS = 12
SAMPLES = (0, 1, 4, 10)


def fitted(items: list[Any]) -> DecisionModel:
    method, train = BayesianLora(last_layers=8), TrainConfig(max_steps=2)
    model = DecisionModel("offline:smollm2", device="cpu", readout="heads", method=method, train=train)
    return model.fit([record(item) for item in items[:RECORDS]], progress=False)


def main() -> None:
    parser = common_options(__doc__ or "", rounds=5)
    parser.add_argument("--clock", choices=list(CLOCKS), default="wall")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    splits = bayeslora.get_task("boolq").splits()
    model = fitted(splits.train)
    state, asked, lora = of_length(model, splits.test, STATE), list(LONG.values()), PlainLora(model)
    adapted = model.adapted
    assert isinstance(adapted, AdaptedHeads)

    def decide(samples: int) -> None:
        adapted.reading.forget()  # A state is new each time.
        model.decide(state, LONG, num_samples=samples)

    candidates: dict[str, Work] = {"lora, 8 questions": lambda: lora.ask(state, asked)}
    candidates |= {f"{samples} draws": partial(decide, samples) for samples in SAMPLES}
    times = paired(candidates, torch.device("cpu"), options.rounds, clock=options.clock)
    found = environment(torch.device("cpu")) | {"clock": options.clock, "rounds": options.rounds}
    found |= {"dtype": str(lora.model.dtype), "over_lora": ratios(times, "lora, 8 questions")}
    save(options.output, found)


if __name__ == "__main__":
    main()
