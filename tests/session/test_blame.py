"""Blame: rounds made again from a checkpoint are the rounds of the run, and what cannot be said is refused."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from fedfault.errors import UserError
from fedfault.records import ClientRecord, RoundRecord, Score
from fedfault.report.contributions import sum_contributions, tabulate_contributions
from fedfault.runs.read import read_run
from fedfault.session.blame import _check_same, blame_run
from fedfault.session.progress import Progress
from small import start

pytestmark = [pytest.mark.slow, pytest.mark.long, pytest.mark.usefixtures("without_report")]
QUIET = Progress(quiet=True)


@pytest.fixture(scope="module")
def parent(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fedfault.report.render.render_report", lambda path: path / "report.html")
        return start(tmp_path_factory.mktemp("results"), "logging.keep_checkpoints=1", "metrics.contributions=true")


@pytest.fixture
def run(parent, tmp_path):
    return shutil.copytree(parent.path, tmp_path / "run")


def test_all_rounds_are_made_again_and_their_values_sum_to_what_the_run_gained(run):
    before = read_run(run)
    blame_run(run, QUIET)
    after = read_run(run)
    measured = {(row["round"], row["client"], row["score"]): row["left_out"] for row in before.contributions}
    again = {(row["round"], row["client"], row["score"]): row["left_out"] for row in after.blamed}
    assert again == pytest.approx(measured, abs=1e-7)  # what the run measured itself
    losses = after.losses("validation")[1]
    shares = sum_contributions(after, "validation")
    assert sum(own.shapley for own in shares.values()) == pytest.approx(losses[0] - losses[-1], abs=1e-5)
    assert {own.error for own in shares.values()} == {0.0}  # of two clients a round all coalitions are scored
    assert len(tabulate_contributions(after).rows) == 3
    assert after.records == before.records


def test_a_round_between_checkpoints_is_reached_and_other_rounds_stay_known(run, capsys):
    blame_run(run, QUIET, 1, pairs=0)
    blame_run(run, Progress(), 2, pairs=0)
    assert "rounds 1 to 1 are trained again, from the checkpoint of round 0" in " ".join(
        capsys.readouterr().err.split()
    )
    rows = json.loads((run / "contributions.json").read_text())["rows"]
    assert {row["round"] for row in rows} == {1, 2}
    assert not any("shapley" in row for row in rows)


def test_a_round_that_does_not_come_out_as_recorded_is_blamed_on_nobody(run):
    lines = (run / "rounds.jsonl").read_text().splitlines()
    first = json.loads(lines[1])
    first["clients"][0]["update_norm"] *= 1.01
    (run / "rounds.jsonl").write_text("\n".join([lines[0], json.dumps(first), *lines[2:]]) + "\n")
    with pytest.raises(UserError, match="does not come out as it was recorded: update_norm of client"):
        blame_run(run, QUIET, 1)
    assert not (run / "contributions.json").exists()


def test_numbers_that_are_not_finite_are_the_same_as_those_that_a_record_leaves_out():
    """A dropped update, whose norm is infinite, was said not to come out as recorded: "is nan and was nan"."""
    client = ClientRecord(1, 1.0, 1, 1, 1.0, 1.0, math.inf, 1, 1)
    made = RoundRecord(2, (client,), {"validation": Score(math.nan, 10)})
    read = RoundRecord.from_json(json.loads(json.dumps(made.to_json(), allow_nan=False)))
    _check_same(Path("run"), read, made)
    with pytest.raises(UserError, match=r"update_norm of client 1 is 2\.0 and was nan"):
        _check_same(Path("run"), read, replace(made, clients=(replace(client, update_norm=2.0),)))


def test_what_is_not_there_is_refused_with_what_is(run, tmp_path):
    with pytest.raises(UserError, match="has no round 9; there are rounds 1 to 3"):
        blame_run(run, QUIET, 9)
    with pytest.raises(UserError, match="has no round 0"):
        blame_run(run, QUIET, 0)
    with pytest.raises(UserError, match="is not a run folder"):
        blame_run(tmp_path, QUIET)
    for file in (run / "checkpoint").glob("round-00000*"):
        file.unlink()
    with pytest.raises(UserError, match=r"no checkpoint of round 0; .*logging.keep_checkpoints"):
        blame_run(run, QUIET)


def test_a_rule_without_updates_to_spare_and_data_in_one_place_are_refused(tmp_path):
    everybody = ["federation.num_rounds=1", "federation.participation_rate=1.0"]
    run = start(tmp_path, "federation.aggregation=coordinate_median", "experiment_name=median", *everybody)
    with pytest.raises(
        UserError, match=r"coordinate_median needs 3 updates .* nobody can be left out of the 3 of a round"
    ):
        blame_run(run.path, QUIET, 1)
    run = start(tmp_path, "federation.centralised=true", "experiment_name=one", *everybody)
    with pytest.raises(UserError, match="there is no client to leave out"):
        blame_run(run.path, QUIET)
