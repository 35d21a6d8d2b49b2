"""Runs judged by lm-evaluation-harness on a task in a file; what is no task, and no run for one, is refused."""

from __future__ import annotations

import json
import sys
from types import SimpleNamespace

import pytest
import torch
import yaml

import fedfault as ff
from chatting import END, bytes_tokenizer, chat_model, write_rows
from fedfault.api.harness import _find_tasks, _keep_rows, _score, evaluate_run
from fedfault.errors import UserError
from fedfault.report.tables import tabulate_benchmarks
from fedfault.runs.recorded import RunData
from small import start

CHOICES = ["copper", "seven rivers", "lamp", "Monday", "4000", "green glass"]


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    """A task of choice by likelihood, of which every answer is the first: a model that learns to say it is right."""
    folder = tmp_path_factory.mktemp("task")
    rows = [{"question": f"Which of {n}?", "choices": CHOICES, "answer": n % len(CHOICES)} for n in range(12)]
    data = write_rows(folder / "rows.jsonl", rows)
    said = {
        "task": "my_choice", "dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(data)}},
        "test_split": "test", "output_type": "multiple_choice", "doc_to_text": "{{question}}", "doc_to_choice": "choices",
        "doc_to_target": "answer", "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
    }  # fmt: skip
    file = folder / "my_choice.yaml"
    file.write_text(yaml.safe_dump(said))
    return file


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    told = [
        "federation.aggregation=fedsa_lora",
        "federation.num_rounds=1",
        "training.lr=2e-2",
        "training.local_steps=8",
    ]
    return ff.Run(start(tmp_path_factory.mktemp("run"), *told).path)


@pytest.mark.long
@pytest.mark.filterwarnings("ignore")  # lm_eval's own
def test_base_server_and_clients_are_scored_side_by_side_and_kept(task, run):
    pytest.importorskip("lm_eval")
    told: list[str] = []
    evaluate_run(run, [str(task)], clients=True, say=told.append)
    assert told == ["scoring base", "scoring server, round 1", *(f"scoring client {k}, round 1" for k in range(3))]
    found = ff.Run(run.folder).data
    acc = {row["model"]: row for row in found.benchmarks if row["metric"] == "acc"}
    assert list(acc) == ["base", "server", "client 0", "client 1", "client 2"]
    assert all(row["error"] > 0 and row["examples"] == 12 for row in acc.values())
    assert (acc["base"]["round"], acc["server"]["round"]) == (0, 1)
    table = tabulate_benchmarks(found)
    assert table.columns[:4] == ("task", "metric", "base", "server, round 1")
    assert [row[:2] for row in table.rows] == [["my_choice", "acc"], ["my_choice", "acc_norm"]]
    evaluate_run(run, [str(task)], clients=True)
    assert ff.Run(run.folder).data.benchmarks == found.benchmarks  # rows are replaced
    assert json.loads((run.folder / "benchmarks.json").read_text())["lm_eval"]
    run.report()
    assert "By lm-evaluation-harness" in (run.folder / "report.html").read_text()


@pytest.mark.long
@pytest.mark.parametrize(
    ("tasks", "options", "says"),
    [
        ([], {}, "name a task"),
        (["nowhere.yaml"], {}, "there is no such file"),
        (["EMPTY"], {}, "it names none"),
        (["TASK"], {"round": 1, "clients": True}, "give one of them"),
    ],
)
def test_what_is_no_task_is_refused(task, run, tmp_path, tasks, options, says):
    pytest.importorskip("lm_eval")
    (tmp_path / "empty.yaml").write_text("dataset_path: json\n")
    places = {"EMPTY": str(tmp_path / "empty.yaml"), "TASK": str(task)}
    with pytest.raises(UserError, match=says):
        evaluate_run(run, [places.get(name, name) for name in tasks], **options)


@pytest.mark.long
@pytest.mark.filterwarnings("ignore")  # lm_eval's own
def test_answers_end_where_the_chat_template_ends_a_turn(tmp_path, monkeypatch):
    """Of a base whose settings know the end of a sequence alone; behind the end of its turn the model says b for ever."""
    pytest.importorskip("lm_eval")
    tokenizer, model = bytes_tokenizer("chatml"), chat_model("llama")
    a, b, end = map(tokenizer.convert_tokens_to_ids, ("a", "b", END))
    compute = model.forward

    def say_a_then_b(*args, **options):
        made = compute(*args, **options)
        last = options["input_ids"][:, -1]
        said = torch.where(last == a, end, torch.where((last == end) | (last == b), b, a))
        made.logits[:, -1] = 100.0 * torch.nn.functional.one_hot(said, made.logits.shape[-1])
        return made

    monkeypatch.setattr(model, "forward", say_a_then_b)
    data = write_rows(tmp_path / "rows.jsonl", [{"question": f"Say {n}.", "answer": "a"} for n in range(3)])
    said = {
        "task": "my_words", "dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(data)}},
        "test_split": "test", "output_type": "generate_until", "doc_to_text": "{{question}}", "doc_to_target": "{{answer}}",
        "generation_kwargs": {"until": ["\n\n"], "max_gen_toks": 8}, "metric_list": [{"metric": "exact_match"}],
    }  # fmt: skip
    file = tmp_path / "my_words.yaml"
    file.write_text(yaml.safe_dump(said))
    (row,) = _score(model, tokenizer, *_find_tasks([str(file)]), spoken=True)
    assert (row["metric"], row["value"]) == ("exact_match", 1.0)


def test_without_the_harness_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    run = type("Run", (), {"data": None})()
    with pytest.raises(UserError, match=r"pip install 'fedfault\[eval\]'"):
        evaluate_run(run, ["x"])


def test_what_another_command_has_found_meanwhile_is_kept(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval", SimpleNamespace(__version__="0"))
    data = RunData(tmp_path, ())  # as both read it at their start
    row = {"model": "base", "round": 0, "metric": "acc", "filter": "none", "value": 0.5}
    for task, value in (("a", 0.5), ("b", 0.5), ("a", 0.75)):
        _keep_rows(data, [{**row, "task": task, "value": value}])
    kept = json.loads((tmp_path / "benchmarks.json").read_text())["rows"]
    assert [(one["task"], one["value"]) for one in kept] == [("b", 0.5), ("a", 0.75)]
