"""Decision models: records, requests, folders and calls with one fault each."""

import io
import json
import random
import shutil
import string
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from campaign.calls import call, in_child, run_command
from campaign.outcome import Attempt, judged
from campaign.world import World

Fault = tuple[str, Callable[[], Any], list[tuple[str, ...]]]

_QUESTIONS: dict[str, Any] = {
    "metal": {"type": "noul", "instructions": "Is it a metal?"},
    "kind": {"type": "choice", "instructions": "Which?", "criteria": {"iron": None, "wood": "trees"}},
    "many": {"type": "score", "instructions": "How many?", "criteria": ["none", "one", "two"]},
}
_LABELS = {"metal": True, "kind": "iron", "many": 1}

_RECORDS: list[tuple[str, dict[str, Any], tuple[str, ...]]] = [
    ("empty state", {"state": " "}, ("state",)),
    ("number as state", {"state": 7}, ("state",)),
    ("no questions", {"questions": {}}, ("questions",)),
    ("unknown type", {"questions": {**_QUESTIONS, "metal": {"type": "nool", "instructions": "?"}}}, ("metal",)),
    ("one option", {"questions": {**_QUESTIONS, "kind": {**_QUESTIONS["kind"], "criteria": {"a": None}}}}, ("kind",)),
    ("no instructions", {"questions": {**_QUESTIONS, "many": {"type": "score", "criteria": []}}}, ("many",)),
    ("unknown key", {"labels": {"kind": "irn"}}, ("kind",)),
    ("level out of range", {"labels": {"many": 9}}, ("many",)),
    ("no bool", {"labels": {"metal": "perhaps"}}, ("metal",)),
    ("wrong id", {"labels": {"mettle": True}}, ("mettle",)),
    ("sum of 2", {"labels": {"kind": {"iron": 1, "wood": 1}}}, ("kind",)),
    ("negative probability", {"labels": {"kind": {"iron": -0.5, "wood": 1.5}}}, ("kind",)),
    ("weight 0", {"weight": 0}, ("weight",)),
    ("weight in words", {"weight": "heavy"}, ("weight",)),
]
_REQUESTS: list[tuple[str, str, tuple[str, ...]]] = [
    ("no JSON", "{broken", ("line 1", "column")),
    ("a list", "[]", ("request",)),
    ("no state", '{"questions": {}}', ("state",)),
    ("empty state", '{"state": ""}', ("state",)),
    ("unknown type", '{"state": "x", "questions": {"q": {"type": "multi", "instructions": "?"}}}', ("type",)),
    ("a twin", '{"state": "x", "state": "y"}', ("state",)),
]
_DAMAGE: list[tuple[str, str | None]] = [
    *((name, text) for name in ("decision.json", "calibration.json") for text in ("[]", "{", "null", '{"format": 1}')),
    ("heads.safetensors", "cut"),
    ("heads.safetensors", None),
    ("decision.json", None),
]
_CALLS: list[tuple[list[str], tuple[str, ...]]] = [
    (["calibrate", "RUN", "--data", "no-such.jsonl"], ("no-such.jsonl",)),
    (["calibrate", "RUN", "--data", "RECORDS", "--alpha", "1.5"], ("alpha",)),
    (["calibrate", "RUN", "--data", "RECORDS", "--alpha", "nan"], ("alpha",)),
    (["calibrate", "RUN", "--data", "RECORDS", "--alpha", "0.1", "--delta", "0"], ("delta",)),
    (["calibrate", "RUN", "--data", "RECORDS", "--signal", "variance"], ("signal",)),
    (["calibrate", "no-such-run", "--data", "RECORDS"], ("no-such-run",)),
    (["decide", "no-such-run"], ("no-such-run",)),
    (["decide", "RUN", "--device", "cude"], ("cude", "device")),
    (["evaluate", "RUN"], ("decision",)),
    (["export", "RUN", "--output_dir", "export"], ("decision",)),
    (["predict", "RUN", "--input", "RECORDS", "--output", "out.jsonl"], ("decision",)),
]


def decision_faults(world: World, count: int, source: random.Random) -> Iterator[Attempt]:
    """`count` faults of training, `decide` and `calibrate`."""
    run, records = world.folder / "heads", records_of(world.folder / "records.jsonl", 40)
    unseen = records_of(world.folder / "unseen.jsonl", 40, first=1000)
    base = base_with_codes(world.folder / "codes")
    train: list[object] = ["train", "--model.name", base, "--model.device", "cpu", "--task.name"]
    done = call(*train, records, "--output_dir", run)
    if done.status:
        raise RuntimeError(f"a decision model without a fault fails: {done.said}")
    kinds = (_bad_record, _bad_request, _damaged, _bad_call)
    for number in range(count):
        folder = world.folder / f"heads-{number}"
        shutil.copytree(run, folder)
        what, work, named = kinds[number % len(kinds)](folder, unseen, train, source)
        done = in_child(work)
        yield judged("decision", f"{what} ({number})", done.status, done.said, named)
        shutil.rmtree(folder)


def records_of(path: Path, count: int, first: int = 0, **change: Any) -> Path:
    """A file of so many labelled records, numbered from `first`, the last one with a change."""
    source, rows = random.Random(0), []
    for number in range(first, first + count):
        thing = source.choice(["iron", "wood"])
        labels = {"metal": thing == "iron", "kind": thing, "many": number % 3}
        rows.append({"state": f"{thing} {'xyz'[number % 3] * 5} {number}", "questions": _QUESTIONS, "labels": labels})
    rows[-1] |= change
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def base_with_codes(folder: Path) -> Path:
    """A base model whose tokenizer has a token for each letter, which questions without a head need."""
    from tokenizers import AddedToken

    from conftest import byte_level_tokenizer, tiny_llama

    tokenizer = byte_level_tokenizer(260)
    tokenizer.add_tokens([AddedToken(f" {letter}", normalized=False) for letter in string.ascii_uppercase])
    tiny_llama(vocab_size=len(tokenizer), max_position_embeddings=512).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def _bad_record(folder: Path, records: Path, train: list[object], source: random.Random) -> Fault:
    what, change, named = source.choice(_RECORDS)
    bad = records_of(folder / "bad.jsonl", 40, **change)
    calibrating = source.random() < 0.4
    command = ["calibrate", folder, "--data", bad] if calibrating else [*train, bad, "--output_dir", folder / "new"]
    return f"record: {what} to {command[0]}", lambda: run_command(command), [("bad.jsonl",), ("line 40",), named]


def _bad_request(folder: Path, records: Path, train: list[object], source: random.Random) -> Fault:
    what, text, named = source.choice(_REQUESTS)

    def decide() -> None:
        sys.stdin = io.StringIO(text)
        run_command(["decide", folder])

    return f"request: {what}", decide, [named]


def _damaged(folder: Path, records: Path, train: list[object], source: random.Random) -> Fault:
    name, text = source.choice(_DAMAGE)
    path = folder / name
    if text is None:
        path.unlink()
    elif text == "cut":
        path.write_bytes(path.read_bytes()[: source.randrange(1, path.stat().st_size)])
    else:
        path.write_text(text)
    return f"folder: {text or 'no'} {name}", lambda: run_command(["calibrate", folder, "--data", records]), [(name,)]


def _bad_call(folder: Path, records: Path, train: list[object], source: random.Random) -> Fault:
    given, named = source.choice(_CALLS)
    command = [{"RUN": folder, "RECORDS": records}.get(part, part) for part in given]

    def work() -> None:
        sys.stdin = io.StringIO('{"state": "x"}')
        run_command(command)

    return f"call: {' '.join(given)}", work, [named]
