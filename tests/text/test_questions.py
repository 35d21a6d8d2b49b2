import pytest
from transformers import PreTrainedTokenizerFast

from chatting import END, STOP, bytes_tokenizer, say
from fedfault.backbones.llama import FileTokenizer
from fedfault.backbones.load import MICRO
from fedfault.text.conversing import choose_template
from fedfault.text.questions import ask_questions, explain_no_end, find_stops, list_choices, sample_answers
from fedfault.types.corpus import Conversation, Turn


def make(*messages: dict[str, str]) -> Conversation:
    return Conversation(tuple(Turn(m["role"], m["content"]) for m in messages), "here")


def test_a_question_is_all_that_is_said_before_the_last_response():
    tokenizer = bytes_tokenizer("chatml")
    sets = {
        "topic/a": [make(*say("One.", "two", "Three.", "four")), make(*say("Sort.", "a"))],
        "client/0": [make(*say("x", "y"))],
    }
    q = ask_questions(choose_template("auto", tokenizer, "it"), sets, 8, None, most=200)
    assert q.places == {"topic/a": [0, 1], "client/0": [2]}
    assert (q.texts, q.answers) == (["Three.", "Sort.", "x"], ["four", "a", "y"])
    assert tokenizer.decode(q.prompts[0]).endswith(f"two{END}\n<|im_start|>user\nThree.{END}\n<|im_start|>assistant\n")
    short = ask_questions(choose_template("auto", tokenizer, "it"), sets, 8, None, most=len(q.prompts[0]) - 1)
    assert short.answers == ["a", "y"]


def test_more_questions_and_other_rounds_change_no_draw():
    template = choose_template("auto", bytes_tokenizer("chatml"), "it")
    one, two, other = (make(*say(text, "y")) for text in ("One.", "Two.", "x"))
    sets = [{"topic/a": [one], "client/0": [other]}, {"topic/a": [one, two], "client/0": [other]}]
    few, more = (sample_answers(ask_questions(template, own, 4, None, most=200), 0.5, 0.9, seed=7) for own in sets)
    assert few.sampling is not None
    assert more.sampling is not None
    assert more.sampling[:2] == (0.5, 0.9)
    assert few.sampling.draws.tolist() == more.sampling.draws[[0, 2]].tolist()
    assert len({*more.sampling.draws.flatten().tolist()}) == 12
    asked = ask_questions(template, sets[0], 4, None, most=200)
    assert sample_answers(asked, 0.0, 1.0, seed=7).sampling is None


def test_answers_end_where_the_template_ends_a_turn():
    tokenizer = bytes_tokenizer("chatml")
    end, stop = (tokenizer.convert_tokens_to_ids(token) for token in (END, STOP))
    assert find_stops(choose_template("auto", tokenizer, "it")) == {end, stop}
    assert find_stops(choose_template("alpaca", tokenizer, "it")) == {stop}
    micro = FileTokenizer(MICRO)
    assert find_stops(choose_template("auto", micro, "micro")) == {micro.eos_token_id}


def test_a_token_that_the_file_of_a_tokenizer_marks_as_special_ends_answers_without_a_name():
    """Phi-3 has its end of a turn so."""
    named = bytes_tokenizer("chatml")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=named.backend_tokenizer, eos_token=STOP)
    assert tokenizer.all_special_tokens == [STOP]
    tokenizer.chat_template = named.chat_template
    assert find_stops(choose_template("auto", tokenizer, "it")) == {0, tokenizer.convert_tokens_to_ids(END)}


@pytest.mark.parametrize(("end", "said"), [("", "writes nothing behind"), ("\\n", r"writes '\n', which is no token")])
def test_a_template_that_ends_responses_with_no_token_of_their_own_is_told(tmp_path, end, said):
    file = tmp_path / "mine.jinja"
    file.write_text("{% for m in messages %}{{ m.role + ': ' + m.content + '" + end + "' }}{% endfor %}")
    tokenizer = bytes_tokenizer("chatml")
    template = choose_template(str(file), tokenizer, "it")
    assert said in explain_no_end(template)
    assert find_stops(template) == {tokenizer.eos_token_id}


def test_templates_that_end_responses_are_not_told_nor_those_that_refuse_a_lone_question(tmp_path):
    tokenizer, file = bytes_tokenizer("chatml"), tmp_path / "mine.jinja"
    file.write_text("{% if messages[0].role != 'system' %}{{ raise_exception('no system') }}{% endif %}")
    for name in ("auto", "alpaca", "plain", str(file)):
        template = choose_template(name, tokenizer, "it")
        assert not explain_no_end(template)
        assert tokenizer.eos_token_id in find_stops(template)


def test_every_answer_of_the_group_that_has_the_true_one_stands_behind_the_prompt():
    """Blanks aside; a question whose true answer is in no group, or whose answers do not fit, has no choice."""
    template = choose_template("auto", bytes_tokenizer("chatml"), "it")
    asked = [make(*say("Is it?", "yes ")), make(*say("Sort.", "b a")), make(*say("Three.", "no", "And now?", "no"))]
    found = list_choices(template, asked, [["yes", "no", "may be"]], 200)
    assert found is not None
    assert (found.questions, found.right) == ([0, 0, 0, 2, 2, 2], [True, False, False, False, True, False])
    row = found.rows.ids[2, : found.rows.lengths[2]]
    assert template.tokenizer.decode(row).rstrip().endswith(f"Is it?{END}\n<|im_start|>assistant\nmay be{END}")
    counted = template.tokenizer.decode(row[1:][found.rows.mask[2, : len(row) - 1]])
    assert counted.startswith(f"may be{END}")
    assert list_choices(template, asked, [["yes", "no", "x" * 200]], 150) is None
    assert list_choices(template, asked, [["a", "b"]], 200) is None
