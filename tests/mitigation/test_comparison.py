"""Numbers of a comparison, by hand; its figure and its page."""

from __future__ import annotations

import math

import pytest

from fedfault.mitigation.comparison import Arm, compared, differences, summary
from fedfault.mitigation.page import page, write
from fedfault.records import ClientRecord, RoundRecord, Score


def arm(*losses: float, start: float = 3.0) -> Arm:
    own = {str(k): loss for k, loss in enumerate(losses)}
    return Arm(own, {k: start - loss for k, loss in own.items()}, steps=10, bytes=2000, seconds=1.5)


ARMS = {
    "clusters": {0: arm(1.0, 2.0, 1.0, 2.0, 1.0), 1: arm(1.5, 1.5, 1.5, 1.5, 1.5)},
    "vanilla": {0: arm(1.5, 1.5, 1.5, 2.5, 1.5), 1: arm(1.5, 2.0, 2.0, 2.0, 2.0)},
    "central": {0: arm(1.0, 1.0, 1.0, 1.0, 1.0), 1: arm(1.0, 1.0, 1.0, 1.0, 1.0)},
}


def record(round: int, *losses: float) -> RoundRecord:
    client = ClientRecord(0, 1.0, steps=3, tokens=9, loss=1.0, grad_norm=1.0, update_norm=1.0, bytes_up=8, bytes_down=8)
    scores = {f"client/{k}": Score(loss, 10) for k, loss in enumerate(losses)}
    own = (client, client) if round else ()
    return RoundRecord(round, own, scores, bytes_up=16 * len(own), bytes_down=8 * len(own), seconds={"train": 0.5})


def test_an_arm_is_what_its_records_say():
    found = Arm.of([record(0, 3.0, 4.0), record(1), record(2, 2.0, 4.5)])
    assert found == Arm({"0": 2.0, "1": 4.5}, {"0": 1.0, "1": -0.5}, steps=12, bytes=96, seconds=1.5)


def test_differences_are_paired_by_client_and_seed():
    assert differences(ARMS, "vanilla")[0] == {"0": -0.5, "1": 0.5, "2": -0.5, "3": -0.5, "4": -0.5}
    found = compared(ARMS, "vanilla")
    assert found["mean"] == pytest.approx((-0.3 - 0.4) / 2)
    assert (found["better"], found["worse"], found["clients"]) == (8, 1, 10)
    assert found["by_seed"] == {0: pytest.approx(-0.3), 1: pytest.approx(-0.4)}


def test_means_are_over_the_clients_of_a_seed_and_then_over_seeds():
    found = summary(ARMS)
    assert found["arms"]["clusters"]["loss"] == pytest.approx((1.4 + 1.5) / 2)
    assert found["arms"]["clusters"]["worst_client"] == pytest.approx((2.0 + 1.5) / 2)
    assert found["arms"]["vanilla"]["smallest_gain"] == pytest.approx((0.5 + 1.0) / 2)
    assert set(found["differences"]) == {"vanilla", "central"}


def about(**changes) -> dict:
    cluster = {"sentence": "2 clusters: [0, 2, 4], [1, 3]", "agreement": 1.0}
    arms = dict.fromkeys(("ifca", "local"), ARMS["vanilla"]) | ARMS
    found = {
        "name": "run",
        "algorithm": "fedavg",
        "task_type": "causal_lm",
        "command": "fedfault mitigate",
        "commit": None,
    }
    return {
        **found,
        "encoder": "backbone",
        "shrinkage": 0.0,
        "clusters": {0: cluster, 1: cluster},
        **summary(arms),
        **changes,
    }


def test_the_page_says_what_was_compared_and_with_what_result():
    said = page(about(), "nats per token")
    assert "| one model for all | 1.800 |" in said
    assert "| −0.350 |" in said
    assert "| 8 of 10 |" in said
    assert "says nothing of other seeds" not in said
    assert "shrunk" not in said
    assert "shrunk to their mean by 0.5" in page(about(shrinkage=0.5), "nats per token")


def test_training_without_a_network_has_no_bytes():
    lines = {line.split(" | ")[0]: line for line in page(about(), "nats").splitlines()}
    assert lines["| each client alone"].endswith("| 10 | – | 1.5 s |")
    assert lines["| IFCA"].endswith("| 10 | 2.0 kB | 1.5 s |")


@pytest.mark.parametrize("lost", [False, True])
def test_what_is_written_is_whole(tmp_path, lost):
    """With a run that diverged too."""
    arms = dict.fromkeys(("ifca", "local"), ARMS["vanilla"]) | ARMS
    if lost:
        arms["ifca"] = {0: arm(math.nan, 1.0, 1.0, 1.0, 1.0), 1: arm(1.0, 1.0, 1.0, 1.0, math.inf)}
    found = write(tmp_path, {**about(), **summary(arms)}, arms)
    assert found.read_text(encoding="utf-8").startswith("# run: clusters of clients")
    assert ("not finite" in found.read_text(encoding="utf-8")) == lost
    for name in ("comparison.json", "plots/comparison.png", "plots/comparison-dark.png"):
        assert (tmp_path / name).stat().st_size > 500
