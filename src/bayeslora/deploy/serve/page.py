"""The page to try a run in a browser: one file without the network."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup


def page(model: Mapping[str, Any], kind: str = "page") -> str:
    """The HTML of the page.

    Args:
        model: What the template shows: of "page" what /v1/model says.
        kind: "page" of a run of items, "decisions" of a decision model.
    """
    environment = Environment(
        loader=PackageLoader("bayeslora.deploy.serve"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    # Options of a question stand in an order; Jinja would sort them.
    environment.policies["json.dumps_kwargs"] = {"sort_keys": False}
    template = environment.get_template(f"{kind}.html.j2")
    return template.render(model=model, style=Markup(_text("page.css")), script=Markup(_script(kind)))


def page_policy(kind: str = "page") -> str:
    """Its Content-Security-Policy: its own style and script, requests to its own server, and nothing else."""
    style, script = _hash(_text("page.css")), _hash(_script(kind))
    return (
        f"default-src 'none'; style-src {style}; script-src {script}; connect-src 'self'; "
        "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


def _text(name: str) -> str:
    return (files("bayeslora.deploy.serve") / "templates" / name).read_text(encoding="utf-8")


def _script(kind: str) -> str:
    return f"{_text('common.js')}\n{_text(f'{kind}.js')}"


def _hash(text: str) -> str:
    digest = hashlib.sha256(text.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"
