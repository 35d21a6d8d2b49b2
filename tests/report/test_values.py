"""The numbers that a page knows are those that are drawn, and they are where it thinks."""

import json
import re
from dataclasses import replace

import pytest

from fedfault.report.figures.clients import draw_clients
from fedfault.report.figures.heat import draw_participation
from fedfault.report.figures.losses import draw_loss_by_topic
from fedfault.report.inline import draw_inline
from fedfault.report.render import render_report
from fedfault.report.theme import LIGHT
from fedfault.report.values import collect_values, list_axes, read_values
from handmade import clocked, make, turn, write

RUN = make(rounds=3)  # topic t has the loss 4 - r/10 + t/5 in round r


def test_every_line_of_a_topic_is_known_with_its_values():
    panel = read_values(draw_loss_by_topic(RUN), LIGHT)[0]
    series = {s["name"]: s for s in panel["series"]}
    assert series["news"]["x"] == [0, 1, 2, 3]
    assert series["code"]["y"] == [4.2, 4.1, 4, 3.9]
    assert series["mixture"]["colour"] == "ink"
    assert panel["rounds"]


def test_a_cell_is_known_by_its_client_and_its_round():
    cells = read_values(draw_participation(RUN), LIGHT)[0]["cells"]
    row, column = cells["rows"].index("client 2"), cells["columns"].index("round 1")
    assert cells["values"][row][column] == 4.3  # the loss of client 2 in round 1
    assert cells["values"][cells["rows"].index("client 0")][column] is None  # clients 1 and 2 trained


def test_a_value_that_is_not_a_number_is_none():
    run = make(loss=lambda r, t: float("nan") if r == 2 else 4.0)
    assert read_values(draw_loss_by_topic(run), LIGHT)[0]["series"][0]["y"] == [4, 4, None, 4]


@pytest.mark.slow
@pytest.mark.parametrize("shape", ["wide", "narrow"])
def test_a_line_is_drawn_where_the_page_puts_its_values(shape):
    figure, inline = draw_inline(RUN, "clients", draw_clients)
    drawing = next(d for d in inline.drawings if d.shown == shape)
    place, series = drawing.axes[0], inline.values[0]["series"][0]
    left, top, width, height = place["box"]
    x = [left + width * (v - place["x"][0]) / (place["x"][1] - place["x"][0]) for v in series["x"]]
    y = [top + height * (1 - (v - place["y"][0]) / (place["y"][1] - place["y"][0])) for v in series["y"]]
    group = re.search(r'data-part="line 0 0"><path d="([^"]*)"', drawing.body)[1]
    drawn = [tuple(map(float, point.split())) for point in re.findall(r"[-\d.]+ [-\d.]+", group)]
    assert drawn[0] == pytest.approx((x[0], y[0]), abs=0.05)
    assert drawn[-1] == pytest.approx((x[-1], y[-1]), abs=0.05)
    assert list_axes(figure)


def test_rounds_can_be_counted_in_what_was_measured():
    about = collect_values(RUN)
    assert [(s["name"], s["values"]) for s in about["scales"]] == [("bytes", [0, 6000, 12000, 18000])]
    timed = collect_values(clocked([[turn(0), turn(1)], [turn(0, seconds=2.0)], [turn(1)]]))
    assert next((s["name"], s["values"]) for s in timed["scales"]) == ("simulated time", [0, 1, 3, 4])
    silent = replace(RUN, records=tuple(replace(r, bytes_up=0, bytes_down=0) for r in RUN.records))
    assert collect_values(silent)["scales"] == []


def test_every_client_is_known_by_number_and_name_with_its_losses():
    named = replace(RUN, split={**RUN.split, "names": ["Ann", "Bob", "Eve", "Dan"]})
    about = collect_values(named)
    assert about["clients"][2] == "client 2 (Eve)"
    assert about["own"]["losses"][2] == [4.4, 4.3, 4.2, 4.1]


@pytest.mark.long
def test_names_cannot_leave_the_element_that_holds_the_numbers(tmp_path):
    page = render_report(write(tmp_path / "run", topics=("</script><b>", "code")), dpi=20).read_text(encoding="utf-8")
    assert page.count("</script>") == 2
    text = re.search(r'<script type="application/json" id="values">(.*?)</script>', page, re.DOTALL)[1]
    assert (
        "</script><b>" in json.loads(text)["figures"]["loss_by_topic"]["panels"][0]["series"][0]["name"]
        or "<" not in text
    )
    assert json.loads(text)["rounds"] == [0, 1, 2, 3]
