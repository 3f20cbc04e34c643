"""Runs the app until SIGTERM or Ctrl+C; requests under way are answered first."""

from __future__ import annotations

import math
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import uvicorn
from fastapi import FastAPI

from bayeslora.deploy.serve.app import create_app
from bayeslora.deploy.serve.connections import http_protocol
from bayeslora.deploy.serve.decisions.app import create_decision_app
from bayeslora.deploy.serve.security import allowed_hosts, is_loopback
from bayeslora.deploy.serve.settings import Settings
from bayeslora.models import offline_models
from bayeslora.runs import load_run
from bayeslora.runs.decisions import DecisionModel, is_decision_folder


class _Server(uvicorn.Server):
    """Says when it can be reached."""

    def __init__(self, config: uvicorn.Config, greeting: str):
        super().__init__(config)
        self.greeting = greeting

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """As the base class."""
        await super().startup(sockets)
        if self.started:
            print(self.greeting, flush=True)


def serve(
    run: str, settings: Settings, *, host: str = "127.0.0.1", port: int = 8000, device: str | None = None
) -> None:
    """Serve a run over HTTP.

    Args:
        run: The run folder, or the Hub id of a pushed run; the folder of a decision model; or an offline model or
            the folder of a base model, which then answers typed questions without any training.
        settings: See `Settings`.
        host: Address to listen at.
        port: 0 for a free one.
        device: As `bayeslora.load_run`.

    Raises:
        OSError: The address cannot be listened at, or there is no such run.
        ValueError: The run cannot be loaded, or the prediction sets cannot be calibrated.
    """
    listener = _bound(host, port)
    try:
        with _sigterm_like_ctrl_c():
            _serve(run, settings, host, listener, device)
    except KeyboardInterrupt:
        print("ended")
    finally:
        listener.close()


def _serve(run: str, settings: Settings, host: str, listener: socket.socket, device: str | None) -> None:
    app = _app(run, settings, allowed_hosts(host, settings.allowed_hosts), device)
    if not is_loopback(host) and settings.api_key is None:
        print(f"warning: {host} can be reached from other machines, and there is no authentication.", flush=True)
    shown = f"[{host}]" if ":" in host else host
    greeting = f"serving {run} at http://{shown}:{listener.getsockname()[1]} (Ctrl+C ends it)"
    config = uvicorn.Config(
        app,
        http=http_protocol(settings.timeout),
        log_config=None,
        access_log=False,
        ws="none",
        server_header=False,
        timeout_graceful_shutdown=math.ceil(settings.timeout) + 1,
    )
    _Server(config, greeting).run(sockets=[listener])


def _app(run: str, settings: Settings, hosts: list[str], device: str | None) -> FastAPI:
    """A decision model, a base model as one without training, or any other run."""
    if is_decision_folder(run):
        return create_decision_app(DecisionModel.load(run, device=device), run, settings, hosts=hosts)
    if run in offline_models() or (Path(run) / "tokenizer_config.json").is_file():
        model = DecisionModel(run, readout="codes", device=device or "auto")
        return create_decision_app(model, run.removeprefix("offline:"), settings, hosts=hosts)
    return create_app(load_run(run, device=device), run, settings, hosts=hosts)


@contextmanager
def _sigterm_like_ctrl_c() -> Iterator[None]:
    """Both end in good order; uvicorn then raises the signal again for whoever handled it before, which is this."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _bound(host: str, port: int) -> socket.socket:
    """Before the model is loaded, so that a port in use is known at once; nobody can connect yet."""
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except (OSError, OverflowError) as error:
        listener.close()
        raise OSError(f"cannot listen at {host} port {port}: {error}; choose another --port or --host.") from error
    return listener
