"""Planted statements: the true ones are supported, the false ones refuted, and noise is left open."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import binom

from fedfault.stats import count_needed
from fedfault.studies.answers import answer_hypotheses, answer_listed, pick_test
from fedfault.studies.results import Results, format_answers, list_limits
from fedfault.studies.study import Cell, Contrast, Study
from planted import claim, draw_study, planted, two_arms

NOISE = np.random.default_rng(0).normal(0, 0.02, (2, 9))
OLD = 4.0 + NOISE[0]


def verdicts(study, runs):
    return {a.hypothesis.name: a.verdict for a in answer_hypotheses(study, runs)}


@pytest.mark.parametrize("seeds", [5, 9])
def test_counts_are_put_to_a_test_that_needs_no_symmetry(tmp_path, seeds):
    study, _ = two_arms(tmp_path, OLD[:seeds], OLD[:seeds], hypotheses=(claim("any"),))
    assert [pick_test(study, metric, 1) for metric in ("failed", "unhealthy", "alarm.divergence")] == ["bets"] * 3
    assert pick_test(study, "gain", 20) == "student"


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [5, 9])
def test_a_planted_true_and_a_planted_false_statement(tmp_path, seeds):
    old = OLD[:seeds]
    new = old + 0.5 + NOISE[1, :seeds]
    claims = (claim("true"), claim("false", "lower"), claim("too_much", by=1.0), claim("same", "equal", by=0.1))
    study, runs = two_arms(tmp_path, new, old, hypotheses=claims)
    assert verdicts(study, runs) == {
        "true": "supported", "false": "refuted", "too_much": "refuted", "same": "refuted",
    }  # fmt: skip
    found = answer_hypotheses(study, runs)[0]
    assert found.test == ("student" if seeds == 5 else "flips")
    assert found.decisive.mean == pytest.approx(0.5 + NOISE[1, :seeds].mean())
    low, high = found.decisive.interval
    assert low < found.decisive.mean < high


@pytest.mark.slow
def test_equal_arms_are_supported_as_equal_and_noise_is_inconclusive(tmp_path):
    new = OLD + [0.02 if i % 2 else -0.02 for i in range(9)]
    wild = claim("any", "higher", by=0.0)
    study, runs = two_arms(tmp_path, new, OLD, hypotheses=(claim("same", "equal", by=0.1), wild))
    assert verdicts(study, runs) == {"same": "supported", "any": "inconclusive"}


@pytest.mark.slow
def test_holm_can_take_an_answer_away(tmp_path):
    new = OLD[:5] + np.array([0.3, 0.1, 0.3, 0.15, 0.12])
    alone, runs = two_arms(tmp_path, new, OLD[:5], hypotheses=(claim(by=0.05),))
    assert verdicts(alone, runs) == {"h": "supported"}
    many = tuple(claim(f"h{i}", by=0.05 if i == 0 else 0.19) for i in range(20))
    study, runs = two_arms(tmp_path, new, OLD[:5], hypotheses=many)
    assert verdicts(study, runs)["h0"] == "inconclusive"


def test_an_open_hypothesis_says_how_many_seeds_would_answer_it(tmp_path):
    """Differences of mean 0.2 and standard deviation 0.2 against 0.1, for one hypothesis of two."""
    new = OLD[:5] + 0.2 + 0.2 * np.array([-1.2, -0.3, 0.0, 0.3, 1.2])
    study, runs = two_arms(tmp_path, new, OLD[:5], hypotheses=(claim(by=0.1), claim("clear", by=-9.0)))
    open_one, clear = answer_hypotheses(study, runs)
    assert open_one.verdict == "inconclusive"
    assert open_one.needed == count_needed(new - OLD[:5], 0.1, 0.05 / 4)
    assert clear.needed is None
    assert f"about {open_one.needed} seeds would tell" in format_answers(Results(tmp_path, study, runs))


SIX = 0.02 * np.array([-1.5, -0.8, -0.2, 0.2, 0.8, 1.5])


def test_a_sixth_seed_takes_no_power_from_a_claim_of_equality(tmp_path):
    """It can be refuted on two sides, so that flips of six signs would end at 4 / 64."""
    study, runs = two_arms(tmp_path, OLD[:6] + 0.1 + SIX, OLD[:6], hypotheses=(claim("same", "equal", by=0.02),))
    (found,) = answer_hypotheses(study, runs)
    assert (found.test, found.verdict) == ("student", "refuted")


def test_more_seeds_are_asked_for_than_are_there_and_as_many_as_flips_of_signs_need(tmp_path):
    """Of ten seeds one is missing: flips of nine signs cannot answer one claim of thirteen, however clear it is."""
    study, _ = two_arms(tmp_path, OLD, OLD, hypotheses=tuple(claim(f"h{i}") for i in range(13)))
    differences = dict(enumerate(0.5 + NOISE[1]))
    found = answer_listed(replace(study, seeds=tuple(range(10))), [[differences]] * 13)
    assert {(a.test, a.verdict, a.needed) for a in found} == {("flips", "inconclusive", 10)}


def test_a_claim_about_several_arms_is_most_soon_refuted_by_one_of_them(tmp_path):
    study, _ = two_arms(tmp_path, OLD[:5], OLD[:5], hypotheses=(claim(by=0.1),))
    (h,) = study.hypotheses
    three = replace(study, hypotheses=(replace(h, contrasts=h.contrasts * 3),))
    below, at = dict(enumerate(0.1 - 0.08 + 4 * SIX[:5])), dict(enumerate(0.1 + 4 * SIX[:5] - 4 * SIX[:5].mean()))
    (found,) = answer_listed(three, [[below, below, at]])
    assert found.verdict == "inconclusive"
    assert found.needed == count_needed([*below.values()], 0.1, 0.05 / 2 / 3)


def test_one_seed_decides_nothing(tmp_path):
    study, runs = two_arms(tmp_path, [9.0], [4.0], hypotheses=(claim(),))
    assert verdicts(study, runs) == {"h": "inconclusive"}
    told = format_answers(Results(tmp_path, study, runs))
    assert "one seed cannot answer it" in told
    assert " p " not in told
    assert answer_hypotheses(study, runs)[0].decisive.interval is None


@pytest.mark.slow
def test_runs_that_diverge_count_as_the_largest_difference(tmp_path):
    new = [math.inf if i % 2 else 4.6 for i in range(9)]
    study, runs = two_arms(tmp_path, new, OLD, hypotheses=(claim(),))
    found = answer_hypotheses(study, runs)[0]
    low, high = found.decisive.interval
    assert (found.verdict, found.decisive.mean, high) == ("supported", math.inf, math.inf)
    assert 0.1 < low < math.inf  # what matters is below it, as the answer says


@pytest.mark.slow
def test_runs_that_are_missing_or_unfinished_leave_their_pair_out(tmp_path):
    study, runs = two_arms(tmp_path, OLD + 0.5, OLD, hypotheses=(claim(),))
    del runs["new-1"]
    runs["old-2"] = planted(tmp_path / "old-2", [5.0, 4.0], status="running")
    found = answer_hypotheses(study, runs)[0].decisive
    assert list(found.differences) == [0, 3, 4, 5, 6, 7, 8]
    assert "missing for seeds 1, 2" in found.why_not


def four(folder, table):
    """A study of two axes whose losses are those of the table, a little noise apart, for nine seeds."""
    runs, cells = {}, []
    for i, row in enumerate(table):
        for j, loss in enumerate(row):
            names = tuple(f"{i}{j}-{s}" for s in range(9))
            runs |= {n: planted(folder / n, [5.0, loss + NOISE[(i + j) % 2, s] / 9]) for s, n in enumerate(names)}
            cells.append(Cell({"lr": str(i), "split": str(j)}, names))
    return Study("trial", "", tuple(range(9)), tuple(cells)), runs


@pytest.mark.slow
def test_a_claim_about_all_holds_only_if_it_holds_for_each(tmp_path):
    study, runs = four(tmp_path, [[4.0, 4.5], [4.0, 4.05]])
    each = (Contrast(1, 0), Contrast(3, 2))
    study = Study(**{**vars(study), "hypotheses": (claim("one", contrasts=each[:1]), claim("all", contrasts=each))})
    assert verdicts(study, runs) == {"one": "supported", "all": "refuted"}
    assert answer_hypotheses(study, runs)[1].decisive.contrast == each[1]


@pytest.mark.slow
def test_a_refuted_claim_is_shown_by_the_arm_that_refutes_it_and_not_by_one_further_off_and_unsure(tmp_path):
    study, _ = four(tmp_path, [[4.0, 4.0], [4.0, 4.0]])
    each = (Contrast(1, 0), Contrast(3, 2))
    study = Study(**{**vars(study), "hypotheses": (claim("all", expect="equal", by=0.1, contrasts=each),)})
    sure, unsure = ({s: mean + wide * NOISE[1, s] for s in study.seeds} for mean, wide in ((0.3, 1), (0.35, 40)))
    found = answer_listed(study, [[sure, unsure]])[0]
    assert (found.verdict, found.decisive.contrast) == ("refuted", each[0])
    assert found.decisive.interval[0] > 0.1


@pytest.mark.slow
def test_beyond_compares_two_differences(tmp_path):
    study, runs = four(tmp_path, [[4.0, 4.1], [4.2, 5.3]])  # lr costs 0.2 on the first split, 1.2 on the second
    beyond = Contrast(3, 1, c=2, d=0)
    study = Study(**{**vars(study), "hypotheses": (claim("more", by=0.9, contrasts=(beyond,)),)})
    found = answer_hypotheses(study, runs)[0]
    assert found.verdict == "supported"
    assert found.decisive.mean == pytest.approx(1.0, abs=0.01)


@pytest.mark.slow
def test_a_constant_takes_the_place_of_an_arm(tmp_path):
    study, runs = two_arms(tmp_path, OLD, OLD, hypotheses=(claim(contrasts=(Contrast(0, constant=3.5),)),))
    assert verdicts(study, runs) == {"h": "supported"}


def simulate(studies: int, seeds: int, shifts: list[float]) -> dict[str, float]:
    """Shares of studies with any wrong answer and with all intervals right, and of true claims that are supported."""
    g = np.random.default_rng([studies, seeds])
    wrong, held, found = [], [], []
    for _ in range(studies):
        answers = answer_hypotheses(*draw_study(g, seeds, shifts))
        given = list(zip(answers, shifts, strict=True))
        wrong.append(any(a.verdict == ("refuted" if shift else "supported") for a, shift in given))
        wrong[-1] |= any(a.verdict == "refuted" for a, shift in given if not shift)
        held.append(all(f[0] <= s <= f[1] for a, s in given if (f := a.decisive.interval)))
        found += [a.verdict == "supported" for a, shift in given if shift]
    return {"wrong": np.mean(wrong), "held": np.mean(held), "found": np.mean(found) if found else math.nan}


@pytest.mark.slow
@pytest.mark.parametrize(("studies", "seeds"), [(120, 5), (60, 10), *(
    pytest.param(3000, n, marks=pytest.mark.long) for n in (3, 5, 10)
)])  # fmt: skip
def test_a_study_errs_once_in_twenty_over_all_its_claims_and_its_intervals_hold_together(studies, seeds):
    """Six claims beside one common arm, all of differences that are not there."""
    found = simulate(studies, seeds, [0.0] * 6)
    assert found["wrong"] <= binom.ppf(0.999, studies, 0.05) / studies
    assert found["held"] >= binom.ppf(0.001, studies, 0.95) / studies


@pytest.mark.slow
@pytest.mark.parametrize("studies", [60, pytest.param(1000, marks=pytest.mark.long)])
def test_a_large_difference_is_found_among_nulls(studies):
    """Ten seeds and twice the standard deviation of a difference: Student's t at 0.05 / 7 finds it in 99 of 100."""
    found = simulate(studies, 10, [2.0, 0.0, 0.0, 0.0, 0.0, 0.0])
    assert found["found"] >= binom.ppf(0.001, studies, 0.95) / studies
    assert found["wrong"] <= binom.ppf(0.999, studies, 0.05) / studies


def test_runs_that_saw_other_data_or_another_model_are_not_subtracted(tmp_path):
    """The file that data.path names had changed between two calls of a study, which answered all the same."""
    study, runs = two_arms(tmp_path, [4.0] * 8, [5.0] * 8, hypotheses=(claim(expect="lower"),))
    (before,) = answer_hypotheses(study, runs)
    assert before.verdict == "supported"
    for seed in range(8):
        for arm, corpus in (("new", "x" if seed < 3 else "y"), ("old", "y")):
            made = {"corpus": {"fingerprint": corpus}, "model": {"fingerprint": "m"}}
            runs[f"{arm}-{seed}"].manifest.update(made)
    (now,) = answer_hypotheses(study, runs)
    assert list(now.found[0].differences) == [3, 4, 5, 6, 7]
    assert now.found[0].why_not == "the corpus is not what it was when other runs of seeds 0, 1, 2 were made"
    told = "The corpus is not the same in all runs, though their settings name the same: it has changed between them."
    assert told in list_limits(Results(tmp_path, study, runs))
    runs["new-5"].manifest["general"], runs["old-5"].manifest["general"] = {"fingerprint": "g"}, {"fingerprint": "h"}
    assert (
        "the general text is not what it was when other runs of seed 5 were made"
        in answer_hypotheses(study, runs)[0].found[0].why_not
    )
    runs["old-5"].manifest["general"] = {"fingerprint": "g"}
    runs["new-0"].config["data"] = {"path": "other.csv"}  # which is another name for other data
    (now,) = answer_hypotheses(study, runs)
    assert list(now.found[0].differences) == [0, 3, 4, 5, 6, 7]


def test_losses_of_different_units_are_not_subtracted(tmp_path):
    study, runs = two_arms(tmp_path, OLD[:5] + 0.5, OLD[:5], hypotheses=(claim(), claim("counts", metric="bytes_up")))
    for i in range(5):
        runs[f"new-{i}"] = replace(runs[f"new-{i}"], config={"data": {"task_type": "preference"}})
    loss, counts = answer_hypotheses(study, runs)
    assert (loss.verdict, loss.decisive.values) == ("inconclusive", [])
    assert loss.decisive.why_not == "losses in nats per pair, nats per token, which cannot be compared"
    assert "cannot be compared" not in counts.decisive.why_not
    r = Results(tmp_path, study, runs)
    assert "not measured: losses in nats per pair, nats per token" in format_answers(r)
    assert any("cannot be compared" in line for line in list_limits(r))
