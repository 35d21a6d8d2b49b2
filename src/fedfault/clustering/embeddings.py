"""Vectors of texts by a frozen encoder, whose mean a client sends to the server so that clusters can be found.

    text -> first tokens -> frozen encoder -> states (T, d) -> mean over the tokens -> length one     e_text (d,)

A client sends the mean of its e_text, d numbers, once. They are information about its texts: see docs/clustering.md.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedfault.backbones.checks import check_tokens, count_positions
from fedfault.backbones.load import load_backbone, read_pooling_rule
from fedfault.backbones.scorer import FIRST, LAST, MEAN, Texts, model_inputs, pool_states
from fedfault.config.schema import Experiment
from fedfault.data.split import deal_out
from fedfault.seeds import rng
from fedfault.setup.experiment import Prepared
from fedfault.text.examples import Examples, encode_pairs
from fedfault.types.corpus import Corpus

BACKBONE = "backbone"  # the name of the run's own model among encoders
TEXTS = 64  # of a client, drawn at random: its mean is then known to an eighth of the spread of its texts
BATCH = 64  # texts in a pass


@dataclass(frozen=True)
class Encoder:
    """A frozen model that makes a vector of each text."""

    name: str
    read: Callable[[Texts], Tensor]  # one row of texts (1, B, T) -> (1, B, d)
    tokenizer: Any
    # The token that a decoder's texts begin with; None for models with special tokens of their own
    separator: int | None
    length: int  # tokens of a text that it reads, from the start
    device: torch.device

    @torch.no_grad()
    def __call__(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """Vectors of length one, (n, d)."""
        rows = encode_pairs([(text, "") for text in texts], self.tokenizer, self.length, self.separator)
        padding = getattr(self.tokenizer, "pad_token_id", None) or 0
        found = []
        for start in range(0, len(rows), BATCH):
            some = Examples.from_rows(rows[start : start + BATCH], [0] * len(rows[start : start + BATCH]), padding)
            ids, lengths, second = (t[None].to(self.device) for t in (some.ids, some.lengths, some.second))
            states = self.read(Texts(ids, lengths, second, paired=False))[0]
            found.append(torch.nn.functional.normalize(states.cpu().double(), dim=-1).numpy())
        return np.concatenate(found)


def make_encoder(p: Prepared, name: str = BACKBONE) -> Encoder:
    """The run's own backbone as it was before training, or any model by the names that `model.name` takes.

    Sentence encoders pool their states as their makers say (first token, last token, else mean), all others by the mean.
    Raises `UserError` for a model that cannot be loaded.
    """
    return _use_own_backbone(p) if name == BACKBONE else _load_other(name, p)


def _use_own_backbone(p: Prepared) -> Encoder:
    """Nothing is loaded: the opened backbone with an untrained adapter is the base."""
    base = p.model.init(p.config.seed).flat[None]
    causal = p.backbone.pooling in (None, LAST)

    def read(texts: Texts) -> Tensor:
        p.task.fold({})
        with p.model.slots.bind(base):
            body = p.model.model.base_model
            found = body(input_ids=texts.ids[0], **model_inputs(body, texts, LAST if causal else MEAN))
        return pool_states(found, texts, MEAN)

    separator = p.backbone.separator if causal else None
    return Encoder(p.backbone.name, read, p.backbone.tokenizer, separator, p.config.model.max_length, p.model.device)


def _load_other(name: str, p: Prepared) -> Encoder:
    b = load_backbone(name, device=p.config.device, headless=True)
    rule, causal = read_pooling_rule(b.source, b.revision), b.pooling == LAST
    by = FIRST if rule.get("pooling_mode_cls_token") else LAST if rule.get("pooling_mode_lasttoken") else MEAN

    def read(texts: Texts) -> Tensor:
        check_tokens(name, b.model, b.tokenizer, [texts.ids])
        body = b.model.base_model
        found = body(input_ids=texts.ids[0], **model_inputs(body, texts, LAST if causal else MEAN))
        return pool_states(found, texts, by)

    wanted, device = p.config.model.max_length, next(b.model.parameters()).device
    length = min(wanted, count_positions(b.model) or wanted)
    return Encoder(name, read, b.tokenizer, b.separator if causal else None, length, device)


def embed_texts(p: Prepared, encoder: Encoder) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Vectors (n, d) of the texts of `draw_texts`, and who owns each, (n,)."""
    texts, owner = draw_texts(p.config, p.split.corpus)
    return encoder(texts), owner


def draw_texts(exp: Experiment, corpus: Corpus) -> tuple[list[str], NDArray[np.int64]]:
    """At most `TEXTS` training texts of every client, and who owns each, (n,).

    They are as their clients have them, and what a client holds back for its evaluation is not among them.
    """
    dealt = deal_out(exp, corpus)
    places = [rng(exp.seed, "embedding", k).permutation(own)[:TEXTS] for k, (own, _) in enumerate(dealt.parts)]
    texts = [dealt.deal.texts.get(int(i), dealt.documents[i].text) for own in places for i in own]
    return texts, np.repeat(np.arange(len(places)), [len(own) for own in places])
