"""From a checked configuration to an asynchronous server, and what cannot be combined with one."""

from __future__ import annotations

from fedfault.config.schema import Experiment
from fedfault.errors import UserError
from fedfault.hardware.flight import Asynchrony
from fedfault.registry import build
from fedfault.scheduling import Selection
from fedfault.setup.equipment import build_scheduler
from fedfault.types.algorithm import Aggregation, Algorithm

REFUSED = {  # trait of an aggregation -> why updates that started from different models cannot be taken in by it
    "refactors": "gives the numbers of the adapter another meaning in every round, and updates are of several",
    "folds": "adds to the frozen weights, which clients at work have as they were",
    "alternates": "trains one factor a round, and updates of several rounds come together",
    "prunes": "lowers ranks from round to round, and clients at work have those of before",
}


def build_asynchrony(exp: Experiment) -> Asynchrony | None:
    """The asynchronous server that a configuration describes; None where rounds wait for their cohort."""
    a = exp.federation.asynchronous
    if a is None:
        return None
    mixes = a.name == "fedasync"
    return Asynchrony(
        buffer=exp.federation.updates_per_round,
        mixes=mixes,
        rate=a.rate or (0.6 if mixes else 1.0),
        staleness=a.staleness,
        exponent=a.exponent,
        slope=a.slope,
        grace=a.grace,
    )


def check_asynchrony(exp: Experiment, algorithm: Algorithm, aggregation: Aggregation) -> None:
    """Refuse what needs everybody, a common start or a cohort that ends together. Raises `UserError` with the reason."""
    a, f = exp.federation.asynchronous, exp.federation
    if a is None:
        return
    if algorithm.refusal("asynchronous"):
        why = algorithm.refuses.get(
            "asynchronous", "its server's step is for a cohort that has trained from the same x"
        )
        raise UserError(
            f"federation.asynchronous={a.name} cannot be combined with federation.algorithm={f.algorithm.name}, which needs "
            f"clients that start from one model: {why}; use fedavg, fedprox, moon, ditto, pfedme, apfl, or one of "
            "fedavgm, fedadagrad, fedadam, fedyogi"
        )
    if found := sorted(aggregation.traits & REFUSED.keys()):
        raise UserError(
            f"federation.asynchronous={a.name} cannot be combined with federation.aggregation={f.aggregation.name}, which "
            f"{REFUSED[found[0]]}; use fedit or another that averages factors"
        )
    for setting, clashes, instead in _list_clashes(exp):
        if clashes:
            raise UserError(f"federation.asynchronous={a.name} cannot be combined with {setting}; {instead}")
    if f.updates_per_round > f.total_clients:
        raise UserError(
            f"federation.asynchronous.buffer={f.updates_per_round} is more than federation.total_clients={f.total_clients}, "
            "and a client waits in the buffer until the model changes; lower it"
        )


def _list_clashes(exp: Experiment) -> list[tuple[str, bool, str]]:
    """Settings that are about cohorts that start and end together: what, whether it is set, what to do."""
    f = exp.federation
    selection: Selection = build("selection", f.selection.name, **f.selection.options)
    return [
        ("federation.centralised=true, which has one client", f.centralised, "leave one of them out"),
        (
            "federation.on_failure=cluster, after which each cluster has a model that its clients start from",
            f.on_failure == "cluster",
            "use continue, stop or rollback",
        ),
        ("deadline.seconds: nobody waits for anybody", exp.deadline.limit is not None, "leave the deadline out"),
        (
            f"federation.scheduler={f.scheduler.name}, which shares a budget of ranks among those that start together",
            build_scheduler(exp).r_bar is not None,
            "use the scheduler fixed",
        ),
        (
            f"federation.selection={f.selection.name}, whose weights are for a cohort that is drawn at once",
            "draws by size" in selection.traits,
            "use uniform, loss, power_of_choice or oort",
        ),
        (
            "clock.mode=measured, with which who arrives first would depend on this machine",
            exp.clock.mode == "measured",
            "use clock.mode=modelled",
        ),
        ("privacy, which counts cohorts", exp.privacy.unit is not None, "leave it out"),
    ]
