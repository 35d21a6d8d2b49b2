"""From a corpus to each client's token blocks, and to the sets that the global model is evaluated on."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from fedfault.config.schema import Experiment
from fedfault.data.poisoning import poison_texts
from fedfault.data.secrets import plant_secrets
from fedfault.dealing.owners import NeedsColumn, group_positions
from fedfault.errors import UserError
from fedfault.options import list_options
from fedfault.reading.columns import find_naming_columns
from fedfault.reading.documents import hash_text
from fedfault.reading.files import find_path
from fedfault.registry import build, find_builder
from fedfault.seeds import rng
from fedfault.text.decoding import count_text_bytes
from fedfault.text.examples import Examples
from fedfault.text.packing import Blocks, pack_blocks
from fedfault.text.responses import Responses
from fedfault.text.tokens import Tokens, encode_texts
from fedfault.types.corpus import Conversation, Corpus, Deal, Document, Partition

CLIENT_SHARE = 4  # a client's own held-out set has at most evaluation.max_blocks / 4 blocks
# Settings of `data` that go to the corpus
COLUMNS = ("path", "text_columns", "columns", "topic_column", "group_column")


class ClientData(Protocol):
    """The data of one client: token blocks, labelled examples, or conversations."""

    def __len__(self) -> int: ...

    @property
    def num_tokens(self) -> int:
        """The number of targets."""


P = TypeVar("P", bound=ClientData)
Rows = TypeVar("Rows")


@dataclass(frozen=True)
class Split(Generic[P]):
    """The data of every client and of the server. Lists are by client; one with a single document has no held-out set."""

    corpus: Corpus
    documents: Sequence[Document]  # for training: all or data.max_samples of the corpus
    deal: Deal  # positions in `documents`, held-out ones included
    tokens: Tokens  # of the documents as their clients have them
    topics: tuple[str, ...]
    labels: NDArray[np.int64]  # (n,) the topic of every document
    train: list[P]
    held_out: list[P | None]
    validation: dict[str, P]  # by topic, at most evaluation.max_blocks each
    mixture: dict[str, float]  # topic -> its share of all validation tokens, those beyond max_blocks included
    # score name -> nats per token that no model can beat, where known
    floor: dict[str, float] = field(default_factory=dict)
    bytes_per_token: dict[str, float] = field(default_factory=dict)  # score name -> see `bytes_per_token`
    backdoor: P | None = None  # of a run with a backdoor: texts with its trigger, labelled as it wants them
    examples: Examples | Responses | None = None  # of all documents, by position, where each is a row of its own
    too_short: int = 0  # texts of both sides that have no token: there is nothing to learn from them
    cut: int = 0  # texts of both sides that fill model.max_length, or conversations that lose their end
    # of the evaluation sets, by score name, where documents are conversations
    conversations: Mapping[str, Sequence[Conversation]] = field(default_factory=dict)
    unanswered: int = 0  # conversations of both sides that are cut before their first response

    @property
    def counts(self) -> NDArray[np.int64]:
        """Documents by client and topic, (N, K)."""
        return np.stack([np.bincount(self.labels[own], minlength=len(self.topics)) for own in self.deal.clients])

    @property
    def targets(self) -> str:
        """The word for what is predicted: tokens, or examples where each has one label."""
        return "examples" if isinstance(self.examples, Examples) else "tokens"

    def describe_losses(self) -> list[str]:
        """Say which texts are not learned from, or not to their end; nothing where all are."""
        short = f"{self.too_short:,} texts are too short: they have no token in this model's vocabulary"
        cut = f"{self.cut:,} texts fill model.max_length, and what is longer is cut off at its end; a higher one reads more"
        gone = f"{self.unanswered:,} conversations are left out: model.max_length cuts them before their first response"
        said = (short, self.too_short), (cut, self.cut), (gone, self.unanswered)
        return [line for line, n in said if n]

    def to_json(self) -> dict[str, Any]:
        """The part of the split that the run folder stores, as JSON."""
        return {
            "topics": list(self.topics),
            "clients": self.counts.tolist(),
            "tokens": [b.num_tokens for b in self.train],
            "attempts": self.deal.attempts,
            "acceptance": self.deal.acceptance,
            "removed": self.deal.removed,
            "notes": list(self.deal.notes),
            **({"names": list(self.deal.names)} if self.deal.names else {}),
            "floor": self.floor,  # by score name
            "bytes_per_token": self.bytes_per_token,  # by score name
        }


def load_corpus(exp: Experiment) -> Corpus:
    """Load the corpus of an experiment; `data.path` and the column names are passed on to a corpus that takes them.

    Raises `UserError` for one that the corpus does not take.
    """
    data = exp.data
    takes = list_options(find_builder("corpus", data.dataset.name))
    given = {k: v for k in COLUMNS if (v := getattr(data, k)) is not None}
    for key in given:
        if key not in takes:
            way = "leave it out" if data.path is None else "leave it out, or read data.path by data.dataset=text"
            raise UserError(f"data.{key} is set, but the corpus {data.dataset.name!r} takes no {key}; {way}")
    found: Corpus = build("corpus", data.dataset.name, **data.dataset.options, **given)
    return found


def is_same_corpus(one: Experiment, other: Experiment) -> bool:
    """Whether two experiments load the same corpus."""
    return all(getattr(one.data, key) == getattr(other.data, key) for key in ("dataset", *COLUMNS))


@dataclass(frozen=True)
class DealtDocuments:
    """The documents to train on and the client of each; positions are in `documents`."""

    documents: Sequence[Document]
    topics: tuple[str, ...]
    labels: NDArray[np.int64]  # (n,)
    deal: Deal
    parts: list[tuple[NDArray[np.int64], NDArray[np.int64]]]  # of each client: positions to train on, and held out


def deal_out(exp: Experiment, corpus: Corpus, *, control: bool = False) -> DealtDocuments:
    """Deal the training documents out to clients and hold some back for each.

    A `control` is dealt the same numbers of documents at random, as the corpus has them: IID clients of the same sizes, and
    honest. Secrets are planted in its texts too, where there are some.

    Raises `UserError` when the partition is impossible.
    """
    documents = choose_training_documents(exp, corpus)
    topics = tuple(sorted({d.topic for d in corpus.train}))
    place = {topic: k for k, topic in enumerate(topics)}
    labels = np.array([place[d.topic] for d in documents])
    method = exp.data.partition
    generator = rng(exp.seed, "partition")
    partition: Partition = build("partition", method.name, **method.options)
    try:
        deal = partition(documents, exp.federation.total_clients, generator)
    except NeedsColumn as e:
        raise UserError(f"{e}{_offer_columns(exp, e.setting)}") from None
    if control:
        deal = _deal_at_random(deal, rng(exp.seed, "control"))
    draws = [rng(exp.seed, "held_out", k) for k in range(len(deal.clients))]
    held = _hold_back(deal.clients, _number_same(corpus, documents), exp.data.held_out, draws)
    if not control:
        documents, deal = poison_texts(exp, documents, topics, deal, held)
    documents, deal = plant_secrets(exp, documents, deal, held)
    return DealtDocuments(documents, topics, labels, deal, held)


def _offer_columns(exp: Experiment, setting: str) -> str:
    """List the columns of the user's table that a setting of `data` could name, as the end of an error message."""
    data = exp.data
    if data.path is None or setting not in list_options(find_builder("corpus", data.dataset.name)):
        return ""
    used = [*(data.text_columns or ["text"]), data.topic_column, data.group_column]
    found = find_naming_columns(find_path(data.path).path, used)
    each = [f"{name} ({count:,} different values)" for name, count in found.items()]
    return f". Columns that data.{setting} could name: {', '.join(each)}" if each else ""


def split_into_blocks(
    exp: Experiment, corpus: Corpus, tokenizer: Any, separator: int, *, control: bool = False
) -> Split[Blocks]:
    """Deal documents out as `deal_out` does and pack them into blocks.

    Raises `UserError` when the partition is impossible or a client is left without text.
    """
    T, most = exp.model.max_length, exp.evaluation.max_blocks
    d = deal_out(exp, corpus, control=control)
    changed = d.deal.texts
    ids = encode_texts(tokenizer, [document.text for document in d.documents])
    ids = ids.replace(dict(zip(changed, encode_texts(tokenizer, list(changed.values())), strict=True)))
    train, held_out = [], []
    for k, (mine, kept_back) in enumerate(d.parts):
        train.append(pack_blocks([ids[i] for i in mine], T, separator))
        own = pack_blocks([ids[i] for i in kept_back], T, separator) if len(kept_back) else None
        held_out.append(own and _draw_blocks(own, max(1, most // CLIENT_SHARE), exp.seed, "client", k))
    held = encode_texts(tokenizer, [d.text for d in corpus.validation])
    whole = _pack_by_topic(corpus.validation, held, T, separator)
    total = sum(b.num_tokens for b in whole.values())
    mixture = {topic: b.num_tokens / total for topic, b in whole.items()}
    validation = {t: _draw_blocks(b, most, exp.seed, "topic", t) for t, b in whole.items()}
    floor = _entropy_floor(corpus, whole, mixture)
    sizes = bytes_per_token(name_sets(validation, held_out), tokenizer, separator)
    sizes["validation"] = sum(share * sizes[f"topic/{t}"] for t, share in mixture.items())
    about = (corpus, d.documents, d.deal, ids, d.topics, d.labels)
    short = sum(int((each.lengths == 0).sum()) for each in (ids, held))
    return Split(*about, train, held_out, validation, mixture, floor, sizes, too_short=short)


def name_sets(validation: Mapping[str, Rows], held_out: Sequence[Rows | None]) -> dict[str, Rows]:
    """Name what models are scored on: `topic/T` for every topic, `client/K` for each client that held something back.

    >>> name_sets({"news": "a"}, [None, "b"])
    {'topic/news': 'a', 'client/1': 'b'}
    """
    sets = {f"topic/{topic}": rows for topic, rows in validation.items()}
    return sets | {f"client/{k}": rows for k, rows in enumerate(held_out) if rows is not None}


def choose_training_documents(exp: Experiment, corpus: Corpus) -> Sequence[Document]:
    """Choose the documents to deal out, at most `data.max_samples` of them.

    Raises `UserError` where clients are more than documents.
    """
    documents, N = corpus.train, exp.federation.total_clients
    if exp.data.max_samples is not None and exp.data.max_samples < len(documents):
        kept = rng(exp.seed, "max_samples").permutation(len(documents))[: exp.data.max_samples]
        documents = tuple(documents[i] for i in sorted(kept))
    if len(documents) < N:
        raise UserError(
            f"{N} clients for {len(documents)} training documents of {corpus.name}: lower federation.total_clients"
            + (" or raise data.max_samples" if exp.data.max_samples else "")
        )
    return documents


def _deal_at_random(deal: Deal, generator: np.random.Generator) -> Deal:
    """Deal the documents out at random to clients of the same sizes."""
    sizes = [len(own) for own in deal.clients]
    order = generator.permutation(sum(sizes))
    return Deal([np.sort(own) for own in np.split(order, np.cumsum(sizes)[:-1])], notes=("control: dealt at random",))


def _number_same(corpus: Corpus, documents: Sequence[Document]) -> list[NDArray[np.int64]]:
    """Number the prompts of documents, and their texts, (n,) each; a text that is no conversation is its own prompt."""
    spoken = corpus.conversations
    texts = [hash_text(d.text) for d in documents]
    prompts = [
        hash_text(spoken[d.text].opening) if d.text in spoken else h for d, h in zip(documents, texts, strict=True)
    ]
    return [np.unique(np.array(own, dtype=np.uint64), return_inverse=True)[1] for own in (prompts, texts)]


def _hold_back(
    clients: Sequence[NDArray[np.int64]],
    same: Sequence[NDArray[np.int64]],
    share: float,
    draws: Sequence[np.random.Generator],
) -> list[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Divide every client's documents into train and held out: at least one each where there are two.

    What one client holds back, no client trains on: no copy of the text, and no conversation that begins with its prompt.
    Conversations of one prompt are divided at a client that could hold nothing back otherwise.

    same: (n,) each, the numbers of the documents' prompts and of their texts; draws: a client's own
    """
    owner = np.empty(sum(map(len, clients)), dtype=np.int64)
    for k, own in enumerate(clients):
        owner[own] = k
    held = np.zeros(len(owner), dtype=bool)
    left = [len(own) for own in clients]  # documents to train on
    shuffled = [draw.permutation(own) for draw, own in zip(draws, clients, strict=True)]

    def take(group: NDArray[np.int64]) -> bool:
        """Hold a group back at all clients, if each of them keeps a document to train on."""
        losses = Counter(owner[group].tolist())
        if any(left[k] <= n for k, n in losses.items()):
            return False
        held[group] = True
        for k, n in losses.items():
            left[k] -= n
        return True

    for number in same:
        groups = group_positions(number, int(number.max()) + 1)
        settled: set[int] = set()  # groups that clients before have taken or left
        for order in [own for own in shuffled if not held[own].any()]:
            sizes = Counter(number[order].tolist())
            wanted = max(1, math.ceil(share * len(order) - 1e-9))  # 0.07 * 100 is a little more than 7 in floats
            have = int(held[order].sum())
            for group, n in sizes.items():
                if have + n <= wanted and group not in settled and take(groups[group]):
                    have += n
            smallest_first = sorted(sizes, key=sizes.__getitem__) if have == 0 else []
            for group in smallest_first:  # each is more than the client's share
                if take(groups[group]):
                    break
            settled |= sizes.keys()
    return [(np.sort(own[~held[own]]), np.sort(own[held[own]])) for own in clients]


def _draw_blocks(blocks: Blocks, n: int, seed: int, *name: str | int) -> Blocks:
    """Draw at most n blocks, once for the run."""
    if len(blocks) <= n:
        return blocks
    rows = np.sort(rng(seed, "evaluation", *name).permutation(len(blocks))[:n])
    return blocks[rows]


def draw_positions(lengths: NDArray[np.int64], tokens: int, seed: int, *name: str | int) -> NDArray[np.int64]:
    """Draw examples for evaluation, once for the run, as many as have so many tokens together, one at least.

    lengths: (n,) tokens of each example; name: what tells this draw from others of the run. Returns the positions of those
    that are drawn, in rising order.
    """
    order = rng(seed, "evaluation", *name).permutation(len(lengths))
    fits = int((np.cumsum(lengths[order]) <= tokens).sum())
    return np.sort(order[: max(1, fits)])


def _pack_by_topic(documents: Iterable[Document], ids: Tokens, T: int, separator: int) -> dict[str, Blocks]:
    own: dict[str, list[Any]] = {}
    for d, row in zip(documents, ids, strict=True):
        own.setdefault(d.topic, []).append(row)
    return {topic: pack_blocks(own[topic], T, separator) for topic in sorted(own)}


def _entropy_floor(corpus: Corpus, validation: dict[str, Blocks], mixture: dict[str, float]) -> dict[str, float]:
    """The known entropy of each topic's validation texts in nats per target token; empty for natural text."""
    if corpus.entropy is None:
        return {}
    characters: dict[str, int] = {}
    for d in corpus.validation:
        characters[d.topic] = characters.get(d.topic, 0) + len(d.text)
    floor = {t: corpus.entropy[t] * characters[t] / b.num_tokens for t, b in validation.items()}
    return {"validation": sum(mixture[t] * floor[t] for t in floor), **{f"topic/{t}": v for t, v in floor.items()}}


def bytes_per_token(sets: Mapping[str, Blocks | Responses], tokenizer: Any, separator: int) -> dict[str, float]:
    """UTF-8 bytes of text per target token of each set, for `records.bits_per_byte`.

    Separators between documents are predicted like other tokens, so they count as tokens, but they have no bytes.
    """
    targets = [b.ids[:, 1:][b.mask].numpy() for b in sets.values()]
    sizes = count_text_bytes(tokenizer, np.concatenate(targets), separator)
    parts = np.split(sizes, np.cumsum([len(t) for t in targets])[:-1])
    return {name: float(part.mean()) for name, part in zip(sets, parts, strict=True)}


def pack_and_draw(texts: Sequence[str], tokenizer: Any, T: int, separator: int, n: int, seed: int) -> Blocks:
    """Pack texts and draw at most n blocks of them, for the evaluation on general English."""
    return _draw_blocks(pack_blocks(encode_texts(tokenizer, texts), T, separator), n, seed, "general")
