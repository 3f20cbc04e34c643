"""Cost of many states read together, over that of one after the other, and by how many tokens share a forward.

python -m studies.cost.decisions.many_states data --output studies/cost/decisions/many_states.json --threads 1 \
    --clock processor --rounds 3
python -m studies.cost.decisions.many_states data --output studies/cost/decisions/many_adapted.json --threads 1 \
    --clock processor --rounds 3 --samples 0 10 --tasks sst2 support_tickets --states 12 --rooms 1024

`data` is what `studies/decisions/sys1bench/generate.sh` wrote. Heads are fitted on 50 records of each task; then the
test records are answered by `DecisionModel.answers`, as `evaluate` and `calibrate` do: tokens, the layers of the model
and the heads. The reference is `DecisionModel.decide` of each state by itself. With `--samples` the heads lie over
Bayesian-LoRA in the eight layers below, trained for two steps, since what an answer costs does not hang on what was
learned; 0 is its mean.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from bayeslora.methods import BayesianLora
from bayeslora.runs.config import TrainConfig
from bayeslora.runs.decisions import DecisionModel
from bayeslora.runs.decisions.adapted_heads import AdaptedHeads
from bayeslora.runs.decisions.requests import Request
from bayeslora.tasks.decisions import Answer, Record, parse_question
from studies.cost.timing import CLOCKS, common_options, environment, paired, ratios, save
from studies.decisions.peers.records import load

RECORDS = 50
TESTS = {"sst2": 40, "support_tickets": 12, "boolq": 12}
ROOMS = (256, 512, 1024, 2048)
ALONE = "one by one"
_ONE = parse_question({"type": "noul", "instructions": "Is it about a person?"})


def alike(record: Record) -> Record:
    """With one question for all records of a task, whose own differ; its labels are of no interest here."""
    target = (1.0, 0.0) if record.label(next(iter(record.targets))) % 2 else (0.0, 1.0)
    return replace(record, questions={"answer": _ONE}, targets={"answer": target})


def decision_model(device: str, adapted: bool) -> DecisionModel:
    options: dict[str, Any] = {"readout": "heads", "device": device}
    if adapted:
        options |= {"method": BayesianLora(last_layers=8), "train": TrainConfig(max_steps=2)}
    return DecisionModel("offline:smollm2", **options)


def requests(model: DecisionModel, test: list[Record], samples: int | None) -> Iterator[Request]:
    return (model.request(one.state, {name: one.questions[name] for name in one.targets}, samples) for one in test)


def forget(model: DecisionModel) -> None:
    """States are new each time."""
    if isinstance(model.adapted, AdaptedHeads):
        model.adapted.reading.forget()


def together(model: DecisionModel, test: list[Record], samples: int | None, room: int) -> list[dict[str, Answer]]:
    forget(model)
    model.hidden.together = room
    return list(model.answers(requests(model, test, samples)))


def alone(model: DecisionModel, test: list[Record], samples: int | None) -> list[dict[str, Answer]]:
    forget(model)
    return [next(model.answers([request])) for request in requests(model, test, samples)]


def largest_difference(model: DecisionModel, test: list[Record], samples: int | None) -> float:
    """Between probabilities of states read together and alone."""
    pairs = zip(together(model, test, samples, max(ROOMS)), alone(model, test, samples), strict=True)
    both = ((one[name].probabilities, other[name].probabilities) for one, other in pairs for name in one)
    return max(abs(p - q) for one, other in both for p, q in zip(one, other, strict=True))


def measured(model: DecisionModel, test: list[Record], samples: int | None, options: Any) -> dict[str, Any]:
    candidates: dict[str, Callable[[], object]] = {ALONE: partial(alone, model, test, samples)}
    candidates |= {f"{room} tokens": partial(together, model, test, samples, room) for room in options.rooms}
    times = paired(candidates, torch.device(options.device), options.rounds, clock=options.clock)
    shown = list(requests(model, test, samples))
    return {
        "states": len(test),
        "questions_per_state": len(shown[0].questions),
        "tokens_per_state": sum(each.num_tokens for each in shown) / len(shown),
        "milliseconds_one_by_one": round(1000 * sorted(times[ALONE])[len(times[ALONE]) // 2] / len(test), 2),
        "largest_difference": largest_difference(model, test, samples),
        "over_one_by_one": ratios(times, ALONE),
    }


def main() -> None:
    parser = common_options(__doc__ or "", rounds=5)
    parser.add_argument("data", type=Path)
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    parser.add_argument("--samples", type=int, nargs="+", help="draws of Bayesian-LoRA below the heads")
    parser.add_argument("--tasks", nargs="+", choices=list(TESTS), default=list(TESTS))
    parser.add_argument("--states", type=int, help="of each task; default: as many as are short enough for a round")
    parser.add_argument("--rooms", type=int, nargs="+", default=ROOMS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model = decision_model(options.device, adapted=options.samples is not None)
    found: dict[str, Any] = {}
    for task in options.tasks:
        train, test = load(options.data, task, "clean", RECORDS, 0, options.states or TESTS[task])
        if task == "boolq":
            train, test = list(map(alike, train)), list(map(alike, test))
        model.fit(train, progress=False)
        if options.samples is None:
            found[task] = measured(model, test, None, options)
        else:
            found[task] = {f"{count} draws": measured(model, test, count, options) for count in options.samples}
        save(options.output, environment(torch.device(options.device)) | {"clock": options.clock, "tasks": found})


if __name__ == "__main__":
    main()
