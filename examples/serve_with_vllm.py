"""Posterior draws behind an OpenAI-compatible server: ask each adapter, average the probabilities.

    bayeslora export runs/letter --format samples --num_samples 8 --output_dir exports/letter
    python examples/serve_with_vllm.py command exports/letter
    python examples/serve_with_vllm.py ask exports/letter --question "Which gas do plants take in?" \
        --choices oxygen "carbon dioxide" nitrogen helium

`command` prints the `vllm serve` call that loads the draws as LoRA modules. `ask` prints the mean probability of each
choice, the entropy of that mean, and the mutual information of answer and draw (both in nats; the second is how much of
the first is due to not knowing the weights). The run must be one of letter scoring: the question is asked as there.
Only the standard library is needed.
"""

from __future__ import annotations

import argparse
import json
import math
import shlex
import string
import urllib.request
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

VLLM_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""Values that vLLM takes for --max-lora-rank."""


class Answer(NamedTuple):
    """A predictive distribution over choices."""

    probabilities: list[float]
    """Mean over the draws."""
    entropy: float
    """Of the mean, nats."""
    mutual_information: float
    """Entropy of the mean minus mean entropy of the draws, nats."""


def serve_command(export: Path) -> list[str]:
    """The `vllm serve` call for an export folder of format "samples"."""
    record = read_record(export)
    rank = json.loads((export / record["draws"][0] / "adapter_config.json").read_text(encoding="utf-8"))["r"]
    if rank > VLLM_RANKS[-1]:
        raise ValueError(f"vLLM serves ranks up to {VLLM_RANKS[-1]}, but the adapters have rank {rank}; export merged.")
    return [
        *("vllm", "serve", str(record["base_model"]), "--enable-lora"),
        *("--max-lora-rank", str(min(allowed for allowed in VLLM_RANKS if allowed >= rank))),
        # All draws in one batch of the server.
        *("--max-loras", str(len(record["draws"]))),
        *("--lora-modules", *(f"{name}={(export / name).resolve()}" for name in record["draws"])),
    ]


def read_record(export: Path) -> dict[str, Any]:
    """export.json of a folder of draws."""
    record: dict[str, Any] = json.loads((export / "export.json").read_text(encoding="utf-8"))
    if record["format"] != "samples":
        raise ValueError(f"{export} is an export of format {record['format']!r}; use --format samples.")
    return record


def letter_prompt(question: str, choices: Sequence[str]) -> str:
    """As bayeslora's letter scoring writes it."""
    lines = [f"{letter}. {choice}" for letter, choice in zip(string.ascii_uppercase, choices, strict=False)]
    return "\n".join([f"Question: {question}", *lines, "Answer:"])


def next_token_log_probabilities(url: str, adapter: str, prompt: str, top: int) -> dict[str, float]:
    """Natural logarithms of the probabilities of the `top` likeliest next tokens, by their text."""
    body = {"model": adapter, "prompt": prompt, "max_tokens": 1, "temperature": 0, "logprobs": top}
    request = urllib.request.Request(
        f"{url.rstrip('/')}/v1/completions",
        data=json.dumps(body).encode(),
        headers={"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=600) as response:
        first: dict[str, float] = json.load(response)["choices"][0]["logprobs"]["top_logprobs"][0]
    return first


def letter_probabilities(log_probabilities: Mapping[str, float], count: int, temperature: float) -> list[float]:
    """Probabilities of the first `count` letters among themselves, at the temperature of the run."""
    found = []
    for letter in string.ascii_uppercase[:count]:
        # Servers write the token of a letter after a space with or without the space.
        spellings = [text for text in (f" {letter}", f"\u2581{letter}", letter) if text in log_probabilities]
        if not spellings:
            raise ValueError(
                f"the letter {letter} is not among the {len(log_probabilities)} likeliest tokens; ask for more with "
                "--top, and start vLLM with --max-logprobs of the same size."
            )
        found.append(log_probabilities[spellings[0]] / temperature)
    total = math.log(sum(map(math.exp, found)))
    return [math.exp(value - total) for value in found]


def average(draws: Sequence[Sequence[float]]) -> Answer:
    """The predictive of equally likely draws, each a distribution over the same choices."""
    mean = [sum(column) / len(draws) for column in zip(*draws, strict=True)]
    return Answer(mean, entropy(mean), entropy(mean) - sum(map(entropy, draws)) / len(draws))


def entropy(probabilities: Sequence[float]) -> float:
    """In nats."""
    return -sum(p * math.log(p) for p in probabilities if p > 0)


def ask(export: Path, url: str, question: str, choices: Sequence[str], top: int = 20) -> Answer:
    """The answer of all draws together; they are asked at once, so that the server batches them."""
    record = read_record(export)
    temperature = float(record.get("temperature", 1.0))
    prompt = letter_prompt(question, choices)

    def one(adapter: str) -> list[float]:
        return letter_probabilities(next_token_log_probabilities(url, adapter, prompt, top), len(choices), temperature)

    with ThreadPoolExecutor(len(record["draws"])) as pool:
        return average(list(pool.map(one, record["draws"])))


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("command", "ask"):
        commands.add_parser(name).add_argument("export", type=Path, help="Folder of `bayeslora export`.")
    question = commands.choices["ask"]
    question.add_argument("--url", default="http://localhost:8000")
    question.add_argument("--question", required=True)
    question.add_argument("--choices", nargs="+", required=True)
    question.add_argument("--top", type=int, default=20, help="Tokens to ask the server for (its --max-logprobs).")
    options = parser.parse_args(arguments)
    if options.command == "command":
        print(shlex.join(serve_command(options.export)))
        return
    answer = ask(options.export, options.url, options.question, options.choices, options.top)
    for letter, choice, probability in zip(string.ascii_uppercase, options.choices, answer.probabilities, strict=False):
        print(f"{letter}. {choice}: {probability:.4f}")
    print(f"entropy: {answer.entropy:.4f} nats")
    print(f"mutual information: {answer.mutual_information:.4f} nats")


if __name__ == "__main__":
    main()
