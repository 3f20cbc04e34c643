"""Runs the notebooks of this folder and keeps their outputs: `make notebook`.

What a machine says beside the results (warnings on stderr, progress bars, times of execution) is left out.
"""

import os
from pathlib import Path

import nbformat
from nbclient import NotebookClient

FOLDER = Path(__file__).parent


def execute(path: Path) -> None:
    """Run a notebook from a fresh kernel and write it back, once it has run to its end."""
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=None, record_timing=False, resources={"metadata": {"path": FOLDER}}).execute()
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if not _is_noise(output)]
    nbformat.write(notebook, path)


def _is_noise(output: nbformat.NotebookNode) -> bool:
    return output.get("name") == "stderr" or "<progress" in output.get("data", {}).get("text/html", "")


if __name__ == "__main__":
    os.environ["TQDM_DISABLE"] = "1"
    for found in sorted(FOLDER.glob("*.ipynb")):
        print(found)
        execute(found)
