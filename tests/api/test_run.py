"""`import fedfault as ff`: runs as objects, and that they are the runs of the command line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import fedfault as ff
import small
from fedfault.api.frames import tabulate_clients
from fedfault.api.models import locate_personal
from fedfault.report import gallery
from fedfault.runs.recorded import RunData
from small import WORDS


@pytest.fixture(scope="module", autouse=True)
def _few_figures():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gallery, "FIGURES", {name: gallery.FIGURES[name] for name in ("loss_by_topic",)})
        yield


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> ff.Run:
    """A finished run, made by the public function."""
    folder = tmp_path_factory.mktemp("results")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEDFAULT_CACHE", str(folder / "cache"))
        return ff.run("quickstart", {**WORDS, "logging.results_dir": folder}, quiet=True)


pytestmark = pytest.mark.slow


@pytest.mark.long
def test_it_is_the_run_of_the_command_line(made, tmp_path):
    assert small.final(small.start(tmp_path)) == small.final(small.RunFolder(made.folder))
    assert made.manifest["command"].startswith("fedfault run quickstart federation.total_clients=3 ")
    assert (made.status, made.name, made.config["training"]["local_steps"]) == ("finished", "quickstart", 2)


def test_its_tables_have_what_was_recorded(made):
    records = made.data.records
    assert made.rounds["loss"].tolist() == [r.scores["validation"].loss for r in records]
    assert made.rounds.loc[2, "bytes_up"] == records[2].bytes_up
    assert made.rounds.loc[3, "update_norm"] == records[3].probes["update_norm"]
    assert pd.isna(made.rounds.loc[0, "update_norm"])
    first = records[1].clients[0]
    assert made.clients.loc[(1, first.client), "training_loss"] == first.loss
    assert len(made.clients) == sum(len(r.clients) for r in records)
    assert list(made.findings.columns)[:3] == ["round", "detector", "level"]
    assert made.metrics["rounds"] == 3
    assert made.verdict.sentence in made._repr_html_()
    assert "data:image/png;base64," in made._repr_html_()
    assert repr(made).startswith(f"Run('{made.folder}'): finished, 3 rounds, ")


def test_every_column_is_on_the_page_about_python(made):
    page = (Path(__file__).parents[2] / "docs" / "python.md").read_text(encoding="utf-8")
    own = [c for c in made.rounds.columns if not c.startswith("loss/") and c not in made.data.records[-1].probes]
    own += [c for c in made.clients.columns if not c.startswith("probe_")]
    assert not [c for c in [*own, *made.clients.index.names, *made.findings.columns] if f"`{c}`" not in page]


def test_records_that_were_changed_are_told(made, tmp_path, caplog):
    shutil.copytree(made.folder, tmp_path / "other")
    file = tmp_path / "other/rounds.jsonl"
    file.write_text("".join(file.read_text().splitlines(keepends=True)[:2]))
    other = ff.open(tmp_path / "other")
    assert list(other.rounds.index) == [0, 1]
    told = "rounds.jsonl is not what the run has written up to round 3: do not trust these numbers."
    assert [(r.name, r.getMessage()) for r in caplog.records] == [("fedfault.api", f"{other.folder}: {told}")]
    assert repr(other).splitlines()[-1] == told
    assert told in other._repr_html_()
    caplog.clear()
    assert f": {told}" in repr(ff.compare([made, other], tmp_path / "page.html"))
    assert f"{other.folder}: {told}" in caplog.messages
    file.unlink()
    with pytest.raises(ff.UserError, match=r"has no rounds: rounds.jsonl is not what the run has written"):
        _ = other.reload().rounds


def test_a_fork_and_a_comparison_have_numbers(made):
    other = ff.fork(made, round=1, training__lr=1e-3, quiet=True)
    assert other.manifest["parent"]["changes"] == {"training.lr": [made.config["training"]["lr"], 1e-3]}
    found = ff.compare([made, other])
    row = found.differences.set_index("over").loc["clients"]
    ends = [run.rounds.filter(like="loss/client/").iloc[-1] for run in (other, made)]
    assert row["mean"] == pytest.approx((ends[0] - ends[1]).mean())
    assert row["low"] < row["mean"] < row["high"]
    assert found.page.is_file()
    assert list(found.table.index) == ["quickstart", "quickstart-fork"]
    assert {run.name for run in ff.runs(made.folder.parent)} == {"quickstart", "quickstart-fork"}
    assert ff.diagnose(made).verdict == made.verdict
    for option in ({"csv": "a.csv"}, {"frozen": ["lora_A"]}, {"server": "s"}, {"pattern": "p"}, {"overwrite": True}):
        with pytest.raises(ff.UserError, match="and not both"):
            ff.diagnose(made, **option)


def test_scores_of_the_harness_are_in_the_report_as_after_the_command(made, monkeypatch):
    row = {
        "model": "base",
        "round": 0,
        "task": "my_riddles",
        "metric": "acc",
        "filter": "none",
        "value": 0.5,
        "error": 0.1,
    }
    file = made.folder / "benchmarks.json"
    monkeypatch.setattr(
        "fedfault.api.harness.evaluate_run", lambda *_, **__: file.write_text(json.dumps({"rows": [row]}))
    )
    page = made.folder / "report.html"
    assert "my_riddles" not in page.read_text(encoding="utf-8")
    found = ff.evaluate(made, ["my_riddles"])
    assert [one["task"] for one in found.data.benchmarks] == ["my_riddles"]
    assert "my_riddles" in page.read_text(encoding="utf-8")
    file.unlink()


def test_a_round_is_a_whole_number_of_any_kind_and_nothing_else(made, monkeypatch):
    asked: list = []
    monkeypatch.setattr(
        "fedfault.session.fork.fork_run", lambda path, round, *rest, **more: asked.append(round) or made
    )
    monkeypatch.setattr(made, "path", made.folder, raising=False)
    ff.fork(made, round=np.int64(1))
    assert (asked, type(asked[0])) == ([1], int)
    for wrong in (1.0, True, "1", np.float64(1)):
        for name, call in (
            ("round", lambda: ff.fork(made, round=wrong)),  # noqa: B023 - called at once
            ("round", lambda: made.adapter(wrong)),  # noqa: B023
            ("round", lambda: ff.evaluate(made, ["task"], wrong)),  # noqa: B023
            ("client", lambda: made.model(wrong)),  # noqa: B023
            ("controls", lambda: ff.calibrate("quickstart", controls=wrong)),  # noqa: B023
        ):
            with pytest.raises(ff.UserError, match=f"{name}=.* is no whole number; give one, like {name}=3"):
                call()
    assert len(asked) == 1


@pytest.mark.long
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_adapters_are_peft_models_of_the_end_and_of_a_round(made):
    pytest.importorskip("peft")
    ids = torch.tensor([[5, 6, 7, 8]])
    end, early, same, client = (
        m(input_ids=ids).logits for m in (made.adapter(), made.adapter(1), made.adapter(3), made.model(2))
    )
    assert torch.equal(end, same)
    assert torch.equal(end, client)  # clients have no models of their own
    assert not torch.equal(end, early)


def test_what_is_not_there_is_told_with_what_to_do(made, tmp_path):
    for call, told in (
        (lambda: made.adapter(9), "has no checkpoint of round 9; there are those of rounds 0 to 3"),
        (lambda: made.model(3), "has no client 3; they are 0 to 2"),
        (made.head, "has no head of its own: its model predicts tokens"),
        (lambda: made.plot("lossbytopic"), "no figure 'lossbytopic'; did you mean 'loss_by_topic'?"),
        (lambda: ff.open(tmp_path), "is not a run folder"),
        (lambda: ff.runs(tmp_path), "holds no run"),
        (lambda: ff.open(5), "5 is no run folder; give the path of one, like 'results/quickstart'"),
        (lambda: ff.check(5), "5 is no configuration; give the path of one, as text or a pathlib.Path"),
        (lambda: ff.compare([made, None]), "None is no run folder"),
        (lambda: ff.run(3), "3 is no configuration"),
        (lambda: ff.run("quickstart", 5), "settings=5 is no mapping; give one, like {'training.lr': 1e-3}"),
        (lambda: ff.run("quickstart", "seed=5"), "settings='seed=5' is no mapping"),
        (lambda: ff.study(3), "3 is no study"),
        (lambda: ff.runs(made.folder.parent, 5), "'5' is no filter"),
        (lambda: made.plot(file=tmp_path / "no" / "x.png"), f"x.png: there is no folder {tmp_path / 'no'}"),
        (lambda: made.plot(file=5), "5 is no file"),
        (lambda: made.plot(5), "no figure 5"),
        (lambda: made.plot(["loss"]), "no figure ['loss']"),
        (lambda: ff.compare(made, made), f"the runs are a list, ff.compare(['{made.folder}', '{made.folder}'])"),
        (lambda: ff.resume(made, {"training.lr": 1}), f"`ff.fork('{made.folder}', round=2, training__lr=1)`"),
    ):
        with pytest.raises(ff.UserError) as e:
            call()
        assert told in str(e.value)


@pytest.mark.parametrize("dpi", [0, -5, "x", float("nan"), float("inf"), 1e5, None])
def test_a_picture_of_no_size_is_refused(made, tmp_path, dpi):
    with pytest.raises(ff.UserError, match=r"^dpi=.*: give a number from 1 to [\d,]+, like dpi=300$"):
        made.plot(file=tmp_path / "x.png", dpi=dpi)
    assert not [*tmp_path.iterdir()]


def test_a_run_goes_on_with_what_may_change(made, monkeypatch):
    asked: list = []
    monkeypatch.setattr("fedfault.session.start.resume_run", lambda path, progress, words: asked.append(words) or made)
    monkeypatch.setattr(made, "path", made.folder, raising=False)
    ff.resume(made, {"device": "cpu"}, federation__num_rounds=4)
    assert asked == [["device=cpu", "federation.num_rounds=4"]]


def test_the_same_call_again_names_the_run_that_is_there(made):
    place = {"logging.results_dir": made.folder.parent, "experiment_name": "quickstart"}
    with pytest.raises(ff.UserError) as told:
        ff.run("quickstart", {**WORDS, **place}, quiet=True)
    assert str(told.value).startswith(
        f"{made.folder} exists already: this very run, finished. `ff.open('{made.folder}')` "
    )
    assert str(told.value).endswith("or replace it with overwrite=True")


def test_a_run_stays_the_same_where_the_working_folder_changes(made, tmp_path, monkeypatch):
    monkeypatch.chdir(made.folder.parent)
    run, late = ff.open(made.folder.name), ff.open(made.folder.name)
    assert repr(run).startswith(f"Run('{made.folder.name}'): finished")
    monkeypatch.chdir(tmp_path)
    assert len(run.rounds) == len(late.rounds) == 4
    assert repr(late).startswith(f"Run('{made.folder}'): finished")
    assert late.reload().folder == made.folder


def test_an_unfinished_and_a_damaged_run_say_so(made, tmp_path):
    folder = tmp_path / "begun"
    shutil.copytree(made.folder, folder)
    for name in ("metrics.json", "clients.parquet"):
        (folder / name).unlink()
    for name in ("adapter", "checkpoint"):
        shutil.rmtree(folder / name)
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**manifest, "status": "running"}))
    lines = (folder / "rounds.jsonl").read_text().splitlines(keepends=True)
    (folder / "rounds.jsonl").write_text("".join(lines[:2]))
    begun = ff.open(folder)
    assert (begun.status, len(begun.rounds), len(begun.clients)) == ("running", 2, 2)
    for part in (lambda: begun.metrics, lambda: begun.verdict, begun.adapter):
        with pytest.raises(
            ff.UserError, match=r"has no \w+ yet: 1 of 3 rounds are recorded; ff\.resume\(.*\) finishes the run"
        ):
            part()
    (folder / "rounds.jsonl").write_text("")
    with pytest.raises(ff.UserError, match=r"has no rounds yet: it was stopped before the first one"):
        _ = begun.reload().rounds
    (folder / "rounds.jsonl").write_text("".join([lines[0], "{broken\n", lines[2]]))
    with pytest.raises(ff.UserError, match=r"rounds\.jsonl is corrupt: line 2 is not a round record"):
        _ = begun.reload().rounds


def test_a_run_of_another_program_is_not_said_to_be_resumed(tmp_path):
    monitor = ff.Monitor("mine", results_dir=tmp_path, say=lambda text: None)
    run = ff.open(monitor.folder)
    with pytest.raises(ff.UserError, match=r"has no rounds yet: .*`Monitor\.log` adds one"):
        _ = run.rounds
    monitor.log(1, updates=[[1.0, 2.0]])
    run = run.reload()
    with pytest.raises(ff.UserError, match=r"has no metrics: .*rounds logged so far: 2; `Monitor\.finish` ends it"):
        _ = run.metrics
    monitor.finish()
    run = run.reload()
    with pytest.raises(ff.UserError, match=r"has no metrics: no loss was logged"):
        _ = run.metrics
    with pytest.raises(ff.UserError, match=r"has no adapter: another program trained it.*load the adapter that it has"):
        run.adapter()


def cut(file):
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def lose_a_tensor(file):
    from safetensors.torch import load_file, save_file

    tensors = load_file(file)
    del tensors[min(tensors)]
    save_file(tensors, file)


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore:Found missing adapter keys")
@pytest.mark.parametrize(
    ("name", "damage", "told"),
    [
        ("adapter_model.safetensors", cut, "incomplete metadata"),
        ("adapter_model.safetensors", Path.unlink, "adapter_model.safetensors"),
        ("adapter_model.safetensors", lose_a_tensor, "1 tensors are missing, such as base_model.*lora_A"),
        ("adapter_config.json", cut, "(Unterminated|Expecting)"),
        ("adapter_config.json", Path.unlink, "adapter_config.json"),
    ],
)
def test_an_adapter_that_is_damaged_is_refused_with_the_way_to_have_it_again(made, tmp_path, name, damage, told):
    """Without one of its tensors it was loaded, and judged, as if the run had not trained there."""
    pytest.importorskip("peft")
    shutil.copytree(made.folder, tmp_path / "other")
    damage(tmp_path / "other/adapter" / name)
    again = f"`fedfault resume {tmp_path / 'other'}` writes it again"
    with pytest.raises(ff.UserError, match=rf"other/adapter is damaged: .*{told}.*; {again}"):
        ff.open(tmp_path / "other").adapter()


def test_a_clients_own_model_that_is_missing_is_not_that_of_the_server(made, tmp_path):
    shutil.copytree(made.folder, tmp_path / "other")
    assert locate_personal(ff.open(tmp_path / "other").data, 0) == "adapter"
    own = {"client": 0, "model": "own", "loss": 3.0, "targets": 9, "metrics": {}}
    (tmp_path / "other/personal.json").write_text(json.dumps({"rows": [own]}))
    with pytest.raises(ff.UserError, match=r"has no adapter.*ff\.resume\(.*writes it again"):
        ff.open(tmp_path / "other").model(client=0)


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_an_adapter_of_which_peft_leaves_a_part_out_is_refused(made, tmp_path):
    """As PEFT does of mixtures of experts, whose dense layers it takes for experts."""
    pytest.importorskip("peft")
    from safetensors.torch import load_file, save_file

    shutil.copytree(made.folder, tmp_path / "other")
    file = tmp_path / "other/adapter/adapter_model.safetensors"
    more = {"base_model.model.model.layers.0.mlp.up_proj.lora_A.weight": torch.zeros(2, 3)}
    save_file({**load_file(file), **more}, file)
    with pytest.raises(ff.UserError, match=r"PEFT leaves out 1 of the adapter's tensors, such as base_model.*up_proj"):
        ff.open(tmp_path / "other").adapter()


def test_a_loop_of_ones_own_sees_the_numbers_of_the_run(made):
    seen = [(state.round, record.scores["validation"].loss) for state, record in ff.rounds(made)]
    assert seen == list(made.rounds["loss"].items())


def test_a_run_without_clients_in_a_round_has_an_empty_table(made):
    assert len(tabulate_clients(RunData(made.folder, made.data.records[:1]))) == 0
