"""The end of a run before its last round: a score is reached, or does not get better any more.

Both are functions of the records alone, so that a run that was killed and resumed ends where one that was not does.
"""

from __future__ import annotations

import math

from fedfault.config.sections.evaluation import Evaluation
from fedfault.records import Records, Score
from fedfault.runs.manifest import Ending

LOSS = "loss"  # the one score that is better where it is lower


def find_end(records: Records, evaluation: Evaluation) -> Ending | None:
    """Tell whether a run ends after its last record, and why: `evaluation.stop_at` is reached, or patience is over.

    Round 0, the model before training, is no end, and neither is a round that is not evaluated. The best score so far may
    be that of round 0.
    """
    if not records or records[-1].round == 0 or "validation" not in records[-1].scores:
        return None
    wanted = evaluation.stop_at or {}
    name = next(iter(wanted), LOSS)
    target = wanted.get(name)
    taken = [(r.round, _read_score(r.scores["validation"], name)) for r in records if "validation" in r.scores]
    sign = 1.0 if name == LOSS else -1.0
    round, last = taken[-1]
    if target is not None and sign * last <= sign * target:
        return {"round": round, "reason": f"{_name_score(name)} is {last:.4g}, and {target:g} was to be reached"}
    best = min(range(len(taken)), key=lambda i: _rank_score(sign * taken[i][1]))
    since = len(taken) - 1 - best
    if evaluation.patience is not None and since >= evaluation.patience:
        return {
            "round": round,
            "reason": f"{_name_score(name)} has not been better than in round {taken[best][0]} ({taken[best][1]:.4g}) for "
            f"{since} evaluation{'' if since == 1 else 's'}",
        }
    return None


def _read_score(score: Score, name: str) -> float:
    return score.loss if name == LOSS else score.metrics.get(name, math.nan)


def _rank_score(value: float) -> float:
    return math.inf if math.isnan(value) else value


def _name_score(name: str) -> str:
    return f"the validation {name.replace('_', ' ')}"
