"""Cost of typed questions about one state, as a ratio to plain LoRA asked one after the other, and of concurrent ones.

python -m studies.cost.decisions.measure runs/decisions --output studies/cost/decisions/results.json --threads 1 \
    --clock processor

A decision model on SmolLM2 is fitted on BoolQ passages and saved in the folder that is named first, or loaded from it.
Its eight long questions have about 60 tokens; labels are the items' own or counted in their texts.

One state of 400 tokens: everything that `DecisionModel.decide` does, against plain LoRA (rank 8, q and v of all layers,
merged and not) that reads state and question in one forward for each question and gives the logits of the codes at its
end. It reads the tokens that the heads read, which do not list the options: with them LoRA would pay more. A further
row gives LoRA the same sharing: codes behind a state that is read once.

Concurrent requests: clients that each send one request after the other, with states of their own, through the queue of
`bayeslora serve`, without HTTP. Rows differ in how many tokens of waiting requests share a forward. Requests per second
of the clock.
"""

from __future__ import annotations

import argparse
import asyncio
import copy
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model

import bayeslora
from bayeslora.deploy.serve.decisions.answering import Answering
from bayeslora.deploy.serve.decisions.wire import Asked
from bayeslora.deploy.serve.settings import Settings
from bayeslora.runs.decisions import DecisionModel, is_decision_folder
from bayeslora.scoring.codes import CodeReader
from bayeslora.tasks import Item
from bayeslora.tasks.decisions import Question, Record, parse_question
from studies.cost.timing import CLOCKS, common_options, environment, paired, ratios, save

RECORDS = 100
STATE = 400
"""Tokens of the state, with its frame."""
COUNTS = (1, 2, 4, 8)
CLIENTS = (1, 4, 8)
ROOMS = {"one by one": 1, "512 tokens": 512, "2048 tokens": 2048}
REQUESTS = 8
"""Of all clients together, in each measurement."""

_FRAME = (
    "Read the passage above from its first word to its last and decide the following about it, and about nothing else "
    "that you may know of its subject: {}. Answer for the passage as it stands here, even where it is cut off in the "
    "middle of a sentence."
)
_ASKED: Mapping[str, tuple[str, Callable[[Item], bool]]] = {
    "yes": ("is the answer to the question that it ends with a yes?", lambda item: item.label == 1),
    "year": ("does it name a year with all four digits?", lambda item: any(len(w) == 4 for w in numbers(item))),
    "number": ("does it hold any number that is written in digits?", lambda item: bool(numbers(item))),
    "film": ("is it about a film, a series or their seasons?", lambda item: named(item, "film", "season", "episode")),
    "law": ("is it about a law, a right or a court?", lambda item: named(item, "law", "court", "legal")),
    "sport": ("is it about a team, a game or a cup?", lambda item: named(item, "team", "game", "cup")),
    "america": ("does it speak of the United States?", lambda item: named(item, "united states", "american")),
    "long": ("does it have more than seven hundred letters?", lambda item: len(item.question) > 700),
}
LONG = {
    name: parse_question({"type": "noul", "instructions": _FRAME.format(text)}) for name, (text, _) in _ASKED.items()
}
SHORT = {
    name: parse_question({"type": "noul", "instructions": f"Of the passage: {_ASKED[name][0]}"})
    for name in ("film", "law", "sport")
}


def numbers(item: Item) -> list[str]:
    return "".join(c if c.isdigit() else " " for c in item.question).split()


def named(item: Item, *words: str) -> bool:
    return any(word in item.question.lower() for word in words)


def record(item: Item) -> Record:
    """Its questions, long and short."""
    short = {f"short {name}": question for name, question in SHORT.items()}
    targets: dict[str, tuple[float, ...]] = {
        name: (1.0, 0.0) if label(item) else (0.0, 1.0) for name, (_, label) in _ASKED.items()
    }
    targets |= {f"short {name}": targets[name] for name in SHORT}
    return Record(item.question[:800], LONG | short, targets, item.id)


def fitted(folder: Path, items: Sequence[Item]) -> DecisionModel:
    if not is_decision_folder(folder):
        DecisionModel("offline:smollm2", device="cpu").fit([record(item) for item in items[:RECORDS]]).save(folder)
    return DecisionModel.load(folder)


def of_length(model: DecisionModel, items: Sequence[Item], tokens: int) -> str:
    """Passages behind each other, cut so that the prompt's part of the state has so many tokens."""
    words = " ".join(item.question for item in items).split()
    count = next(n for n in range(1, len(words)) if len(model.reader.state_tokens(" ".join(words[: n + 1]))) > tokens)
    return " ".join(words[:count])


class PlainLora:
    """Plain LoRA on the model's base, apart from it."""

    def __init__(self, model: DecisionModel):
        place: dict[str, Any] = {"r": 8, "lora_alpha": 16, "target_modules": ["q_proj", "v_proj"]}
        torch.manual_seed(0)
        base = (
            copy.deepcopy(model.reader.model)
            if model.adapted is None
            else DecisionModel(model.config.model).reader.model
        )
        self.model = get_peft_model(base, LoraConfig(**place, task_type="CAUSAL_LM")).eval()
        self.hidden = model.hidden
        self.reader = CodeReader(self.model, model.reader.tokenizer)
        self.merged = copy.deepcopy(self.model).merge_and_unload()
        self.codes = torch.tensor(model.reader.codes.tokens[:2])

    @torch.inference_mode()
    def ask(self, state: str, questions: Sequence[Question], *, merged: bool = False) -> list[torch.Tensor]:
        """One forward for each question."""
        found = []
        for question in questions:
            ids = torch.tensor([self.reader.state_tokens(state) + self.hidden.question_tokens(question)])
            logits = (self.merged if merged else self.model)(input_ids=ids, use_cache=False, logits_to_keep=1).logits
            found.append(logits[0, -1, self.codes].float().softmax(-1))
        return found


def one_state(model: DecisionModel, state: str, options: argparse.Namespace) -> dict[str, Any]:
    lora, asked = PlainLora(model), list(LONG.values())
    candidates: dict[str, Callable[[], object]] = {
        "lora, 8 questions": lambda: lora.ask(state, asked),
        "lora, 1 question": lambda: lora.ask(state, asked[:1]),
        "merged lora, 8 questions": lambda: lora.ask(state, asked, merged=True),
        "lora by codes, state shared, 8 questions": lambda: lora.reader(state, asked),
    }
    for count in COUNTS:
        part = dict(list(LONG.items())[:count])
        candidates[f"decision model, {count} questions"] = lambda part=part: model.decide(state, part)  # type: ignore[misc]
    prompt = model.hidden.prompt(model.reader.state_tokens(state), model.heads.fitted(LONG))
    (vectors,) = model.hidden.read([prompt])
    candidates["a forward for each question behind the state, 8 questions"] = lambda: model.hidden._one_by_one(prompt)
    candidates["its heads alone, 8 questions"] = lambda: model.heads.answers(
        vectors, LONG, model.heads.novelty_of(vectors)
    )
    with torch.no_grad():
        times = paired(candidates, torch.device("cpu"), options.rounds, clock=options.clock)
    return {
        "state_tokens": len(model.reader.state_tokens(state)),
        "question_tokens": [len(model.hidden.question_tokens(question)) for question in asked],
        "over_lora": ratios(times, "lora, 8 questions"),
        "over_merged_lora": ratios(times, "merged lora, 8 questions")["decision model, 8 questions"],
        "over_one_lora_pass": {
            str(count): ratios(times, "lora, 1 question")[f"decision model, {count} questions"] for count in COUNTS
        },
    }


def alone_and_beside(model: DecisionModel, states: Sequence[str]) -> float:
    """The most that a probability moves where eight questions are asked in place of one, of four states."""
    requests = [model.request(state, LONG) for state in states]
    together = list(model.answers(requests))
    apart = [{name: model.decide(state, {name: LONG[name]})[name] for name in LONG} for state in states]
    pairs = [(a[name], b[name]) for a, b in zip(together, apart, strict=True) for name in LONG]
    return max(abs(p - q) for a, b in pairs for p, q in zip(a.probabilities, b.probabilities, strict=True))


def serve(model: DecisionModel, requests: Sequence[Asked], clients: int, room: int) -> None:
    """Answer all of them; each client sends its next one when it has its answer."""

    async def all_of_them() -> None:
        desk = Answering(model, Settings(), room=room)
        desk.start()
        waiting = list(requests)

        async def client() -> None:
            while waiting:
                await desk(waiting.pop())

        await asyncio.gather(*(client() for _ in range(clients)))
        await desk.close()

    asyncio.run(all_of_them())


def concurrent(
    model: DecisionModel,
    states: Sequence[str],
    questions: Mapping[str, Question],
    options: argparse.Namespace,
) -> dict[str, Any]:
    requests = [Asked(state, dict(questions)) for state in states]
    found: dict[str, Any] = {"tokens": [model.request(one.state, one.questions).num_tokens for one in requests]}
    for clients in CLIENTS:
        candidates = {
            name: (lambda room=room, clients=clients: serve(model, requests, clients, room))
            for name, room in ROOMS.items()
        }
        table = ratios(paired(candidates, torch.device("cpu"), options.rounds, clock=options.clock), "one by one")
        found[f"{clients} clients"] = {
            name: {
                "requests_per_second": round(len(requests) / row["median_seconds"], 3),
                "throughput_ratio": round(1 / row["ratio"], 4),
                "lower_quartile": round(1 / row["upper_quartile"], 4),
                "upper_quartile": round(1 / row["lower_quartile"], 4),
            }
            for name, row in table.items()
        }
    return found


def main() -> None:
    parser = common_options(__doc__ or "", rounds=5)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--clock", choices=list(CLOCKS), default="wall")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    splits = bayeslora.get_task("boolq").splits()
    model, test = fitted(options.folder, splits.train), splits.test
    result: dict[str, Any] = environment(torch.device("cpu")) | {
        "clock": options.clock,
        "rounds": options.rounds,
        "records": RECORDS,
        "dtype": str(next(model.reader.model.parameters()).dtype),
    }
    result["one_state"] = one_state(model, of_length(model, test, STATE), options)
    save(options.output, result)
    states = [of_length(model, test[20 * n :], STATE) for n in range(REQUESTS)]
    result["most_moved_by_company"] = alone_and_beside(model, states[:4])
    save(options.output, result)
    short = [of_length(model, test[20 * n :], 60) for n in range(REQUESTS)]
    result["concurrent, short"] = concurrent(model, short, SHORT, options)
    save(options.output, result)


if __name__ == "__main__":
    main()
