"""Federated optimisation algorithms, one file each: `fedfault list algorithm`."""
