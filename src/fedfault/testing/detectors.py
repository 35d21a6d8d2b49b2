"""The contract of detectors: on no, short, healthy, broken and incomplete histories."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

from pydantic import BaseModel

from fedfault.config.schema import Experiment
from fedfault.config.sections.base import Component
from fedfault.diagnosis.calibration import ALPHA, Calibration, learn_thresholds
from fedfault.diagnosis.detection import choose_threshold, judge_readings
from fedfault.records import Detector, Reading, RoundRecord, is_recorded
from fedfault.registry import load_builders
from fedfault.testing.histories import broken_history, healthy, history
from fedfault.testing.rules import Subject, expect, rule

KIND = "detector"
QUIET = ("nothing", "one round", "two rounds", "healthy")
RUNS: dict[str, list[RoundRecord]] = {
    "nothing": [],
    "one round": healthy()[:1],
    "two rounds": healthy()[:2],
    "healthy": healthy(),
    "broken, not a number": broken_history(math.nan),
    "broken, infinite": broken_history(math.inf),
    "never a number": history([math.nan] * 8, scores={"general": [math.nan] * 8, "client/0": [math.nan] * 8}),
}


def calibrate(detectors: Mapping[str, Detector]) -> Calibration:
    """Thresholds from nineteen healthy runs."""
    thresholds, exact = learn_thresholds([healthy(seed) for seed in range(1, 20)], detectors, same_partition=True)
    return Calibration("tests", thresholds, 19, ALPHA, exact, {}, same_partition=True)


@lru_cache(maxsize=64)
def _calibration(subject: Subject) -> Calibration:
    return calibrate({subject.name: subject.build()})


@lru_cache(maxsize=64)
def _scales(subject: Subject) -> list[dict[str, float]]:
    """What the statistic is measured against: nothing, and what healthy controls say."""
    return [{}, subject.build().learn_scale([healthy(seed) for seed in range(1, 5)])]


def _levels(subject: Subject, records: Sequence[RoundRecord], with_controls: bool) -> list[str]:
    """ok, suspect or alarm after each of its readings; empty where it is silent without controls."""
    detector: Detector = subject.build()
    threshold = choose_threshold(subject.name, detector, _calibration(subject) if with_controls else None)
    if threshold is None:
        return []
    seen = detector.read(records, threshold.scale)
    return [judge_readings(detector, threshold, seen[: i + 1]) for i in range(len(seen))]


def _read(subject: Subject, records: Sequence[RoundRecord]) -> list[Reading]:
    return [r for scale in _scales(subject) for r in subject.build().read(records, scale)]


def _reread(records: Sequence[RoundRecord]) -> list[RoundRecord]:
    """The records as they are read from a run folder."""
    lines = [json.dumps(r.to_json(), allow_nan=False) for r in records]
    return [RoundRecord.from_json(json.loads(line)) for line in lines]


@rule(KIND)
def no_history_a_short_one_and_a_healthy_one_say_nothing(subject: Subject) -> None:
    """A run without records, of one or two rounds, or in order raises no suspicion, with controls and without."""
    for run in QUIET:
        for with_controls in (False, True):
            levels = _levels(subject, RUNS[run], with_controls)
            expect(set(levels) <= {"ok"}, f"{run}, {'with' if with_controls else 'without'} controls: {levels}")


@rule(KIND)
def a_run_that_breaks_in_every_way_raises_an_alarm_once_it_is_compared_with_healthy_ones(subject: Subject) -> None:
    """With thresholds from healthy runs, `fedfault.testing.histories.broken_history`, all wrong, raises an alarm."""
    levels = _levels(subject, RUNS["broken, not a number"], True)
    expect("alarm" in levels, f"round by round: {levels}")


@rule(KIND)
def the_same_records_give_the_same_readings_and_stay_what_they_were(subject: Subject) -> None:
    """A detector is a pure function of the records and the scale."""
    detector: Detector = subject.build()
    for run, records in RUNS.items():
        before = copy.deepcopy(records)
        for scale in _scales(subject):
            scale_before = dict(scale)
            first = detector.read(records, scale)
            expect(repr(detector.read(records, scale)) == repr(first), f"{run}: read twice, it says two things")
            expect(scale == scale_before, f"{run}: the scale was changed")
        expect(repr(records) == repr(before), f"{run}: the records were changed")


@rule(KIND)
def every_record_has_one_answer(subject: Subject) -> None:
    """`follow` is a generator that yields a Reading of that round, or None, for every record."""
    detector: Detector = subject.build()
    for run, records in RUNS.items():
        for scale in _scales(subject):
            answers = list(detector.follow(iter(records), scale))
            expect(len(answers) == len(records), f"{run}: {len(answers)} answers to {len(records)} records")
            wrong = [r.round for r, a in zip(records, answers, strict=True) if a is not None and a.round != r.round]
            expect(not wrong, f"{run}: the readings of rounds {wrong} say that they are of other rounds")


@rule(KIND)
def a_round_s_reading_does_not_depend_on_what_comes_later(subject: Subject) -> None:
    """What is said of a round is said while the run goes on: more rounds add readings and change none."""
    detector: Detector = subject.build()
    for run, records in RUNS.items():
        for scale in _scales(subject):
            whole = detector.read(records, scale)
            for t in range(len(records)):
                so_far = detector.read(records[:t], scale)
                expect(repr(so_far) == repr(whole[: len(so_far)]), f"{run}: the readings of {t} rounds changed later")
                due = sum(r.round < t for r in whole)
                expect(len(so_far) == due, f"{run}: {len(so_far)} readings after {t} rounds, {due} of them later")


@rule(KIND)
def recorded_runs_give_the_same_findings_as_live_ones(subject: Subject) -> None:
    """A run that is read from its folder, where what was not finite is NaN, gives the same readings and alarms."""
    for run, records in RUNS.items():
        for with_controls in (False, True):
            live, read = (_levels(subject, r, with_controls) for r in (records, _reread(records)))
            expect(read == live, f"{run}: {live} live, {read} read again")
        same = repr(_read(subject, _reread(records))) == repr(_read(subject, records))
        expect(same, f"{run}: the readings differ")


@rule(KIND)
def readings_are_of_recorded_rounds_in_order_and_numbers(subject: Subject) -> None:
    """One reading a round at most, in order; statistic and effect are never NaN, the statistic never minus infinity."""
    for run, records in RUNS.items():
        for scale in _scales(subject):
            seen = subject.build().read(records, scale)
            rounds = [r.round for r in seen]
            expect(rounds == sorted(set(rounds) & {r.round for r in records}), f"{run}: readings of rounds {rounds}")
            for r in seen:
                wrong = math.isnan(r.statistic) or math.isnan(r.effect) or r.statistic == -math.inf
                expect(not wrong, f"{run}: {r}")


@rule(KIND)
def evidence_is_finite_numbers_by_name(subject: Subject) -> None:
    """What a reading shows are Python floats that are finite."""
    seen = [r for records in RUNS.values() for r in _read(subject, records)]
    expect(seen, "there is no reading in any history")
    for r in seen:
        expect(all(isinstance(v, float) and math.isfinite(v) for v in r.evidence.values()), f"{r}")


@rule(KIND)
def sentences_are_plain_text(subject: Subject) -> None:
    """What happened is said in one line of words, without nan, inf, None or powers of ten."""
    detector: Detector = subject.build()
    for records in RUNS.values():
        for r in _read(subject, records):
            said = detector.explain(r)
            words = set(said.replace(",", " ").split())
            expect(said and said == said.strip(), repr(said))
            expect(not {"nan", "inf", "-inf", "None"} & words, repr(said))
            expect(not any(bad in said for bad in ("\n", "{", "}", "e+", "e-0", "nan%", "inf%")), repr(said))


def _is_setting(key: str, value: str) -> bool:
    """Whether the configuration has this key and its value names a component or is one of those allowed."""
    section: type[BaseModel] = Experiment
    *above, last = key.split(".")
    for part in above:
        if part not in section.model_fields:
            return False
        kind: Any = section.model_fields[part].annotation
        if kind is Component:
            return any(last in builder.__annotations__ for builder in load_builders(part).values())
        section = kind
    if last not in section.model_fields:
        return False
    kind = section.model_fields[last].annotation
    return not value or (value in load_builders(last) if kind is Component else f"'{value}'" in str(kind))


@rule(KIND)
def advice_is_plain_text_about_settings_that_exist(subject: Subject) -> None:
    """There is advice; a word with a dot in it is a setting, alone or with `=` and one of its choices, not a number."""
    advice = subject.build().advice
    expect(advice, "there is none")
    for text in advice:
        expect(text and text == text.strip(), f"white space at an end of {text!r}")
        for word in text.split():
            setting, _, value = word.partition("=")
            expect("." not in word or _is_setting(setting, value), f"no setting {word!r}, in {text!r}")


@rule(KIND)
def its_remedies_are_settings_that_exist(subject: Subject) -> None:
    """What a run changes by itself at the alarm is in the configuration."""
    for remedy in subject.build().remedies:
        expect(_is_setting(remedy.setting, getattr(remedy, "new", "")), f"no setting as in {remedy}")


@rule(KIND)
def what_is_not_measured_is_done_without(subject: Subject) -> None:
    """Where a probe or an evaluation is missing, in any round, what is left is read; from bare records nothing is."""
    detector: Detector = subject.build()
    records = broken_history(rounds=6)
    for drop in ("matrices", "clients", *_parts("clients"), *_parts("scores"), *_parts("probes")):
        for first in (0, 1):
            less = [_without(r, drop) if t % 2 == first else r for t, r in enumerate(records)]
            for r in _read(subject, less):
                expect(all(map(math.isfinite, r.evidence.values())), f"without {drop}: {r}")
                expect(detector.explain(r), f"without {drop}: no sentence for {r}")
    bare = _read(subject, [RoundRecord(r.round) for r in records])
    expect(bare == [], f"from records without anything in them: {bare}")


@rule(KIND)
def without_what_it_says_it_reads_it_is_silent(subject: Subject) -> None:
    """Everything that `reads` names is in `broken_history`, and no reading is left where one of it is in no round."""
    records = broken_history(rounds=6)
    for what in subject.build().reads:
        kind, _, name = what.partition("/")
        parts = {"score": ("scores", name.partition(" ")[0]), "client": ("clients", name), "matrix": ("matrices", name)}
        kind, gone = parts.get(kind, ("probes", what))
        expect(is_recorded(what, records), f"no history of the contract has {what!r}; see `records.is_recorded`")
        seen = _read(subject, [_without(r, f"{kind}/{gone}") for r in records])
        expect(not seen, f"reads names {what!r}, but there are readings without it")


def _parts(kind: str) -> list[str]:
    """kind/WORD for the first words of the names in a broken run: numbers that come together share it."""
    last = broken_history(rounds=1)[-1]
    names = last.clients[0].probes if kind == "clients" else getattr(last, kind)
    return [f"{kind}/{word}" for word in dict.fromkeys(name.partition("_")[0] for name in names)]


def _without(record: RoundRecord, drop: str) -> RoundRecord:
    kind, _, gone = drop.partition("/")
    if kind == "clients":
        left = tuple(replace(c, probes=_keep(c.probes, gone)) for c in record.clients) if gone else ()
        return replace(record, clients=left)
    changes: dict[str, Any] = {kind: _keep(getattr(record, kind), gone)}
    return replace(record, **changes)


def _keep(values: Mapping[str, Any], gone: str) -> dict[str, Any]:
    return {n: v for n, v in values.items() if not n.startswith(gone)}


@rule(KIND)
def the_scale_is_finite_whatever_the_controls_were(subject: Subject) -> None:
    """`learn_scale` gives finite numbers, or none, for no controls, short ones and broken ones."""
    runs: list[list[list[RoundRecord]]] = [
        [],
        [[]],
        [healthy(1)[:1]],
        [healthy(1), broken_history()],
        [broken_history(math.inf)] * 3,
    ]
    for controls in runs:
        scale = subject.build().learn_scale(controls)
        expect(all(map(math.isfinite, scale.values())), f"{len(controls)} controls: {scale}")


@rule(KIND)
def it_leads_to_detectors_that_exist_and_not_to_itself(subject: Subject) -> None:
    """`leads_to` names registered detectors, and not the one itself."""
    known = load_builders(KIND)
    unknown = [name for name in subject.build().leads_to if name not in known]
    expect(not unknown, f"leads_to names {', '.join(unknown)}, which no detector is called")
    expect(subject.name not in subject.build().leads_to, "leads_to names the detector itself")


@rule(KIND)
def the_least_deviation_is_never_zero_and_the_least_effect_never_negative(subject: Subject) -> None:
    """`min_std` is above 0, `min_effect` at least 0."""
    detector: Detector = subject.build()
    expect(detector.min_std > 0, f"min_std={detector.min_std}")
    expect(detector.min_effect >= 0, f"min_effect={detector.min_effect}")
