"""A whole run on conversations: answers before and after, the template beside the adapter, words of report and check."""

import json
import re

import pytest

from fedfault.config import load
from fedfault.runs.read import read_run
from fedfault.setup.preview import preview
from small import SMALL, start

ASKED = [
    "data.dataset=skills", "data.task_type=instruction", "data.partition=topic_isolation", "model.max_length=96",
    "federation.num_rounds=1", "training.local_steps=1", "evaluation.max_blocks=1", "evaluation.generate=1",
    "evaluation.max_new_tokens=3", "data.max_samples=400",
]  # fmt: skip


@pytest.mark.slow
def test_a_run_on_conversations_leaves_its_answers_its_template_and_its_words(tmp_path):
    folder = start(tmp_path, *ASKED).path
    answers = json.loads((folder / "answers.json").read_text())["answers"]
    assert len(answers) == 10  # one of every task
    assert all(own["prompt"] and own["reference"] for own in answers)
    run = read_run(folder)
    final = run.records[-1].scores
    assert {"exact_match"} <= set(final["validation"].metrics) <= {"exact_match", "rouge_l"}
    assert final["topic/copy"].metrics
    assert "perplexity" in json.loads((folder / "metrics.json").read_text())["final"]["validation"]
    page = (folder / "report.html").read_text()
    for words in (
        "Answers before and after",
        "nats per token of a response",
        "Tokens of responses trained on",
        "exact_match",
    ):
        assert words in page, words
    assert "### Response:" in (folder / "adapter" / "chat_template.jinja").read_text()
    assert "tokenizer.apply_chat_template(messages" in (folder / "adapter" / "README.md").read_text()


@pytest.mark.slow
def test_check_counts_conversations():
    said = preview(load("quickstart", [*SMALL, *ASKED]))
    assert re.search(
        r"tokens     [\d,]+ to learn in [\d,]+ training conversations of [\d.]+ tokens on average and 96 at most", said
    )
    assert "1 steps of 2 conversations" in said
