"""README.md of an exported adapter: the YAML head that model hubs read, what it is, how it did, how to load it."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from fedfault.backbones.load import Backbone
from fedfault.config.schema import METRICS, Experiment
from fedfault.types.corpus import Corpus

NOTES = {  # trait of the aggregation -> what a user of the exported adapter has to know
    "folds": "The run added to the frozen weights too; this adapter stands for the whole change of the original model.",
    "private": (
        "Each client has kept a part of its adapter to itself. Here its place is taken by the mean over all clients, which "
        "none of them uses: the score `personal` is not this adapter's."
    ),
}


def render_card(
    exp: Experiment,
    backbone: Backbone,
    corpus: Corpus,
    traits: Collection[str],
    labels: Sequence[str],
    found: Mapping[str, Any],
    manifest: Mapping[str, Any],
) -> str:
    """Return the model card as Markdown.

    traits: of the aggregation; labels: names of the classes; found: the run's metrics.json; manifest: its manifest.json.
    """
    import jinja2

    source = backbone.source
    head = {
        "base_model": exp.model.name if Path(source).exists() else source,
        "library_name": "peft" if exp.model.trainable == "lora" else "transformers",
        "tags": ["fedfault", "federated-learning", exp.federation.algorithm.name],
    }
    loader = jinja2.PackageLoader("fedfault", "backbones")
    environment = jinja2.Environment(loader=loader, autoescape=False, keep_trailing_newline=True)
    return environment.get_template("card.md").render(
        head=yaml.safe_dump(head, sort_keys=False).strip(),
        exp=exp,
        corpus=corpus,
        found=found,
        manifest=manifest,
        names=[n for n in found["final"] if not n.startswith("client/")],
        metrics=list(METRICS.get(exp.data.task_type, ("perplexity",))),
        value=format_score,
        pooling=backbone.pooling,
        separator=backbone.separator,
        labels=list(labels) if exp.data.task_type == "classification" else [],
        notes=[NOTES[trait] for trait in sorted({*traits} & set(NOTES))],
    )


def format_score(scores: Mapping[str, Mapping[str, float]], name: str, metric: str) -> str:
    """Return a score as the card shows it.

    >>> format_score({"validation": {"perplexity": 20.456}}, "validation", "perplexity")
    '20.46'
    """
    value = scores.get(name, {}).get(metric)
    return "–" if value is None else f"{value:.2f}" if metric == "perplexity" else f"{value:.3f}"
