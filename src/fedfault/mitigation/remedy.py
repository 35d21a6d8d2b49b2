"""Clusters as the answer to an alarm of a running federation: federation.on_failure=cluster."""

from __future__ import annotations

from collections.abc import Sequence

from fedfault.experiment import Prepared
from fedfault.mitigation.clusters import Clusters, choose
from fedfault.mitigation.embeddings import BACKBONE, embedded, encoder_of

CAUSES = ("client_drift", "negative_transfer", "fairness_gap")  # alarms that clients differ too much for one model


def clusters_of(p: Prepared, encoder: str = BACKBONE) -> Clusters:
    """The clusters of an experiment's clients, by what an encoder makes of their training texts."""
    documents, owner = embedded(p, encoder_of(p, encoder))
    return choose(documents, owner, p.config.federation.total_clients, p.config.seed)


def clustered(labels: Sequence[int], shrinkage: float = 0.0) -> list[str]:
    """The settings of a run with these clusters, as `key=value`."""
    return [
        "federation.algorithm=clustered",
        f"federation.algorithm.clusters={list(labels)}",
        f"federation.algorithm.shrinkage={shrinkage!r}",
    ]


def split_up(p: Prepared, causes: Sequence[str]) -> tuple[list[str], str]:
    """Settings with which a run goes on after these alarms, clients in clusters; none with the reason."""
    if not set(causes) & set(CAUSES):
        return [], f"clusters are an answer to {', '.join(CAUSES)} only"
    if p.config.federation.algorithm.name == "clustered":
        return [], "its clients are in clusters already"
    found = clusters_of(p)
    return (clustered(found.labels), "") if found.k > 1 else ([], found.sentence)
