"""bayeslora serve."""

from __future__ import annotations

from jsonargparse import ArgumentParser, Namespace

from bayeslora_cli.commands.base import Command, add_option, add_usual


class Serve(Command):
    """Serve a run over HTTP, with a page to try it in a browser."""

    name = "serve"

    def add_arguments(self, parser: ArgumentParser) -> None:
        """The run, the address, and every field of Settings."""
        from bayeslora.deploy.serve.settings import Settings

        parser.add_argument("run", type=str, help="Folder of the run, or its Hub id.")
        said = "Address to listen at; the default is reached from here only."
        add_option(parser, "--host", str, said, "127.0.0.1")
        add_option(parser, "--port", int, "Port to listen at; 0: a free one.", 8000)
        add_usual(parser, "device")
        parser.add_class_arguments(Settings, nested_key=None)

    def run(self, options: Namespace, parser: ArgumentParser) -> None:
        """Prints the address, and ends with SIGTERM or Ctrl+C."""
        from bayeslora.deploy.serve.settings import Settings
        from bayeslora.options.parsing import instantiate

        try:
            from bayeslora.deploy.serve.server import serve
        except ModuleNotFoundError as error:
            if error.name not in ("fastapi", "uvicorn", "prometheus_client"):
                raise
            raise ImportError(
                f'{error.name} is not installed; install what serving needs with pip install "bayeslora[serve]".'
            ) from error
        where = {name: options[name] for name in ("host", "port", "device")}
        serve(options.run, instantiate(parser, options, Settings), **where)
