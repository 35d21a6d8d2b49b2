"""What an asynchronous server cannot be combined with, and what its settings mean."""

from __future__ import annotations

import pytest

from fedfault.config.loading import load
from fedfault.errors import UserError
from fedfault.setup.asynchrony import build_asynchrony
from fedfault.setup.combinations import check_parts

AT_ONCE = ["federation.participation_rate=null", "federation.clients_per_round=5"]


def read(*words, how="fedbuff"):
    return load("quickstart", [*AT_ONCE, f"federation.asynchronous={how}", *words]).experiment


@pytest.mark.parametrize(
    ("word", "why"),
    [
        ("federation.algorithm=scaffold", "needs clients that start from one model"),
        ("federation.algorithm=feddyn", "needs clients that start from one model"),
        ("federation.algorithm=ifca", "needs clients that start from one model"),
        ("federation.algorithm={name: fedavg, unbiased: true}", "counts who was drawn for the round"),
        ("federation.aggregation=flora", "adds to the frozen weights, which clients at work have as they were"),
        ("federation.aggregation=flexlora", "gives the numbers of the adapter another meaning"),
        ("federation.aggregation=rolora", "trains one factor a round"),
        ("federation.scheduler=lite", "shares a budget of ranks"),
        ("federation.selection=size", "weights are for a cohort that is drawn at once"),
        ("federation.on_failure=cluster", "after which each cluster has a model"),
        ("deadline.seconds=5", "nobody waits for anybody"),
        ("clock.mode=measured", "would depend on this machine"),
        ("federation.centralised=true", "has one client|one client with all data"),
        ("federation.asynchronous.buffer=11", "buffer=11 is more than federation.total_clients=10"),
        ("federation.asynchronous.grace=2", "grace is not used with staleness=polynomial"),
    ],
)
def test_what_needs_everybody_or_a_common_start_is_refused(word, why):
    with pytest.raises(UserError, match=why):
        check_parts(read(word))


@pytest.mark.parametrize("algorithm", ["fedavg", "fedprox", "moon", "ditto", "pfedme", "apfl", "fedavgm", "fedadam"])
def test_what_takes_a_start_of_its_own_for_each_client_is_allowed(algorithm):
    check_parts(read(f"federation.algorithm={algorithm}"))


def test_a_buffer_is_half_of_those_at_work_and_fedasync_takes_one_at_a_time():
    assert build_asynchrony(read()).buffer == 2
    mixing = build_asynchrony(read(how="fedasync"))
    assert (mixing.buffer, mixing.mixes, mixing.rate) == (1, True, 0.6)
    with pytest.raises(UserError, match="takes every update in by itself"):
        read(how="{name: fedasync, buffer: 3}")


def test_it_says_how_many_are_at_work_and_how_many_updates_make_a_round():
    assert "2 updates in each of 5 of 10 clients at work (fedbuff)" in read().describe()


def test_a_day_without_days_is_refused():
    with pytest.raises(UserError, match=r"clock\.day is of clock\.trace=diurnal"):
        check_parts(load("quickstart", ["clock.day=60"]).experiment)
