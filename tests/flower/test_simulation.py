"""Flower's own simulation, in a network namespace of its own: Ray listens on all interfaces."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import pytest

pytest.importorskip("flwr", reason='needs Flower: pip install "fedfault[flower]"')
pytest.importorskip("ray", reason='needs Ray: pip install "fedfault[flower]"')

from safetensors.torch import load_file

from fedfault import session
from fedfault.config import load
from fedfault.progress import Progress
from flowers import RUNS, same
from test_session import SMALL

ALONE = ["unshare", "-n", "--"]  # only loopback, and that only once it is up


def namespaces() -> bool:
    if not shutil.which("unshare") or not shutil.which("ip"):
        return False
    return subprocess.run([*ALONE, "ip", "link", "set", "lo", "up"], capture_output=True, check=False).returncode == 0


@pytest.mark.slow
@pytest.mark.skipif(not namespaces(), reason="this user may not make a network namespace (unshare -n)")
@pytest.mark.parametrize("run", RUNS)
def test_flowers_simulation_gives_the_adapter_of_one_process(run, tmp_path, monkeypatch):
    monkeypatch.setattr("fedfault.report.render.render", lambda path: path / "report.html")
    changes = [*SMALL, *RUNS[run], "model.precision=fp32", f"logging.results_dir={tmp_path}"]
    here = session.start(load("quickstart", [*changes, "experiment_name=here"]), Progress(quiet=True))
    words = [
        sys.executable,
        "-m",
        "fedfault",
        "flower",
        "run",
        "quickstart",
        *changes,
        "experiment_name=there",
        "--quiet",
    ]
    home = {"FLWR_HOME": str(tmp_path / "home"), "FLWR_TELEMETRY_ENABLED": "0", "RAY_USAGE_STATS_ENABLED": "0"}
    command = [*ALONE, "sh", "-c", 'ip link set lo up && exec "$@"', "-", *words]
    done = subprocess.run(command, env={**os.environ, **home}, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    mine, theirs = (load_file(tmp_path / n / "adapter/adapter_model.safetensors") for n in ("here", "there"))
    assert all(same(mine[n], theirs[n]) for n in mine)
    assert here.records()[-1].bytes_up > 0
