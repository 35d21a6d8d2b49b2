"""The nouns of the laboratory. Nothing here imports torch, so that records, detectors and reports work without it."""
