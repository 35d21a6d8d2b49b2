"""Whole runs over nodes on the packaged model: the folder, the numbers and the continuation of `fedfault run`."""

from __future__ import annotations

import threading
import time
from dataclasses import replace

import pytest

pytest.importorskip("flwr", reason='needs Flower: pip install "fedfault[flower]"')

from safetensors.torch import load_file

from devices import hardware
from fedfault.config import load
from fedfault.config.schema import Experiment
from fedfault.errors import UserError
from fedfault.flower import server
from fedfault.flower.client import app
from fedfault.flower.local import LocalGrid
from fedfault.flower.nodes import DataSize, Nodes
from fedfault.flower.server import check_sites, count_own_work, serve
from fedfault.hardware.clock import Tier
from fedfault.rounds.local import LocalWork
from fedfault.runs.folder import RunFolder
from fedfault.session.fork import fork_run
from fedfault.session.progress import Progress
from fedfault.session.start import resume_run, start_run
from fedfault.testing.toys import LowRank, federation
from flowers import RUNS, same
from small import SMALL

pytestmark = pytest.mark.usefixtures("without_report")


def loaded(folder, *changes):
    return load("quickstart", [*SMALL, f"logging.results_dir={folder}", "flower.join_seconds=0.01", *changes])


def served(folder, *changes, grid=None, **options):
    grid = grid or LocalGrid(app, LocalGrid.partitions(3))
    return serve(grid, loaded(folder, *changes), Progress(quiet=True), **options)


def adapter(folder):
    return load_file(folder.path / "adapter/adapter_model.safetensors")


def agree(one, other):
    mine, theirs = adapter(one), adapter(other)
    assert mine.keys() == theirs.keys()
    assert all(same(mine[n], theirs[n]) for n in mine)


@pytest.mark.slow
@pytest.mark.parametrize("run", [r if r == "scaffold" else pytest.param(r, marks=pytest.mark.long) for r in RUNS])
def test_a_run_over_nodes_gives_the_adapter_of_one_process(run, tmp_path):
    changes = [*RUNS[run], "model.precision=fp32"]
    here = start_run(loaded(tmp_path / "here", *changes), Progress(quiet=True))
    there = served(tmp_path / "there", *changes)
    agree(here, there)
    for a, b in zip(here.read_records(), there.read_records(), strict=True):
        assert a.scores["validation"].loss == pytest.approx(b.scores["validation"].loss, rel=1e-5)
        assert (a.bytes_up, a.bytes_down, a.turns) == (b.bytes_up, b.bytes_down, b.turns)
    assert (len({c.rank for c in there.read_records()[1].clients}) > 1) == (run == "ranks")
    assert there.read_json("manifest.json")["over_flower"] is True


@pytest.mark.slow
@pytest.mark.long
def test_a_run_that_was_stopped_goes_on_where_it_was(tmp_path):
    """Nodes keep their memory; the server that comes back says which of their rounds it has used."""
    changes = ["federation.algorithm=scaffold", "model.precision=fp32"]
    grid = LocalGrid(app, LocalGrid.partitions(3))
    asked = []

    def dying(message, context):
        asked.append(message)
        if message.metadata.group_id == "3":
            raise KeyboardInterrupt  # the server's process, not the node's
        return app(message, context)

    grid.app = dying
    with pytest.raises(KeyboardInterrupt):
        served(tmp_path / "stopped", *changes, grid=grid)
    grid.app = app
    again = served(tmp_path / "stopped", *changes, grid=grid)
    assert [r.round for r in again.read_records()] == [0, 1, 2, 3]
    agree(again, served(tmp_path / "whole", *changes))


@pytest.mark.slow
def test_a_run_waits_for_the_end_of_one_that_outlived_its_superlink(tmp_path, monkeypatch):
    monkeypatch.setattr(server, "POLL", 0.01)
    (tmp_path / "run").mkdir()
    folder = RunFolder(tmp_path / "run")
    with folder.lock():
        monkeypatch.setattr(server, "HANDOVER", 0.05)
        with pytest.raises(UserError, match="in use by another process"):
            server.await_former_server(folder, Progress(quiet=True))
        monkeypatch.setattr(server, "HANDOVER", 60.0)
        waiting = threading.Thread(target=server.await_former_server, args=(folder, Progress(quiet=True)))
        waiting.start()
        time.sleep(0.05)
        assert waiting.is_alive()
    waiting.join(10)
    assert not waiting.is_alive()


@pytest.mark.slow
@pytest.mark.long
def test_a_run_cannot_move_between_one_process_and_nodes(tmp_path):
    folder = served(tmp_path, argv=["run", "app"], program="flwr")
    assert folder.read_json("manifest.json")["command"] == "flwr run app"
    with pytest.raises(UserError, match=r"is a run over Flower, .*; continue it with `fedfault flower run`"):
        resume_run(folder.path, Progress(quiet=True))
    with pytest.raises(UserError, match="is a run over Flower"):
        fork_run(folder.path, 2, [], Progress(quiet=True))
    here = start_run(loaded(tmp_path / "here"), Progress(quiet=True))
    manifest = here.read_json("manifest.json")
    here.write_json("manifest.json", {**manifest, "status": "running"})
    with pytest.raises(UserError, match=r"is a run in one process, .*; continue it with `fedfault resume`"):
        served(tmp_path / "here")
    assert len(here.read_records()) == 4


@pytest.mark.slow
def test_nothing_is_written_when_too_few_clients_join(tmp_path):
    with pytest.raises(UserError, match="2 of 3 clients have joined"):
        served(tmp_path, "flower.min_clients=3", grid=LocalGrid(app, LocalGrid.partitions(2)))
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["federation.on_failure=rollback"], "federation.on_failure=rollback changes settings that nodes have"),
        (["federation.on_failure=cluster"], "federation.on_failure=cluster changes settings that nodes have"),
        (["clock=measured", "tiers={all: {count: 3}}"], "clock.mode=measured measures this process, and nodes train"),
    ],
)
def test_what_nodes_cannot_do_is_refused_before_anything_is_written(settings, words, tmp_path):
    with pytest.raises(UserError, match=words):
        served(tmp_path, *settings)
    assert not list(tmp_path.iterdir())


def test_the_clock_counts_the_work_that_sites_have_and_guesses_that_of_who_is_absent():
    """Client 1 says 40 examples: 10 steps at batch size 4 and once through 640 tokens."""
    work = LocalWork(batch_size=4)
    nodes = Nodes(LocalGrid(app, []), "run", {}, "{}", sizes={1: DataSize(40, 600, 640)}, own=True)
    hw = count_own_work(hardware(Tier("all", 6)), work, nodes)
    assert hw.steps.tolist() == [10] * 6
    assert hw.tokens.tolist() == [100, 640, 100, 100, 100, 100]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"federation": {"scheduler": {"name": "lite", "r_bar": 2}}},
            "scheduler=lite asks .* choose fixed, exact or cvx",
        ),
        ({"tiers": {"all": {"count": 10, "quantization": "4bit"}}}, "tiers.quantization=4bit: sites load the model as"),
    ],
)
def test_what_sites_cannot_do_is_refused(changes, words):
    exp = Experiment.model_validate(changes)
    fed = federation(LowRank())
    hw = hardware(Tier("all", 6), scheduler=exp.federation.scheduler.name, options=exp.federation.scheduler.options)
    with pytest.raises(UserError, match=words):
        check_sites(exp, replace(fed, hardware=hw))
    check_sites(Experiment(), replace(fed, hardware=hardware(Tier("all", 6))))


@pytest.mark.slow
@pytest.mark.parametrize("settings", ["", "seed=1", "model.lora.target_modules='[q, v]' seed=1", 'a="b c"'])
def test_flower_reads_back_the_command_that_a_manifest_names(settings):
    from flwr.common.config import parse_config_args

    *words, about = server.write_command("/its/server.yaml", settings)
    assert words == ["run", "deploy/fedfault-app", "--run-config"]
    assert parse_config_args([about]) == {"config": "/its/server.yaml", "settings": settings}
