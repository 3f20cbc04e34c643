"""What became of one attempt."""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

KINDS = ("clear", "unclear", "traceback", "accepted", "lost")

_REMEDY = re.compile(
    r"did you mean|expected|should|must|use |choose|correct|remove|check|give |set |leave|name |write |put |take |"
    r"train |again|see `|one of|instead|install|load |lower|raise |copy |download|convert|rename|add |send |shorten ",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Attempt:
    """One attempt and its outcome.

    Args:
        area: What was attacked, such as "config".
        what: The attempt in a few words.
        kind: One of `KINDS`.
        said: The message, or what was lost.
    """

    area: str
    what: str
    kind: str
    said: str = ""


def judged(area: str, what: str, status: int, said: str, named: Sequence[Sequence[str]]) -> Attempt:
    """The outcome of a call that must be refused.

    Clear: the exit status is 1 or 2, there is no traceback, and the message has a remedy and, of each of `named`, one
    of the spellings (the file, the field).
    """
    if "Traceback (most recent call last)" in said or status not in (0, 1, 2):
        return Attempt(area, what, "traceback", said)
    if status == 0:
        return Attempt(area, what, "accepted", said)
    lines = [line for line in said.splitlines() if line.strip()]
    message = " ".join(lines[next((n for n, line in enumerate(lines) if line.startswith("error:")), 0) :])
    missing = [spellings for spellings in named if not any(spelling in message for spelling in spellings)]
    if missing or not _REMEDY.search(message):
        wanted = ", ".join(" or ".join(spellings) for spellings in missing) or "a remedy"
        return Attempt(area, what, "unclear", f"[does not name {wanted}] {message}")
    return Attempt(area, what, "clear", message)


def table(attempts: Iterable[Attempt]) -> str:
    """Counts by area, as Markdown."""
    counts: dict[str, Counter[str]] = {}
    for attempt in attempts:
        counts.setdefault(attempt.area, Counter())[attempt.kind] += 1
    rows = [f"| | tried | {' | '.join(KINDS)} |", "|---" * (len(KINDS) + 2) + "|"]
    for area, count in [*counts.items(), ("all", sum(counts.values(), Counter()))]:
        rows.append(f"| {area} | {count.total()} | {' | '.join(str(count[kind]) for kind in KINDS)} |")
    return "\n".join(rows)
