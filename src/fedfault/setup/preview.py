"""The texts that `fedfault check` and `fedfault list` print."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fedfault.config.changes import spell_value
from fedfault.config.files import spell_key
from fedfault.config.loading import Loaded
from fedfault.config.shorthand import CHOOSERS
from fedfault.diagnosis.watch import Watch
from fedfault.errors import UserError, suggest
from fedfault.options import describe_options, list_options, read_meanings
from fedfault.registry import FOLDERS, activate, build, find_plugin, load_builders, read_summary

if TYPE_CHECKING:
    from fedfault.data.split import Split
    from fedfault.rounds.local import LocalWork
    from fedfault.setup.experiment import Prepared

BAR = 20  # characters
LABELS = 12  # characters of the labels before lines of text, and the gap behind them
MOST = 40  # clients listed one by one
COLUMNS = 20  # topics that have a column
SHADES = " ░▒▓█"  # none, up to a quarter, a half, three quarters, all


def preview(loaded: Loaded, plot: Path | None = None, width: int | None = None) -> str:
    """Describe the experiment in numbers: who holds what, how different clients are, what is trained, what a round sends.

    With `plot`, the picture of the split is written to that PNG file; `UserError` if there is one already. `width` is that
    of the table, in characters; None: as wide as it is.
    """
    from fedfault.report.summary import describe_split, tabulate_skew
    from fedfault.report.terminal import format_table
    from fedfault.runs.recorded import RunData
    from fedfault.setup.experiment import prepare

    _check_free(plot)
    Watch(loaded.resolved)  # a calibration that cannot be read is refused as in a run, before torch is there
    exp = loaded.experiment.model_copy(
        update={"evaluation": loaded.experiment.evaluation.model_copy(update={"general": "none"})}
    )
    p = prepare(exp)
    Watch(loaded.resolved, corpus=p.split.corpus.fingerprint, model=p.backbone.fingerprint)
    found = p.heterogeneity()
    run = RunData(Path(), (), config=exp.model_dump(), split=p.split.to_json(), heterogeneity=found)
    table = tabulate_skew(run)
    lines = [
        *(f"note: {n}" for n in loaded.notes),
        *_describe_experiment(p),
        "",
        *_draw_clients(p.split),
        "",
        *describe_split(run),
        *(["", *format_table(table, width)] if table else []),
    ]
    if plot is not None:
        from fedfault.report import gallery

        figure = gallery.draw_split(run, gallery.LIGHT)
        assert figure is not None  # every split has clients and topics
        gallery.write_figure(figure, plot)
        lines.append(f"\npicture: {plot}")
    return "\n".join(lines)


def _check_free(plot: Path | None) -> None:
    if plot is None:
        return
    from fedfault.report.gallery import check_place

    check_place(plot)
    if plot.exists():
        raise UserError(f"{plot} exists; give another file to --plot or remove it")


def _describe_experiment(p: Prepared) -> list[str]:
    from fedfault.backbones.sites import describe_left_out
    from fedfault.rounds.engine import begin
    from fedfault.rounds.exchange import select_rows
    from fedfault.text.questions import explain_no_end
    from fedfault.wire import pack

    exp, fed, split = p.config, p.federation, p.split
    down = len(pack(select_rows(fed.algorithm.broadcast(begin(fed)), 0)))
    size = sum(b.num_tokens for b in split.train)
    traffic = f"{down:,} bytes down to a client, about as much up; {down * fed.cohort_size:,} down a round"
    traffic = "none" if exp.federation.centralised else traffic
    lines = [
        _name(
            "corpus",
            f"{split.corpus.name}: {_count_training(split, exp.data.max_samples)} training and "
            f"{len(split.corpus.validation):,} validation documents ({split.corpus.source})",
        ),
        *(_name("", line) for line in split.corpus.tally.describe()),
        _name(
            "model",
            f"{p.backbone.name}: {p.parameters:,} frozen parameters in {_describe_storage(p)} on {p.model.device}",
        ),
        _name(
            "trained",
            f"{p.model.layout.size:,} parameters a client in {len(p.model.layout.sites)} {exp.model.trainable} sites "
            f"({100 * p.model.layout.size / p.parameters:.2f} % of the model)",
        ),
        *(_name("", line) for line in describe_left_out(p.model.model, p.model.targets)),
        _name("partition", _describe_component_choice(exp.data.partition)),
        _name(
            "federation",
            f"{exp.federation.algorithm.name}, {fed.num_rounds} rounds, {_describe_cohort(p)}, "
            f"{_describe_work(exp, fed.work)}",
        ),
        _name("", _count_work(p)),
        _name("traffic", traffic),
        _name(split.targets, f"{_count_targets(split, size, exp.model.max_length)}; {_describe_pass(p)}"),
        *(_name("", line) for line in split.describe_losses()),
        *([_name("", lacks)] if p.template and (lacks := explain_no_end(p.template)) else []),
    ]
    lines += _describe_tiers(p)
    if split.floor:
        entropy = split.floor["validation"]
        lines.append(_name("floor", f"{entropy:.4f} nats per token: the entropy of the validation texts"))
    return lines


def _name(label: str, text: str) -> str:
    """A line of text behind a label in a column of its own, below which the line goes on where it is broken."""
    return f"{label:<{LABELS}}{text}"


def _describe_component_choice(chosen: Any) -> str:
    """The name of a component with its options as they are typed."""
    options = ", ".join(f"{key}: {spell_value(value)}" for key, value in chosen.options.items())
    return f"{chosen.name} ({options})" if options else str(chosen.name)


def _describe_pass(p: Prepared) -> str:
    """How many clients a pass has, and the memory that it takes at its peak beside the model."""
    fed, task = p.federation, p.task
    size = min(fed.clients_per_pass or fed.cohort_size, fed.cohort_size)
    peak = f"{task.estimate_pass(size, fed.work.part_size) / 1e9:,.2f} GB"
    free = "" if task.free is None else f" of the {task.free / 1e9:,.1f} GB that are free"
    return f"{size} client{'s' if size > 1 else ''} in a pass, for about {peak}{free} beside the model"


def _count_training(split: Split[Any], most: int | None) -> str:
    """Count the documents that clients share, and of how many, where data.max_samples drew them or some are left out."""
    used, there = len(split.documents), len(split.corpus.train)
    drawn = "data.max_samples, " if most is not None and most < there else ""
    return f"{used:,}" if used == there else f"{used:,} ({drawn}of {there:,})"


def _describe_tiers(p: Prepared) -> list[str]:
    """A line a tier: how long its clients would take, with the smallest and with the largest rank that they can be given."""
    from fedfault.rounds.dispatch import foresee_times
    from fedfault.rounds.engine import begin

    hw, state = p.federation.hardware, begin(p.federation)
    if hw is None:
        return []
    a, b = foresee_times(p.federation, hw, state)
    high = np.minimum(hw.caps, state.ranks)
    low = np.minimum(hw.r_min, high)
    lines = []
    for tier in dict.fromkeys(hw.fleet.tier):
        own = [k for k, name in enumerate(hw.fleet.tier) if name == tier]
        if high[own[0]] < hw.r_min:
            lines.append(_name("tier", f"{tier}: {len(own)} clients without the memory for rank {hw.r_min}"))
            continue
        least, most = ((a + b * ranks)[own] for ranks in (low, high))
        lines.append(
            _name(
                "tier",
                f"{tier}: {len(own)} clients, a round takes them {_format_span(least)} s with rank {low[own[0]]} and "
                f"{_format_span(most)} s with rank {high[own[0]]}",
            )
        )
    return lines


def _format_span(seconds: NDArray[np.float64]) -> str:
    """From the fastest to the slowest."""
    least, most = f"{seconds.min():.3g}", f"{seconds.max():.3g}"
    return least if least == most else f"{least} to {most}"


def _describe_storage(p: Prepared) -> str:
    """How the frozen parameters are kept."""
    kind = p.backbone.quantization
    return p.backbone.precision + ("" if kind == "none" else f", linear layers in {kind},")


def _count_targets(split: Split[Any], size: int, length: int) -> str:
    """What there is to learn from."""
    if split.examples is None:
        return f"{size:,} in training blocks of {length}"
    mean = float(split.examples.lengths.double().mean())
    rows = f"of {mean:.1f} tokens on average and {length} at most"
    if split.targets == "examples":
        return f"{size:,} for training, {rows}"
    return f"{size:,} to learn in {sum(map(len, split.train)):,} training conversations {rows}"


def _describe_cohort(p: Prepared) -> str:
    fed = p.federation
    if p.config.federation.centralised:
        return "all data in one place"
    return f"{fed.cohort_size} of {fed.total_clients} clients a round"


def _describe_work(exp: Any, work: LocalWork) -> str:
    t = exp.training
    length = f"{work.steps} steps" if work.steps else f"{work.epochs or 1} epoch(s)"
    return f"{length} of {t.batch_size} {_name_rows(exp)} with {t.optimizer} at lr {t.lr:g}"


def _name_rows(exp: Any) -> str:
    """The word for what batches are made of."""
    return {"causal_lm": "blocks", "instruction": "conversations", "preference": "pairs"}.get(
        exp.data.task_type, "examples"
    )


def _count_work(p: Prepared) -> str:
    """How much clients train on in a round and in the run, which says how long it takes beside a run that is known."""
    from fedfault.setup.federation import count_examples

    fed, work = p.federation, p.federation.work
    held = count_examples(p.task, p.split)
    each = work.steps * work.batch_size if work.steps else (work.epochs or 1) * sum(held) / len(held)
    a_round = round(each * fed.cohort_size)
    return f"trains on about {a_round:,} {_name_rows(p.config)} a round, {a_round * fed.num_rounds:,} in all"


def _draw_clients(split: Split[Any]) -> list[str]:
    """A line a client: documents, tokens, a bar for them, and its share of each topic as a shade."""
    topics = split.topics[:COLUMNS]
    marks = [chr(ord("A") + i) for i in range(len(topics))]
    tokens = [b.num_tokens for b in split.train]
    names = split.deal.names or [""] * len(tokens)
    labels = [f"{name} {k}".strip() for k, name in enumerate(names[:MOST])]
    width = max(len("client"), *map(len, labels))
    rest = f"  and {len(split.topics) - COLUMNS} more" if len(split.topics) > COLUMNS else ""
    lines = [
        _name("topics", "  ".join(f"{m} {t}" for m, t in zip(marks, topics, strict=True)) + rest),
        f"{'client':>{width}}  documents  {split.targets:>9}  {'':{BAR}}  {'  '.join(marks)}",
    ]
    for k, counts in enumerate(split.counts[:MOST]):
        share = counts[:COLUMNS] / counts.sum()
        shades = " ".join(2 * SHADES[math.ceil(4 * s)] for s in share)
        bar = "█" * max(1, round(BAR * tokens[k] / max(tokens)))
        lines.append(f"{labels[k]:>{width}}  {counts.sum():9,d}  {tokens[k]:9,d}  {bar:{BAR}}  {shades}".rstrip())
    if len(split.counts) > MOST:
        lines.append(f"... and {len(split.counts) - MOST} more clients")
    return lines


def describe_components(what: str | None = None, plugins: Sequence[str] = ()) -> str:
    """List all components by kind, those of one kind, or one component with its full text and its options.

    plugins: whose components are listed, too, each with the file that it is from.
    A word that is both, like `aggregation`, shows both. Raises `UserError` with a suggestion for a word that is neither.
    """
    from fedfault.backbones.load import HUB, NAMES

    activate(plugins)
    models = {n: HUB.get(n, "ships with fedfault") for n in NAMES}
    known = {kind: load_builders(kind) for kind in FOLDERS}
    parts = [_list_kind(kind, found) for kind, found in known.items() if what in (None, kind)]
    parts += [_list_models(models)] if what in (None, "model") else []
    parts += [_describe_component(kind, what, found[what]) for kind, found in known.items() if what in found]
    if parts:
        return "\n\n".join(parts)
    assert what is not None  # without a word everything is shown
    every = [*known, "model", *(n for b in known.values() for n in b)]
    raise UserError(f"no kind or component called {what!r}{suggest(what, every)} (kinds: {', '.join(known)}, model)")


def _list_kind(kind: str, found: dict[str, Callable[..., Any]]) -> str:
    width = max(map(len, found), default=0)
    return "\n".join([f"{kind}:", *(f"  {n:{width}}  {read_summary(b)}{_name_origin(b)}" for n, b in found.items())])


def _name_origin(builder: Callable[..., Any]) -> str:
    """The plug-in that a component is from, in brackets; nothing for one of the package's own."""
    plugin = find_plugin(builder)
    return "" if plugin is None else f" [{plugin.package or plugin.source}]"


def _list_models(models: dict[str, str]) -> str:
    width = max(map(len, models))
    rows = [f"  {n:{width}}  {where}" for n, where in models.items()]
    more = ["  any Hub id of a causal language model, a local folder, or a .gguf file", "  for labels, any encoder too"]
    return "\n".join(["model:", *rows, *more])


def _describe_component(kind: str, name: str, builder: Callable[..., Any]) -> str:
    text, meanings = read_meanings(builder)
    rows = zip(list_options(builder), describe_options(builder), strict=True)
    takes = [f"  {option}\n      {meanings.get(o, '')}".rstrip() for o, option in rows] or ["  none"]
    place = next(
        (f" in {spell_key(section)}" for section, of in CHOOSERS.items() if of == kind), ", as every run has them"
    )
    more = _describe_reactions(name) if kind == "detector" else []
    return "\n".join(
        [
            f"{kind} {name}{_name_origin(builder)}",
            "",
            text,
            "",
            f"options{place}:",
            *takes,
            *more,
        ]
    )


def _describe_reactions(name: str) -> list[str]:
    """Say what a run does at this detector's alarm, for each federation.on_failure that changes something."""
    detector = build("detector", name)
    remedies = [f"  {remedy}" for remedy in detector.remedies] or ["  nothing: no setting of one shared model mends it"]
    clusters = "a model for each cluster of clients" if detector.wants_clusters else "nothing"
    rollback = "federation.on_failure=rollback changes, the first of these that is a change:"
    return ["", rollback, *remedies, "federation.on_failure=cluster makes:", f"  {clusters}"]
