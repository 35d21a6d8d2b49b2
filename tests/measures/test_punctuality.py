"""Fates, compliance and bytes, counted by hand."""

from __future__ import annotations

import pytest

from fedfault.measures.punctuality import bytes_per_client_round, count_fates, elapsed_seconds, measure_punctuality
from fedfault.records import RoundRecord
from handmade import clocked, make, turn

# round 1: 2 s, one of three too late; round 2: 1.5 s, all in time; round 3: nobody has anything to do
TURNS = [
    [turn(0, rank=8, seconds=1.0), turn(2, "slow", 2, seconds=1.8), turn(3, "slow", 4, "dropped", seconds=4.0)],
    [turn(1, rank=6, seconds=0.5), turn(3, "slow", 2, seconds=1.5)],
    [turn(2, "slow", fate="excluded")],
]


def test_simulated_time_adds_up_over_rounds():
    assert elapsed_seconds(clocked(TURNS).records) == pytest.approx({0: 0.0, 1: 2.0, 2: 3.5, 3: 3.5})


def test_without_a_simulated_clock_there_are_no_numbers_of_it():
    assert elapsed_seconds(make().records) == {}
    assert measure_punctuality(make().records) == {}
    assert measure_punctuality([]) == {}


def test_compliance_is_a_mean_over_rounds_in_which_anybody_had_work():
    found = measure_punctuality(clocked(TURNS).records)
    assert found["seconds"] == pytest.approx(3.5)
    assert found["compliance"] == pytest.approx((2 / 3 + 1) / 2)
    assert found["rounds_in_time"] == 0.5
    assert found["regret"] == 1.25
    assert found["dropped"] == 1


def test_tiers_come_in_the_order_of_their_clients_and_ranks_are_of_those_with_work():
    tiers = measure_punctuality(clocked(list(reversed(TURNS))).records)["by_tier"]
    assert list(tiers) == ["fast", "slow"]
    assert tiers["fast"] == {
        "drawn": 2, "done": 2, "late": 0, "partial": 0, "dropped": 0, "excluded": 0, "mean_rank": 7.0,
    }  # fmt: skip
    assert (tiers["slow"]["drawn"], tiers["slow"]["dropped"], tiers["slow"]["excluded"]) == (4, 1, 1)
    assert tiers["slow"]["mean_rank"] == pytest.approx((2 + 4 + 2) / 3)


@pytest.mark.parametrize("fate", ["late", "partial", "dropped"])
def test_every_kind_of_straggler_spoils_the_round(fate):
    found = measure_punctuality(clocked([[turn(0), turn(1, fate=fate, seconds=3.0)]]).records)
    assert (found["compliance"], found["rounds_in_time"]) == (0.5, 0.0)


def test_where_nobody_ever_had_work_there_is_no_compliance():
    found = measure_punctuality(clocked([[turn(0, fate="excluded")], []]).records)
    assert not {"compliance", "rounds_in_time", "regret"} & set(found)
    assert found["seconds"] == 0.0
    assert "mean_rank" not in count_fates([turn(0, fate="excluded")])


def test_bytes_up_are_of_who_arrived_and_bytes_down_of_who_was_sent_the_model():
    assert bytes_per_client_round(clocked(TURNS).records) == {"up": 1000.0, "down": 2000.0}
    lost = clocked([[turn(0, fate="dropped", seconds=3.0), turn(1, fate="excluded")]]).records
    assert bytes_per_client_round(lost) == {"down": 2000.0}
    assert bytes_per_client_round(make().records) == {"up": 1000.0, "down": 2000.0}  # two clients a round, no clock
    assert bytes_per_client_round([RoundRecord(0)]) == {}
