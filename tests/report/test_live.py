"""The page between rounds: how often it is written, and that it never ends a run."""

import pytest

from fedfault.report import live
from fedfault.report.live import LivePage


class Bench:
    """A clock, and renderers that take a second for words and ten for the picture."""

    def __init__(self, monkeypatch):
        self.now, self.written, self.drawn = 0.0, [], 0
        monkeypatch.setattr(live, "render_live", self.write)
        monkeypatch.setattr(live, "render_picture", self.draw)

    def clock(self):
        return self.now

    def write(self, folder, figures, activity, refresh):
        self.now += 1.0
        self.written.append((activity, len(figures)))

    def draw(self, folder):
        self.now += 10.0
        self.drawn += 1
        return [{}]


@pytest.fixture
def bench(monkeypatch):
    return Bench(monkeypatch)


def test_a_page_takes_two_percent_of_a_long_run(bench, tmp_path):
    """Ten thousand rounds of 10 s: pictures take 1.5 % of the time, words half a percent."""
    page = LivePage(tmp_path, print, clock=bench.clock)
    for _ in range(10_000):
        bench.now += 10.0
        page.update()
    spent = len(bench.written) + 10.0 * bench.drawn
    assert 0.015 < spent / bench.now < 0.02


def test_the_first_page_comes_after_the_first_round_and_the_picture_later(bench, tmp_path):
    page = LivePage(tmp_path, print, clock=bench.clock)
    bench.now += 4.0
    page.update()
    assert bench.written == [("running", 0)]
    bench.now += 1000.0
    page.update()
    assert bench.written[-1] == ("running", 1)


def test_an_error_that_ends_the_run_is_told_in_a_page_that_was_shown(bench, tmp_path):
    def stop_after(seconds):
        with LivePage(tmp_path, print, clock=bench.clock) as page:
            bench.now += seconds
            page.update()
            raise KeyboardInterrupt

    for seconds, told in ((4.0, [("running", 0), ("interrupted", 0)]), (0.0, [])):
        bench.written.clear()
        with pytest.raises(KeyboardInterrupt):
            stop_after(seconds)
        assert bench.written == told


def test_a_page_that_cannot_be_written_is_said_once_and_ends_nothing(bench, tmp_path, monkeypatch):
    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(live, "render_live", fail)
    said = []
    page = LivePage(tmp_path, said.append, clock=bench.clock)
    for _ in range(3):
        bench.now += 1000.0
        page.update()
    assert len(said) == 1
    assert "disk full" in said[0]


def test_a_run_whose_report_is_not_wanted_has_no_page(bench, tmp_path):
    page = LivePage(tmp_path, print, wanted=False, clock=bench.clock)
    bench.now += 1000.0
    page.update()
    assert bench.written == []


@pytest.mark.slow
def test_the_picture_says_which_round_it_is_of(tmp_path):
    from fedfault.report.render import render_picture
    from handmade import record, write

    (figure,) = render_picture(write(tmp_path, [record(0, 6.0, news=5.0), record(1, 5.0, news=4.9)]))
    assert figure["text"].startswith("This picture is of round 1;")
