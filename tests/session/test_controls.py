"""IID control runs: what they are, that they are kept, and what they give."""

from __future__ import annotations

import json
import re

import filelock
import numpy as np
import pytest

from fedfault.config import load
from fedfault.data.split import is_same_corpus
from fedfault.diagnosis.calibration import Calibration, kept_calibrations
from fedfault.diagnosis.watch import diagnose_run
from fedfault.errors import UserError
from fedfault.runs.files import write_lines
from fedfault.session import controls
from fedfault.session.controls import CONTENT, calibrate_detectors, derive_control
from fedfault.session.progress import Progress
from fedfault.session.start import start_run
from fedfault.setup.experiment import prepare
from fedfault.testing.histories import history
from small import SMALL

QUIET = Progress(quiet=True)


def loaded(folder, *words):
    return load("quickstart", [*SMALL, f"logging.results_dir={folder}", *words])


@pytest.mark.slow
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


@pytest.mark.slow
def test_a_control_of_isolated_topics_is_mixed(tmp_path):
    exp = loaded(tmp_path).experiment  # topic_isolation
    assert ((prepare(exp).split.counts > 0).sum(axis=1) == 1).all()
    assert ((prepare(exp, control=True).split.counts > 0).sum(axis=1) > 1).all()


def test_controls_have_seeds_of_their_own(tmp_path):
    exp = loaded(tmp_path).experiment
    seeds = {derive_control(exp, i).seed for i in range(19)}
    assert len(seeds) == 19
    assert exp.seed not in seeds


def test_no_control_is_trained_for_thresholds_that_could_not_be_written(tmp_path):
    data = tmp_path / "base.csv"
    data.write_text("text")
    with pytest.raises(UserError, match=r"base\.csv exists and is not a calibration"):
        calibrate_detectors(loaded(tmp_path / "results"), 3, QUIET, out=data)
    assert data.read_text() == "text"
    assert not (tmp_path / "results").exists()


@pytest.mark.long
def test_calibration_is_written_with_its_provenance_and_goes_on_where_it_was_stopped(tmp_path, capsys, monkeypatch):
    given = loaded(tmp_path, "seed=3")
    file = calibrate_detectors(given, 3, QUIET, argv=["calibrate", "quickstart"])
    made = Calibration.load(file)
    assert (made.controls, made.exact) == (3, False)
    assert {"oscillation", "forgetting"} - set(made.thresholds) <= {"oscillation"}  # three rounds are too few to swing
    assert made.thresholds["forgetting"].controls == 3
    assert {"fedfault", "commit", "command", "seeds", "model", "corpus", "seconds"} <= set(made.provenance)
    assert len(made.provenance["seeds"]) == 3

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


@pytest.mark.long
def test_controls_that_learn_nothing_do_not_say_what_healthy_is(tmp_path, monkeypatch):
    monkeypatch.setenv("FEDFAULT_CACHE", str(tmp_path / "cache"))
    still = loaded(tmp_path, "training.lr=1e-9", "federation.num_rounds=2")
    with pytest.raises(UserError, match=r"3 of 3 control runs fail or learn nothing.*training\.lr, which is 1e-09"):
        calibrate_detectors(still, 3, QUIET)
    assert not list(kept_calibrations().glob("*.json"))


@pytest.fixture
def three(monkeypatch, tmp_path):
    """Three controls instead of nineteen, a cache of this test's own, and no report."""
    monkeypatch.setenv("FEDFAULT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(controls, "ENOUGH", 3)
    monkeypatch.setattr("fedfault.report.render.render_report", lambda path: path / "report.html")


@pytest.mark.long
@pytest.mark.usefixtures("three")
def test_a_stranger_s_csv_gets_a_calibrated_verdict_with_one_flag(tmp_path, capsys, monkeypatch):
    texts = [f"{kind} {i} says that the {kind} number {i * 7 % 50} is good {'very ' * (i % 5)}today" for i in range(60)
             for kind in ("ship", "tree")]  # fmt: skip
    (tmp_path / "mine.csv").write_text("text\n" + "\n".join(texts) + "\n")
    words = [
        f"data.path={tmp_path / 'mine.csv'}",
        "data.dataset=text",
        "data.partition=iid",
        "detectors.calibration=auto",
    ]
    first = start_run(loaded(tmp_path, *words, "experiment_name=one"), Progress())
    said = capsys.readouterr()
    assert "3 IID control runs of this configuration come first" in said.out + said.err
    verdict = first.read_json("metrics.json")["verdict"]
    assert verdict["controls"] == 3
    assert "not calibrated" not in verdict["state"]
    monkeypatch.setattr(controls, "train_control", None)  # the next run like it needs no more
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "mine.csv").rename(tmp_path / "elsewhere" / "mine.csv")
    words[0] = f"data.path={tmp_path / 'elsewhere' / 'mine.csv'}"
    second = start_run(loaded(tmp_path, *words, "experiment_name=two", "training.lr=2e-3"), QUIET)
    verdict = second.read_json("metrics.json")["verdict"]
    assert "The controls differ in training.lr=0.002 (0.003)" in verdict["sure"]
    assert diagnose_run(second.path, "auto")[0].splitlines()[1] == verdict["sure"]


@pytest.mark.slow
def test_a_run_that_no_calibration_fits_is_told_what_one_would_cost(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("fedfault.session.start.train_to_end", lambda *a, **more: None)
    start_run(loaded(tmp_path), Progress())
    said = capsys.readouterr()
    assert "detectors.calibration=auto first trains 19 IID control runs" in said.out + said.err


def test_runs_too_short_for_an_alarm_are_refused_before_anything_is_written(tmp_path):
    with pytest.raises(UserError, match=r"num_rounds=1: an alarm takes 2 readings"):
        calibrate_detectors(loaded(tmp_path, "federation.num_rounds=1"), 19, QUIET)
    assert not list(tmp_path.iterdir())


def test_controls_of_a_private_configuration_are_refused_before_anything_is_written(tmp_path):
    private = loaded(tmp_path, "privacy.unit=client", "privacy.epsilon=8", "privacy.delta=0.01")
    with pytest.raises(UserError, match=r"controls are 19 further models of the same data.*privacy.unit=null"):
        calibrate_detectors(private, 19, QUIET)
    assert not list(tmp_path.iterdir())


@pytest.mark.long
def test_honest_controls_of_the_same_partition_have_its_clients_and_a_file_of_their_own(tmp_path):
    given = loaded(tmp_path, "attacks=[{name: sign_flip}]", "federation.participation_rate=1.0")
    kept = sorted(kept_calibrations().glob("*.json"))
    file = calibrate_detectors(given, 3, QUIET, same_partition=True)
    made = Calibration.load(file)
    assert file == tmp_path / "quickstart-honest" / "calibration.json"
    assert made.same_partition
    assert "hostile_client" in made.thresholds
    assert sorted(kept_calibrations().glob("*.json")) == kept
    run = start_run(loaded(tmp_path, f"detectors.calibration={file}", "federation.participation_rate=1.0"), QUIET)
    assert "honest control runs of this partition" in run.read_json("metrics.json")["verdict"]["sure"]
    other = ["data.partition=iid", "federation.participation_rate=1.0", "experiment_name=other"]
    unlike = loaded(tmp_path, f"detectors.calibration={file}", *other)
    with pytest.raises(UserError, match=r"is for other runs: it differs in data\.partition"):
        start_run(unlike, QUIET)


@pytest.mark.slow
def test_controls_of_other_data_under_the_same_settings_are_not_taken(tmp_path, monkeypatch):
    """They gave thresholds that bore the fingerprint of the data that they had never seen."""
    data, trained = tmp_path / "mine.csv", []
    data.write_text(
        "text\n" + "\n".join(f"the ship number {i} is {'very ' * (i % 5)}good today" for i in range(99)) + "\n"
    )
    given = loaded(tmp_path, f"data.path={data}", "data.dataset=text", "data.partition=iid")
    prepared = prepare(given.experiment)

    def train(exp, i, file, *_, iid):
        trained.append(i)
        write_lines(file, records := history([5.0, 4.5, 4.2, 4.0, 3.9, 3.8]))
        return records, prepared

    monkeypatch.setattr(controls, "train_control", train)
    for _ in range(2):  # the second time it goes on with what is there
        file = calibrate_detectors(given, 3, QUIET)
    made = file.read_bytes()
    data.write_text(data.read_text().replace("ship", "tree"))
    with pytest.raises(UserError, match="holds controls of another corpus under the same settings"):
        calibrate_detectors(given, 3, QUIET)
    assert file.read_bytes() == made
    assert trained == [0, 1, 2, 0, 1, 2]


@pytest.mark.slow
def test_controls_are_trained_by_one_process_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(controls, "train_control", None)
    given, folder = loaded(tmp_path), tmp_path / "quickstart-controls"
    folder.mkdir()
    with filelock.FileLock(folder / ".lock"), pytest.raises(UserError, match="controls is in use by another process"):
        calibrate_detectors(given, 3, QUIET)


@pytest.mark.slow
def test_a_run_that_waits_for_the_controls_of_another_says_so(tmp_path, monkeypatch):
    """It stood still for as long as nineteen runs take, without a word."""
    monkeypatch.setenv("FEDFAULT_CACHE", str(tmp_path / "cache"))
    given = loaded(tmp_path, "detectors.calibration=auto")
    p, said = prepare(given.experiment), []
    content = (p.split.corpus.fingerprint, p.backbone.fingerprint)
    folder = kept_calibrations() / f"controls-{controls._hash_settings(given.resolved, *content)}"
    folder.mkdir(parents=True)
    other = filelock.FileLock(folder / ".lock")

    class Told(Progress):
        def say(self, text):
            said.append(text)
            other.release()

    monkeypatch.setattr(controls, "_train_controls", lambda *_: said.append("trained"))
    with other:
        controls.ensure_calibration(given, p, Told(quiet=True))
    assert said == [f"another process is training the controls in {folder}; waiting for them", "trained"]


@pytest.mark.slow
def test_controls_that_were_cut_or_edited_are_trained_again_and_that_is_told(tmp_path, capsys):
    """A cut one took the thresholds of three detectors with it, and an edited one was believed."""
    given = loaded(tmp_path, "federation.num_rounds=2", "evaluation.general=none", "evaluation.max_blocks=1")
    made = Calibration.load(calibrate_detectors(given, 3, QUIET)).thresholds
    one, two, three = ((tmp_path / "quickstart-controls" / f"control-0{i}.jsonl") for i in range(3))
    whole = [re.sub(r'"seconds": {.*?}', "", file.read_text()) for file in (one, two, three)]
    first, *lines = one.read_text().splitlines(keepends=True)
    one.write_text(first.replace('"loss": ', '"loss": 1') + "".join(lines))
    two.write_text("".join(two.read_text().splitlines(keepends=True)[:2]))
    capsys.readouterr()
    assert Calibration.load(calibrate_detectors(given, 3, Progress())).thresholds == made
    assert [re.sub(r'"seconds": {.*?}', "", file.read_text()) for file in (one, two, three)] == whole
    said = capsys.readouterr().err
    assert said.count("this control is trained again") == 2
    assert f"note: {one} is not what was written; this" in said

    sources = tmp_path / "quickstart-controls" / CONTENT
    sources.write_text(json.dumps({k: v for k, v in json.loads(sources.read_text()).items() if k != "controls"}))
    three.write_text(three.read_text()[:-50])  # as a version left it that wrote no hashes
    assert Calibration.load(calibrate_detectors(given, 3, Progress())).thresholds == made
    assert f"note: {three} has 1 of 2 rounds; this control is trained again" in capsys.readouterr().err
