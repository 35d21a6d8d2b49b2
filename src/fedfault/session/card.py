"""README.md of an exported adapter: the YAML head that model hubs read, what it is, how it did, how to load it."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from fedfault.backbones.checks import takes_token_types
from fedfault.backbones.load import NAMES, Backbone
from fedfault.backbones.scorer import LAST
from fedfault.config.schema import Experiment
from fedfault.config.sections.data import METRICS, SPOKEN
from fedfault.report.words import format_count
from fedfault.types.corpus import Corpus

NOTES = {  # trait of the aggregation -> what a user of the exported adapter has to know
    "folds": "The run added to the frozen weights too; this adapter stands for the whole change of the original model.",
    "private": (
        "Each client has kept a part of its adapter to itself. In `adapter` the mean over all clients is in its place, "
        "which none of them uses; the score `personal` is of their own, in `adapter/clients` where they are known."
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
    place: str = "adapter",
    note: str = "",
    client: int | None = None,
    stops: Collection[int] = (),
) -> str:
    """Return the model card as Markdown.

    traits: of the aggregation; labels: names of the classes; found: the run's metrics.json; manifest: its manifest.json;
    place: the folder of the adapter, seen from that of the run; note: what tells it from the other adapters of the run;
    client: whose own model it is, so that the scores on its held-out texts are listed too; stops: of a run that learned from
    conversations the tokens at which answers end, of which the base's own settings may lack that of the chat template.
    """
    import jinja2

    source, local = backbone.source, Path(backbone.source).exists()
    head = {
        **({} if local else {"base_model": source}),  # a hub looks for it
        "library_name": "peft" if exp.model.trainable == "lora" else "transformers",
        "pipeline_tag": "text-classification" if backbone.pooling else "text-generation",
        "license": "unknown",  # that of the base model and of the texts
        "tags": ["fedfault", "federated-learning", exp.federation.algorithm.name],
    }
    loader = jinja2.PackageLoader("fedfault", "session")
    environment = jinja2.Environment(loader=loader, autoescape=False, keep_trailing_newline=True)
    return environment.get_template("card.md").render(
        base="base" if local else ", revision=".join(repr(part) for part in (source, backbone.revision) if part),
        placed=locate_base(backbone.name) if local else "",
        base_name=name_base(backbone.name) if local else backbone.name,
        head=yaml.safe_dump(head, sort_keys=False).strip(),
        exp=exp,
        corpus=corpus,
        found=found,
        verdict=found.get("verdict"),
        local=local,
        shipped=local and backbone.name in NAMES,
        manifest=manifest,
        names=[n for n in found["final"] if not n.startswith("client/") or n == f"client/{client}"],
        metrics=list(METRICS.get(exp.data.task_type, ("perplexity",))),
        value=format_score,
        count=format_count,
        spoken=exp.data.task_type in SPOKEN,
        stops=sorted(stops),
        pooling=backbone.pooling,
        separator=backbone.separator,
        takes_types=backbone.pooling not in (None, LAST) and takes_token_types(backbone.model.base_model),
        dtype="bfloat16" if backbone.precision == "bf16" else "float32",
        place=place,
        labels=list(labels) if exp.data.task_type == "classification" else [],
        hide=hide_folders,
        text=write_inline,
        code=write_code,
        notes=[*([note] if note else []), *(NOTES[trait] for trait in sorted({*traits} & set(NOTES)))],
    )


def locate_base(name: str) -> str:
    """Return the code that finds a base model which is no model of the Hub: by its name, or where the reader has it.

    >>> locate_base("/home/somebody/models/ours")
    "'path/to/ours'  # its place on your machine"
    """
    return (
        f"locate_model({name!r})" if name in NAMES else f"{f'path/to/{name_base(name)}'!r}  # its place on your machine"
    )


def name_base(name: str) -> str:
    """Return the name of a base model without the folders that it lies in."""
    return Path(name).name or name


def write_inline(text: object) -> str:
    """Write a text of somebody else's as Markdown on one line that shows it as it is: no heading, no link, no HTML.

    >>> print(write_inline("news\\n# <b>a|b</b>"))
    news # \\<b\\>a\\|b\\</b\\>
    """
    return re.sub(r"[\\`*\[\]<>|]", r"\\\g<0>", _join_lines(text))


def write_code(text: object) -> str:
    """Write a text as Markdown's code on one line, between more backticks than it has in a row.

    >>> print(write_code("a`b"), write_code("plain"))
    `` a`b `` `plain`
    """
    plain = _join_lines(text)
    ticks = "`" * (max(map(len, re.findall("`+", plain)), default=0) + 1)
    return f"{ticks} {plain} {ticks}" if "`" in plain else f"{ticks}{plain}{ticks}"


def hide_folders(text: str) -> str:
    """Leave the folders of absolute paths out of a text: they are those of one machine, and may name a person.

    >>> hide_folders("fedfault run /home/eve/my.yaml data.path=~/texts/x.csv logging.results_dir=/data")
    'fedfault run my.yaml data.path=x.csv logging.results_dir=data'
    """
    return re.sub(r"(?:^|(?<=[\s=\[,'\"]))(?:~?/|[A-Za-z]:[\\/])(?:[^\s,\]'\"]*[\\/])?(?=\w)", "", text)


def _join_lines(text: object) -> str:
    """Join the lines of a text by blanks, and drop what does not print."""
    return "".join(c for c in " ".join(str(text).split()) if c.isprintable())


def format_score(scores: Mapping[str, Mapping[str, float]], name: str, metric: str) -> str:
    """Return a score as the card shows it.

    >>> format_score({"validation": {"perplexity": 20.456}}, "validation", "perplexity")
    '20.46'
    """
    value = scores.get(name, {}).get(metric)
    return "–" if value is None else f"{value:.2f}" if metric == "perplexity" else f"{value:.3f}"
