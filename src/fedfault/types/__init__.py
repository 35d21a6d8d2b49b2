"""The nouns of the laboratory: adapters, algorithms, tasks, corpora. Corpora need no torch."""
