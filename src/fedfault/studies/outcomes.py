"""One number of one run, by name: what hypotheses, tables and maps are about."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from fedfault.config.schema import Experiment
from fedfault.config.sections.data import METRICS
from fedfault.errors import UserError, suggest
from fedfault.measures.punctuality import elapsed_seconds
from fedfault.records import DEGRADED, FAILED, RIGHT, UNLEARNED
from fedfault.runs.recorded import RunData

LATE = 0.5  # the last part of a run, in which a healthy loss has settled
CLIENTS = "client_loss"  # the outcome that is told client by client, too
METRIC = "final.validation.loss"  # the outcome where nobody names one

LOSSES = "loss|perplexity|bits_per_byte|accuracy|f1|pearson|spearman|exact_match|rouge_l|reward_accuracy|reward_margin"
SCORES = rf"(initial|final)\.(validation|personal|general|backdoor|topic/.+|client/\d+)\.({LOSSES})"
OF_TASKS = {"perplexity", *RIGHT, *itertools.chain(*METRICS.values())}  # scores that not every task has
PATHS = (  # of metrics.json, beside the scores
    r"best\.(loss|round)|forgetting|backward_transfer\.topic/.+|bytes_up|bytes_down|tokens|tokens_per_second|peak_memory_mb",
    r"fairness\.(losses|gains)\.(worst|p10|p50|p90|gap|sd|cvar_20|jain)|"
    r"personal\.(global|own|tuned|alone)\.(loss|accuracy|f1|pearson|spearman|exact_match|rouge_l|reward_accuracy|reward_margin)|"
    r"time_to_target\.(round|seconds|simulated_seconds)|clock\.(seconds|compliance|rounds_in_time|regret|dropped)",
)
IN_LOSS = re.compile(  # in the unit of the losses of the run
    rf"gain|auc|swing|topic_swing|rise|{CLIENTS}|loss_at\..+|best\.loss|personal\.\w+\.loss|backward_transfer\..+|"
    r"(initial|final)\.(validation|personal|backdoor|topic/.+|client/\d+)\.loss|fairness\.(losses|gains)\.(?!jain).+"
)
GROWS = ("loss", "perplexity", "bits_per_byte")  # scores that are infinite, not missing, where a run has diverged
LOST = ("pearson", "spearman", "reward_margin")  # scores that are no number where the loss of the same texts is none
FALLS = re.compile(r"fairness\.gains\.(worst|p10|p50|p90|cvar_20)")  # what is minus infinity there


def gain(run: RunData) -> float | None:
    """Validation loss before training minus at the end."""
    _, losses = run.losses("validation")
    return losses[0] - _bad(losses[-1]) if losses else None


def auc(run: RunData) -> float | None:
    """Mean validation loss over the rounds, by trapezoids: slow convergence raises it."""
    rounds, losses = run.losses("validation")
    if len(rounds) < 2:
        return None
    # Not numpy: infinite minus infinite would warn
    area = sum((b - a) * (x + y) / 2 for a, b, x, y in zip(rounds, rounds[1:], losses, losses[1:], strict=False))
    return _bad(area / (rounds[-1] - rounds[0]))


def swing(run: RunData) -> float | None:
    """Mean change of the validation loss from one evaluation to the next, signs dropped, in the last half of the run."""
    return _mean_or_bad(_late_steps(run, "validation"))


def topic_swing(run: RunData) -> float | None:
    """The same of every topic's loss, mean over topics: what the mixture hides when topics take turns."""
    return _mean_or_bad([step for name in run.score_names("topic/") for step in _late_steps(run, name)])


def _late_steps(run: RunData, name: str) -> list[float]:
    _, losses = run.losses(name)
    late = losses[math.floor(len(losses) * (1 - LATE)) :]
    return [abs(b - a) for a, b in itertools.pairwise(late)]


def _mean_or_bad(values: list[float]) -> float | None:
    return _bad(sum(values) / len(values)) if values else None


def rise(run: RunData) -> float | None:
    """Validation loss at the end minus at its best: 0 for a run that ends at its best."""
    _, losses = run.losses("validation")
    best = min((v for v in losses if math.isfinite(v)), default=None)
    return None if best is None else _bad(losses[-1]) - best


def client_loss(run: RunData) -> float | None:
    """Held-out loss at the end, mean over the clients, each under the model that it uses, trained on where it is."""
    return _mean_or_bad([*run.end_losses("client/").values()])


def failed(run: RunData) -> float | None:
    """1 where the verdict is `failed`, else 0."""
    return _state(run, (FAILED,))


def unhealthy(run: RunData) -> float | None:
    """1 where the verdict is `did not learn`, `degraded` or `failed`, else 0."""
    return _state(run, (UNLEARNED, DEGRADED, FAILED))


def severity(run: RunData) -> float | None:
    """How far the worst alarm went, in units of the threshold's distance from healthy runs; 0 without an alarm."""
    verdict = run.metrics.get("verdict") or {}
    return math.inf if verdict.get("severity", 0.0) is None else verdict.get("severity")


def seconds(run: RunData) -> float | None:
    """Seconds of all rounds."""
    return sum(sum(r.seconds.values()) for r in run.records) if run.records else None


def _state(run: RunData, bad: tuple[str, ...]) -> float | None:
    verdict = run.metrics.get("verdict")
    return None if not verdict else float(verdict["state"] in bad)


def _bad(value: float) -> float:
    """A loss that is not a number has diverged: infinite."""
    return value if math.isfinite(value) else math.inf


DERIVED: dict[str, Callable[[RunData], float | None]] = {
    f.__name__: f for f in (gain, auc, swing, topic_swing, rise, client_loss, failed, unhealthy, severity, seconds)
}


TIMED = re.compile(r"loss_at\.(\d+(?:\.\d+)?)")


def find_loss_at(run: RunData, seconds: float) -> float | None:
    """Validation loss of the last evaluation within so many simulated seconds; None for a run that was over before."""
    spent = elapsed_seconds(run.records)
    if not spent or max(spent.values()) < seconds:
        return None
    within = [
        r.scores["validation"].loss for r in run.records if "validation" in r.scores and spent[r.round] <= seconds
    ]
    return _bad(within[-1]) if within else None


def check_metric(name: Any) -> None:
    """`UserError` unless it is a metric: derived, a path of metrics.json, `probes.NAME`, `alarm.DETECTOR`, `loss_at.N`."""
    name = str(name)
    if (
        TIMED.fullmatch(name)
        or name in DERIVED
        or re.fullmatch("|".join((SCORES, *PATHS)), name)
        or re.fullmatch(r"probes\.[\w/]+", name)
    ):
        return
    if name.startswith("alarm."):
        from fedfault.diagnosis.detection import build_detectors

        if name.removeprefix("alarm.") in build_detectors():
            return
        raise UserError(f"metric: no detector {name.removeprefix('alarm.')!r}{suggest(name[6:], build_detectors())}")
    near = suggest(
        name, [*DERIVED, METRIC, "final.validation.accuracy", "forgetting", "fairness.gains.worst", "best.loss"]
    )
    raise UserError(
        f"metric: {name!r} is no metric{near} (known: {', '.join(DERIVED)}; a path of metrics.json such as {METRIC}; "
        "probes.NAME, the mean over rounds; alarm.DETECTOR; loss_at.SECONDS, by the simulated clock)"
    )


def has_metric(exp: Experiment, name: str) -> bool:
    """Whether a run can have a metric, by its task: False only where no run of these settings has such a score."""
    score = name.rpartition(".")[2]
    if score not in OF_TASKS or name.startswith("probes.") or ".backdoor." in name:  # of answers to a trigger
        return True
    return exp.data.task_type not in METRICS if score == "perplexity" else score in exp.scores


def is_loss(metric: str) -> bool:
    """Whether a metric is in the unit of the run's losses; that of general English never is, which has one for all runs."""
    return IN_LOSS.fullmatch(metric) is not None


def is_count(metric: str) -> bool:
    """Whether a run has 0 or 1 of it, nothing between."""
    return metric in ("failed", "unhealthy") or metric.startswith("alarm.")


def measure_outcome(run: RunData, metric: str) -> float | None:
    """The metric of a run; None where it was not measured, infinite for the loss of a run that has diverged.

    Infinite, to the worse side, is also what follows from such losses (forgetting, how clients fare), what is scored on the
    same texts and is no number then (correlations, the margin of rewards), and the time to a target that a run has not
    reached: were it missing, the runs that went well would answer for all.
    """
    if metric in DERIVED:
        return DERIVED[metric](run)
    if timed := TIMED.fullmatch(metric):
        return find_loss_at(run, float(timed[1]))
    if metric.startswith("probes."):
        return _mean([v for v in run.probe(metric.removeprefix("probes."))[1] if math.isfinite(v)])
    if metric.startswith("alarm."):
        if not run.metrics.get("verdict"):
            return None
        return float(any(f.detector == metric.removeprefix("alarm.") and f.level == "alarm" for f in run.findings))
    return _look_up(run, metric)


def _mean(values: list[float]) -> float | None:
    return float(np.mean(values)) if values else None


def _look_up(run: RunData, metric: str) -> float | None:
    """JSON has no infinity: null stands for a number that was measured and is not finite."""
    place: Any = run.metrics
    for key in metric.split("."):
        if key in LOST and _has_lost(run, place, key):
            return -math.inf
        if not isinstance(place, Mapping) or key not in place:
            return _find_worst(run, metric)
        place = place[key]
    if place is None:
        grows = metric.rpartition(".")[2] in GROWS or metric.startswith(("forgetting", "backward_transfer."))
        return math.inf if grows else None
    return float(place)


def _has_lost(run: RunData, scores: Any, name: str) -> bool:
    """Whether a score that the run has, or its task, stands beside a loss that was measured and is not finite.

    Without it, the score may be missing for other reasons: predictions that are all the same correlate with nothing.
    """
    if not isinstance(scores, Mapping) or scores.get("loss", 0.0) is not None:
        return False
    return name in scores or name in METRICS.get(run.setting("data", "task_type"), ())


def _find_worst(run: RunData, metric: str) -> float | None:
    """What a number that metrics.json leaves out comes to; None where it was not measured."""
    section, _, rest = metric.partition(".")
    if section == "fairness" and rest != "gains.jain":
        final = run.metrics.get("final") or {}
        lost = any(name.startswith("client/") and score.get("loss") is None for name, score in final.items())
        return (-math.inf if FALLS.fullmatch(metric) else math.inf) if lost else None
    if section == "time_to_target" and run.over and "round" not in run.metrics.get(section, {"round": None}):
        return math.inf if rest != "simulated_seconds" or elapsed_seconds(run.records) else None
    return None
