"""A whole run on conversations: answers before and after, the template beside the adapter, words of report and check."""

import json
import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

import fedfault as ff
from chatting import write_rows
from fedfault.cli.app import app
from fedfault.config import load
from fedfault.runs.read import read_run
from fedfault.setup.experiment import prepare
from fedfault.setup.preview import preview
from small import SMALL, start

ROOT = Path(__file__).parents[2]
ASKED = [
    "data.dataset=skills", "data.task_type=instruction", "data.partition=topic_isolation", "model.max_length=96",
    "federation.num_rounds=1", "training.local_steps=1", "evaluation.max_blocks=1", "evaluation.generate=1",
    "evaluation.max_new_tokens=3", "data.max_samples=400",
]  # fmt: skip


@pytest.mark.long
def test_a_run_on_conversations_leaves_its_answers_its_template_and_its_words(tmp_path):
    folder = start(tmp_path, *ASKED).path
    answers = json.loads((folder / "answers.json").read_text())["answers"]
    assert len(answers) == 10  # one of every task
    assert all(own["prompt"] and own["reference"] for own in answers)
    run = read_run(folder)
    final = run.records[-1].scores
    assert {"exact_match", "one_answer"} <= set(final["validation"].metrics) <= {"exact_match", "one_answer", "rouge_l"}
    assert final["topic/copy"].metrics
    assert "perplexity" in json.loads((folder / "metrics.json").read_text())["final"]["validation"]
    page = (folder / "report.html").read_text()
    for words in (
        "Answers before and after",
        "nats per token of a response",
        "Tokens of responses trained on",
        "exact match",
    ):
        assert words in page, words
    assert "### Response:" in (folder / "adapter" / "chat_template.jinja").read_text()


@pytest.mark.slow
def test_check_counts_conversations():
    said = preview(load("quickstart", [*SMALL, *ASKED]))
    assert re.search(
        r"tokens      [\d,]+ to learn in [\d,]+ training conversations of [\d.]+ tokens on average and 96 at most", said
    )
    assert "1 steps of 2 conversations" in said


@pytest.mark.slow
def test_check_and_a_run_say_that_a_template_ends_no_answer(tmp_path):
    file = tmp_path / "mine.jinja"
    file.write_text("{% for m in messages %}{{ m.role + ': ' + m.content + '. ' }}{% endfor %}")
    loaded = load("quickstart", [*SMALL, *ASKED, f"model.chat_template={file}"])
    said: list[str] = []
    prepare(loaded.experiment, said.append)
    assert sum("no token that ends a sequence, behind a response" in line for line in said) == 1
    assert "no token that ends a sequence, behind a response" in preview(loaded)
    assert "behind a response" not in preview(load("quickstart", [*SMALL, *ASKED]))


@pytest.mark.long
def test_the_code_on_the_card_answers_as_the_run_does_merged_and_unmerged(tmp_path, monkeypatch, capsys):
    """In transformers and PEFT, with the tokenizer and the template that lie in the run's folder."""
    folder = start(tmp_path, *ASKED, "training.local_steps=20", "training.lr=5e-3").path
    monkeypatch.chdir(folder)
    own = json.loads((folder / "answers.json").read_text())["answers"][0]
    (code,) = re.findall(r"```python\n(.*?)```", (folder / "adapter" / "README.md").read_text(), re.DOTALL)
    code = code.replace('"Say hello."', repr(own["prompt"])).replace("max_new_tokens=60", "max_new_tokens=3")
    names: dict = {}
    exec(compile(code, "card", "exec"), names)
    assert capsys.readouterr().out.strip() == own["after"]
    merged = names["model"].merge_and_unload()
    made = merged.generate(**names["prompt"], pad_token_id=0, max_new_tokens=3, do_sample=False)
    width = names["prompt"]["input_ids"].shape[1]
    assert names["tokenizer"].decode(made[0, width:], skip_special_tokens=True).strip() == own["after"]


@pytest.mark.long
def test_the_page_leads_from_a_file_to_the_answers_that_it_prints(tmp_path, monkeypatch, capsys):
    page = (ROOT / "docs" / "instruct.md").read_text()
    section = page.partition("## From a file to an adapter that answers")[2].partition("\n## ")[0]
    table, answers = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    (command,) = re.findall(r"^    (fedfault run .*)$", section, re.MULTILINE)
    (printed,) = re.findall(r"```text\n(.*?)```", section, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    exec(compile(table, "table", "exec"), {})
    made = CliRunner().invoke(app, shlex.split(command)[1:])
    assert made.exit_code == 0, made.output
    capsys.readouterr()
    exec(compile(answers, "answers", "exec"), {})
    assert capsys.readouterr().out == printed


@pytest.mark.slow
@pytest.mark.long
def test_a_run_on_preferences_lowers_their_loss_and_says_what_a_pair_is(tmp_path):
    turns = [("Say a.", "a b c", "no no no no"), ("Say b.", "b c a", "never"), ("Say c.", "c a b", "not at all")]
    rows = [{"prompt": f"{p} {n}", "chosen": f"{c} {n}", "rejected": f"{r} {n}"} for n in range(8) for p, c, r in turns]
    file = write_rows(tmp_path / "pairs.jsonl", rows)
    told = [
        "data.dataset=text", f"data.path={file}", "data.task_type=preference", "model.max_length=96", "training.lr=5e-3",
        "training.local_steps=4", "federation.num_rounds=2", "data.partition=iid",
        "evaluation.stop_at={reward_margin: 100.0}",
    ]  # fmt: skip
    folder = start(tmp_path, *told).path
    run = read_run(folder)
    first, last = (r.scores["validation"] for r in (run.records[0], run.records[-1]))
    assert first.loss == pytest.approx(0.6931, abs=1e-4)
    assert last.loss < first.loss
    assert last.metrics["reward_accuracy"] > 0.5
    assert "general" in run.records[-1].scores
    page = (folder / "report.html").read_text()
    for words in ("nats per pair", "reward_margin"):
        assert words in page, words
    assert (folder / "adapter" / "chat_template.jinja").is_file()


@pytest.mark.slow
def test_a_pair_is_one_example_where_all_data_are_in_one_place_and_in_the_preview(tmp_path):
    """It counted as two: the baseline took twice the steps of the federation, and the preview told twice the work."""
    rows = [{"prompt": f"Say {n}.", "chosen": f"yes {n}", "rejected": f"no {n}"} for n in range(40)]
    told = [
        f"data.path={write_rows(tmp_path / 'pairs.jsonl', rows)}", "data.dataset=text", "data.task_type=preference",
        "model.max_length=64", "data.partition=iid", "federation.total_clients=4", "federation.num_rounds=2",
        "federation.participation_rate=1.0", "training.batch_size=2", "training.local_epochs=1", "evaluation.general=none",
    ]  # fmt: skip
    apart = prepare(load("demos/base", [*told, "training.local_steps=null"]).experiment)
    held = [apart.federation.task.examples(k) for k in range(4)]
    central = prepare(
        load("demos/base", [*told, "training.local_steps=null", "federation.centralised=true"]).experiment
    )
    assert central.federation.work.steps == sum(-(-n // 2) for n in held)
    assert f"trains on about {sum(held)} pairs a round" in preview(
        load("demos/base", [*told, "training.local_steps=null"])
    )


@pytest.mark.long
def test_the_adapter_of_a_run_on_preferences_loads_on_a_model_with_its_head(tmp_path):
    rows = [{"prompt": f"Say {n}.", "chosen": f"yes {n}", "rejected": f"no {n}"} for n in range(20)]
    told = [f"data.path={write_rows(tmp_path / 'pairs.jsonl', rows)}", "data.dataset=text", "data.task_type=preference"]
    folder = start(tmp_path, *told, "model.max_length=96", "federation.num_rounds=1", "data.partition=iid").path
    assert hasattr(ff.Run(folder).adapter().base_model.model, "lm_head")
