"""Names of vertical marks keep off one another."""

from hypothesis import given, settings
from hypothesis import strategies as st

from fedfault.report.marks import Place, collect_marks, find_lanes, measure_headroom
from fedfault.report.theme import LIGHT
from fedfault.runs.recorded import Fork
from handmade import finding, make


def test_apart_names_share_the_lowest_lane():
    assert find_lanes([0.1, 0.5], [0.2, 0.2]) == [Place(0, False), Place(0, False)]
    assert find_lanes([], []) == []


def test_a_name_at_the_edge_stands_on_the_left():
    assert find_lanes([0.95], [0.2]) == [Place(0, True)]


def test_names_of_one_round_stand_above_one_another():
    assert {p.lane for p in find_lanes([0.5, 0.5, 0.5], [0.2, 0.2, 0.2])} == {0, 1, 2}


def test_a_line_from_above_comes_down_beside_the_names_below():
    assert find_lanes([0.1, 0.2], [0.3, 0.3]) == [Place(1, False), Place(0, False)]
    assert find_lanes([0.9, 0.8], [0.3, 0.3]) == [Place(1, True), Place(0, True)]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0.05, 0.6)), max_size=12))
def test_no_two_names_overlap(marks):
    places, widths = [m[0] for m in marks], [m[1] for m in marks]
    found = find_lanes(places, widths)
    spans = [(p.lane, x - w, x) if p.left else (p.lane, x, x + w) for p, (x, w) in zip(found, marks, strict=True)]
    for i, (lane, start, end) in enumerate(spans):
        assert not any(lane == n and start < b and a < end for n, a, b in spans[:i])


def test_the_names_need_room_by_their_lanes():
    assert measure_headroom([]) == 0.0
    # Points a lane
    assert measure_headroom([Place(0, False), Place(2, False)]) - measure_headroom([Place(1, True)]) == 12.0


def test_a_detector_is_marked_once_and_alarms_come_before_suspicions():
    found = (
        finding("slow", 1, "suspect"), finding("slow", 4, "suspect"), finding("forgetting", 3, "suspect"),
        finding("forgetting", 5), finding("forgetting", 4),
    )  # fmt: skip
    run = make(findings=found, forks=(Fork("parent", 2, {"seed": (0, 1)}),))
    assert [(m.text, m.round, m.colour) for m in collect_marks(run, LIGHT, narrow=False)] == [
        ("seed 0 → 1", 2, LIGHT.ink),
        ("forgetting", 4, LIGHT.alarm),
        ("slow", 1, LIGHT.muted),
    ]
