"""From a corpus to each client's token blocks, and to the sets that the global model is evaluated on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fedfault.config.schema import Experiment
from fedfault.corpora.packing import Blocks, encode, pack
from fedfault.errors import UserError
from fedfault.registry import build, lookup, options
from fedfault.seeds import rng
from fedfault.types import Corpus

CLIENT_SHARE = 4  # a client's own held-out set has at most evaluation.max_blocks / 4 blocks


@dataclass(frozen=True)
class Split:
    """Who holds what. Lists are indexed by client; a client with one document has no held-out set (None)."""

    corpus: Corpus
    topics: tuple[str, ...]
    counts: np.ndarray  # (clients, topics) training documents
    train: list[Blocks]
    held_out: list[Blocks | None]
    validation: dict[str, Blocks]  # by topic, at most evaluation.max_blocks each
    mixture: dict[str, float]  # topic -> its share of all validation tokens, those beyond max_blocks included

    def to_json(self) -> dict[str, Any]:
        """What the run folder keeps of it."""
        return {
            "topics": list(self.topics),
            "clients": self.counts.tolist(),
            "tokens": [b.num_tokens for b in self.train],
        }


def load_corpus(exp: Experiment) -> Corpus:
    """The corpus of an experiment; `data.path` and the column names go to the loaders that take them.

    Raises `UserError` when one is given that the loader does not take.
    """
    data = exp.data
    takes = options(lookup("corpus", data.dataset))
    given = {k: v for k in ("path", "text_columns", "topic_column") if (v := getattr(data, k)) is not None}
    for key in given:
        if key not in takes:
            raise UserError(f"data.{key} is set, but the corpus {data.dataset!r} takes no {key}; leave it out")
    found: Corpus = build("corpus", data.dataset, **given)
    return found


def split(exp: Experiment, corpus: Corpus, tokenizer: Any, separator: int) -> Split:
    """Deal the training documents out to clients, hold some back for each, and pack everything into blocks.

    Raises `UserError` when the partition is impossible or a client is left without text.
    """
    documents, N = list(corpus.train), exp.federation.total_clients
    if exp.data.max_samples is not None and exp.data.max_samples < len(documents):
        kept = rng(exp.seed, "max_samples").permutation(len(documents))[: exp.data.max_samples]
        documents = [documents[i] for i in sorted(kept)]
    if len(documents) < N:
        raise UserError(
            f"{N} clients for {len(documents)} training documents of {corpus.name}: lower federation.total_clients"
            + (" or raise data.max_samples" if exp.data.max_samples else "")
        )
    topics = tuple(sorted({d.topic for d in corpus.train}))
    labels = np.array([topics.index(d.topic) for d in documents])
    method = exp.data.partition
    parts = build("partition", method.method, **method.options)(labels, N, rng(exp.seed, "partition"))
    ids = encode(tokenizer, [d.text for d in documents])
    T = exp.model.max_length
    train, held_out = [], []
    for k, part in enumerate(parts):
        mine, kept_back = _hold_back(part, exp.data.held_out, rng(exp.seed, "held_out", k))
        train.append(pack([ids[i] for i in mine], T, separator))
        own = pack([ids[i] for i in kept_back], T, separator) if len(kept_back) else None
        held_out.append(own and _some(own, max(1, exp.evaluation.max_blocks // CLIENT_SHARE), exp.seed, "client", k))
    validation = _by_topic(corpus, tokenizer, T, separator)
    total = sum(b.num_tokens for b in validation.values())
    mixture = {topic: b.num_tokens / total for topic, b in validation.items()}
    validation = {t: _some(b, exp.evaluation.max_blocks, exp.seed, "topic", t) for t, b in validation.items()}
    counts = np.stack([np.bincount(labels[part], minlength=len(topics)) for part in parts])
    return Split(corpus, topics, counts, train, held_out, validation, mixture)


def _hold_back(part: np.ndarray, share: float, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Disjoint (train, held out) of one client's documents: at least one each where there are two."""
    n = min(len(part) - 1, math.ceil(share * len(part)))
    shuffled = generator.permutation(part)
    return np.sort(shuffled[n:]), np.sort(shuffled[:n])


def _some(blocks: Blocks, n: int, seed: int, *name: str | int) -> Blocks:
    """At most n blocks, drawn once for the run."""
    if len(blocks) <= n:
        return blocks
    rows = np.sort(rng(seed, "evaluation", *name).permutation(len(blocks))[:n])
    return Blocks(blocks.ids[rows], blocks.targets[rows])


def _by_topic(corpus: Corpus, tokenizer: Any, T: int, separator: int) -> dict[str, Blocks]:
    texts: dict[str, list[str]] = {}
    for d in corpus.validation:
        texts.setdefault(d.topic, []).append(d.text)
    return {topic: pack(encode(tokenizer, texts[topic]), T, separator) for topic in sorted(texts)}


def documents_of(texts: Sequence[str], tokenizer: Any, T: int, separator: int, n: int, seed: int) -> Blocks:
    """At most n blocks of any texts: for the set of general English."""
    return _some(pack(encode(tokenizer, texts), T, separator), n, seed, "general")
