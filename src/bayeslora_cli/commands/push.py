"""bayeslora push."""

from __future__ import annotations

from jsonargparse import ArgumentParser, Namespace

from bayeslora_cli.commands.base import Command, add_usual, print_result


class Push(Command):
    """Publish a run on the Hugging Face Hub, with a model card; log in by `hf auth login`."""

    name = "push"

    def add_arguments(self, parser: ArgumentParser) -> None:
        """The run, where it goes, and what the card says."""
        add = parser.add_argument
        add("run", type=str, help="Folder of the run.")
        add("--repo_id", type=str, required=True, help="Repository on the Hub, user/name; made if it does not exist.")
        add("--private", action="store_true", help="Make a private repository.")
        add("--revision", type=str | None, default=None, help="Branch to commit to; default: main.")
        add("--base_model", type=str | None, default=None, help="Hub id of the base model, where the run has a folder.")
        add("--datasets", type=list[str] | None, default=None, help="Hub ids of the data; default: the task's.")
        add("--license", type=str, default="unknown", help="Of the adapter, as the Hub names it, such as apache-2.0.")
        add("--baseline", type=str | None, default=None, help="Folder of a run on the same items to compare with.")
        add("--include", type=list[str], default=[], help='Further files to publish, such as ["predictions.jsonl"].')
        add("--output_dir", type=str | None, default=None, help="Write to this folder instead, to look at it first.")
        add_usual(parser, "json")

    def run(self, options: Namespace, parser: ArgumentParser) -> None:
        """Prints where it is."""
        from bayeslora.deploy.hub import push_to_hub, write_hub_folder

        chosen = {name: options[name] for name in ("base_model", "datasets", "license", "baseline", "include")}
        if options.output_dir is not None:
            folder = str(write_hub_folder(options.run, options.output_dir, options.repo_id, **chosen))
            print_result(
                options, {"folder": folder}, f"to push: {folder}", "next     the same command without --output_dir"
            )
            return
        where = {"private": options.private, "revision": options.revision}
        address = str(push_to_hub(options.run, options.repo_id, **where, **chosen))
        print_result(options, {"pushed": address}, f"pushed: {address}")
