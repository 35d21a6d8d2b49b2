"""Conversations as rows of tokens, written by a chat template, with a mask of the tokens that are the assistant's.

    <|im_start|>user \\n Add 1 and 2. <|im_end|> \\n <|im_start|>assistant \\n 3 <|im_end|> \\n
    .............................................................................xxxxxxxxxxxxx   what counts

A response begins where the tokens of the conversation so far, open for an answer, differ from those of the whole, and ends
where those of the conversation up to it do. So the mask is what TRL's is for prompts with completions, for every response
of a conversation behind its prompt; a template that marks responses itself ({% generation %}) is taken at its word, as
TRL does.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fedfault.errors import UserError, read_first_line
from fedfault.storage import expand_home
from fedfault.text.tokens import encode_texts
from fedfault.types.corpus import ASSISTANT, Conversation, Turn

SHIPPED = Path(__file__).parent / "templates"
MARKS = re.compile(r"\{%-?\s*generation\s*-?%\}")  # a template that says itself which text is the assistant's
END_OF_TURN = "<|im_end|>"  # of ChatML


class EncodedConversation(NamedTuple):
    """The tokens of a conversation."""

    ids: Sequence[int]
    mask: Sequence[bool]  # of the same length: which of them a model learns to write


@dataclass(frozen=True)
class ChatTemplate:
    """A Jinja template in the dialect of transformers, with the tokenizer that fills it in."""

    name: str  # own, alpaca, chatml, plain, or the path of a file
    source: str
    tokenizer: Any

    def render(self, conversation: Conversation, turns: int | None = None, *, open: bool = False) -> str:
        """Write the first `turns` of a conversation, by default all; `open`: up to where the assistant would begin.

        Raises `UserError` where the template refuses them.
        """
        messages = [_write_message(turn) for turn in conversation.turns[:turns]]
        try:
            text = self.tokenizer.apply_chat_template(
                messages, chat_template=self.source, tokenize=False, add_generation_prompt=open
            )
        except Exception as e:  # a template may raise whatever it likes, and so may what it calls
            raise UserError(
                f"{conversation.place}: the chat template {self.name} refuses the conversation ({read_first_line(e)}); "
                "change it, or choose another with model.chat_template"
            ) from e
        return str(text)


def choose_template(wanted: str, tokenizer: Any, model: str) -> ChatTemplate:
    """Choose the template of `model.chat_template`; auto is the tokenizer's own, or alpaca where it has none.

    Raises `UserError` for a tokenizer without end of sequence, and for a template that is not there or does not fit it.
    """
    if tokenizer.eos_token_id is None:
        raise UserError(
            f"model.name={model}: its tokenizer has no token for the end of a sequence, so that no response would end; set "
            "eos_token in the folder's tokenizer_config.json"
        )
    own = getattr(tokenizer, "chat_template", None) if wanted == "auto" else None
    if isinstance(own, dict) and "default" not in own:
        raise UserError(
            f"model.chat_template=auto: the tokenizer of {model} has the templates {', '.join(sorted(own))} and none called "
            "default; choose alpaca, plain or a Jinja file, such as one of these written to a file"
        )
    if own:
        return ChatTemplate("own", own["default"] if isinstance(own, dict) else own, tokenizer)
    name = "alpaca" if wanted == "auto" else wanted
    if name == "chatml" and END_OF_TURN not in tokenizer.get_vocab():
        raise UserError(
            f"model.chat_template=chatml: the tokenizer of {model} has no {END_OF_TURN}; use alpaca, plain or a Jinja file"
        )
    if name in ("alpaca", "chatml", "plain"):
        return ChatTemplate(name, (SHIPPED / f"{name}.jinja").read_text(encoding="utf-8"), tokenizer)
    file = expand_home(wanted, "model.chat_template")
    if not file.is_file():
        raise UserError(f"model.chat_template={wanted}: give auto, alpaca, chatml, plain or a Jinja file that is there")
    try:
        return ChatTemplate(wanted, file.read_text(encoding="utf-8"), tokenizer)
    except UnicodeDecodeError as e:
        raise UserError(f"model.chat_template={wanted}: the file is not UTF-8 text ({e})") from e


def describe_template(template: ChatTemplate, wanted: str, model: str) -> str:
    """Say which template is used, and why where it was not asked for."""
    if template.name == "own":
        return f"chat template: that of the tokenizer of {model}"
    why = f", as the tokenizer of {model} has none of its own" if wanted == "auto" else ""
    return f"chat template: {template.name}{why}"


def _write_message(turn: Turn) -> dict[str, str]:
    """Write a turn as templates read it; where the data set an input apart, both parts beside the whole."""
    if not turn.input.strip():
        return {"role": turn.role, "content": turn.text}
    return {"role": turn.role, "content": f"{turn.text}\n{turn.input}", "instruction": turn.text, "input": turn.input}


def encode_conversations(
    template: ChatTemplate, conversations: Sequence[Conversation], loss_on: str
) -> list[EncodedConversation]:
    """Encode conversations in full. loss_on: `completion` marks the responses, `all` every token.

    Raises `UserError`, with the place of the conversation, where the template leaves out or changes a response.
    """
    texts = [template.render(c) for c in conversations]
    for conversation, text in zip(conversations, texts, strict=True):
        check_responses(template, conversation, text)
    if loss_on == "all":
        return [EncodedConversation(row.tolist(), [True] * len(row)) for row in encode_texts(template.tokenizer, texts)]
    if MARKS.search(template.source):
        return [_encode_marked(template, c) for c in conversations]
    return _encode_by_difference(template, conversations, texts)


def check_responses(template: ChatTemplate, conversation: Conversation, text: str) -> None:
    """Raise `UserError`, with the place of the conversation, unless its responses behind the prompt stand in the text."""
    for n, turn in enumerate(conversation.turns, start=1):
        if n > conversation.prompt and turn.role == ASSISTANT and turn.text.strip() not in text:
            raise UserError(
                f"{conversation.place}: the chat template {template.name} leaves out or changes the response in turn {n}, "
                "which then cannot be learned; choose another with model.chat_template"
            )


def _encode_marked(template: ChatTemplate, conversation: Conversation) -> EncodedConversation:
    found = template.tokenizer.apply_chat_template(
        [_write_message(turn) for turn in conversation.turns],
        chat_template=template.source,
        tokenize=True,
        return_dict=True,
        return_assistant_tokens_mask=True,
    )
    ids, mask = list(found["input_ids"]), [bool(own) for own in found["assistant_masks"]]
    if conversation.prompt:
        (before,) = encode_texts(template.tokenizer, [template.render(conversation, conversation.prompt, open=True)])
        start = count_common(before, ids)
        mask[:start] = [False] * start
    return EncodedConversation(ids, mask)


class _Response(NamedTuple):
    """A response in a list of conversations: of which one, and the text up to its begin and to its end."""

    conversation: int
    before: str
    until: str | None  # None: to the end of the conversation


def _encode_by_difference(
    template: ChatTemplate, conversations: Sequence[Conversation], texts: Sequence[str]
) -> list[EncodedConversation]:
    found = [
        response for n, (c, text) in enumerate(zip(conversations, texts, strict=True))
        for response in _find_responses(template, c, n, text)
    ]  # fmt: skip
    ends = [r.until for r in found if r.until is not None]
    ids = iter(encode_texts(template.tokenizer, [*texts, *(r.before for r in found), *ends]))
    whole, before = ([next(ids) for _ in own] for own in (texts, found))
    masks = [[False] * len(row) for row in whole]
    for r, opened in zip(found, before, strict=True):
        row = whole[r.conversation]
        start, end = count_common(opened, row), len(row) if r.until is None else count_common(next(ids), row)
        masks[r.conversation][start:end] = [True] * (end - start)
    return [EncodedConversation(row.tolist(), mask) for row, mask in zip(whole, masks, strict=True)]


def _find_responses(template: ChatTemplate, c: Conversation, number: int, whole: str) -> Iterator[_Response]:
    """Find the responses of a conversation in its text.

    Raises `UserError` unless what the template writes before a response, and up to its end, is what stands there in the
    whole. Behind the turn before a response the two may differ: what a template adds to ask for one is not always kept.
    """
    for i, turn in enumerate(c.turns):
        if i < c.prompt or turn.role != ASSISTANT:
            continue
        before = template.render(c, i, open=True)
        last = i + 1 == len(c.turns)
        until = whole if last else template.render(c, i + 1)
        common = whole[: count_common(*(np.frombuffer(t.encode("utf-32-le"), np.uint32) for t in (before, whole)))]
        if c.turns[i - 1].text.strip() not in common or not whole.startswith(until) or turn.text.strip() not in until:
            raise UserError(
                f"{c.place}: the chat template {template.name} writes the turns up to the response in turn {i + 1} "
                "otherwise where more turns follow, so that its tokens cannot be told from the others; mark responses with "
                "{% generation %} in a file of your own"
            )
        yield _Response(number, before, None if last else until)


def count_common(a: Iterable[int], b: Iterable[int]) -> int:
    """Count the tokens, or characters, at the start that two rows have in common."""
    one, other = np.asarray(a), np.asarray(b)
    n = min(len(one), len(other))
    differs = np.flatnonzero(one[:n] != other[:n])
    return int(differs[0]) if len(differs) else n
