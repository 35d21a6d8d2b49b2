"""metrics.json: nothing invented, nothing left out."""

from __future__ import annotations

import math

import pytest

from fedfault.outcome import summary
from fedfault.records import RoundRecord, Score


def record(t: int, **losses: float) -> RoundRecord:
    scores = {name.replace("_", "/"): Score(loss, 100) for name, loss in losses.items()}
    return RoundRecord(t, scores=scores, seconds={"train": 2.0, "probe/updates": 0.5} if t else {})


def test_the_summary_has_no_invented_numbers():
    found = summary(
        [RoundRecord(0, scores={"validation": Score(2.0, 9)}), RoundRecord(1, scores={"validation": Score(1.7, 9)})]
    )
    assert found["final"]["validation"]["loss"] == 1.7
    assert not {"forgetting", "tokens_per_second", "fairness", "backward_transfer", "probe_share"} & set(found)
    assert "best" not in summary([record(0, validation=math.nan)])
    assert summary([])["rounds"] == 0


def test_gains_are_from_the_start_to_the_end_and_topics_give_back_from_their_best():
    records = [
        record(0, validation=3.0, client_0=4.0, client_1=2.0, topic_a=3.0),
        record(1, validation=2.0, client_0=2.0, client_1=1.0, topic_a=1.0),
        record(2, validation=2.5, client_0=3.0, client_1=1.5, topic_a=1.75),
    ]
    found = summary(records)
    assert found["best"] == {"round": 1, "loss": 2.0}
    assert found["fairness"]["gains"]["worst"] == 0.5
    assert found["fairness"]["losses"]["worst"] == 3.0
    assert found["fairness"]["gains"]["jain"] == pytest.approx(1.5**2 / (2 * 1.25))
    assert found["backward_transfer"] == {"topic/a": 0.75}


def test_bits_per_byte_need_the_bytes():
    found = summary([record(0, validation=2 * math.log(2), topic_a=1.0)], {"validation": 4.0})
    assert found["final"]["validation"]["bits_per_byte"] == pytest.approx(0.5)
    assert "bits_per_byte" not in found["final"]["topic/a"]


def test_the_probes_share_is_of_all_seconds():
    found = summary([record(0, validation=1.0), record(1, validation=1.0), record(2, validation=1.0)])
    assert found["probe_seconds"] == {"updates": 1.0}
    assert found["probe_share"] == 0.2
