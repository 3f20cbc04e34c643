"""bayeslora generate."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from jsonargparse import ArgumentParser, Namespace

from bayeslora_cli.commands.base import Command, add_switch, add_usual, print_result

_PICTURED = 8


class Generate(Command):
    """Generate text from prompts and mark where the posterior's draws disagree."""

    name = "generate"

    def add_arguments(self, parser: ArgumentParser) -> None:
        """The run, the prompts, how to decode, and what counts as unsure."""
        add = parser.add_argument
        add("run", type=str, help="Folder of the run, or its Hub id.")
        add("--prompt", type=str | None, default=None, help="One prompt.")
        add("--input", type=str | None, default=None, help='JSONL, CSV or Parquet file with a column "prompt".')
        add("--output", type=str | None, default=None, help="JSONL file to write; default: print the texts.")
        add("--picture", type=str | None, default=None, help=f"PNG of the first {_PICTURED} texts, coloured by token.")
        said = "Posterior draws, a number; default: the run's; 0: the mean."
        add("--num_samples", type=int | Literal["auto"] | None, default=None, help=said)
        add("--max_new_tokens", type=int, default=64, help="Tokens to generate at most.")
        add_switch(parser, "--do_sample", "Draw tokens instead of taking the most probable one.")
        add("--temperature", type=float, default=1.0, help="With do_sample: divides the logits.")
        add("--top_k", type=int, default=0, help="With do_sample: only the k most probable tokens; 0: all.")
        add("--top_p", type=float, default=1.0, help="With do_sample: only the most probable tokens up to this mass.")
        add("--repetition_penalty", type=float, default=1.0, help="Above 1: tokens of the text so far count less.")
        add("--seed", type=int | None, default=None, help="Of draws and tokens; default: the run's.")
        add("--batch_size", type=int, default=8, help="Prompts at once.")
        add_switch(parser, "--raw", "Take prompts as they are, not as what a user says in a chat.")
        said = "Nats above which a token is unsure; default: what a tenth of the run's own tokens on dev texts exceeds."
        add("--unsure_above", type=float | None, default=None, help=said)
        said = "What makes a token unsure: disagreement of the draws, or all uncertainty."
        measures = Literal["mutual_information", "entropy"]
        add("--unsure_by", type=measures, default="mutual_information", help=said)
        add_usual(parser, "device", "overwrite", "json")

    def run(self, options: Namespace, parser: ArgumentParser) -> None:
        """Writes the records, or prints the texts with their unsure spans."""
        if (options.prompt is None) == (options.input is None):
            parser.error("generate needs either --prompt or --input, and one of them only")
        from bayeslora.runs.prediction import write_rows
        from bayeslora.system.folders import to_be_written

        with to_be_written(options.output, options.picture, overwrite=options.overwrite):
            records = self._records(options)
            if options.picture is not None:
                _draw(options.picture, records[:_PICTURED], options.unsure_by)
            if options.output is not None:
                write_rows(options.output, records)
        _report(options, records)

    def _records(self, options: Namespace) -> list[dict[str, Any]]:
        from bayeslora.runs import load_run
        from bayeslora.runs.generate import generate_records, read_prompts
        from bayeslora.system.console import say

        prompts = [{"prompt": options.prompt}] if options.input is None else read_prompts(options.input)
        warpers = ("temperature", "top_k", "top_p") if options.do_sample else ()
        names = ("num_samples", "seed", "raw", "batch_size", "max_new_tokens", "do_sample", "repetition_penalty")
        records = generate_records(
            load_run(options.run, device=options.device),
            prompts,
            threshold=options.unsure_above,
            measure=options.unsure_by,
            **{name: options[name] for name in (*names, *warpers)},
        )
        if options.num_samples != 0 and not records[0]["num_samples"]:
            said = "this method has no draws of weights: the point estimate generates, and mutual information is 0"
            say(said)
        return records


def _report(options: Namespace, records: list[dict[str, Any]]) -> None:
    """The texts, unless they are in a file, and how much of them is unsure."""
    tokens = sum(len(record["tokens"]) for record in records)
    unsure = sum(span["end"] - span["start"] for record in records for span in record["unsure"])
    printed = records if options.output is None else []
    print_result(
        options,
        {"texts": len(records), "tokens": tokens, "unsure_tokens": unsure, "records": printed},
        *map(_shown, printed),
        f"{unsure} of {tokens} tokens are unsure",
        f"texts: {options.output}" if options.output is not None else "",
        f"picture: {options.picture}" if options.picture is not None else "",
    )


def _draw(path: str, records: list[dict[str, Any]], measure: Literal["mutual_information", "entropy"]) -> None:
    from bayeslora.prediction.generation.picture import uncertainty_picture
    from bayeslora.system.files import atomic_file

    with atomic_file(path) as aside:
        aside.write_bytes(uncertainty_picture(records, measure))


def _shown(record: Mapping[str, Any]) -> str:
    """The text, and below it its unsure spans."""
    spans = [f"  {span['value']:.3f} nats: {span['text'].strip()!r}" for span in record["unsure"]]
    return "\n".join([str(record["text"]).strip(), *(["unsure:", *spans] if spans else [])])
