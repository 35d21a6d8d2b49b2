"""The scripts at the root: every flag is a setting of the one command line."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from fedfault import cli, flags
from fedfault.cli import training
from fedfault.config import load
from fedfault.studies import doors

ROOT = Path(__file__).parents[1]


@pytest.fixture
def ran(monkeypatch):
    """What `train.py` would have run."""
    seen = []
    monkeypatch.setattr(training, "run_once", lambda config, overrides: seen.append(load(config, overrides).experiment))
    return lambda *words: [flags.train(words), seen[-1]][1]


def test_the_examples_of_the_study_run_on_the_packaged_model(ran):
    exp = ran("--algorithm", "fedavg", "--partition", "topic_skew", "--num-rounds", "50")
    assert (exp.model.name, exp.data.dataset.name) == ("micro", "registers")
    assert (exp.federation.algorithm.name, exp.federation.num_rounds) == ("fedavg", 50)
    assert exp.data.partition.name == "topic_skew"
    exp = ran("--algorithm", "fedprox", "--partition", "style_skew", "--mu", "0.3")
    assert exp.federation.algorithm.options["mu"] == 0.3
    exp = ran("--algorithm", "scaffold", "--partition", "token_skew")
    assert (exp.federation.algorithm.name, exp.data.partition.name) == ("scaffold", "token_skew")


def test_a_configuration_keeps_its_own_model_and_flags_change_it(ran):
    exp = ran("--config", "configs/default.yaml")
    assert (exp.model.name, exp.data.dataset.name, exp.federation.num_rounds) == ("distilgpt2", "ag_news", 50)
    words = ["training.lr=1e-3", "--model", "micro", "--dataset", "registers", "--num-clients", "4", "--seed", "9"]
    exp = ran("--config", "configs/default.yaml", *words, "--device", "cpu", "--results-dir", "there", "--alpha", "0.7")
    assert (exp.model.name, exp.federation.total_clients, exp.seed, exp.device) == ("micro", 4, 9, "cpu")
    assert (exp.training.lr, exp.logging.results_dir, exp.data.partition.options["alpha"]) == (1e-3, "there", 0.7)


def test_other_data_without_a_configuration_start_from_the_defaults(ran):
    exp = ran("--dataset", "ag_news")
    assert (exp.experiment_name, exp.data.partition.name, exp.training.lr) == ("run", "iid", 5e-4)
    assert ran("--dataset", "registers").experiment_name == "train"
    assert ran("--dataset", "ag_news", "--config", "train").training.lr == 3e-3


def test_a_flag_that_names_the_partition_of_the_file_keeps_its_alpha(ran):
    assert ran("--partition", "topic_skew").data.partition.options["alpha"] == 0.1


@pytest.mark.parametrize("mode", ["quick", "main", "failure", "compare"])
def test_every_mode_is_a_study(monkeypatch, mode):
    seen = []
    monkeypatch.setattr(doors, "run_study", lambda *given, **more: seen.append((given, more)) or 0)
    words = ["--mode", mode, "--model", "micro", "--results-dir", "there", "seeds=2"]
    assert flags.run_experiments(words) == 0
    assert seen == [((mode, ["model.name=micro", "seeds=2"]), {"results_dir": "there", "jobs": 1})]


def test_analyze_writes_the_report_of_every_study(monkeypatch, tmp_path):
    written = []
    monkeypatch.setattr(doors, "write_report", written.append)
    for name in ("b", "a", "c"):
        (tmp_path / name).mkdir()
    for name in ("a", "b"):
        (tmp_path / name / "study.json").write_text("{}")
    assert flags.run_experiments(["--mode", "analyze", "--results-dir", str(tmp_path)]) == 0
    assert written == [tmp_path / "a", tmp_path / "b"]


BAD = [
    (flags.train, ["--algorithm", "fedavgg"], "did you mean 'fedavg'"),
    (flags.train, ["--num-rounds", "0"], "num_rounds"),
    (flags.train, ["--config", "no-such.yaml"], "no-such"),
    (flags.train, ["--no-such-flag", "1"], "no option '--no-such-flag'"),
    (flags.run_experiments, ["--mode", "analyze", "--results-dir", "/no/such"], "no study in /no/such"),
    (flags.run_experiments, ["--mode", "nothing"], "invalid choice"),
    (flags.run_experiments, ["--mode", "quick", "federation.algorithm=fedavg"], "varies in this study"),
]


@pytest.mark.parametrize(("script", "words", "says"), BAD, ids=[" ".join(w) for _, w, _ in BAD])
def test_bad_input_ends_with_a_message_and_status_two(tmp_path, monkeypatch, capsys, script, words, says):
    monkeypatch.chdir(tmp_path)
    try:
        status = cli.run_guarded(lambda: script(words))
    except SystemExit as e:  # argparse
        status = e.code
    assert status == 2
    assert says in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("script", ["train.py", "run_experiments.py"])
def test_the_scripts_are_doors_to_the_flags(tmp_path, script):
    words = [sys.executable, str(ROOT / script), "no-such-setting"]
    done = subprocess.run(words, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 2
    assert "not of the form key=value" in done.stderr
    assert "Traceback" not in done.stderr
