"""The nouns of the laboratory: adapters, algorithms, tasks, corpora. Nothing here imports torch: reports need none."""
