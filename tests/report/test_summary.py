"""What the report says in words is computed from the records."""

import math
import shlex
from dataclasses import replace

from fedfault.records import RoundRecord
from fedfault.report import summary
from fedfault.report.verdict import list_findings
from fedfault.runs.read import read_run
from fedfault.runs.recorded import Fork
from handmade import HISTORY, finding, make, record, update, write


def test_the_summary_is_computed_from_the_records(tmp_path):
    sentences = summary.list_sentences(read_run(write(tmp_path)))
    assert sentences == [
        # exp(5) and exp(4): the mixture of news at 4 and code at 6, then at 4
        "Mixed validation perplexity fell from 148.4 to 54.6 over 3 rounds (its best).",
        "Between evaluations the loss of single topics jumped by up to 0.52 nats "
        "(code, round 2, when no client that mostly holds it trained).",
        "Held-out loss of single clients ends between 4.00 nats (client 0) and 4.00 nats (client 1).",
        "General English: +0.13 nats per token against the model before training.",
    ]


def test_the_end_of_a_run_is_told_in_three_lines(tmp_path):
    run = read_run(write(tmp_path / "r", [record(0, 5.0), record(1, 4.0), record(2, 4.5)], rounds=2))
    judged = replace(run, metrics={"verdict": {"state": "degraded", "sentence": "The loss rises (round 2)."}})
    assert summary.describe_end(judged) == [  # exp(4.5), exp(4.25) and exp(4): the mean of the topic and one at 4
        "verdict: degraded. The loss rises (round 2).",
        "Mixed validation perplexity fell from 90.0 to 70.1 over 2 rounds (best 54.6 in round 1).",
        f"next: fedfault fork {run.folder} --round 1 KEY=VALUE, fedfault compare {run.folder} OTHER_RUN, "
        f"fedfault diagnose {run.folder}",
    ]
    best_at_the_end = read_run(write(tmp_path / "s", [record(0, 5.0), record(1, 4.0)], rounds=1))
    assert "fork" not in summary.describe_end(best_at_the_end)[-1]


def test_a_rise_is_called_a_rise(tmp_path):
    run = read_run(write(tmp_path, [record(0, 4.0), record(1, 5.0), record(2, 6.0, general=4.9)], rounds=2))
    assert (
        summary.list_sentences(run)[0]
        == "Mixed validation perplexity rose from 54.6 to 148.4 over 2 rounds (best 54.6 in round 0)."
    )
    assert "−0.10 nats" in summary.list_sentences(run)[-1]
    assert summary.list_warnings(run) == ["Only 2 rounds of training: too few to show a trend."]


def test_a_jump_is_not_laid_to_the_absence_of_clients_where_none_mostly_holds_the_topic():
    """Clients of unequal sizes with the same mixture: all of them mostly hold news, and train in every round."""
    made = make(clients=2, loss=lambda r, t: 4.0 + (0.5 * t if r == 2 else 0.0))

    def said(*clients):
        run = replace(made, split={**made.split, "clients": clients})
        return next(sentence for sentence in summary.list_sentences(run) if "jumped" in sentence)

    assert said([9, 1], [90, 10]).endswith("jumped by up to 0.50 nats (code, round 2).")
    assert said([9, 1], [10, 90]).endswith("(code, round 2, although a client that mostly holds it trained).")


def test_steady_topics_are_called_steady(tmp_path):
    run = read_run(write(tmp_path, [record(r, 5.0 - r) for r in range(4)]))
    assert "No single topic's loss rose by more than 0.01 nats between two evaluations." in summary.list_sentences(run)


def test_a_diverged_run_says_so(tmp_path):
    run = read_run(write(tmp_path, [*HISTORY[:2], record(2, math.nan), record(3, math.inf, general=math.nan)]))
    assert summary.list_sentences(run)[0] == (
        "The run diverged: the validation loss is not a finite number from round 2 on. "
        "Its best perplexity was 90.0 in round 1."
    )
    assert summary.list_sentences(run)[-1] == "General English: the loss is no longer a finite number."


def test_an_unfinished_run_says_so(tmp_path):
    run = read_run(write(tmp_path, HISTORY[:3], status="running", rounds=9))
    assert summary.list_warnings(run) == [
        "This run is not finished (status: running): 2 of 9 rounds are recorded.",
        "Only 2 rounds of training: too few to show a trend.",
    ]


def test_events_are_shown_and_many_are_counted(tmp_path):
    records = [HISTORY[0], *(RoundRecord(r, events=(f"client {r} fell over",)) for r in range(1, 10))]
    notes = summary.list_warnings(read_run(write(tmp_path, records, rounds=9)))
    assert notes[0] == "Round 1: client 1 fell over."
    assert notes[-1] == "4 more such events are in rounds.jsonl."


def test_a_fork_is_told(tmp_path):
    folder = write(tmp_path)
    parent = {"run": "results/old", "round": 1, "changes": {"training.lr": [0.003, 1e-5]}}
    update(folder / "manifest.json", parent=parent)
    said = "This run went its own way after round 1 of results/old: training.lr 0.003 → 1e-05."
    assert summary.list_remarks(read_run(folder))[0] == said


def test_the_time_of_probes_is_told_as_a_share():
    tile = next(t for t in summary.make_tiles(make(probed=True)) if t.name == "Time")
    assert tile.value == "7.5 s"  # 4 x 1.5 s, and 3 x 0.5 s of probes
    assert tile.remark == "training and evaluation; 20\u00a0% probes"


def test_a_run_that_stopped_itself_is_begun_again_or_forked_and_not_just_continued(tmp_path):
    never_better = read_run(write(tmp_path / "a", [record(0, 4.0), record(1, 5.0)], status="stopped", rounds=3))
    assert summary.suggest_commands(never_better)[0] == (
        f"fedfault run {tmp_path / 'a' / 'config.yaml'} experiment_name=NAME KEY=VALUE"
    )
    once = read_run(write(tmp_path / "b", [record(0, 4.0), record(1, 3.0), record(2, 5.0)], status="stopped", rounds=3))
    assert summary.suggest_commands(once)[0] == f"fedfault fork {tmp_path / 'b'} --round 1 KEY=VALUE"


def test_a_command_that_an_alarm_advises_is_there_to_copy(tmp_path):
    run = replace(read_run(write(tmp_path / "r")), findings=(finding(advice=("fedfault mitigate RUN",)),))
    mend = f"fedfault mitigate {run.folder}"
    assert mend in summary.suggest_commands(run)
    assert list_findings(run)[0][0].advice == mend
    suspected = replace(run, findings=(finding(level="suspect", advice=("fedfault mitigate RUN",)),))
    assert mend not in summary.suggest_commands(suspected)


def test_commands_are_quoted_as_a_shell_takes_them(tmp_path):
    folder = write(tmp_path / "sp a'c\"e")
    run = replace(read_run(folder), findings=(finding(advice=("fedfault mitigate RUN",)),))
    forked = replace(run, forks=(Fork("parent", 1, {}, source=str(write(tmp_path / "a b"))),))
    for command in (*summary.suggest_commands(run), *summary.suggest_commands(forked)):
        assert str(folder) in [word.removesuffix("/config.yaml") for word in shlex.split(command)], command
    assert list_findings(run)[0][0].advice.startswith("fedfault mitigate '")


def test_topics_are_called_labels_where_labels_are_learned():
    index = {"value": 1.0, "chance": 0.5, "excess": 0.5, "z": 3.0, "p": 0.01}
    found = {"label_emd": index, "sentences": ["Two clients share 27 % of topic mass."]}
    run = replace(make(), heterogeneity=found, config={"data": {"task_type": "classification"}})
    assert summary.describe_split(run)[0] == "Two clients share 27 % of label mass."
    assert summary.tabulate_skew(run).rows[0][0] == "labels: earth mover's distance (0 to 2)"
    assert summary.tabulate_skew(replace(run, config={})).rows[0][0].startswith("topics:")


def test_a_fork_is_compared_with_the_run_that_it_was_forked_from(tmp_path):
    run = read_run(write(tmp_path / "fork"))
    forked = replace(run, forks=(Fork("parent", 1, {}, source=str(tmp_path / "first")),))
    assert f"fedfault compare {run.folder} OTHER_RUN" in summary.suggest_commands(forked)
    write(tmp_path / "first")
    assert f"fedfault compare {tmp_path / 'first'} {run.folder}" in summary.suggest_commands(forked)


def test_a_metric_that_ends_where_it_began_did_not_go_anywhere():
    run = make(rounds=2, probed=True)
    flat = [replace(r, scores={n: replace(s, metrics={"f1": 0.5}) for n, s in r.scores.items()}) for r in run.records]
    run = replace(run, records=tuple(flat), config={"data": {"task_type": "classification"}})
    assert summary.describe_progress(run) == "Validation F1 is 0.500 after 2 rounds, as before (its best)."
