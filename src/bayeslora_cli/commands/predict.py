"""bayeslora predict."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

from jsonargparse import ArgumentParser, Namespace

from bayeslora_cli.commands.base import Command, add_num_samples, add_option, add_usual, print_result
from bayeslora_cli.commands.files import add_file_layout, file_layout


class Predict(Command):
    """Predict the items of a local file."""

    name = "predict"
    distributed = True

    def add_arguments(self, parser: ArgumentParser) -> None:
        """The run, the files, and when to abstain."""
        parser.add_argument("run", type=str, help="Folder of the run, or its Hub id.")
        parser.add_argument("--input", type=str, required=True, help="JSONL, CSV or Parquet file of items.")
        parser.add_argument("--output", type=str, required=True, help="JSONL file to write.")
        add_file_layout(parser)
        add_num_samples(parser)
        add_option(parser, "--abstain_above", float, "Entropy (nats) above which an item says abstain.")
        said = "Add sets of choices that hold the right one with this probability (conformal, calibrated on dev)."
        add_option(parser, "--coverage", float, said)
        add_usual(parser, "device", "overwrite", "json")

    def run(self, options: Namespace, parser: ArgumentParser) -> None:
        """Prints how many items there were, how many the model abstains from, and how large the sets are."""
        from bayeslora.runs import predict_file

        chosen = {name: options[name] for name in ("num_samples", "abstain_above", "coverage", "device", "overwrite")}
        rows = predict_file(options.run, options.input, options.output, **chosen, file_layout=file_layout(options))
        found: dict[str, Any] = {"items": len(rows), "output": options.output}
        if options.abstain_above is not None:
            found["abstained"] = sum(row["abstain"] for row in rows)
        if options.coverage is not None:
            found["set_sizes"] = dict(sorted(Counter(len(row["set"]) for row in rows).items()))
        print_result(options, found, *_in_words(found, options))


def _in_words(found: dict[str, Any], options: Namespace) -> Iterator[str]:
    items = found["items"]
    yield f"{items} predictions: {options.output}"
    if "abstained" in found:
        yield f"abstained from {found['abstained']} of {items} (entropy above {options.abstain_above:g} nats)"
    if "set_sizes" in found:
        sizes = found["set_sizes"]
        mean = sum(size * count for size, count in sizes.items()) / max(1, items)
        counts = ", ".join(f"{count} with {size}" for size, count in sizes.items())
        yield f"sets of coverage {options.coverage:.0%}: {mean:.2f} choices on average (items: {counts})"
