"""What a server is told when it starts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What is answered, how items share forwards, and what a request may ask for.

    Args:
        abstain_above: Entropy (nats) above which an item says abstain; default: no item says anything.
        coverage: Add sets of choices that hold the right one with this probability (conformal, calibrated on dev).
        num_samples: Posterior draws where a request does not say; default: the run's; 0: the posterior
            mean; "auto": of each item until its answer is settled.
        batch_size: Items in one forward; default: the run's; 1: no batching.
        max_wait_ms: Milliseconds that an item waits for others to share its forward.
        queue_items: Items that may wait; a request beyond them is answered 503.
        timeout: Seconds that a request may take, its waiting included; then it is answered 504.
        max_body_bytes: Bytes of a request's body; more is answered 413.
        max_items: Items of a request.
        max_choices: Choices of an item.
        max_characters: Characters of a question or a choice.
        max_samples: Posterior draws that a request may ask for.
        allowed_hosts: Names in the Host header that are served, such as "example.org" or "*.example.org"; default:
            those of this machine where the server is bound to loopback, else all.
        api_key: Name of the environment variable that holds the key which clients must send; default: none is asked
            for.

    Raises:
        ValueError: A number is out of its range.
    """

    abstain_above: float | None = None
    coverage: float | None = None
    num_samples: int | Literal["auto"] | None = None
    batch_size: int | None = None
    max_wait_ms: float = 5.0
    queue_items: int = 512
    timeout: float = 30.0
    max_body_bytes: int = 1_000_000
    max_items: int = 64
    max_choices: int = 26
    max_characters: int = 20_000
    max_samples: int = 64
    allowed_hosts: list[str] | None = None
    api_key: str | None = None

    def __post_init__(self) -> None:
        for name in ("batch_size", "queue_items", "max_body_bytes", "max_items", "max_characters", "max_samples"):
            self._check(name, getattr(self, name), 1)
        for name in ("abstain_above", "max_wait_ms"):
            self._check(name, getattr(self, name), 0)
        if isinstance(self.num_samples, str) and self.num_samples != "auto":
            raise ValueError(f'num_samples must be a number or "auto", got {self.num_samples!r}.')
        if self.num_samples != "auto":
            self._check("num_samples", self.num_samples, 0)
        self._check("max_choices", self.max_choices, 2)
        self._check("queue_items", self.queue_items, self.max_items, " (max_items: a request must fit into the queue)")
        if not self.timeout > 0:
            raise ValueError(f"timeout must be above 0 seconds, got {self.timeout}.")
        if any("*" in host.removeprefix("*.") and host != "*" for host in self.allowed_hosts or ()):
            raise ValueError(
                f"allowed_hosts must be names, '*.' and a name, or '*' for all, got {self.allowed_hosts}; a port is "
                "not part of them."
            )

    @staticmethod
    def _check(name: str, value: float | None, least: float, why: str = "") -> None:
        if value is not None and not value >= least:
            raise ValueError(f"{name} must be at least {least}{why}, got {value}.")
