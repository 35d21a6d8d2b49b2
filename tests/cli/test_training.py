"""`run`, `fork` and `check` as a user types them: what they print and write."""

from __future__ import annotations

import json

import pytest

from small import SMALL


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


@pytest.mark.long
def test_a_fork_is_compared_with_its_parent(fedfault, tmp_path, monkeypatch):
    monkeypatch.setattr("fedfault.report.render.render_report", lambda path: path / "report.html")
    monkeypatch.chdir(tmp_path)
    assert fedfault("run", "-q", *SMALL, "federation.num_rounds=2")[0] == 0
    status, out, err = fedfault("fork", "results/quickstart", "--round", "1", "training.lr=0.1")
    assert (status, out.strip()) == (0, "report: results/quickstart-fork/report.html")
    assert "round 2, after round 1 of results/quickstart, with training.lr 0.003 -> 0.1" in err
    status, out, _ = fedfault("compare", "results/quickstart", "results/quickstart-fork")
    assert status == 0
    said, _, rest = out.partition("\n\n")
    assert said.startswith("quickstart-fork ends ")
    lines = rest.splitlines()
    assert lines[0].split()[:3] == ["run", "training.lr", "final"]
    assert [line.split()[:2] for line in lines[1:3]] == [["quickstart", "0.003"], ["quickstart-fork", "0.1"]]
    assert lines[-1] == f"page: {tmp_path}/results/compare/quickstart-vs-quickstart-fork.html"
    assert (tmp_path / "results/compare/quickstart-vs-quickstart-fork.html").is_file()


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
def test_default_runs_offline_with_the_embedded_model_and_corpus(fedfault, tmp_path):
    small = [s for s in SMALL if "participation" not in s]
    words = ["configs/default.yaml", "model.name=micro", "data.dataset=registers", f"logging.results_dir={tmp_path}"]
    status, out, _ = fedfault("run", "-q", *words, *small, "federation.num_rounds=1")
    assert status == 0
    assert "default" in out


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
@pytest.mark.long
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


@pytest.mark.slow
def test_check_says_how_long_each_tier_would_take(fedfault):
    tiers = "tiers={fast: {count: 2}, slow: {count: 2, compute_factor: 0.5}}"
    status, out, err = fedfault("check", *TIERED[:-1], tiers)
    assert status == 0, err
    assert "tier        fast: 2 clients, a round takes them " in out
    assert "s with rank 1 and " in out


@pytest.mark.slow
def test_check_says_first_what_it_will_look_at_and_its_lines_go_on_below_their_text(fedfault):
    from fedfault.report.terminal import wrap_line

    status, out, err = fedfault("check", *TIERED[:-1])
    assert status == 0, err
    assert err.splitlines()[0].startswith("quickstart: 2 rounds of fedavg")
    labelled = [line for line in out.splitlines() if line.startswith(("partition ", "federation ", "tokens "))]
    assert len(labelled) == 3
    for line in labelled:
        assert all(part.startswith(" " * 12) for part in wrap_line(line, 40)[1:])
    assert "{" not in labelled[0]  # options as they are typed, not as Python shows them
