"""What the report says of the simulated clock, counted by hand."""

from __future__ import annotations

from fedfault.measures import punctuality
from fedfault.report import timing
from fedfault.report.captions import describe_figure, write_caption
from fedfault.report.summary import make_tiles
from fedfault.report.words import FATES
from handmade import clocked, make, turn

TURNS = [
    [turn(0, rank=8), turn(2, "slow", 2, seconds=1.8), turn(3, "slow", 4, "dropped", seconds=4.0)],
    [turn(1, rank=6, seconds=0.5), turn(3, "slow", 2, seconds=1.5)],
    [turn(2, "slow", fate="excluded")],
]


def test_the_clock_is_told_in_sentences():
    assert timing.describe_clock(clocked(TURNS)) == [
        "3 rounds took 3.5 s on the simulated clock.",
        "Deadline 2 s: 83 % of the clients were done in time in the mean round, all of them in 1 of 2 rounds, 1 update "
        "dropped.",
        "Regret 1.25: if all work were waited for, the mean round would be that many times as long as the shortest one with "
        "ranks of the same sum.",
        "A client moves 1.00 kB up, 2.00 kB down in a round.",
    ]


def test_without_a_deadline_nobody_is_late_and_nothing_is_said_of_it():
    said = timing.describe_clock(clocked(TURNS[1:2], deadline=None))
    assert not [s for s in said if "Deadline" in s]
    assert timing.make_tile(clocked(TURNS[1:2], deadline=None)).remark == "all rounds"


def test_a_tier_is_a_row_with_the_fates_that_were_met():
    table = timing.tabulate_tiers(clocked(TURNS))
    assert table.columns == ("tier", "drawn", "done", "dropped", "left out", "mean rank")
    # ranks 8, 6; 2, 4, 2; all five: 22 / 5
    assert table.rows == [
        ["fast", "2", "2", "0", "0", "7.0"],
        ["slow", "4", "2", "1", "1", "2.7"],
        ["all", "6", "4", "1", "1", "4.4"],
    ]
    assert [row[0] for row in timing.tabulate_tiers(clocked(TURNS[1:2], topics=("a",))).rows] == ["fast", "slow", "all"]
    assert [row[0] for row in timing.tabulate_tiers(clocked([[turn(0)]])).rows] == ["fast"]


def test_a_run_in_which_nobody_had_work_is_told():
    run = clocked([[turn(0, fate="excluded")]])
    assert timing.describe_clock(run) == ["1 round took 0.0 s on the simulated clock."]
    assert timing.tabulate_tiers(run).rows == [["fast", "1", "0", "1", "–"]]
    assert timing.make_tile(run).remark == "all rounds"


def test_without_a_clock_nothing_is_said():
    assert timing.describe_clock(make()) == []
    assert timing.tabulate_tiers(make()) is None
    assert "Simulated time" not in [t.name for t in make_tiles(make())]


def test_simulated_time_is_a_key_number():
    tile = next(t for t in make_tiles(clocked(TURNS)) if t.name == "Simulated time")
    assert (tile.value, tile.remark) == ("3.5 s", "83\u00a0% of clients in time")


def test_every_fate_has_a_word_and_the_captions_explain_it():
    assert set(FATES) == set(punctuality.FATES)
    for name in ("client_ranks", "gantt"):
        for fate in ("late", "partial", "dropped", "excluded"):
            run = clocked([[turn(0), turn(1, fate=fate)]])
            said = write_caption(run, name).text.lower()
            assert [f for f in FATES if f"{FATES[f]}:" in said] == [fate]  # of the others nothing is drawn
        assert len(describe_figure(clocked(TURNS), name)) > 30
