"""What a request may ask for: its body's bytes and time, and its items."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from bayeslora.deploy.serve.errors import Refused
from bayeslora.deploy.serve.schemas import ItemRequest
from bayeslora.deploy.serve.settings import Settings
from bayeslora.tasks import Item, TaskError

_DISCARDED, _PATIENCE = 2**20, 1.0
"""Bytes that are read of a body that is refused, and seconds."""


class BoundedBody:
    """Middleware that reads the body before anything else does, and refuses one that is too large or too slow.

    Args:
        app: What is served.
        max_bytes: Of a body; more is 413.
        timeout: Seconds in which a body has to arrive, else 408.
    """

    def __init__(self, app: ASGIApp, max_bytes: int, timeout: float):
        self.app = app
        self.max_bytes = max_bytes
        self.timeout = timeout

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        announced = Headers(scope=scope).get("content-length", "")
        if announced.isdecimal() and int(announced) > self.max_bytes:
            await _discard(receive)
            raise self._too_large(f"{announced} bytes")
        try:
            async with asyncio.timeout(self.timeout):
                body = await self._read(receive)
        except TimeoutError:
            text = f"expected the body within {self.timeout:g} seconds; send it faster, or less at once."
            raise Refused(408, "slow_body", text, headers={"Connection": "close"}) from None
        if body is None:
            return None
        first: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def again() -> Message:
            return first.pop() if first else await receive()

        return await self.app(scope, again, send)

    async def _read(self, receive: Receive) -> bytes | None:
        """The whole body; None from a client that went away."""
        body = bytearray()
        while True:
            message = await receive()
            if message["type"] != "http.request":
                return None
            body += message.get("body", b"")
            if len(body) > self.max_bytes:
                await _discard(receive, message)
                raise self._too_large("more")
            if not message.get("more_body", False):
                return bytes(body)

    def _too_large(self, came: str) -> Refused:
        text = f"expected a body of at most {self.max_bytes} bytes, got {came}; send fewer or shorter items at once."
        return Refused(413, "body_too_large", text, headers={"Connection": "close"})


async def _discard(receive: Receive, last: Message | None = None) -> None:
    """Read on for a while: a connection closed on bytes that wait is reset, and its client may never see the answer."""
    left = _DISCARDED
    with suppress(TimeoutError):
        async with asyncio.timeout(_PATIENCE):
            while left > 0 and (last is None or last.get("more_body", False)):
                last = await receive()
                left -= len(last.get("body", b""))


def checked_items(
    requested: Sequence[ItemRequest], settings: Settings, *, choices: Sequence[str] | None, classes: int | None
) -> list[Item]:
    """The items of a request.

    Args:
        requested: As they came.
        settings: The bounds.
        choices: Those of all items, for requests that leave them out.
        classes: Of the classification head, if there is one.

    Raises:
        Refused: A bound is exceeded, or an item is none (422).
    """
    if len(requested) > settings.max_items:
        text = f"expected at most {settings.max_items} items, got {len(requested)}; send them in several requests."
        raise Refused(422, "too_many_items", text, field="items")
    return [_checked(index, one, settings, choices, classes) for index, one in enumerate(requested)]


def _checked(index: int, one: ItemRequest, settings: Settings, own: Sequence[str] | None, classes: int | None) -> Item:
    where = f"items[{index}]"
    choices = tuple(own or ()) if one.choices is None else tuple(one.choices)
    if one.choices is None and own is None:
        raise Refused(422, "no_choices", f"{where} has no choices; give two or more texts.", field=f"{where}.choices")
    if len(choices) > settings.max_choices:
        text = f"expected at most {settings.max_choices} choices, got {len(choices)}; leave out the least likely ones."
        raise Refused(422, "too_many_choices", f"{where}: {text}", field=f"{where}.choices")
    for field, text in (("question", one.question), *(("choices", choice) for choice in choices)):
        if len(text) > settings.max_characters:
            expected = f"expected texts of at most {settings.max_characters} characters, got {len(text)}; shorten it."
            raise Refused(422, "text_too_long", f"{where}.{field}: {expected}", field=f"{where}.{field}")
    try:
        item = Item(one.id or f"item-{index}", one.question, choices, None)
    except TaskError as error:
        raise Refused(422, "wrong_item", str(error), field=where) from error
    if classes is not None:
        _check_classes(where, choices, own, classes)
    return item


def _check_classes(where: str, choices: tuple[str, ...], own: Sequence[str] | None, classes: int) -> None:
    """The choices are the classes of the head; an older run does not know their texts, and takes them by position."""
    if own is not None and not {choice.strip() for choice in choices} <= {name.strip() for name in own}:
        text = f"{where}: expected the classes {list(own)}, in any order, got {list(choices)}; or leave choices out."
        raise Refused(422, "wrong_classes", text, field=f"{where}.choices")
    if own is None and len(choices) != classes:
        expected = f"expected {classes} choices, one for each class of the model's head, got {len(choices)}"
        text = f"{where}: {expected}; give those that the run was trained with, in their order."
        raise Refused(422, "wrong_number_of_classes", text, field=f"{where}.choices")
