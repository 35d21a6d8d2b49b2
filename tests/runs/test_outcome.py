"""metrics.json: nothing invented, nothing left out."""

from __future__ import annotations

import math

import pytest

from fedfault.records import RoundRecord, Score
from fedfault.runs.outcome import find_best_round, summarise_run
from handmade import clocked, make, turn


def record(t: int, **losses: float) -> RoundRecord:
    scores = {name.replace("_", "/"): Score(loss, 100) for name, loss in losses.items()}
    return RoundRecord(t, scores=scores, seconds={"train": 2.0, "probe/updates": 0.5} if t else {})


def test_the_summary_has_no_invented_numbers():
    found = summarise_run(
        [RoundRecord(0, scores={"validation": Score(2.0, 9)}), RoundRecord(1, scores={"validation": Score(1.7, 9)})]
    )
    assert found["final"]["validation"]["loss"] == 1.7
    assert not {"forgetting", "tokens_per_second", "fairness", "backward_transfer", "probe_share"} & set(found)
    assert "best" not in summarise_run([record(0, validation=math.nan)])
    assert summarise_run([])["rounds"] == 0


def test_gains_are_from_the_start_to_the_end_and_topics_give_back_from_their_best():
    records = [
        record(0, validation=3.0, client_0=4.0, client_1=2.0, topic_a=3.0),
        record(1, validation=2.0, client_0=2.0, client_1=1.0, topic_a=1.0),
        record(2, validation=2.5, client_0=3.0, client_1=1.5, topic_a=1.75),
    ]
    found = summarise_run(records)
    assert found["best"] == {"round": 1, "loss": 2.0}
    assert found["fairness"]["gains"]["worst"] == 0.5
    assert found["fairness"]["losses"]["worst"] == 3.0
    assert found["fairness"]["gains"]["jain"] == pytest.approx(1.5**2 / (2 * 1.25))
    assert found["backward_transfer"] == {"topic/a": 0.75}


def test_bits_per_byte_need_the_bytes():
    found = summarise_run([record(0, validation=2 * math.log(2), topic_a=1.0)], {"validation": 4.0})
    assert found["final"]["validation"]["bits_per_byte"] == pytest.approx(0.5)
    assert "bits_per_byte" not in found["final"]["topic/a"]


def test_the_probes_share_is_of_all_seconds():
    found = summarise_run([record(0, validation=1.0), record(1, validation=1.0), record(2, validation=1.0)])
    assert found["probe_seconds"] == {"updates": 1.0}
    assert found["probe_share"] == 0.2


def test_the_clock_is_in_the_summary_where_hardware_is_simulated():
    found = summarise_run(clocked([[turn(0), turn(1, "slow", 2, "dropped", seconds=3.0)]]).records)
    assert (found["clock"]["seconds"], found["clock"]["compliance"]) == (2.0, 0.5)
    assert found["clock"]["by_tier"]["slow"]["dropped"] == 1
    assert found["bytes_per_client_round"] == {"up": 1000.0, "down": 2000.0}
    assert "clock" not in summarise_run(make().records)


def test_time_to_target_is_also_told_in_simulated_seconds():
    run = clocked([[turn(0, seconds=1.5)], [turn(0, seconds=0.5)], [turn(0)]], probed=True)
    # accuracy 0.5, 0.75, 0.83; 1.5 s of wall time a round, and 0.5 s of probes after round 0
    reached = summarise_run(run.records, target=("accuracy", 0.8))["time_to_target"]
    assert (reached["round"], reached["seconds"], reached["simulated_seconds"]) == (2, 5.5, pytest.approx(2.0))
    assert (
        "simulated_seconds" not in summarise_run(make(probed=True).records, target=("accuracy", 0.8))["time_to_target"]
    )
    assert "simulated_seconds" not in summarise_run(run.records, target=("accuracy", 0.99))["time_to_target"]


def test_fairness_is_over_all_clients_also_those_that_never_train():
    run = clocked([[turn(0)]] * 2, clients=11, loss=lambda r, t: 1.0 + t / 10)  # losses 1.0, ..., 2.0
    spread = summarise_run(run.records)["fairness"]["losses"]
    assert [spread[p] for p in ("p10", "p50", "p90")] == pytest.approx([1.1, 1.5, 1.9])


def test_the_best_round_is_the_first_with_the_lowest_finite_loss():
    losses = [2.0, float("nan"), 1.0, 1.0, float("inf")]
    assert find_best_round([record(t, validation=loss) for t, loss in enumerate(losses)]) == 2
    assert find_best_round([record(0, validation=float("nan")), RoundRecord(1)]) is None
    assert find_best_round([]) is None


def test_labels_whose_metrics_are_not_defined_have_a_loss_and_no_perplexity():
    """The correlation with scores that are all the same: without it a squared error would pass for nats of a token."""
    found = summarise_run([record(0, validation=9.0), record(1, validation=8.0)], labelled=True)
    assert found["final"]["validation"] == {"loss": 8.0, "tokens": 100}
    assert summarise_run([record(0, validation=9.0)])["final"]["validation"]["perplexity"] == pytest.approx(math.e**9)


def test_units_stand_beside_the_numbers_that_are_there():
    records = [record(0, validation=4.0), record(1, validation=3.0)]
    units = summarise_run(records)["units"]
    assert units["final"] == "nats per token"
    assert units["probe_seconds"] == "seconds"
    assert "forgetting" not in units
    assert summarise_run(records, labelled=True)["units"]["best"].startswith("nats per example")
