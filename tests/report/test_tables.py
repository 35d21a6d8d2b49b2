"""Tables hold what the records say, computed by hand."""

import math
from dataclasses import replace

import pytest

from fedfault.config.schema import Experiment
from fedfault.report import tables
from fedfault.runs.read import read_run
from handmade import HISTORY, make, record, update, write


def test_scores_hold_start_best_final_gain_and_what_was_given_back(tmp_path):
    run = read_run(write(tmp_path))
    rows = {row[0]: row[1:] for row in tables.tabulate_scores(run).rows}
    assert rows["code"] == ["6.000", "4.000", "3", "4.000", "+2.000", "0.000", "0.520", "54.6"]
    assert rows["general English"][4:6] == ["−0.130", "0.130"]
    assert tables.tabulate_clients(run).rows[1] == ["1", "code", "80 %", "10", "1,100", "2", "6.000", "4.000", "+2.000"]


def test_bits_per_byte_need_the_bytes_of_a_token(tmp_path):
    folder = write(tmp_path)
    assert "bits per byte" not in tables.tabulate_scores(read_run(folder)).columns
    update(folder / "split.json", bytes_per_token={"topic/code": 4.0})
    table = tables.tabulate_scores(read_run(folder))
    assert table.columns[-1] == "bits per byte"
    bits = {row[0]: row[-1] for row in table.rows}
    assert bits["code"] == "1.443"  # 4 nats / ln 2 / 4 bytes = 1 / ln 2
    assert bits["news"] == "–"


def test_fairness_is_about_the_last_evaluation(tmp_path):
    # gains 0.5 and 1.5, losses 4.5 and 4.5
    run = read_run(write(tmp_path, [record(0, 6.0, news=5.0), record(1, 5.0, news=4.9), record(2, 4.5, news=4.5)]))
    table = tables.tabulate_fairness(run)
    assert table.columns == [
        "nats per token, round 2", "worst", "CVaR 20 %", "p10", "median", "p90", "gap", "sd", "Jain",
    ]  # fmt: skip
    gain, loss = table.rows
    # Jain: (0.5 + 1.5)^2 / (2 * (0.25 + 2.25))
    assert gain == ["gain since round 0", "+0.500", "+0.500", "+0.600", "+1.000", "+1.400", "1.000", "0.500", "0.800"]
    assert loss == ["held-out loss", "4.500", "4.500", "4.500", "4.500", "4.500", "0.000", "0.000", "–"]


def test_jain_is_left_out_when_a_client_has_lost(tmp_path):
    run = read_run(write(tmp_path, [record(0, 6.0, news=5.0), record(1, 5.0, news=5.1)]))
    table = tables.tabulate_fairness(run)
    assert table.columns[-1] == "sd"
    assert {len(row) for row in table.rows} == {len(table.columns)}


@pytest.mark.parametrize(
    "records",
    [HISTORY[:1], [record(0, 6.0), record(1, math.nan, news=math.inf)], [replace(HISTORY[0], scores={}), *HISTORY[1:]]],
    ids=["not_trained", "diverged", "no_start"],
)
def test_without_two_finite_gains_there_is_no_fairness(tmp_path, records):
    table = tables.tabulate_fairness(read_run(write(tmp_path, records)))
    assert table is None
    assert tables.tabulate_fairness(make(clients=1, topics=("all",))) is None


def test_provenance_has_memory_and_speed(tmp_path):
    folder = write(tmp_path)
    update(folder / "metrics.json", tokens_per_second=1234.5)
    assert ("tokens per second of training", "1,234") in tables.list_provenance(read_run(folder))
    assert ("peak memory", "503 MB") in tables.list_provenance(make(probed=True))


def test_settings_that_differ_from_the_defaults_stand_apart():
    defaults = Experiment().model_dump()
    run = replace(make(), config={**defaults, "seed": 7, "training": {**defaults["training"], "lr": 0.25}})
    own, rest = tables.list_settings(run)
    assert own == [("seed", "7"), ("training.lr", "0.25")]
    assert ("federation.num_rounds", "12") in rest
    assert not {key for key, _ in own} & {key for key, _ in rest}


@pytest.mark.parametrize(
    ("evaluation", "said"),
    [
        ({}, "the likeliest tokens"),
        ({"temperature": 0.7, "top_p": 1.0}, "tokens drawn at temperature 0.7, by the same draws,"),
        (
            {"temperature": 1.0, "top_p": 0.9},
            "tokens drawn at temperature 1 from 90 % of the probability, by the same draws,",
        ),
    ],
)
def test_a_page_says_how_answers_are_made(evaluation, said):
    assert tables.describe_answers(replace(make(), config={"evaluation": evaluation})) == said


def test_tiers_are_written_as_a_person_would():
    tiers = [{"name": "fast", "count": 2, "memory_mb": None}, {"name": "slow", "count": 1, "compute_factor": 0.5}]
    assert tables.format_settings({"tiers": tiers}) == [
        ("tiers", "[{name: fast, count: 2}, {name: slow, count: 1, compute_factor: 0.5}]")
    ]


def test_an_empty_answer_is_an_answer():
    asked = {"prompt": "4 + 7?", "reference": "11", "before": "", "after": "11"}
    assert tables.tabulate_answers(replace(make(), answers=[asked])).rows == [["4 + 7?", "11", "(empty)", "11"]]


def test_data_of_one_topic_have_no_row_and_no_column_of_it():
    run = make(topics=("text",))
    assert [row[0] for row in tables.tabulate_scores(run).rows] == ["validation", "general English"]
    assert tables.tabulate_clients(run).columns == (
        "client",
        "documents",
        "tokens",
        "rounds trained",
        "start",
        "final",
        "gain",
    )
    assert tables.tabulate_clients(run).rows[1][:4] == ("1", "9", "2,000", "1")


def test_clients_with_preferences_are_as_large_as_their_responses():
    """A pair is what is predicted, and the split counts the tokens of its two responses."""
    run = replace(make(), config={"data": {"task_type": "preference"}})
    assert (run.targets, tables.tabulate_clients(run).columns[4]) == ("pairs", "tokens of responses")


def test_a_fact_without_a_value_has_a_dash():
    assert tables.format_settings({"corpus": {"files": "", "seed": 0}}) == [("corpus.files", "–"), ("corpus.seed", "0")]
