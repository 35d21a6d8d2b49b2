"""Clusters of clients that have similar data."""
