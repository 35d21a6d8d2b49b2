"""Rows of a table as conversations: instructions with their responses, in the columns that people have them in.

    messages                        a list of {role, content}, which ends with the assistant
    conversations                   the same, or ShareGPT's list of {from, value}
    prompt, completion              two texts, or two such lists
    instruction, input, output      as Alpaca has them; the input may be empty, or the column missing
    question, answer
    prompt, chosen, rejected        a preference: two texts or lists of messages that answer the prompt, the better one first
    chosen, rejected                the same as lists of messages that begin with the prompt

All but lists of messages alone may stand beside a column `system`: the first turn, where it holds anything.
Each becomes turns of roles. Nothing is guessed: columns that fit two shapes must be named, a column beside a shape that says
what the response depends on (`choices`, `context`) is not left out unless that is said, and a row that is no conversation is
an error with its place.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fedfault.errors import UserError, suggest
from fedfault.reading.cells import write_cell
from fedfault.types.corpus import ASSISTANT, ROLES, SYSTEM, USER, Conversation, Turn

SHAPES = (  # parts of a shape, the last of which is the response; those in OPTIONAL may be missing
    ("messages",),
    ("conversations",),
    ("system", "prompt", "completion"),
    ("system", "instruction", "input", "output"),
    ("system", "question", "answer"),
    ("system", "prompt", "chosen", "rejected"),
    ("chosen", "rejected"),
)
OPTIONAL = {"system", "input"}
PARTS = sorted({part for shape in SHAPES for part in shape})
OTHER_ROLES = {"human": USER, "gpt": ASSISTANT, "bot": ASSISTANT, "model": ASSISTANT, "function": "tool"}
OTHER_NAMES = {  # columns that are called otherwise in public data sets, by the part that they hold
    "system": ("system", "system_prompt"),
    "instruction": ("instruction", "prompt", "question", "query", "input"),
    "input": ("context",),
    "output": ("output", "response", "answer", "completion", "reply", "target"),
}
# beside a shape: what a question is about
TEXTS = ("context", "passage", "document", "input", "article", "story", "paragraph", "knowledge")
# A response may depend on it
BESIDE = (
    *TEXTS,
    "choices",
    "options",
    "candidates",
    "system",
    "system_prompt",
    "history",
    "tools",
    "functions",
    "documents",
)
READ = {"role", "content", "tool_calls", "weight"}  # keys of a message
# Keys of a message beside its role and content that say where it comes from, and nothing that a model could learn
ABOUT = {
    "id", "message_id", "parent_id", "tool_call_id", "turn_identifier", "index", "turn", "name", "model", "source",
    "timestamp", "created_at", "language", "lang", "country", "hashed_ip", "header", "state", "toxic", "redacted", "tokens",
}  # fmt: skip

Shape = Mapping[str, str]  # part of the shape -> the column that holds it


def find_shape(where: str, known: Sequence[str], named: Mapping[str, str] | None = None) -> Shape | None:
    """Find which columns of a table hold conversations; None for a table of other columns.

    named: `data.columns`, part -> column; None: a column is called like its part. Raises `UserError` for columns that fit
    two shapes, for a column beside a shape on which the response may depend, and for a part or a column that is not there.

    >>> find_shape("a.jsonl", ["task", "question", "answer"])
    {'question': 'question', 'answer': 'answer'}
    """
    if named is not None:
        return _check_named(where, known, named)
    whole = [shape for shape in SHAPES if _is_whole(shape, known)]
    widest = [shape for shape in whole if not any({*shape} < {*other} for other in whole)]
    found = [{part: part for part in shape if part in known} for shape in widest]
    if len(found) > 1:
        each = " and ".join(", ".join(shape) for shape in found)
        ways = " or ".join(f"data.columns={spell_shape(shape)}" for shape in found)
        raise UserError(f"{where}: the columns fit several shapes, {each}; say which: {ways}")
    if found and (beside := [name for name in BESIDE if name in known and name not in found[0]]):
        raise UserError(f"{where}: {_explain_beside(found[0], beside)}")
    return found[0] if found else None


def _explain_beside(shape: Shape, beside: Sequence[str]) -> str:
    """Say that columns would not be read on which the response may depend, and how they are read or left out."""
    parts = [part for part in shape if part != "system"]
    reads = f"write {'it' if len(beside) == 1 else 'them'} into {'the prompt' if len(parts) > 1 else parts[0]}"
    if beside == ["system_prompt"] and len(parts) > 1 and "system" not in shape:
        reads = f"data.columns={spell_shape({'system': beside[0], **shape})} reads it too"
    elif len(beside) == 1 and beside[0] in TEXTS and len(parts) == 2 and "rejected" not in parts:
        system = {"system": "system"} if "system" in shape else {}
        both = {**system, "instruction": parts[0], "input": beside[0], "output": parts[1]}
        reads = f"data.columns={spell_shape(both)} reads it too"
    verb = "is" if len(beside) == 1 else "are"
    return (
        f"{', '.join(shape)} would be read and {', '.join(beside)} {verb} there too, on which the response may depend; "
        f"{reads}, or leave {'it' if len(beside) == 1 else 'them'} out with data.columns={spell_shape(shape)}"
    )


def spell_shape(shape: Shape) -> str:
    """Write a shape as `data.columns` takes it."""
    return f"{{{', '.join(f'{part}: {column}' for part, column in shape.items())}}}"


def name_columns(known: Sequence[str]) -> str:
    """Name the columns of a table as `data.columns` could; empty where none are called like an instruction and a response.

    >>> name_columns(["instruction", "context", "response", "category"])
    '{instruction: instruction, input: context, output: response}'
    """
    found = {part: next((n for n in names if n in known), None) for part, names in OTHER_NAMES.items()}
    if not found["instruction"] or not found["output"]:
        return ""
    return spell_shape({part: column for part, column in found.items() if column})


def _is_whole(shape: Sequence[str], known: Sequence[str] | Mapping[str, str]) -> bool:
    return all(part in known for part in shape if part not in OPTIONAL)


def _check_named(where: str, known: Sequence[str], named: Mapping[str, str]) -> Shape:
    for part, column in named.items():
        if part not in PARTS:
            raise UserError(f"data.columns has the part {part!r}{suggest(part, PARTS)}; known are {', '.join(PARTS)}")
        if column not in known:
            raise UserError(
                f"{where}: no column {column!r}{suggest(column, known)}, which data.columns names as {part} "
                f"(known: {', '.join(known)})"
            )
    if not any(_is_whole(shape, named) and set(named) <= set(shape) for shape in SHAPES):
        shapes = "; ".join(", ".join(shape) for shape in SHAPES)
        raise UserError(
            f"data.columns names {', '.join(named) or 'nothing'}; it needs all parts of one shape: {shapes}"
        )
    return dict(named)


def read_conversation(place: str, row: Mapping[str, Any], shape: Shape) -> Conversation:
    """Read the conversation of a row whose place (file and line) errors name.

    Raises `UserError` for a missing or empty response, a role that is not known, system turns that are two or not the
    first, a conversation that does not end with the assistant, and what is no text.

    >>> read_conversation("line 1", {"q": "1 + 1", "a": 2}, {"question": "q", "answer": "a"}).turns
    (Turn(role='user', text='1 + 1', input=''), Turn(role='assistant', text='2', input=''))
    """
    cells = {part: row.get(column) for part, column in shape.items()}
    system = _write_text(place, shape.get("system", "system"), cells.pop("system", None))
    first = [Turn(SYSTEM, system)] if system.strip() else []
    asked = 0  # turns of a prompt with responses of its own, which are not learned
    if len(cells) == 1:
        ((part, value),) = cells.items()
        turns = _read_messages(place, shape[part], value)
    elif "instruction" in cells:
        text, more = (_write_text(place, shape.get(part, part), cells.get(part)) for part in ("instruction", "input"))
        turns = [Turn(USER, text, more), *_read_side(place, shape["output"], cells["output"], ASSISTANT)]
    elif "rejected" in cells:
        return _read_preference(place, cells, shape, first)
    else:
        (before, response) = ("prompt", "completion") if "prompt" in cells else ("question", "answer")
        turns = _read_side(place, shape[before], cells[before], USER)
        asked = len(turns) if any(turn.role == ASSISTANT for turn in turns) else 0
        turns += _read_side(place, shape[response], cells[response], ASSISTANT)
    turns = [*first, *turns]
    _check_turns(place, turns)
    return Conversation(tuple(turns), place, prompt=asked and len(first) + asked)


def _read_preference(place: str, cells: Mapping[str, Any], shape: Shape, first: Sequence[Turn]) -> Conversation:
    """Read a prompt with two responses, of which both may begin with it where they are messages; `first` goes before it.

    Raises `UserError` also for responses that are the same, and for a prompt that they do not begin with.
    """
    sides = {part: _read_side(place, shape[part], cells[part], ASSISTANT) for part in ("chosen", "rejected")}
    if "prompt" in cells and (isinstance(cells["prompt"], list) or not _begins_with_prompt(sides)):
        prompt = _read_side(place, shape["prompt"], cells["prompt"], USER)
    else:
        prompt = _split_prompt(place, cells, shape, sides)
    prompt = [*first, *prompt]
    for part, turns in sides.items():
        if turns[0].role != ASSISTANT:
            raise UserError(
                f"{place}: column {shape[part]!r} begins with a turn of the role {turns[0].role}; it holds the response "
                "alone, without the prompt"
            )
        _check_turns(f"{place}: column {shape[part]!r}", [*prompt, *turns])
    if sides["chosen"] == sides["rejected"]:
        raise UserError(
            f"{place}: the chosen response is the rejected one, so that nothing is preferred; remove the row"
        )
    return Conversation((*prompt, *sides["chosen"]), place, tuple(sides["rejected"]), len(prompt))


def _begins_with_prompt(sides: Mapping[str, Sequence[Turn]]) -> bool:
    return all(turns[0].role != ASSISTANT for turns in sides.values())


def _split_prompt(place: str, cells: Mapping[str, Any], shape: Shape, sides: dict[str, list[Turn]]) -> list[Turn]:
    """Take the turns that both responses begin with from them, and return these: the prompt."""
    better, worse = sides.values()
    if not _begins_with_prompt(sides):
        raise UserError(
            f"{place}: no column holds the prompt, and {shape['chosen']!r} and {shape['rejected']!r} are not both lists of "
            "messages that begin with it; write it into a column prompt"
        )
    most = min(len(better), len(worse)) - 1  # of each something is left
    shared = next((i for i in range(most) if better[i] != worse[i]), most)
    prompt = better[:shared]
    said = cells.get("prompt")
    if not prompt or (said is not None and " ".join(write_cell(said).split()) not in {_join(t) for t in prompt}):
        what = "do not begin with the same turns" if not prompt else "begin with turns that do not hold the prompt"
        raise UserError(f"{place}: columns {shape['chosen']!r} and {shape['rejected']!r} {what}; mend the row")
    sides |= {"chosen": better[shared:], "rejected": worse[shared:]}
    return prompt


def _join(turn: Turn) -> str:
    return " ".join(turn.text.split())


def _read_side(place: str, column: str, value: Any, role: str) -> list[Turn]:
    """Read a prompt or a response: a text, which is one turn of this role, or a list of messages."""
    if isinstance(value, list):
        return _read_messages(place, column, value)
    return [Turn(role, _write_text(place, column, value))]


def _read_messages(place: str, column: str, value: Any) -> list[Turn]:
    if not isinstance(value, list) or not value:
        what = "nothing" if not write_cell(value).strip() or value == [] else f"a {type(value).__name__}"
        raise UserError(
            f"{place}: column {column!r} holds {what}, where a list of {{role, content}} is needed; write such lists to "
            "a .jsonl or .parquet file"
        )
    return [_read_message(f"{place}: message {n} of {column!r}", message) for n, message in enumerate(value, start=1)]


def _read_message(place: str, message: Any) -> Turn:
    if isinstance(message, dict) and {"from", "value"} <= set(message):  # ShareGPT's names
        rest = {key: value for key, value in message.items() if key not in ("from", "value")}
        message = {**rest, "role": OTHER_ROLES.get(str(message["from"]), message["from"]), "content": message["value"]}
    if not isinstance(message, dict) or not {"role", "content"} <= set(message):
        has = (
            f"has {', '.join(message) or 'nothing'}" if isinstance(message, dict) else f"is a {type(message).__name__}"
        )
        raise UserError(f"{place} {has}, where role and content are needed")
    role = message["role"]
    if role not in ROLES:
        near = OTHER_ROLES.get(role) if isinstance(role, str) else None
        raise UserError(
            f"{place} has the role {role!r}{f'; did you mean {near!r}?' if near else ''} (known: {', '.join(ROLES)})"
        )
    if message.get("tool_calls"):
        raise UserError(f"{place} has tool_calls, which are not read; write the call as the message's content")
    if role == ASSISTANT and message.get("weight") not in (None, 1):
        raise UserError(
            f"{place} has the weight {message['weight']!r}: all turns of the assistant are learned alike; end the "
            "conversation before it, or remove the weight"
        )
    _refuse_more(place, message)
    if message["content"] is not None and not isinstance(message["content"], str):
        raise UserError(f"{place} holds a {type(message['content']).__name__} as its content, where text is needed")
    return Turn(role, message["content"] or "")


def _refuse_more(place: str, message: Mapping[str, Any]) -> None:
    """Raise `UserError` for a message that holds more than is read, such as thoughts, calls or images."""
    found = [key for key, value in message.items() if key not in READ | ABOUT and value not in (None, "", [], {})]
    if found:
        verb, them = ("is", "it") if len(found) == 1 else ("are", "them")
        raise UserError(
            f"{place} has {', '.join(map(str, found))} beside its role and content, which {verb} not read; write {them} "
            f"into the content, or remove {them}"
        )


def _write_text(place: str, column: str, value: Any) -> str:
    if isinstance(value, dict | list | bytes):
        raise UserError(f"{place}: column {column!r} holds a {type(value).__name__}, where text is needed")
    return write_cell(value)


def _check_turns(place: str, turns: Sequence[Turn]) -> None:
    """Raise `UserError` unless the turns are a conversation that ends with a response and has no empty one."""
    systems = [n for n, turn in enumerate(turns, start=1) if turn.role == SYSTEM]
    if len(systems) > 1:
        raise UserError(f"{place}: turns {systems[0]} and {systems[1]} are both of the role system; join them into one")
    if len(turns) == len(systems):
        raise UserError(f"{place}: the conversation has only a turn of the role system; there is no response to learn")
    if systems and systems[0] != 1:
        raise UserError(f"{place}: turn {systems[0]} is of the role system, which only the first may be")
    if turns[len(systems)].role == ASSISTANT:
        raise UserError(
            f"{place}: the conversation begins with the assistant: no turn asks for its response; remove it"
        )
    if turns[-1].role != ASSISTANT:
        raise UserError(
            f"{place}: the conversation ends with a turn of the role {turns[-1].role}, so that there is no response to "
            "learn; remove its end"
        )
    for n, turn in enumerate(turns, start=1):
        if turn.role == ASSISTANT and not turn.text.strip():
            which = "the response" if len(turns) == 2 else f"the response in turn {n}"
            raise UserError(f"{place}: {which} is missing or empty; fill or remove it")
