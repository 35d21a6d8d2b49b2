"""A study as an object: its cells, its answers and its tables for a paper."""

from __future__ import annotations

import pytest

import fedfault as ff
from small import WORDS

pytestmark = pytest.mark.slow
STUDY = {
    "experiment_name": "own", "_base_": "quickstart", **WORDS, "federation.num_rounds": 1, "seeds": 2,
    "arms": {"plain": {}, "prox": {"federation.algorithm": "fedprox"}},
    "hypotheses": {
        "higher": {"claim": "x", "metric": "gain", "arm": "prox", "than": "plain", "expect": "higher", "by": 1e-6}
    },
}  # fmt: skip


@pytest.mark.long
def test_a_study_has_cells_answers_and_tables(tmp_path, monkeypatch):
    monkeypatch.setattr("fedfault.studies.figures.make_figures", lambda r: {})
    found = ff.study(STUDY, quiet=True, results_dir=tmp_path)
    assert found.failures == {}
    assert found.cells[["arm", "runs"]].values.tolist() == [["plain", 2], ["prox", 2]]
    row = found.answers.iloc[0]
    runs = found.runs
    gains = {name: run.rounds["loss"].iloc[0] - run.rounds["loss"].iloc[-1] for name, run in runs.items()}
    plain, prox = ([gains[n] for n in cell.runs] for cell in found.results.study.cells)
    assert row["difference"] == pytest.approx(sum(b - a for a, b in zip(plain, prox, strict=True)) / 2)
    assert row["low"] <= row["difference"] <= row["high"]
    assert found.table().startswith("| arm | runs | final loss |")
    assert "\\begin{longtable}" in found.table("answers", latex=True)
    assert repr(ff.Study(found.folder)).startswith("2 cells with 2 seeds each, 4 runs.")
    monkeypatch.chdir(tmp_path)
    by_name = ff.Study(found.folder.name)
    assert by_name.folder == found.folder.relative_to(tmp_path)
    monkeypatch.chdir("/")
    assert (by_name.folder, [*by_name.runs]) == (found.folder, [*runs])
    with pytest.raises(ff.UserError, match="no table 'cell'; there are cells and answers"):
        found.table("cell")
    with pytest.raises(ff.UserError, match=r"study\.json not found"):
        ff.Study(tmp_path)
