"""What a study came to, as tables and sentences: everything that its report says."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np

from fedfault.compare.pairs import CONTENT, explain_budgets, find_changed_content
from fedfault.config.changes import NO_CAUSE, flatten_settings
from fedfault.records import STATES
from fedfault.report import tables
from fedfault.report.words import NOTHING, Table, format_count, format_interval, format_number, format_seconds
from fedfault.runs.manifest import find_status
from fedfault.runs.read import read_run
from fedfault.runs.recorded import RunData
from fedfault.stats import ALPHA, mean_interval
from fedfault.studies.answers import MOST, Answer, SeedDifferences, answer_hypotheses
from fedfault.studies.outcomes import METRIC, is_loss, measure_outcome
from fedfault.studies.study import RUNS, Cell, Contrast, Study, describe_choice, describe_other_settings, read_study

ASKED = {"clock.seconds": "simulated s"}  # only where a hypothesis is about it
COLUMNS = {  # metric -> how the table of cells calls it
    METRIC: "final loss",
    "gain": "gain",
    "auc": "mean loss",
    "swing": "swing",
    "forgetting": "forgetting",
    "final.validation.accuracy": "accuracy",
}


SEQUENTIAL = (
    " The number of seeds was found while they came: answers and their intervals hold at whatever seed one stops; those "
    "by Student's t, of cells and of clients, do not quite. A cell that no open hypothesis was about took no more "
    "seeds; a hypothesis was given up where the most seeds were likely to leave it open."
)
CHOSEN = " The data chose the number of seeds, so that intervals by Student's t miss somewhat more often than in 5 %."


@dataclass(frozen=True)
class Results:
    """A study with the runs that are there."""

    folder: Path
    study: Study
    runs: Mapping[str, RunData]
    left_out: Mapping[str, str] = field(default_factory=dict)  # run -> why it is none of the study's

    @cached_property
    def answers(self) -> list[Answer]:
        """An answer to every hypothesis."""
        return answer_hypotheses(self.study, self.runs)

    def of(self, cell: Cell) -> list[RunData]:
        """The finished runs of a cell."""
        return [run for name in cell.runs if (run := self.runs.get(name)) is not None and run.over]

    def units(self, cells: Iterable[int]) -> list[str]:
        """The units of the losses of some cells, by their positions, each once."""
        return list(dict.fromkeys(run.unit for i in sorted(cells) for run in self.of(self.study.cells[i])))

    def by_seed(self, cell: Cell, metric: str) -> dict[int, float]:
        """Seed -> a metric, for every finished run of a cell that has it."""
        runs = {seed: self.runs.get(name) for seed, name in zip(self.study.seeds, cell.runs, strict=True)}
        measured = {seed: measure_outcome(run, metric) for seed, run in runs.items() if run is not None and run.over}
        return {seed: value for seed, value in measured.items() if value is not None}

    def shared_values(self, cells: Sequence[Cell], metric: str) -> list[list[float]]:
        """A metric of every cell, of the seeds that all cells have which were begun, so that means can be compared.

        Where they share no seed, of those of each.
        """
        found = [self.by_seed(cell, metric) for cell in cells]
        shared = set.intersection(*(set(each) for each in found if each)) if any(found) else set()
        return [[v for seed, v in each.items() if seed in shared or not shared] for each in found]

    def values(self, cell: Cell, metric: str) -> list[float]:
        """A metric in every finished run of a cell that has it."""
        return [*self.by_seed(cell, metric).values()]

    def states(self, cell: Cell) -> list[int]:
        """How many runs of a cell are in each of `records.STATES`."""
        found = [str(run.metrics["verdict"]["state"]) for run in self.of(cell) if run.metrics.get("verdict")]
        return [found.count(state) for state in STATES]


def read_results(folder: Path) -> Results:
    """The study of a folder and its runs. Raises `UserError` if the folder is none, or a run is corrupt."""
    study = read_study(folder)
    paths = {name: folder / RUNS / name for name in study.runs}
    there = [name for name, path in paths.items() if find_status(path) not in (None, "incomplete")]
    runs = {name: read_run(paths[name]) for name in there}
    found = {name: describe_other_settings(run.folder, run.manifest) for name, run in runs.items()}
    left_out = {name: why for name, why in found.items() if why}
    return Results(folder, study, {name: run for name, run in runs.items() if name not in left_out}, left_out)


def summarise_study(r: Results) -> list[str]:
    """The study in sentences: how much of it there is, and how the hypotheses came out."""
    s = r.study
    done = sum(len(r.of(cell)) for cell in s.cells)
    cells, seeds, runs = (format_count(len(x), n) for x, n in ((s.cells, "cell"), (s.seeds, "seed"), (s.runs, "run")))
    lines = [f"{cells} with {seeds} each, {runs}."]
    if s.sequential:
        lines = [f"{cells} with as many seeds as the answers took, {seeds} at most: {done} of {runs}."]
    elif (wanted := len(s.cells) * len(s.seeds)) > done:
        lines.append(f"{format_count(wanted - done, 'run')} {'is' if wanted - done == 1 else 'are'} not finished.")
    if r.answers:
        counts = {v: sum(a.verdict == v for a in r.answers) for v in ("supported", "refuted", "inconclusive")}
        listed = ", ".join(f"{n} {v}" for v, n in counts.items() if n)
        lines.append(f"Hypotheses: {listed}.")
    lines += [f"{name}: {why}." for name, why in r.left_out.items()]
    return [*lines, *(f"{name}: {note}" for name, run in r.runs.items() for note in run.notes)]


def tabulate_answers(r: Results) -> Table | None:
    """A hypothesis a row; where a claim is about several contrasts, the one that its answer rests on."""
    columns = ("hypothesis", "answer", "claim", "difference", "interval", "what matters", "p (Holm)")
    rows = [
        [
            a.hypothesis.name,
            f"{a.verdict}{_format_seeds(a)}",
            a.hypothesis.claim,
            format_number(a.decisive.mean, "+.3g"),
            format_interval(a.decisive.interval),
            _format_bound(a),
            format_p(a.p_holm) if len(a.decisive.values) > 1 else NOTHING,
        ]
        for a in r.answers
    ]
    return Table(columns, rows, text=(1, 2, 5)) if rows else None


def _format_bound(a: Answer) -> str:
    sign = {"higher": "above ", "lower": "below −", "equal": "within ±"}[a.hypothesis.expect]
    return f"{sign}{a.hypothesis.by:g}"


def format_needed(a: Answer) -> str:
    """How many seeds would answer a hypothesis that is left open."""
    if not a.decisive.values:
        return "not measured"
    if len(a.decisive.values) < 2:
        return "one seed says nothing"
    if not all(len(f.values) > 1 and np.isfinite(f.values).all() for f in a.found):
        return "how many seeds it takes is not known"
    if a.needed is None:
        return f"more than {MOST} seeds"
    return f"about {a.needed} seeds"


def _format_seeds(a: Answer) -> str:
    """After how many seeds a hypothesis was answered, where that was looked at; or how many it would take."""
    if a.verdict != "inconclusive":
        return f" (after {a.after} seeds)" if a.after else ""
    there = f"after {len(a.decisive.values)} seeds; " if a.test in ("mixture", "bets") else ""
    return f" ({there}{format_needed(a)})"


def format_p(p: float) -> str:
    """A p-value as text."""
    return "< 0.0001" if p < 0.0001 else f"{p:.4f}"


def tabulate_contrasts(r: Results) -> Table | None:
    """Every contrast of every hypothesis with the numbers of each seed."""
    columns = ("hypothesis", "metric", "contrast", "mean", "interval", "by seed")
    rows = [
        [
            a.hypothesis.name,
            a.hypothesis.metric,
            name_contrast(r.study, f.contrast),
            format_number(f.mean, "+.3g"),
            format_interval(f.interval),
            ", ".join(format_number(v, "+.3g") for v in f.values) + (f" ({f.why_not})" if f.why_not else ""),
        ]
        for a in r.answers
        for f in a.found
    ]
    return Table(columns, rows, text=(1, 2, 5)) if rows else None


def name_contrast(study: Study, c: Contrast) -> str:
    """A contrast in words: what both sides share, then what differs."""
    cells = study.cells
    if c.b is None:
        return f"{cells[c.a].name} − {c.constant:g}"
    name = _name_pair(cells[c.a], cells[c.b])
    return name if c.c is None or c.d is None else f"({name}) − ({_name_pair(cells[c.c], cells[c.d])})"


def _name_pair(a: Cell, b: Cell) -> str:
    same = [describe_choice(axis, label) for axis, label in a.choices.items() if b.choices.get(axis) == label]
    apart = [
        ", ".join(describe_choice(k, v) for k, v in x.choices.items() if y.choices.get(k) != v)
        for x, y in ((a, b), (b, a))
    ]
    return f"{', '.join(same)}: {' − '.join(apart)}" if same else " − ".join(apart)


def tabulate_cells(r: Results) -> Table:
    """A cell a row: what it is, and the mean of every metric over its seeds with its interval; verdicts counted."""
    titles = COLUMNS | {m: title for m, title in ASKED.items() if any(h.metric == m for h in r.study.hypotheses)}
    measured = [m for m in titles if any(r.values(cell, m) for cell in r.study.cells)]
    axes = list(r.study.axes)
    rows = [
        [
            *(cell.choices.get(axis, NOTHING) for axis in axes),
            str(len(r.of(cell))),
            *(format_mean(r.values(cell, m)) for m in measured),
            _format_states(r.states(cell)),
        ]
        for cell in r.study.cells
    ]
    columns = (*axes, "runs", *(titles[m] for m in measured), "verdicts")
    columns, rows = (columns, rows) if axes else (("cell", *columns), [["all", *row] for row in rows])
    return Table(columns, rows, text=(*range(1, len(axes)), len(columns) - 1))


def list_runs(r: Results) -> list[dict[str, str | int | float | None]]:
    """A row a finished run: its choice on every axis, seed, name, verdict, severity, and every metric that it has."""
    metrics = dict.fromkeys([*COLUMNS, "severity", *(h.metric for h in r.study.hypotheses)])
    return [
        {
            **{axis: cell.choices.get(axis) for axis in r.study.axes},
            "seed": seed,
            "run": name,
            "verdict": (run.metrics.get("verdict") or {}).get("state"),
            **{metric: measure_outcome(run, metric) for metric in metrics},
        }
        for cell in r.study.cells
        for seed, name in zip(r.study.seeds, cell.runs, strict=True)
        if (run := r.runs.get(name)) is not None and run.over
    ]


def format_mean(values: Sequence[float]) -> str:
    """A mean with its interval, or how many runs have diverged."""
    if not values:
        return NOTHING
    if lost := sum(not math.isfinite(v) for v in values):
        return f"diverged in {lost} of {len(values)}"
    mean, around = format_number(float(np.mean(values))), mean_interval(values)
    return mean if around is None else f"{mean} ({format_interval(around, '.3f')})"


def _format_states(states: Sequence[int]) -> str:
    return ", ".join(f"{n} {state}" for n, state in zip(states, STATES, strict=True) if n) or NOTHING


def list_settings(r: Results) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """List what varies, and what all runs share and is not a default; then what they share that is, with the values."""
    runs = [*r.runs.values()]
    flat = [flatten_settings(run.config) for run in runs]
    varies = [(axis, ", ".join(labels)) for axis, labels in r.study.axes.items()]
    head = [*varies, ("seeds", ", ".join(map(str, r.study.seeds)))]
    if not runs:
        return head, []
    same = {key for key, v in flat[0].items() if all(other.get(key) == v for other in flat)}
    same = {key for key in same if not key.startswith((*NO_CAUSE, "seed"))}
    own, rest = ([(key, v) for key, v in part if key in same] for part in tables.list_settings(runs[0]))
    return [*head, *own], rest


def explain_rule(r: Results) -> str:
    """How answers are found, in words."""
    tests = {
        "flips": "by an exact permutation test (all flips of the signs of the differences)",
        "student": "by Student's t, which assumes that differences between seeds are normal: for so few seeds and so many "
        "hypotheses no permutation test could give an answer",
        "mixture": "by tests that may be looked at after every seed (e-processes): a mixture of Student's t for differences "
        "that are normal",
        "bets": "by bets (e-processes), which assume nothing of counts but that they are 0 or 1",
    }
    some = {a.test for a in r.answers}
    how = ", and ".join(tests[test] for test in tests if test in some) or tests["flips"]
    return (
        "Arms are compared seed by seed: runs of one seed share all random draws (split, cohorts, batches). A claim is "
        "supported if the mean difference is on its side of what matters, refuted if it is on the other side, both at "
        f"p ≤ {ALPHA} after Holm's correction over all hypotheses, {how}; else it is inconclusive. A claim about several "
        "arms must hold in each: the row shows the arm that refutes it most surely, or else speaks most against it. "
        "Intervals are by the same test, and hold all of the study's differences together at a rate of 95 % (Bonferroni); "
        "where there is none, the test is never as sure as that with so few seeds. Beside an open hypothesis stands how "
        "many seeds would answer it, at a power of 0.8, if the differences stay as they are."
        + (SEQUENTIAL if r.study.sequential else "")
    )


def list_limits(r: Results) -> list[str]:
    """What to keep in mind: the author's limits, and those that follow from the runs."""
    lines = [*r.study.limits, *_explain_budgets(r)]
    commits = sorted({str(run.manifest.get("commit")) for run in r.runs.values()})
    if len(commits) > 1:
        lines.append(f"The runs are from different commits: {', '.join(c[:9] for c in commits)}.")
    if any(c.endswith("+") for c in commits):
        lines.append("Some runs were made by code with changes that are not in a commit.")
    lines += [f"{a.hypothesis.name}: {a.decisive.why_not}." for a in r.answers if a.decisive.why_not]
    lines += _describe_mixed(r)
    if len(r.study.seeds) < 2:
        lines.append("1 seed: no interval and no answer.")
    verdicts = [verdict for run in r.runs.values() if (verdict := run.metrics.get("verdict"))]
    if any(not verdict.get("calibration") for verdict in verdicts):
        lines.append("Verdicts are by conventional thresholds, not calibrated for these settings.")
    return lines


def _describe_mixed(r: Results) -> list[str]:
    """Say which of corpus, model and further files has several contents under the same settings."""
    firsts: dict[str, RunData] = {}  # fingerprints -> a run that has them
    for run in r.runs.values():
        firsts.setdefault(str([run.manifest.get(what, {}).get("fingerprint") for what in CONTENT]), run)
    mixed = {what for a, b in itertools.combinations(firsts.values(), 2) for what in find_changed_content(a, b)}
    return [
        f"The {what} is not the same in all runs, though their settings name the same: it has changed between them."
        for what in sorted(mixed)
    ]


def _explain_budgets(r: Results) -> list[str]:
    """Explain that cells with different schedulers train with different ranks, from the first run of every cell."""
    firsts = {cell.name: runs[0] for cell in r.study.cells if (runs := r.of(cell))}
    schedulers = [str(run.setting("federation", "scheduler", "name")) for run in firsts.values()]
    return explain_budgets({name: run.mean_rank for name, run in firsts.items()}, schedulers)


def list_provenance(r: Results) -> list[tuple[str, str]]:
    """Where the numbers come from."""
    made = [run.manifest for run in r.runs.values()]
    keys = ("fedfault", "commit", "torch", "transformers", "python", "platform", "device", "threads", "precision")
    found = {key: sorted({str(m[key]) for m in made if m.get(key) is not None}) for key in keys}
    spent = sum(sum(float(v) for v in m.get("seconds", {}).values()) for m in made)
    return [*((key, ", ".join(v)) for key, v in found.items() if v), ("time of all runs", format_seconds(spent))]


def format_answers(r: Results) -> str:
    """The answers as text, a line each."""
    lines = [
        f"{a.verdict:<12}  {a.hypothesis.name}: {a.hypothesis.metric} {format_number(a.decisive.mean, '+.3g')}"
        f"{_format_unit(r, a)}{_format_in_brackets(a.decisive)}, matters {_format_bound(a)}, {_format_test(a)}"
        f"{f', {format_needed(a)} would tell' if a.verdict == 'inconclusive' and a.needed else ''}{_format_after(a)}"
        for a in r.answers
    ]
    return "\n".join([*summarise_study(r), *lines, *_describe_mixed(r)])


def _format_unit(r: Results, a: Answer) -> str:
    units = r.units(a.decisive.contrast.cells) if is_loss(a.hypothesis.metric) else []
    return f" {units[0]}" if len(units) == 1 else ""


def _format_test(a: Answer) -> str:
    """The p-value; of one seed or none there is none, whatever the test returns."""
    if not a.decisive.values:
        return f"not measured: {a.decisive.why_not}"
    if len(a.decisive.values) < 2:
        return "one seed cannot answer it; ask for more seeds"
    return f"p {format_p(a.p_holm)} (Holm)"


def _format_after(a: Answer) -> str:
    return f", after {a.after} seeds" if a.after else ""


def _format_in_brackets(f: SeedDifferences) -> str:
    return "" if f.interval is None else f" ({format_interval(f.interval)})"
