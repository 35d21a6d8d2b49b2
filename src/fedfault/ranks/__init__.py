"""Rank schedulers, one file each."""
