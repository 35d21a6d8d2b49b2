"""Runs that end before their last round: a score is reached, or does not get better any more."""

import json
import shutil

import pytest

from fedfault.config import load
from fedfault.config.sections.evaluation import Evaluation
from fedfault.errors import UserError
from fedfault.records import Score
from fedfault.runs.read import read_run
from fedfault.session.ending import find_end
from fedfault.session.progress import Progress
from fedfault.session.start import resume_run
from fedfault.setup.combinations import check_parts
from fedfault.testing.histories import history
from small import final, start


@pytest.mark.parametrize(
    ("losses", "ends"),
    [
        ([9.0], None),  # before training there is nothing to end
        ([2.0], None),
        ([9.0, 3.0], None),
        ([9.0, 2.5], 1),  # reached is reached
        ([9.0, 3.0, None], None),  # a round that is not evaluated
        ([9.0, 2.0, 3.0], None),  # what the last round says
        ([9.0, float("nan")], None),
    ],
)
def test_a_run_ends_after_the_round_that_reaches_the_loss(losses, ends):
    found = find_end(history(losses), Evaluation(stop_at={"loss": 2.5}))
    assert (None if found is None else found["round"]) == ends


@pytest.mark.parametrize(
    ("losses", "ends"),
    [
        ([5.0, 4.0, 4.1], None),
        ([5.0, 4.0, 4.1, 4.0], 3),  # as good is not better
        ([5.0, 4.0, None, 4.1, None, 4.2], 5),  # evaluations count, not rounds
        ([5.0, 5.5, 6.0], 2),  # the model before training was the best
        ([5.0, 4.0, 4.1, 3.9], None),
        ([5.0, float("nan"), float("nan")], 2),
    ],
)
def test_a_run_ends_when_two_evaluations_are_no_better(losses, ends):
    found = find_end(history(losses), Evaluation(patience=2))
    assert (None if found is None else found["round"]) == ends


def test_a_metric_is_better_where_it_is_higher():
    scores = [Score(1.0, 10, metrics={"accuracy": value}) for value in (0.1, 0.5, 0.4)]
    records = history(scores={"validation": scores})
    assert find_end(records[:2], Evaluation(stop_at={"accuracy": 0.5}, patience=1)) == {
        "round": 1,
        "reason": "the validation accuracy is 0.5, and 0.5 was to be reached",
    }
    reason = find_end(records, Evaluation(stop_at={"accuracy": 0.6}, patience=1))["reason"]
    assert reason == "the validation accuracy has not been better than in round 1 (0.5) for 1 evaluation"


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (["evaluation.stop_at={accuracy: 0.5}"], r"accuracy, which this run does not have .*; it has loss$"),
        (["evaluation.stop_at={exact_match: 1.0}", "data.task_type=instruction"], "set evaluation.generate=N"),
        (["evaluation.stop_at={f1: 1.0}", "data.task_type=regression"], "it has loss, pearson, spearman"),
        (["evaluation.stop_at={loss: 1.0, f1: 1.0}"], "evaluation.stop_at"),
        (["evaluation.stop_at={}"], "evaluation.stop_at"),
        (["evaluation.patience=0"], "evaluation.patience"),
        (["evaluation.stop_at={loss: -1}"], r"stop_at={loss: -1} is reached never or always: loss is 0 at least$"),
        (["evaluation.stop_at={f1: 80}", "data.task_type=classification"], "f1 is between 0 and 1; 80 % are 0.8$"),
        (["evaluation.target_score=-80", "data.task_type=classification"], "target_score=-80 .* between 0 and 1$"),
        (["evaluation.target_score=-1.5", "data.task_type=regression"], "pearson is between -1 and 1$"),
    ],
)
def test_a_score_that_the_run_does_not_have_is_refused(changes, says):
    with pytest.raises(UserError, match=says):
        load("quickstart", changes)


def test_a_score_that_needs_a_library_says_which(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    told = ["data.dataset=skills", "data.task_type=instruction", "evaluation.generate=1"]
    with pytest.raises(UserError, match="rouge-score"):
        check_parts(load("quickstart", [*told, "evaluation.stop_at={rouge_l: 0.5}"]).experiment)


@pytest.mark.slow
@pytest.mark.long
def test_a_run_that_ended_says_so_and_ends_in_the_same_round_after_a_kill(tmp_path):
    folder = start(tmp_path, "evaluation.stop_at={loss: 99}")
    run = read_run(folder.path)
    assert (run.rounds_done, run.rounds_planned, run.status, run.finished) == (1, 3, "finished", True)
    assert run.metrics["verdict"]["ended"] == run.manifest["ended"]
    assert run.manifest["ended"]["reason"].endswith("and 99 was to be reached")
    assert "It ended after round 1: the validation loss is" in run.metrics["verdict"]["sentence"]
    assert "The run ended after round 1 of 3" in (folder.path / "report.html").read_text()
    before = final(folder)
    shutil.rmtree(folder.path / "adapter")
    manifest = json.loads((folder.path / "manifest.json").read_text())
    del manifest["ended"]
    (folder.path / "manifest.json").write_text(json.dumps(manifest | {"status": "running"}))  # as a kill leaves it
    assert final(resume_run(folder.path, Progress(quiet=True))) == before
    assert read_run(folder.path).manifest["ended"] == run.manifest["ended"]
