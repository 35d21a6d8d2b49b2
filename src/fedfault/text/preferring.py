"""Preferences as pairs of rows of tokens: a prompt with the response that is chosen, and with the one that is rejected."""

from __future__ import annotations

from collections.abc import Sequence

from fedfault.text.conversing import ChatTemplate, EncodedConversation, check_responses, count_common
from fedfault.text.tokens import encode_texts
from fedfault.types.corpus import Conversation


def encode_preferences(
    template: ChatTemplate, preferences: Sequence[Conversation]
) -> list[tuple[EncodedConversation, EncodedConversation]]:
    """Encode preferences in full; the tokens that count are those of the two responses, with the end of their turns.

    They begin where the tokens of the prompt, open for an answer, differ from those with one of the two responses: in both
    rows at the same place, as in TRL's `DPOTrainer`. Raises `UserError` where the template leaves out a response.
    """
    sides = [(c, c.worse) for c in preferences]
    texts = [[template.render(side) for side in pair] for pair in sides]
    for pair, written in zip(sides, texts, strict=True):
        for side, text in zip(pair, written, strict=True):
            check_responses(template, side, text)
    prompts = [template.render(c, c.prompt, open=True) for c in preferences]
    ids = iter(encode_texts(template.tokenizer, [*prompts, *(text for pair in texts for text in pair)]))
    opened = [next(ids) for _ in prompts]
    out = []
    for before in opened:
        rows = next(ids), next(ids)
        start = min(count_common(before, row) for row in rows)
        better, worse = (EncodedConversation(row.tolist(), [i >= start for i in range(len(row))]) for row in rows)
        out.append((better, worse))
    return out
