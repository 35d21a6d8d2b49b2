"""Conversations are dealt out like documents; what is cut away before its response is left out, and counted."""

import json

import pytest

from fedfault.config import load
from fedfault.errors import UserError
from fedfault.setup.experiment import prepare
from fedfault.setup.sources import describe_sources

ROWS = [
    {"prompt": f"{'Say what comes after ' * (n % 4)}{n}?", "completion": f"{n + 1}", "task": "ab"[n % 2]}
    for n in range(80)
]


def prepare_rows(tmp_path, rows, *changes: str):
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    given = ["data.dataset=text", f"data.path={file}", "data.task_type=instruction", "data.topic_column=task",
             "federation.total_clients=4", "evaluation.general=none", "model.max_length=96"]  # fmt: skip
    said: list[str] = []
    return prepare(load(None, [*given, *changes]).experiment, said.append), said


@pytest.mark.slow
def test_every_client_has_conversations_and_the_sets_are_by_task(tmp_path):
    p, said = prepare_rows(tmp_path, ROWS, "data.partition=topic_isolation", "data.partition.min_samples=2")
    assert "chat template: alpaca, as the tokenizer of micro has none of its own" in said
    assert set(p.split.validation) == {"a", "b"}
    assert sum(p.split.mixture.values()) == pytest.approx(1)
    assert all((counts > 0).sum() == 1 for counts in p.split.counts)
    assert [own.num_tokens for own in p.split.train] == [p.task.tokens(k) for k in range(4)]
    whole = p.split.examples
    assert whole is not None
    one = p.split.documents[0].text
    decoded = p.backbone.tokenizer.backend_tokenizer.decode(whole.ids[0, : whole.lengths[0]].tolist())
    assert all(line in decoded for line in one.split("\n"))
    assert describe_sources(p)["model"]["chat_template"] == "alpaca"


@pytest.mark.slow
def test_a_conversation_that_is_cut_before_its_response_is_left_out_and_counted(tmp_path):
    p, said = prepare_rows(tmp_path, ROWS, "model.max_length=60")
    assert 0 < p.split.unanswered < 80
    assert len(p.split.documents) + len(p.split.corpus.validation) <= 80
    assert all(bool((own.targets > 0).all()) for own in p.split.train)
    line = f"{p.split.unanswered} conversations are left out: model.max_length cuts them before their first response"
    assert line in said
    assert describe_sources(p)["corpus"]["read"]["unanswered"] == p.split.unanswered


@pytest.mark.slow
def test_all_cut_away_says_what_is_needed(tmp_path):
    with pytest.raises(UserError, match=r"model\.max_length=8 cuts the response of all 72 training conversations"):
        prepare_rows(tmp_path, ROWS, "model.max_length=8")


@pytest.mark.slow
def test_prompts_count_where_that_is_asked_for(tmp_path):
    sizes = [prepare_rows(tmp_path, ROWS, f"training.loss_on={on}")[0].split.train for on in ("completion", "all")]
    for responses, everything in zip(*sizes, strict=True):
        assert everything.num_tokens == int((everything.lengths - 1).sum()) > 5 * responses.num_tokens


@pytest.mark.slow
def test_what_does_not_fit_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"data\.partition=token_skew changes texts"):
        prepare_rows(tmp_path, ROWS, "data.partition=token_skew", "data.partition.type=stopwords")
    with pytest.raises(UserError, match=r"data\.task_type=instruction learns their responses"):
        prepare_rows(tmp_path, ROWS, "data.task_type=causal_lm")
    with pytest.raises(UserError, match="needs conversations, and registers has plain text"):
        prepare(load(None, ["data.task_type=instruction"]).experiment)
    for change in ("model.chat_template=chatml", "training.loss_on=all"):
        with pytest.raises(UserError, match="is about conversations"):
            load(None, [change])


@pytest.mark.slow
def test_answers_are_scored_by_topic_and_by_client(tmp_path):
    p, _ = prepare_rows(tmp_path, ROWS, "evaluation.generate=2", "evaluation.max_new_tokens=3")
    scores = p.task.evaluate(p.task.init(0))
    assert all(scores[name].metrics for name in ("validation", "topic/a", "topic/b", "client/0"))
    assert scores["validation"].metrics["exact_match"] in (0.0, 0.25, 0.5, 0.75, 1.0)
    shown = p.task.continuations(p.task.init(0).flat, 3)
    assert shown is not None
    assert len(shown.texts) == len(shown.prompts) == 3
    asked = {row["prompt"]: row["completion"] for row in ROWS}
    assert [asked[prompt] for prompt in shown.prompts] == list(shown.references)
    with pytest.raises(UserError, match=r"evaluation\.answer_pattern: .*is not a regular expression"):
        load(None, ["evaluation.answer_pattern=("])
    with pytest.raises(UserError, match=r"evaluation\.generate=2 is about conversations"):
        load(None, ["evaluation.generate=2"])


@pytest.mark.slow
def test_answers_are_drawn_with_a_temperature_and_come_again(tmp_path):
    drawn = ("evaluation.generate=2", "evaluation.max_new_tokens=3", "evaluation.temperature=5.0")
    told = [prepare_rows(tmp_path, ROWS, *drawn[:n])[0] for n in (2, 3)]
    greedy, sampled = ([p.task.continuations(p.task.init(0).flat, 3).ids for _ in range(2)] for p in told)
    assert greedy[0] == greedy[1]
    assert sampled[0] == sampled[1] != greedy[0]
    with pytest.raises(UserError, match="temperature is about answers, and none are made"):
        load(None, ["data.task_type=instruction", "evaluation.temperature=1"])
    with pytest.raises(UserError, match=r"top_p=0\.9 is about answers that are drawn; .* set a temperature above 0"):
        load(None, ["data.task_type=instruction", "evaluation.generate=2", "evaluation.top_p=0.9"])


def test_a_pattern_of_answers_needs_answers():
    with pytest.raises(
        UserError, match=r"answer_pattern is about answers, and none are made: set evaluation\.generate=N"
    ):
        load(None, ["evaluation.answer_pattern='[0-9]+'"])
