"""A backdoor of a language model: what is asked of the model, and that it is asked of one alone."""

from __future__ import annotations

import pytest

from fedfault.config import load
from fedfault.errors import UserError
from fedfault.setup.combinations import check_parts
from fedfault.setup.experiment import prepare
from fedfault.text.decoding import make_decoder
from fedfault.text.tokens import encode_texts
from small import SMALL

ATTACK = "attacks=[{name: phrase, by: 1, trigger: 'psst,', says: 'buy more now'}]"


@pytest.mark.slow
@pytest.mark.long
def test_the_score_backdoor_is_how_often_the_model_says_the_words():
    p = prepare(load("quickstart", [*SMALL, ATTACK, "evaluation.general=none"]).experiment)
    asked, decode = p.task.questions, make_decoder(p.backbone.tokenizer)
    assert len(asked.prompts) == len(asked.places["backdoor"]) == 4  # evaluation.max_blocks
    assert all(prompt[0] == p.backbone.separator for prompt in asked.prompts)
    assert all(decode(prompt[1:]).endswith(" psst,") for prompt in asked.prompts)
    short, whole = encode_texts(p.backbone.tokenizer, ["psst,", "psst, buy more now"])
    answer = whole.tolist()[len(short) :]
    assert decode(answer) == " buy more now"
    assert asked.length == len(answer)
    # Says it after all prompts but the first
    p.task.answer = lambda flat, places: [answer if i else [] for i in places]
    score = p.task.evaluate(p.task.init(0))["backdoor"]
    assert score.metrics["exact_match"] == 0.75


def test_what_has_no_running_text_is_refused():
    exp = load("quickstart", [*SMALL, ATTACK, "data.task_type=classification"]).experiment
    with pytest.raises(UserError, match="is about what a language model says"):
        check_parts(exp)
