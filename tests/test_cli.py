"""The commands as a user types them: what they print, and that bad input ends with a message and status 2."""

from __future__ import annotations

import errno
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fedfault import __version__, cli, registry
from handmade import write
from small import SMALL


@pytest.fixture(autouse=True)
def _few_figures(monkeypatch):
    """Two of the figures, which tests/report draws: seconds of every run."""
    from fedfault.report import gallery

    monkeypatch.setattr(gallery, "FIGURES", {name: gallery.FIGURES[name] for name in ("general", "gantt")})


@pytest.fixture
def fedfault(monkeypatch, capsys):
    """Run a command in this process: (status, standard output, standard error)."""

    def command(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["fedfault", *words])
        try:
            cli.main()
            status = 0
        except SystemExit as e:
            status = e.code or 0
        out = capsys.readouterr()
        return status, out.out, out.err

    return command


def test_help_answers_at_once():
    began = time.perf_counter()
    done = subprocess.run([sys.executable, "-m", "fedfault", "--help"], capture_output=True, text=True, check=True)
    seconds = time.perf_counter() - began
    assert all(
        word in done.stdout for word in ("run", "check", "resume", "fork", "compare", "mitigate", "report", "list")
    )
    assert seconds < 2  # 0.15 s on an idle machine; the bar is 0.5 s


@pytest.mark.parametrize("columns", ["60", "80", "120"])
def test_help_is_grouped_and_breaks_no_word(fedfault, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", columns)
    monkeypatch.setenv("NO_COLOR", "1")
    status, out, _ = fedfault("--help")
    assert status == 0
    assert max(map(len, out.splitlines())) <= int(columns)
    for word in ("One run", "What came of it", "Many runs", "Real sites", "statistics"):
        assert word in out
    for command in ("run", "resume", "fork", "check", "compare", "calibrate", "diagnose", "evaluate", "list"):
        status, out, _ = fedfault(command, "--help")
        assert (status, "Example:" in out, "\\[" in out) == (0, True, False)
        assert max(map(len, out.splitlines())) <= int(columns)
        assert not {"\x1b", "…"} & set(out)  # no colour, no word that is cut off


def test_the_version_is_printed(fedfault):
    assert fedfault("--version") == (0, f"fedfault {__version__}\n", "")


def test_help_imports_nothing_heavy():
    code = "import sys; sys.argv=['fedfault','--help']\nfrom fedfault import cli\ntry: cli.main()\nexcept SystemExit: pass\n"
    code += "print(sorted({'torch','transformers','peft','matplotlib','datasets','pydantic'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["runn"], "error: no command 'runn'; did you mean 'run'? (known: run, "),
        (["flower", "ru"], "error: no command 'ru'; did you mean 'run'? (known: run, keys)"),
        (
            ["run", "--lr", "1e-3"],
            "error: no option '--lr'; settings are written key=value, this one as training.lr=VALUE",
        ),
        (["run", "quickstart", "--overwite"], "error: no option '--overwite'; did you mean '--overwrite'?"),
        (["study", "--job", "2"], "error: no option '--job'; did you mean '--jobs'?"),
        (["--lr"], "error: no option '--lr'; settings are written key=value, this one as training.lr=VALUE"),
    ],
)
def test_a_word_that_no_command_knows_is_told_once_what_is_meant(fedfault, words, told):
    status, out, err = fedfault(*words)
    assert (status, out) == (2, "")
    assert err.startswith(told)
    assert err.lower().count("did you mean") <= 1


def test_a_plug_in_is_listed_described_and_checked(fedfault, tmp_path):
    source = str(Path(__file__).parent / "newcomers" / "sign_step.py")
    with registry.keep_plugins():
        status, out, _ = fedfault("list", "algorithm", "--plugin", source)
        assert (status, f"every coordinate: x <- x + server_lr sign(sum_k p_k y_k - x). [{source}]" in out) == (0, True)
        status, out, _ = fedfault("list", "sign_step", "--plugin", source)
        assert (status, out.splitlines()[0]) == (0, f"algorithm sign_step [{source}]")
        (tmp_path / "bad.py").write_text("def (")
        for words in (["run"], ["check"], ["list"], ["study", "quick"], ["calibrate"], ["flower", "run"], ["mitigate"]):
            status, out, err = fedfault(*words, "--plugin", str(tmp_path / "bad.py"))
            assert (status, out, "bad.py:1: syntax error: invalid syntax; correct the plug-in" in err) == (2, "", True)
        assert fedfault("contract", str(tmp_path / "bad.py"))[0] == 2


@pytest.mark.slow
def test_run_prints_plain_progress_and_where_the_report_is(fedfault, tmp_path):
    status, out, err = fedfault(
        "run", "quickstart", *SMALL, "federation.num_rounds=2", f"logging.results_dir={tmp_path}"
    )
    assert status == 0
    assert out.strip() == f"report: {tmp_path / 'quickstart' / 'report.html'}"
    lines = [line for line in err.splitlines() if line.startswith("round")]
    assert [line.split()[1] for line in lines] == ["0/2", "1/2", "2/2"]
    assert all("perplexity" in line and "loss" in line for line in lines)
    assert "tokens/s" in lines[1]
    assert "ETA" in lines[1]
    told = [line for line in err.splitlines() if not line.startswith("round")]
    assert (
        told[0]
        == "quickstart: 2 rounds of fedavg, 2 of 3 clients in each; micro on registers, split by topic_isolation; seed 0"
    )
    assert [line.split()[0] for line in told[-3:]] == ["verdict:", "Mixed", "next:"]

    same = fedfault("run", "quickstart", *SMALL, "federation.num_rounds=2", f"logging.results_dir={tmp_path}")
    assert same[0] == 2
    assert "exists already" in same[2]

    status, out, err = fedfault("run", "-q", *SMALL, "federation.num_rounds=1", f"logging.results_dir={tmp_path}")
    assert status == 0  # other settings under the same name: its own folder
    assert out.strip() == f"report: {tmp_path / 'quickstart-2' / 'report.html'}"
    assert err == ""

    named = ["experiment_name=quickstart", f"logging.results_dir={tmp_path}"]
    assert fedfault("run", *SMALL, "federation.num_rounds=1", *named)[0] == 2  # the user insists on the name

    (tmp_path / "quickstart" / "report.html").unlink()
    assert fedfault("report", str(tmp_path / "quickstart"))[0] == 0
    assert (tmp_path / "quickstart" / "report.html").exists()


@pytest.mark.slow
def test_a_fork_is_compared_with_its_parent(fedfault, tmp_path, monkeypatch):
    monkeypatch.setattr("fedfault.report.render.render_report", lambda path: path / "report.html")
    monkeypatch.chdir(tmp_path)
    assert fedfault("run", "-q", *SMALL, "federation.num_rounds=2")[0] == 0
    status, out, err = fedfault("fork", "results/quickstart", "--round", "1", "training.lr=0.1")
    assert (status, out.strip()) == (0, "report: results/quickstart-fork/report.html")
    assert "round 2, after round 1 of results/quickstart, with training.lr 0.003 -> 0.1" in err
    status, out, _ = fedfault("compare", "results/quickstart", "results/quickstart-fork")
    assert status == 0
    lines = out.splitlines()
    assert lines[0].split()[:3] == ["run", "training.lr", "final"]
    assert [line.split()[:2] for line in lines[1:3]] == [["quickstart", "0.003"], ["quickstart-fork", "0.1"]]
    assert lines[-1] == f"page: {tmp_path}/results/compare/quickstart-vs-quickstart-fork.html"
    assert (tmp_path / "results/compare/quickstart-vs-quickstart-fork.html").is_file()


def test_check_says_what_would_happen(fedfault):
    status, out, _ = fedfault("check", "quickstart", "federation.total_clients=6")
    assert status == 0
    for part in (
        "registers",
        "micro",
        "fedavg",
        "2 of 6 clients",
        "bytes down",
        "A code",
        "██",
        "share",
        "tokens: Jensen",
    ):
        assert part in out, part
    assert len([line for line in out.splitlines() if line[:6].strip().isdigit()]) == 6


def test_check_draws_the_split_on_request_and_replaces_nothing(fedfault, tmp_path):
    words = ["check", "data.max_samples=100", "federation.total_clients=3", "--plot"]
    status, out, _ = fedfault(*words, str(tmp_path / "split.png"))
    assert status == 0
    assert f"picture: {tmp_path / 'split.png'}" in out
    before = (tmp_path / "split.png").read_bytes()
    assert before.startswith(b"\x89PNG")
    status, _, err = fedfault(*words, str(tmp_path / "split.png"))
    assert status == 2
    assert "exists; give another file" in err
    assert (tmp_path / "split.png").read_bytes() == before
    assert fedfault(*words, str(tmp_path / "no" / "split.png"))[0] == 2


@pytest.mark.slow
def test_check_writes_nothing(fedfault, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert fedfault("check", "data.max_samples=100")[0] == 0
    assert not list(tmp_path.iterdir())


def test_list_shows_components_with_their_docs_and_options(fedfault):
    status, out, _ = fedfault("list")
    assert status == 0
    for part in ("fedavg", "topic_isolation", "registers", "smollm2-135m", "McMahan"):
        assert part in out
    assert "topic_skew" not in fedfault("list", "algorithm")[1]
    assert "convention: per_client, per_topic, balanced = per_client" in fedfault("list", "topic_skew")[1]
    assert "federation.algorithm=scaffold instead of fedavg" in fedfault("list", "client_drift")[1]
    status, _, err = fedfault("list", "fedavgg")
    assert status == 2
    assert "did you mean 'fedavg'" in err


@pytest.mark.slow
def test_default_runs_offline_with_the_embedded_model_and_corpus(fedfault, tmp_path):
    small = [s for s in SMALL if "participation" not in s]
    words = ["configs/default.yaml", "model.name=micro", "data.dataset=registers", f"logging.results_dir={tmp_path}"]
    status, out, _ = fedfault("run", "-q", *words, *small, "federation.num_rounds=1")
    assert status == 0
    assert "default" in out


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


def test_a_study_lists_its_runs_and_its_command_may_be_left_out(fedfault, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    status, out, _ = fedfault("study", "quick", "--plan", "seeds=1")
    assert status == 0
    assert [line.split("-seed0-")[0] for line in out.splitlines()] == [
        "1  iid_fedavg", "2  iid_scaffold", "3  topic_isolation_fedavg", "4  topic_isolation_scaffold",
    ]  # fmt: skip
    assert fedfault("study", "--plan", "quick", "seeds=1") == fedfault("study", "run", "quick", "--plan", "seeds=1")
    assert not list(tmp_path.iterdir())


def test_a_study_with_a_failed_run_ends_with_status_one(fedfault, tmp_path, monkeypatch):
    monkeypatch.setattr("fedfault.studies.doors.run_study", lambda *_, **__: 1)
    assert fedfault("study", "quick")[0] == 1


@pytest.fixture
def interruptible():
    """Ctrl-C interrupts, as it does not in a job that a shell has put into the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_to_stop_says_how_to_go_on(fedfault, interruptible, monkeypatch, tmp_path, number, status):
    before = signal.getsignal(number)
    monkeypatch.setattr("fedfault.session.start.start_run", lambda *args, **kwargs: signal.raise_signal(number))
    found, _, err = fedfault("run", f"logging.results_dir={tmp_path}")
    assert found == status
    assert "resume" in err
    assert signal.getsignal(number) == before


def test_a_second_signal_does_not_disturb_what_is_done_after_the_first(fedfault, monkeypatch, tmp_path):
    done = []

    def interrupted(*args, **kwargs):
        try:
            signal.raise_signal(signal.SIGTERM)
        finally:
            signal.raise_signal(signal.SIGTERM)
            done.append("closed")

    monkeypatch.setattr("fedfault.session.start.start_run", interrupted)
    assert fedfault("run", f"logging.results_dir={tmp_path}")[0] == 143
    assert done == ["closed"]


TIERED = [
    "data.max_samples=120",
    "model.lora.r_max=4",
    "evaluation.general=none",
    "evaluation.max_blocks=4",
    "federation.total_clients=4",
    "federation.participation_rate=1.0",
    "federation.num_rounds=2",
    "training.local_steps=2",
    "tiers={fast: {count: 2}, slow: {count: 2, compute_factor: 0.5, bandwidth_up_mbps: 1}}",
]


@pytest.mark.slow
def test_a_run_on_tiers_from_the_command_line_to_the_report(fedfault, tmp_path):
    scheduler = ["federation.scheduler=lite", "federation.scheduler.r_bar=2", "federation.aggregation=blockwise"]
    words = [*TIERED, *scheduler, "deadline.seconds=0.2", "deadline.straggler_policy=use_partial"]
    status, _, err = fedfault("run", *words, f"logging.results_dir={tmp_path}", "experiment_name=tiers")
    assert status == 0, err
    found = json.loads((tmp_path / "tiers" / "metrics.json").read_text())
    assert found["clock"]["seconds"] > 0
    assert set(found["clock"]["by_tier"]) == {"fast", "slow"}
    assert 0 <= found["clock"]["compliance"] <= 1
    records = [json.loads(line) for line in (tmp_path / "tiers" / "rounds.jsonl").read_text().splitlines()]
    assert all(len(r["turns"]) == 4 for r in records[1:])
    assert all(sum(t["rank"] for t in r["turns"]) == 8 for r in records[1:])
    assert (tmp_path / "tiers" / "plots" / "gantt.png").is_file()


def test_check_says_how_long_each_tier_would_take(fedfault):
    tiers = "tiers={fast: {count: 2}, slow: {count: 2, compute_factor: 0.5}}"
    status, out, err = fedfault("check", *TIERED[:-1], tiers)
    assert status == 0, err
    assert "tier       fast: 2 clients, a round takes them " in out
    assert "s with rank 1 and " in out


@pytest.mark.parametrize(
    ("words", "missing"),
    [(("run", "quickstart"), "ray"), (("keys", "k", "--host", "h", "--site", "s"), "cryptography")],
)
def test_what_needs_flower_says_how_to_get_it(fedfault, monkeypatch, tmp_path, words, missing):
    for module in ("ray", "cryptography"):
        monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.delitem(sys.modules, "fedfault.flower.keys", raising=False)
    monkeypatch.chdir(tmp_path)
    status, out, err = fedfault("flower", *words)
    assert (status, out) == (2, "")
    assert err == f'error: {missing} is not installed; pip install "fedfault[flower]"\n'
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("report.html", ["report"]),
        ("plots", ["report"]),
        ("rounds.jsonl", ["report"]),
        ("rounds.jsonl", ["diagnose"]),
        ("split.json", ["report"]),
    ],
)
def test_a_folder_where_a_file_should_be_or_a_file_for_a_folder_is_named(fedfault, tmp_path, name, words):
    run = write(tmp_path / "run")
    (run / name).unlink(missing_ok=True)
    (run / name).touch() if name == "plots" else (run / name).mkdir()
    status, out, err = fedfault(*words, str(run))
    assert (status, out) == (2, "")
    assert err.startswith(f"error: {run / name}: ")
    assert "move it away" in err
    assert len(err.splitlines()) == 1


def test_what_the_system_refuses_is_told_in_a_line(fedfault, tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", fail)
    status, out, err = fedfault("report", str(write(tmp_path / "run")))
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
