"""Thresholds from control runs: their formula by hand, and how often they cry wolf."""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import replace

import numpy as np
import pytest
import scipy

from fedfault.config.loading import load
from fedfault.diagnosis import calibration
from fedfault.diagnosis.calibration import (
    ALPHA,
    Calibration,
    Threshold,
    choose_calibration,
    compare_controls,
    compare_settings,
    find_obstacles,
    find_reached,
    kept_calibrations,
    learn_thresholds,
)
from fedfault.diagnosis.detection import build_detectors
from fedfault.errors import UserError
from fedfault.records import Detector, Reading
from fedfault.testing.histories import healthy

LEAST = 1e-9  # a spread that does not matter


def reader(column: int, spread: float = LEAST, **changes) -> Detector:
    """A detector of runs whose records are rows of numbers: it reads one of them."""

    def follow(records, scale):
        for t, row in enumerate(records, 1):
            yield None if math.isnan(row[column]) else Reading(t, row[column], 1.0, {})

    return Detector(
        follow, lambda r: "it differs", ("stop",), min_effect=0.0, min_std=spread, default_threshold=None, **changes
    )


def repeat(rows) -> list:
    """Runs of two records each, which are the same row."""
    return [[row, row] for row in rows]


def learned(controls, spread: float = LEAST, alpha: float = ALPHA):
    """Thresholds (D,) from rows (m, D), and whether they are exact."""
    known = {f"d{j}": reader(j, spread) for j in range(len(controls[0]))}
    found, exact = learn_thresholds(repeat(controls), known, alpha)
    return np.array([found[name].value for name in known]), exact


def left_out(values) -> np.ndarray:
    """Each value in standard deviations from the mean of the others."""
    rest = [[v for j, v in enumerate(values) if j != i] for i in range(len(values))]
    return np.array([(v - np.mean(r)) / np.std(r, ddof=1) for v, r in zip(values, rest, strict=True)])


@pytest.mark.parametrize(("m", "alpha", "place"), [(19, 0.05, 19), (39, 0.05, 38), (59, 0.05, 57), (9, 0.1, 9)])
def test_the_threshold_is_an_order_statistic(m, alpha, place):
    """k = ceil((m + 1)(1 - alpha)): the largest of 19, the 38th smallest of 39, ..."""
    values = np.random.default_rng(m).normal(2, 3, size=m)
    (found,), exact = learned(values[:, None].tolist(), alpha=alpha)
    cut = np.sort(left_out(values))[place - 1]
    assert exact
    assert found == pytest.approx(values.mean() + cut * values.std(ddof=1))
    assert place == round((m + 1) * (1 - alpha))


def test_standardised_by_hand():
    """0 1 2 5: the last one is (5 - 1) / 1 standard deviations from the others, all of them have mean 2."""
    controls = [[0.0], [1.0], [2.0], [5.0]]
    (found,), exact = learned(controls, alpha=0.2)
    assert exact
    assert found == pytest.approx(2 + 4 * math.sqrt((4 + 1 + 0 + 9) / 3))


def test_the_cut_is_that_of_the_most_extreme_detector():
    """The second detector has an outlier of its own: the first one's threshold lies as many deviations up."""
    g = np.random.default_rng(0)
    rows = g.normal(size=(19, 2))
    alone, _ = learned(rows[:, :1].tolist())
    rows[3, 1] = 30
    both, _ = learned(rows.tolist())
    cut = left_out(rows[:, 1])[3]
    assert both[0] == pytest.approx(rows[:, 0].mean() + cut * rows[:, 0].std(ddof=1))
    assert both[0] > alone[0]


def test_units_do_not_matter():
    rows = np.random.default_rng(0).normal(size=(19, 3))
    scale, shift = np.array([1.0, 100.0, 0.01]), np.array([0.0, -7.0, 3.0])
    plain, _ = learned(rows.tolist())
    other, _ = learned((rows * scale + shift).tolist())
    assert other == pytest.approx(plain * scale + shift)


def test_no_control_of_19_would_have_raised_an_alarm():
    rows = np.random.default_rng(0).standard_t(2, size=(19, 5))
    found, _ = learned(rows.tolist())
    assert bool((rows <= found).all())


def test_few_controls_give_the_t_bound_of_a_new_one():
    """mean + t sd sqrt(1 + 1/m) of the largest standardised value of every control; one more makes the difference."""
    values = np.random.default_rng(0).normal(size=18)
    (found,), exact = learned(values[:, None].tolist())
    S = left_out(values)
    cut = S.mean() + scipy.stats.t.ppf(0.95, 17) * S.std(ddof=1) * math.sqrt(1 + 1 / 18)
    assert not exact
    assert found == pytest.approx(values.mean() + cut * values.std(ddof=1))
    assert learned([[v] for v in [*values, 0.0]])[1]


@pytest.mark.parametrize("m", [0, 1, 2])
def test_less_than_three_controls_are_refused(m):
    with pytest.raises(UserError, match=f"{m} control runs; a calibration needs 3 at least, and 19"):
        learned([[1.0]] * m or [], LEAST) if m else learn_thresholds([], {})


@pytest.mark.parametrize("m", [3, 19])
def test_a_statistic_that_never_varies_does_not_blow_up(m):
    """Then the spread stands for the standard deviation."""
    rows = [[4.0, v] for v in np.random.default_rng(0).normal(size=m)]
    found, _ = learned(rows, spread=0.1)
    assert np.isfinite(found).all()
    assert found[0] > 4
    constant, _ = learned([[4.0]] * m, spread=0.1)
    assert constant == pytest.approx([4.0])  # every control is 0 deviations from the others


def test_the_spread_is_a_floor_of_the_standard_deviation():
    """sqrt(sd^2 + spread^2): far below it nothing changes, far above it is what counts."""
    values = np.random.default_rng(0).normal(size=19)[:, None].tolist()
    assert learned(values, spread=1e-6)[0] == pytest.approx(learned(values)[0])
    narrow = [[1e-6 * v[0]] for v in values]
    (found,), _ = learned(narrow, spread=1.0)
    assert abs(found) < 1e-4


def test_what_a_control_has_no_value_of_stays_without_a_threshold():
    rows = np.random.default_rng(0).normal(size=(19, 4))
    rows[5, 1], rows[6, 2] = math.nan, math.inf
    known = {"all": reader(0), "some": reader(1), "endless": reader(2), "theory": reader(3, calibrated=False)}
    found, exact = learn_thresholds(repeat(rows.tolist()), known)
    assert set(found) == {"all"}
    assert exact
    assert learn_thresholds(repeat(rows.tolist()), {"theory": known["theory"]}) == ({}, True)


def test_a_threshold_remembers_its_controls_and_their_scale():
    scaled = replace(reader(0), learn_scale=lambda controls: {"sigma": float(len(controls))})
    found, _ = learn_thresholds(repeat([[1.0], [2.0], [4.0]]), {"one": scaled})
    assert (found["one"].controls, found["one"].scale, found["one"].seen) == (3, {"sigma": 3.0}, (1.0, 2.0, 4.0))


def normal(g, runs: int, D: int) -> np.ndarray:
    return g.normal(size=(runs, D))


def heavy(g, runs: int, D: int) -> np.ndarray:
    """Student's t with two degrees of freedom: no variance."""
    return g.standard_t(2, size=(runs, D))


def skewed(g, runs: int, D: int) -> np.ndarray:
    return np.exp(1.5 * g.normal(size=(runs, D)))


def correlated(g, runs: int, D: int) -> np.ndarray:
    """Correlation 0.9 between detectors."""
    return math.sqrt(0.9) * g.normal(size=(runs, 1)) + math.sqrt(0.1) * g.normal(size=(runs, D))


def tied(g, runs: int, D: int) -> np.ndarray:
    """Half of the healthy runs read zero."""
    return np.maximum(g.normal(size=(runs, D)), 0)


@pytest.mark.slow
@pytest.mark.parametrize("draw", [normal, heavy, skewed, correlated, tied])
@pytest.mark.parametrize("D", [1, 3, 8])
def test_at_most_5_of_100_healthy_runs_raise_any_alarm(draw, D):
    """60 calibrations of 19 controls each, and a thousand fresh runs each; + 4 standard errors over calibrations."""
    g, rates = np.random.default_rng(D), []
    for _ in range(60):
        thresholds, exact = learned(draw(g, 19, D).tolist())
        assert exact
        rates.append(np.mean((draw(g, 1000, D) > thresholds).any(axis=1)))
    assert np.mean(rates) <= ALPHA + 4 * np.std(rates, ddof=1) / math.sqrt(len(rates))


@pytest.mark.long
@pytest.mark.parametrize("draw", [normal, heavy, skewed, correlated, tied])
@pytest.mark.parametrize("m", [19, 39, 99])
def test_about_5_of_100_healthy_runs_raise_any_alarm(draw, m):
    """300 calibrations, eight detectors: 3 to 6.5 %; 19 correlated controls give 3.3 (docs/metrics.md), tied ones less."""
    g, rates = np.random.default_rng(m), []
    for _ in range(300):
        thresholds, _ = learned(draw(g, m, 8).tolist())
        rates.append(np.mean((draw(g, 1000, 8) > thresholds).any(axis=1)))
    assert np.mean(rates) <= 0.065
    assert draw is tied or np.mean(rates) >= 0.03


def scaled(column: int) -> Detector:
    """It reads a number beside the largest of the controls, as detectors do that learn a scale."""

    def follow(records, scale):
        for t, row in enumerate(records, 1):
            yield Reading(t, row[column] / scale.get("most", 1.0), 1.0, {})

    return Detector(
        follow, lambda r: "it differs", ("stop",), min_effect=0.0, min_std=LEAST, default_threshold=None,
        learn_scale=lambda controls: {"most": max(run[0][column] for run in controls)},
    )  # fmt: skip


def test_a_control_is_read_against_the_scale_of_the_others():
    """1 2 4, with the largest as the scale: left out in turn, 1 is 1/4 beside 2/4 and 4/4, 4 is 4/2 beside 1/2 and 2/2."""
    (found,), exact = (
        [t.value for t in learn_thresholds(repeat([[1.0], [2.0], [4.0]]), {"one": scaled(0)}, 0.25)[0].values()],
        learn_thresholds(repeat([[1.0], [2.0], [4.0]]), {"one": scaled(0)}, 0.25)[1],
    )
    assert exact
    cut = (4 / 2 - (1 / 2 + 2 / 2) / 2) / np.std([1 / 2, 2 / 2], ddof=1)  # the largest of the three
    values = np.array([1.0, 2.0, 4.0]) / 4
    assert found == pytest.approx(values.mean() + cut * values.std(ddof=1))


@pytest.mark.slow
def test_a_scale_that_is_learned_from_controls_leaves_the_rate_at_5_of_100():
    """In-sample, no control would exceed the largest of them, and one new run in twenty would."""
    g, rates, known = np.random.default_rng(0), [], {"one": scaled(0), "two": scaled(1)}
    for _ in range(60):
        controls = np.exp(g.normal(size=(19, 2)))
        found, _ = learn_thresholds(repeat(controls.tolist()), known)
        fresh = np.exp(g.normal(size=(500, 2))) / controls.max(axis=0)
        rates.append(np.mean((fresh > [found["one"].value, found["two"].value]).any(axis=1)))
    assert np.mean(rates) <= ALPHA + 4 * np.std(rates, ddof=1) / math.sqrt(len(rates))


@pytest.mark.parametrize("D", [1, 8])
def test_a_run_that_differs_by_six_deviations_in_one_statistic_is_seen(D):
    g, seen = np.random.default_rng(0), []
    for _ in range(40):
        thresholds, _ = learned(normal(g, 19, D).tolist())
        seen.append(np.mean(6 + g.normal(size=500) > thresholds[0]))
    assert np.mean(seen) > 0.9


@pytest.mark.slow
def test_healthy_runs_of_the_real_detectors_hardly_ever_alarm():
    thresholds, exact = learn_thresholds([healthy(seed) for seed in range(19)], build_detectors(), same_partition=True)
    known = {n: d for n, d in build_detectors().items() if d.calibrated}
    assert exact
    assert set(thresholds) == set(known)
    alarms = 0
    for seed in range(100, 140):
        fresh = healthy(seed)
        alarms += any(find_reached(d, thresholds[n].scale, fresh) > thresholds[n].value for n, d in known.items())
    assert alarms <= 40 * ALPHA + 4 * math.sqrt(40 * ALPHA * (1 - ALPHA))


CONFIG = {
    "experiment_name": "controls",
    "seed": 1,
    "model": {"name": "micro", "max_length": 64, "lora": {"r_max": 8}},
    "data": {"dataset": {"name": "registers"}, "partition": {"name": "iid"}},
    "federation": {"num_rounds": 12, "on_failure": "continue"},
    "training": {"lr": 0.01},
}
MADE = Calibration(
    "made", {"divergence": Threshold(5.5, 19, {"sigma": 0.02}, (1.0, 2.5))}, 19, 0.05, True, CONFIG, {"commit": "abc"}
)


def like(**changes):
    """The controls' configuration with other values, `a__b=c` for a.b=c."""
    config = json.loads(json.dumps(CONFIG))
    for key, value in changes.items():
        *above, last = key.split("__")
        part = config
        for name in above:
            part = part.setdefault(name, {})
        part[last] = value
    return config


def test_a_calibration_survives_its_file(tmp_path):
    MADE.save(tmp_path / "made.json")
    assert Calibration.load(tmp_path / "made.json") == MADE


def test_thresholds_replace_a_calibration_and_no_other_file(tmp_path):
    file, data = tmp_path / "made.json", tmp_path / "base.csv"
    MADE.save(file)
    replace(MADE, name="again").save(file)
    assert Calibration.load(file).name == "again"
    data.write_text("text\nhello\n")
    for place in (data, tmp_path):
        with pytest.raises(UserError, match=r"exists and is not a calibration .* remove it"):
            MADE.save(place)
    assert data.read_text() == "text\nhello\n"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "3",
        '"text"',
        "{}",
        '{"thresholds": {}}',
        '{"thresholds": 3}',
        '{"thresholds": {"a": {"value": 1}}}',
    ],
)
def test_a_damaged_file_explains_itself(tmp_path, text):
    file = tmp_path / "bad.json"
    file.write_text(text)
    with pytest.raises(UserError, match=r"bad\.json is not a calibration .*; make one with `fedfault calibrate`"):
        Calibration.load(file)


def test_a_file_that_is_cut_off_or_no_text_explains_itself(tmp_path):
    MADE.save(tmp_path / "whole.json")
    (tmp_path / "half.json").write_text((tmp_path / "whole.json").read_text()[:100])
    (tmp_path / "binary.json").write_bytes(b"\xff\xfe\x00")
    for name in ("half.json", "binary.json"):
        with pytest.raises(UserError, match="is not a calibration"):
            Calibration.load(tmp_path / name)


def test_a_missing_file_says_what_can_be_given():
    with pytest.raises(UserError, match="give packaged, auto, none or a file of `fedfault calibrate`"):
        choose_calibration("nowhere.json", CONFIG)


def test_none_is_no_calibration():
    assert choose_calibration("none", CONFIG) == (None, [])


def test_a_run_may_differ_in_what_controls_are_there_for():
    same = like(experiment_name="mine", seed=7, federation__on_failure="stop", data__partition={"name": "topic_skew"})
    assert compare_settings(CONFIG, same) == ([], [])


def test_settings_that_differ_are_named_and_some_must_not():
    wrong, differs = compare_settings(CONFIG, like(model__name="other", training__lr=0.1, model__lora__alpha=4))
    assert wrong == ["model.name=other (micro)"]
    assert sorted(differs) == ["model.lora.alpha=4 (16.0)", "training.lr=0.1 (0.01)"]
    assert compare_settings(CONFIG, like(training__momentum=0.9)) == ([], ["training.momentum=0.9 (None)"])


def test_controls_that_are_older_than_a_setting_had_its_default():
    assert compare_settings(CONFIG, like(deadline__enabled=True, clock__mode="modelled")) == ([], [])
    assert compare_settings(CONFIG, like(deadline__enabled=False)) == ([], ["deadline.enabled=False (True)"])


def test_controls_that_are_older_than_an_option_of_their_algorithm_had_its_default():
    older = like(federation__algorithm={"name": "fedadam", "server_lr": 0.1})
    assert compare_settings(older, like(federation__algorithm={"name": "fedadam", "server_lr": 0.1, "tau": 1e-3})) == (
        [],
        [],
    )
    wrong, differs = compare_settings(
        older, like(federation__algorithm={"name": "fedadam", "server_lr": 0.1, "tau": 1.0})
    )
    assert (wrong, differs) == ([], ["federation.algorithm.tau=1.0 (0.001)"])


FAMILIES = (
    [],
    ["federation.algorithm=fedprox"],
    ["federation.algorithm=scaffold"],
    ["federation.algorithm=fedadam"],
    ["federation.aggregation=fedsa_lora"],
    ["federation.aggregation=flexlora", "federation.scheduler={name: fixed, ranks: [2, 4, 8]}"],
)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("quickstart", []),
        ("instruct/smollm2", []),
        *itertools.product(("demos/base", "demos/smollm2", "demos/labels", "instruct/quick"), FAMILIES),
    ],
)
def test_the_shipped_configurations_differ_in_nothing_from_their_controls(name, settings):
    found, differs = choose_calibration("packaged", load(name, settings).resolved)
    assert found is not None
    assert differs == []
    assert found.controls >= 19
    assert found.exact


def test_a_file_is_taken_with_its_differences_or_refused(tmp_path):
    file = tmp_path / "made.json"
    MADE.save(file)
    assert choose_calibration(str(file), like(training__lr=0.1)) == (MADE, ["training.lr=0.1 (0.01)"])
    for change in (
        {"model__max_length": 128},
        {"data__dataset__name": "bbc"},
        {"data__dataset__alpha": 2},
        {"data__path": "other.csv"},
        {"federation__num_rounds": 3},
        {"federation__algorithm": {"name": "fedadam"}},
        {"federation__aggregation": {"name": "flora"}},
        {"model__lora__r_max": 2},  # no adapter of rank 2 has the rank of one of rank 8
        {"model__lora__target_modules": ["q_proj"]},
        {"model__trainable": "full"},
        {"federation__total_clients": 40},
        {"evaluation__every": 4},  # too seldom for an alarm
        {"evaluation__general": "wikitext"},
        {"evaluation__max_blocks": 2},  # noisier losses
        {"data__max_samples": 50},
    ):
        with pytest.raises(
            UserError, match=r"is for other runs: it differs in \S+=\S+ \(\S+\); .*calibration=auto makes"
        ):
            choose_calibration(str(file), like(**change))


OWN = replace(MADE, config=like(data__path="a/mine.csv"), provenance={"corpus": "c1"})


def test_own_data_are_the_same_wherever_they_lie_and_others_are_not(tmp_path):
    file = tmp_path / "made.json"
    OWN.save(file)
    moved = like(data__path="b/mine.csv")
    assert choose_calibration(str(file), moved, "c1")[0] == OWN
    with pytest.raises(UserError, match=r"differs in the data \(fingerprints c2 and c1\)"):
        choose_calibration(str(file), like(data__path="a/mine.csv"), "c2")
    assert choose_calibration(str(file), moved)[0] == OWN  # what they are is not known before they are read


def test_a_model_in_a_folder_is_told_by_its_content(tmp_path):
    found = replace(OWN, provenance={**OWN.provenance, "model": "m1"})
    here, named = (like(model__name=name, data__path="a/mine.csv") for name in (str(tmp_path), "org/name"))
    folder = replace(found, config={**found.config, "model": here["model"]})
    assert compare_controls(folder, here, "c1", "m1")[0] == []
    assert compare_controls(folder, here, "c1")[0] == []  # not known before it is read
    assert compare_controls(folder, here, "c1", "m2")[0] == [f"the model in {tmp_path} (fingerprints m2 and m1)"]
    assert (
        compare_controls(replace(found, config={**found.config, "model": named["model"]}), named, "c1", "m2")[0] == []
    )


def test_auto_takes_what_was_made_here_for_the_same_schedule(tmp_path, monkeypatch):
    monkeypatch.setenv("FEDFAULT_CACHE", str(tmp_path))
    kept_calibrations().mkdir()
    OWN.save(kept_calibrations() / "one.json")
    mine = {"data__path": "mine.csv"}
    assert choose_calibration("auto", like(**mine), "c1") == (OWN, [])
    assert choose_calibration("auto", like(**mine, training__lr=0.1), "c1") == (OWN, ["training.lr=0.1 (0.01)"])
    assert choose_calibration("packaged", like(**mine), "c1") == (None, [])
    for other in ({"training__local_steps": 3}, {"federation__total_clients": 4}, {"model__lora__r_max": 4}):
        assert choose_calibration("auto", like(**mine, **other), "c1") == (None, [])
    assert choose_calibration("auto", like(**mine), "c2") == (None, [])


def test_a_file_that_calls_components_by_their_older_keys_is_read(tmp_path):
    file = tmp_path / "old.json"
    federation = {**CONFIG["federation"], "aggregation": {"method": "fedit"}}
    replace(MADE, config={**CONFIG, "federation": federation}).save(file)
    assert choose_calibration(str(file), like(federation__aggregation={"name": "fedit"}))[1] == []


def test_the_packaged_one_that_differs_least_is_taken(tmp_path, monkeypatch):
    monkeypatch.setattr(calibration, "PACKAGED", tmp_path)
    assert choose_calibration("packaged", CONFIG) == (None, [])
    others = {"near": like(training__lr=0.02), "far": like(training__lr=0.1, model__lora__r_max=4)}
    others["other"] = like(model__name="other")
    for name, config in others.items():
        replace(MADE, name=name, config=config).save(tmp_path / f"{name}.json")
    found, differs = choose_calibration("packaged", CONFIG)
    assert (found.name, differs) == ("near", ["training.lr=0.01 (0.02)"])
    assert choose_calibration("packaged", like(federation__num_rounds=3)) == (None, [])


def test_of_two_packaged_ones_alike_the_first_is_taken(tmp_path, monkeypatch):
    monkeypatch.setattr(calibration, "PACKAGED", tmp_path)
    for commit in ("a", "b"):
        replace(MADE, provenance={"commit": commit}).save(tmp_path / f"{commit}.json")
    assert choose_calibration("packaged", CONFIG)[0].provenance == {"commit": "a"}


def test_controls_of_a_partition_fit_runs_of_that_partition_alone():
    config = load("quickstart").resolved
    own = replace(MADE, config=config, same_partition=True)
    assert compare_controls(own, config) == ([], [])
    other = load("quickstart", ["data.partition=iid"]).resolved
    wrong, _ = compare_controls(own, other)
    assert wrong[0] == "data.partition.name=iid (topic_isolation)"
    assert compare_controls(replace(own, same_partition=False), other) == ([], [])


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ([], ("demo-healthy", [])),
        (["model.lora.r_max=2"], ("demo-healthy", ["model.lora.r_max=2 (8)"])),
        (["federation.total_clients=40", "federation.algorithm=fednova"], None),
    ],
)
def test_the_nearest_packaged_calibration_says_what_keeps_it_from_serving(settings, expected):
    found = find_obstacles(load("demos/base", settings).resolved)
    if expected is None:
        assert [text.split("=")[0] for text in found[1]] == ["federation.total_clients", "federation.algorithm.name"]
    else:
        assert found == expected
