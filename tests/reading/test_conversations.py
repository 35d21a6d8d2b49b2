"""Rows as conversations: every shape gives the turns that it says, and what is no conversation is named with its place."""

import json

import pandas
import pytest

from fedfault.corpora.text import text
from fedfault.errors import UserError
from fedfault.reading.conversations import find_shape, read_conversation

PLACE = "a.jsonl: line 3"
USER, BETTER, WORSE = (
    {"role": role, "content": said} for role, said in (("user", "1 + 1"), ("assistant", "2"), ("assistant", "3"))
)


def read(row: dict, named: dict | None = None):
    """The turns of a row, as (role, text) or (role, text, input)."""
    shape = find_shape("a.jsonl", list(row), named)
    assert shape is not None
    return [turn if turn.input else turn[:2] for turn in read_conversation(PLACE, row, shape).turns]


def test_every_shape_gives_turns():
    two = [("user", "a"), ("assistant", "b")]
    assert read({"prompt": "a", "completion": "b"}) == two
    assert read({"question": "a", "answer": "b", "id": 1}) == two
    assert read({"instruction": "a", "output": "b"}) == two
    assert read({"instruction": "a", "input": "", "output": "b"}) == two
    assert read({"instruction": "a", "input": "c", "output": "b"}) == [("user", "a", "c"), ("assistant", "b")]
    roles = ("system", "user", "assistant", "tool", "assistant")
    messages = [{"role": role, "content": str(n)} for n, role in enumerate(roles)]
    assert read({"messages": messages}) == [(role, str(n)) for n, role in enumerate(roles)]
    assert read({"conversations": messages}) == read({"messages": messages})
    shared = [{"from": who, "value": said} for who, said in (("system", "s"), ("human", "a"), ("gpt", "b"))]
    assert read({"conversations": shared, "id": 1}) == [("system", "s"), *two]
    sides = {"prompt": messages[:2], "completion": messages[2:3]}
    assert read(sides) == [("system", "0"), ("user", "1"), ("assistant", "2")]


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "a", "completion": "b"},
        {"question": "a", "answer": "b"},
        {"instruction": "a", "input": "", "output": "b"},
        {"prompt": "a", "chosen": "b", "rejected": "c"},
    ],
)
def test_a_column_system_is_the_first_turn_where_it_holds_anything(row):
    two = [("user", "a"), ("assistant", "b")]
    assert read({"system": "Be short.", **row}) == [("system", "Be short."), *two]
    assert read({"system": None, **row}) == read({"system": " ", **row}) == read(row) == two
    assert read({"task": "Be short.", **row}, {"system": "task", **{part: part for part in row}})[0][0] == "system"


def test_a_preference_with_a_column_system_has_both_responses_behind_it():
    row = {"system": "Be short.", "prompt": "a", "chosen": "b", "rejected": "c"}
    found = read_conversation(PLACE, row, {part: part for part in row})
    assert found.prompt == 2
    assert [turn.text for turn in found.worse.turns] == ["Be short.", "a", "c"]
    two = {**row, "prompt": [{"role": "system", "content": "Else"}, USER]}
    with pytest.raises(UserError, match="turns 1 and 2 are both of the role system"):
        read_conversation(PLACE, two, {part: part for part in row})


def test_a_turn_that_is_not_to_be_learned_is_refused():
    messages = [USER, {**BETTER, "weight": 0}, USER, {**BETTER, "weight": 1}]
    with pytest.raises(UserError, match=r"line 3: message 2 of 'messages' has the weight 0: all turns"):
        read({"messages": messages})
    assert len(read({"messages": [USER, {**BETTER, "weight": 1}]})) == 2
    shared = [{"from": "human", "value": "a", "weight": 0}, {"from": "gpt", "value": "b", "weight": 0}]
    with pytest.raises(UserError, match=r"line 3: message 2 of 'conversations' has the weight 0"):
        read({"conversations": shared})


@pytest.mark.parametrize("key", ["reasoning_content", "thinking", "function_call", "images"])
def test_what_a_message_holds_beside_its_content_is_refused_and_not_left_out_unsaid(key):
    with pytest.raises(
        UserError, match=f"message 2 of 'messages' has {key} beside its role and content, which is not read"
    ):
        read({"messages": [USER, {**BETTER, key: "first think"}]})
    shared = [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b", key: ["x"]}]
    with pytest.raises(UserError, match=f"has {key} beside its role and content"):
        read({"conversations": shared})
    for nothing in (None, "", [], {}):
        assert len(read({"messages": [USER, {**BETTER, key: nothing}]})) == 2


def test_what_says_where_a_message_comes_from_is_left_out():
    two = [{**USER, "id": 7, "name": "ann"}, {**BETTER, "model": "m", "timestamp": 1.5, "toxic": False}]
    assert read({"messages": two}) == [("user", "1 + 1"), ("assistant", "2")]


@pytest.mark.parametrize("column", ["tools", "functions", "documents"])
def test_tools_and_documents_beside_messages_are_not_left_out_unsaid(column):
    said = f"messages would be read and {column} is there too, on which the response may depend; write it into messages, or"
    with pytest.raises(UserError, match=said) as e:
        find_shape("a.jsonl", ["messages", column])
    assert str(e.value).endswith("leave it out with data.columns={messages: messages}")
    assert find_shape("a.jsonl", ["messages", column], {"messages": "messages"}) == {"messages": "messages"}


def test_responses_that_a_column_calls_bad_are_not_learned_unsaid(tmp_path):
    """Data for KTO: prompt, completion and a label that says whether the completion is a good one."""
    rows = [{"prompt": f"p {i}", "completion": f"c {i}", "label": i % 2 == 0} for i in range(20)]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(UserError, match="label is true or false beside prompt, completion") as e:
        text(path=str(tmp_path / "a.jsonl"))
    assert "data.columns={prompt: prompt, completion: completion} to learn all" in str(e.value)
    both = {"prompt": "prompt", "completion": "completion"}
    assert len(text(path=str(tmp_path / "a.jsonl"), columns=both).conversations) == 20
    (tmp_path / "b.jsonl").write_text("\n".join(json.dumps({**row, "label": "news"}) for row in rows))
    assert len(text(path=str(tmp_path / "b.jsonl")).conversations) == 20


def test_columns_of_other_names_are_named_and_numbers_are_text():
    assert read({"query": 6, "reply": 7.0}, {"prompt": "query", "completion": "reply"}) == [
        ("user", "6"),
        ("assistant", "7"),
    ]


def test_a_prompt_of_several_turns_is_told_from_its_completion():
    """What the assistant says in it is not learned; a prompt without responses has nothing to leave out."""
    chat = [{"role": role, "content": role} for role in ("user", "assistant", "user")]
    row = {"system": "Be brief.", "prompt": chat, "completion": [BETTER]}
    shape = {part: part for part in row}
    assert read_conversation(PLACE, row, shape).prompt == 4
    assert read_conversation(PLACE, {**row, "system": None}, shape).prompt == 3
    assert read_conversation(PLACE, {**row, "prompt": chat[:1]}, shape).prompt == 0
    assert read_conversation(PLACE, {"messages": [*chat, BETTER]}, {"messages": "messages"}).prompt == 0


def test_other_columns_are_no_conversation():
    assert find_shape("a.csv", ["text", "label"]) is None
    assert find_shape("a.csv", ["prompt", "chosen"]) is None


@pytest.mark.parametrize(
    ("columns", "named", "parts"),
    [
        (
            ["prompt", "completion", "messages"],
            None,
            "fit several shapes, messages and prompt, completion; say which: "
            "data.columns={messages: messages} or data.columns={prompt: prompt, completion: completion}",
        ),
        (["question", "answer", "instruction", "output"], None, "several shapes"),
        (["query", "reply"], {"promt": "query"}, "'promt'; did you mean 'prompt'"),
        (["query", "reply"], {"prompt": "qery", "completion": "reply"}, "no column 'qery'; did you mean 'query'"),
        (["query", "reply"], {"prompt": "query"}, "needs all parts of one shape"),
        (["query", "reply"], {"prompt": "query", "answer": "reply"}, "needs all parts of one shape"),
        (["query", "reply"], {}, "names nothing"),
    ],
)
def test_columns_that_are_not_clear_are_refused(columns, named, parts):
    with pytest.raises(UserError) as e:
        find_shape("a.jsonl", columns, named)
    assert parts in str(e.value)


def chat(*roles: str, content: object = "x") -> dict:
    return {"messages": [{"role": role, "content": content} for role in roles]}


@pytest.mark.parametrize(
    ("row", "parts"),
    [
        ({"prompt": "a", "completion": None}, "the response is missing or empty"),
        ({"prompt": "a", "completion": " \n"}, "the response is missing or empty"),
        ({"question": "a", "answer": float("nan")}, "the response is missing or empty"),
        ({"prompt": "a", "completion": ["b"]}, "message 1 of 'completion' is a str"),
        ({"prompt": {"a": 1}, "completion": "b"}, "column 'prompt' holds a dict"),
        (chat("user", "assistant", content=""), "the response is missing or empty"),
        (chat("user", "assistant", content=None), "the response is missing or empty"),
        (chat("user", "assistant", content=[{"type": "text"}]), "holds a list as its content"),
        (chat("user", "assistant", "user"), "ends with a turn of the role user"),
        (chat("assistant", "user", "assistant"), "begins with the assistant"),
        (chat("system"), "has only a turn of the role system"),
        (chat("system", "user", "system", "assistant"), "turns 1 and 3 are both of the role system"),
        (chat("user", "system", "assistant"), "turn 2 is of the role system"),
        (chat("human", "assistant"), "role 'human'; did you mean 'user'? (known: system, user, assistant, tool)"),
        (chat("user", "Assistant"), "role 'Assistant' (known"),
        ({"messages": []}, "holds nothing"),
        ({"messages": None}, "holds nothing"),
        ({"messages": "user: a"}, "holds a str, where a list of {role, content} is needed"),
        ({"conversations": [{"from": "human", "value": "a"}]}, "ends with a turn of the role user"),
        ({"conversations": [{"from": "alien", "value": "a"}]}, "has the role 'alien' (known"),
        ({"conversations": [{"from": ["human"], "value": "a"}]}, "has the role ['human'] (known"),
        ({"messages": [{"role": "assistant", "content": "", "tool_calls": [{}]}]}, "has tool_calls"),
    ],
)
def test_what_is_no_conversation_is_named_with_its_place(row, parts):
    with pytest.raises(UserError) as e:
        read(row)
    assert str(e.value).startswith(PLACE)
    assert parts in str(e.value)


ROWS = [{"prompt": f"What is {n}?", "completion": f"It is {n}.", "kind": "odd" if n % 2 else "even"} for n in range(20)]


@pytest.mark.parametrize("ending", ["csv", "json", "jsonl", "parquet"])
def test_every_format_holds_conversations_with_topics(tmp_path, ending):
    file = tmp_path / f"a.{ending}"
    if ending == "csv":
        pandas.DataFrame(ROWS).to_csv(file, index=False)
    elif ending == "parquet":
        pandas.DataFrame(ROWS).to_parquet(file)
    else:
        lines = [json.dumps(row) for row in ROWS]
        file.write_text(f"[{','.join(lines)}]" if ending == "json" else "\n".join(lines))
    corpus = text(path=str(file), topic_column="kind")
    assert len(corpus.train) == 18
    assert {d.topic for d in corpus.validation} == {"odd", "even"}
    for document in (*corpus.train, *corpus.validation):
        asked, response = corpus.conversations[document.text].turns
        assert document.text == f"{asked.text}\n{response.text}"


def test_a_bad_row_of_a_file_is_named_by_its_line(tmp_path):
    file = tmp_path / "a.jsonl"
    file.write_text("\n\n".join(json.dumps(row) for row in [ROWS[0], {**ROWS[1], "completion": ""}]))
    with pytest.raises(UserError, match=r"a\.jsonl: line 3: the response is missing"):
        text(path=str(file))


def test_text_and_conversations_in_one_table_or_folder_are_not_guessed(tmp_path):
    file = tmp_path / "a.jsonl"
    file.write_text("\n".join(json.dumps({"text": f"t{n}", **row}) for n, row in enumerate(ROWS)))
    with pytest.raises(
        UserError, match=r"say which is read: data\.text_columns=\[text\] or data\.columns=\{prompt: prompt"
    ):
        text(path=str(file))
    assert not text(path=str(file), text_columns=["text"]).conversations
    assert text(path=str(file), columns={"prompt": "prompt", "completion": "completion"}).conversations
    with pytest.raises(UserError, match="give one of them"):
        text(path=str(file), columns={"prompt": "prompt", "completion": "completion"}, text_columns=["text"])
    file.write_text("\n".join(map(json.dumps, ROWS)))
    (tmp_path / "b.jsonl").write_text('{"text": "plain"}')
    with pytest.raises(UserError, match="some tables hold conversations and others plain text"):
        text(path=str(tmp_path))


def test_a_preference_is_a_prompt_with_two_responses():
    prompt = [{"role": "system", "content": "Be short."}, {"role": "user", "content": "1 + 1"}]
    row = {"prompt": prompt, "chosen": "2", "rejected": "3"}
    found = read_conversation("line 1", row, {part: part for part in row})
    assert [turn.text for turn in found.turns] == ["Be short.", "1 + 1", "2"]
    assert ([turn.text for turn in found.worse.turns], found.prompt) == (["Be short.", "1 + 1", "3"], 2)
    assert found.text == "Be short.\n1 + 1\n2\n3"  # other rejected responses make other examples


def test_the_prompt_of_a_preference_is_what_both_responses_begin_with():
    """As TRL's `extract_prompt` has it, also beside a column that repeats the prompt as text."""
    turns = [
        {"role": role, "content": said} for role, said in (("user", "1 + 1"), ("assistant", "Of?"), ("user", "Us."))
    ]
    sides = {
        part: [*turns, {"role": "assistant", "content": said}] for part, said in (("chosen", "2"), ("rejected", "3"))
    }
    for row in (sides, {"prompt": "1 + 1", **sides}):
        shape = find_shape("a.jsonl", list(row))
        assert shape == {part: part for part in row}
        found = read_conversation("line 1", row, shape)
        assert found.prompt == 3
        assert [c.turns[3:] for c in (found, found.worse)] == [(("assistant", "2", ""),), (("assistant", "3", ""),)]


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"chosen": "2", "rejected": "3"}, "no column holds the prompt"),
        ({"prompt": "Else?", "chosen": [USER, BETTER], "rejected": [USER, WORSE]}, "turns that do not hold the prompt"),
        ({"chosen": [USER, BETTER], "rejected": [BETTER, WORSE]}, "no column holds the prompt"),
        ({"chosen": [USER, BETTER], "rejected": [{**USER, "content": "2 + 2"}, WORSE]}, "do not begin with the same"),
        ({"chosen": [USER, BETTER], "rejected": [USER, BETTER]}, "the chosen response is the rejected one"),
        ({"chosen": [USER, BETTER], "rejected": [USER]}, "do not begin with the same turns"),
    ],
)
def test_responses_that_begin_with_no_common_prompt_are_refused(row, says):
    with pytest.raises(UserError, match=f"^line 1: .*{says}"):
        read_conversation("line 1", row, {part: part for part in row})


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"rejected": ""}, "the response is missing or empty"),
        ({"rejected": "2"}, "the chosen response is the rejected one"),
        (
            {"prompt": [USER], "chosen": [USER, BETTER]},
            "without the prompt",
        ),
    ],
)
def test_what_is_no_preference_is_refused(changes, says):
    row = {"prompt": "1 + 1", "chosen": "2", "rejected": "3", **changes}
    with pytest.raises(UserError, match=says):
        read_conversation("line 1", row, {part: part for part in row})


@pytest.mark.parametrize(
    ("columns", "says"),
    [
        (["question", "choices", "answer", "subject"], "write it into the prompt, or leave it out with data.columns="),
        (
            ["question", "passage", "answer"],
            "data.columns={instruction: question, input: passage, output: answer} reads it",
        ),
        (["prompt", "completion", "options", "history"], "write them into the prompt, or leave them out"),
        (["messages", "context"], "write it into messages"),
        (["messages", "system"], "write it into messages"),
        (
            ["question", "answer", "system_prompt"],
            "{system: system_prompt, question: question, answer: answer} reads it",
        ),
        (
            ["system", "question", "answer", "context"],
            "{system: system, instruction: question, input: context, output: answer} reads it",
        ),
        (["prompt", "chosen", "rejected", "context"], "write it into the prompt"),
    ],
)
def test_a_column_on_which_the_response_may_depend_is_not_left_out_unsaid(columns, says):
    with pytest.raises(UserError, match="on which the response may depend") as e:
        find_shape("a.jsonl", columns)
    assert says in str(e.value)
    beside = {"choices", "subject", "passage", "options", "history", "context", "system_prompt"}
    part = {name: name for name in columns if name not in beside | ({"system"} if "messages" in columns else set())}
    assert find_shape("a.jsonl", columns, part) == part  # said


@pytest.mark.parametrize(
    ("columns", "named"),
    [
        (["instruction", "context", "response"], r"\{instruction: instruction, input: context, output: response\}"),
        (["query", "reply"], r"\{instruction: query, output: reply\}"),
    ],
)
def test_columns_that_could_be_instructions_and_responses_are_named_and_not_guessed(tmp_path, columns, named):
    file = tmp_path / "a.jsonl"
    file.write_text("\n".join(json.dumps({name: f"{name} {n}" for name in columns}) for n in range(3)))
    with pytest.raises(UserError, match=f"none fit a shape of conversations, .* data.columns={named} prompts with"):
        text(path=str(file))


def test_a_row_of_csv_is_named_by_the_line_that_it_begins_in(tmp_path):
    file = tmp_path / "a.csv"
    file.write_text('prompt,completion\n"a\nb","c\n"\n"d\ne",\n')
    with pytest.raises(UserError, match=r"a\.csv: line 5: the response is missing"):
        text(path=str(file))


def write_rows(path, rows):
    path.write_text("\n".join(map(json.dumps, rows)))
    return str(path)


TWINS = [
    {"prompt": "a\nb", "completion": "c"},
    {"prompt": "a", "completion": "b\nc"},
    {"prompt": "A ", "completion": "B c"},  # the second again
    {"prompt": "x", "completion": "y"},
]


@pytest.mark.parametrize("keep", [False, True])
def test_conversations_that_say_the_same_in_other_turns_are_not_the_same(tmp_path, keep):
    corpus = text(path=write_rows(tmp_path / "a.jsonl", TWINS), keep_repeats=keep)
    learned = [corpus.conversations[d.text].turns for d in (*corpus.train, *corpus.validation)]
    said = [("a\nb", "c"), ("a", "b\nc"), ("x", "y"), *([("A ", "B c")] if keep else [])]
    assert sorted(tuple(turn.text for turn in own) for own in learned) == sorted(said)
    assert corpus.tally.repeated == (0 if keep else 1)


def test_preferences_that_say_the_same_are_told_apart_by_what_is_rejected(tmp_path):
    rows = [{"prompt": "a", "chosen": b, "rejected": c} for b, c in (("b\nc", "d"), ("b", "c\nd"), ("e", "f"))]
    corpus = text(path=write_rows(tmp_path / "a.jsonl", rows))
    rejected = [corpus.conversations[d.text].rejected[0].text for d in (*corpus.train, *corpus.validation)]
    assert sorted(rejected) == ["c\nd", "d", "f"]


def test_an_instruction_with_an_input_is_not_the_one_that_says_both(tmp_path):
    rows = [{"instruction": "a\nb", "input": "", "output": "c"}, {"instruction": "a", "input": "b", "output": "c"}]
    corpus = text(path=write_rows(tmp_path / "a.jsonl", rows))
    assert {own.turns[0].input for own in corpus.conversations.values()} == {"", "b"}
    assert len(corpus.train) == len(corpus.validation) == 1


def test_several_pairs_of_one_prompt_are_never_on_both_sides(tmp_path):
    rows = [{"prompt": f"Which {n // 8}?", "chosen": f"best {n // 8}", "rejected": f"bad {n}"} for n in range(240)]
    corpus = text(path=write_rows(tmp_path / "a.jsonl", rows))
    trained, tried = ({corpus.conversations[d.text].turns for d in side} for side in (corpus.train, corpus.validation))
    assert len(tried) == 3
    assert not trained & tried


def test_the_opening_of_a_conversation_is_what_is_said_before_the_first_response():
    roles = ("system", "user", "assistant", "user", "assistant")
    messages = [{"role": role, "content": f"{role} {n}"} for n, role in enumerate(roles)]
    assert read_conversation(PLACE, {"messages": messages}, {"messages": "messages"}).opening == "system 0\nuser 1"
    row = {"instruction": "Add", "input": "1 + 2", "output": "3"}
    assert read_conversation(PLACE, row, {part: part for part in row}).opening == "Add\n1 + 2"


@pytest.mark.parametrize("name", ["article", "story", "paragraph", "knowledge"])
def test_what_a_question_is_about_is_not_left_out(name):
    with pytest.raises(
        UserError, match=rf"and {name} is there too.*\{{instruction: question, input: {name}, output: answer\}}"
    ):
        find_shape("a.jsonl", [name, "question", "answer"])
