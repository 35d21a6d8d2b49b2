"""Trackers with stand-ins for the libraries: what they are told, and that none of them can disturb a run."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import threading
from types import SimpleNamespace

import pytest

from fedfault.errors import UserError
from fedfault.records import Finding, RoundRecord, Score
from fedfault.session import trackers
from fedfault.session.trackers import LIBRARIES, Trackers, collect_numbers

CONFIG = {"seed": 7, "model": {"name": "micro"}}
RECORDS = [RoundRecord(t, scores={"validation": Score(5.0 - t, 10)}, bytes_up=100 * t) for t in range(3)]
TOLD = [
    ("log", t, {"evaluation/loss": 5.0 - t, "evaluation/perplexity": math.exp(5.0 - t),
                "traffic/bytes_up": 100.0 * t, "traffic/bytes_down": 0.0})
    for t in range(3)
]  # fmt: skip

FAKE_TRACKIO = """
import enum, os, fake_calls
FOLDER = os.environ["TRACKIO_DIR"]
AlertLevel = enum.Enum("AlertLevel", "INFO WARN ERROR")
class Run:
    def alert(self, title, text, level, step):
        fake_calls.trackio.append((title, text, level.name))
    def log(self, metrics, step):
        fake_calls.trackio.append(("log", step, metrics))
    def finish(self):
        fake_calls.trackio.append(("finish",))
def init(**given):
    print("* Trackio project initialized")
    fake_calls.trackio.append(("start", FOLDER, given))
    return Run()
"""


class FakeWriter:
    """SummaryWriter: scalars come one by one, so a round is put together again at the flush."""

    def __init__(self, calls: list, folder: str, purge_step: int | None = None) -> None:
        self.calls, self.scalars = calls, {}
        self.file_writer = SimpleNamespace(add_summary=lambda summary: calls.append(("config", summary)))
        calls.append(("start", folder) if purge_step is None else ("purge", folder, purge_step))

    def add_text(self, tag: str, text: str, round: int = 0) -> None:
        self.calls.append((tag, text))

    def add_scalar(self, tag: str, value: float, step: int) -> None:
        self.scalars[tag] = value
        self.step = step

    def flush(self) -> None:
        self.calls.append(("log", self.step, dict(self.scalars)))
        self.scalars.clear()

    def close(self) -> None:
        self.calls.append(("finish",))


class FakeWandb:
    def __init__(self, calls: list) -> None:
        self.calls = calls

    def Settings(self, **given):
        return given

    def init(self, **given):
        print("wandb: hello")
        self.calls.append(("start", given))
        return SimpleNamespace(
            define_metric=lambda name, step_metric: self.calls.append(("config", name, step_metric)),
            log=self.log,
            finish=lambda: self.calls.append(("finish",)),
            summary=SummaryOf(self.calls),
        )

    def log(self, found, step: int) -> None:
        """Rounds that are trained once have the library's own steps; others say theirs."""
        round, rest = found["round"], {name: value for name, value in found.items() if name != "round"}
        self.calls.append(("log", step, rest) if round == step else ("again", step, round, rest))


class SummaryOf:
    def __init__(self, calls: list) -> None:
        self.calls = calls

    def __setitem__(self, name: str, text: str) -> None:
        self.calls.append((name, text))


class FakeMlflow:
    """MlflowClient and its entities, which are tuples here."""

    def __init__(self, calls: list) -> None:
        self.calls = calls
        self.Param = self.Metric = lambda *given: given

    def MlflowClient(self, **given):
        self.calls.append(("start", given))
        return self

    def get_experiment_by_name(self, name: str):
        return None

    def create_experiment(self, name: str) -> str:
        return "7"

    def create_run(self, experiment: str, run_name: str):
        self.calls.append(("config", experiment, run_name))
        return SimpleNamespace(info=SimpleNamespace(run_id="abc"))

    def log_batch(self, run: str, params=(), metrics=()) -> None:
        if metrics:
            self.calls.append(("log", metrics[0][3], {name: value for name, value, _, _ in metrics}))
        else:
            self.calls.append(("config", run, params))

    def set_tag(self, run: str, name: str, text: str) -> None:
        self.calls.append((name, text))

    def set_terminated(self, run: str) -> None:
        self.calls.append(("finish",))


@pytest.fixture
def calls(tmp_path, monkeypatch):
    """What the stand-ins were told, by library."""
    told = SimpleNamespace(trackio=[], tensorboard=[], wandb=[], mlflow=[])
    for name in ("TRACKIO_DIR", "WANDB_MODE", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "trackio.py").write_text(FAKE_TRACKIO)
    monkeypatch.syspath_prepend(tmp_path / "lib")
    monkeypatch.setitem(sys.modules, "fake_calls", told)
    writer = SimpleNamespace(SummaryWriter=lambda *given, **more: FakeWriter(told.tensorboard, *given, **more))
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", writer)
    summary = SimpleNamespace(hparams=lambda settings, scores: [(settings, scores)])
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard.summary", summary)
    monkeypatch.setitem(sys.modules, "wandb", FakeWandb(told.wandb))
    for name in ("tracking", "entities"):
        monkeypatch.setitem(sys.modules, f"mlflow.{name}", FakeMlflow(told.mlflow))
    yield told
    sys.modules.pop("trackio", None)


def track(folder, names=tuple(LIBRARIES), records=RECORDS) -> list[str]:
    """A run of some rounds; returns what the user is told."""
    said: list[str] = []
    t = Trackers(names, said.append)
    with t.open_run("mine", CONFIG, folder / "trackers"):
        for record in records:
            t.log(record)
    return said


@pytest.mark.parametrize("library", LIBRARIES)
def test_every_round_is_told_between_start_and_finish(calls, tmp_path, library):
    assert track(tmp_path, [library]) == []
    told = [c for c in getattr(calls, library) if c[0] != "config"]
    assert told[0][0] == "start"
    assert told[1:-1] == TOLD
    assert told[-1] == ("finish",)


@pytest.mark.parametrize("library", LIBRARIES)
def test_alarms_and_the_verdict_are_told_before_the_end(calls, tmp_path, library):
    t = Trackers([library], pytest.fail)
    with t.open_run("mine", CONFIG, tmp_path / "trackers"):
        t.log(RECORDS[0])
        t.tell(Finding("divergence", 0, "alarm", "the loss rises", 4.25, 1.5, 19))
        t.conclude(0, {"state": "failed", "sentence": "It diverged."})
    alarm, verdict = ("alarms/divergence", "alarm in round 0: the loss rises"), ("verdict", "failed: It diverged.")
    more = {"trackio": [(*alarm, "ERROR"), (*verdict, "INFO")]}.get(library, [alarm, verdict])
    more += [("mlflow.note.content", verdict[1])] * (library == "mlflow")  # the run's description
    assert getattr(calls, library)[-len(more) - 1 :] == [*more, ("finish",)]


def test_what_is_not_finite_is_left_out_and_names_are_flat():
    record = RoundRecord(
        3,
        scores={"topic/news": Score(800.0, 5), "client/0": Score(math.nan, 5)},
        probes={"hidden_cosine/2": 0.25, "update_cosine": math.inf},
        bytes_up=6,
        bytes_down=7,
        seconds={"train": 1.5, "probe/updates": 0.1},
    )
    assert collect_numbers(record) == {
        "evaluation_by_topic/news/loss": 800.0,  # its perplexity is beyond floating point
        "probes_by_layer/hidden_cosine/2": 0.25,
        "traffic/bytes_up": 6.0, "traffic/bytes_down": 7.0, "seconds/train": 1.5, "seconds/probe/updates": 0.1,
    }  # fmt: skip


def test_results_go_below_the_run_folder(calls, tmp_path):
    track(tmp_path)
    assert calls.trackio[0][1] == str(tmp_path / "trackers" / "trackio")
    # The tool shows the folder's name
    assert calls.tensorboard[0][1] == str(tmp_path / "trackers" / "tensorboard" / "mine")
    assert calls.wandb[0][1]["dir"] == str(tmp_path / "trackers")  # the library adds wandb/
    assert calls.mlflow[0][1] == {"tracking_uri": (tmp_path / "trackers" / "mlflow").as_uri()}
    assert not {"MLFLOW_ALLOW_FILE_STORE", "MLFLOW_DISABLE_TELEMETRY"} & set(os.environ)
    assert "TRACKIO_DIR" not in os.environ


def test_the_configuration_is_told(calls, tmp_path):
    track(tmp_path)
    assert calls.trackio[0][2]["config"] == calls.wandb[0][1]["config"] == CONFIG
    (settings, scores), (tag, text) = calls.tensorboard[1][1], calls.tensorboard[2]
    assert settings == {"seed": 7, "model.name": "micro"}
    assert "evaluation/loss" in scores
    assert tag == "config"
    assert '"name": "micro"' in text
    assert calls.mlflow[2] == ("config", "abc", [("seed", "7"), ("model.name", "micro")])


def test_two_runs_of_one_process_have_a_trackio_folder_each(calls, tmp_path):
    for run in ("one", "two"):
        track(tmp_path / run, ["trackio"])
    folders = [c[1] for c in calls.trackio if c[0] == "start"]
    assert folders == [str(tmp_path / run / "trackers" / "trackio") for run in ("one", "two")]


def test_a_continued_run_goes_on_in_the_same_tracker_run(calls, tmp_path):
    track(tmp_path, records=RECORDS[:1])
    track(tmp_path, records=RECORDS[1:])
    assert [c[2]["resume"] for c in calls.trackio if c[0] == "start"] == ["never", "allow"]
    assert len({c[1] for c in calls.tensorboard if c[0] == "start"}) == 1
    assert len({c[1]["id"] for c in calls.wandb if c[0] == "start"}) == 1
    assert sum(c[0] == "config" and c[1] == "7" for c in calls.mlflow) == 1  # the second start makes no run
    track(tmp_path / "other", ["wandb"])
    assert len({c[1]["id"] for c in calls.wandb if c[0] == "start"}) == 2


def test_rounds_that_are_trained_again_after_a_way_back_arrive(calls, tmp_path):
    """Weights & Biases ignores steps below its last one, also when the run goes on in another process."""
    track(tmp_path, ["wandb", "tensorboard"], [*RECORDS, *RECORDS[1:]])
    again = [c for c in calls.wandb if c[0] == "again"]
    assert again == [("again", 3, 1, TOLD[1][2]), ("again", 4, 2, TOLD[2][2])]
    assert ("config", "*", "round") in calls.wandb
    place = str(tmp_path / "trackers" / "tensorboard" / "mine")
    at = calls.tensorboard.index(("purge", place, 1))
    assert calls.tensorboard[at - 1] == ("finish",)
    assert [c for c in calls.tensorboard[at:] if c[0] == "log"] == TOLD[1:]
    track(tmp_path, ["wandb"], [RoundRecord(3, scores=RECORDS[0].scores)])
    assert calls.wandb[-2][:3] == ("again", 5, 3)


def test_the_libraries_own_variables_keep_their_meaning(calls, tmp_path, monkeypatch):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "all of mine"))
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    track(tmp_path)
    assert calls.mlflow[0][1] == {"tracking_uri": "http://127.0.0.1:1"}
    assert calls.trackio[0][1] == str(tmp_path / "all of mine")
    assert calls.wandb[0][1]["mode"] == "online"


def test_weights_and_biases_stays_offline_and_records_nothing_of_the_machine(calls, tmp_path):
    track(tmp_path, ["wandb"])
    given = calls.wandb[0][1]
    assert given["mode"] == "offline"
    assert given["settings"] == {
        "silent": True, "console": "off", "disable_git": True, "x_disable_meta": True, "x_disable_stats": True,
    }  # fmt: skip


def test_what_libraries_print_does_not_reach_standard_output(calls, tmp_path, capsys):
    track(tmp_path)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("library", LIBRARIES)
def test_a_library_that_is_not_installed_is_switched_off_with_one_line(calls, tmp_path, monkeypatch, library):
    (tmp_path / "lib" / "trackio.py").write_text("raise ModuleNotFoundError('trackio')")  # it has a process of its own
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    monkeypatch.setitem(sys.modules, "wandb", None)
    monkeypatch.setitem(sys.modules, "mlflow.tracking", None)
    (said,) = track(tmp_path, [library])
    assert said.startswith(f"warning: tracker {library} is switched off (ModuleNotFoundError: ")
    assert said.endswith("pip install 'fedfault[trackers]'); training goes on")


@pytest.mark.parametrize("when", ["__init__", "log", "finish"])
@pytest.mark.parametrize("error", [OSError("no space left\non the disk"), SystemExit(1)])
def test_a_tracker_that_fails_is_switched_off_with_one_line_and_the_others_go_on(
    calls, tmp_path, monkeypatch, when, error
):
    def fail(*args):
        raise error

    monkeypatch.setattr(trackers.Wandb, when, fail)
    (said,) = track(tmp_path)
    why = "OSError: no space left" if isinstance(error, OSError) else "SystemExit: 1"
    assert said == f"warning: tracker wandb is switched off ({why}); training goes on"
    assert [c for c in calls.tensorboard if c[0] == "log"] == TOLD
    assert [c for c in calls.trackio if c[0] == "log"] == TOLD


@pytest.mark.parametrize("when", ["__init__", "log", "finish"])
def test_a_tracker_that_does_not_answer_is_left_behind(calls, tmp_path, monkeypatch, when):
    stuck = threading.Event()
    monkeypatch.setattr(trackers, "SECONDS", 0.05)
    monkeypatch.setattr(trackers.Trackio, when, lambda *args: stuck.wait(10))
    (said,) = track(tmp_path)
    stuck.set()
    assert "trackio is switched off (TimeoutError: no answer within 0.05 seconds)" in said
    assert [c for c in calls.wandb if c[0] == "log"] == TOLD


def test_a_run_that_breaks_off_still_finishes_its_trackers(calls, tmp_path):
    t = Trackers(["wandb"], pytest.fail)
    with pytest.raises(KeyboardInterrupt), t.open_run("mine", CONFIG, tmp_path):
        raise KeyboardInterrupt
    assert calls.wandb[-1] == ("finish",)


def test_an_unknown_name_is_refused_with_a_suggestion():
    with pytest.raises(
        UserError, match=r"no tracker called 'tensorbord'; did you mean 'tensorboard'\? \(known: trackio"
    ):
        Trackers(["wandb", "tensorbord"], pytest.fail)


def test_no_tracker_is_no_work(tmp_path):
    assert track(tmp_path, []) == []
    assert not (tmp_path / "trackers").exists()


@pytest.mark.slow
def test_tensorboard_itself_reads_back_what_was_told(tmp_path):
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    assert track(tmp_path, ["tensorboard"], RECORDS[:2]) == track(tmp_path, ["tensorboard"], RECORDS[2:]) == []
    found = events.EventAccumulator(str(tmp_path / "trackers" / "tensorboard" / "mine")).Reload()
    scalars = found.Scalars("evaluation/loss")
    assert [(s.step, s.value) for s in scalars] == [(0, 5.0), (1, 4.0), (2, 3.0)]


@pytest.mark.slow
def test_trackio_itself_keeps_one_run_over_two_starts(tmp_path, monkeypatch):
    pytest.importorskip("trackio")
    monkeypatch.delenv("TRACKIO_DIR", raising=False)
    import sqlite3

    assert track(tmp_path, ["trackio"], RECORDS[:2]) == track(tmp_path, ["trackio"], RECORDS[2:]) == []
    with sqlite3.connect(tmp_path / "trackers" / "trackio" / "fedfault.db") as db:
        rows = db.execute("select run_name, step from metrics order by step").fetchall()
        assert rows == [("mine", 0), ("mine", 1), ("mine", 2)]
        assert db.execute("select count(distinct run_id) from metrics").fetchone() == (1,)


def test_labels_whose_metrics_are_not_defined_have_no_perplexity():
    record = RoundRecord(0, scores={"validation": Score(9.0, 4)})
    assert "evaluation/perplexity" not in collect_numbers(record, labelled=True)
    assert "evaluation/perplexity" in collect_numbers(record)


REAL = """
import json, os, sys
from pathlib import Path
from fedfault.records import Finding, RoundRecord, Score
from fedfault.session.trackers import Trackers
folder, said = Path(sys.argv[1]), []
records = [RoundRecord(t, scores={"topic/R&D": Score(5.0 - t, 10)}) for t in range(3)]
for some in (records[:2], records[2:]):  # stopped and continued
    t = Trackers(["mlflow"], said.append)
    with t.open_run("mine", {"seed": 7, "model": {"name": "micro"}}, folder):
        for record in some:
            t.log(record)
os.environ["MLFLOW_ALLOW_FILE_STORE"] = "true"
from mlflow.tracking import MlflowClient
client = MlflowClient(tracking_uri=(folder / "mlflow").as_uri())
(run,) = client.search_runs([client.get_experiment_by_name("fedfault").experiment_id])
history = client.get_metric_history(run.info.run_id, "evaluation_by_topic/R_D/loss")
tags = sorted(key for key in run.data.tags if key != "mlflow.runName")
print(json.dumps([said, run.info.run_name, run.data.params, [[m.step, m.value] for m in history], run.info.status, tags]))
"""


@pytest.mark.long
def test_the_real_mlflow_keeps_a_continued_run_in_files(tmp_path):
    """In a process of its own: the library starts threads."""
    pytest.importorskip("mlflow", reason="needs mlflow-skinny")
    done = subprocess.run([sys.executable, "-c", REAL, str(tmp_path)], capture_output=True, text=True, check=True)
    params = {"seed": "7", "model.name": "micro"}
    assert json.loads(done.stdout) == [[], "mine", params, [[0, 5.0], [1, 4.0], [2, 3.0]], "FINISHED", []]


def test_the_scores_of_the_mixture_sort_first():
    names = ("general", "validation", "personal", "topic/news", "client/0")
    found = collect_numbers(RoundRecord(1, scores={name: Score(4.0, 5) for name in names}, bytes_up=6))
    assert sorted(found)[:2] == ["evaluation/loss", "evaluation/perplexity"]
