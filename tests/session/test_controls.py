"""IID control runs: what they are, that they are kept, and what they give."""

from __future__ import annotations

import numpy as np
import pytest

from fedfault.config import load
from fedfault.data.split import is_same_corpus
from fedfault.diagnosis.calibration import Calibration
from fedfault.errors import UserError
from fedfault.session.controls import calibrate_detectors, derive_control
from fedfault.session.progress import Progress
from fedfault.session.start import start_run
from fedfault.setup.experiment import prepare
from small import SMALL

QUIET = Progress(quiet=True)


def loaded(folder, *words):
    return load("quickstart", [*SMALL, f"logging.results_dir={folder}", *words])


def test_a_control_has_clients_of_the_same_sizes_with_documents_at_random(tmp_path):
    exp = loaded(tmp_path, "data.partition=quantity_skew", "data.partition.alpha=0.5").experiment
    skewed = prepare(exp)
    control = prepare(exp, like=skewed, control=True)
    assert control.backbone is skewed.backbone
    sizes = [[len(own) for own in p.split.deal.clients] for p in (skewed, control)]
    assert sizes[0] == sizes[1]
    assert len(set(sizes[0])) > 1
    held = np.sort(np.concatenate(control.split.deal.clients))
    assert held.tolist() == list(range(len(control.split.documents)))
    assert any(
        a.tolist() != b.tolist() for a, b in zip(skewed.split.deal.clients, control.split.deal.clients, strict=True)
    )


def test_a_control_of_isolated_topics_is_mixed(tmp_path):
    exp = loaded(tmp_path).experiment  # topic_isolation
    assert ((prepare(exp).split.counts > 0).sum(axis=1) == 1).all()
    assert ((prepare(exp, control=True).split.counts > 0).sum(axis=1) > 1).all()


def test_controls_have_seeds_of_their_own(tmp_path):
    exp = loaded(tmp_path).experiment
    seeds = {derive_control(exp, i).seed for i in range(19)}
    assert len(seeds) == 19
    assert exp.seed not in seeds


@pytest.mark.slow
def test_calibration_is_written_with_its_provenance_and_goes_on_where_it_was_stopped(tmp_path, capsys, monkeypatch):
    given = loaded(tmp_path, "seed=3")
    file = calibrate_detectors(given, 3, QUIET, argv=["calibrate", "quickstart"])
    made = Calibration.load(file)
    assert (made.controls, made.exact) == (3, False)
    assert {"oscillation", "forgetting"} - set(made.thresholds) <= {"oscillation"}  # three rounds are too few to swing
    assert made.thresholds["forgetting"].controls == 3
    assert {"fedfault", "commit", "command", "seeds", "model", "corpus", "seconds"} <= set(made.provenance)
    assert len(made.provenance["seeds"]) == 3

    from fedfault.session import controls

    trained = []
    monkeypatch.setattr(controls, "rounds", lambda *a: trained.append(a) or iter(()))
    again = calibrate_detectors(given, 3, QUIET, out=tmp_path / "again.json")
    assert not trained
    assert Calibration.load(again).thresholds == made.thresholds

    with pytest.raises(UserError, match="another configuration"):
        calibrate_detectors(loaded(tmp_path, "seed=3", "training.lr=0.1"), 3, QUIET)

    monkeypatch.setattr("fedfault.report.render.render_report", lambda path: path / "report.html")
    monkeypatch.undo()
    monkeypatch.setattr("fedfault.report.render.render_report", lambda path: path / "report.html")
    run = start_run(
        loaded(tmp_path, f"detectors.calibration={file}", "training.lr=2e-3", "experiment_name=judged"), QUIET
    )
    verdict = run.read_json("metrics.json")["verdict"]
    assert verdict["controls"] == 3
    assert "training.lr=0.002 (0.003)" in verdict["sure"]


def test_a_calibration_of_another_model_or_length_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"detectors\.calibration=.*nothing\.json"):
        start_run(loaded(tmp_path, f"detectors.calibration={tmp_path / 'nothing.json'}"), QUIET)
    assert not any(tmp_path.iterdir())


def test_a_corpus_is_lent_only_to_those_that_load_the_same(tmp_path):
    exp = loaded(tmp_path).experiment
    assert is_same_corpus(exp, loaded(tmp_path, "seed=9", "data.partition=iid").experiment)
    for other in ("data.dataset=bbc_news", "data.topic_column=kind"):
        assert not is_same_corpus(exp, loaded(tmp_path, other).experiment)
