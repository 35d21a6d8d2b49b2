"""`WatchEvents` in NVFlare's own simulator: silent on a job that learns, and a divergence is in the server's log."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import fedfault as ff

pytest.importorskip("nvflare", reason="needs NVFlare: pip install nvflare, in an environment of its own")


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("name", ["good", "bad:broken"])
def test_a_job_of_nvflare_is_watched_from_its_server(tmp_path, name):
    script = Path(__file__).with_name("nvflared.py")
    command = [sys.executable, str(script), str(tmp_path / "workspace"), str(tmp_path / "results"), name]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    run = ff.open(tmp_path / "results" / name.partition(":")[0])
    assert run.status == "finished"
    first = run.data.records[1]
    assert [c.client for c in first.clients] == [0, 1, 2]
    assert first.probes["server_norm"] == pytest.approx(first.probes["update_norm"])
    assert run.data.records[0].scores["validation"].loss == pytest.approx(3)  # of zeros, as far from 3
    alarms = {f.detector for f in run.data.findings if f.level == "alarm"}
    assert ("divergence" in alarms) if "broken" in name else not run.data.findings
    assert ("alarm: divergence" in done.stdout + done.stderr) == ("broken" in name)


def test_a_client_with_other_parameters_is_named(tmp_path):
    """With it the updates, clients and weights of the round went, without a word."""
    from nvflare.apis.fl_context import FLContext
    from nvflare.app_common.abstract.model import ModelLearnableKey
    from nvflare.app_common.app_constant import AppConstants

    from fedfault.monitor.nvflare import WatchEvents

    watch = WatchEvents("mine", str(tmp_path))
    watch._monitor = ff.Monitor("mine", results_dir=tmp_path, say=lambda text: None)
    watch._numbers, watch._sent = {"site-1": 0, "site-2": 1}, {"w": np.zeros(3)}
    watch._got, watch._sizes = {0: {"w": np.ones(3)}, 1: {"w": np.ones(4)}}, {0: 1.0, 1: 3.0}
    context = FLContext()
    context.set_prop(AppConstants.CURRENT_ROUND, 0, private=True, sticky=False)
    learned = {ModelLearnableKey.WEIGHTS: {"w": np.full(3, 0.5)}}
    context.set_prop(AppConstants.GLOBAL_MODEL, learned, private=True, sticky=False)
    watch._end_round(context)
    watch._log_held(context)
    last = ff.open(tmp_path / "mine").data.records[-1]
    assert last.events == ("updates not measured, as parameters are not those that were sent: client 1 (site-2)",)
    assert [(c.client, c.weight) for c in last.clients] == [(0, 0.25), (1, 0.75)]
    assert last.probes["server_norm"] == pytest.approx(0.75**0.5)
