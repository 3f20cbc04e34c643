"""bayeslora plan."""

from __future__ import annotations

import sys

from jsonargparse import ArgumentParser, Namespace

from bayeslora_cli.commands.base import Command, add_usual, print_result


class Plan(Command):
    """Parameters, memory and passes of a config, without weights; what would make it fit."""

    name = "plan"

    def add_arguments(self, parser: ArgumentParser) -> None:
        """The config and the device."""
        parser.add_argument("config", type=str, help="YAML of bayeslora train, or of bayeslora compare.")
        parser.add_argument("--gpu_memory", type=str, required=True, help="Of one device, such as 80GB or 24GiB.")
        parser.add_argument("--headroom", type=float, default=0.1, help="Share of it that is left free.")
        parser.add_argument("--architecture", type=str | None, default=None, help="config.json of the base model.")
        parser.add_argument("--tokens", type=int | None, default=None, help="Tokens of the longest item.")
        parser.add_argument("--answer_tokens", type=int | None, default=None, help="Tokens of its choices (cloze).")
        parser.add_argument("--output", type=str | None, default=None, help="JSON file to write the plan to.")
        add_usual(parser, "json")

    def run(self, options: Namespace, parser: ArgumentParser) -> None:
        """Prints the plan."""
        from bayeslora.planning import Budget, PlanOptions, as_record, as_text, make_plan, parse_bytes
        from bayeslora.planning.config_files import parse_run_or_comparison
        from bayeslora.system.files import write_json

        given = PlanOptions(
            Budget(parse_bytes(options.gpu_memory), options.headroom),
            options.architecture,
            options.tokens,
            options.answer_tokens,
        )
        config = parse_run_or_comparison(options.config)
        plan = make_plan(config, given, lambda text: print(f"planning: {text}", file=sys.stderr))
        print_result(options, as_record(plan), as_text(plan))
        if options.output is not None:
            write_json(options.output, as_record(plan))
