"""Comparisons: what is paired and what is not, the numbers of the tables, and a page for any state of the runs."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from dataclasses import asdict, replace

import numpy as np
import pytest
import yaml

from fedfault.compare.figures import draw_clients, draw_differences, draw_losses
from fedfault.compare.page import compare, format_comparison
from fedfault.compare.pairs import Comparison, compare_by_round, pair_runs
from fedfault.compare.sentences import describe_ends, explain_unpaired, list_notes, list_remarks
from fedfault.compare.tables import find_differing, tabulate_pairs, tabulate_runs
from fedfault.errors import UserError
from fedfault.records import Score
from fedfault.report.theme import DARK, LIGHT
from fedfault.runs.recorded import Fork
from handmade import clocked, finding, make, turn

CONFIG = {
    "experiment_name": "a",
    "seed": 0,
    "model": {"name": "micro"},
    "data": {"partition": {"name": "iid"}},
    "training": {"lr": 0.1},
}
FACTS = {"corpus": {"fingerprint": "c"}, "model": {"fingerprint": "m"}}


def run(name="a", shift=0.0, lr=0.1, **more):
    """`handmade.make` with a configuration; every loss after round 0 is moved by `shift`."""
    options = {key: more.pop(key) for key in ("rounds", "clients", "topics", "every") if key in more}
    made = make(**options, loss=lambda r, t: 4.0 - 0.1 * r + 0.2 * t + (shift if r else 0.0))
    config = {**CONFIG, "experiment_name": name, "training": {"lr": lr}}
    return replace(made, config=config, manifest=FACTS, **more)


def beside(*runs) -> Comparison:
    return Comparison(runs, tuple(r.name for r in runs))


def broken(made, since: int):
    """Every score from a round on is not a number."""
    lost = {n: replace(s, loss=math.nan) for n, s in made.records[-1].scores.items()}
    records = [replace(r, scores=lost) if r.round >= since else r for r in made.records]
    return replace(made, records=tuple(records))


def labelled(task, **metrics):
    """A run of a task with labels, whose final model has these metrics."""
    made = run(task)
    last = made.records[-1]
    scores = {**last.scores, "validation": replace(last.scores["validation"], metrics=metrics)}
    config = {**made.config, "data": {"task_type": task}}
    return replace(made, config=config, records=(*made.records[:-1], replace(last, scores=scores)))


def test_every_score_has_a_column_with_a_dash_for_runs_of_tasks_without_it():
    language, classes = run("language"), labelled("classification", accuracy=0.5, f1=0.4)
    for runs, columns in (
        ((language, classes), {"perplexity": ["44.7", "–"], "accuracy": ["–", "0.500"]}),
        ((classes, labelled("regression", pearson=-0.3)), {"accuracy": ["0.500", "–"], "pearson": ["–", "−0.300"]}),
        ((language, language), {"perplexity": ["44.7", "44.7"]}),
        ((replace(classes, records=()), language), {"accuracy": ["–", "–"], "perplexity": ["–", "44.7"]}),
    ):
        table = tabulate_runs(beside(*runs))
        start = table.columns.index("final loss") + 1
        found = dict(zip(table.columns, zip(*table.rows, strict=True), strict=True))
        assert table.columns[start : start + len(columns)] == tuple(columns)
        assert {name: list(found[name]) for name in columns} == columns


def test_differences_are_those_of_the_same_client_and_topic():
    a = run(clients=2)
    scores = {
        **a.records[-1].scores,
        "client/0": Score(3.0, 10),
        "client/1": Score(4.5, 10),
        "topic/news": Score(3.9, 10),
    }
    b = replace(run("b"), records=(*run(clients=2).records[:-1], replace(a.records[-1], scores=scores)))
    found = pair_runs(a, b)
    # a ends at 4.0 - 0.1 * 3 + 0.2 k
    assert found.clients.losses == {"0": (pytest.approx(3.7), 3.0), "1": (pytest.approx(3.9), 4.5)}
    assert found.clients.differences == {"0": pytest.approx(-0.7), "1": pytest.approx(0.6)}
    assert found.clients.mean == pytest.approx(-0.05)
    assert found.topics.differences == {"news": pytest.approx(0.2), "code": 0.0}


def test_with_other_held_out_texts_there_are_no_paired_numbers_but_a_reason():
    a, b = run(), run("b")
    other = replace(b, config={**b.config, "seed": 3})
    assert pair_runs(a, other).clients.why_not == pair_runs(a, other).topics.why_not == "seed is 0 and 3"
    assert not pair_runs(a, other).clients.losses
    assert explain_unpaired(beside(a, other)) == [
        "b and a are not paired: seed is 0 and 3, and the texts that they are scored on follow from that."
    ]
    assert tabulate_pairs(beside(a, other)) is None
    data = replace(b, manifest={**FACTS, "corpus": {"fingerprint": "d"}})
    assert pair_runs(a, data).clients.why_not == "the corpus has changed (fingerprints c and d)"
    longer = {n: replace(s, tokens=11) for n, s in b.records[-1].scores.items()}
    longer_run = replace(b, records=tuple(replace(r, scores=longer) for r in b.records))
    assert pair_runs(a, longer_run).clients.why_not == "the texts of client/0 are 10 and 11 tokens long"


def test_topics_are_paired_across_partitions_and_clients_are_not():
    a = run()
    b = replace(run("b", -0.5), config={**CONFIG, "data": {"partition": {"name": "topic_skew", "alpha": 0.1}}})
    found = pair_runs(a, b)
    assert found.topics.mean == pytest.approx(-0.5)
    assert not found.clients.losses
    assert (
        "Clients of b and a are not paired: data.partition.name is iid and topic_skew"
        in explain_unpaired(Comparison((a, b), ("a", "b")))[0]
    )


def test_other_settings_leave_runs_paired():
    assert pair_runs(run(), run("b", lr=0.2)).clients.interval is None  # four clients
    assert pair_runs(run(clients=6), run("b", -0.25, clients=6)).clients.interval == pytest.approx((-0.25, -0.25))


def test_rounds_are_compared_where_both_were_scored():
    a, b = run(clients=2, every=2, rounds=4), run("b", 0.5, clients=2, rounds=3)
    assert compare_by_round(pair_runs(a, b)) == [(0, [0.0, 0.0]), (2, pytest.approx([0.5, 0.5]))]


def test_the_table_names_only_settings_that_differ_and_says_how_each_run_ends():
    a = replace(run(), metrics={"verdict": {"state": "failed", "since": 2}})
    table = tabulate_runs(beside(a, run("b", -0.5, lr=0.2)))
    assert table.columns[:3] == ("run", "training.lr", "final loss")
    rows = {row[0]: dict(zip(table.columns, row, strict=True)) for row in table.rows}
    # the mixture ends at 4 - 0.3 + 0.1 = 3.8; clients gain 0.3 each; 2 clients a round send 1000 bytes and get 2000
    assert rows["a"] == {
        "run": "a", "training.lr": "0.1", "final loss": "3.800", "perplexity": "44.7", "best round": "3",
        "general English": "+0.030", "worst client": "4.300 (3)", "gain p10": "+0.30", "gain p50": "+0.30",
        "gain p90": "+0.30", "bytes": "18.0 kB", "time": "6.0 s", "verdict": "failed since round 2",
    }  # fmt: skip
    assert rows["b"]["final loss"] == "3.300"
    assert rows["b"]["verdict"] == "–"


def test_simulated_time_and_who_was_in_time_are_compared_where_there_is_a_clock():
    on_time = clocked([[turn(0), turn(1, fate="late", seconds=3.0)]])
    table = tabulate_runs(beside(run(), replace(run("b"), records=on_time.records)))
    assert table.columns[-3:] == ("simulated time", "in time", "verdict")
    assert [row[-3:] for row in table.rows] == [["–", "–", "–"], ["3.0 s", "50.0 %", "–"]]


def test_schedulers_that_spent_unequal_budgets_are_told_and_shown():
    def with_ranks(name: str, rank: int):
        made = run(name)
        records = [replace(r, clients=tuple(replace(c, rank=rank) for c in r.clients)) for r in made.records]
        return replace(made, records=records, config={**made.config, "federation": {"scheduler": {"name": name}}})

    c = beside(with_ranks("fixed", 16), with_ranks("lite", 8))
    assert "mean rank 8 (lite) to 16 (fixed)" in list_notes(c)[-1]
    table = tabulate_runs(c)
    assert [row[table.columns.index("mean rank")] for row in table.rows] == ["16", "8"]
    equal = beside(with_ranks("fixed", 8), with_ranks("lite", 8))
    assert "mean rank" not in tabulate_runs(equal).columns
    assert not any("budgets" in note for note in list_notes(equal))


def test_one_clock_with_other_ranks_is_explained():
    def timed(name, rank, seconds=3.0):
        turns = [turn(0, rank=4, seconds=seconds), turn(1, rank=rank, seconds=1.0)]
        return replace(run(name), records=clocked([turns]).records)

    def said(other):
        return [note for note in list_notes(beside(timed("a", 8), other)) if "simulated" in note]

    (note,) = said(timed("b", 2))
    assert note.startswith("b and a take the same simulated time with other ranks")
    assert "leaves the ranks of the others open" in note
    assert said(timed("b", 8)) == said(timed("b", 2, seconds=4.0)) == said(run("b")) == []


def test_names_of_runs_and_where_they_lie_are_no_difference():
    a, b = run(), run("b")
    elsewhere = replace(b, config={**b.config, "logging": {"results_dir": "/tmp"}})
    assert find_differing([a, elsewhere]) == []


def test_statistics_of_a_pair_stand_in_one_row():
    a, b = run(clients=6), run("b", -0.25, clients=6)
    assert tabulate_pairs(beside(a, b)).rows == [
        ["b − a", "clients", "−0.250", "−0.250 to −0.250", "6 of 6", "−0.250 (0)", "–"],
        ["b − a", "topics", "−0.250", "–", "2 of 2", "−0.250 (news)", "–"],
    ]


def test_a_diverged_run_and_an_unfinished_one_are_compared_and_named():
    a, lost, short = run(clients=6), broken(run("lost", clients=6), 2), run("short", clients=6, rounds=1)
    short = replace(short, config={**short.config, "federation": {"num_rounds": 3}})
    empty = replace(run("empty"), records=())
    c = beside(a, lost, short, empty)
    assert list_notes(c) == [
        "lost diverged: its loss is not a finite number from round 2 on.",
        "short is not finished: 1 of 3 rounds are recorded.",
        "empty is not finished: 0 rounds are recorded.",
        "The runs end after different rounds, and each is taken at its own end: 3 (a), 3 (lost), 1 (short), 0 (empty).",
    ]
    rows = {row[0]: row[1:] for row in tabulate_runs(c).rows}
    assert rows["lost"][1:6] == ["not finite", "not finite", "1", "not finite", "6 not finite"]
    assert set(rows["empty"][1:]) == {"–"}
    found = {(row[0], row[1]): row[2:] for row in tabulate_pairs(c).rows}
    assert found["lost − a", "clients"] == ["not finite for 6 of 6", "–", "–", "–", "–"]
    assert found["short − a", "clients"][0] == "+0.200"
    for figure in (draw_losses, draw_clients, draw_differences):
        for theme in (LIGHT, DARK):
            assert figure(c, theme, True) is not None
    assert draw_losses(beside(empty, empty), LIGHT, False) is None


def test_records_that_were_changed_are_named_first():
    changed = replace(run("b"), notes=("rounds.jsonl is not what the run has written.",))
    assert list_notes(beside(run(), changed)) == ["b: rounds.jsonl is not what the run has written."]
    assert "b: rounds.jsonl is not what" in format_comparison(beside(run(), changed))


def test_a_line_a_run_and_a_ring_at_the_first_alarm_of_each_detector():
    alarms = (finding(round=3), finding(round=2, level="suspect"), finding("client_drift", round=1), finding(round=4))
    a, b = run(rounds=5), run("b", 0.5, rounds=5, findings=alarms)
    figure = draw_losses(beside(a, b), LIGHT, False)
    drawn = [line for line in figure.axes[0].lines if len(line.get_xdata())]
    assert drawn[0].get_ydata().tolist() == a.losses("validation")[1]
    rings = [line for line in drawn if line.get_markeredgecolor() == LIGHT.alarm]
    assert [[*line.get_xdata()] for line in rings] == [[1, 3]]
    assert rings[0].get_ydata().tolist() == pytest.approx([b.losses("validation")[1][t] for t in (1, 3)])
    assert list_remarks(beside(a, b)) == ["First alarms of b: client drift (round 1), divergence (round 3)."]
    lost = draw_losses(beside(a, broken(b, 3)), LIGHT, False).axes[0]
    assert [
        [*line.get_ydata()]
        for line in lost.lines
        if line.get_markeredgecolor() == LIGHT.alarm and len(line.get_xdata()) == 1
    ] == [[1.0], [b.losses("validation")[1][1]]]


def test_a_fork_is_marked_where_it_leaves_its_parent(tmp_path):
    change = {"training.lr": (0.1, 0.2)}
    a = replace(run(), folder=tmp_path)
    b = run("b", forks=(Fork("parent", 2, change, (), str(tmp_path)),))
    assert list_remarks(beside(a, b)) == ["b forks after round 2 of a: training.lr 0.1 → 0.2."]
    texts = [t.get_text() for t in draw_losses(beside(a, b), LIGHT, True).axes[0].texts]
    assert "b forks" in texts


def test_alarms_that_a_fork_is_rid_of_followed_from_what_it_changed(tmp_path):
    """The parent's alarm of round 1 is both runs' past; drift and the swing come after the fork."""
    found = (finding("rank_collapse", 1), finding("client_drift", 3), finding("oscillation", 3))
    a = replace(run(), folder=tmp_path, findings=found)
    parent = Fork("parent", 2, {"training.lr": (0.1, 0.2)}, (), str(tmp_path))

    def said(*later):
        return list_remarks(beside(a, run("b", forks=(parent,), findings=later)))[2]

    assert said(finding("oscillation", 3)) == (
        "It is without client drift, which followed from what it changed; what stays: oscillation."
    )
    assert said() == "It is without client drift, oscillation, which followed from what it changed."
    assert said(*found[1:]) == "It is not rid of any alarm of its parent."


def test_the_terminal_says_too_which_alarms_a_fork_is_rid_of(tmp_path):
    a = replace(run(), folder=tmp_path, findings=(finding("client_drift", 3),))
    said = format_comparison(fork_of(a, 2)).splitlines()
    assert "b forks after round 2 of a: training.lr 0.1 → 0.2." in said
    assert "It is without client drift, which followed from what it changed." in said


def fork_of(a, round, name="b", **more):
    """A run that forks after this round from `a`, beside it."""
    fork = run(name, forks=(Fork("parent", round, {"training.lr": (0.1, 0.2)}, (), str(a.folder)),), **more)
    return beside(a, fork)


def test_an_alarm_after_the_end_of_a_fork_is_not_laid_to_its_change(tmp_path):
    a = replace(run(rounds=6), folder=tmp_path, findings=(finding("oscillation", 4), finding("divergence", 6)))
    assert list_remarks(fork_of(a, 3, rounds=5))[2] == (
        "It is without oscillation, which followed from what it changed. It ends in round 5, too early to tell whether it "
        "is rid of divergence (round 6)."
    )
    assert list_remarks(fork_of(a, 4, rounds=5))[2] == (
        "It ends in round 5, too early to tell whether it is rid of divergence (round 6)."
    )


def test_alarms_that_are_new_in_a_fork_or_come_again_are_named(tmp_path):
    """The transfer is in the past of both, and over; in the fork alone it comes again, in a round that its parent has."""
    past = finding("negative_transfer", 1)
    a = replace(run(rounds=6), folder=tmp_path, findings=(past, finding("oscillation", 4)))
    a = replace(a, metrics={"verdict": {"state": "degraded", "over": ["negative_transfer"]}})
    later = (past, finding("oscillation", 5), finding("negative_transfer", 5), finding("forgetting", 8))
    said = list_remarks(fork_of(a, 2, rounds=8, findings=later))[2]
    assert said == (
        "It is not rid of any alarm of its parent. New in it: negative transfer (round 5). After the end of its parent: "
        "forgetting (round 8)."
    )


def test_an_alarm_that_held_on_over_the_fork_counts_where_verdicts_say_so(tmp_path):
    """The swing is in the past of both; what became of it is in the verdicts alone."""

    def said(before, after):
        metrics = [{} if over is None else {"verdict": {"state": "degraded", "over": over}} for over in (before, after)]
        a = replace(run(), folder=tmp_path, findings=(finding("oscillation", 1),), metrics=metrics[0])
        return list_remarks(fork_of(a, 2, findings=a.findings, metrics=metrics[1]))[2:-1]

    assert said([], ["oscillation"]) == ["It is without oscillation, which followed from what it changed."]
    assert said([], []) == ["It is not rid of any alarm of its parent."]
    assert said(["oscillation"], []) == ["What its parent gets over stays in it: oscillation (round 1)."]
    assert said(["oscillation"], ["oscillation"]) == said([], None) == said(None, []) == []


def test_runs_that_are_judged_by_different_thresholds_are_told_and_their_alarms_not_set_beside_each_other(tmp_path):
    def judged(name, calibration, *found, controls=19):
        verdict = {
            "state": "degraded",
            "over": [],
            "calibration": calibration,
            "controls": controls if calibration else 0,
        }
        return run(name, findings=found, metrics={"verdict": verdict}, folder=tmp_path / name)

    a = judged("a", "quickstart", finding("oscillation", 3))
    plain = judged("b", None, finding("oscillation", 3, threshold=1.1, controls=0))
    assert list_notes(beside(a, plain)) == [
        "Verdicts and alarms are by different thresholds and cannot be set beside each other: 19 control runs of "
        "quickstart (a), conventions (b). `fedfault diagnose RUN --calibration none` judges a run by conventions."
    ]
    fork = replace(plain, forks=(Fork("parent", 2, {"federation.num_rounds": (3, 4)}, (), str(a.folder)),))
    assert list_remarks(beside(a, fork))[2] == (
        "It is not judged by the thresholds of its parent, so that nothing says of which alarms it is rid."
    )
    few = judged("few", None, finding("oscillation", 3))  # too few readings for a calibrated verdict
    for other in (
        judged("c", "quickstart"),
        few,
        run("running"),
        run("stopped", findings=(finding("oscillation", 1),)),
    ):
        assert not list_notes(beside(a, other)), other.name
    assert list_notes(beside(a, judged("c", "honest")))
    assert list_notes(beside(a, judged("c", "quickstart", finding("oscillation", 3, threshold=2.0))))


def test_few_clients_have_a_line_each_and_many_a_point_each():
    few = draw_clients(beside(run(clients=5), run("b", 0.5, clients=5)), LIGHT, False).axes[0]
    assert [t.get_text() for t in few.get_yticklabels()] == ["news 4", "news 2", "news 0", "code 3", "code 1"]
    many = draw_clients(beside(run(clients=30), run("b", 0.5, clients=30)), LIGHT, True).axes[0]
    assert many.lines[0].get_ydata() - many.lines[0].get_xdata() == pytest.approx(np.full(30, 0.5))
    assert draw_clients(beside(run(), replace(run("b"), config={**CONFIG, "seed": 1})), LIGHT, False) is None


def write(folder, made, name=None):
    """A run folder of a handmade run."""
    folder.mkdir(parents=True)
    config = made.config if name is None else {**made.config, "experiment_name": name}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    (folder / "manifest.json").write_text(json.dumps({"status": "finished", **made.manifest}))
    (folder / "split.json").write_text(json.dumps(made.split))
    lines = [json.dumps(r.to_json()) for r in made.records]
    (folder / "rounds.jsonl").write_text("".join(f"{line}\n" for line in lines))
    (folder / "findings.jsonl").write_text("".join(f"{json.dumps(asdict(f))}\n" for f in made.findings))
    return folder


@pytest.fixture
def two(tmp_path):
    a = write(tmp_path / "results" / "a", run(clients=6, findings=(finding(),)))
    return [a, write(tmp_path / "results" / "b", run("b", -0.5, lr=0.2, clients=6))]


@pytest.mark.slow
def test_the_page_stands_alone_and_holds_the_numbers(two, tmp_path):
    found, page = compare(two, argv=["compare", "results/a", "results/b"])
    assert page == tmp_path / "results" / "compare" / "a-vs-b.html"
    html = page.read_text(encoding="utf-8")
    for text in (
        "a · b",
        "training.\u200blr",
        "−0.500 to −0.500",
        "First alarms of a",
        "fedfault compare results/a results/b",
    ):
        assert text in html, text
    assert html.count('<svg class="wide"') == html.count('<svg class="narrow"') == 3
    assert not re.search(r"https?://(?!www\.w3\.org/)|src=|<link|url\((?!#)|@import", html)
    assert compare(two)[0].names == found.names  # a page of ours is replaced
    values = json.loads(re.search(r'id="values">(.*?)</script>', html)[1])
    assert {n: [s["name"] for s in f["panels"][0]["series"]] for n, f in values["figures"].items()} == {
        "losses": ["a", "b"], "differences": ["b"]
    }  # fmt: skip
    assert not list(page.parent.glob(".*"))


@pytest.mark.slow
def test_names_cannot_break_the_page_or_its_file_name(two, tmp_path):
    evil = "<script>alert(1)</script>"
    c = write(tmp_path / "results" / "c", run(clients=6), evil)
    page = compare([two[0], c], tmp_path / "page.html")[1]
    assert "<script>alert" not in page.read_text()
    longer = [write(tmp_path / "r" / str(i), run(clients=6), f"{'x' * 90}{i}") for i in range(3)]
    assert len(compare(longer)[1].name) < 200


@pytest.mark.slow
def test_runs_of_the_same_name_are_told_apart_by_their_folders(two, tmp_path):
    again = write(tmp_path / "more" / "a", run(clients=6))
    assert compare([two[0], again])[0].names == (str(two[0]), str(again))


@pytest.mark.slow
def test_the_table_is_turned_where_it_does_not_fit(two):
    found, _ = compare(two)
    wide, narrow = (format_comparison(found, width).partition("\n\n")[2].splitlines() for width in (1000, 80))
    assert [line.split()[0] for line in wide[:3]] == ["run", "a", "b"]
    assert narrow[0].split() == ["run", "a", "b"]
    assert narrow[1].split() == ["training.lr", "0.1", "0.2"]


def test_a_comparison_opens_with_how_the_runs_end():
    """The mixture ends at 4.0 - 0.3 + 0.1, and the client of topic t 0.2 t above 3.7; all are 0.5 lower in the other run."""
    a, b = run(clients=6), run("b", -0.5, clients=6)
    said, *more = describe_ends(beside(a, b))
    assert not more
    assert said == (
        "b ends better than a: final loss 3.300 against 3.800 nats per token, perplexity 27.1 against 44.7. Its clients' "
        "losses differ by −0.500 on average (95 % interval −0.500 to −0.500); 6 of 6 are better off."
    )
    assert describe_ends(beside(a, run("b", clients=6)))[0].startswith("b ends as a: final loss 3.800 against 3.800")
    elsewhere = replace(b, manifest={**FACTS, "corpus": {"fingerprint": "d"}})
    told = "b is scored on other texts than a: their losses cannot be compared."
    assert describe_ends(beside(a, elsewhere)) == [told]


def test_of_runs_that_another_program_trained_nothing_says_on_what_they_are_scored():
    scores = {"validation": Score(4.0, 1)}
    a, b = (
        replace(
            run(name), manifest={"monitored": True}, records=tuple(replace(r, scores=scores) for r in run(name).records)
        )
        for name in ("a", "b")
    )
    ends, unknown = describe_ends(beside(a, b))
    assert ends.startswith("b ends as a: final loss 4.000")
    assert unknown == "Nothing says whether b and a are scored on the same data."
    assert explain_unpaired(beside(a, b)) == ["b and a are not paired: they were not scored in both runs."]
    own = run("own")
    assert describe_ends(beside(own, b))[1] == "Nothing says whether b and own are scored on the same data."
    assert "another program trained one of them" in explain_unpaired(beside(own, b))[0]


def test_runs_without_topics_are_compared_at_their_ends():
    a, b = (
        replace(r, records=tuple(replace(one, scores={"validation": one.scores["validation"]}) for one in r.records))
        for r in (run(), run("b", -0.5))
    )
    assert describe_ends(beside(a, b))[0].startswith("b ends better than a: final loss 3.3")


@pytest.mark.parametrize(
    ("which", "says"),
    [
        (["a"], "two runs at least"),
        (["a", "b", "a"], "given twice"),
        (["a", "none"], "not a run folder"),
        ([f"r{i}" for i in range(9)], "9 runs, at most 8"),
    ],
)
def test_what_cannot_be_compared_is_refused(two, which, says):
    with pytest.raises(UserError, match=says):
        compare([two[0].parent / name for name in which])
    assert not (two[0].parent / "compare").exists()


@pytest.mark.slow
def test_a_file_that_is_there_is_not_replaced(two, tmp_path):
    mine = tmp_path / "thesis.html"
    mine.write_text("precious")
    with pytest.raises(UserError, match="give another file to --out"):
        compare(two, mine)
    with pytest.raises(UserError, match="there is no folder"):
        compare(two, tmp_path / "no" / "page.html")
    assert mine.read_text() == "precious"
    page = two[0].parent / "compare" / "a-vs-b.html"
    page.parent.mkdir(exist_ok=True)
    page.write_text("precious")
    with pytest.raises(UserError, match="not a page of fedfault's"):
        compare(two)
    page.unlink()


@pytest.mark.parametrize("name", ["x.pdf", "x.png", "x"])
def test_a_page_is_not_written_into_a_file_that_is_called_something_else(tmp_path, name):
    folders = [write(tmp_path / one, run(one), one) for one in "ab"]
    with pytest.raises(
        UserError, match=rf"--out .*{name}: the page is one of HTML; give a file whose name ends in \.html"
    ):
        compare(folders, tmp_path / name)
    assert not (tmp_path / name).exists()


@pytest.mark.slow
def test_comparing_needs_no_torch():
    code = "import sys, fedfault.compare.page, fedfault.compare.figures, scipy.stats\n"
    code += "assert not {'torch', 'transformers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_names_stand_beside_the_ends_of_their_lines():
    """b is 0.5 below a for every client; the axes go from −0.5 - 0.05 to 0.05, with the margin of a tenth of 0.5."""
    (ax,) = draw_differences(beside(run(), run("b", -0.5)), LIGHT, False).axes
    low, high = ax.get_ylim()
    heights = {t.get_text(): low + t.get_position()[1] * (high - low) for t in ax.texts}
    assert heights["a"] == pytest.approx(0.0, abs=0.02)
    assert heights["b"] == pytest.approx(-0.5, abs=0.02)


@pytest.mark.slow
def test_a_caption_speaks_of_rings_and_forks_that_are_drawn(tmp_path):
    plain = [write(tmp_path / name, run(name, change), name) for name, change in (("a", 0.0), ("b", -0.5))]
    page = compare(plain)[1].read_text()
    assert not [said for said in ("red ring", "dashed vertical line", "hold the same texts") if said in page]


def test_runs_of_different_lengths_are_said_to_end_so():
    a, b = run(rounds=3), run("b", -0.5, rounds=2)
    assert describe_ends(beside(a, b))[0].startswith("b ends better than a (after 2 rounds against 3): final loss")


@pytest.mark.slow
def test_a_run_in_another_unit_is_not_drawn_on_the_same_axis_and_the_caption_says_so(tmp_path):
    """Nats per example are no nats per token."""
    classes = replace(labelled("classification", accuracy=0.5), findings=(finding(round=1),))
    (ax,) = draw_losses(beside(run("a"), classes, run("b", -0.5)), LIGHT, False).axes
    assert ax.get_ylabel() == "loss (nats per token)"
    assert [line.get_ydata()[-1] for line in ax.lines if len(line.get_xdata()) > 2] == pytest.approx([3.8, 3.3])
    page = compare([write(tmp_path / made.name, made) for made in (run("a"), classes)])[1].read_text()
    assert "classification is left out: its loss is in nats per example." in page
    assert "Losses in nats per token (a), nats per example (classification);" in page
    assert "A red ring" not in page


def test_losses_of_different_kinds_are_not_said_to_be_better_or_worse():
    """A squared error ended better than a cross-entropy, in nats."""
    told = describe_ends(beside(labelled("classification", accuracy=0.5), labelled("regression", pearson=0.5)))
    assert told == [
        "The loss of regression is in squared error, that of classification in nats per example: they cannot be "
        "compared."
    ]
