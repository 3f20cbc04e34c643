"""The page to try a run in a browser: one file without the network."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

__all__ = ["page", "page_policy"]


def page(model: Mapping[str, Any]) -> str:
    """The HTML of the page.

    Args:
        model: What /v1/model says.
    """
    environment = Environment(
        loader=PackageLoader("bayeslora.deploy.serve"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    template = environment.get_template("page.html.j2")
    return template.render(model=model, style=Markup(_text("page.css")), script=Markup(_text("page.js")))


def page_policy() -> str:
    """Its Content-Security-Policy: its own style and script, requests to its own server, and nothing else."""
    return (
        f"default-src 'none'; style-src {_hash('page.css')}; script-src {_hash('page.js')}; connect-src 'self'; "
        "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


def _text(name: str) -> str:
    return (files("bayeslora.deploy.serve") / "templates" / name).read_text(encoding="utf-8")


def _hash(name: str) -> str:
    digest = hashlib.sha256(_text(name).encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"
