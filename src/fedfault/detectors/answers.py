"""What models answer gets worse: `task_forgetting`, `answer_collapse`."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping

from fedfault.records import Detector, Multiply, Reading, RoundRecord
from fedfault.registry import register

TOPIC = "topic/"


@register("detector")
def task_forgetting() -> Detector:
    """A task that was answered right is answered right no longer: the exact match of a topic falls from its best round.

    Statistic and effect are the largest fall over the topics, in shares of its questions (`evaluation.generate`).

    >>> from fedfault.records import Score
    >>> from fedfault.testing.histories import history
    >>> detector = task_forgetting()
    >>> right = [Score(1.0, 100, metrics={"exact_match": share}) for share in (0.0, 0.75, 0.125)]
    >>> last = detector.read(history(scores={"topic/sort": right}), {})[-1]
    >>> print(f"{last.statistic:.2f} > {detector.default_threshold}: {detector.explain(last)}")
    0.62 > 0.4: sort is answered right 12 % of the time, after 75 %
    """

    def follow(records: Iterable[RoundRecord], scale: Mapping[str, float]) -> Iterator[Reading | None]:
        best: dict[str, float] = {}
        for r in records:
            now = _collect(r, "exact_match")
            fallen = {name: best[name] - share for name, share in now.items() if name in best}
            best |= {name: max(share, best.get(name, 0.0)) for name, share in now.items()}
            yield _read_worst(r.round, fallen, {name: {"now": now[name], "best": best[name]} for name in fallen})

    return Detector(
        follow,
        _explain_forgetting,
        reads=("score/topic with exact_match",),
        advice=("training.lr lower", "federation.clients_per_round higher", "federation.algorithm=fedprox"),
        remedies=(Multiply("training.lr", 0.5),),
        min_effect=0.2,
        min_std=0.1,  # eight questions each, of which one or two turn over from round to round
        default_threshold=0.4,  # convention: with eight questions a change of four
    )


@register("detector")
def answer_collapse() -> Detector:
    """One answer is given to all questions, or one to all of each task: how much more often than the commonest true one.

    Statistic and effect are the larger of two numbers after round 0: `one_answer` of the validation set (the share of the
    commonest answer minus that of the commonest true one), and its mean over the topics. A single topic of a few questions
    gets one answer now and then in healthy runs, so that the largest of many says little. An answer of nothing is an answer.

    >>> from fedfault.records import Score
    >>> from fedfault.testing.histories import history
    >>> detector = answer_collapse()
    >>> same = [Score(1.0, 100, metrics={"one_answer": share}) for share in (0.5, 0.625)]
    >>> last = detector.read(history(scores={"topic/review": same}), {})[-1]
    >>> print(f"{last.statistic:.3f} > {detector.default_threshold}: {detector.explain(last)}")
    0.625 > 0.4: questions get one answer 62 % more often than they should, most of all those of review (62 %)
    """

    def follow(records: Iterable[RoundRecord], scale: Mapping[str, float]) -> Iterator[Reading | None]:
        for r in records:
            yield _read_sameness(r) if r.round else None

    return Detector(
        follow,
        _explain_sameness,
        reads=("score/topic with one_answer",),
        advice=("training.lr lower", "training.local_steps fewer", "federation.algorithm=fedprox"),
        remedies=(Multiply("training.lr", 0.5),),
        min_effect=0.3,
        min_std=0.05,
        default_threshold=0.4,  # convention: healthy runs of `instruct/quick` reach 0.35 in their first rounds
    )


def _explain_forgetting(r: Reading) -> str:
    now, best = (100 * r.evidence[key] for key in ("now", "best"))
    return f"{_name(r)} is answered right {now:.0f} % of the time, after {best:.0f} %"


def _read_sameness(record: RoundRecord) -> Reading | None:
    topics = _collect(record, "one_answer")
    validation = record.scores.get("validation")
    pooled = math.nan if validation is None else validation.metrics.get("one_answer", math.nan)
    means = [sum(topics.values()) / len(topics)] if topics else []
    values = [v for v in (pooled, *means) if math.isfinite(v)]
    if not values:
        return None
    worst = max(topics, key=topics.__getitem__, default=None)
    return Reading(record.round, max(values), max(values), {worst: topics[worst]} if worst else {})


def _explain_sameness(r: Reading) -> str:
    told = f"questions get one answer {100 * r.effect:.0f} % more often than they should"
    return told + (f", most of all those of {_name(r)} ({100 * max(r.evidence.values()):.0f} %)" if r.evidence else "")


def _collect(record: RoundRecord, metric: str) -> dict[str, float]:
    """A metric of answers of every topic that has it."""
    scores = {name: s.metrics for name, s in record.scores.items() if name.startswith(TOPIC)}
    return {name: own[metric] for name, own in scores.items() if math.isfinite(own.get(metric, math.nan))}


def _read_worst(round: int, values: Mapping[str, float], more: Mapping[str, Mapping[str, float]]) -> Reading | None:
    """A reading of the largest value, with the topic's name in the evidence; None where there is no value."""
    if not values:
        return None
    worst = max(values, key=values.__getitem__)
    return Reading(round, values[worst], values[worst], {worst: values[worst], **more.get(worst, {})})


def _name(r: Reading) -> str:
    return next(name.removeprefix(TOPIC) for name in r.evidence if name.startswith(TOPIC))
