"""Cost of many states read together, over that of one after the other, and by how many tokens share a forward.

python -m studies.cost.decisions.many_states data --output studies/cost/decisions/many_states.json --threads 1 \
    --clock processor

`data` is what `studies/decisions/sys1bench/generate.sh` wrote. Heads are fitted on 50 records of each task; then the
test records are answered by `DecisionModel.labelled`, as `evaluate` and `calibrate` do: tokens, the layers of the model
and the heads. The reference is `DecisionModel.decide` of each state by itself.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from bayeslora.runs.decisions import DecisionModel
from bayeslora.tasks.decisions import Record, parse_question
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


def largest_difference(model: DecisionModel, test: list[Record]) -> float:
    """Between probabilities of states read together and alone."""
    together = iter(model.labelled(test))
    apart = (model.decide(one.state, {name: one.questions[name] for name in one.targets}) for one in test)
    pairs = ((answer.probabilities, next(together).answer.probabilities) for own in apart for answer in own.values())
    return max(abs(p - q) for one, other in pairs for p, q in zip(one, other, strict=True))


def candidates(model: DecisionModel, test: list[Record]) -> dict[str, Callable[[], object]]:
    def together(room: int) -> None:
        model.hidden.together = room
        list(model.labelled(test))

    def alone() -> None:
        for record in test:
            model.decide(record.state, {name: record.questions[name] for name in record.targets})

    made: dict[str, Callable[[], object]] = {ALONE: alone}
    return made | {f"{room} tokens": lambda room=room: together(room) for room in ROOMS}  # type: ignore[misc]


def main() -> None:
    parser = common_options(__doc__ or "", rounds=5)
    parser.add_argument("data", type=Path)
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model = DecisionModel("offline:smollm2", readout="heads", device=options.device)
    found = {}
    for task, count in TESTS.items():
        train, test = load(options.data, task, "clean", RECORDS, 0, count)
        if task == "boolq":
            train, test = list(map(alike, train)), list(map(alike, test))
        model.fit(train, progress=False)
        shown = [model.request(record.state, record.questions) for record in test]
        times = paired(candidates(model, test), torch.device(options.device), options.rounds, clock=options.clock)
        found[task] = {
            "states": len(test),
            "questions_per_state": len(shown[0].questions),
            "tokens_per_state": sum(each.num_tokens for each in shown) / len(shown),
            "milliseconds_one_by_one": round(1000 * sorted(times[ALONE])[len(times[ALONE]) // 2] / len(test), 2),
            "largest_difference": largest_difference(model, test),
            "over_one_by_one": ratios(times, ALONE),
        }
        save(options.output, environment(torch.device(options.device)) | {"clock": options.clock, "tasks": found})


if __name__ == "__main__":
    main()
