"""Files of items with one fault each, given to `bayeslora train` (labels must be right) or `bayeslora predict`."""

import csv
import io
import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from test_cli import items

from campaign.calls import call
from campaign.outcome import Attempt, judged
from campaign.world import World

Rows = list[dict[str, Any]]
Named = list[tuple[str, ...]]


def item_files(world: World, run: Path, count: int, source: random.Random) -> Iterator[Attempt]:
    """`count` files; every third goes to `train`, the others to `predict` with the run in `run`."""
    for number in range(count):
        train = number % 3 == 0
        faults = [*_FAULTS, *(_LABEL_FAULTS if train else ())]
        fault = source.choice(faults)
        rows = items(8)
        name, content, named = fault(rows, source)
        path = world.folder / f"items-{number}-{name}"
        if content is not None:
            path.write_bytes(content)
        what = f"{fault.__name__.strip('_')} to {'train' if train else 'predict'} ({path.suffix}, {number})"
        if train:
            config = world.config
            config["task"]["name"] = str(path)
            arguments = [
                "train",
                "--config",
                world.write("items.yaml", config),
                "--output_dir",
                world.folder / "bad-run",
            ]
        else:
            arguments = ["predict", run, "--input", path, "--output", world.folder / f"out-{number}.jsonl"]
        done = call(*arguments)
        yield judged("item file", what, done.status, done.said, [*named, (path.name,)])


Fault = Callable[[Rows, random.Random], tuple[str, bytes | None, Named]]


def _lines(rows: Rows) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def _csv(rows: Rows) -> str:
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["id", "question", "choices", "label"])
    for row in rows:
        writer.writerow([row["id"], row["question"], json.dumps(row["choices"]), row["label"]])
    return text.getvalue()


def _missing_column(rows: Rows, source: random.Random) -> tuple[str, bytes, Named]:
    name = source.choice(["question", "choices"])
    del rows[source.randrange(len(rows))][name]
    return "missing.jsonl", _lines(rows), [(name,)]


def _no_such_column(rows: Rows, source: random.Random) -> tuple[str, bytes, Named]:
    name = source.choice(["question", "choices"])
    renamed = [{(f"{key}_text" if key == name else key): value for key, value in row.items()} for row in rows]
    return "renamed.jsonl", _lines(renamed), [(name,)]


def _broken_line(rows: Rows, source: random.Random) -> tuple[str, bytes, Named]:
    lines = _lines(rows).decode().splitlines()
    at = source.randrange(len(lines))
    lines[at] = lines[at][: source.randrange(1, len(lines[at]))]
    return "broken.jsonl", "\n".join(lines).encode(), [(f"line {at + 1}",)]


def _no_object(rows: Rows, source: random.Random) -> tuple[str, bytes, Named]:
    lines = _lines(rows).decode().splitlines()
    at = source.randrange(len(lines))
    lines[at] = source.choice(["[1, 2]", '"text"', "7", "null", "true"])
    return "object.jsonl", "\n".join(lines).encode(), [(f"line {at + 1}",)]


def _wrong_choices(rows: Rows, source: random.Random) -> tuple[str, bytes, Named]:
    at = source.randrange(len(rows))
    rows[at]["choices"] = source.choice([[], ["one"], 7, {"a": 1}, None, ["same", "same"], ["a", ""], [None, "b"]])
    return "choices.jsonl", _lines(rows), [("choice",)]


def _wrong_question(rows: Rows, source: random.Random) -> tuple[str, bytes, Named]:
    at = source.randrange(len(rows))
    rows[at]["question"] = source.choice(["", "   ", None, 7, ["a"], {"text": "b"}])
    return "question.jsonl", _lines(rows), [("question",)]


def _same_id(rows: Rows, source: random.Random) -> tuple[str, bytes, Named]:
    one, other = source.sample(range(len(rows)), 2)
    rows[one]["id"] = rows[other]["id"]
    return "ids.jsonl", _lines(rows), [(rows[one]["id"],)]


def _empty(rows: Rows, source: random.Random) -> tuple[str, bytes, Named]:
    return source.choice(["empty.jsonl", "empty.csv", "empty.json"]), source.choice([b"", b"\n\n"]), []


def _other_ending(rows: Rows, source: random.Random) -> tuple[str, bytes, Named]:
    return source.choice(["rows.jsnl", "rows.xlsx", "rows.tsv", "rows.txt"]), _lines(rows), []


def _no_utf8(rows: Rows, source: random.Random) -> tuple[str, bytes, Named]:
    content = bytearray(_lines(rows))
    content[source.randrange(len(content))] = source.choice([0xFF, 0xFE, 0xC0])
    return "utf8.jsonl", bytes(content), []


def _no_parquet(rows: Rows, source: random.Random) -> tuple[str, bytes, Named]:
    return "rows.parquet", source.choice([b"PAR1", b"", _lines(rows)]), []


def _csv_fields(rows: Rows, source: random.Random) -> tuple[str, bytes, Named]:
    lines = _csv(rows).splitlines()
    at = source.randrange(1, len(lines))
    lines[at] += source.choice([",extra", ",,", ",1,2"])
    return "fields.csv", "\n".join(lines).encode(), [(f"line {at + 1}",)]


def _csv_header(rows: Rows, source: random.Random) -> tuple[str, bytes, Named]:
    text = _csv(rows).replace("id,question", source.choice(["id,id", "question,question"]), 1)
    return "header.csv", text.encode(), []


def _missing_file(rows: Rows, source: random.Random) -> tuple[str, None, Named]:
    return "not-there.jsonl", None, []


def _label(rows: Rows, source: random.Random) -> tuple[str, bytes, Named]:
    at = source.randrange(len(rows))
    rows[at]["label"] = source.choice([3, -1, 99, "Z", "no such choice", 1.5, [0], {"index": 0}, True])
    return "label.jsonl", _lines(rows), [("label",)]


def _no_label(rows: Rows, source: random.Random) -> tuple[str, bytes, Named]:
    at = source.randrange(len(rows))
    if source.random() < 0.5:
        rows[at]["label"] = None
    else:
        del rows[at]["label"]
    return "nolabel.jsonl", _lines(rows), [("label",)]


_FAULTS: tuple[Fault, ...] = (
    _missing_column,
    _no_such_column,
    _broken_line,
    _no_object,
    _wrong_choices,
    _wrong_question,
    _same_id,
    _empty,
    _other_ending,
    _no_utf8,
    _no_parquet,
    _csv_fields,
    _csv_header,
    _missing_file,
)
_LABEL_FAULTS: tuple[Fault, ...] = (_label, _no_label)
