"""A report on a results file: one HTML page that needs nothing else, the same as Markdown, and the pictures."""

from __future__ import annotations

from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

from bayeslora.experiments.comparison import Results
from bayeslora.experiments.comparison.report.content import Report, build_report
from bayeslora.report.figure import Picture
from bayeslora.system.files import write_file

_RESULTS = "results.jsonl"


def write_report(results: str | Path, output_dir: str | Path | None = None, *, resamples: int = 1000) -> Path:
    """Write report.html, report.md and pictures/ on a results file; also while its comparison is still running.

    Args:
        results: The results file, or the folder that has it as results.jsonl.
        output_dir: Folder to write to. Default: that of the results file.
        resamples: Bootstrap resamples behind the marks of the tables.

    Returns:
        The path of report.html.

    Raises:
        OSError: There is no such file.
        ValueError: It is no results file, or a line of it is broken.
    """
    path = Path(results)
    path = path / _RESULTS if path.is_dir() else path
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist. Give the results file of `bayeslora compare`, or its folder.")
    return write_pages(build_report(Results.read(path), resamples), path.parent if output_dir is None else output_dir)


def write_pages(report: Report, output_dir: str | Path) -> Path:
    """Write the pages and pictures of a report; returns the path of report.html."""
    output = Path(output_dir)
    for picture in (block for section in report.sections for block in section.blocks if isinstance(block, Picture)):
        write_file(output / "pictures" / f"{picture.name}.png", picture.png)
    for name in ("report.md", "report.html"):
        write_file(output / name, _render(f"{name}.j2", report))
    return output / "report.html"


def _render(template: str, report: Report) -> str:
    environment = Environment(
        loader=PackageLoader("bayeslora.experiments.comparison.report"),
        autoescape=select_autoescape(["html.j2"]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["cell"] = _markdown_text
    return environment.get_template(template).render(report=report)


def _markdown_text(text: str) -> str:
    """Text that neither ends the cell of a table nor is taken for HTML."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")
