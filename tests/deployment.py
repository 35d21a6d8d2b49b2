"""SuperLink and SuperNodes on loopback, as docs/deploy.md starts them: TLS, a key for each node, a folder for each site."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import yaml

from fedfault.flower.keys import make_keys

DEPLOY = Path(__file__).parents[1] / "deploy"
BIN = Path(sys.executable).parent
SETTINGS = {
    "experiment_name": "three",
    "federation": {"total_clients": 2, "num_rounds": 2},
    "training": {"local_steps": 2, "batch_size": 2},
    "model": {"max_length": 16, "precision": "fp32"},
    "evaluation": {"max_blocks": 4, "general": "none"},
    "metrics": {"memory": False},
    "flower": {"join_seconds": 300.0, "deadline": 300.0},
}
POEMS = (
    "the sea is wide and the ship is small",
    "a cat sat on the mat and ate a rat",
    "we add two numbers and return one",
)


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class Deployment:
    """Processes that this object starts and ends, and nothing else: every one in a group of its own."""

    def __init__(self, folder: Path, sites: int) -> None:
        self.folder, self.sites = folder, sites
        self.port = free_port()
        self.running: dict[str, subprocess.Popen] = {}
        make_keys(folder / "keys", ["localhost", "127.0.0.1"], [f"n{k}" for k in range(sites)])
        (folder / "home").mkdir()
        link = f'[superlink.loop]\naddress = "127.0.0.1:{self.port}"\nroot-certificates = "{folder}/keys/ca.crt"\n'
        (folder / "home" / "config.toml").write_text(link)
        quiet = {"FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1", "NO_COLOR": "1"}
        mine = {"FLWR_HOME": str(folder / "home"), "PATH": f"{BIN}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
        self.environment = {**os.environ, **quiet, **mine, "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.3"}
        for k in range(sites):
            self.write_site(k)

    def write_site(self, k: int, documents: int = 12, **data) -> Path:
        """The folder of a site: texts of its own, and its own configuration."""
        site = self.folder / f"site{k}"
        (site / "data").mkdir(parents=True, exist_ok=True)
        for i in range(documents):
            (site / "data" / f"{i}.txt").write_text(f"{POEMS[k % 3]} {i} times. " * (3 + k + i % 2))
        own = {"data": {"dataset": "text", "path": str(site / "data"), "held_out": 0.2, **data}}
        (site / "site.yaml").write_text(yaml.safe_dump(own))
        return site / "site.yaml"

    def start(self, name: str, *command: str) -> subprocess.Popen:
        """A process in a group of its own, its output in NAME.log; an older one of that name is ended."""
        if name in self.running:
            self.kill(name)
        with (self.folder / f"{name}.log").open("a") as log:
            made = subprocess.Popen(
                command, cwd=self.folder, env=self.environment, stdout=log, stderr=log, start_new_session=True
            )
        self.running[name] = made
        return made

    def superlink(self) -> None:
        self.start("superlink", f"{DEPLOY}/superlink.sh", str(self.folder), "127.0.0.1", str(self.port))
        self.wait_for(self.answers, "the SuperLink")

    def answers(self) -> bool:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
            return True
        return False

    def register(self, k: int) -> None:
        done = self.flwr("supernode", "register", f"{self.folder}/keys/n{k}.pub", "loop")
        assert done.returncode == 0, done.stdout + done.stderr

    def supernode(self, k: int, name: str | None = None, key: Path | None = None) -> None:
        """The node of site k; with another `key`, beside which is the certificate of the authority that it trusts."""
        link, site = f"127.0.0.1:{self.port}", f"{self.folder}/site{k}/site.yaml"
        own = str(key or self.folder / "keys" / f"n{k}")
        self.start(name or f"node{k}", f"{DEPLOY}/site.sh", link, str(k), site, own, str(free_port()))

    def flwr(self, *words: str, seconds: float = 60) -> subprocess.CompletedProcess:
        return subprocess.run(
            ["flwr", *words], cwd=self.folder, env=self.environment, capture_output=True, text=True, timeout=seconds,
            check=False,
        )  # fmt: skip

    def run(self, config: Path, settings: str = "") -> None:
        about = f"config='{config}' settings='{settings}'"
        self.start("run", "flwr", "run", f"{DEPLOY}/fedfault-app", "loop", "--stream", "--run-config", about)

    def log(self, name: str) -> str:
        file = self.folder / f"{name}.log"
        return file.read_text(errors="replace") if file.is_file() else ""

    def wait_for(self, ready, what: str, seconds: float = 600) -> None:
        """Look for it four times a second, until a run is over that has not brought it."""
        end = time.monotonic() + seconds
        while not ready():
            over = "run" in self.running and self.running["run"].poll() is not None
            if time.monotonic() > end or (over and not ready()):
                logs = [f"--- {f.name}\n{f.read_text(errors='replace')[-3000:]}" for f in self.folder.glob("*.log")]
                raise AssertionError(f"{what} did not come; " + "\n".join(sorted(logs)))
            time.sleep(0.25)

    def kill(self, name: str, with_signal: int = signal.SIGKILL) -> None:
        process = self.running.pop(name)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, with_signal)
        process.wait(30)

    def close(self) -> None:
        """End everything, the SuperLink last: in peace first, so that processes which these have started end too.

        A SuperLink waits for `flwr run` to let go of the log that it is sent.
        """
        if "run" in self.running:
            self.kill("run")
        for with_signal in (signal.SIGTERM, signal.SIGKILL):
            for name, process in reversed(list(self.running.items())):
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, with_signal)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(60)
                    del self.running[name]


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
    """Whether the run is, and all that it had to say has come: the log follows with a delay."""
    return f"report: {d.folder / name / 'report.html'}" in d.log("run")
