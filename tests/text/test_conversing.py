"""Chat templates: what they write, which tokens are the assistant's, and what is refused."""

from dataclasses import replace

import pytest

from chatting import END, START, bytes_tokenizer, say
from fedfault.backbones.llama import FileTokenizer
from fedfault.backbones.load import MICRO
from fedfault.errors import UserError
from fedfault.text.conversing import choose_template, describe_template, encode_conversations
from fedfault.text.responses import Responses
from fedfault.types.corpus import Conversation, Turn

MARKS = (
    "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}{{ m.content }}{% endgeneration %}{% else %}"
)


def make(*messages: dict[str, str]) -> Conversation:
    return Conversation(tuple(Turn(m["role"], m["content"]) for m in messages), "a.jsonl: line 1")


def show(tokenizer, template: str, conversation: Conversation, loss_on: str = "completion") -> list[str]:
    """The text of the conversation in runs of equal mask, those of the assistant in brackets."""
    (row,) = encode_conversations(choose_template(template, tokenizer, "it"), [conversation], loss_on)
    runs: list[tuple[bool, list[int]]] = []
    for token, own in zip(row.ids, row.mask, strict=True):
        if not runs or runs[-1][0] != own:
            runs.append((own, []))
        runs[-1][1].append(token)
    return [f"[{text}]" if own else text for own, ids in runs for text in [tokenizer.decode(ids)]]


PREAMBLE = (
    "<|endoftext|>Below is an instruction that describes a task{}. Write a response that appropriately completes the "
    "request.\n\n### Instruction:\n"
)


def test_alpaca_writes_what_stanford_wrote_and_ends_with_the_end_of_sequence():
    tokenizer = bytes_tokenizer()
    found = show(tokenizer, "auto", make(*say("Add.", "two")))
    assert found == [PREAMBLE.format("") + "Add.\n\n### Response:\n", "[two<|endoftext|>]"]
    apart = Conversation((Turn("user", "Add.", "1 1"), Turn("assistant", "two")), "here")
    more = ", paired with an input that provides further context"
    assert show(tokenizer, "alpaca", apart)[0] == PREAMBLE.format(more) + "Add.\n\n### Input:\n1 1\n\n### Response:\n"


def test_all_responses_of_a_chat_count_with_their_ends():
    chat = make(*say("One.", "two", "Three.", "four", system="Count."))
    assert show(bytes_tokenizer(), "chatml", chat) == [
        f"{START}system\nCount.{END}\n{START}user\nOne.{END}\n{START}assistant\n",
        f"[two{END}\n]",
        f"{START}user\nThree.{END}\n{START}assistant\n",
        f"[four{END}\n]",
    ]
    (whole,) = show(bytes_tokenizer(), "chatml", chat, "all")
    assert whole.startswith(f"[{START}system")


def test_responses_of_a_prompt_are_not_learned_as_trl_has_it():
    """The turns before the last answer, written into the prompt: with marks of the template too."""
    chat = replace(make(*say("One.", "two", "Three.", "four", system="Count.")), prompt=4)
    assert show(bytes_tokenizer(), "chatml", chat) == [
        f"{START}system\nCount.{END}\n{START}user\nOne.{END}\n{START}assistant\ntwo{END}\n{START}user\nThree.{END}\n"
        f"{START}assistant\n",
        f"[four{END}\n]",
    ]
    before, answer, *_ = show(bytes_tokenizer("marked"), "auto", chat)
    assert "two" in before
    assert answer.startswith("[four")


def test_plain_writes_a_line_for_each_turn_and_a_response_as_words_behind_a_blank():
    chat = make(*say("One.", "two", "Three.", "four", system="Count."))
    assert show(bytes_tokenizer(), "plain", chat) == [
        "<|endoftext|>Count.\nUser: One.\nAssistant:",
        "[ two<|endoftext|>]",
        "\nUser: Three.\nAssistant:",
        "[ four<|endoftext|>]",
    ]
    tool = make(
        {"role": "user", "content": "a"}, {"role": "tool", "content": "b"}, {"role": "assistant", "content": "c"}
    )
    with pytest.raises(UserError, match="the plain format has no turns of the role tool"):
        show(bytes_tokenizer(), "plain", tool)


def test_an_input_is_behind_its_instruction_in_templates_that_do_not_set_it_apart():
    apart = Conversation((Turn("user", "Add.", "1 1"), Turn("assistant", "two")), "here")
    assert show(bytes_tokenizer("chatml"), "auto", apart)[0] == f"{START}user\nAdd.\n1 1{END}\n{START}assistant\n"


@pytest.mark.parametrize("tokenizer", [bytes_tokenizer, lambda: FileTokenizer(MICRO)], ids=["transformers", "micro"])
def test_a_template_that_marks_responses_is_taken_at_its_word(tmp_path, tokenizer):
    file = tmp_path / "mine.jinja"
    file.write_text(MARKS + "<{{ m.content }}>{% endif %}{% endfor %}")
    (row,) = encode_conversations(
        choose_template(str(file), tokenizer(), "it"), [make(*say("one", "two", "three", "four"))], "completion"
    )
    flags = "".join("x" if own else "." for own in row.mask)
    assert flags.strip(".").strip("x").strip(".") == ""
    assert flags[0] == "." and flags[-1] == "x" and ".x" in flags.replace("x.", "")  # noqa: PT018


def test_micro_reads_what_transformers_reads_of_it():
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoTokenizer.from_pretrained(MICRO)
    chat = make(*say("The first", "thing", "And", "more"))
    one, other = (
        encode_conversations(choose_template("auto", t, "micro"), [chat], "completion")
        for t in (FileTokenizer(MICRO), theirs)
    )
    assert one == other
    assert describe_template(choose_template("auto", theirs, "micro"), "auto", "micro") == (
        "chat template: alpaca, as the tokenizer of micro has none of its own"
    )


@pytest.mark.parametrize(
    ("template", "parts"),
    [
        (
            "{% for m in messages %}{% if m.role == 'user' %}{{ m.content }}{% endif %}{% endfor %}",
            "leaves out or changes",
        ),
        ("{% for m in messages %}{{ m.content | upper }}{% endfor %}", "leaves out or changes the response in turn 2"),
        ("{{ raise_exception('no roles here') }}", "refuses the conversation (no roles here)"),
        ("{{ messages[9].content }}", "refuses the conversation"),
        (
            "{% for m in messages %}{{ loop.last }}{{ m.content }}{% endfor %}",
            "the response in turn 2 otherwise where more turns follow",
        ),
    ],
)
def test_a_template_that_loses_responses_is_refused_with_the_place(tmp_path, template, parts):
    file = tmp_path / "mine.jinja"
    file.write_text(template)
    with pytest.raises(UserError) as e:
        show(bytes_tokenizer(), str(file), make(*say("One.", "two", "Three.", "four")))
    assert str(e.value).startswith("a.jsonl: line 1: the chat template")
    assert parts in str(e.value)


def test_of_templates_with_names_the_default_is_the_tokenizers_own():
    tokenizer = bytes_tokenizer()
    tokenizer.chat_template = {"default": "{{ messages[0].content }}", "tool_use": "y"}
    assert choose_template("auto", tokenizer, "it").source == "{{ messages[0].content }}"
    tokenizer.chat_template = {"rag": "x", "tool_use": "y"}
    with pytest.raises(
        UserError, match=r"tokenizer of it has the templates rag, tool_use and none called default; choose"
    ):
        choose_template("auto", tokenizer, "it")
    assert show(tokenizer, "plain", make(*say("One.", "two"))) == show(
        bytes_tokenizer(), "plain", make(*say("One.", "two"))
    )


def test_alpaca_has_no_tools():
    tool = make(
        {"role": "user", "content": "a"}, {"role": "tool", "content": "b"}, {"role": "assistant", "content": "c"}
    )
    with pytest.raises(UserError, match="Alpaca's format has no turns of the role tool"):
        show(bytes_tokenizer(), "alpaca", tool)


def test_a_template_that_cannot_be_used_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"give auto, alpaca, chatml, plain or a Jinja file that is there"):
        choose_template(str(tmp_path / "no.jinja"), bytes_tokenizer(), "it")
    with pytest.raises(UserError, match=r"the tokenizer of micro has no <\|im_end\|>"):
        choose_template("chatml", FileTokenizer(MICRO), "micro")
    endless = FileTokenizer(MICRO)
    endless.eos_token_id = None
    with pytest.raises(UserError, match="no token for the end of a sequence"):
        choose_template("auto", endless, "micro")


def test_rows_are_cut_and_padded_and_selected():
    from fedfault.text.conversing import EncodedConversation

    rows = [
        EncodedConversation([1, 2, 3, 4, 5], [False, False, True, True, True]),
        EncodedConversation([6, 7], [False, True]),
    ]
    r = Responses.from_rows(rows, 4, padding=9)
    assert r.ids.tolist() == [[1, 2, 3, 4], [6, 7, 9, 9]]
    assert r.mask.tolist() == [[False, True, True], [True, False, False]]
    assert (r.targets.tolist(), r.num_tokens, r.lengths.tolist()) == ([2, 1], 3, [4, 2])
    short = r[[1]]
    assert (short.ids.tolist(), short.mask.tolist()) == ([[6, 7]], [[True]])
    both = Responses.concatenate([short, r])
    assert both.ids.tolist() == [[6, 7, 0, 0], [1, 2, 3, 4], [6, 7, 9, 9]]
    assert both.targets.tolist() == [1, 2, 1]
