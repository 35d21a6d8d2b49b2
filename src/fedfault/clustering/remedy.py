"""Clusters that a run needs: before its first round, or as the answer to an alarm, federation.on_failure=cluster."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from fedfault.backbones.load import Say
from fedfault.clustering.clusters import Clusters, choose
from fedfault.clustering.embeddings import BACKBONE, embedded, encoder_of
from fedfault.config.schema import Component
from fedfault.diagnosis.detection import build_detectors
from fedfault.setup.experiment import Prepared, federation


def clusters_of(p: Prepared, encoder: str = BACKBONE) -> Clusters:
    """The clusters of an experiment's clients, by what an encoder makes of their training texts."""
    documents, owner = embedded(p, encoder_of(p, encoder))
    return choose(documents, owner, p.config.federation.total_clients, p.config.seed)


def in_clusters(p: Prepared, say: Say) -> tuple[Prepared, list[str]]:
    """An experiment whose algorithm is `clustered` without clusters, with those that its clients fall into.

    Also the setting that this makes, as `key=value`; any other experiment comes back as it is, without settings.
    """
    f = p.config.federation
    if f.algorithm.name != "clustered" or f.algorithm.options.get("clusters") is not None:
        return p, []
    found = clusters_of(p)
    say(found.sentence)
    named = Component(name="clustered", **{**f.algorithm.options, "clusters": list(found.labels)})
    exp = p.config.model_copy(update={"federation": f.model_copy(update={"algorithm": named})})
    fed = federation(exp, p.task)
    return p.spread(replace(p, config=exp, federation=fed)), clustered(found.labels)[1:2]


def clustered(labels: Sequence[int], shrinkage: float = 0.0) -> list[str]:
    """The settings of a run with these clusters, as `key=value`."""
    return [
        "federation.algorithm=clustered",
        f"federation.algorithm.clusters={list(labels)}",
        f"federation.algorithm.shrinkage={shrinkage!r}",
    ]


def split_up(p: Prepared, causes: Sequence[str]) -> tuple[list[str], str]:
    """Settings with which a run goes on after these alarms, clients in clusters; none with the reason."""
    answered = [name for name, detector in build_detectors().items() if detector.wants_clusters]
    if not set(causes) & set(answered):
        return [], f"clusters are an answer to {', '.join(answered)} only"
    if p.config.federation.algorithm.name == "clustered":
        return [], "its clients are in clusters already"
    found = clusters_of(p)
    return (clustered(found.labels), "") if found.k > 1 else ([], found.sentence)
