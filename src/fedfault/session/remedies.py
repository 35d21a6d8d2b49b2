"""What a run does to itself when it goes back to its best round: one change of settings for each kind of alarm."""

from __future__ import annotations

from fedfault.config.schema import Experiment

HALVED = 0.5


def remedy(exp: Experiment, causes: list[str]) -> list[str]:
    """Settings as `key=value` that answer the first of these alarms for which there is an answer; none: none of them has.

    divergence, forgetting, collapse   half the learning rate
    oscillation                        half the server's learning rate where the algorithm has one, else half the clients'
    slow convergence                   twice the local work
    client drift                       SCAFFOLD instead of FedAvg; with another algorithm half the local steps
    stale control variates             option I, fresh gradients at the server's point; with it FedAvg

    Negative transfer, a client left behind and a federation that does not happen have none: no setting of one shared model
    mends them.
    """
    for cause in causes:
        if settings := _settings(exp, cause):
            return settings
    return []


def _settings(exp: Experiment, cause: str) -> list[str]:
    algorithm, t = exp.federation.algorithm, exp.training
    slower = [f"training.lr={t.lr * HALVED!r}"]
    if cause in ("divergence", "forgetting", "representation_collapse", "rank_collapse"):
        return slower
    if cause == "oscillation":
        server_lr = algorithm.options.get("server_lr")
        return slower if server_lr is None else [f"federation.algorithm.server_lr={server_lr * HALVED!r}"]
    if cause == "slow_convergence":
        return _work(exp, 2.0)
    if cause == "client_drift":
        return ["federation.algorithm=scaffold"] if algorithm.name == "fedavg" else _work(exp, HALVED)
    if cause == "stale_controls":
        again = algorithm.options.get("option") == "II"
        return ["federation.algorithm.option=I"] if again else ["federation.algorithm=fedavg"]
    return []


def _work(exp: Experiment, factor: float) -> list[str]:
    """More or fewer local steps or epochs, one at least; nothing where that is no change."""
    t = exp.training
    name, now = ("local_steps", t.local_steps) if t.local_steps else ("local_epochs", t.local_epochs or 1)
    after = max(1, round(now * factor))
    return [f"training.{name}={after}"] if after != now else []
