"""What to use when: the best by hand, what is shown about the others, and how often a study is wrong about that."""

from __future__ import annotations

import math

import numpy as np
import pytest

from fedfault.errors import UserError
from fedfault.studies.best import explain_best, find_best, tabulate_best
from fedfault.studies.file import load_study
from fedfault.studies.page import write_page
from fedfault.studies.results import Results
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
    assert "fedavg" in table.columns[3]
    first, second = table.rows
    assert first[:3] == ["iid", "fedavg", "4.050"]
    assert first[4:] == ["fedprox", "scaffold; fedadam (diverged)", "–"]
    assert second[:2] == ["skew", "fedprox"]
    assert second[3].startswith("0.300 (0.")  # 4.5 − 4.2, and noise of mean 0
    assert second[4:] == ["–", "fedavg", "scaffold"]  # 0.09, give or take more than 0.01: neither side of 0.1


@pytest.mark.slow
def test_higher_may_be_better_and_where_holds_an_axis(tmp_path):
    r = results(tmp_path, {"iid": {"fedavg": 4.0, "fedprox": 4.5}, "skew": {"fedavg": 4.5, "fedprox": 4.0}})
    (found,) = find_best(r, Best("w", "algorithm", LOSS, "higher", 0.1, {"partition": "iid"}))
    assert (found.name, found.best, found.rivals[0].compare(0.1)) == ("iid", "fedprox", "worse")
    assert np.mean(found.rivals[0].worse) == pytest.approx(0.5)
    assert "(iid)" in explain_best(Best("w", "algorithm", LOSS, "higher", 0.1, {"partition": "iid"}))


def test_one_seed_shows_nothing_and_one_arm_is_no_comparison(tmp_path):
    one = results(tmp_path / "one", {"iid": {"fedavg": 4.0, "fedprox": 4.5}}, seeds=1)
    assert tabulate_best(one, ASK).rows[0][4:] == ["–", "–", "fedprox"]
    assert tabulate_best(results(tmp_path / "alone", {"iid": {"fedavg": 4.0}}), ASK) is None


@pytest.mark.slow
def test_what_is_said_of_the_rivals_is_wrong_in_one_study_of_twenty_at_most(tmp_path):
    """Five equal arms in one situation, five seeds of normal noise: none is worse than another one, however it turns out."""
    g, wrong, trials = np.random.default_rng(0), 0, 300
    arms = {f"arm{k}": 4.0 for k in range(5)}
    r = results(tmp_path, {"iid": arms})
    for _ in range(trials):
        for run in r.runs.values():
            run.metrics["final"]["validation"]["loss"] = float(g.normal(4.0, 0.05))
        wrong += any(rival.compare(0.0) == "worse" for rival in find_best(r, ASK)[0].rivals)
    assert wrong <= 23  # of 300 at 5 %: 15, and 23 or fewer in 98 % of trials


@pytest.mark.slow
def test_the_report_has_the_table_and_how_it_is_read(tmp_path):
    r = results(tmp_path, {"iid": {"fedavg": 4.0, "fedprox": 4.5}})
    r.study.save(tmp_path)
    write_page(tmp_path)
    for file in ("report.html", "report.md", "report.tex"):
        text = (tmp_path / file).read_text()
        assert "What to use when" in text
        assert "rows are not corrected for one another" in text


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
