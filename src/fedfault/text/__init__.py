"""Texts as tokens, blocks, labelled examples and words."""
