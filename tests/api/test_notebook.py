"""The notebook of the docs: it runs, and what it shows is from a run."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NOTEBOOK = ROOT / "docs" / "notebook.ipynb"
CELLS = [cell for cell in json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]


def test_it_was_run_from_top_to_bottom_and_names_no_machine():
    assert [cell["execution_count"] for cell in CELLS] == list(range(1, len(CELLS) + 1))
    shown = [output["data"] for cell in CELLS for output in cell["outputs"] if "data" in output]
    assert sum("image/png" in data for data in shown) == 1
    # A run shows its losses
    assert any("data:image/png;base64," in "".join(data.get("text/html", [])) for data in shown)
    text = NOTEBOOK.read_text(encoding="utf-8")
    assert not [word for word in ("/tmp", "/home", "/root", "site-packages", "Warning") if word in text]


@pytest.mark.long
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
def test_it_runs(tmp_path, monkeypatch):
    pytest.importorskip("nbclient", reason="needs nbclient and ipykernel")
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "src"))
    done = runpy.run_path(str(ROOT / "scripts" / "run_notebook.py"))["run_notebook"](NOTEBOOK, tmp_path)
    shown = ["".join(str(o) for o in cell.outputs) for cell in done.cells if cell.cell_type == "code"]
    assert "hypothesis" in shown[4]
    assert "reviews-fork" in shown[6]
    assert (tmp_path / "losses.pdf").is_file()
    assert {p.name for p in (tmp_path / "results").iterdir()} >= {"reviews", "reviews-fork", "damped", "algorithms"}
