"""Looking on at a run: until it ends, in lines or on a screen, and without a change to its folder."""

import io

import filelock
import numpy as np
import pytest
from rich.console import Console

from fedfault.errors import UserError
from fedfault.monitor import Monitor
from fedfault.runs.read import read_run
from fedfault.session.follow import draw_screen, follow_run
from handmade import HISTORY, finding, lines, update, write


def follow(folder, wait=None, **options):
    out = io.StringIO()
    follow_run(folder, Console(file=out, width=80, **options), *([wait] if wait else []))
    return out.getvalue()


def contents(folder):
    return {f.name: f.read_bytes() for f in folder.iterdir()}


def test_a_run_is_followed_to_its_end_with_a_line_a_round(tmp_path):
    folder = write(tmp_path, HISTORY[:2], status="running")
    lock = filelock.FileLock(folder / ".lock")
    lock.acquire()
    looks = iter([HISTORY[:3], HISTORY])

    def go_on(seconds):
        if (there := next(looks, None)) is not None:
            lines(folder / "rounds.jsonl", there)
        else:
            update(folder / "manifest.json", status="finished")
            lock.release()

    text = follow(folder, go_on)
    assert [line.split()[1] for line in text.splitlines() if line.startswith("round")] == ["0/3", "1/3", "2/3", "3/3"]
    assert "next: fedfault" in text
    assert "\x1b" not in text


def test_a_run_that_was_interrupted_says_so_and_ends_the_looking(tmp_path):
    folder = write(tmp_path, HISTORY[:2], status="running")
    text = follow(folder)
    assert "interrupted after round 1" in text
    assert f"next: fedfault resume {folder}" in text


def test_findings_are_told_after_their_round(tmp_path):
    folder = write(tmp_path)
    lines(folder / "findings.jsonl", [finding(round=2, advice=["a lower rate"])])
    told = follow(folder).splitlines()
    assert "divergence" in told[told.index(next(t for t in told if t.startswith("round 2/3"))) + 1]


@pytest.mark.parametrize("status", ["begun", "running", "finished"])
def test_nothing_in_the_folder_is_changed(tmp_path, status):
    folder = write(tmp_path, status=status)
    before = contents(folder)
    follow(folder, force_terminal=True)
    assert contents(folder) == before


@pytest.mark.parametrize("width", [60, 80, 120])
def test_the_screen_fits(tmp_path, width):
    folder = write(tmp_path, HISTORY[:3], status="running")
    out = io.StringIO()
    Console(file=out, width=width).print(draw_screen(read_run(folder)))
    assert all(len(line) <= width for line in out.getvalue().splitlines())
    assert "2 of 3" in out.getvalue()


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(UserError, match="not a run folder"):
        follow_run(tmp_path, Console())


def test_a_run_that_another_program_trained_is_followed_without_a_speed(tmp_path):
    """Nobody told how long its rounds took, or how many there would be; it ended in a traceback."""
    rng = np.random.default_rng(0)
    with Monitor("mine", results_dir=str(tmp_path)) as m:
        m.log(0, loss=4.0)
        m.log(1, loss=3.9, updates=rng.normal(size=(3, 8)), clients=[0, 1, 2])
    told = [line for line in follow(tmp_path / "mine").splitlines() if line.startswith("round")]
    assert [line.split("  ")[:2] for line in told] == [["round 0", "loss 4.000"], ["round 1", "loss 3.900"]]
