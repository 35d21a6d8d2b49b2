"""Training outside of rounds: every client by itself, on its own data, from a model that it is given."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from fedfault.rounds.exchange import Cohort
from fedfault.rounds.federation import Federation
from fedfault.rounds.local import Passes
from fedfault.rounds.trainer import Trainer
from fedfault.types.adapter import Adapter
from fedfault.types.algorithm import State


def train_apart(fed: Federation, state: State, start: Adapter, steps: Sequence[int], lr: float) -> Adapter:
    """Train every client's model, a row of start (N, P) or (P,) for all, for its number of steps, (N,) of one at least.

    Nothing is exchanged and no algorithm adds to the steps; optimiser, batches and clipping are those of `fed`, ranks those
    that clients have after `state`. Batches are drawn for a round 0, which no federation trains in, so that the result
    depends on nothing but the state, the start and these numbers.
    """
    cohort = Cohort.of(list(range(fed.total_clients)), state, fed.aggregation)
    N, most = fed.total_clients, max(steps)
    trainer = Trainer(
        fed.task,
        replace(fed.work, epochs=None, steps=most, lr=lr),
        seed=fed.seed,
        round=0,
        clients=cohort.clients,
        passes=Passes(min(state.clients_per_pass or fed.clients_per_pass or N, N), need=fed.need),
        trainable=cohort.active,
        effort=[n / most for n in steps],
        record=fed.record,
    )
    return trainer(cohort.cut(start)).adapter
