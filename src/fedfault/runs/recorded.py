"""One recorded run as plain values: what reports, comparisons and studies ask of it. Needs no torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any

from fedfault.config.changes import spell_value
from fedfault.records import Finding, RoundRecord
from fedfault.runs.manifest import OVER, find_outcome

UNITS = {  # data.task_type -> the unit of its losses, in full and beside a number, and the word for what is predicted
    "causal_lm": ("nats per token", "nats", "tokens"),
    "instruction": ("nats per token of a response", "nats", "tokens of responses"),
    "preference": ("nats per pair", "nats", "pairs"),
    "classification": ("nats per example", "nats", "examples"),
    "regression": ("squared error", "in squared error", "examples"),
}
LABELLED = ("preference", "classification", "regression")  # each example is one target, and there are metrics


def find_units(task_type: str | None, loss_on: str | None) -> tuple[str, str, str]:
    """The row of `UNITS` of these settings; prompts that count too are tokens like any other."""
    kind = "causal_lm" if loss_on == "all" or task_type not in UNITS else task_type
    return UNITS[kind]


@dataclass(frozen=True)
class Fork:
    """Another course of the same run from a round on: its parent's, or one that it gave up and went back from."""

    name: str  # parent, or given up
    round: int  # the last one that both have
    changes: Mapping[str, Any]  # setting -> [its value there, its value in this run]
    records: tuple[RoundRecord, ...] = ()
    source: str = ""  # the parent's folder

    @property
    def change(self) -> str:
        """The settings that this run changes, in words: `training.lr 0.003 → 0.001`."""
        changes = self.changes.items()
        return (
            ", ".join(f"{key} {_format_value(old)} → {_format_value(new)}" for key, (old, new) in changes)
            or "nothing changed"
        )


@dataclass(frozen=True)
class RunData:
    """One run as it was recorded: finished, broken off or still under way."""

    folder: Path
    records: tuple[RoundRecord, ...]
    config: Mapping[str, Any] = field(default_factory=dict)
    manifest: Mapping[str, Any] = field(default_factory=dict)
    split: Mapping[str, Any] = field(default_factory=dict)  # topics, clients: documents by topic, tokens
    heterogeneity: Mapping[str, Any] = field(default_factory=dict)  # indices of skew beside chance, sentences
    clusters: Mapping[str, Any] = field(default_factory=dict)  # of clients, that the run found before its first round
    metrics: Mapping[str, Any] = field(default_factory=dict)  # the summary of a finished run
    # some prompts with the true answers, and the model's before and after
    answers: tuple[Mapping[str, str], ...] = ()
    # of lm-evaluation-harness: model, round, task, metric, filter, value, error, examples
    benchmarks: tuple[Mapping[str, Any], ...] = ()
    # every client's models at the end: client, model, loss, targets, metrics
    personal: tuple[Mapping[str, Any], ...] = ()
    # of `fedfault blame`: round, client, score, left_out, and where they were asked for shapley, error, pairs
    blamed: tuple[Mapping[str, Any], ...] = ()
    findings: tuple[Finding, ...] = ()  # of the detectors, as they came
    forks: tuple[Fork, ...] = ()  # other courses of this run
    notes: tuple[str, ...] = ()  # what the reader should know about the files themselves

    @property
    def status(self) -> str:
        """How the run ended, or will once its results are written; else how far it got."""
        return find_outcome(self.manifest)

    @property
    def name(self) -> str:
        """The experiment's name, or the folder's."""
        return str(self.config.get("experiment_name") or self.folder.resolve().name)

    @cached_property
    def topics(self) -> tuple[str, ...]:
        """Topics in the order of the split, then any that only have scores."""
        scored = [name.removeprefix("topic/") for name in self.score_names("topic/")]
        return tuple(dict.fromkeys([*self.split.get("topics", ()), *scored]))

    @cached_property
    def num_clients(self) -> int:
        """Clients of the split; without a split, as far as the records know."""
        seen = [c.client for r in self.records for c in r.clients] + [t.client for r in self.records for t in r.turns]
        scored = [int(name.removeprefix("client/")) for name in self.score_names("client/")]
        return max([len(self.split.get("clients", ())), *(i + 1 for i in seen + scored)])

    @property
    def client_names(self) -> tuple[str, ...]:
        """The name of every client, (N,); empty where the data does not name them."""
        return tuple(self.split.get("names", ()))

    def label_client(self, client: int) -> str:
        """The client's number, with its name where it has one: `3`, or `3 (Eve)`."""
        return f"{client} ({self.client_names[client]})" if client < len(self.client_names) else str(client)

    @cached_property
    def tiers(self) -> tuple[str, ...]:
        """Each client's hardware by name, of one that was never drawn by the configuration; empty if none is simulated."""
        if not any(r.turns for r in self.records):
            return ()
        found = [tier["name"] for tier in self.setting("tiers") or () for _ in range(tier["count"])]
        found += [""] * (self.num_clients - len(found))
        for turn in (t for r in self.records for t in r.turns):
            found[turn.client] = turn.tier
        return tuple(found)

    @property
    def mean_rank(self) -> float | None:
        """The mean LoRA rank over clients and rounds that trained; None where no ranks were recorded."""
        ranks = [c.rank for r in self.records for c in r.clients if c.rank is not None]
        return sum(ranks) / len(ranks) if ranks else None

    @property
    def deadline(self) -> float | None:
        """Simulated seconds that a round may take; None without a deadline."""
        seconds = self.setting("deadline", "seconds")
        return seconds if seconds is not None and self.setting("deadline", "enabled") is not False else None

    @property
    def rounds_done(self) -> int:
        """The last recorded round; 0 is the model before training."""
        return self.records[-1].round if self.records else 0

    @property
    def rounds_planned(self) -> int | None:
        """Rounds that the configuration asks for."""
        planned = self.setting("federation", "num_rounds")
        return planned if isinstance(planned, int) else None

    @property
    def centralised(self) -> bool:
        """Whether one client had all training data; scores of clients are still those of all, on what each held back."""
        return self.setting("federation", "centralised") is True

    @property
    def finished(self) -> bool:
        """All rounds are there, or the run ended before as it was to, and the manifest, if it says anything, says so."""
        short = self.rounds_planned is not None and self.rounds_done < self.rounds_planned and self.early_end is None
        return bool(self.records) and not short and self.status in ("finished", "unfinished")

    @property
    def early_end(self) -> str | None:
        """Why the run ended before its last round though nothing was wrong; None where it did not."""
        ended = self.manifest.get("ended")
        return None if ended is None else str(ended["reason"])

    @property
    def over(self) -> bool:
        """Whether the run ended by itself, after its last round or at an alarm."""
        return self.manifest.get("status") in OVER

    def leading_findings(self) -> list[Finding]:
        """Return one finding a detector, alarms first: its first alarm, or its first suspicion if it never raised one."""
        by_weight = sorted(self.findings, key=lambda f: (f.level != "alarm", f.round))
        first: dict[str, Finding] = {}
        for finding in by_weight:
            first.setdefault(finding.detector, finding)
        return list(first.values())

    def setting(self, *path: str) -> Any:
        """Return a value of the configuration by its path; None where it is absent."""
        value: Any = self.config
        for key in path:
            value = value.get(key) if isinstance(value, Mapping) else None
        return value

    @property
    def labelled(self) -> bool:
        """Whether labels or scores were learned, not the next token."""
        return self.setting("data", "task_type") in LABELLED

    @property
    def headless(self) -> bool:
        """Whether the model has a head of its own in the place of the base's: one that predicts labels or scores."""
        return self.setting("data", "task_type") in ("classification", "regression")

    @cached_property
    def contributions(self) -> list[Mapping[str, Any]]:
        """What each client's update did to each score of a round: of `fedfault blame`, and of the probe in other rounds."""
        known = {row["round"] for row in self.blamed}
        own = [row for r in self.records if r.round not in known for row in list_contributions(r)]
        return sorted([*self.blamed, *own], key=lambda row: (row["round"], row["client"]))

    @property
    def _words(self) -> tuple[str, str, str]:
        return find_units(self.setting("data", "task_type"), self.setting("training", "loss_on"))

    @property
    def unit(self) -> str:
        """The unit of this run's losses, in full."""
        return self._words[0]

    @property
    def short_unit(self) -> str:
        """The unit of this run's losses, as it stands beside a number."""
        return self._words[1]

    @property
    def group(self) -> str:
        """The word for what documents are sorted by: their label where the model predicts it, else their topic."""
        return "label" if self.headless else "topic"

    @property
    def targets(self) -> str:
        """The word for what is predicted: tokens, tokens of responses, pairs, or examples."""
        return self._words[2]

    @property
    def held(self) -> str:
        """The word for what clients have more or less of, in `split["tokens"]`: a pair has the tokens of its responses."""
        return "tokens of responses" if self.targets == "pairs" else self.targets

    @property
    def metrics_measured(self) -> list[str]:
        """The metrics of labels that were measured, first the one that the configuration names."""
        found = list(
            dict.fromkeys(m for r in self.records if "validation" in r.scores for m in r.scores["validation"].metrics)
        )
        return sorted(found, key=lambda m: m != self.setting("evaluation", "metric"))

    def metric(self, name: str, metric: str) -> tuple[list[int], list[float]]:
        """Return the rounds in which a score had the metric, and its values there."""
        found = [(r.round, r.scores[name].metrics) for r in self.records if name in r.scores]
        return [n for n, m in found if metric in m], [m[metric] for _, m in found if metric in m]

    def score_names(self, prefix: str) -> list[str]:
        """Return the names of scores that begin with the prefix, in order of appearance."""
        return list(dict.fromkeys(n for r in self.records for n in r.scores if n.startswith(prefix)))

    def losses(self, name: str) -> tuple[list[int], list[float]]:
        """Return the rounds in which the score was measured, and its losses there in `unit`."""
        measured = [(r.round, r.scores[name].loss) for r in self.records if name in r.scores]
        return [n for n, _ in measured], [loss for _, loss in measured]

    def end_losses(self, prefix: str) -> dict[str, float]:
        """Return the last loss of every score that begins with the prefix.

        That of a client is under the model which it has in the end, trained on where the run asks for that.
        """
        tuned = {f"client/{row['client']}": row["loss"] for row in self.personal if row["model"] == "tuned"}
        last = {name: self.losses(name)[1][-1] for name in self.score_names(prefix)}
        return {name: math.nan if (own := tuned.get(name, loss)) is None else own for name, loss in last.items()}

    def gains(self) -> list[tuple[int, dict[int, float]]]:
        """Return for each round after round 0 what each client has gained: its held-out loss then minus now."""
        start = self.records[0].scores if self.records and self.records[0].round == 0 else {}
        names = [n for n in self.score_names("client/") if n in start]
        rows = [
            (
                r.round,
                {int(n.removeprefix("client/")): start[n].loss - r.scores[n].loss for n in names if n in r.scores},
            )
            for r in self.records[1:]
        ]
        return [(n, row) for n, row in rows if row]

    def dominant_topic(self, client: int) -> str | None:
        """Return the topic that most of the client's documents belong to; None when the split does not say."""
        rows = self.split.get("clients", ())
        if client >= len(rows) or not sum(rows[client]):
            return None
        return str(self.split["topics"][max(range(len(rows[client])), key=rows[client].__getitem__)])

    def topics_trained(self, record: RoundRecord) -> list[str | None]:
        """Return the dominant topic of each client that trained in the round; None for the one who has all data."""
        return [None if self.centralised else self.dominant_topic(c.client) for c in record.clients]

    def probe(self, name: str) -> tuple[list[int], list[float]]:
        """Return the rounds in which the probe was taken, and its values there; JSON has no NaN, so null stands for it."""
        taken: list[tuple[int, float | None]] = [(r.round, r.probes[name]) for r in self.records if name in r.probes]
        return [n for n, _ in taken], [math.nan if value is None else value for _, value in taken]

    def ratio(self, over: str, under: str, noise: str = "") -> tuple[list[int], list[float]]:
        """Return the rounds in which both probes were taken and the second is above zero, and their ratios there.

        A third probe, where it is named and was taken, is added to both.
        """
        both = self._pair_probes(over, under, noise)
        return [n for n, _, u in both if u > 0], [o / u for _, o, u in both if u > 0]

    def pooled_ratio(self, over: str, under: str, noise: str = "") -> tuple[list[int], list[float]]:
        """Return as `ratio` does the ratios of their sums over the rounds so far: noise averages out."""
        both = self._pair_probes(over, under, noise)
        sums = zip(accumulate(o for _, o, _ in both), accumulate(u for _, _, u in both), strict=True)
        found = [(n, o / u) for (n, _, _), (o, u) in zip(both, sums, strict=True) if u > 0]
        return [n for n, _ in found], [value for _, value in found]

    def _pair_probes(self, over: str, under: str, noise: str) -> list[tuple[int, float, float]]:
        there = [(r.round, r.probes) for r in self.records if {over, under} <= set(r.probes)]
        return [(n, p[over] + p.get(noise, 0.0), p[under] + p.get(noise, 0.0)) for n, p in there]

    def rises(self, name: str) -> list[tuple[float, int]]:
        """Return by how much the loss rose from one evaluation to the next, and in which round; falls are left out."""
        rounds, losses = self.losses(name)
        steps = [(b - a, n) for a, b, n in zip(losses, losses[1:], rounds[1:], strict=False)]
        return [(rise, n) for rise, n in steps if math.isfinite(rise) and rise > 0]


def list_contributions(record: RoundRecord) -> list[dict[str, Any]]:
    """List what each client of a round did to each score, as far as it was measured.

    left_out: how much larger the loss would be without its update; shapley: its Shapley value; error: its standard error.
    """
    keys = {"left_out": "contribution/", "shapley": "shapley/", "error": "shapley_error/"}
    found = []
    for client in record.clients:
        names = [n.removeprefix("contribution/") for n in client.probes if n.startswith("contribution/")]
        for score in names:
            values = {key: client.probes[p + score] for key, p in keys.items() if p + score in client.probes}
            found.append({"round": record.round, "client": client.client, "score": score, **values})
    return found


def seconds_by_part(record: RoundRecord) -> dict[str, float]:
    """Return the seconds of a round by part, with those of all probes together as `probes`."""
    probes = sum(s for part, s in record.seconds.items() if part.startswith("probe/"))
    parts = {part: s for part, s in record.seconds.items() if not part.startswith("probe/")}
    return parts | ({"probes": probes} if probes else {})


def _format_value(value: Any) -> str:
    return "none" if value is None else spell_value(value)
