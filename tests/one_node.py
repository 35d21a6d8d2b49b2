"""A Slurm cluster of one node, this one, for tests: Debian's packages, unpacked and not installed, on loopback."""

from __future__ import annotations

import contextlib
import getpass
import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

CONF = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
CredType=cred/munge
# a job that is requeued waits for as long as a credential lives: 120 s, unless it is said otherwise, and at least 5
AuthInfo=socket={home}/munge/socket,cred_expire=5
PluginDir={plugins}
# otherwise it listens on all interfaces
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
StateSaveLocation={home}/state
SlurmdSpoolDir={home}/spool
SlurmctldPidFile={home}/slurmctld.pid
SlurmdPidFile={home}/slurmd.pid
SlurmdParameters=config_overrides
SchedulerParameters=sched_interval=1
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
KillWait=5
NodeName={host} NodeAddr=127.0.0.1 CPUs=4 State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES State=UP
"""


class Slurm:
    """The commands of a running cluster."""

    def __init__(self, settings: dict[str, str]) -> None:
        self.settings = settings

    def __call__(self, *words: str, **more: str) -> str:
        """What a command prints; `more` are further variables of its environment."""
        env = {**os.environ, **self.settings, **more}
        done = subprocess.run(words, env=env, capture_output=True, text=True, check=False)
        assert done.returncode == 0, (words, done.stderr)
        return done.stdout.strip()

    def shown(self, job: str) -> list[dict[str, str]]:
        """The fields of a job, of each of its tasks."""
        lines = self("scontrol", "show", "job", "-o", job).splitlines()
        return [dict(re.findall(r"(\S+?)=(\S*)", line)) for line in lines]

    def ended(self, job: str, seconds: float = 180) -> list[dict[str, str]]:
        """The same once all of them have come to an end."""
        until = time.monotonic() + seconds
        while any(one["JobState"] in ("PENDING", "RUNNING", "COMPLETING", "REQUEUED") for one in self.shown(job)):
            assert time.monotonic() < until, self.shown(job)
            time.sleep(0.2)
        return self.shown(job)


@contextlib.contextmanager
def started() -> Iterator[Slurm]:
    """A cluster within the block; skips the test, with the reason, where there can be none."""
    with tempfile.TemporaryDirectory(prefix="slurm") as folder, contextlib.ExitStack() as daemons:
        home = Path(folder)  # not pytest's: the path of a socket has at most 107 characters
        root = packages(home / "packages")
        slurm = Slurm(configured(home, root))
        munge = [f"--{what}-file={home}/munge/{what}" for what in ("key", "pid", "log", "seed")]
        for words in (
            [root / "usr/sbin/munged", "--foreground", "--force", f"--socket={home}/munge/socket", *munge],
            [root / "usr/sbin/slurmctld-wlm", "-D", "-i"],
            [root / "usr/sbin/slurmd-wlm", "-D", "-d", root / "usr/sbin/slurmstepd-wlm"],
        ):
            daemons.enter_context(daemon([str(word) for word in words], slurm.settings, home / "log"))
        wait_for_idle(slurm, home / "log")
        try:
            yield slurm
        finally:
            drain(slurm)


def packages(folder: Path) -> Path:
    """The folder that has Slurm's `usr`: / where it is installed, or where the packages have been unpacked."""
    if all(Path("/usr/sbin", name).exists() for name in ("munged", "slurmctld-wlm", "slurmd-wlm")):
        return Path("/")
    if not shutil.which("apt-get") or not shutil.which("dpkg"):
        pytest.skip("no Slurm here, and no apt-get to fetch it with")
    (folder / "partial").mkdir(parents=True)
    (folder / "lists/partial").mkdir(parents=True)
    lists = f"Dir::State::Lists={folder}/lists"
    problem = fetched(folder)  # with the lists of packages that are here, or else with fresh ones
    if problem and (apt(folder, "update", "-o", lists) or fetched(folder, "-o", lists)):
        pytest.skip(f"no Slurm here, and apt-get cannot fetch it: {problem}")
    for archive in folder.glob("*.deb"):
        subprocess.run(["dpkg", "-x", archive, folder], check=True)
    return folder


def fetched(folder: Path, *options: str) -> str:
    """Fetch Slurm and what of its dependencies is not installed; the problem, or nothing."""
    words = ("install", "--download-only", "--no-install-recommends", "slurm-wlm", "munge")
    return apt(folder, *words, *options) or ("" if any(folder.glob("slurmd_*.deb")) else "it is installed in part")


def apt(folder: Path, *words: str) -> str:
    """Call apt-get such that it changes nothing outside the folder, as any user; the problem, or nothing."""
    own = [f"Dir::Cache::Archives={folder}", "Debug::NoLocking=1", "APT::Sandbox::User=root"]
    brief = ["Acquire::Retries=0", "Acquire::http::Timeout=10"]
    options = [part for option in [*own, *brief] for part in ("-o", option)]
    done = subprocess.run(["apt-get", "-qq", "-y", *options, *words], capture_output=True, text=True, check=False)
    return done.stderr.strip()[-300:] if done.returncode else ""


def configured(home: Path, root: Path) -> dict[str, str]:
    """Write key and configuration; returns the environment in which commands find both and the packages."""
    for name in ("munge", "state", "spool"):
        (home / name).mkdir(mode=0o700)
    (home / "munge/key").write_bytes(secrets.token_bytes(128))
    (home / "munge/key").chmod(0o600)
    host, plugins = socket.gethostname().split(".")[0], next(root.glob("usr/lib/*/slurm-wlm"))
    conf = CONF.format(host=host, ports=free_ports(), user=getpass.getuser(), home=home, plugins=plugins)
    (home / "slurm.conf").write_text(conf)
    return {
        "SLURM_CONF": str(home / "slurm.conf"),
        "LD_LIBRARY_PATH": f"{plugins}:{plugins.parent}",
        "PATH": os.pathsep.join([str(root / "usr/bin"), str(Path(sys.executable).parent), os.environ["PATH"]]),
    }


def free_ports() -> list[int]:
    """Two of the loopback device."""
    with socket.socket() as a, socket.socket() as b:
        a.bind(("127.0.0.1", 0))
        b.bind(("127.0.0.1", 0))
        return [a.getsockname()[1], b.getsockname()[1]]


@contextlib.contextmanager
def daemon(words: list[str], settings: dict[str, str], log: Path) -> Iterator[None]:
    """A process within the block."""
    with log.open("a") as out:
        process = subprocess.Popen(words, env={**os.environ, **settings}, stdout=out, stderr=out)
    try:
        yield
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def wait_for_idle(slurm: Slurm, log: Path) -> None:
    """Return when the node takes jobs; skip the test if it does not."""
    for _ in range(100):
        with contextlib.suppress(AssertionError):
            if slurm("sinfo", "--noheader", "--format=%T") == "idle":
                return
        time.sleep(0.2)
    pytest.skip(f"Slurm does not start here: {log.read_text()[-500:]}")


def drain(slurm: Slurm) -> None:
    """End all jobs, so that none outlives the node."""
    slurm("scancel", f"--user={getpass.getuser()}")
    for _ in range(50):
        if not slurm("squeue", "--noheader"):
            return
        time.sleep(0.2)
