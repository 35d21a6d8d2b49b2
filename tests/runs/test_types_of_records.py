"""A line of a run's files whose values have other types is refused with the place, not shown as numbers."""

from __future__ import annotations

import pytest

from fedfault.records import ClientRecord, Finding, RoundRecord, Score, Turn

CLIENT = ClientRecord(1, 0.5, 2, 64, 4.5, 0.1, 0.2, 100, 100)
RECORD = RoundRecord(1, (CLIENT,), {"validation": Score(4.0, 10)}, {"norm": 1.0}, turns=(Turn(1, "fast", 4, "done"),))
FINDING = Finding("slow", 1, "alarm", "It is slow.", 2.0, None, 0, {"x": 1.0}, ("try it",))


def test_what_was_not_written_down_stays_so():
    assert RoundRecord.from_json(RECORD.to_json()) == RECORD
    assert RoundRecord.from_json(RECORD.to_json()).clients[0].rank is None
    assert Finding.from_json(FINDING.to_json()) == FINDING


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("round",), -1), (("round",), 1.5), (("round",), True), (("clients", 0, "loss"), "low"),
        (("clients", 0, "client"), -1), (("scores", "validation", "tokens"), 0.5), (("probes", "norm"), "1"),
        (("turns", 0, "fate"), "lost"), (("turns", 0, "tier"), 3), (("bytes_up",), -5), (("events",), [1]),
    ],
    ids=str,
)  # fmt: skip
def test_a_value_of_another_type_is_named(place, value):
    line = RECORD.to_json()
    within = line
    for part in place[:-1]:
        within = within[part]
    within[place[-1]] = value
    with pytest.raises(TypeError, match=place[0]):
        RoundRecord.from_json(line)


@pytest.mark.parametrize(("key", "value"), [("round", None), ("detector", 3), ("level", "bad"), ("threshold", "5")])
def test_a_finding_of_other_types_is_refused(key, value):
    with pytest.raises(TypeError, match=key):
        Finding.from_json({**FINDING.to_json(), key: value})
