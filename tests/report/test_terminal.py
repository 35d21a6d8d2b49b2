"""Text and tables on a terminal: no word is broken, no cell is cut."""

import sys

import pytest

from fedfault.report import terminal
from fedfault.report.terminal import draw_sparkline, echo, format_table, wrap_line
from fedfault.report.words import Table

WIDE = Table(
    ("client", "topic", "lowered the loss", "its own held-out texts"),
    [("0 cardiology department", "reports", "+0.1032", "−0.2238"), ("1", "letters", "−0.0557", "+0.1618")],
    text=(1,),
)


@pytest.mark.parametrize("width", [None, 120, 60, 40])
def test_a_table_keeps_every_word_and_breaks_none(width):
    lines = format_table(WIDE, width)
    found = sorted(" ".join(lines).split())
    assert found == sorted(" ".join([*WIDE.columns, *(cell for row in WIDE.rows for cell in row)]).split())
    if width in (120, 60):
        assert max(map(len, lines)) <= width


@pytest.mark.parametrize("width", [36, 32])
def test_rows_that_do_not_fit_beside_one_another_stand_below(width):
    lines = format_table(WIDE, width)
    assert max(map(len, lines)) <= width
    assert [line for line in lines if not line.startswith(" ")] == ["client  0 cardiology department", "client  1"]
    assert "  lowered the loss  +0.1032" in lines
    assert "  topic  letters" in lines


def test_numbers_stand_to_the_right_and_text_to_the_left():
    head, first, second = format_table(WIDE)
    assert head.index("topic") == first.index("reports") == second.index("letters")
    ends = [line.index("1032") + 4 if "1032" in line else line.index("0557") + 4 for line in (first, second)]
    assert ends == [head.index("lowered the loss") + len("lowered the loss")] * 2


def test_keys_of_settings_are_broken_before_a_table_becomes_lines():
    table = Table(
        ("run", "base", "iid"), [("data.partition.name", "topic_isolation", "iid"), ("final loss", "4.834", "4.836")]
    )
    lines = format_table(table, 36)
    assert max(map(len, lines)) <= 36
    assert lines[0].split() == ["run", "base", "iid"]
    assert lines[1].split() == ["data.", "topic_isolation", "iid"]
    assert [line.strip() for line in lines[2:4]] == ["partition.", "name"]
    assert format_table(table, 30)[:2] == ["run  data.partition.name", "  base  topic_isolation"]


def test_lines_of_a_cell_stay_apart():
    table = Table(("run", "after"), [("one-\ntwo", "1.5"), ("three", "2")])
    assert format_table(table) == ["run    after", "one-     1.5", "two", "three      2"]
    assert format_table(table, 12) == format_table(table)


def test_the_highest_loss_is_a_full_block_and_a_loss_that_is_no_number_a_cross():
    assert draw_sparkline([2.0, 1.0, float("nan"), 1.0]) == "█▁×▁"
    assert draw_sparkline([3.0]) == "▁"
    assert draw_sparkline(list(range(100)), width=2) == "▁█"


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("", [""]),
        ("a sentence that is longer", ["a sentence that is", "longer"]),
        (
            "  fedavg  means of what clients send",
            ["  fedavg  means of", "          what", "          clients", "          send"],
        ),
        ("    indented by four and longer", ["    indented by four", "    and longer"]),
        ("/a/path/that/is/longer/than/it", ["/a/path/that/is/longer/than/it"]),
    ],
)
def test_a_line_goes_on_below_where_its_text_began(line, told):
    assert wrap_line(line, 20) == told


def test_only_a_terminal_wraps(monkeypatch, capsys):
    line = "error: no such file " * 9
    echo(line, err=True)
    assert capsys.readouterr().err == f"{line}\n"
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "60")
    echo(line, err=True)
    err = capsys.readouterr().err
    assert max(map(len, err.splitlines())) <= 60
    assert err.split() == line.split()
    assert terminal.find_width() is None
