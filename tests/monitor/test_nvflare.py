"""`WatchEvents` in NVFlare's own simulator: silent on a job that learns, and a divergence is in the server's log."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

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
