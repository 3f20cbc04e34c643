"""bayeslora serve."""

from __future__ import annotations

from typing import ClassVar

from jsonargparse import ArgumentParser, Namespace

from bayeslora_cli.commands.base import Command, add_device


class Serve(Command):
    """Serves a run over HTTP."""

    name: ClassVar[str] = "serve"
    description: ClassVar[str] = "Serve a run over HTTP, with a page to try it in a browser."

    def add_arguments(self, parser: ArgumentParser) -> None:
        """The run, the address, and every field of Settings."""
        from bayeslora.deploy.serve.settings import Settings

        parser.add_argument("run", type=str, help="Folder of the run, or its Hub id.")
        parser.add_argument(
            "--host", type=str, default="127.0.0.1", help="Address to listen at; the default is reached from here only."
        )
        parser.add_argument("--port", type=int, default=8000, help="Port to listen at; 0: a free one.")
        add_device(parser)
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
