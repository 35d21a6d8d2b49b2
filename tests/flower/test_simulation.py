"""Flower's own simulation, in a network namespace of its own: Ray listens on all interfaces."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("flwr", reason='needs Flower: pip install "fedfault[flower]"')

from safetensors.torch import load_file

from fedfault.config import load
from fedfault.session.progress import Progress
from fedfault.session.start import start_run
from flowers import RUNS, same
from small import SMALL

ALONE = ["unshare", "-n", "--"]  # only loopback, and that only once it is up


def namespaces() -> bool:
    if not shutil.which("unshare") or not shutil.which("ip"):
        return False
    return subprocess.run([*ALONE, "ip", "link", "set", "lo", "up"], capture_output=True, check=False).returncode == 0


ALL = """
import sys
from fedfault.cli import main
from flowers import RUNS
words = sys.argv[1:]
for name, run in RUNS.items():
    sys.argv = ["fedfault", "flower", "run", *words, *run, f"experiment_name={name}-there"]
    try:
        main()
    except SystemExit as e:
        if e.code:
            raise
"""


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason='needs Ray: pip install "fedfault[flower]"')
@pytest.mark.skipif(not namespaces(), reason="this user may not make a network namespace (unshare -n)")
def test_flowers_simulation_gives_the_adapters_of_one_process(tmp_path, monkeypatch):
    """FedAvg, FedProx, SCAFFOLD and scheduled ranks, one after the other in a process of their own."""
    changes = [*SMALL, "model.precision=fp32", f"logging.results_dir={tmp_path}"]
    home = {"FLWR_HOME": str(tmp_path / "home"), "FLWR_TELEMETRY_ENABLED": "0", "RAY_USAGE_STATS_ENABLED": "0"}
    path = {"PYTHONPATH": os.pathsep.join(filter(None, [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH")]))}
    words = ["--quiet", "--workers", "1", "quickstart", *changes]
    command = [*ALONE, "sh", "-c", 'ip link set lo up && exec "$@"', "-", sys.executable, "-c", ALL, *words]
    done = subprocess.run(
        command, env={**os.environ, **home, **path}, capture_output=True, text=True, timeout=900, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    monkeypatch.setattr("fedfault.report.render.render_report", lambda path: path / "report.html")
    for name, run in RUNS.items():
        here = start_run(load("quickstart", [*changes, *run, f"experiment_name={name}"]), Progress(quiet=True))
        mine, theirs = (load_file(tmp_path / n / "adapter/adapter_model.safetensors") for n in (name, f"{name}-there"))
        assert all(same(mine[n], theirs[n]) for n in mine), name
        assert here.read_records()[-1].bytes_up > 0
