"""Run docs/notebook.ipynb again and keep what its cells show.

    python scripts/run_notebook.py             # needs nbclient and ipykernel: pip install "fedfault[dev]"

The notebook writes into a scratch folder, which it calls its working folder; the path of that is taken out of what it shows.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

NOTEBOOK = Path(__file__).resolve().parents[1] / "docs" / "notebook.ipynb"
SECONDS = 900  # for a cell


def run_notebook(notebook: Path, folder: Path) -> Any:
    """Execute a notebook with `folder` as its working folder; returns it with its outputs. Raises what a cell raises."""
    import nbclient
    import nbformat

    found = nbformat.read(notebook, as_version=4)
    nbclient.NotebookClient(
        found, timeout=SECONDS, kernel_name="python3", resources={"metadata": {"path": str(folder)}}
    ).execute()
    for cell in found.cells:
        cell.metadata.pop("execution", None)  # times of day
    return found


def main() -> None:
    import nbformat

    with tempfile.TemporaryDirectory() as scratch:
        done = run_notebook(NOTEBOOK, Path(scratch))
        NOTEBOOK.write_text(nbformat.writes(done).replace(scratch, ".") + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
