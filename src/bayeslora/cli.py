"""The command line: `bayeslora train | evaluate | predict | compare | report | demo`."""

from __future__ import annotations

import dataclasses
import difflib
import json
import logging
import os
import re
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from jsonargparse import ArgumentParser, Namespace
from safetensors import SafetensorError

from bayeslora.comparison.config import CompareConfig
from bayeslora.config import RunConfig
from bayeslora.methods import method_classes

__all__ = ["dump_config", "main", "parse_config"]


class _Parser(ArgumentParser):
    """Says the nearest right name where an option, key or method is unknown, and leaves the long usage out."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        hint = _nearest(message)
        if not self.exit_on_error:
            raise ValueError(message + hint) from ex
        print(f"error: {message}{hint}\nSee `{self.prog} --help`.", file=sys.stderr)
        raise SystemExit(2) from ex


def _nearest(message: str) -> str:
    """A hint for the unknown name in an error message of jsonargparse; "" where nothing is near."""
    methods = {method.__name__: method.argument_names() for method in method_classes()}
    options = [action.dest for parser in _parsers()[1].values() for action in parser._actions]
    options += [name for names in methods.values() for name in names]
    named = {
        r"[Uu]nrecognized arguments: --([\w.]+)": options,
        r"(?:[Kk]ey|[Oo]ption|[Gg]roup) '([\w.]+)' is not (?:expected|accepted)": options,
        r"does not accept option '([\w.]+)'": options,
        r"dot import path string: ([\w.]+)": list(methods),
        r"class_path '([\w.]+)'": list(methods),
        r"invalid choice: '?(\w+)'?": list(_COMMANDS),
    }
    for pattern, candidates in named.items():
        for found in re.findall(pattern, message):
            close = difflib.get_close_matches(found, candidates, n=1)
            if close and found not in candidates and "Did you mean" not in message:
                return f" Did you mean {close[0]!r}?"
    return ""


def _run_parser() -> ArgumentParser:
    parser = _Parser(description="Train an adapter.")
    parser.add_argument("--config", action="config", help="YAML file with any of the options below.")
    parser.add_class_arguments(RunConfig, nested_key=None)
    return parser


def _parsers() -> tuple[ArgumentParser, dict[str, ArgumentParser]]:
    train = _run_parser()
    train.add_argument("--output_dir", type=str, required=True, help="Folder of the run (created).")
    train.add_argument("--resume", type=bool, default=False, help="Go on from the newest complete checkpoint.")

    evaluate = _Parser(description="Score a run: metrics.json, predictions.jsonl, reliability.png.")
    evaluate.add_argument("run", type=str, help="Folder of the run.")
    evaluate.add_argument("--task", type=str | None, default=None, help="Another task than the run's own.")
    evaluate.add_argument("--split", type=str, default="test", help="test or dev.")
    evaluate.add_argument("--num_samples", type=int | None, default=None, help="Posterior draws; default: the run's.")
    evaluate.add_argument("--examples", type=int | None, default=None, help="Use only this many items.")
    evaluate.add_argument("--output_dir", type=str | None, default=None, help="Default: the run's folder.")

    predict = _Parser(description="Predict the items of a local file.")
    predict.add_argument("run", type=str, help="Folder of the run.")
    predict.add_argument("--input", type=str, required=True, help="JSONL, CSV or Parquet file of items.")
    predict.add_argument("--output", type=str, required=True, help="JSONL file to write.")
    predict.add_argument("--num_samples", type=int | None, default=None, help="Posterior draws; default: the run's.")
    predict.add_argument(
        "--abstain_above",
        type=float | None,
        default=None,
        help="Entropy (nats) above which an item says abstain.",
    )
    predict.add_argument(
        "--coverage",
        type=float | None,
        default=None,
        help="Add sets of choices that hold the right one with this probability (conformal, calibrated on dev).",
    )

    demo = _Parser(description="Plain LoRA and Bayesian-LoRA on a small split of ARC-Easy, compared.")
    demo.add_argument("--output_dir", type=str, default="runs/demo", help="Folder for both runs, table and picture.")
    demo.add_argument("--seed", type=int, default=0, help="Seed of initialisation, data order and draws.")

    compare = _Parser(description="Methods x tasks x seeds under one protocol; goes on where it stopped.")
    compare.add_argument("--config", action="config", help="YAML file with any of the options below.")
    compare.add_class_arguments(CompareConfig, nested_key=None)
    compare.add_argument("--output_dir", type=str, required=True, help="Folder for results.jsonl, report and runs.")

    report = _Parser(description="Tables and pictures of a comparison: report.html, report.md, pictures/.")
    report.add_argument("results", type=str, help="Results file of a comparison, or the folder with results.jsonl.")
    report.add_argument("--output_dir", type=str | None, default=None, help="Default: the folder of the results file.")

    parsers: dict[str, ArgumentParser] = {
        "train": train,
        "evaluate": evaluate,
        "predict": predict,
        "compare": compare,
        "report": report,
        "demo": demo,
    }
    parser = _Parser(prog="bayeslora", description="Calibrated LoRA adapters by Bayesian-LoRA (arXiv 2601.21003).")
    commands = parser.add_subcommands(required=True, dest="command")
    for name, subparser in parsers.items():
        commands.add_subcommand(name, subparser, help=subparser.description)
    return parser, parsers


def parse_config(path: str | Path) -> RunConfig:
    """The RunConfig of a YAML file.

    Raises:
        ValueError: A key or value is wrong; the message has the nearest right name.
    """
    parser = _run_parser()
    parser.exit_on_error = False
    return _run_config(parser, parser.parse_path(str(path)))


def dump_config(config: RunConfig) -> str:
    """YAML that `parse_config` and `bayeslora train --config` read: every option, also those at their default.

    Raises:
        ValueError: The config was built in Python with a method whose arguments are not known.
    """
    parser = _run_parser()
    settings = {name: getattr(config, name) for name in RunConfig.__dataclass_fields__ if name != "method"}
    settings = {
        name: value if isinstance(value, int) else dataclasses.asdict(value) for name, value in settings.items()
    }
    settings["method"] = {
        "class_path": f"{type(config.method).__module__}.{type(config.method).__qualname__}",
        "init_args": config.method.arguments,
    }
    return str(parser.dump(parser.parse_object(settings), skip_none=False))


def _run_config(parser: ArgumentParser, parsed: Namespace) -> RunConfig:
    built = parser.instantiate_classes(parsed)
    return RunConfig(**{name: built[name] for name in RunConfig.__dataclass_fields__})


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of the `bayeslora` command; exits with 2 for a wrong call and 1 for a run that failed."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("bayeslora").setLevel(logging.INFO)
    # Renamings inside PEFT and transformers that a user of the command can do nothing about.
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    parser, parsers = _parsers()
    parsed = parser.parse_args(None if arguments is None else list(arguments))
    try:
        _COMMANDS[parsed.command](parsed[parsed.command], parsers[parsed.command])
    except _EXPECTED as error:
        if os.environ.get("BAYESLORA_DEBUG"):
            raise
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(1) from error


_EXPECTED = (ValueError, TypeError, OSError, ImportError, LookupError, ArithmeticError, RuntimeError, SafetensorError)
"""What wrong input, a broken file or a failed run raise; with BAYESLORA_DEBUG=1 the traceback is shown."""


def _train(options: Namespace, parser: ArgumentParser) -> None:
    from bayeslora.runs import train

    trained = train(_run_config(parser, options), options.output_dir, resume=options.resume)
    print(_line(trained.metrics))
    print(f"adapter: {Path(options.output_dir) / 'adapter'}")


def _evaluate(options: Namespace, parser: ArgumentParser) -> None:
    from bayeslora.runs import evaluate

    chosen = {name: options[name] for name in ("task", "split", "num_samples", "examples", "output_dir")}
    print(_line(evaluate(options.run, **chosen)))


def _predict(options: Namespace, parser: ArgumentParser) -> None:
    from bayeslora.runs import predict_file

    rows = predict_file(
        options.run,
        options.input,
        options.output,
        num_samples=options.num_samples,
        abstain_above=options.abstain_above,
        coverage=options.coverage,
    )
    print(f"{len(rows)} predictions: {options.output}")
    if options.coverage is not None:
        alone = sum(len(row["set"]) == 1 for row in rows)
        print(f"{alone} of {len(rows)} items have a set of one choice (coverage {options.coverage})")


def _compare(options: Namespace, parser: ArgumentParser) -> None:
    from bayeslora.comparison.runner import compare
    from bayeslora.report import write_report

    names = CompareConfig.__dataclass_fields__
    described = {
        name: value for name, value in json.loads(parser.dump(options, format="json")).items() if name in names
    }
    built = parser.instantiate_classes(options)
    compare(CompareConfig(**{name: built[name] for name in names}), options.output_dir, described)
    print(f"report: {write_report(options.output_dir)}")


def _report(options: Namespace, parser: ArgumentParser) -> None:
    from bayeslora.report import write_report

    print(f"report: {write_report(options.results, options.output_dir)}")


def _demo(options: Namespace, parser: ArgumentParser) -> None:
    from bayeslora.demo import demo

    print(demo(options.output_dir, seed=options.seed))


def _line(metrics: dict[str, Any]) -> str:
    names = ("method", "task", "split", "accuracy", "nll", "ece", "brier", "num_examples", "num_samples")
    return json.dumps({name: metrics[name] for name in names if name in metrics})


_COMMANDS = {
    "train": _train,
    "evaluate": _evaluate,
    "predict": _predict,
    "compare": _compare,
    "report": _report,
    "demo": _demo,
}
