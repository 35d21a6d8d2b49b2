"""A SuperLink and SuperNodes on loopback, each site with data of its own; minutes in all."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

pytest.importorskip("flwr", reason='needs Flower: pip install "fedfault[flower]"')

from deployment import APP, BIN, Deployment, free_port
from fedfault.backbones.load import load as backbone
from fedfault.config import load
from fedfault.engine import begin, rounds
from fedfault.experiment import federation, prepare
from fedfault.flower.keys import make_keys
from fedfault.flower.site import alone, combined
from fedfault.language import LanguageTask
from fedfault.runs import RunFolder
from flowers import RUNS, same
from tiny import tiny_llama

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (BIN / "flower-superlink").is_file(), reason="flower-superlink is not beside this python"),
]

SETTINGS = {
    "experiment_name": "three",
    "federation": {"total_clients": 2, "num_rounds": 2},
    "training": {"local_steps": 2, "batch_size": 2},
    "model": {"max_length": 16, "precision": "fp32"},
    "evaluation": {"max_blocks": 4, "general": "none"},
    "metrics": {"memory": False},
    "flower": {"join_seconds": 300.0, "deadline": 300.0},
}


@pytest.fixture
def deployed(tmp_path, request):
    """A SuperLink and the folders of some sites: two, or as many as the test says."""
    deployment = Deployment(tmp_path, getattr(request, "param", 2))
    try:
        deployment.superlink()
        yield deployment
    finally:
        deployment.close()


def server(d: Deployment, **changes) -> Path:
    """The server's configuration: validation texts of its own, where results go."""
    (d.folder / "texts").mkdir(exist_ok=True)
    for i in range(6):
        (d.folder / "texts" / f"{i}.txt").write_text(f"the ship is on the sea and we add {i} numbers. " * 4)
    own = {"data": {"dataset": "text", "path": str(d.folder / "texts")}, "logging": {"results_dir": str(d.folder)}}
    merged = {**SETTINGS, **own}
    for section, more in changes.items():
        merged[section] = {**merged.get(section, {}), **more}
    file = d.folder / "server.yaml"
    file.write_text(yaml.safe_dump(merged))
    return file


def up(d: Deployment) -> None:
    for k in range(d.sites):
        d.register(k)
    for k in range(d.sites):
        d.supernode(k)


def records(d: Deployment, name="three") -> list[dict]:
    file = d.folder / name / "rounds.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []


def finished(d: Deployment, name="three") -> bool:
    manifest = d.folder / name / "manifest.json"
    return manifest.is_file() and json.loads(manifest.read_text())["status"] == "finished"


def is_that_of_one_process(folder: Path, config: Path, *settings: str) -> bool:
    """Whether the run's last adapter is that of a run in this process on the same sites' data."""
    exp = load(config, settings).experiment
    own = [folder / f"site{k}" / "site.yaml" for k in range(exp.federation.total_clients)]
    sites = [prepare(alone(combined(exp, load(file).experiment))) for file in own]
    sets, mixture = sites[0].federation.task.sets, sites[0].federation.task.mixture
    task = LanguageTask(sites[0].model, [p.split.train[0] for p in sites], sets, mixture)
    fed = replace(federation(exp, task), probes={})
    *_, (here, _) = rounds(fed, begin(fed))
    there, _ = RunFolder.open(Path(exp.logging.results_dir) / exp.experiment_name).load(task.layout, "cpu")
    assert (here.adapter.flat - fed.task.init(exp.seed).flat).norm() > 0
    return same(there.adapter.flat, here.adapter.flat)


PAGE = Path(__file__).parents[2] / "docs" / "deploy.md"


def test_the_page_about_deployment_trains_the_adapter_of_one_process(tmp_path):
    """Its commands as they stand, in one shell, on another port than the page's: three sites, SCAFFOLD."""
    blocks = re.findall(r"```bash\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    script = "set -e\ntrap 'kill $(jobs -p)' EXIT\n" + "\n".join(blocks).replace("9092", str(free_port()))
    script = script.replace("deploy/fedfault-app", str(APP)).replace("$((9100 + k))", f"$(({free_port()} + k))")
    environment = {**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}", "NO_COLOR": "1", "OMP_NUM_THREADS": "1"}
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(
            ["bash", "-c", script], cwd=tmp_path, env=environment, stdout=log, stderr=log, start_new_session=True
        )
        try:
            assert process.wait(900) == 0, (tmp_path / "log").read_text()[-4000:]
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
    assert is_that_of_one_process(tmp_path / "three", tmp_path / "three" / "server.yaml")


TWO = {"ranks": ["tiers={fast: {count: 1}, slow: {count: 1, compute_factor: 0.5}}"]}  # for two clients


def test_two_sites_train_the_adapter_of_one_process(deployed):
    """Every run but SCAFFOLD's, which the page makes, and a SuperLink that is killed."""
    up(deployed)
    config = server(deployed)
    for name in sorted(set(RUNS) - {"scaffold"}):
        settings = [*RUNS[name], *TWO.get(name, []), f"experiment_name={name}"]
        deployed.run(config, " ".join(f'"{s}"' for s in settings))
        deployed.wait_for(lambda name=name: finished(deployed, name), f"the run {name}")
        assert is_that_of_one_process(deployed.folder, config, *settings)
    ranks = [c["rank"] for c in records(deployed, "ranks")[-1]["clients"]]
    assert sum(ranks) == 4
    assert len(set(ranks)) == 2
    assert not (deployed.folder / "fedavg" / "split.json").exists()


@pytest.mark.parametrize("deployed", [4], indirect=True)
def test_who_may_not_take_part_is_refused_with_the_reason_on_both_sides(deployed):
    """Client 0 is there twice, client 2 has no data, client 3 another model; one has a wrong key, one a wrong authority."""
    d, other = deployed, deployed.folder / "other"
    make_keys(other, ["localhost"], ["second", "stranger"])
    for name in ("second", "stranger"):
        shutil.copy(other / name, d.folder / "keys")
    for text in (d.folder / "site2" / "data").iterdir():
        text.unlink()
    own = yaml.safe_load((d.folder / "site3" / "site.yaml").read_text())
    (d.folder / "site3" / "site.yaml").write_text(yaml.safe_dump({**own, "model": {"name": another_model(d.folder)}}))
    up(d)
    assert d.flwr("supernode", "register", str(other / "second.pub"), "loop").returncode == 0
    d.supernode(0, name="second", key="second")
    d.supernode(1, name="stranger", key="stranger")
    d.supernode(1, name="wrong-ca", key="n1", ca=other / "ca.crt")
    d.wait_for(lambda: "CERTIFICATE_VERIFY_FAILED" in d.log("wrong-ca"), "the refusal of the wrong certificate")
    d.wait_for(lambda: "Failed to initialize the connection" in d.log("stranger"), "the refusal of the key")
    assert "No SuperNode found with the given public key" in d.log("superlink")
    d.run(server(d, federation={"total_clients": 4, "num_rounds": 1}, flower={"join_seconds": 60.0}))
    d.wait_for(lambda: finished(d), "the run of the one that is left")
    log = d.log("run")
    assert re.search(r"node \d+ is refused: nodes \d+, \d+ all say that they are client 0; only one may", log)
    assert re.search(r"node \d+ is refused: .*site2/data", log)
    assert re.search(r"node \d+ is refused: (model|layout)", log)
    assert "all say that they are client 0" in d.log("node0")
    assert "all say that they are client 0" in d.log("second")
    for k in (2, 3):
        assert "fedfault: refused" in d.log(f"node{k}")
    assert [[c["client"] for c in r["clients"]] for r in records(d)] == [[], [1]]


def another_model(folder: Path) -> str:
    """A model that is not the server's, with its tokenizer."""
    tiny_llama().save_pretrained(folder / "model")
    backbone("micro", precision="fp32", device="cpu").tokenizer.save_pretrained(folder / "model")
    return str(folder / "model")


def test_a_node_that_is_killed_in_a_round_is_left_out_and_comes_back(deployed):
    d = deployed
    up(d)
    d.run(server(d, federation={"algorithm": "scaffold", "num_rounds": 6}))
    d.wait_for(lambda: len(records(d)) >= 2, "round 1")
    d.kill("node1")
    d.wait_for(lambda: any(r["events"] for r in records(d)), "the round without client 1")
    d.supernode(1)
    d.wait_for(lambda: finished(d), "the run")
    took_part = [1 in [c["client"] for c in r["clients"]] for r in records(d)]
    assert took_part[1]
    assert False in took_part[2:]
    assert took_part[-1]
    events = [e for r in records(d) for e in r["events"]]
    assert all(re.match(r"client 1 (\(node \d+\) is left out: |is not connected)", e) for e in events)


def test_a_superlink_that_is_killed_in_a_round_costs_that_round_and_no_more(deployed):
    """SCAFFOLD, to the numbers of a run without a kill: sites go back to the memory of the last round that counted."""
    d = deployed
    up(d)
    config = server(d, federation={"algorithm": "scaffold", "num_rounds": 3})
    d.run(config)
    d.wait_for(lambda: len(records(d)) >= 2, "round 1")
    d.kill("superlink")
    d.kill("run")
    assert not finished(d)
    before = len(records(d))
    d.superlink()
    d.run(config)
    d.wait_for(lambda: finished(d), "the run")
    assert "continuing after round" in d.log("run")
    assert [r["round"] for r in records(d)] == [0, 1, 2, 3]
    assert before >= 2
    assert list((d.folder / "site1" / "memory").glob("*-client-1.safetensors"))  # its own, and only its own
    assert not list((d.folder / "site1" / "memory").glob("*-client-0.safetensors"))
    assert is_that_of_one_process(d.folder, config)
