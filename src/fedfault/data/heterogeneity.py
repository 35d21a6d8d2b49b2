"""The measured heterogeneity of a split, beside what chance alone would give."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from fedfault.backbones.cohort import CohortModel
from fedfault.data.split import ClientData, Split
from fedfault.dealing.owners import draw_log_dirichlet, normalise_logs
from fedfault.measures import skew
from fedfault.measures.skew import Index
from fedfault.records import replace_not_finite
from fedfault.saying import Say
from fedfault.seeds import rng
from fedfault.storage import cache_dir, keep, recall
from fedfault.tasks.classification import ClassificationTask
from fedfault.tasks.language import LanguageTask
from fedfault.text.packing import pack_blocks
from fedfault.text.responses import Responses
from fedfault.types.task import Step

METHOD = 3  # raised when the same split gets other numbers or sentences than before
TOKENS = 2_000_000  # of the documents that the token divergence is measured on, about
EMBEDDED = 600  # documents whose embeddings are compared
PAIRED = 100  # clients in that comparison
HALVED = 32  # clients whose gradients are taken
GRADIENT_NUMBERS = 50_000_000  # of all gradients together, which bounds their memory
BLOCKS = 4  # of each half's gradient
EXAMPLES = 16  # the same of labelled examples; of conversations as many at most as have the tokens of BLOCKS blocks
REFERENCE = 200  # splits of the corpus that the percentile is among
REFERENCE_ALPHA = (0.01, 100.0)  # their alpha is drawn from, log-uniformly


@dataclass(frozen=True)
class Heterogeneity:
    """A split in numbers. None where the data leave an index undefined (one topic, one client, tiny clients)."""

    token_js: Index | None
    label_emd: Index | None
    size_cv: Index
    embedding_mmd: Index | None
    gradient: Index | None  # variance of the clients' gradients at the untrained adapter
    gradient_noise: float | None  # variance within a client, of one half
    dissimilarity: float | None  # B^2
    effective_clients: float  # by documents; what clients weigh in a round is `federation.weighting`'s to say
    shared_mass: float | None  # topic mass that two clients share, mean over pairs
    percentile: float | None  # of label_emd among Dirichlet splits of this corpus
    measured: Mapping[str, int]  # how many documents, clients and blocks the indices were measured on

    def to_json(self) -> dict[str, Any]:
        """Plain numbers with each index's excess and z, and the sentences."""
        plain: dict[str, Any] = asdict(self)
        for name in INDICES:
            if (index := getattr(self, name)) is not None:
                plain[name] |= {"excess": index.excess, "z": index.z}
        return {**replace_not_finite(plain), "sentences": write_sentences(self)}


INDICES = ("label_emd", "token_js", "size_cv", "embedding_mmd", "gradient")


def load_or_measure(
    split: Split[Any], model: CohortModel, seed: int, separator: int, key: object, say: Say
) -> dict[str, Any]:
    """Load a split's heterogeneity, as JSON, from the cache, or `measure` and store it; another `key` is another entry."""
    parts = (METHOD, key, split.corpus.fingerprint, seed)
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=16).hexdigest()
    file = cache_dir() / "heterogeneity" / f"{digest}.json"
    if (kept := recall(file)) is not None:
        found: dict[str, Any] = json.loads(kept)
        return found
    say("heterogeneity of the split")
    made = measure(split, model, seed, separator).to_json()
    keep(file, json.dumps(made).encode())
    return made


def measure(split: Split[Any], model: CohortModel, seed: int, separator: int) -> Heterogeneity:
    """Measure all indices of a split on the frozen base; the result depends on the split, the base and the seed alone."""
    owner = np.empty(len(split.documents), dtype=np.int64)
    for client, own in enumerate(split.deal.clients):
        owner[own] = client
    counts = split.counts
    several, topical = len(counts) > 1, len(split.topics) > 1
    gradients, halved = _measure_gradients(split, model, seed, separator) if several else (None, 0)
    labels = skew.label_emd(split.labels, owner, rng(seed, "skew", "labels")) if several and topical else None
    embeddings, clients = _measure_embeddings(split, model, seed) if several else (None, 0)
    return Heterogeneity(
        token_js=_measure_token_js(split, owner, seed) if several else None,
        label_emd=labels,
        size_cv=skew.size_cv(counts.sum(axis=1)),
        embedding_mmd=embeddings,
        gradient=gradients.between if gradients else None,
        gradient_noise=gradients.within if gradients else None,
        dissimilarity=gradients.dissimilarity if gradients and math.isfinite(gradients.dissimilarity) else None,
        effective_clients=skew.effective_clients(counts.sum(axis=1)),
        shared_mass=skew.shared_mass(counts) if several and topical else None,
        percentile=compute_percentile(labels.value, counts, rng(seed, "skew", "reference")) if labels else None,
        measured={
            "documents": len(owner),
            "clients": len(counts),
            "embedded_clients": clients,
            "gradient_clients": halved,
            "blocks_a_half": BLOCKS if split.examples is None else EXAMPLES,
        },
    )


def _measure_token_js(split: Split[Any], owner: np.ndarray, seed: int) -> Index | None:
    generator = rng(seed, "skew", "tokens")
    order = generator.permutation(len(owner))
    chosen = np.sort(order[: max(2, int(np.searchsorted(np.cumsum(split.tokens.lengths[order]), TOKENS)))])
    lengths = split.tokens.lengths[chosen]
    clients, renumbered = np.unique(owner[chosen], return_inverse=True)
    if lengths.sum() == 0 or len(clients) < 2:
        return None
    ids = np.concatenate([split.tokens[i] for i in chosen])
    return skew.token_js(np.repeat(np.arange(len(chosen)), lengths), ids, renumbered, generator)


def _measure_embeddings(split: Split[Any], model: CohortModel, seed: int) -> tuple[Index | None, int]:
    """Measure `embedding_mmd` on documents as means of their tokens' frozen input embeddings, about as many a client.

    Also returns the number of clients that were compared.
    """
    generator = rng(seed, "skew", "embeddings")
    full = split.tokens.lengths > 0
    rich = [own[full[own]] for own in split.deal.clients if full[own].sum() > 1]
    picked = [rich[i] for i in sorted(generator.permutation(len(rich))[:PAIRED].tolist())]
    if len(picked) < 2:
        return None, 0
    each = max(2, EMBEDDED // len(picked))
    own = [np.sort(generator.permutation(documents)[:each]) for documents in picked]
    rows = [torch.from_numpy(split.tokens[i].astype(np.int64)) for documents in own for i in documents]
    table = model.input_embeddings()
    offsets = torch.tensor([0, *(len(r) for r in rows[:-1])]).cumsum(0)
    means = torch.nn.functional.embedding_bag(torch.cat(rows), table.float().cpu(), offsets, mode="mean")
    client = np.repeat(np.arange(len(own)), [len(o) for o in own])
    return skew.embedding_mmd(means.double().numpy(), client, generator), len(own)


def _measure_gradients(
    split: Split[Any], model: CohortModel, seed: int, separator: int
) -> tuple[skew.GradientSkew | None, int]:
    """Measure two gradients of every client, or of as many drawn ones, at the untrained adapter, each on half its documents.

    Also returns the number of clients.
    """
    generator = rng(seed, "skew", "gradients")
    x = model.init(seed)
    most = max(2, min(HALVED, GRADIENT_NUMBERS // (2 * len(x.flat))))
    halves: list[Any] = []
    most_rows = BLOCKS if split.examples is None else EXAMPLES
    drawn = generator.permutation(len(split.deal.clients)).tolist()
    for client in [*sorted(drawn[:most]), *drawn[most:]]:  # the later ones for those without a token
        if len(halves) == 2 * most:
            break
        shuffled = generator.permutation(split.deal.clients[client])
        one, other = (_draw_part(split, half, generator, separator) for half in (shuffled[::2], shuffled[1::2]))
        if one is not None and other is not None:
            halves += [one, other]
    if len(halves) < 4:
        return None, 0
    labelled = model.scorer is not None
    task = ClassificationTask(model, halves, {}, seed=seed) if labelled else LanguageTask(model, halves, {}, {})
    per = max(1, task.tokens_per_pass() // (most_rows * task.mask.shape[1]))
    gradients = []
    for clients in torch.arange(len(halves)).split(per):
        rows = torch.arange(most_rows).expand(len(clients), -1)
        real = rows < torch.tensor([task.counts[c] for c in clients])[:, None]
        start = x.flat.expand(len(clients), -1)
        step = Step(clients, rows.where(real, 0), real, key=clients)
        gradients.append(task.grad(start, step)[1].cpu().double())
    both = torch.cat(gradients).numpy()
    return skew.gradient_skew(both[::2], both[1::2], generator), len(halves) // 2


def _draw_part(
    split: Split[Any], documents: np.ndarray, generator: np.random.Generator, separator: int
) -> ClientData | None:
    """Draw a few blocks or examples of these documents; None if they hold no token."""
    if (examples := split.examples) is not None:
        if not len(documents):
            return None
        drawn = examples[documents[:EXAMPLES]]
        fits = int((drawn.lengths.cumsum(0) <= BLOCKS * (examples.ids.shape[1] - 1)).sum())
        return drawn[np.arange(max(1, fits))] if isinstance(drawn, Responses) else drawn
    ids = [split.tokens[i] for i in documents]
    if not sum(map(len, ids)):
        return None
    whole = pack_blocks(ids, split.train[0].ids.shape[1] - 1, separator)
    rows = np.sort(generator.permutation(len(whole))[:BLOCKS])
    return whole[rows]


def compute_percentile(value: float, counts: np.ndarray, generator: np.random.Generator) -> float:
    """Share, in per cent, of reference splits whose label EMD is below `value`.

    counts: (N, K) documents by client and topic. The reference gives the N clients of these sizes topic laws
    ~ Dir(alpha * prior), with alpha log-uniform between 0.01 and 100: from one topic a client to nearly IID.
    """
    counts = counts[:, counts.any(axis=0)]
    sizes, prior = counts.sum(axis=1), counts.sum(axis=0) / counts.sum()
    low, high = np.log(REFERENCE_ALPHA)
    below = 0
    for alpha in np.exp(generator.uniform(low, high, REFERENCE)):
        logs = draw_log_dirichlet(np.tile(alpha * prior, (len(sizes), 1)), generator)
        drawn = generator.multinomial(sizes, normalise_logs(logs))
        law = drawn.sum(axis=0) / drawn.sum()
        below += float(np.abs(drawn - sizes[:, None] * law).sum() / sizes.sum()) < value
    return 100 * below / REFERENCE


def write_sentences(h: Heterogeneity) -> list[str]:
    """Describe the split in sentences."""
    said = []
    if h.shared_mass is not None and h.label_emd is not None and h.percentile is not None:
        rank = f"more skewed than {h.percentile:.0f} % of Dirichlet splits of this corpus (alpha 0.01 to 100)"
        said.append(
            f"Two clients share {100 * h.shared_mass:.0f} % of topic mass; by topic this split is "
            f"{'like a random one' if h.label_emd.p > 0.05 else rank}."
        )
    if h.token_js is not None:
        said.append(f"Their tokens {_describe_index(h.token_js, 'JS divergence {:.4f} nats beyond chance')}.")
    said.append(_describe_sizes(h))
    if h.gradient is not None:
        ratio = f", B² = {h.dissimilarity:.2f}" if h.dissimilarity is not None else ""
        said.append(f"Their gradients at the start {_describe_index(h.gradient, f'p = {h.gradient.p:.3f}{ratio}')}.")
    return said


def _describe_index(index: Index, numbers: str) -> str:
    if index.p > 0.05:
        return f"differ no more than those of random splits (z = {index.z:.1f})".replace("-", "−")
    return f"differ more than those of random splits ({numbers.format(index.excess)}, z = {index.z:.1f})"


def _describe_sizes(h: Heterogeneity) -> str:
    N = h.measured["clients"]
    if h.size_cv.p > 0.05:
        return f"The {N} clients have about the same number of documents."
    even = f"{h.effective_clients:.1f} even ones"
    return f"The {N} clients differ in size (CV {h.size_cv.value:.2f}): their documents are spread as over {even}."
