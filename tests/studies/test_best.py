"""What to use when: the best by hand, what is shown about the others, and how often a study is wrong about that."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from fedfault.errors import UserError
from fedfault.stats import ALPHA, mean_interval
from fedfault.studies import best
from fedfault.studies.best import _compare_situation, explain_best, find_best, tabulate_best
from fedfault.studies.file import load_study
from fedfault.studies.page import write_page
from fedfault.studies.results import Results, format_answers
from fedfault.studies.study import Best, Cell, Study, read_study
from planted import planted

LOSS = "final.validation.loss"
ASK = Best("which", "algorithm", LOSS, "lower", 0.1, {})
SEEDS = np.array([0.0, 0.2, -0.1, 0.1, 0.05])  # shared by all arms of a seed
NOISE = 0.01 * np.array([[0, 0, 0, 0, 0], [1, -1, 0, 1, -1], [-1, 1, 1, -1, 0], [2, -1, -1, 0, 0]])
GRID = {"federation.algorithm": ["fedavg", "fedprox"], "data.partition": ["iid", "topic_isolation"]}


def results(folder, losses, seeds=5, noise=NOISE):
    """Situation -> algorithm -> loss: a study of all of them whose runs are paired but for a little noise."""
    cells, runs = [], {}
    for partition, arms in losses.items():
        for k, (algorithm, loss) in enumerate(arms.items()):
            names = tuple(f"{partition}-{algorithm}-{s}" for s in range(seeds))
            for s, name in enumerate(names):
                value = loss + SEEDS[s % 5] + noise[k % len(noise)][s % 5]
                runs[name] = planted(folder / "runs" / name, [5.0, value], seed=s)
            cells.append(Cell({"partition": partition, "algorithm": algorithm}, names))
    return Results(folder, Study("trial", "", tuple(range(seeds)), tuple(cells), best=(ASK,)), runs)


@pytest.mark.slow
def test_each_situation_has_its_own_best_and_what_is_shown_of_the_others(tmp_path):
    iid = {"fedavg": 4.0, "fedprox": 4.005, "scaffold": 4.3, "fedadam": math.nan}
    skew = {"fedavg": 4.5, "fedprox": 4.2, "scaffold": 4.29}
    table = tabulate_best(results(tmp_path, {"iid": iid, "skew": skew}), ASK)
    assert table.columns[3] == "fedavg loses"
    first, second = table.rows
    assert first[:3] == ["iid", "fedavg", "4.050"]
    assert first[4:] == ["fedavg; fedprox", "scaffold; fedadam (diverged)", "–"]
    assert second[:2] == ["skew", "fedprox"]
    assert second[3].startswith("0.300 (0.")  # 4.5 − 4.2, and noise of mean 0
    # 0.09, give or take more than 0.01, is neither side of 0.1: ((2.24 + 0.84) · 0.0187 / 0.01)² = 33, and some for t
    assert second[4:] == ["fedprox", "fedavg", "scaffold (36)"]


def test_what_a_value_loses_is_bounded_by_every_value_that_may_be_the_best():
    """Three values by hand: t of 2 degrees at 0.05 / 2 on two sides is 6.2053."""
    by_seed = {
        "a": {0: 1.0, 1: 1.0, 2: 1.0},
        "b": {0: 1.0, 1: 1.1, 2: 1.2},  # b − a: mean 0.1, s 0.1: 0.1 ± 0.358, so b may be the best
        "c": {0: 1.99, 1: 2.0, 2: 2.01},  # c − a: 1 ± 0.036; c − b: 0.9 ± 0.322
    }
    study = Study("trial", "", (0, 1, 2), ())
    found = _compare_situation(study, ASK, (), by_seed).standings
    assert found["a"].loses == pytest.approx((0.0, 0.258), abs=1e-3)  # at most that against b
    assert found["b"].loses == pytest.approx((0.0, 0.458), abs=1e-3)
    assert found["c"].loses == pytest.approx((0.9 - 0.322, 0.9 + 0.322), abs=1e-3)
    assert [one.shown for one in found.values()] == ["open", "open", "worse"]


def test_who_is_ahead_is_found_over_the_seeds_that_all_have():
    # B is ahead in every pair, a in the mean of its own
    by_seed = {"a": {0: 4.0, 1: 5.0, 2: 3.0}, "b": {0: 3.9, 1: 4.9}}
    found = _compare_situation(Study("trial", "", (0, 1, 2), ()), ASK, (), by_seed)
    assert found.ahead == "b"
    assert found.standings["a"].mean == pytest.approx(4.5)


@pytest.mark.slow
def test_higher_may_be_better_and_where_holds_an_axis(tmp_path):
    r = results(tmp_path, {"iid": {"fedavg": 4.0, "fedprox": 4.5}, "skew": {"fedavg": 4.5, "fedprox": 4.0}})
    (found,) = find_best(r, Best("w", "algorithm", LOSS, "higher", 0.1, {"partition": "iid"}))
    assert (found.name, found.ahead, found.standings["fedavg"].shown) == ("iid", "fedprox", "worse")
    low, high = found.standings["fedavg"].loses
    assert low < 0.5 < high
    assert "(iid)" in explain_best(Best("w", "algorithm", LOSS, "higher", 0.1, {"partition": "iid"}))


def test_one_seed_shows_nothing_and_one_arm_is_no_comparison(tmp_path):
    one = results(tmp_path / "one", {"iid": {"fedavg": 4.0, "fedprox": 4.5}}, seeds=1)
    assert tabulate_best(one, ASK).rows[0][3:] == ["0.000", "–", "–", "fedavg; fedprox"]
    assert tabulate_best(results(tmp_path / "alone", {"iid": {"fedavg": 4.0}}), ASK) is None


@pytest.mark.slow
@pytest.mark.parametrize(
    ("losses", "spreads"),
    [
        ([4.0] * 5, [0.05] * 5),
        ([4.0] * 5, [0.2, 0.01, 0.01, 0.01, 0.01]),
        ([4.0, 4.05, 4.05, 4.1, 4.3], [0.01, 0.1, 0.02, 0.05, 0.05]),
        ([4.0, 4.02, 4.02, 4.02, 4.02], [0.1, 0.02, 0.02, 0.02, 0.02]),
    ],
    ids=["equal", "one is noisy", "spread out", "a noisy best"],
)
@pytest.mark.parametrize("seeds", [3, 6])
def test_what_a_row_says_is_wrong_in_one_study_of_twenty_at_most(losses, spreads, seeds, monkeypatch):
    monkeypatch.setattr(best, "count_needed", lambda *_, **__: None)  # takes most of the time, and is not looked at
    g, wrong, trials = np.random.default_rng(0), 0, 400
    study = Study("trial", "", tuple(range(seeds)), ())
    for _ in range(trials):
        drawn = g.normal(losses, spreads, (seeds, len(losses))) + g.normal(0, 0.3, (seeds, 1))
        by_seed = {f"arm{k}": dict(enumerate(map(float, drawn[:, k]))) for k in range(len(losses))}
        found = _compare_situation(study, ASK, (), by_seed).standings
        bounds = [found[f"arm{k}"].loses for k in range(len(losses))]
        wrong += any(not low <= loss - min(losses) <= high for loss, (low, high) in zip(losses, bounds, strict=True))
    assert wrong <= 29  # of 400 at 5 %: 20, and 29 or fewer in 98 % of trials


@pytest.mark.slow
def test_a_row_says_more_than_intervals_of_all_pairs_would(monkeypatch):
    """Six values, one of them 0.06 ahead, noise of 0.02, six seeds: which others are shown to lose more than 0.02."""
    monkeypatch.setattr(best, "count_needed", lambda *_, **__: None)
    g, shown, shown_by_pairs, trials = np.random.default_rng(1), 0, 0, 200
    asked, study = replace(ASK, by=0.02), Study("trial", "", tuple(range(6)), ())
    for _ in range(trials):
        drawn = g.normal([4.0] + [4.06] * 5, 0.02, (6, 6))
        by_seed = {f"arm{k}": dict(enumerate(map(float, drawn[:, k]))) for k in range(6)}
        found = _compare_situation(study, asked, (), by_seed).standings
        shown += sum(one.shown == "worse" for one in found.values())
        shown_by_pairs += sum(mean_interval(drawn[:, k] - drawn[:, 0], ALPHA / 15)[0] > 0.02 for k in range(1, 6))
    assert shown > 1.2 * shown_by_pairs


@pytest.mark.slow
def test_seeds_whose_runs_saw_other_data_are_left_out(tmp_path):
    """They counted here, where hypotheses had left them out."""
    r = results(tmp_path, {"iid": {"fedavg": 4.0, "fedprox": 4.5}})
    for name, run in r.runs.items():
        run.manifest["corpus"] = {"fingerprint": "old" if name in ("iid-fedavg-0", "iid-fedavg-1") else "new"}
    (found,) = find_best(r, ASK)
    assert found.standings["fedavg"].mean == pytest.approx(4.0 + np.mean(SEEDS[2:]))  # whose noise is 0
    assert "The corpus is not the same in all runs" in format_answers(r)


@pytest.mark.slow
def test_the_report_has_the_table_and_how_it_is_read(tmp_path):
    r = results(tmp_path, {"iid": {"fedavg": 4.0, "fedprox": 4.5}})
    r.study.save(tmp_path)
    write_page(tmp_path)
    for file in ("report.html", "report.md", "report.tex"):
        text = (tmp_path / file).read_text()
        assert "What to use when" in text
        assert "rows are not corrected for one another" in text
    assert "Comparisons with the Best Treatment" in (tmp_path / "references.bib").read_text()


def test_a_file_asks_and_the_folder_remembers(write, tmp_path):
    plan = load_study(write(grid=GRID, seeds=2, best={"which": {"axis": "algorithm", "by": 0.1}}))
    assert plan.study.best == (ASK,)
    plan.study.save(tmp_path)
    assert read_study(tmp_path).best == (ASK,)


@pytest.mark.parametrize(
    ("about", "says"),
    [
        ({"axis": "algorithm"}, "by missing"),
        ({"axis": "lr", "by": 0.1}, "'lr' does not vary"),
        ({"axis": "algorithm", "by": -1}, "at least 0"),
        ({"axis": "algorithm", "by": 0.1, "prefer": "best"}, "lower or higher"),
        ({"axis": "algorithm", "by": 0.1, "metric": "los"}, "is no metric"),
        ({"axis": "algorithm", "by": 0.1, "where": {"algorithm": "fedavg"}}, "leaves fedavg"),
    ],
)
def test_what_is_wrong_is_told(write, about, says):
    with pytest.raises(UserError, match=r"best\.which") as e:
        load_study(write(grid=GRID, seeds=2, best={"which": about}))
    assert says in str(e.value)
