"""The report on a synthetic comparison whose answers are known."""

import base64
import dataclasses
import io
import json
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path

import numpy
import pytest
import torch
from PIL import Image
from sklearn.metrics import roc_auc_score

from bayeslora import metrics
from bayeslora.experiments.comparison import Cell, Header, Items, Predictions, Results
from bayeslora.experiments.comparison.report.page import write_report
from bayeslora.metrics import all_metrics
from bayeslora.prediction.predictive import Predictive
from bayeslora_cli.main import main
from conftest import CHROMIUM

torch.set_num_threads(1)


@dataclass(frozen=True)
class Simulated:
    """A method whose logits are the true ones with an error, times a factor; above 1 it is overconfident."""

    title: str
    factor: float
    error: float
    spread: float = 0.0
    cost: float = 1.0
    derived_from: str | None = None


METHODS = (
    Simulated("lora", factor=2.5, error=0.6),
    Simulated("lora + temperature", factor=1.0, error=0.6, derived_from="lora"),
    Simulated("bayesian_lora", factor=1.0, error=0.3, spread=0.7, cost=1.4),
    Simulated("mc-dropout", factor=2.0, error=0.6, spread=0.3, cost=1.1),
)
TASKS = ("arc_easy", "local/quiz <b>")
SIZES = {"dev": 60, "test": 160, "ood:openbookqa": 90, "ood:law": 70}
SEEDS = (0, 1, 2)
DRAWS = 8
RATES = (1e-3, 3e-3)


def split_items(task: str, split: str, truth: numpy.ndarray, choices: int) -> Items:
    source = numpy.random.default_rng([len(task), len(split)])
    chances = numpy.exp(truth) / numpy.exp(truth).sum(1, keepdims=True)
    labels = [int(source.choice(choices, p=row)) for row in chances]
    ids = [f"{split}-{index}" for index in range(len(truth))]
    return Items(
        task=task, split=split, ids=ids, labels=None if split == "ood:law" else labels, choices=[choices] * len(truth)
    )


def true_logits(task: str, split: str, choices: int) -> numpy.ndarray:
    """Easy items in distribution, hard ones outside."""
    scale = 1.0 if split.startswith("ood") else 2.0
    return scale * numpy.random.default_rng([len(task), len(split), 1]).normal(size=(SIZES[split], choices))


def predictions(method: Simulated, truth: numpy.ndarray, seed: int, outside: bool) -> Predictions:
    source = numpy.random.default_rng(seed)
    mean = truth + method.error * source.normal(size=truth.shape)
    spread = method.spread * (2 if outside else 1)
    draws = mean + spread * source.normal(size=(DRAWS if method.spread else 1, *truth.shape))
    predictive = Predictive(torch.from_numpy(method.factor * draws).log_softmax(-1))
    counts = [truth.shape[1]] * len(truth)
    return Predictions.from_arrays(predictive.probabilities, predictive.mutual_information, counts)


def cell(method: Simulated, task: str, seed: int, truths: dict[str, numpy.ndarray], **changes: object) -> Cell:
    content = {
        "task": task,
        "method": method.title,
        "seed": seed,
        "learning_rate": RATES[1],
        "stage": "final",
        "num_samples": DRAWS if method.spread else 0,
        "train_seconds": 10.0 * method.cost + seed,
        "predict_seconds": 4.0 * (DRAWS if method.spread else 1),
        "deterministic_seconds": 4.0,
        "predict_items": 380,
        "peak_memory_bytes": int(method.cost * 2**30),
        "trainable_parameters": 1000,
        "extra_parameters": int(1000 * (method.cost - 1)),
        "derived_from": method.derived_from,
        "predictions": {
            split: predictions(method, truth, seed + 1, split.startswith("ood")) for split, truth in truths.items()
        },
    }
    return Cell(**content | changes)


def comparison(
    path: Path,
    methods: Sequence[Simulated] = METHODS,
    tasks: Sequence[str] = TASKS,
    seeds: Sequence[int] = SEEDS,
    unfinished: bool = False,
) -> Results:
    """A results file of simulated runs; `unfinished` leaves out the last seed of the last method on the last task."""
    config = {"tasks": {task: {} for task in tasks}, "seeds": list(seeds), "train": {"epochs": 3}}
    with Results.open(path, Header.now(config, "cpu: 2 threads")) as writing:
        for task in tasks:
            choices = 4 if task == "arc_easy" else 3
            truths = {split: true_logits(task, split, choices) for split in SIZES}
            for split, truth in truths.items():
                writing.append(split_items(task, split, truth, choices))
            for method in methods:
                if method.derived_from is None:
                    for rate in RATES:
                        worse = Simulated(method.title, method.factor * (1 if rate == RATES[1] else 2), method.error)
                        dev = {"dev": truths["dev"]}
                        writing.append(cell(worse, task, 0, dev, stage="selection", learning_rate=rate))
                for seed in seeds:
                    if not (unfinished and (task, method, seed) == (tasks[-1], methods[-1], seeds[-1])):
                        writing.append(cell(method, task, seed, truths))
    return Results.read(path)


@dataclass
class Page(HTMLParser):
    """Tables by their section and title, addresses, and ids of a report."""

    tables: dict[tuple[str, str], dict[str, dict[str, str]]] = field(default_factory=dict)
    marks: dict[tuple[str, str, str, str], str] = field(default_factory=dict)
    addresses: list[str] = field(default_factory=list)
    ids: list[str] = field(default_factory=list)
    tags: set[str] = field(default_factory=set)
    text: str = ""

    def __post_init__(self) -> None:
        super().__init__()
        self.section, self.title, self.buffer = "", "", ""

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        self.tags.add(tag)
        self.addresses += [given[name] for name in ("src", "href", "srcset", "data", "action") if name in given]
        self.ids += [given["id"]] if "id" in given else []
        if tag in ("h1", "h2", "h3", "th", "td", "small"):
            self.cell_text, self.buffer = self.buffer, ""
        if tag == "tr":
            self.line = []
        if tag == "td":
            self.mark = given.get("class", "")

    def handle_data(self, data):
        self.buffer += data
        self.text += data

    def handle_endtag(self, tag):
        text = " ".join(self.buffer.split())
        if tag == "h2":
            self.section = text
        elif tag == "h3":
            self.title = text
        elif tag == "small":
            self.buffer = f"{self.cell_text} ({text})"
        elif tag == "th":
            self.line.append((text, ""))
        elif tag == "td":
            self.line.append((text, self.mark))
        elif tag == "tr" and (self.section, self.title) not in self.tables:
            self.heads = [head for head, _ in self.line]
            self.tables[self.section, self.title] = {}
        elif tag == "tr":
            (name, _), *entries = self.line
            self.tables[self.section, self.title][name] = {}
            for head, (entry, mark) in zip(self.heads[1:], entries, strict=True):
                self.tables[self.section, self.title][name][head] = entry
                self.marks[self.section, self.title, name, head] = mark


def read_page(path: Path) -> Page:
    page = Page()
    page.feed(path.read_text(encoding="utf-8"))
    return page


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("comparison")
    comparison(folder / "results.jsonl", unfinished=True)
    assert write_report(folder, resamples=200) == folder / "report.html"
    return folder


@pytest.fixture(scope="module")
def results(folder) -> Results:
    return Results.read(folder / "results.jsonl")


@pytest.fixture(scope="module")
def page(folder) -> Page:
    return read_page(folder / "report.html")


def spread(values: Sequence[float], digits: int = 3) -> str:
    return f"{numpy.mean(values):.{digits}f} ± {numpy.std(values, ddof=1):.{digits}f}"


def final(results: Results, task: str, method: str) -> list[Cell]:
    return sorted(results.cells("final", task, method), key=lambda cell: cell.seed)


def name_of(task: str, method: str) -> str:
    return f"{method} (2 of 3 seeds)" if (task, method) == (TASKS[-1], METHODS[-1].title) else method


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("method", [method.title for method in METHODS])
@pytest.mark.parametrize("metric", all_metrics(), ids=lambda metric: metric.name)
def test_scores_are_means_and_deviations_over_seeds(page, results, task, method, metric):
    labels = results.items(task, "test").label_array()
    cells = final(results, task, method)
    expected = [metrics.summary(cell.predictions["test"].padded(), labels)[metric.name] for cell in cells]
    table = page.tables[task, "Scores on the 160 test items"]
    assert table[name_of(task, method)][" ".join(metric.head.split())].removeprefix("≈ ") == spread(expected)


def test_directions_of_the_metrics():
    better = {metric.name: metric.higher_is_better for metric in all_metrics()}
    upward = {name for name, higher in better.items() if higher}
    assert upward == {"accuracy", "auroc", "accuracy_at_80"}
    assert set(better) == set(metrics.summary([[0.5, 0.5]] * 4, [0, 1, 0, 1])) - {"num_examples"}


def test_the_marks_name_the_calibrated_method_and_what_is_as_good(page):
    where = TASKS[0], "Scores on the 160 test items"
    assert page.marks[(*where, "bayesian_lora", "NLL (nats) ↓")] == "best"
    assert page.marks[(*where, "lora", "NLL (nats) ↓")] == ""
    # Temperature moves no choice: the same accuracy, and so the same mark.
    accuracies = [page.tables[where][row]["accuracy ↑"] for row in ("lora", "lora + temperature")]
    assert accuracies[0] == accuracies[1] and accuracies[0].startswith("≈ ")
    for (section, title, row, head), mark in page.marks.items():
        assert page.tables[section, title][row][head].startswith("≈ ") == (mark == "tied")


def test_the_summary_names_the_best_row_of_every_task(page):
    summary = page.tables["", "The best rows on the test items"]
    assert set(summary) == set(TASKS)
    scores = page.tables[TASKS[0], "Scores on the 160 test items"]
    best, baseline = (scores[row]["NLL (nats) ↓"].split(" ± ")[0] for row in ("bayesian_lora", "lora"))
    assert summary[TASKS[0]]["NLL (nats) ↓"] == f"bayesian_lora {best} (lora {baseline})"


@pytest.mark.parametrize("task", TASKS)
def test_out_of_distribution_scores_and_detection(page, results, task):
    labelled = page.tables[task, "Out of distribution: openbookqa, 90 items"]
    unlabelled = page.tables[task, "Out of distribution: law, 70 items"]
    assert "NLL (nats) ↓" in labelled["lora"] and "NLL (nats) ↓" not in unlabelled["lora"]
    labels = results.items(task, "ood:openbookqa").label_array()
    for method in METHODS:
        row, cells = name_of(task, method.title), final(results, task, method.title)
        nlls = [metrics.nll(cell.predictions["ood:openbookqa"].padded(), labels) for cell in cells]
        assert labelled[row]["NLL (nats) ↓"].removeprefix("≈ ") == spread(nlls)
        for table, split in ((labelled, "ood:openbookqa"), (unlabelled, "ood:law")):
            by_entropy, by_information = [], []
            for cell in cells:
                parts = [cell.predictions["test"], cell.predictions[split]]
                outside = [0] * len(parts[0]) + [1] * len(parts[1])
                entropies = [-sum(p * numpy.log(p) for p in row if p) for part in parts for row in part.probabilities]
                by_entropy.append(roc_auc_score(outside, entropies))
                by_information.append(roc_auc_score(outside, parts[0].mutual_information + parts[1].mutual_information))
            assert table[row]["detection AUROC, entropy ↑"].removeprefix("≈ ") == spread(by_entropy)
            shown = table[row]["detection AUROC, mutual information ↑"].removeprefix("≈ ")
            assert shown == (spread(by_information) if method.spread else "–")


def test_prediction_sets_are_calibrated_on_dev_and_measured_on_test(page, results):
    labels = {split: results.items(TASKS[0], split).label_array() for split in ("dev", "test")}
    coverage, size = [], []
    for cell in final(results, TASKS[0], "bayesian_lora"):
        dev, test = (cell.predictions[split].padded() for split in ("dev", "test"))
        ranked = numpy.sort(1 - dev[numpy.arange(60), labels["dev"]])
        inside = 1 - test <= ranked[int(numpy.ceil(61 * 0.9)) - 1]
        coverage.append(inside[numpy.arange(160), labels["test"]].mean())
        size.append(inside.sum(1).mean())
    row = page.tables[TASKS[0], "Prediction sets at 90 %"]["bayesian_lora"]
    assert row == {"coverage": spread(coverage), "mean set size (choices)": spread(size, 2)}


def test_costs_are_relative_to_lora_and_to_one_pass(page):
    costs = page.tables[TASKS[0], "Cost, mean over seeds"]
    assert costs["bayesian_lora"] == {
        "training (s)": "15.0",
        "peak memory (GiB)": "1.40",
        "trainable parameters": "1,000",
        "extra parameters": "399",
        "draws": "8",
        "prediction (ms per item)": "84.2",  # 32 s, 380 items
        "prediction / one deterministic pass": "8.00",
        "training / lora": "1.36",
        "memory / lora": "1.40",
        "prediction / lora": "8.00",
    }
    assert costs["lora"]["draws"] == "–" and costs["lora"]["training / lora"] == "1.00"


def test_learning_rates_with_their_dev_scores(page, results):
    title = "Learning rates: NLL (nats) on the dev items"
    table, labels = page.tables[TASKS[0], title], results.items(TASKS[0], "dev").label_array()
    for rate, head, edge in zip(RATES, ("0.001", "0.003"), ("", " (edge)"), strict=True):
        cell = results.find(TASKS[0], "lora", 0, rate, "selection")
        assert table["lora"][head] == f"{metrics.nll(cell.predictions['dev'].padded(), labels):.3f}{edge}"
    assert page.marks[TASKS[0], title, "lora", "0.003"] == "best"
    # What is derived has no rate of its own.
    assert "lora + temperature" not in table


def test_what_is_missing_is_said(page):
    assert "Not finished. local/quiz <b> lacks seed 2 of mc-dropout." in " ".join(page.text.split())
    assert "mc-dropout (2 of 3 seeds)" in page.tables[TASKS[1], "Scores on the 160 test items"]
    assert "mc-dropout" in page.tables[TASKS[0], "Scores on the 160 test items"]


def test_how_it_was_made_is_there(page, results):
    assert '"epochs": 3' in page.text and "cpu: 2 threads" in page.text and f"torch {torch.__version__}" in page.text
    assert results.header.created in page.text and "23 final, 12 to choose learning rates" in page.text


# --- the files -------------------------------------------------------------------------------------------------------


def test_the_page_needs_nothing_else(page, folder):
    images = [address for address in page.addresses if address.startswith("data:image")]
    assert len(images) == 8
    for address in images:
        image = Image.open(io.BytesIO(base64.b64decode(address.partition(",")[2])))
        assert image.format == "PNG" and min(image.size) > 300 and len(image.convert("L").getcolors(256)) > 10
    links = [address for address in page.addresses if address not in (*images, "data:,")]
    assert links and all(link.startswith("#") and link[1:] in page.ids for link in links)
    assert not page.tags & {"script", "iframe", "object", "embed", "b"}
    source = (folder / "report.html").read_text(encoding="utf-8")
    assert "http" not in source and "@import" not in source and "url(" not in source


def test_pictures_are_files_too_and_the_markdown_shows_them(folder, page):
    files = {path.name: path.read_bytes() for path in (folder / "pictures").iterdir()}
    inline = [base64.b64decode(a.partition(",")[2]) for a in page.addresses if a.startswith("data:image")]
    assert sorted(files.values()) == sorted(inline)
    markdown = (folder / "report.md").read_text(encoding="utf-8")
    assert all(f"](pictures/{name})" in markdown for name in files) and "arc_easy-reliability.png" in files


def test_the_markdown_has_the_same_tables(folder, page):
    lines = (folder / "report.md").read_text(encoding="utf-8").splitlines()
    rows = [line.strip("|").split("|") for line in lines if line.startswith("| ")]
    found = {(cells[0].strip(), *(cell.strip().replace("**", "") for cell in cells[1:])) for cells in rows}
    for (section, title), table in page.tables.items():
        for name, entries in table.items():
            expected = (name.replace("<", "&lt;"), *entries.values())
            assert expected in found, (section, title, name)
    bold = [line for line in lines if line.startswith("| bayesian_lora |") and "**" in line]
    assert bold and not [line for line in lines if line.startswith(("|", "#")) and "<" in line]


def test_markdown_tables_are_well_formed(folder):
    blocks = (folder / "report.md").read_text(encoding="utf-8").split("\n\n")
    tables = [block.strip().splitlines() for block in blocks if block.strip().startswith("|")]
    assert len(tables) == 2 + 2 * 6
    for table in tables:
        assert set(table[1]) <= set("|-:"), table[1]
        assert {line.count("|") for line in table} == {table[0].count("|")}


def test_the_same_results_give_the_same_files(tmp_path):
    source = bare(tmp_path / "results.jsonl", ["dev", "test", "ood:law"], [{}, {"method": "blob"}])
    for name in ("once", "again"):
        write_report(source, tmp_path / name, resamples=50)
    once, again = ({f.name: f.read_bytes() for f in (tmp_path / name).rglob("*.*")} for name in ("once", "again"))
    assert once == again and len(once) == 6


def test_the_command_writes_the_report(tmp_path, capsys):
    comparison(tmp_path / "results.jsonl", METHODS[:2], TASKS[:1], (0,))
    main(["report", str(tmp_path), "--output_dir", str(tmp_path / "report")])
    assert str(tmp_path / "report" / "report.html") in capsys.readouterr().out
    main(["report", str(tmp_path), "--output_dir", str(tmp_path / "report"), "--json"])
    assert json.loads(capsys.readouterr().out) == {"report": str(tmp_path / "report" / "report.html")}
    page = read_page(tmp_path / "report" / "report.html")
    table = page.tables[TASKS[0], "Scores on the 160 test items"]
    assert "±" not in table["lora"]["NLL (nats) ↓"], "one seed has no deviation"
    assert "Not finished" not in page.text


def test_a_missing_file_is_an_error_with_a_remedy(tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(["report", str(tmp_path)])
    assert "bayeslora compare" in capsys.readouterr().err


# --- unfinished and unusual results ----------------------------------------------------------------------------------


def bare(path: Path, splits: Sequence[str], cells: Sequence[dict]) -> Path:
    """A file of one task with `splits`, and cells of the first method with these changes."""
    truths = {split: true_logits("arc_easy", split, 4) for split in splits}
    with Results.open(path, Header.now({"tasks": {"arc_easy": {}, "sciq": {}}}, "cpu")) as writing:
        for split, truth in truths.items():
            writing.append(split_items("arc_easy", split, truth, 4))
        for changes in cells:
            writing.append(dataclasses.replace(cell(METHODS[0], "arc_easy", 0, truths), **changes))
    return path


def test_a_comparison_that_has_only_begun(tmp_path):
    for name, cells in (("empty", []), ("selecting", [{"stage": "selection"}])):
        write_report(bare(tmp_path / name / "results.jsonl", ["dev", "test"], cells))
        page = read_page(tmp_path / name / "report.html")
        assert "No final run has ended yet." in page.text and "sciq: not started." in page.text
        assert not [address for address in page.addresses if address.startswith("data:image")]
    assert set(page.tables) == {("arc_easy", "Learning rates: NLL (nats) on the dev items")}


def test_a_config_of_another_making_is_only_shown(tmp_path):
    source = bare(tmp_path / "results.jsonl", ["test"], [{}])
    first, *others = source.read_text().splitlines(keepends=True)
    header = json.loads(first) | {"config": {"tasks": [{"name": "quiz"}], "steps": 7}}
    source.write_text(json.dumps(header) + "\n" + "".join(others))
    page = read_page(write_report(source))
    assert "Not finished" not in page.text and '"steps": 7' in page.text


def test_without_dev_and_other_tasks_their_parts_are_left_out(tmp_path):
    changes = {"peak_memory_bytes": None, "deterministic_seconds": None, "predict_items": None, "method": "ivon"}
    write_report(bare(tmp_path / "results.jsonl", ["test"], [changes]))
    page = read_page(tmp_path / "report.html")
    titles = {title for section, title in page.tables if section == "arc_easy"}
    assert titles == {
        "Scores on the 160 test items",
        "Cost, mean over seeds",
        "Learning rates: NLL (nats) on the dev items",
    }
    costs = page.tables["arc_easy", "Cost, mean over seeds"]["ivon"]
    assert "training / lora" not in costs
    unknown = {"peak memory (GiB)", "draws", "prediction (ms per item)", "prediction / one deterministic pass"}
    assert {name for name, text in costs.items() if text == "–"} == unknown


def test_rows_stand_in_the_order_of_the_config_with_derived_ones_behind_their_base(tmp_path):
    rows = {"bayesian_lora": {}, "blob": {}, "lora": {"temperature": True}}
    truths = {split: true_logits("arc_easy", split, 4) for split in ("dev", "test")}
    header = Header.now({"tasks": {"arc_easy": {}}, "rows": rows, "seeds": [0, 7]}, "cpu")
    with Results.open(tmp_path / "results.jsonl", header) as writing:
        for split, truth in truths.items():
            writing.append(split_items("arc_easy", split, truth, 4))
        for method in (METHODS[1], METHODS[0], METHODS[3], METHODS[2]):
            writing.append(cell(method, "arc_easy", 0, truths))
    page = read_page(write_report(tmp_path))
    order = ["bayesian_lora", "lora", "lora + temperature", "mc-dropout"]
    shown = list(page.tables["arc_easy", "Scores on the 160 test items"])
    assert shown == [f"{title} (1 of 2 seeds)" for title in order]
    rates = page.tables["arc_easy", "Learning rates: NLL (nats) on the dev items"]
    assert list(rates) == [title for title in order if "+" not in title]
    said = "arc_easy lacks seed 7 of bayesian_lora, lora, lora + temperature, mc-dropout; seeds 0, 7 of blob."
    assert said in " ".join(page.text.split())


def test_a_task_whose_own_link_is_the_mean_per_token_lacks_no_second_reading(tmp_path):
    first, second = TASKS
    truths = {task: {"test": true_logits(task, "test", 4)} for task in TASKS}
    again = Simulated("lora, mean per token", factor=2.5, error=0.6, derived_from="lora")
    with Results.open(tmp_path / "results.jsonl", Header.now({"tasks": dict.fromkeys(TASKS)}, "cpu")) as writing:
        for task in TASKS:
            writing.append(split_items(task, "test", truths[task]["test"], 4))
        for seed in (0, 1):
            writing.append(cell(METHODS[0], second, seed, truths[second]))
            writing.append(cell(METHODS[0], first, seed, truths[first]))
        writing.append(cell(again, first, 0, truths[first], details={"reading": "mean per token"}))
    said = " ".join(read_page(write_report(tmp_path)).text.split())
    assert f"Not finished. {first} lacks seed 1 of lora, mean per token." in said and f"{second} lacks" not in said


def test_two_learning_rates_of_a_method_are_two_rows(tmp_path):
    write_report(bare(tmp_path / "results.jsonl", ["test"], [{}, {"learning_rate": 0.5}]))
    table = read_page(tmp_path / "report.html").tables["arc_easy", "Scores on the 160 test items"]
    assert set(table) == {"lora (learning rate 0.003)", "lora (learning rate 0.5)"}


@pytest.mark.parametrize(("temperatures", "remark"), [
    ((148.4, 1.7, 1.8), "2 of 3 seeds; predicts uniformly with seed 0"),
    ((148.4, 148.4, 0.0498), "predicts uniformly with seeds 0, 1; takes its first choice for certain with seed 2"),
])  # fmt: skip
def test_a_temperature_at_its_bound_is_marked_in_every_table_and_in_no_mean(tmp_path, temperatures, remark):
    truths = {split: true_logits("arc_easy", split, 4) for split in ("dev", "test")}

    def changes(seed: int, temperature: float) -> dict:
        drawn = {split: predictions(METHODS[0], truth, 50 + seed, False) for split, truth in truths.items()}
        details = {"temperature": temperature}
        row = {"method": "lora + temperature", "derived_from": "lora"}
        return {"seed": seed, **row, "details": details, "predictions": drawn}

    scaled = [changes(seed, temperature) for seed, temperature in enumerate(temperatures)]
    plain = [{"seed": seed} for seed in range(3)]
    source = bare(tmp_path / "results.jsonl", ["dev", "test"], [*plain, *scaled])
    page = read_page(write_report(source))
    shown = [(title, table) for (section, title), table in page.tables.items() if section]
    tables = [table for title, table in shown if not title.startswith(("Learning", "Cost"))]
    title = f"lora + temperature ({remark})"
    assert len(tables) == 2 and all(title in table for table in tables)
    assert all("+" not in row for title, table in shown if title.startswith("Cost") for row in table)
    found = page.tables["arc_easy", "Scores on the 160 test items"][title]
    if temperatures[1] > 100:
        assert set(found.values()) == {"–"}
    else:
        kept = final(Results.read(source), "arc_easy", "lora + temperature")[1:]
        labels = Results.read(source).items("arc_easy", "test").label_array()
        losses = [metrics.nll(cell.predictions["test"].padded(), labels) for cell in kept]
        nll_head = next(head for head in found if head.startswith("NLL"))
        assert found[nll_head].removeprefix("≈ ") == spread(losses)
    assert "lora" in page.tables["arc_easy", "Scores on the 160 test items"]
    assert "in no mean, mark or picture" in page.text


def test_too_few_dev_items_for_prediction_sets_are_said(tmp_path, recwarn):
    source = bare(tmp_path / "results.jsonl", ["dev", "test"], [{}])
    lines = [json.loads(line) for line in source.read_text().splitlines()]
    for line in lines:
        if line.get("split") == "dev":
            line |= {name: line[name][:5] for name in ("ids", "labels", "choices")}
        if line["kind"] == "cell":
            line["predictions"]["dev"] = {name: part[:5] for name, part in line["predictions"]["dev"].items()}
    source.write_text("".join(json.dumps(line) + "\n" for line in lines))
    page = read_page(write_report(source))
    assert page.tables["arc_easy", "Prediction sets at 90 %"]["lora"]["coverage"] == "1.000"
    assert "could not set a threshold" in page.text
    assert not [warning for warning in recwarn if "prediction set" in str(warning.message)]


def shown(page: Path, folder: Path, width: int) -> tuple[Image.Image, list[str]]:
    """A picture of the page in a browser that reaches no host, and the addresses on the network it asks for."""
    picture, log = folder / "screenshot.png", folder / "log.json"
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
    options += ["--disable-component-update", "--disable-sync", "--hide-scrollbars", f"--window-size={width},2400"]
    options += [
        "--host-resolver-rules=MAP * ~NOTFOUND",
        f"--log-net-log={log}",
        f"--user-data-dir={folder / 'profile'}",
    ]
    subprocess.run([CHROMIUM, *options, f"--screenshot={picture}", page.as_uri()], check=True, capture_output=True)
    asked = [event.get("params", {}) for event in json.loads(log.read_text())["events"]]
    # What the browser asks for by itself has no origin.
    urls = [
        entry["url"] for entry in asked if "url" in entry and entry.get("initiator", "not an origin") != "not an origin"
    ]
    return Image.open(picture).convert("RGB"), [url for url in urls if not url.startswith(("file:", "data:"))]


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium")
@pytest.mark.parametrize("width", [1280, 500])
def test_a_browser_shows_the_page_without_the_network(folder, tmp_path, width):
    image, asked = shown(folder / "report.html", tmp_path, width)
    assert image.size == (width, 2400)
    pixels = numpy.asarray(image)
    assert (pixels[0, 0] == 255).all(), "white background"
    dark = (pixels.max(-1) < 90).any(1)
    assert dark.mean() > 0.3 and dark[-800:].any(), "text all the way down"
    assert len(numpy.unique(pixels.reshape(-1, 3)[::7], axis=0)) > 50, "pictures in colour"
    assert asked == []


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium")
def test_a_page_that_asks_for_more_would_be_seen(tmp_path):
    page = tmp_path / "page.html"
    page.write_text('<img src="http://example.invalid/picture.png">')
    assert shown(page, tmp_path, 500)[1] == ["http://example.invalid/picture.png"]
