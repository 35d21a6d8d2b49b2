"""`seeds: auto`: answers end a study, arms that are settled rest, what is out of reach is given up, and errors stay rare."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import binom

from fedfault.errors import UserError
from fedfault.session.progress import Progress
from fedfault.studies import doors, runner, stopping
from fedfault.studies.answers import answer_hypotheses
from fedfault.studies.file import load_study
from fedfault.studies.one import RunResult
from fedfault.studies.results import Results, explain_rule, summarise_study, tabulate_answers
from fedfault.studies.study import Contrast, StudyPlan, read_study
from planted import claim, draw_study


@pytest.fixture
def run(monkeypatch):
    """Runs a study whose runs are known beforehand; returns the runs that it made, in order, and what it said."""

    def play(study, runs):
        made, said = [], []
        monkeypatch.setattr(stopping, "read_run", lambda path: runs[path.name])

        def execute(names):
            made.extend(names)
            return [RunResult(name, "finished") for name in names]

        stopping.run_until_answered(StudyPlan(study, Path()), execute, said.append)
        return made, said

    return play


def draw(shifts, seeds=20, by=0.0, draw_seed=0):
    study, runs = draw_study(np.random.default_rng(draw_seed), seeds, shifts)
    claims = tuple(replace(h, by=by) for h in study.hypotheses)
    return replace(study, sequential=True, hypotheses=claims), runs


def test_a_study_ends_with_its_answers_and_an_arm_that_is_settled_takes_no_more_seeds(run):
    study, runs = draw([12.0, 1.5], seeds=40)
    made, said = run(study, runs)
    count = {arm: sum(name.startswith(f"{arm}-") for name in made) for arm in ("old", "new0", "new1")}
    assert stopping.FIRST < count["new0"] < count["new1"] == count["old"] < 40
    there = {name: runs[name] for name in made}
    clear, small = answer_hypotheses(study, there)
    assert (clear.verdict, clear.after) == ("supported", count["new0"])
    assert (small.verdict, small.after) == ("supported", count["new1"])
    assert clear.decisive.why_not == ""  # the seeds that were not needed are not missed
    assert said[-1].startswith(f"after {count['new1']} seeds: 0 of 2 hypotheses open")


def test_what_the_most_seeds_would_leave_open_is_given_up(run):
    study, runs = draw([0.3], seeds=8)
    made, said = run(study, runs)
    assert len(made) < 16
    assert "1 out of reach of 8 seeds" in said[-1]
    (answer,) = answer_hypotheses(study, {name: runs[name] for name in made})
    assert answer.verdict == "inconclusive"
    assert answer.needed > 8


def test_a_study_that_was_stopped_goes_on_as_it_would_have(run):
    study, runs = draw([4.0, 1.0], seeds=30)
    assert run(study, runs) == run(study, runs)


def test_a_seed_whose_runs_all_fail_ends_the_study():
    study, _ = draw([1.0])
    made = stopping.run_until_answered(
        StudyPlan(study, Path()), lambda names: [RunResult(n, "failed", why="no") for n in names], lambda _: None
    )
    assert len(made) == 2 * stopping.FIRST


def test_counts_are_bets_and_need_no_normal_law(run):
    study, runs = draw([0.0], seeds=30)
    states = {name: {"verdict": {"state": "failed" if name.startswith("new") else "healthy"}} for name in runs}
    runs = {name: replace(one, metrics=states[name]) for name, one in runs.items()}
    study = replace(study, hypotheses=(claim(metric="failed", by=0.2, contrasts=[Contrast(1, 0)]),))
    made, _ = run(study, runs)
    (answer,) = answer_hypotheses(study, {name: runs[name] for name in made})
    assert (answer.test, answer.verdict) == ("bets", "supported")
    assert answer.after == len(made) / 2 < 30
    low, high = answer.decisive.interval
    assert 0.2 < low < high <= 1.0


@pytest.mark.slow
def test_the_report_says_after_how_many_seeds_and_that_looks_are_allowed(tmp_path, run):
    study, runs = draw([12.0, 0.1], seeds=9)
    made, _ = run(study, runs)
    r = Results(tmp_path, study, {name: runs[name] for name in made})
    clear, still = (row[1] for row in tabulate_answers(r).rows)
    assert clear == f"supported (after {r.answers[0].after} seeds)"
    assert still.startswith("inconclusive (after ")
    assert "seeds; " in still
    assert "looked at after every seed" in explain_rule(r)
    assert "9 seeds at most" in summarise_study(r)[0]
    assert "not finished" not in " ".join(summarise_study(r))


def simulate(studies, shifts, by=0.0, seeds=20):
    """Shares of studies with a wrong answer and with all intervals right; of true claims found; seeds of an arm."""
    wrong, held, found, used = [], [], [], []
    for i in range(studies):
        study, runs = draw(shifts, seeds, by, i)
        there, lost, cells = {}, set(), range(len(study.cells))
        for count in range(1, seeds + 1):
            there |= {study.cells[c].runs[count - 1]: runs[study.cells[c].runs[count - 1]] for c in cells}
            if count < stopping.FIRST:
                continue
            still = stopping.find_open(answer_hypotheses(study.limit(count), there, looks=False), seeds, lost)
            cells = {c for a in still for k in a.hypothesis.contrasts for c in k.cells}
            if not still:
                break
        answers = answer_hypotheses(study, there, looks=False)
        given = list(zip(answers, shifts, strict=True))
        wrong.append(any(a.verdict == ("supported" if s <= by else "refuted") for a, s in given))
        held.append(all(f[0] <= s <= f[1] for a, s in given if (f := a.decisive.interval)))
        found += [a.verdict == "supported" for a, s in given if s > by]
        used.append(len(there) / len(study.cells))
    return {
        "wrong": np.mean(wrong),
        "held": np.mean(held),
        "found": np.mean(found or [math.nan]),
        "used": np.mean(used),
    }


@pytest.mark.long
def test_a_study_that_looks_after_every_seed_errs_once_in_twenty_at_most_over_all_its_claims():
    found = simulate(300, [0.0] * 4)
    assert found["wrong"] <= binom.ppf(0.999, 300, 0.05) / 300
    assert found["held"] >= binom.ppf(0.001, 300, 0.95) / 300


@pytest.mark.long
def test_a_large_difference_is_found_with_fewer_seeds_than_the_most():
    """Twice the standard deviation of a difference, among nulls: 14 seeds have a power of 0.8 at 0.05 / 10."""
    found = simulate(150, [2.0, 0.0, -2.0, 2.0, 2.0])
    assert found["found"] >= 0.9
    assert found["wrong"] <= binom.ppf(0.999, 150, 0.05) / 150
    assert found["used"] < 17


BOTH = {"arms": {"a": {}, "b": {"training.lr": 0.1}}, "hypotheses": {
    "h": {"claim": "a is higher", "metric": "final.validation.loss", "arm": "a", "than": "b", "expect": "higher", "by": 0.1}
}}  # fmt: skip


def test_the_most_seeds_are_a_setting_and_come_on_the_command_line(write, tmp_path):
    plan = load_study(write(**BOTH, seeds="auto"), ["max_seeds=6"], str(tmp_path / "results"))
    assert plan.study.sequential
    assert plan.study.seeds == (0, 1, 2, 3, 4, 5)
    plan.folder.mkdir(parents=True)
    plan.study.save(plan.folder)
    assert read_study(plan.folder) == plan.study
    assert load_study(write(**BOTH), ["seeds=auto"], str(tmp_path / "results")).study.sequential


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ({"seeds": "auto", "hypotheses": {}}, "runs until hypotheses are answered, and there are none"),
        ({"seeds": 5, "max_seeds": 9}, "max_seeds is for `seeds: auto`; seeds is 5"),
        ({"seeds": "auto", "max_seeds": 1}, "max_seeds must be a number of at least 2; it is 1"),
        ({"seeds": "atuo"}, "a list of different ones, or auto; it is 'atuo'"),
    ],
)
def test_what_does_not_go_with_it_is_refused(write, tmp_path, more, told):
    with pytest.raises(UserError, match=told.replace("`", ".")):
        load_study(write(**{**BOTH, **more}), (), str(tmp_path / "results"))


def test_tasks_of_an_array_are_refused_as_nobody_knows_them(write, tmp_path):
    plan = load_study(write(**BOTH, seeds="auto"), (), str(tmp_path / "results"))
    with pytest.raises(UserError, match="results say which run is next"):
        runner.run_all(plan, Progress(quiet=True), task=1)
    assert "40 runs at most" in doors.format_runs(plan)


def test_a_contrast_names_its_cells():
    assert Contrast(3, 1, c=2, d=0).cells == {0, 1, 2, 3}
    assert Contrast(3, constant=1.0).cells == {3}
