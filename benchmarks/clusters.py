"""How often clients of an IID split fall into more than one cluster: at most 5 % of seeds, by the test's construction.

    python benchmarks/clusters.py                                             registers, ten IID clients, 40 seeds
    python benchmarks/clusters.py data.dataset=ag_news data.path=AG_NEWS_FOLDER
    python benchmarks/clusters.py data.partition=topic_skew                   how often they are found where there are some

Every text is embedded once. The corpus is cut to its first 1,000 training texts, which every seed deals out anew.
"""

from __future__ import annotations

import argparse
from collections import Counter
from dataclasses import replace

import numpy as np

from fedfault.clustering.clusters import choose_clusters
from fedfault.clustering.embeddings import draw_texts, make_encoder
from fedfault.config import load
from fedfault.seeds import rng
from fedfault.setup.experiment import prepare

TEXTS = 1000


def main() -> None:
    args = parse()
    settings = ["data.partition=iid", "evaluation.general=none", *args.settings]
    p = prepare(load("quickstart", settings).experiment)
    kept = rng(0, "benchmark").permutation(len(p.split.corpus.train))[:TEXTS]
    corpus = replace(p.split.corpus, train=tuple(p.split.corpus.train[i] for i in sorted(kept)))
    encoder, known = make_encoder(p, args.encoder), dict[str, np.ndarray]()
    found: Counter[int] = Counter()
    for seed in range(args.seeds):
        texts, owner = draw_texts(load("quickstart", [*settings, f"seed={seed}"]).experiment, corpus)
        new = sorted(set(texts) - set(known))
        known |= dict(zip(new, encoder(new), strict=True)) if new else {}
        vectors = np.stack([known[text] for text in texts])
        found[choose_clusters(vectors, owner, p.config.federation.total_clients, seed).k] += 1
    print(f"{corpus.name}, {p.config.data.partition.name}, {args.encoder}: clusters in {args.seeds} seeds")
    print(", ".join(f"k = {k}: {n}" for k, n in sorted(found.items())))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("settings", nargs="*", help="key=value, on top of the quickstart")
    parser.add_argument("--seeds", type=int, default=40)
    parser.add_argument("--encoder", default="backbone")
    return parser.parse_args()


if __name__ == "__main__":
    main()
