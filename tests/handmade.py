"""Small runs made by hand for the report and its figures."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import yaml

from fedfault.records import ClientRecord, Finding, RoundRecord, Score, Turn
from fedfault.runs.files import write_json
from fedfault.runs.manifest import OVER
from fedfault.runs.outcome import summarise_run
from fedfault.runs.recorded import RunData

LAYERS = 3


def client(k, loss=3.0):
    return ClientRecord(k, 0.5, 5, 320, loss, 1.0, 0.1, 1000, 2000)


def probes(r, cohort):
    """Everything that can be measured of a round, with round numbers."""
    found = {"update_divergence": 1.2, "update_cosine": 0.6, "round_cosine": -0.2, "gradient_alignment": 0.7}
    found |= {"gradient_norm_mean": 0.5 + 0.1 * r, "gradient_norm_variance": 0.04, "gradient_norm_cv": 0.4}
    found |= {"drift_between": 0.1 * r, "drift_within": 0.2, "control_error": 0.3, "control_spread": 0.2}
    found |= {"control_ratio": 0.9, "effective_rank": 5.0, "stable_rank": 2.0, "energy_above": 0.1}
    found |= {"hidden_rank": 30.0, "hidden_rank_base": 40.0, "embedding_rank": 9.0, "embedding_rank_base": 10.0}
    found |= {"bleu": 4.0, "rouge_l": 0.2, "distinct_2": 0.6, "peak_memory_mb": 500.0 + r}
    found |= {"epsilon": 0.5 * r, "epsilon_audited": 0.2 * r}
    found |= {"epsilon_small": 0.9 * r, "epsilon_small_audited": 0.3 * r}
    found |= {"membership_reference": 0.6, "membership_null": 0.51, "exposure": 5.0, "exposure_null": 1.5}
    for layer in range(LAYERS):
        for name in ("hidden_cosine", "cka", "client_cosine", "client_cka"):
            found[f"{name}/{layer}"] = 1.0 - 0.1 * layer
    for layer in range(1, LAYERS):
        found |= {f"attention_entropy/{layer}": 0.7 - 0.01 * r, f"attention_entropy_base/{layer}": 0.7}
    cosine = tuple(tuple(1.0 if i == j else 0.25 * (-1) ** r for j in range(cohort)) for i in range(cohort))
    return found, {"update_cosine": cosine}


def make(
    rounds=3,
    clients=4,
    topics=("news", "code"),
    every=1,
    loss=lambda r, t: 4.0 - 0.1 * r + 0.2 * t,
    general=True,
    probed=False,
    **more,
):
    """A run in which client k mostly holds topic k mod T and two clients train a round."""
    held = [[9 if t == k % len(topics) else 1 for t in range(len(topics))] for k in range(clients)]
    records = []
    for r in range(rounds + 1):
        scores = {}
        if r % every == 0:
            scores = {f"topic/{t}": Score(loss(r, i), 10) for i, t in enumerate(topics)}
            metrics = {"accuracy": 1 - 0.5 / (r + 1), "f1": 1 - 0.6 / (r + 1)} if probed else {}
            scores |= {f"client/{k}": Score(loss(r, k), 10, metrics=metrics) for k in range(clients)}
            scores["validation"] = Score(loss(r, 0.5), 10, metrics=metrics)
            if general:
                scores["general"] = Score(3.0 + 0.01 * r, 10)
        who = [client(k % clients, loss(r, k)) for k in dict.fromkeys((r % clients, (r + 1) % clients))] if r else []
        measured, matrices = probes(r, len(who)) if probed and r else ({}, {})
        seconds = {"train": 1.0, "evaluate": 0.5, **({"probe/updates": 0.25, "probe/ranks": 0.25} if measured else {})}
        moved = 1000 * len(who)
        records.append(
            RoundRecord(
                r, tuple(who), scores, measured, matrices, bytes_up=moved, bytes_down=2 * moved, seconds=seconds
            )
        )
    split = {"topics": list(topics), "clients": held, "tokens": [1000 * (k + 1) for k in range(clients)]}
    return RunData(Path("run"), tuple(records), {"experiment_name": "run"}, {}, split, **more)


def turn(k, tier="fast", rank=8, fate="done", seconds=1.0):
    """A client whose work takes so long, a tenth for download, two for upload, under a deadline of 2 s."""
    if fate == "excluded":
        return Turn(k, tier, 0, fate)
    parts = [0.1 * seconds, 0.7 * seconds, 0.2 * seconds]
    if fate == "dropped":
        parts = [parts[0], min(parts[1], 2.0 - parts[0]), max(2.0 - parts[0] - parts[1], 0.0)]
    if fate == "partial":
        parts[1] *= 0.5
    share = {"dropped": 0.0, "partial": 0.5}.get(fate, 1.0)
    return Turn(k, tier, rank, fate, *parts, needed=seconds, share=share, bytes_down=2000)


def clocked(turns, clients=4, deadline=2.0, **more):
    """A run on simulated hardware, turns of the rounds 1, 2, ...; whoever's work counts is in the records too."""
    made = make(rounds=len(turns), clients=clients, **more)
    records = [made.records[0]]
    for base, row in zip(made.records[1:], turns, strict=True):
        there = [t for t in row if t.rank]
        length = max((t.seconds for t in there), default=0.0)
        late = sum(t.fate != "done" for t in there)
        probes = {"round_seconds": length, "compliance": 1 - late / len(there) if there else 1.0}
        probes |= {"mean_rank": sum(t.rank for t in there) / len(there), "regret": 1.25} if there else {}
        trained = tuple(replace(client(t.client), rank=t.rank) for t in there if t.share)
        moved = {"bytes_up": 1000 * len(trained), "bytes_down": 2000 * len(there)}
        records.append(replace(base, clients=trained, turns=tuple(row), probes={**base.probes, **probes}, **moved))
    config = {**made.config, "deadline": {"enabled": True, "seconds": deadline}}
    return replace(made, records=tuple(records), config=config)


def finding(detector="divergence", round=2, level="alarm", **more):
    about = {"sentence": "the loss rises", "statistic": 4.25, "threshold": 1.5, "controls": 19}
    return Finding(detector, round, level, **{**about, **more})


def record(r, code, news=4.0, who=(0,), general=5.0, **more):
    """A round in which client 0 (news) or 1 (code) trained."""
    scores = {"topic/news": Score(news, 10), "topic/code": Score(code, 10), "validation": Score((news + code) / 2, 20)}
    scores |= {"client/0": Score(news, 5), "client/1": Score(code, 5), "general": Score(general, 50)}
    trained = tuple(ClientRecord(k, 1.0, 5, 320, 4.0, 1.0, 0.1, 1000, 1000) for k in who) if r else ()
    moved = 1000 * len(trained)
    return RoundRecord(r, trained, scores, bytes_up=moved, bytes_down=moved, **{"seconds": {"train": 2.0}, **more})


HISTORY = (
    record(0, code=6.0),
    record(1, code=5.0, who=(1,)),
    record(2, code=5.52, who=(0,)),
    record(3, code=4.0, who=(1,), general=5.13),
)


def write(folder, records=HISTORY, topics=("news", "code"), status="finished", rounds=3, **config):
    """A run folder of these records; client 0 mostly holds the first topic, client 1 the second."""
    config = {"experiment_name": "trial", "seed": 7, "federation": {"num_rounds": rounds}, **config}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    lines(folder / "rounds.jsonl", records)
    manifest = {"status": status, "command": "fedfault run trial.yaml --seed 7", "commit": "abc123", "torch": "2.6.0"}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    if status in OVER:
        write_json(folder / "metrics.json", {k: v for k, v in summarise_run(records).items() if k == "final"})
    split = {"topics": list(topics), "clients": [[9, 1], [2, 8]], "tokens": [900, 1100]}
    (folder / "split.json").write_text(json.dumps(split))
    return folder


def lines(file, records):
    """A file of JSON lines."""
    file.write_text("".join(json.dumps(r.to_json()) + "\n" for r in records))


def update(file, **more):
    """Add keys to a JSON file, which is made if there is none."""
    old = json.loads(file.read_text()) if file.is_file() else {}
    file.write_text(json.dumps(old | more))


def read_texts(figure):
    """All words on a figure: titles, and what stands in the axes."""
    return [text for ax in figure.axes for text in (ax.get_title(loc="left"), *(t.get_text() for t in ax.texts))]
