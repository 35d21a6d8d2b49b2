"""The words of the model card: names that data and users choose change nothing but themselves."""

from __future__ import annotations

import pytest
import yaml

from fedfault.backbones.load import Backbone
from fedfault.config.schema import Experiment
from fedfault.session.card import render_card
from fedfault.types.corpus import Corpus

EVIL = "news\n# A heading\n---\nbase_model: other/model\n---\n| a | b |<img src=x onerror=alert(1)>`rm -rf`"


def card(
    topic: str = "news",
    source: str = "here",
    model: str = "micro",
    command: str = "fedfault run",
    labels=(),
    more=(),
    stops=(),
) -> str:
    score = {"perplexity": 20.0, "accuracy": 0.5, "f1": 0.5, "tokens": 100}
    scores = {"validation": score, f"topic/{topic}": score}
    found = {"initial": scores, "final": scores, "rounds": 3, "tokens": 1000, "bytes_up": 1, "bytes_down": 1}
    found["verdict"] = {"state": "healthy", "sentence": "No detector raised an alarm."}
    exp = Experiment.model_validate(dict(more))
    exp = exp.model_copy(update={"model": exp.model.model_copy(update={"name": model})})
    about = {"model": {"source": source}, "command": command, "fedfault": "0"}
    backbone = Backbone(model, "/" if model == "micro" else model, None, None, 0, "fp32", "x")
    return render_card(exp, backbone, Corpus("text", (), (), source, "x"), (), labels, found, about, stops=stops)


@pytest.mark.parametrize("place", ["topic", "source", "model", "command"])
def test_a_name_of_several_lines_stays_on_one_and_shows_as_it_is(place):
    plain = card(**{"topic": "news", place: "news"}).splitlines()
    evil = card(**{"topic": "news", place: EVIL}).splitlines()
    body = evil.index("---", 1)
    head = yaml.safe_load("\n".join(evil[1:body]))
    assert head.get("base_model") == (EVIL if place == "model" else None)  # micro is no model of the Hub
    assert head.keys() - {"base_model"} == {"library_name", "pipeline_tag", "license", "tags"}
    rest = [line for line in evil[body:] if "news" not in line]
    assert rest == [line for line in plain[plain.index("---", 1) :] if "news" not in line]
    assert sum(line.startswith("#") for line in evil[body:]) == 1
    # Which is Python, and a string in it
    prose = [line for line in evil[body + 1 :] if not line.startswith("model = ")]
    assert not [line for line in prose if "<img" in line.replace("\\<", "") and "``" not in line]


def test_a_card_says_the_verdict_and_that_its_base_ships_with_the_package():
    text = card()
    assert "fedavg for 3 rounds, 1 client a round" in card(more={"federation": {"total_clients": 1}})
    assert "Verdict: healthy. No detector raised an alarm." in text
    assert "The base model micro comes with fedfault." in text
    assert "base_model" not in text
    assert "no privacy mechanism was used" in text


def test_no_folder_of_the_machine_stands_on_a_card():
    text = card(source="file /home/eve/texts/my.csv", command="fedfault run data.path=/home/eve/texts/my.csv")
    assert "/home" not in text
    assert "Made by `fedfault run data.path=my.csv`" in text
    assert "hf://datasets/a/b" in card(source="hf://datasets/a/b")


def test_a_base_that_is_a_folder_is_said_to_be_one_and_its_place_is_the_readers_to_fill_in(tmp_path):
    (tmp_path / "ours").mkdir()
    text = card(model=str(tmp_path / "ours"))
    assert str(tmp_path) not in text
    assert "# run: ours fine-tuned by" in text
    assert "The base model ours is no model of the Hub but a folder or file of whoever trained this" in text
    assert "base = 'path/to/ours'  # its place on your machine" in text
    assert "AutoModelForCausalLM.from_pretrained(base, dtype" in text


def test_a_card_of_a_private_run_says_what_it_claims_and_not_that_there_was_nothing():
    private = {"unit": "client", "epsilon": 8.0, "delta": 0.01}
    text = card(more={"privacy": private})
    assert "differential privacy of every client, delta 0.01: epsilon 8.0 at most over all rounds" in text
    assert "no privacy mechanism" not in text


def test_a_card_of_a_poisoned_run_says_so():
    assert "**Some of the clients were hostile on purpose**: label_flip, scale." in card(
        more={"attacks": [{"name": "label_flip"}, {"name": "scale"}]}
    )


@pytest.mark.parametrize("task", ["instruction", "preference"])
def test_the_code_on_a_card_asks_a_model_of_conversations_by_its_template_and_ends_where_answers_end(task):
    """The base's own settings may know no end but that of a sequence, where the template ends a turn by another token."""
    text = card(more={"data": {"task_type": task}}, stops=(2, 0))
    assert "tokenizer.apply_chat_template(messages, add_generation_prompt=True" in text
    assert "eos_token_id=[0, 2]" in text
    assert "The first thing" not in text
