"""Clusters that a run needs: before its first round, or as the answer to an alarm, federation.on_failure=cluster."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fedfault.clustering.clusters import Clusters, choose_clusters
from fedfault.clustering.embeddings import BACKBONE, embed_texts, make_encoder
from fedfault.config.sections.base import Component
from fedfault.diagnosis.detection import build_detectors
from fedfault.saying import Say
from fedfault.setup.experiment import Prepared


def find_clusters(p: Prepared, encoder: str = BACKBONE) -> Clusters:
    """The clusters of an experiment's clients, by what an encoder makes of their training texts."""
    documents, owner = embed_texts(p, make_encoder(p, encoder))
    return choose_clusters(documents, owner, p.config.federation.total_clients, p.config.seed)


def fill_in_clusters(p: Prepared, say: Say) -> tuple[Prepared, Clusters | None]:
    """An experiment whose algorithm is `clustered` without clusters, with those that its clients fall into, and these.

    Any other experiment comes back as it is, with None.
    """
    f = p.config.federation
    if f.algorithm.name != "clustered" or f.algorithm.options.get("clusters") is not None:
        return p, None
    found = find_clusters(p, f.algorithm.options.get("encoder", BACKBONE))
    say(found.sentence)
    named = Component(name="clustered", **{**f.algorithm.options, "clusters": list(found.labels)})
    exp = p.config.model_copy(update={"federation": f.model_copy(update={"algorithm": named})})
    return p.with_settings(exp), found


def describe_clusters(p: Prepared, found: Clusters) -> dict[str, Any]:
    """What clusters.json holds: the clusters, the topic that each client mostly has, and how the two agree.

    The agreement is the adjusted Rand index (Hubert and Arabie, 1985): 1 for equal, about 0 by chance.
    """
    from sklearn.metrics import adjusted_rand_score

    mostly = p.split.counts.argmax(1)
    topics = [p.split.topics[k] for k in mostly]
    return {**found.to_json(), "topics": topics, "agreement": float(adjusted_rand_score(mostly, found.labels))}


def cluster_setting(found: Clusters) -> str:
    """The clusters of an algorithm `clustered` that has none, as `key=value`."""
    return f"federation.algorithm.clusters={list(found.labels)}"


def answer_with_clusters(p: Prepared, causes: Sequence[str]) -> tuple[list[str], str]:
    """Settings with which a run goes on after these alarms, clients in clusters; none with the reason."""
    answered = [name for name, detector in build_detectors().items() if detector.wants_clusters]
    if not set(causes) & set(answered):
        return [], f"clusters are an answer to {', '.join(answered)} only"
    if p.config.federation.algorithm.name == "clustered":
        return [], "its clients are in clusters already"
    if p.config.federation.centralised:
        return [], "all data are in one place already"
    found = find_clusters(p)
    if found.k == 1:
        return [], found.sentence
    return ["federation.algorithm=clustered", cluster_setting(found), "federation.algorithm.shrinkage=0.0"], ""
