"""Seconds to deal 120,000 documents out to 1,000 clients, by every partitioner, on one core.

python benchmarks/partitions.py
"""

from __future__ import annotations

import argparse
import time

import numpy as np

from fedfault.registry import build, load_builders
from fedfault.types.corpus import Document

COMMON = ("the", "of", "a", "to", "and", "in", "that", "it", "was", "he")
VARIANTS = {
    "topic_skew": [{"convention": c} for c in ("per_client", "balanced")],
    "style_skew": [{"criterion": c} for c in ("length", "formality", "complexity", "source")],
    "token_skew": [{"type": t} for t in ("frequency", "truncation", "vocabulary", "stopwords")],
}


def documents(n: int) -> list[Document]:
    """News-like texts of about 35 words with a Zipf law, 20 topics, 1,500 groups."""
    generator = np.random.default_rng(0)
    words = np.array([*(f"word{i}" for i in range(20_000)), *COMMON * 500])
    picked = words[np.minimum(generator.zipf(1.3, size=(n, 35)), len(words) - 1)]
    return [Document(" ".join(row) + f" {i}.", f"topic {i % 20}", f"group {i % 1500}") for i, row in enumerate(picked)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--documents", type=int, default=120_000)
    parser.add_argument("--clients", type=int, default=1_000)
    args = parser.parse_args()
    deck = documents(args.documents)
    for name in load_builders("partition"):
        for options in VARIANTS.get(name, [{}]):
            partition, seconds = build("partition", name, **options), []
            for _ in range(3):
                began = time.perf_counter()
                partition(deck, args.clients, np.random.default_rng(0))
                seconds.append(time.perf_counter() - began)
            print(f"{name:16s} {' '.join(options.values()):12s} {min(seconds):5.2f} s", flush=True)


if __name__ == "__main__":
    main()
