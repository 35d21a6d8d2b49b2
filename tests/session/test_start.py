"""Whole runs on the packaged model: what is written, what survives a kill, what is refused."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import small
from fedfault.config import load
from fedfault.errors import UserError
from fedfault.runs.folder import RunFolder
from fedfault.session.progress import Progress
from fedfault.session.start import resume_run, start_run
from small import final

PROBED = ["metrics.gradients=true", "metrics.representation=true", "metrics.attention=true"]
SMALL = [*small.SMALL, *PROBED]  # what probes remember survives a kill too
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("without_report")]


def start(folder: Path, *changes: str, **options) -> RunFolder:
    return small.start(folder, *PROBED, *changes, **options)


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> RunFolder:
    return start(tmp_path_factory.mktemp("results"), argv=["run", "quickstart"])


def test_a_run_leaves_everything_that_the_folder_promises(finished):
    names = {str(p.relative_to(finished.path)) for p in finished.path.rglob("*") if p.is_file()}
    assert names >= {
        "config.yaml", "manifest.json", "rounds.jsonl", "clients.parquet", "metrics.json", "split.json", "report.html",
        "heterogeneity.json", "adapter/adapter_config.json", "adapter/adapter_model.safetensors", "adapter/README.md",
        "checkpoint/round-00003.safetensors", "checkpoint/round-00003.json", "plots/loss_by_topic.png",
    }  # fmt: skip
    manifest = json.loads((finished.path / "manifest.json").read_text())
    assert manifest["status"] == "finished"
    assert manifest["command"] == "fedfault run quickstart"
    assert manifest["model"]["name"] == "micro"
    assert "Python" in manifest["corpus"]["source"]
    metrics = json.loads((finished.path / "metrics.json").read_text())
    assert metrics["rounds"] == 3
    assert metrics["final"]["validation"]["loss"] < metrics["initial"]["validation"]["loss"]
    assert metrics["bytes_up"] == 3 * 2 * 4 * manifest["model"]["trainable"]
    assert not [n for n in names if n.endswith(".tmp")]


def test_every_part_of_the_evaluation_is_there(finished):
    first, *_, last = finished.read_records()
    expected = {"validation", "general", "topic/news", "topic/manual", "topic/code", "client/0", "client/1", "client/2"}
    assert set(first.scores) == set(last.scores) == expected
    assert {"update_norm", "update_divergence", "pairwise_cosine"} <= set(last.probes)


def test_the_resolved_configuration_runs_as_it_is(finished, tmp_path):
    again = load(finished.path / "config.yaml", [f"logging.results_dir={tmp_path}"])
    folder = start_run(again, Progress(quiet=True))
    assert final(folder) == final(finished)


def test_a_second_run_of_the_same_name_is_refused_and_the_first_unharmed(finished):
    before = final(finished)
    with pytest.raises(UserError, match="exists already"):
        start(finished.path.parent)
    assert final(finished) == before


def test_a_failed_preparation_leaves_no_folder(tmp_path):
    with pytest.raises(UserError, match="clients for"):
        start(tmp_path, "federation.total_clients=100", "federation.participation_rate=0.1")
    assert not list(tmp_path.iterdir())


def kill_in_round(folder: Path, round: int) -> RunFolder:
    """A run in another process, killed without warning after some round's record and before or in the next save."""
    code = (
        "import os, signal, sys\n"
        "from fedfault.config import load\n"
        "from fedfault.runs.folder import RunFolder\n"
        "from fedfault.session.start import start_run\n"
        "from fedfault.session.progress import Progress\n"
        "keep = RunFolder.save\n"
        "def save(self, state, *rest):\n"
        "    if state.round == int(sys.argv[1]): os.kill(os.getpid(), signal.SIGKILL)\n"
        "    keep(self, state, *rest)\n"
        "RunFolder.save = save\n"
        "start_run(load('quickstart', sys.argv[2:]), Progress(quiet=True))\n"
    )
    words = [sys.executable, "-c", code, str(round), *SMALL, f"logging.results_dir={folder}"]
    done = subprocess.run(words, capture_output=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    return RunFolder(folder / "quickstart")


@pytest.mark.parametrize("round", [pytest.param(0, marks=pytest.mark.long), 2, pytest.param(3, marks=pytest.mark.long)])
def test_killed_and_resumed_ends_with_the_same_numbers_to_the_last_bit(finished, tmp_path, round):
    killed = kill_in_round(tmp_path, round)
    assert not (killed.path / "metrics.json").exists()
    resume_run(killed.path, Progress(quiet=True))
    assert final(killed) == final(finished)


@pytest.mark.long
def test_the_same_run_again_goes_on_where_it_was_killed(finished, tmp_path):
    killed = kill_in_round(tmp_path, 2)
    again = start(tmp_path)
    assert again.path == killed.path
    assert final(again) == final(finished)


def begun(finished: RunFolder, folder: Path, **changes) -> RunFolder:
    """A finished run as if it had been killed before its end, or with other changes of its manifest."""
    shutil.copytree(finished.path, folder / "quickstart")
    run = RunFolder(folder / "quickstart")
    config = (run.path / "config.yaml").read_text().replace(str(finished.path.parent), str(folder))
    (run.path / "config.yaml").write_text(config)
    run.write_json("manifest.json", run.read_json("manifest.json") | {"status": "running"} | changes)
    return run


def test_only_an_unfinished_run_of_the_same_settings_goes_on(finished, tmp_path, monkeypatch):
    resumed = []
    monkeypatch.setattr("fedfault.session.start.resume_run", lambda path, progress, **_: resumed.append(path))
    run = begun(finished, tmp_path)
    start(tmp_path)
    assert resumed.pop() == run.path
    with pytest.raises(UserError, match="exists already"):
        start(tmp_path, "training.local_steps=1")  # named, as it is by default
    for changes in (
        {"status": "finished"},
        {"status": "stopped"},
        {"parent": {"run": "another", "round": 1, "changes": {}}},
    ):
        run.write_json("manifest.json", run.read_json("manifest.json") | {"status": "running"} | changes)
        with pytest.raises(UserError, match="exists already"):
            start(tmp_path)
    assert not resumed


def test_a_run_whose_configuration_still_says_method_and_type_is_the_same_run(finished, tmp_path, monkeypatch):
    resumed = []
    monkeypatch.setattr("fedfault.session.start.resume_run", lambda path, progress, **_: resumed.append(path))
    config = begun(finished, tmp_path).path / "config.yaml"
    text = config.read_text()
    for section, old in (("partition", "method"), ("aggregation", "method"), ("scheduler", "type")):
        assert f"{section}:\n    name:" in text
        text = text.replace(f"{section}:\n    name:", f"{section}:\n    {old}:")
    config.write_text(text)
    start(tmp_path)
    assert resumed == [config.parent]


def test_an_unfinished_run_is_found_under_the_name_that_it_got(finished, tmp_path, monkeypatch):
    resumed = []
    monkeypatch.setattr("fedfault.session.start.resume_run", lambda path, progress, **_: resumed.append(path))
    other = begun(finished, tmp_path)
    other.path.rename(tmp_path / "quickstart-2")
    config = tmp_path / "quickstart-2/config.yaml"
    config.write_text(config.read_text().replace("experiment_name: quickstart", "experiment_name: quickstart-2"))
    begun(finished, tmp_path)
    (tmp_path / "quickstart/config.yaml").write_text("other: settings\n")
    start(tmp_path, named=False)
    assert resumed == [tmp_path / "quickstart-2"]


def test_overwrite_starts_an_unfinished_run_again(finished, tmp_path, monkeypatch):
    monkeypatch.setattr("fedfault.session.start.resume_run", lambda path, progress, **_: pytest.fail("resumed"))
    run = begun(finished, tmp_path, started="long ago")
    start(tmp_path, overwrite=True)
    assert run.read_json("manifest.json")["started"] != "long ago"
    assert final(run) == final(finished)


def test_a_run_that_is_going_on_elsewhere_is_left_alone(finished, tmp_path):
    run = begun(finished, tmp_path)
    with run.lock(), pytest.raises(UserError, match="in use by another process"):
        start(tmp_path)


@pytest.mark.long
def test_kill_at_any_moment_then_resume(finished, tmp_path):
    words = [sys.executable, "-m", "fedfault", "run", "-q", "quickstart", *SMALL, f"logging.results_dir={tmp_path}"]
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    path = tmp_path / "quickstart" / "rounds.jsonl"
    while not path.exists() and process.poll() is None:
        time.sleep(0.01)
    time.sleep(0.2)
    process.send_signal(signal.SIGKILL)
    process.wait()
    folder = resume_run(path.parent, Progress(quiet=True))
    assert final(folder) == final(finished)


@pytest.mark.draws
def test_resuming_a_finished_run_brings_back_what_is_missing(finished, monkeypatch):
    monkeypatch.setattr("fedfault.report.gallery.FIGURES", {})
    before = final(finished)
    os.unlink(finished.path / "report.html")
    os.unlink(finished.path / "clients.parquet")
    resume_run(finished.path, Progress(quiet=True))
    assert (finished.path / "report.html").exists()
    assert (finished.path / "clients.parquet").exists()
    assert final(finished) == before


def test_resuming_with_other_data_is_refused(finished):
    manifest = json.loads((finished.path / "manifest.json").read_text())
    broken = json.loads(json.dumps(manifest))
    broken["corpus"]["fingerprint"] = "another"
    (finished.path / "manifest.json").write_text(json.dumps(broken))
    try:
        with pytest.raises(UserError, match="the corpus is not the one"):
            resume_run(finished.path, Progress(quiet=True))
    finally:
        (finished.path / "manifest.json").write_text(json.dumps(manifest))


def test_a_partial_run_trains_and_exports(tmp_path):
    folder = start(tmp_path, "model.trainable=partial", "model.partial.last_blocks=2", "federation.num_rounds=2")
    assert (folder.path / "adapter/trained.safetensors").is_file()
    first, *_, last = folder.read_records()
    assert last.scores["validation"].loss < first.scores["validation"].loss


def test_the_micro_adapter_in_peft_has_the_run_s_own_perplexity(finished):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    from fedfault.backbones.load import MICRO
    from fedfault.setup.experiment import prepare

    p = prepare(load(finished.path / "config.yaml").experiment)
    base = AutoModelForCausalLM.from_pretrained(MICRO, dtype=torch.float32)
    model = PeftModel.from_pretrained(base, finished.path / "adapter")
    blocks = p.federation.task.sets["topic/news"]
    with torch.no_grad():
        logits = model(input_ids=blocks.ids[:, :-1]).logits.log_softmax(-1)
    each = -logits.gather(-1, blocks.ids[:, 1:, None])[..., 0]
    nll = float((each * blocks.mask).sum() / blocks.mask.sum())
    assert nll == pytest.approx(finished.read_records()[-1].scores["topic/news"].loss, rel=1e-5)
