"""What a notebook's cell shows while a run goes on."""

from __future__ import annotations

import re
import sys
from types import SimpleNamespace

import pytest

from fedfault.records import ClientRecord, RoundRecord, Score
from fedfault.session.progress import Progress, describe_round, open_cell


@pytest.fixture
def shown(monkeypatch):
    """What a stand-in of IPython, in a kernel, was told to show."""
    found: list[str] = []
    handle = SimpleNamespace(update=found.append)
    display = SimpleNamespace(HTML=str, display=lambda markup, display_id: handle)
    shell = SimpleNamespace(kernel=object())
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell, display=display))
    return found


def track(progress: Progress) -> None:
    with progress.track_rounds(2, []):
        for t in (1, 2):
            progress.show_round(RoundRecord(t, scores={"validation": Score(5.0 - t, 10)}, events=("a < b",)))


def test_a_notebook_has_one_bar_that_moves(shown, capsys):
    track(Progress())
    assert shown[0].startswith('<progress value="0" max="2"></progress> round 0/2')
    assert shown[-1].startswith('<progress value="2" max="2"></progress> round 2/2 &nbsp;loss 3.000')
    assert capsys.readouterr().err == "round 1: a < b\nround 2: a < b\n"


def test_a_notebook_keeps_no_frames_of_what_a_terminal_shows_for_a_while(shown, monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")  # the stream of a kernel says that it is a terminal
    with Progress().show_work("writing the results"):
        pass
    assert capsys.readouterr().err == ""
    assert shown == []


def test_a_quiet_run_shows_nothing(shown, capsys):
    track(Progress(quiet=True))
    assert shown == []
    assert capsys.readouterr().err == ""


def test_an_interactive_shell_is_no_notebook(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=SimpleNamespace))
    assert open_cell() is None
    track(Progress())
    assert "round 2/2  loss 3.000" in capsys.readouterr().err


@pytest.fixture(params=[60, 80, 120])
def terminal(request, monkeypatch, capsys):
    """A terminal of some width without colours: the lines that were written to it, frame after frame."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("COLUMNS", str(request.param))

    def read() -> list[str]:
        frames = re.sub(r"\x1b\[\d*A|\r", "\n", capsys.readouterr().err)
        lines = [line for line in re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", frames).splitlines() if line.strip()]
        assert max(map(len, lines)) <= request.param
        return [line.rstrip() for line in lines]

    return read


SCORES = {"validation": Score(5.4612, 10, metrics={"exact_match": 0.25, "answer_f1": 0.5, "rouge_l": 0.125})}


def test_a_terminal_shows_which_clients_of_a_round_train_and_what_follows(terminal):
    progress = Progress()
    with progress.track_rounds(3, []):
        progress.show_phase("evaluating the base")
        progress.bar.refresh()
        assert terminal()[-1] == "evaluating the base"
        progress.show_round(RoundRecord(1, scores=SCORES))
        progress.show_phase("clients 5 to 8 of 10, step 3 of 8")
        progress.bar.refresh()
        told = terminal()
        assert told[-1] == "round 2: clients 5 to 8 of 10, step 3 of 8"
        words = "loss 5.461 exact_match 0.250 answer_f1 0.500 rouge_l 0.125 ETA"
        assert words in " ".join(" ".join(told).split())  # lines break between words
        progress.show_round(RoundRecord(3, scores=SCORES))
    assert not any(line.startswith("round 2: clients") for line in terminal()[-4:])


SAID = (
    "no alarm (not calibrated): the average improved, but unevenly: in round 2 three of ten clients were worse off " * 2
)


@pytest.mark.parametrize("columns", [60, 80, 120])
def test_in_a_terminal_a_line_breaks_between_words(monkeypatch, capsys, columns):
    monkeypatch.setenv("FORCE_COLOR", "1")  # as if this were a terminal
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("COLUMNS", str(columns))
    Progress().say(SAID)
    err = capsys.readouterr().err
    assert max(map(len, err.splitlines())) <= columns
    assert err.split() == SAID.split()
    assert "\x1b" not in err


def test_in_a_file_a_line_stays_one(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "60")
    Progress().say(SAID)
    assert capsys.readouterr().err.splitlines() == [SAID]


@pytest.mark.parametrize(("tokens", "said"), [(24000, "2,000 tokens/s"), (4, "0.33 tokens/s")])
def test_a_slow_round_has_a_speed_too(tokens, said):
    client = ClientRecord(0, 1.0, 1, tokens, 1.0, 1.0, 1.0, 1, 1)
    record = RoundRecord(round=1, clients=(client,), seconds={"train": 12.0})
    assert describe_round(record, "tokens")[-1] == said
