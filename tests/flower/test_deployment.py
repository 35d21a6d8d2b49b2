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
from fedfault.config import load
from fedfault.engine import begin, rounds
from fedfault.experiment import federation, prepare
from fedfault.flower.keys import make_keys
from fedfault.flower.site import alone, combined
from fedfault.language import LanguageTask
from fedfault.runs import RunFolder
from flowers import RUNS, same

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (BIN / "flower-superlink").is_file(), reason="flower-superlink is not beside this python"),
]

SETTINGS = {
    "experiment_name": "three",
    "federation": {"total_clients": 3, "num_rounds": 2},
    "training": {"local_steps": 2, "batch_size": 2},
    "model": {"max_length": 16, "precision": "fp32"},
    "evaluation": {"max_blocks": 4, "general": "none"},
    "metrics": {"memory": False},
    "flower": {"join_seconds": 300.0, "deadline": 300.0},
}


@pytest.fixture
def deployed(tmp_path):
    deployment = Deployment(tmp_path)
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


def up(d: Deployment, clients=range(3)) -> None:
    for k in clients:
        d.register(k)
    for k in clients:
        d.supernode(k)


def records(d: Deployment, name="three") -> list[dict]:
    file = d.folder / name / "rounds.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []


def finished(d: Deployment, name="three") -> bool:
    manifest = d.folder / name / "manifest.json"
    return manifest.is_file() and json.loads(manifest.read_text())["status"] == "finished"


def is_that_of_one_process(d: Deployment, config: Path, *settings: str) -> bool:
    """Whether the run's last adapter is that of a run in this process on the same sites' data."""
    exp = load(config, settings).experiment
    sites = [prepare(alone(combined(exp, load(d.folder / f"site{k}" / "site.yaml").experiment))) for k in range(3)]
    sets, mixture = sites[0].federation.task.sets, sites[0].federation.task.mixture
    task = LanguageTask(sites[0].model, [p.split.train[0] for p in sites], sets, mixture)
    fed = replace(federation(exp, task), probes={})
    *_, (here, _) = rounds(fed, begin(fed))
    there, _ = RunFolder.open(d.folder / exp.experiment_name).load(task.layout, "cpu")
    moved = (here.adapter.flat - fed.task.init(exp.seed).flat).norm()
    assert moved > 0
    return same(there.adapter.flat, here.adapter.flat)


PAGE = Path(__file__).parents[2] / "docs" / "deploy.md"


def test_the_page_about_deployment_trains_an_adapter(tmp_path):
    """Its commands as they stand, in one shell, on another port than the page's."""
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
    assert (tmp_path / "three/results/three/adapter/adapter_model.safetensors").is_file()


def test_three_sites_train_the_adapter_of_one_process(deployed):
    up(deployed)
    config = server(deployed)
    for name, changes in RUNS.items():
        settings = [*changes, f"experiment_name={name}"]
        deployed.run(config, " ".join(f'"{s}"' for s in settings))
        deployed.wait_for(lambda name=name: finished(deployed, name), f"the run {name}")
        assert is_that_of_one_process(deployed, config, *settings)
    ranks = [c["rank"] for c in records(deployed, "ranks")[-1]["clients"]]
    assert sum(ranks) == 6
    assert len(set(ranks)) > 1
    assert list((deployed.folder / "site1" / "memory").glob("*-client-1.safetensors"))  # SCAFFOLD's, and only its own
    assert not (deployed.folder / "scaffold" / "split.json").exists()


def test_who_may_not_take_part_is_refused_with_the_reason_on_both_sides(deployed):
    d, other = deployed, deployed.folder / "other"
    make_keys(other, ["localhost"], ["stranger"])
    make_keys(d.folder / "more", ["localhost"], ["n3", "n4"])
    for k in (3, 4):
        shutil.copy(d.folder / "more" / f"n{k}", d.folder / "keys")
        shutil.copy(d.folder / "more" / f"n{k}.pub", d.folder / "keys")
        d.write_site(k)
    for text in (d.folder / "site2" / "data").iterdir():
        text.unlink()  # no data
    up(d)  # client 2 has no data
    d.register(3)
    d.supernode(3, client=0)  # a second client 0: both are refused
    d.supernode(4, client=2)  # its key is not registered
    d.supernode(1, name="wrong-ca", key="n1", ca=other / "ca.crt")
    d.wait_for(lambda: "CERTIFICATE_VERIFY_FAILED" in d.log("wrong-ca"), "the refusal of the wrong certificate")
    d.wait_for(lambda: "Failed to initialize the connection" in d.log("node4"), "the refusal of the key")
    assert "No SuperNode found with the given public key" in d.log("superlink")
    d.run(server(d, flower={"join_seconds": 60.0}))
    d.wait_for(lambda: finished(d), "the run of the one that is left")
    log = d.log("run")
    assert re.search(r"node \d+ is refused: nodes \d+, \d+ all say that they are client 0; only one may", log)
    assert re.search(r"node \d+ is refused: .*site2/data", log)
    assert "all say that they are client 0" in d.log("node0")
    assert "all say that they are client 0" in d.log("node3")
    assert "fedfault: refused" in d.log("node2")
    assert [[c["client"] for c in r["clients"]] for r in records(d)] == [[], [1], [1]]


def test_a_site_with_another_model_is_refused_and_nothing_is_aggregated(deployed):
    from tiny import tiny_llama

    d = deployed
    model = d.folder / "model"
    tiny_llama().save_pretrained(model)
    from fedfault.backbones.load import load as backbone

    backbone("micro", precision="fp32", device="cpu").tokenizer.save_pretrained(model)
    own = yaml.safe_load((d.folder / "site1" / "site.yaml").read_text())
    (d.folder / "site1" / "site.yaml").write_text(yaml.safe_dump({**own, "model": {"name": str(model)}}))
    up(d, [1])
    d.run(server(d, flower={"join_seconds": 45.0}))
    d.wait_for(lambda: "0 of 3 clients have joined" in d.log("run"), "the end of the run")
    assert "node" in d.log("run")
    assert "is refused: model" in d.log("run") or "is refused: layout" in d.log("run")
    assert "fedfault: refused" in d.log("node1")
    assert records(d) == []


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
    config = server(d, federation={"algorithm": "scaffold", "num_rounds": 4})
    d.run(config)
    d.wait_for(lambda: len(records(d)) >= 3, "round 2")
    d.kill("superlink")
    d.kill("run")
    assert not finished(d)
    before = len(records(d))
    d.superlink()
    d.run(config)
    d.wait_for(lambda: finished(d), "the run")
    assert "continuing after round" in d.log("run")
    assert [r["round"] for r in records(d)] == [0, 1, 2, 3, 4]
    assert before >= 3
    assert is_that_of_one_process(d, config)
