"""Whole runs over nodes on the packaged model: the folder, the numbers and the continuation of `fedfault run`."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("flwr", reason='needs Flower: pip install "fedfault[flower]"')

from safetensors.torch import load_file

from fedfault import session
from fedfault.config import load
from fedfault.errors import UserError
from fedfault.flower.client import app
from fedfault.flower.local import LocalGrid
from fedfault.flower.server import serve
from fedfault.progress import Progress
from flowers import same
from test_session import SMALL


@pytest.fixture(autouse=True)
def _without_report(monkeypatch):
    monkeypatch.setattr("fedfault.report.render.render", lambda path: path / "report.html")


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
@pytest.mark.parametrize("algorithm", ["fedavg", "fedprox", "scaffold"])
def test_a_run_over_nodes_gives_the_adapter_of_one_process(algorithm, tmp_path):
    changes = [f"federation.algorithm={algorithm}", "model.precision=fp32"]
    here = session.start(loaded(tmp_path / "here", *changes), Progress(quiet=True))
    there = served(tmp_path / "there", *changes)
    agree(here, there)
    for a, b in zip(here.records(), there.records(), strict=True):
        assert a.scores["validation"].loss == pytest.approx(b.scores["validation"].loss, rel=1e-5)
        assert (a.bytes_up, a.bytes_down) == (b.bytes_up, b.bytes_down)
    assert there.read_json("manifest.json")["remote"] is True


@pytest.mark.slow
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
    assert [r.round for r in again.records()] == [0, 1, 2, 3]
    agree(again, served(tmp_path / "whole", *changes))


@pytest.mark.slow
def test_a_run_cannot_move_between_one_process_and_nodes(tmp_path):
    folder = served(tmp_path)
    with pytest.raises(UserError, match="is a run over Flower; continue it with `fedfault flower run`"):
        session.resume(folder.path, Progress(quiet=True))
    here = session.start(loaded(tmp_path / "here"), Progress(quiet=True))
    with pytest.raises(UserError, match="is a run in one process; continue it with `fedfault resume`"):
        served(tmp_path / "here")
    assert json.loads((here.path / "manifest.json").read_text())["status"] == "finished"


def test_nothing_is_written_when_too_few_clients_join(tmp_path):
    with pytest.raises(UserError, match="2 of 3 clients have joined"):
        served(tmp_path, "flower.min_clients=3", grid=LocalGrid(app, LocalGrid.partitions(2)))
    assert not list(tmp_path.iterdir())


def test_a_rollback_is_not_for_nodes(tmp_path):
    with pytest.raises(UserError, match="on_failure=rollback changes settings that nodes have"):
        served(tmp_path, "federation.on_failure=rollback")
