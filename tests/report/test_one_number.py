"""No two numbers for one thing: sentences, tiles, captions, alt texts and figures of a run write a quantity alike."""

import math
import re
from dataclasses import replace

import pytest

from fedfault.diagnosis.detection import Detection
from fedfault.diagnosis.verdict import judge_detection
from fedfault.report import captions, summary
from fedfault.report.figures.clients import draw_fairness, draw_labels
from fedfault.report.figures.losses import draw_general, draw_loss_by_topic
from fedfault.report.tables import tabulate_scores
from fedfault.report.verdict import list_findings, read_verdict
from handmade import make, read_texts

NUMBER = re.compile(r"[+−-]?\d[\d,]*(?:\.\d+)?")
RUNS = {
    "learns": make(rounds=5),
    "gets worse": make(rounds=4, loss=lambda r, t: 3.0 + 0.21237 * r + 0.2 * t),
    "large": make(rounds=4, clients=20, loss=lambda r, t: 9.0 - 0.3333 * r + 0.1 * t),
    "ends worse than its best": make(rounds=6, loss=lambda r, t: 4.0 + 0.0567 * (r - 3) ** 2 + 0.2 * t),
}


def judge(run):
    """The run with what the detectors see in its records, by conventional thresholds."""
    seen = Detection(None, records=run.records)
    return replace(run, findings=tuple(seen.findings), metrics={"verdict": judge_detection(seen)})


@pytest.mark.parametrize("run", RUNS.values(), ids=RUNS)
def test_the_perplexity_is_the_same_in_sentence_tile_figure_and_alt_text(run):
    start, end = (f"{math.exp(run.losses('validation')[1][i]):,.1f}" for i in (0, -1))
    said = summary.describe_progress(run)
    tile = next(t for t in summary.make_tiles(run) if t.name == "Validation perplexity")
    title = read_texts(draw_loss_by_topic(run))[0]
    assert f"from {start} to {end}" in said
    assert (tile.value, tile.remark) == (end, f"from {start}")
    assert NUMBER.findall(title) == list(dict.fromkeys([start, end]))
    assert said in captions.describe_figure(run, "loss_by_topic")


@pytest.mark.parametrize("run", RUNS.values(), ids=RUNS)
def test_forgetting_is_the_same_in_sentence_tile_figure_and_alt_text(run):
    tile = next(t for t in summary.make_tiles(run) if t.name == "General English").value.removesuffix(" nats")
    assert any(f"General English: {tile} nats" in sentence for sentence in summary.list_sentences(run))
    assert tile in read_texts(draw_general(run))
    assert f"ending at {tile} nats" in captions.describe_figure(run, "general")


@pytest.mark.parametrize("run", RUNS.values(), ids=RUNS)
def test_the_gap_between_clients_is_that_of_the_losses_in_the_sentence(run):
    sentence = next(s for s in summary.list_sentences(run) if s.startswith("Held-out loss of single clients"))
    low, high = (float(v) for v in re.findall(r"(\d+\.\d\d) nats", sentence))
    tile = next(t for t in summary.make_tiles(run) if t.name == "Gap between clients")
    assert float(tile.value.split()[0]) == pytest.approx(high - low, abs=0.011)


@pytest.mark.parametrize("run", RUNS.values(), ids=RUNS)
def test_the_jump_of_a_topic_is_the_same_in_sentence_tile_and_table(run):
    tiles = [t for t in summary.make_tiles(run) if t.name == "Largest jump of a topic"]
    for tile in tiles:
        topic, round = tile.remark.split(", ")
        size = tile.value.split()[0].lstrip("+")
        if float(size) >= 0.01:
            assert any(f"up to {size} nats ({topic}, {round}" in s for s in summary.list_sentences(run))
        rows = {row[0]: row for row in tabulate_scores(run).rows}
        largest = float(rows[topic][tabulate_scores(run).columns.index("largest rise")].split()[0])
        assert largest == pytest.approx(float(size), abs=0.0051)


def test_metrics_of_labels_are_the_same_in_sentence_tile_and_figure():
    run = make(rounds=4, probed=True)
    run = replace(run, config={**run.config, "data": {"task_type": "classification"}, "evaluation": {"metric": "f1"}})
    tile = next(t for t in summary.make_tiles(run) if t.name == "Validation F1")
    start = tile.remark.removeprefix("from ")
    assert f"F1 went from {start} to {tile.value}" in summary.describe_progress(run)
    assert NUMBER.findall(read_texts(draw_loss_by_topic(run))[0].partition("F1")[2]) == [start, tile.value]
    assert read_texts(draw_labels(run))[0] == "Validation F1"


def test_who_is_below_zero_is_told_from_who_loses_beyond_chance():
    run = make(rounds=3, loss=lambda r, t: 3.0 + 0.001 * r + 0.2 * t)
    assert "all of them below zero" in " ".join(read_texts(draw_fairness(run)))
    assert "beyond chance" in captions.write_caption(run, "fairness").text
    all_gain = make(rounds=3, loss=lambda r, t: 3.0 - 0.1 * r + 0.2 * t)
    assert "4 clients, none of them below zero in the end" in read_texts(draw_fairness(all_gain))
    assert "Red bars" not in captions.write_caption(all_gain, "fairness").text


def test_the_verdict_says_of_every_alarm_what_its_line_among_the_findings_says():
    run = judge(make(rounds=12, loss=lambda r, t: 3.0 + 0.21237 * r + 0.2 * t))
    said, (lines, _) = read_verdict(run).sentence, list_findings(run)
    alarms = {line.head.partition(" · ")[2]: line for line in lines if line.level == "alarm"}
    assert alarms
    rounds = [int(re.match(r"Round (\d+) ·", line.head)[1]) for line in alarms.values()]
    assert run.metrics["verdict"]["since"] == min(rounds)
    cause = run.metrics["verdict"]["causes"][0].replace("_", " ")
    assert alarms[cause].sentence.rstrip(".").lower() in said.lower()
    assert all(re.search(rf"\bround {round}\b", said, re.IGNORECASE) for round in rounds)


def test_the_losses_of_the_verdict_are_those_of_the_perplexities_beside_it():
    run = judge(make(rounds=4, loss=lambda r, t: 3.2 + 0.2 * t))
    losses = re.search(r"it was (\d\.\d+) and is (\d\.\d+) at the end", read_verdict(run).sentence).groups()
    perplexities = re.search(r"from (\d+\.\d) to (\d+\.\d) over", summary.describe_progress(run)).groups()
    for loss, perplexity in zip(losses, perplexities, strict=True):
        assert math.exp(float(loss)) == pytest.approx(float(perplexity), abs=0.08)  # of rounded ones
