"""bayeslora train."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jsonargparse import ArgumentParser, Namespace

from bayeslora_cli.commands.base import ConfigCommand, add_option, add_usual, print_result
from bayeslora_cli.commands.scores import guess_said, main_scores, one_pass_said, scores_table

if TYPE_CHECKING:
    from bayeslora.runs.config import RunConfig


class Train(ConfigCommand):
    """Train an adapter."""

    name = "train"
    config_path = "bayeslora.runs.config.RunConfig"
    options_path = "bayeslora.runs.options.RunOptions"
    output = "Folder of the run (created)."
    distributed = True

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Where to write."""
        super().add_arguments(parser)
        add_usual(parser, "resume")
        said = "Folder of a decision model whose records come first and are not read again; it stays as it is."
        add_option(parser, "--extend", str, said)
        add_usual(parser, "overwrite")

    def run(self, options: Namespace, parser: ArgumentParser) -> None:
        """Prints the scores on dev, where things are, and what to do next."""
        from bayeslora.runs.decisions import is_decision_task

        config = self.config(options, parser)
        if is_decision_task(config.task) and (options.extend is not None or not _below(config)):
            self._decisions(options, config)
            return
        if options.extend is not None:
            raise ValueError(
                "--extend refits heads of a decision model: expected records of decisions as --task.name; another run "
                "goes on from an adapter by --method.init_from RUN."
            )
        from bayeslora.runs.beginning import note_batches
        from bayeslora.system.console import duration

        if config.method.adapts:
            note_batches(config)
        chosen = {"resume": options.resume, "overwrite": options.overwrite}
        trained = _training(config)(config, options.output_dir, **chosen)
        metrics = trained.metrics
        folder = Path(options.output_dir)
        adapter = folder / "adapter"
        # A head on frozen features has none.
        places = {"adapter": str(adapter)} if adapter.is_dir() else {"run": str(folder)}
        print_result(
            options,
            main_scores(metrics) | places,
            f"{config.method.name}: {_what_was_done(metrics)} in {duration(metrics['train_seconds'])}",
            f"\n{scores_table(metrics)}\n" if "split" in metrics else "",
            *(f"{name:<7}  {place}" for name, place in places.items()),
            f"scores   {folder / 'metrics.json'}",
            one_pass_said(metrics),
            _against_a_guess(config, trained),
            _next(config, shlex.quote(options.output_dir)),
        )

    def _decisions(self, options: Namespace, config: RunConfig) -> None:
        """Records of typed decisions: a head for each question, and no adapter."""
        from bayeslora.runs.decisions import train_decisions

        metrics = train_decisions(config, options.output_dir, overwrite=options.overwrite, extend=options.extend)
        lines = (
            f"{name}: {one['labels']} labels, leave-one-out NLL {one['nll']:.3f} nats"
            for name, one in metrics["leave_one_out"].items()
        )
        here = shlex.quote(options.output_dir)
        before = metrics.get("records_before")
        said = "" if before is None else f"{before} records of before, {metrics['records'] - before} new"
        print_result(
            options, metrics, said, *lines, f"next     bayeslora decide {here} < request.json, or calibrate, or serve"
        )


def _below(config: RunConfig) -> bool:
    """Whether an adapter is trained below what reads records of decisions."""
    from bayeslora.scoring import get_scoring

    return get_scoring(config.task.scoring).of_decisions and (config.method.adapts or config.task.scoring != "heads")


def _training(config: RunConfig) -> Callable[..., Any]:
    """What trains a run."""
    if _below(config):
        from bayeslora.runs.decisions import train_adapted

        return train_adapted
    if config.task.scoring == "text":
        from bayeslora.runs.language_modelling import train_texts

        return train_texts
    from bayeslora.runs import train

    return train


def _against_a_guess(config: RunConfig, trained: Any) -> str:
    """A word where a training on items has not learned more of dev than their choices' numbers and frequencies."""
    from bayeslora.runs.items import guess_nll

    if config.task.scoring == "text" or trained.metrics.get("split") != "dev":
        return ""
    return guess_said(trained.metrics["nll"], guess_nll(trained.splits))


def _next(config: RunConfig, here: str) -> str:
    if not _below(config):
        return f"next     bayeslora evaluate {here}"
    return f"next     bayeslora decide {here} < request.json, or evaluate, calibrate, or serve"


def _what_was_done(metrics: Mapping[str, Any]) -> str:
    count = metrics["trainable_parameters"]
    return f"{count:,} trainable parameters, trained" if count else "a head on the model as it is, fitted"
