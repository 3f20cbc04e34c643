"""The results file: what comes back is what went in, whatever killed the writer."""

import errno
import json
import logging
import multiprocessing
import time
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch

from bayeslora.experiments.comparison import Cell, Header, Items, Predictions, Results, results
from bayeslora.experiments.comparison.config import CompareConfig
from bayeslora.experiments.comparison.growth import without_storage
from bayeslora.options.parsing import config_parser, instantiate
from bayeslora.prediction.predictive import Predictive
from bayeslora.runs.config import describe
from bayeslora.runs.differences import at_defaults

torch.set_num_threads(1)

CONFIG = {"tasks": {"arc_easy": {}}, "train": {"epochs": 2, "learning_rates": (1e-3, 3e-3)}}


def header(config: dict | None = None) -> Header:
    return Header.now(CONFIG if config is None else config, "cpu")


def items(split: str = "test", **changes: object) -> Items:
    content = {"task": "arc_easy", "split": split, "ids": ["a", "b"], "labels": [1, 2], "choices": [2, 3]}
    return Items(**content | changes)


def cell(**changes: object) -> Cell:
    content = {
        "task": "arc_easy",
        "method": "lora + temperature",
        "seed": 1,
        "learning_rate": 1e-3,
        "stage": "final",
        "num_samples": 10,
        "train_seconds": 12.5,
        "predict_seconds": 3.25,
        "deterministic_seconds": 1.5,
        "peak_memory_bytes": 2**33,
        "trainable_parameters": 1000,
        "extra_parameters": 1,
        "derived_from": "lora",
        "details": {"temperature": 1.7},
        "history": [{"step": 1, "nll": 1.5, "kl": 0.0}],
        "predictions": {"test": Predictions([[0.25, 0.75], [0.125, 0.375, 0.5]], [0.5, 0.0])},
    }
    return Cell(**content | changes)


def started(path: Path, *records: Items | Cell) -> Path:
    with Results.open(path, header()) as writing:
        for record in records:
            writing.append(record)
    return path


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


# --- round trip ------------------------------------------------------------------------------------------------------


def test_what_was_written_comes_back(tmp_path):
    bare = cell(method="lora", deterministic_seconds=None, peak_memory_bytes=None, derived_from=None, details={})
    strange = items("ood:mmlu", labels=None, ids=["é\u2028", 'quote " and \n newline'])
    path = started(tmp_path / "deep" / "results.jsonl", items(), strange, bare, cell(), cell(stage="selection"))
    read = Results.read(path)
    assert read.header.config == json.loads(json.dumps(CONFIG))
    assert read.header.versions.keys() == {"python", "torch", "transformers", "peft", "numpy"}
    assert read.header.versions["torch"] == torch.__version__
    assert read.items("arc_easy", "test") == items() and read.items("arc_easy", "ood:mmlu") == strange
    assert read.cells() == [bare, cell(), cell(stage="selection")]
    assert read.cells(stage="selection") == [cell(stage="selection")]
    assert read.cells(method="lora") == [bare] and read.cells(task="other") == []
    assert read.tasks() == ["arc_easy"] and read.splits("arc_easy") == ["test", "ood:mmlu"]
    assert read.methods() == ["lora", "lora + temperature"] and read.methods("selection") == ["lora + temperature"]


def test_the_lines_are_those_of_the_format(tmp_path):
    first, second, third = lines(started(tmp_path / "results.jsonl", items(), cell()))
    assert first["kind"] == "header" and first["format_version"] == 1
    assert first.keys() >= {"bayeslora", "versions", "device", "created", "config"}
    assert second == {"kind": "items", "task": "arc_easy", "split": "test", "ids": ["a", "b"], "labels": [1, 2]} | {
        "choices": [2, 3]
    }
    assert third["kind"] == "cell" and third["predictions"]["test"] == {
        "probabilities": [[0.25, 0.75], [0.125, 0.375, 0.5]],
        "mutual_information": [0.5, 0.0],
    }


def test_find_tells_what_is_done(tmp_path):
    reading = Results.read(started(tmp_path / "results.jsonl", items(), cell()))
    assert reading.find("arc_easy", "lora + temperature", 1, 0.001, "final") == cell()
    assert reading.find("arc_easy", "lora + temperature", 2, 0.001, "final") is None
    assert reading.find("arc_easy", "lora + temperature", 1, 0.003, "final") is None
    assert reading.find("arc_easy", "lora + temperature", 1, 0.001, "selection") is None


def test_numbers_have_six_significant_digits_in_the_file_and_in_memory(tmp_path):
    probabilities = [[1.23456789e-7, 1 - 1.23456789e-7], [0.123456789, 0.876543211, 0.0]]
    with Results.open(tmp_path / "results.jsonl", header()) as writing:
        writing.append(items())
        writing.append(cell(predictions={"test": Predictions(probabilities, [1 / 3, 0.0])}))
        remembered = writing.cells()
    expected = Predictions([[1.23457e-7, 1.0], [0.123457, 0.876543, 0.0]], [0.333333, 0.0])
    assert remembered[0].predictions["test"] == expected
    assert Results.read(tmp_path / "results.jsonl").cells() == remembered


def test_a_predictive_becomes_ragged_rows_and_padded_arrays_again():
    samples = torch.randn(5, 2, 3, generator=torch.Generator().manual_seed(0))
    samples[:, 0, 2] = -torch.inf
    predictive = Predictive(samples.log_softmax(-1))
    made = Predictions.from_arrays(predictive.probabilities, predictive.mutual_information, [2, 3])
    assert [len(row) for row in made.probabilities] == [2, 3]
    numpy.testing.assert_allclose(made.padded(), predictive.probabilities.numpy(), rtol=1e-6)
    numpy.testing.assert_allclose(made.mutual_information, predictive.mutual_information.numpy(), rtol=1e-6)
    assert items().choice_mask().tolist() == [[True, True, False], [True, True, True]]
    assert items().label_array().tolist() == [1, 2]


def test_labels_of_another_label_set_are_not_given():
    with pytest.raises(ValueError, match="have no labels"):
        items("ood:mmlu", labels=None).label_array()


# --- kills and full disks --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kept", [1, 40, -1])
def test_a_torn_last_line_is_dropped_and_said(tmp_path, caplog, kept):
    path = started(tmp_path / "results.jsonl", items(), cell(), cell(seed=2))
    whole = path.read_bytes()
    last = whole.splitlines(keepends=True)[-1]
    path.write_bytes(whole[: -len(last)] + last[:-1][:kept])
    torn = path.read_bytes()
    with caplog.at_level(logging.WARNING, logger="bayeslora"):
        assert [found.seed for found in Results.read(path).cells()] == [1]
    assert "not finished" in caplog.text
    assert path.read_bytes() == torn, "reading changes nothing: another process may be writing"
    with Results.open(path, header()) as writing:
        assert writing.find(*cell(seed=2).key) is None
        writing.append(cell(seed=2))
    assert path.read_bytes() == whole


def test_a_record_that_only_lacks_its_line_end_is_kept(tmp_path):
    path = started(tmp_path / "results.jsonl", items(), cell())
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    assert len(Results.read(path).cells()) == 1
    with Results.open(path, header()) as writing:
        writing.append(cell(seed=2))
    assert path.read_bytes().startswith(whole) and len(lines(path)) == 4


def test_a_file_that_was_killed_in_its_header_starts_anew(tmp_path):
    path = tmp_path / "results.jsonl"
    path.write_text('{"kind": "hea')
    started(path, items())
    assert [line["kind"] for line in lines(path)] == ["header", "items"]


def test_a_broken_line_elsewhere_is_an_error_with_its_number(tmp_path):
    path = started(tmp_path / "results.jsonl", items(), cell())
    content = path.read_text().splitlines(keepends=True)
    path.write_text(content[0] + content[1][:30] + "\n" + content[2])
    for opening in (Results.read, lambda path: Results.open(path, header())):
        with pytest.raises(ValueError, match=r"Line 2 .* is broken"):
            opening(path)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"kind": "call"}', "Line 3 .*kind items or cell, got 'call'"),
        ("[1]", "Line 3 .*expected a JSON object"),
        ('{"kind": "cell", "task": "arc_easy"}', "Line 3 .* is broken"),
        ('{"kind": "items", "task": "t", "split": "dev", "ids": [], "labels": [], "choices": []}', "Line 3"),
    ],
)
def test_a_wrong_record_is_an_error_with_its_number(tmp_path, line, said):
    path = started(tmp_path / "results.jsonl", items())
    path.write_text(path.read_text() + line + "\n" + json.dumps(cell().to_json()) + "\n")
    with pytest.raises(ValueError, match=said):
        Results.read(path)


def test_a_full_disk_leaves_the_file_as_it_was(tmp_path, monkeypatch):
    path = tmp_path / "results.jsonl"
    with Results.open(path, header()) as writing:
        writing.append(items())
        before = path.read_bytes()

        class FullDisk:
            """Takes ten bytes and then no more."""

            def __init__(self, file):
                self.file, self.room = file, 10

            def write(self, content):
                if not self.room:
                    raise OSError(errno.ENOSPC, "No space left on device")
                self.room = 0
                return self.file.write(bytes(content[:10]))

            def __getattr__(self, name):
                return getattr(self.file, name)

        whole = writing._file
        writing._file = FullDisk(whole)
        with pytest.raises(OSError, match="No space"):
            writing.append(cell())
        assert path.read_bytes() == before and writing.cells() == []
        writing._file = whole
        writing.append(cell())
    assert len(Results.read(path).cells()) == 1


def test_each_record_is_synchronised_before_append_returns(tmp_path, monkeypatch):
    path = tmp_path / "results.jsonl"
    sizes = []
    with Results.open(path, header()) as writing:
        monkeypatch.setattr(results.os, "fsync", lambda handle: sizes.append(path.stat().st_size))
        writing.append(items())
        writing.append(cell())
        assert sizes[-1] == path.stat().st_size and len(sizes) == 2


def test_records_appended_together_are_written_at_once_or_not_at_all(tmp_path, monkeypatch):
    path, other = tmp_path / "results.jsonl", cell(method="lora")
    with Results.open(path, header()) as writing:
        sizes = []
        monkeypatch.setattr(results.os, "fsync", lambda handle: sizes.append(path.stat().st_size))
        writing.append(items())
        with pytest.raises(ValueError, match="cannot be written as JSON"):
            writing.append(other, cell(details={"temperature": float("nan")}))
        assert writing.cells() == [] and sizes == [path.stat().st_size]
        writing.append(other, cell())
        assert sizes[1:] == [path.stat().st_size]
    assert Results.read(path).cells() == [other, cell()]


# --- one writer, one config ------------------------------------------------------------------------------------------


def test_a_second_writer_is_refused_until_the_first_one_ends(tmp_path):
    path = tmp_path / "results.jsonl"
    context = multiprocessing.get_context("fork")
    opened = context.Event()

    def hold() -> None:
        with Results.open(path, header()):
            opened.set()
            time.sleep(600)

    first = context.Process(target=hold, daemon=True)
    first.start()
    assert opened.wait(60)
    with pytest.raises(RuntimeError, match="Another process writes"):
        Results.open(path, header())
    assert Results.read(path).cells() == []
    first.kill()
    first.join()
    started(path, items())


def test_a_failed_open_lets_the_next_one_in(tmp_path):
    path = started(tmp_path / "results.jsonl")
    with pytest.raises(ValueError, match="another config") as refused:
        Results.open(path, header({}))
    started(path, items())
    assert refused.traceback, "kept until here: it is what would hold the lock"


def test_another_config_is_named_option_by_option(tmp_path):
    path = started(tmp_path / "results.jsonl")
    other = {"tasks": {"arc_easy": {}}, "train": {"epochs": 3, "learning_rates": [1e-3, 3e-3]}, "seeds": [0]}
    with pytest.raises(ValueError, match="another config") as raised:
        Results.open(path, header(other))
    assert "train.epochs is 2 there and 3 here" in str(raised.value)
    assert "seeds is only here" in str(raised.value)
    assert "learning_rates" not in str(raised.value) and "output folder" in str(raised.value)


def test_rows_tasks_and_seeds_can_be_added_and_nothing_else_changed(tmp_path):
    path, first = tmp_path / "results.jsonl", {"rows": {"lora": {"r": 8}}, "tasks": {"a": {}}, "seeds": [0, 1]}
    Results.open(path, header(first)).close()
    more = {"rows": {"blob": {"r": 8}}, "tasks": {"b": {}, "a": {}}, "seeds": [0, 2]}
    with Results.open(path, header(more)) as writing:
        writing.append(items())
    both = {"rows": {"lora": {"r": 8}, "blob": {"r": 8}}, "tasks": {"a": {}, "b": {}}, "seeds": [0, 1, 2]}
    assert Results.read(path).header.config == both and [line["kind"] for line in lines(path)] == ["header", "items"]
    for change, said in (
        ({"rows": {"lora": {"r": 4}}}, "rows.lora.r is 8 there and 4 here"),
        ({"seeds": [1]}, "seeds"),
    ):
        with pytest.raises(ValueError, match=said):
            Results.open(path, header(first | change))


def test_controls_and_temperatures_of_a_row_can_be_added_and_not_taken_away(tmp_path):
    path = tmp_path / "results.jsonl"
    first: dict[str, Any] = {"r": 8, "controls": ["one_pass"], "temperature": False}
    more = first | {"controls": ["score_noise", "one_pass"], "temperature": True}
    for row in (first, more):
        Results.open(path, header({"rows": {"lora": row}})).close()
        assert Results.read(path).header.config == {"rows": {"lora": row}}
    for row, said in (
        (first, "temperature is true there and false here"),
        (more | {"controls": ["score_noise"]}, "controls"),
        (more | {"r": 4}, "rows.lora.r is 8 there and 4 here"),
    ):
        with pytest.raises(ValueError, match=said):
            Results.open(path, header({"rows": {"lora": row}}))


def test_other_versions_are_said_and_allowed(tmp_path, caplog):
    path = started(tmp_path / "results.jsonl")
    same = header()
    other = Header(
        config=same.config, device="cuda", bayeslora=same.bayeslora, versions=same.versions, created=same.created
    )
    with caplog.at_level(logging.WARNING, logger="bayeslora"):
        Results.open(path, other).close()
    assert "device cpu -> cuda" in caplog.text and "torch" not in caplog.text


@pytest.mark.parametrize("found", [2, "1", None])
def test_a_newer_format_is_an_error_also_where_it_has_new_kinds(tmp_path, found):
    path = tmp_path / "results.jsonl"
    path.write_text(json.dumps({"kind": "header", "format_version": found}) + '\n{"kind": "new"}\n')
    with pytest.raises(ValueError, match="Install a newer bayeslora"):
        Results.read(path)


def test_other_files_are_no_results(tmp_path):
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "items.jsonl").write_text('{"question": "?"}\n')
    with pytest.raises(ValueError, match="empty"):
        Results.read(tmp_path / "empty.jsonl")
    with pytest.raises(ValueError, match="no header"):
        Results.read(tmp_path / "items.jsonl")
    with pytest.raises(FileNotFoundError):
        Results.read(tmp_path / "none.jsonl")


# --- records that contradict the file --------------------------------------------------------------------------------


def test_items_are_written_once(tmp_path):
    path = started(tmp_path / "results.jsonl", items(), items())
    started(path, items())
    assert len(lines(path)) == 2
    with pytest.raises(ValueError, match="the data has changed"):
        started(path, items(ids=["a", "c"]))


def test_a_cell_is_written_once(tmp_path):
    with pytest.raises(ValueError, match="already"):
        started(tmp_path / "results.jsonl", items(), cell(), cell(details={}))


@pytest.mark.parametrize(
    "predictions",
    [
        {"test": Predictions([[0.5, 0.5]], [0.0])},
        {"test": Predictions([[0.5, 0.5], [0.5, 0.5]], [0.0, 0.0])},
        {"test": Predictions([[0.5, 0.5], [0.5, 0.5, 0.0]], [0.0])},
        {"dev": Predictions([[0.5, 0.5], [0.5, 0.5, 0.0]], [0.0, 0.0])},
        {"test": Predictions([[0.5, 0.5], [float("nan"), 0.5, 0.0]], [0.0, 0.0])},
    ],
    ids=["items", "choices", "information", "split", "nan"],
)
def test_predictions_that_do_not_fit_are_refused(tmp_path, predictions):
    with Results.open(tmp_path / "results.jsonl", header()) as writing:
        writing.append(items())
        with pytest.raises(ValueError, match="lora"):
            writing.append(cell(predictions=predictions))
    assert len(lines(tmp_path / "results.jsonl")) == 2


@pytest.mark.parametrize("change", [{"labels": [1, 3]}, {"labels": [-1, 0]}, {"choices": [2]}, {"labels": [1]}])
def test_wrong_items_are_refused(change):
    with pytest.raises(ValueError, match="arc_easy"):
        items(**change)


def test_results_that_were_read_take_no_records(tmp_path):
    reading = Results.read(started(tmp_path / "results.jsonl", items()))
    with pytest.raises(ValueError, match="opened for reading"):
        reading.append(cell())
    with pytest.raises(KeyError, match="no dev items of arc_easy; it has: arc_easy test"):
        reading.items("arc_easy", "dev")


STUDIES = Path(__file__).parents[2] / "studies"
COMMITTED = sorted(path for path in STUDIES.glob("*/*/comparison.yaml") if path.with_name("results.jsonl").exists())


@pytest.mark.parametrize("path", COMMITTED, ids=lambda path: path.parent.name)
def test_a_file_that_is_older_than_some_options_can_be_gone_on_with(path: Path, tmp_path: Path) -> None:
    parser = config_parser(CompareConfig)
    parsed = parser.parse_path(str(path))
    config = instantiate(parser, parsed, CompareConfig)
    described, defaults = without_storage(describe(config)), at_defaults(config)
    copy = tmp_path / "results.jsonl"
    copy.write_bytes(path.with_name("results.jsonl").read_bytes())
    before = Results.read(copy)
    with Results.open(copy, Header.now(described, "cpu"), defaults) as results:
        assert results.cells() == before.cells()
    described["train"] = described["train"] | {"optimizer": "lora_rite"}
    copy.write_bytes(path.with_name("results.jsonl").read_bytes())
    with pytest.raises(ValueError, match="optimizer is "):
        Results.open(copy, Header.now(described, "cpu"), defaults)
