"""A SuperLink and SuperNodes on loopback, each site with data of its own; minutes in all."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("flwr", reason='needs Flower: pip install "fedfault[flower]"')

from deployment import BIN, DEPLOY, finished, free_port, records, server, up
from fedfault.config import load
from fedfault.flower.site import prepare_site
from fedfault.rounds.engine import begin, rounds
from fedfault.runs.folder import RunFolder
from fedfault.setup.federation import build_federation
from fedfault.tasks.language import LanguageTask
from flowers import RUNS, same

pytestmark = [
    pytest.mark.slow,
    pytest.mark.long,
    pytest.mark.skipif(not (BIN / "flower-superlink").is_file(), reason="flower-superlink is not beside this python"),
]


def is_that_of_one_process(folder: Path, config: Path, *settings: str) -> bool:
    """Whether the run's last adapter is that of a run in this process on the same sites' data."""
    exp = load(config, settings).experiment
    own = [folder / f"site{k}" / "site.yaml" for k in range(exp.federation.total_clients)]
    sites = [prepare_site(exp, load(file).experiment) for file in own]
    sets, mixture = sites[0].federation.task.sets, sites[0].federation.task.mixture
    task = LanguageTask(sites[0].model, [p.split.train[0] for p in sites], sets, mixture)
    fed = replace(build_federation(exp, task), probes={})
    *_, (here, _) = rounds(fed, begin(fed))
    there, _ = RunFolder.open(Path(exp.logging.results_dir) / exp.experiment_name).load(task.layout, "cpu")
    assert (here.adapter.flat - fed.task.init(exp.seed).flat).norm() > 0
    return same(there.adapter.flat, here.adapter.flat)


PAGE = Path(__file__).parents[2] / "docs" / "deploy.md"


def test_the_page_about_deployment_trains_the_adapter_of_one_process(tmp_path):
    """Its commands as they stand, in one shell, on another port than the page's: three sites, SCAFFOLD."""
    blocks = re.findall(r"```bash\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    script = "set -e\ntrap 'kill $(jobs -p)' EXIT\n" + "\n".join(blocks).replace("9092", str(free_port()))
    script = script.replace("deploy/", f"{DEPLOY}/").replace("$((9100 + k))", f"$(({free_port()} + k))")
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


HERE = {  # for two clients; what has no memory and no plan is as good in one round
    "fedavg": ["federation.num_rounds=1"],
    "fedprox": ["federation.num_rounds=1"],
    "ranks": ["tiers={fast: {count: 1}, slow: {count: 1, compute_factor: 0.5}}"],
}


def test_two_sites_train_the_adapter_of_one_process(deployed):
    """Every run but SCAFFOLD's, which the page makes, and a SuperLink that is killed."""
    up(deployed)
    config = server(deployed)
    for name, changes in HERE.items():
        settings = [*RUNS[name], *changes, f"experiment_name={name}"]
        deployed.run(config, " ".join(f'"{s}"' for s in settings))
        deployed.wait_for(lambda name=name: finished(deployed, name), f"the run {name}")
        assert is_that_of_one_process(deployed.folder, config, *settings)
    ranks = [c["rank"] for c in records(deployed, "ranks")[-1]["clients"]]
    assert sum(ranks) == 4
    assert len(set(ranks)) == 2
    assert not (deployed.folder / "fedavg" / "split.json").exists()


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
