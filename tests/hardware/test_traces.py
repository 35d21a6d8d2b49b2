"""Availability and bandwidth from a file."""

from __future__ import annotations

import numpy as np
import pytest

from fedfault.errors import UserError
from fedfault.hardware.traces import Diurnal, Trace, read_trace

GOOD = """\
round,client,available,bandwidth
6,0,1,
1,0,1,5.5
4,0,0,

2,2,1,8
"""


def written(tmp_path, text: str):
    path = tmp_path / "trace.csv"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_row_holds_until_the_next_of_its_client(tmp_path):
    trace = read_trace(written(tmp_path, GOOD), 3)
    assert [trace.available(t).tolist() for t in (1, 3, 4, 5, 6, 99)] == [
        [True, True, True],
        [True, True, True],
        [False, True, True],
        [False, True, True],
        [True, True, True],
        [True, True, True],
    ]
    np.testing.assert_array_equal(trace.bandwidth(1), [5.5, np.nan, np.nan])
    np.testing.assert_array_equal(trace.bandwidth(3), [5.5, np.nan, 8])
    np.testing.assert_array_equal(trace.bandwidth(4), [np.nan, np.nan, 8])


def test_no_trace_is_everybody_there_with_the_tier_s_bandwidth():
    assert Trace(2).available(7).all()
    assert np.isnan(Trace(2).bandwidth(7)).all()


def test_columns_may_come_in_any_order_with_others_between(tmp_path):
    trace = read_trace(written(tmp_path, "client,note,bandwidth,available,round\n1,x,2.5,0,3\n"), 2)
    assert trace.available(3).tolist() == [True, False]
    assert trace.bandwidth(3)[1] == 2.5


@pytest.mark.parametrize(
    ("row", "hints"),
    [
        ("x,0,1,", ["trace.csv:3", "round is 'x'", "whole number"]),
        ("1.5,0,1,", ["round is '1.5'"]),
        (f"{'1' * 5000},0,1,", ["round is '1111", "whole number below 10^15"]),
        ("1,-1,1,", ["client is '-1'"]),
        ("0,0,1,", ["round 0", "count from 1"]),
        ("1,3,1,", ["client 3", "0 to 2"]),
        ("1,0,yes,", ["available is 'yes'", "0 or 1"]),
        ("1,0", ["available is ''"]),
        ("1,0,1,0", ["bandwidth is '0'", "above 0"]),
        ("1,0,1,nan", ["bandwidth is 'nan'"]),
        ("1,0,1,fast", ["bandwidth is 'fast'", "megabits"]),
        ("1,1,1,", ["second row for client 1 in round 1"]),
        ("1,0,1,5,9", ["trace.csv:3", "more cells than the 4 of the header", "with a point"]),
        ("1,0,1", ["trace.csv:3", "fewer cells than the 4 of the header", "has its comma too"]),
    ],
)
def test_a_row_that_says_nothing_sensible_is_named_with_its_line(tmp_path, row, hints):
    with pytest.raises(UserError) as error:
        read_trace(written(tmp_path, f"round,client,available,bandwidth\n1,1,1,3\n{row}\n"), 3)
    assert all(hint in str(error.value) for hint in hints)


def test_a_column_that_is_there_twice_is_refused_unless_it_is_not_read(tmp_path):
    with pytest.raises(UserError, match="2 columns are called 'bandwidth'; rename or remove all but one"):
        read_trace(written(tmp_path, "round,client,available,bandwidth,bandwidth\n1,0,1,5,7\n"), 3)
    trace = read_trace(written(tmp_path, "round,client,,available,,bandwidth\n1,0,x,1,y,5\n"), 3)
    assert trace.bandwidth(1)[0] == 5


def test_files_that_are_no_trace_are_explained(tmp_path):
    with pytest.raises(UserError, match="no column bandwidth"):
        read_trace(written(tmp_path, "round,client,available\n1,0,1\n"), 3)
    with pytest.raises(UserError, match="no column round, client, available, bandwidth"):
        read_trace(written(tmp_path, ""), 3)
    with pytest.raises(UserError, match="no trace can be read"):
        read_trace(tmp_path / "absent.csv", 3)
    binary = tmp_path / "model.bin"
    binary.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="no trace can be read"):
        read_trace(binary, 3)


def test_by_day_whoever_can_train_is_waited_for():
    day = Diurnal(5, day=24.0, seed=1)
    now = next(t for t in np.arange(0.0, 24.0, 0.1) if 0 < day.available(1, t).sum() < 5)
    there = day.available(1, now)
    assert day.wait(now, there) == now
    assert day.wait(now, np.zeros(5, dtype=bool)) == now  # nobody ever can
    for k in np.flatnonzero(~there):
        later = day.wait(now, np.arange(5) == k)
        assert now < later < now + 24
        assert day.available(1, later)[k]
        assert not day.available(1, later - 0.001)[k]
