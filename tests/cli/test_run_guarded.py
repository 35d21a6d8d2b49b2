"""Bad input and what the system refuses end with a message and status 2."""

from __future__ import annotations

import errno

import pytest

from handmade import write

BAD = [
    (["run", "federation.algorithm=fedavgg"], "did you mean 'fedavg'"),
    (["run", "federation.num_round=3"], "did you mean 'num_rounds'"),
    (["run", "federation.num_rounds=-3"], "num_rounds"),
    (["run", "federation.num_rounds=zero"], "num_rounds"),
    (["run", "training.batch_size=0"], "batch_size"),
    (["run", "training.lr=.nan"], "lr"),
    (["run", "data.partition=topic_skw"], "did you mean 'topic_skew'"),
    (["run", "data.dataset=registres"], "did you mean 'registers'"),
    (["run", "tiers=[{name: a, count: 3}]"], "tiers: 3 a make 3 clients, but federation.total_clients is 10"),
    (["run", "deadline.seconds=1e-3"], "deadline.seconds 0.001: nobody can meet it"),
    (["run", "federation.scheduler=lite", "model.lora.r_max=4"], "is above 3 * r_max = 12"),
    (["run", "federation.scheduler=lite", "federation.scheduler.r_bar=1", "model.lora.r_min=2"], "below 3 * r_min = 6"),
    (["run", "clock.trace=none.csv"], "none.csv: no trace can be read"),
    (["run", "federation.scheduler.rank=9"], "federation.scheduler.rank has 9, but model.lora.r_max is 8"),
    (["run", "model.quantization=3bit"], "must be 'none', '8bit' or '4bit'"),
    (["run", "no-such-config.yaml"], "no-such-config"),
    (["run", "federation.total_clients=100000"], "100000 clients"),
    (["run", "model.name=/no/such/folder"], "no such folder"),
    (["run", "model.max_length=100000"], "takes at most 512"),
    (["run", "device=toaster"], "toaster"),
    (["run", "data.dataset=text", "data.path=/no/such/file.csv"], "/no/such/file.csv"),
    (["run", "data.dataset=registers", "data.path=/tmp"], "path"),
    (["run", "model.lora.target_modules=[q_porj]"], "did you mean 'q_proj'"),
    (
        ["run", "model.lora.target_modules=[all-linear]"],
        "all-linear stands alone, not in a list: model.lora.target_modules=all-linear",
    ),
    (["run", "evaluation.general=/no/such/folder"], "base_samples"),
    (["run", "experiment_name=../../etc"], "experiment_name"),
    (["resume", "/no/such/run"], "not a run folder"),
    (["report", "/no/such/run"], "/no/such/run"),
    (["fork", "/no/such/run", "--round", "1", "training.lr=0.1"], "not a run folder"),
    (["fork", "/no/such/run", "training.lr=0.1"], "--round"),
    (["compare", "/no/such/run"], "two runs at least"),
    (["compare", "/no/such/run", "/no/other"], "not a run folder"),
    (["list", "nonsense"], "nonsense"),
    (["study", "quik"], "did you mean 'quick'"),
    (["study", "quick", "federation.num_round=2"], "did you mean 'num_rounds'"),
    (["study", "quick", "--task", "13"], "runs 1 to 12"),
    (["study", "--jobs", "0", "quick"], "--jobs"),
    (["study", "report", "/no/such"], "not the folder of a study"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("words", "says"), BAD, ids=[" ".join(w) for w, _ in BAD])
def test_bad_input_ends_with_a_message_and_status_two(fedfault, tmp_path, monkeypatch, words, says):
    monkeypatch.chdir(tmp_path)
    status, out, err = fedfault(*words)
    assert status == 2
    assert says in err
    assert "Traceback" not in err
    assert out == ""
    assert not [p for p in tmp_path.iterdir() if p.name == "results"]


def test_an_output_folder_that_cannot_be_written_is_explained(fedfault, tmp_path):
    (tmp_path / "file").write_text("")
    status, _, err = fedfault("run", f"logging.results_dir={tmp_path / 'file'}")
    assert status == 2
    assert "choose another" in err


@pytest.mark.slow
def test_what_the_system_refuses_is_told_in_a_line(fedfault, tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    run = write(tmp_path / "run")
    monkeypatch.setattr("os.fsync", fail)
    status, out, err = fedfault("report", str(run))
    assert (status, out) == (2, "")
    assert "no space left on device; free some space and give the command again: what is finished is kept" in err
    assert err.strip().endswith("--out FOLDER writes the report elsewhere")


def test_an_error_of_the_system_is_told_by_every_command(fedfault, monkeypatch):
    def load(*_):
        raise PermissionError(errno.EACCES, "Permission denied", "a/file")

    monkeypatch.setattr("fedfault.config.load", load)
    status, out, err = fedfault("check")
    assert (status, out) == (2, "")
    assert err == "error: a/file: permission denied; choose a place that you may read and write\n"


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory")])
def test_memory_that_runs_out_is_told_in_a_line(fedfault, monkeypatch, error):
    def load(*_):
        raise error

    monkeypatch.setattr("fedfault.config.load", load)
    status, out, err = fedfault("check")
    assert (status, out) == (2, "")
    assert err.startswith("error: out of memory; choose a smaller model.name, or lower ")


def test_what_is_neither_stays_a_bug_with_its_trace(fedfault, monkeypatch):
    def load(*_):
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr("fedfault.config.load", load)
    with pytest.raises(RuntimeError, match="shapes"):
        fedfault("check")
