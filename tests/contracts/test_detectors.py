"""One suite for every detector, now and later: on no, short, healthy, broken and incomplete histories."""

from __future__ import annotations

import copy
import json
import math
from dataclasses import replace
from functools import lru_cache

import pytest
from pydantic import BaseModel

from fedfault.config.schema import Component, Experiment
from fedfault.diagnosis.calibration import ALPHA, Calibration, Threshold, learn_thresholds
from fedfault.diagnosis.detection import build_detectors, choose_threshold, detect_failures, judge_readings
from fedfault.records import Detector, Finding, Reading, RoundRecord
from fedfault.registry import build, builders
from fedfault.testing.histories import broken, healthy, history

pytestmark = pytest.mark.parametrize("name", builders("detector"))
RUNS = {
    "nothing": [],
    "one round": healthy()[:1],
    "two rounds": healthy()[:2],
    "healthy": healthy(),
    "broken, not a number": broken(math.nan),
    "broken, infinite": broken(math.inf),
    "never a number": history([math.nan] * 8, scores={"general": [math.nan] * 8, "client/0": [math.nan] * 8}),
}


@lru_cache
def calibration() -> Calibration:
    thresholds, exact = learn_thresholds([healthy(seed) for seed in range(1, 20)], build_detectors())
    return Calibration("tests", thresholds, 19, ALPHA, exact, {})


@lru_cache
def scales(name: str) -> list[dict[str, float]]:
    """What the statistic is measured against: nothing, and what healthy controls say."""
    return [{}, built(name).learn_scale([healthy(seed) for seed in range(1, 5)])]


@lru_cache
def built(name: str) -> Detector:
    detector: Detector = build("detector", name)
    return detector


@lru_cache
def found(run: str, with_controls: bool, recorded: bool = False) -> list[Finding]:
    """What all detectors say of one of these runs, as it is or as it was written and read again."""
    records = RUNS[run]
    if recorded:
        lines = [json.dumps(r.to_json(), allow_nan=False) for r in records]
        records = [RoundRecord.from_json(json.loads(line)) for line in lines]
    return detect_failures(records, calibration() if with_controls else None)


def list_levels(name: str, run: str, with_controls: bool) -> list[str]:
    """The levels of this detector's findings."""
    return [f.level for f in found(run, with_controls) if f.detector == name]


def readings(name: str, records: list[RoundRecord]) -> list[Reading]:
    return [r for scale in scales(name) for r in built(name).read(records, scale)]


@pytest.mark.parametrize("with_controls", [False, True])
@pytest.mark.parametrize("run", ["nothing", "one round", "two rounds", "healthy"])
def test_no_history_a_short_one_and_a_healthy_one_say_nothing(name, run, with_controls):
    assert list_levels(name, run, with_controls) == []


def test_a_run_that_breaks_in_every_way_raises_an_alarm_once_it_is_compared_with_healthy_ones(name):
    assert "alarm" in list_levels(name, "broken, not a number", with_controls=True)


def test_the_same_records_give_the_same_readings_and_stay_what_they_were(name):
    for records in RUNS.values():
        before = copy.deepcopy(records)
        for scale in scales(name):
            scale_before = dict(scale)
            first = built(name).read(records, scale)
            assert repr(built(name).read(records, scale)) == repr(first)
            assert scale == scale_before
        assert repr(records) == repr(before)


def test_a_round_s_reading_does_not_depend_on_what_comes_later(name):
    for records in RUNS.values():
        for scale in scales(name):
            whole = built(name).read(records, scale)
            for t in range(len(records)):
                so_far = built(name).read(records[:t], scale)
                assert repr(so_far) == repr(whole[: len(so_far)])
                assert len(so_far) == sum(r.round < t for r in whole)


@pytest.mark.parametrize("with_controls", [False, True])
def test_recorded_runs_give_the_same_findings_as_live_ones(name, with_controls):
    for run in RUNS:
        live, read = (found(run, with_controls, recorded) for recorded in (False, True))
        assert [repr(f) for f in read if f.detector == name] == [repr(f) for f in live if f.detector == name]


def test_readings_are_of_recorded_rounds_in_order_and_numbers(name):
    for records in RUNS.values():
        for scale in scales(name):
            seen = built(name).read(records, scale)
            rounds = [r.round for r in seen]
            assert rounds == sorted(set(rounds) & {r.round for r in records})
            assert not any(math.isnan(r.statistic) or math.isnan(r.effect) for r in seen)
            assert not any(r.statistic == -math.inf for r in seen)


def test_evidence_is_finite_numbers_by_name(name):
    seen = [r for records in RUNS.values() for r in readings(name, records)]
    assert seen
    for r in seen:
        assert all(isinstance(v, float) and math.isfinite(v) for v in r.evidence.values()), r


def test_sentences_are_plain_text(name):
    for records in RUNS.values():
        for r in readings(name, records):
            sentence = built(name).explain(r)
            assert sentence == sentence.strip()
            assert sentence
            assert not {"nan", "inf", "-inf", "None"} & set(sentence.replace(",", " ").split())
            assert not any(bad in sentence for bad in ("\n", "{", "}", "e+", "e-0", "nan%", "inf%"))


def test_advice_is_plain_text_about_settings_that_exist(name):
    advice = built(name).advice
    assert advice
    for text in advice:
        assert text == text.strip() != ""
        for word in text.split():
            if "." in word:
                setting, _, value = word.partition("=")
                assert known_setting(setting, value), text


def test_its_remedies_are_settings_that_exist(name):
    for remedy in built(name).remedies:
        assert known_setting(remedy.setting, getattr(remedy, "new", "")), remedy


def known_setting(key: str, value: str) -> bool:
    """Whether the configuration has this key and its value names a component or is one of those allowed."""
    section: type[BaseModel] = Experiment
    *above, last = key.split(".")
    for part in above:
        kind = section.model_fields[part].annotation
        if kind is Component:
            return any(last in builder.__annotations__ for builder in builders(part).values())
        section = kind
    kind = section.model_fields[last].annotation
    return not value or (value in builders(last) if kind is Component else f"'{value}'" in str(kind))


def test_what_is_not_measured_is_done_without(name):
    """What one probe or evaluation gives is left out in turn, of every second round from the first or the second on."""
    records = broken(rounds=6)
    for drop in ("matrices", "clients", *parts("clients"), *parts("scores"), *parts("probes")):
        for first in (0, 1):
            less = [without(r, drop) if t % 2 == first else r for t, r in enumerate(records)]
            for r in readings(name, less):
                assert all(map(math.isfinite, r.evidence.values()))
                assert built(name).explain(r)
    bare = [RoundRecord(r.round) for r in records]
    assert readings(name, bare) == []


def parts(kind: str) -> list[str]:
    """kind/WORD for the first words of the names in a broken run: numbers that come together share it."""
    last = broken(rounds=1)[-1]
    names = last.clients[0].probes if kind == "clients" else getattr(last, kind)
    return [f"{kind}/{word}" for word in dict.fromkeys(name.partition("_")[0] for name in names)]


def without(record: RoundRecord, drop: str) -> RoundRecord:
    kind, _, gone = drop.partition("/")
    if kind != "clients":
        return replace(record, **{kind: kept(getattr(record, kind), gone)})
    left = tuple(replace(c, probes=kept(c.probes, gone)) for c in record.clients) if gone else ()
    return replace(record, clients=left)


def kept(values, gone: str):
    return {n: v for n, v in values.items() if not n.startswith(gone)}


def test_the_scale_is_finite_whatever_the_controls_were(name):
    for controls in ([], [[]], [healthy(1)[:1]], [healthy(1), broken()], [broken(math.inf)] * 3):
        assert all(map(math.isfinite, built(name).learn_scale(controls).values()))


def test_without_controls_the_threshold_is_the_default_or_there_is_none(name):
    detector = built(name)
    if detector.default_threshold is None:
        assert choose_threshold(name, detector, None) is None
        assert list_levels(name, "broken, not a number", with_controls=False) == []
    else:
        assert choose_threshold(name, detector, None) == Threshold(detector.default_threshold, controls=0)
    if not detector.calibrated:
        assert name not in calibration().thresholds


def test_an_infinite_statistic_is_an_alarm_at_once(name):
    assert judge_readings(built(name), Threshold(1e9, 0), [Reading(3, math.inf, math.inf, {})]) == "alarm"


def test_the_least_deviation_is_never_zero_and_the_least_effect_never_negative(name):
    assert built(name).min_std > 0
    assert built(name).min_effect >= 0
