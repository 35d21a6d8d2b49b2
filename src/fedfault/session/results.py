"""The results of a trained run: findings.jsonl, metrics.json, personal.json, answers.json, clients.parquet, adapters."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from fedfault.backbones.export import export_adapter, export_tokenizer
from fedfault.data.labelled import list_classes
from fedfault.diagnosis.watch import write_findings
from fedfault.records import add_client_names
from fedfault.runs.outcome import LABEL_LOSS, LOSS, summarise_run
from fedfault.session.card import render_card, write_inline
from fedfault.session.personal import Personal, compare_models
from fedfault.session.session import Session
from fedfault.setup.experiment import Prepared
from fedfault.text.questions import find_stops
from fedfault.types.adapter import Adapter
from fedfault.types.algorithm import State

ANSWERS_SHOWN = 20  # answers that answers.json holds, of every topic in turn


def write_results(s: Session, p: Prepared, state: State) -> None:
    """Write findings.jsonl, metrics.json, personal.json, clients.parquet and the adapters of all models."""
    records = s.folder.read_records()
    seen = s.watch.follow(records)
    write_findings(s.folder.path, seen.findings)
    metric, target = p.config.metric, p.config.evaluation.target_score
    aim = None if metric is None or target is None else (metric, target)
    labelled = p.model.scorer is not None
    verdict = s.watch.judge(seen, s.manifest.get("ended"))
    found = {**summarise_run(records, p.split.bytes_per_token, aim, labelled), "verdict": verdict}
    personal = compare_models(p, state, records, s.progress)
    if personal is not None:
        s.folder.write_json("personal.json", {"rows": personal.rows})
        found["personal"] = personal.summary
        found["units"]["personal"] = LABEL_LOSS if labelled else LOSS
    s.folder.write_json("metrics.json", found)
    s.folder.write_clients(records)
    _write_answers(s, p, state)
    _export_models(s, p, state, personal, found)


def _write_answers(s: Session, p: Prepared, state: State) -> None:
    """Write answers.json: what the model answered before and after training to some prompts, where it was asked."""
    if p.config.evaluation.generate:
        s.progress.say(f"the base and the trained model answer up to {ANSWERS_SHOWN} prompts for the report")
    after = p.task.continuations(state.adapter.flat, ANSWERS_SHOWN)
    if after is None or not after.prompts:
        return
    p.task.fold({})
    before = p.task.continuations(p.task.init(p.config.seed).flat, ANSWERS_SHOWN)
    p.task.fold(state.base)
    assert before is not None
    said = zip(after.prompts, after.references, before.texts, after.texts, strict=True)
    rows = [dict(zip(("prompt", "reference", "before", "after"), own, strict=True)) for own in said]
    s.folder.write_json("answers.json", {"answers": rows})


def _export_models(s: Session, p: Prepared, state: State, personal: Personal | None, found: Mapping[str, Any]) -> None:
    """Write the adapter, one beside it for each further model of the server, and one for each client that has its own."""
    labels = () if p.model.scorer is None else list_classes(p.config, p.split.corpus)
    traits = p.federation.aggregation.traits
    stops = () if p.template is None else find_stops(p.template)

    def export(place: str, adapter: Adapter, note: str, client: int | None = None) -> None:
        about = (p.config, p.backbone, p.split.corpus, traits, labels, found, s.manifest)
        card = render_card(*about, place=place, note=note, client=client, stops=stops)
        export_adapter(s.folder.path / place, p.backbone, p.model, adapter, card, state.base, labels)

    models = p.federation.algorithm.models(state)
    of_all = f"the mean of {', '.join(models)}, which lie beside it and which clients use"
    export("adapter", state.adapter, f"This is {of_all}." if models else "")
    for name, x in models.items():
        export(f"adapter/{name}", x, f"This is {name}; the scores above are those of {of_all}.")
    rows = () if personal is None else personal.models.flat
    tuned = _describe_tuning(p)
    for k, (name, row) in enumerate(zip(name_folders(p.split.deal.names, len(rows)), rows, strict=True)):
        who = write_inline(add_client_names(f"client {k}", p.split.deal.names))
        note = (
            f"This is the model that {who} uses, and `client/{k}` its score on what that client held back; the scores of "
            "the other sets are those of the server's adapter."
            f"{tuned}"
        )
        export(f"adapter/clients/{name}", Adapter(state.adapter.layout, row), note, k)
    template = None if p.template is None else p.template.source
    export_tokenizer(s.folder.path / "adapter", p.backbone.tokenizer, template)


def _describe_tuning(p: Prepared) -> str:
    """Say of a client's exported model that it was trained on after its score was taken; nothing where it was not."""
    how = p.config.personalise
    return (
        ""
        if how is None
        else f" After that the client trained it on for {how.steps} steps: personal.json has its score, as model `tuned`."
    )


def name_folders(names: Sequence[str], N: int) -> list[str]:
    """Name a folder for each of N clients after it, or by its number where it has no name that a folder could have.

    >>> name_folders(["Eve", "R&D / Ops", "..", "eve-4", "eve"], 5)
    ['Eve', 'R_D_Ops', '2', 'eve-4', 'eve-4-4']
    """
    found: list[str] = []
    for k in range(N):
        name = re.sub(r"[^\w.-]+", "_", names[k] if names else "").strip("._")[:60] or str(k)
        while name.casefold() in (other.casefold() for other in found):
            name = f"{name}-{k}"
        found.append(name)
    return found
