"""Every client's models at the end of a run, beside one another on what that client held back: personal.json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fedfault.measures.personal import ALONE, GLOBAL, OWN, TUNED, average_models
from fedfault.records import Records, Score
from fedfault.rounds.arrivals import find_personal_models
from fedfault.rounds.tuning import train_apart
from fedfault.session.progress import Progress
from fedfault.setup.experiment import Prepared
from fedfault.types.adapter import Adapter
from fedfault.types.algorithm import State
from fedfault.types.task import Served


@dataclass(frozen=True)
class Personal:
    """What clients use at the end of a run, and how each of their models does."""

    models: Adapter  # (N, P): fine-tuned where the run asks for that
    rows: Sequence[Mapping[str, Any]]  # client, model, loss, targets, metrics

    @property
    def summary(self) -> dict[str, dict[str, float]]:
        """The mean over clients of each model's loss and metrics, by the model's name."""
        return average_models(self.rows)


def compare_models(p: Prepared, state: State, records: Records, progress: Progress) -> Personal | None:
    """Train every client's model on, if the run is to, and score all models of each client; None where there is one for all.

    It is a function of the state, the records and the settings: after a kill it is done again, to the bit.
    """
    fed, how = p.federation, p.config.personalise
    own = find_personal_models(fed, state)
    if own is None and how is None:
        return None
    models = {GLOBAL: Served(state.adapter), **({} if own is None else {OWN: Served(state.adapter, own)})}
    used = own
    if how is not None:
        progress.say(f"every client trains its own model on for {how.steps} steps")
        start, lr = state.adapter if own is None else own, how.lr or fed.work.lr
        used = train_apart(fed, state, start, [how.steps] * fed.total_clients, lr)
        models[TUNED] = Served(state.adapter, used)
    assert used is not None
    scores: dict[str, Mapping[str, Score]]
    scores = dict(zip(models, fed.task.evaluate_each(list(models.values())), strict=True))
    if how is not None and how.alone:
        scores[ALONE] = _score_alone(p, state, records, how.steps, progress)
    return Personal(used, _list_rows(scores, fed.total_clients))


def _score_alone(p: Prepared, state: State, records: Records, steps: int, progress: Progress) -> Mapping[str, Score]:
    """Score models that clients train alone, from the start, in as many steps as each took in all rounds and in `steps`."""
    fed = p.federation
    taken = [steps] * fed.total_clients
    for client in (c for r in records for c in r.clients):
        taken[client.client] += client.steps
    progress.say(f"every client trains a model alone, {min(taken):,} to {max(taken):,} steps from the start")
    start = fed.task.init(p.config.seed)
    fed.task.fold({})  # what rounds added to the frozen weights is the federation's
    try:
        alone = train_apart(fed, state, start, taken, fed.work.lr)
        return fed.task.evaluate(start, alone)
    finally:
        fed.task.fold(state.base)


def _list_rows(scores: Mapping[str, Mapping[str, Score]], clients: int) -> list[dict[str, Any]]:
    """List the score of every model of each client that has something to be scored on."""
    return [
        {
            "client": k,
            "model": name,
            "loss": own[f"client/{k}"].loss,
            "targets": own[f"client/{k}"].tokens,
            "metrics": dict(own[f"client/{k}"].metrics),
        }
        for k in range(clients)
        for name, own in scores.items()
        if f"client/{k}" in own
    ]
