"""Models of clients' own at the end of a run: trained on, beside the others, exported, and the same after a kill."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file

from fedfault.config import load
from fedfault.errors import UserError
from fedfault.rounds.engine import begin
from fedfault.rounds.tuning import train_apart
from fedfault.runs.read import read_run
from fedfault.session.progress import Progress
from fedfault.session.start import resume_run, start_run
from fedfault.setup.combinations import check_parts
from fedfault.setup.experiment import prepare
from fedfault.testing.toys import Quadratic, federation, run_to_end
from fedfault.types.adapter import Adapter
from small import SMALL

TASK = Quadratic(H=[[1.0], [3.0]], b=[[0.0], [4.0]], sizes=[4, 12])
ASKED = ["personalise={steps: 4, alone: true}", "federation.num_rounds=2"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    words = [*SMALL, *ASKED, f"logging.results_dir={tmp_path_factory.mktemp('results')}"]
    return start_run(load("quickstart", words), Progress(), draw=False).path


def take_steps(b: float, H: float, x: float, steps: int) -> float:
    return b + (x - b) * (1 - 0.1 * H) ** steps


def test_clients_train_apart_from_where_each_starts():
    """SGD at 0.1 on H (x - b)^2 / 2: the gap shrinks by 1 - 0.1 H a step, and each takes its own number of steps."""
    fed = federation(TASK)
    start = Adapter(TASK.layout, torch.tensor([[3.0], [1.0]], dtype=torch.float64))
    found = train_apart(fed, begin(fed), start, [1, 4], 0.1).flat
    expected = [[take_steps(0.0, 1.0, 3.0, 1)], [take_steps(4.0, 3.0, 1.0, 4)]]
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64))


def test_a_client_of_lower_rank_trains_on_what_it_has():
    from fedfault.algebra import mask
    from fedfault.testing.toys import LowRank

    fed = federation(LowRank(r=3), ranks=(1, 2, 3, 1, 2, 3), aggregation="blockwise", num_rounds=2)
    state, _ = run_to_end(fed)
    found = train_apart(fed, state, state.adapter, [5] * 6, 0.1).flat
    absent = ~mask(state.adapter.layout, torch.tensor(state.ranks))
    assert not found[absent].any()
    assert not torch.equal(found[0], found[3])


@pytest.mark.slow
def test_every_model_of_every_client_is_scored_and_the_last_one_exported(run):
    data = read_run(run)
    named = {(row["client"], row["model"]) for row in data.personal}
    clients = {int(name.removeprefix("client/")) for name in data.score_names("client/")}
    assert named == {(k, model) for k in clients for model in ("global", "tuned", "alone")}
    scored = {row["client"]: row["loss"] for row in data.personal if row["model"] == "global"}
    assert scored == pytest.approx({k: data.losses(f"client/{k}")[1][-1] for k in clients})
    tuned = {f"client/{row['client']}": row["loss"] for row in data.personal if row["model"] == "tuned"}
    assert data.end_losses("client/") == tuned
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["units"]["personal"] == "nats per token"
    summary = metrics["personal"]["tuned"]["loss"]
    assert summary == pytest.approx(sum(tuned.values()) / len(tuned))
    models = [load_file(run / "adapter/clients" / str(k) / "adapter_model.safetensors") for k in sorted(clients)[:2]]
    assert any(not torch.equal(a, models[1][name]) for name, a in models[0].items())
    assert "trained it on for 4 steps" in (run / "adapter/clients/0/README.md").read_text()


@pytest.mark.long
def test_results_that_a_kill_took_are_made_again_to_the_bit(run):
    before = (run / "personal.json").read_bytes()
    exported = run / "adapter/clients/1/adapter_model.safetensors"
    model = exported.read_bytes()
    for lost in (run / "personal.json", run / "metrics.json", exported):
        lost.unlink()
    manifest = json.loads((run / "manifest.json").read_text())
    (run / "manifest.json").write_text(json.dumps({**manifest, "status": "trained"}))
    resume_run(run, Progress(), draw=False)
    assert (run / "personal.json").read_bytes() == before
    assert exported.read_bytes() == model


@pytest.mark.long
def test_a_finished_run_can_be_asked_for_it_later(run):
    resume_run(run, Progress(), ["personalise.steps=2", "personalise.alone=false"], draw=False)
    assert {row["model"] for row in read_run(run).personal} == {"global", "tuned"}


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["federation.centralised=true"], "one client, who has all data"),
        (["privacy.unit=client", "privacy.noise_multiplier=1.0", "privacy.delta=1e-5"], "is to hide"),
    ],
)
def test_where_there_are_no_clients_or_theirs_are_hidden_it_is_refused(words, why):
    with pytest.raises(UserError, match=why):
        check_parts(load("quickstart", ["personalise.steps=2", *words]).experiment)


@pytest.mark.slow
def test_where_nobody_held_anything_back_it_is_refused():
    words = [*SMALL, "personalise.steps=2", "data.max_samples=3", "data.partition=iid"]
    with pytest.raises(UserError, match="nobody held any back"):
        prepare(load("quickstart", words).experiment)
