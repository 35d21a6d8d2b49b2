"""What `fedfault check` and `fedfault list` print."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from fedfault.config.loading import Loaded
from fedfault.errors import UserError, suggest
from fedfault.registry import FOLDERS, builders, first_line, options, shown

BAR = 24  # characters
MOST = 40  # clients listed one by one


def preview(loaded: Loaded) -> str:
    """The experiment in numbers: who holds what, what is trained, what a round sends."""
    from fedfault.engine import begin
    from fedfault.experiment import prepare
    from fedfault.wire import pack

    exp = loaded.experiment.model_copy(
        update={"evaluation": loaded.experiment.evaluation.model_copy(update={"general": "none"})}
    )
    p = prepare(exp)
    fed, split = p.federation, p.split
    down = len(pack(fed.algorithm.broadcast(begin(fed))))
    size = sum(b.num_tokens for b in split.train)
    lines = [
        *(f"note: {n}" for n in loaded.notes),
        f"corpus     {split.corpus.name}: {len(split.corpus.train):,} training and {len(split.corpus.validation):,} "
        f"validation documents ({split.corpus.source})",
        f"model      {p.backbone.name}: {p.parameters:,} frozen parameters in {p.backbone.precision} on {p.model.device}",
        f"trained    {p.model.layout.size:,} parameters a client in {len(p.model.layout.sites)} {exp.model.trainable} sites "
        f"({100 * p.model.layout.size / p.parameters:.2f} % of the model)",
        f"partition  {exp.data.partition.method} {exp.data.partition.options or ''}".rstrip(),
        f"federation {exp.federation.algorithm.name}, {fed.num_rounds} rounds, {fed.cohort_size} of {fed.total_clients} "
        f"clients a round, {_work(exp)}",
        f"traffic    {down:,} bytes down to a client, about as much up; {down * fed.cohort_size:,} down a round",
        f"tokens     {size:,} in training blocks of {exp.model.max_length}; "
        f"{fed.clients_per_pass} clients fit in one pass",
        "",
        *_clients(split),
    ]
    return "\n".join(lines)


def _work(exp: Any) -> str:
    t = exp.training
    length = f"{t.local_steps} steps" if t.local_steps else f"{t.local_epochs or 1} epoch(s)"
    return f"{length} of {t.batch_size} blocks with {t.optimizer} at lr {t.lr:g}"


def _clients(split: Any) -> list[str]:
    """A line a client: documents, tokens, and a bar with one letter a topic."""
    marks = {topic: chr(ord("A") + i % 26) for i, topic in enumerate(split.topics)}
    lines = ["topics     " + "  ".join(f"{m} {t}" for t, m in marks.items()), "client  documents     tokens  topics"]
    for k, counts in enumerate(split.counts[:MOST]):
        share = counts / counts.sum()
        bar = "".join(marks[t] * round(BAR * s) for t, s in zip(split.topics, share, strict=True))
        lines.append(f"{k:6d}  {counts.sum():9,d}  {split.train[k].num_tokens:9,d}  {bar}")
    if len(split.counts) > MOST:
        lines.append(f"... and {len(split.counts) - MOST} more clients")
    return lines


def components(what: str | None = None) -> str:
    """All components by kind, those of one kind, or one component with its options and full text."""
    from fedfault.backbones.load import HUB, NAMES

    models = {n: HUB.get(n, "ships with fedfault") for n in NAMES}
    known = {kind: builders(kind) for kind in FOLDERS}
    if what in known:
        return _kind(what, known[what])
    if what == "model":
        return _models(models)
    if what is None:
        return "\n\n".join([*(_kind(k, b) for k, b in known.items()), _models(models)])
    for kind, found in known.items():
        if what in found:
            return _one(kind, what, found[what])
    every = [*known, "model", *(n for b in known.values() for n in b)]
    raise UserError(f"no kind or component called {what!r}{suggest(what, every)} (kinds: {', '.join(known)}, model)")


def _kind(kind: str, found: dict[str, Callable[..., Any]]) -> str:
    width = max(map(len, found), default=0)
    return "\n".join([f"{kind}:", *(f"  {n:{width}}  {first_line(b)}" for n, b in found.items())])


def _models(models: dict[str, str]) -> str:
    width = max(map(len, models))
    rows = [f"  {n:{width}}  {where}" for n, where in models.items()]
    return "\n".join(["model:", *rows, "  any Hub id of a causal language model, a local folder, or a .gguf file"])


def _one(kind: str, name: str, builder: Callable[..., Any]) -> str:
    takes = [f"  {shown(p)}" for p in options(builder).values()] or ["  none"]
    return "\n".join([f"{kind} {name}", "", inspect.getdoc(builder) or "", "", "options:", *takes])
